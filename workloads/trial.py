"""Answering a task off line, without time: one request under one placement, or under every placement there is.

An agent is a generator and cannot be copied half-way, so every path of the placement tree runs the agent anew with the answers
already in hand. That asks of an agent what recording asks anyway: the same completions lead to the same calls. Without time there is
no side by side: the branches of a fork follow one another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from workloads.agent import Agent, AgentRun, in_turn
from workloads.backend import InferenceBackend
from workloads.errors import InputError, RecordingMiss
from workloads.task import Completion, ModelCall, Outcome, Task

MAX_NODES = 200_000
"""Model calls in one task's placement tree beyond which enumerating it is refused."""


class Trial(NamedTuple):
    """How a task ends when `models[i]` answers call i with `completions[i]`; `score` in [0, 1], `answer` the final one."""

    score: float
    models: tuple[str, ...]
    calls: tuple[ModelCall, ...]
    completions: tuple[Completion, ...]
    answer: str = ""


def run_trial(agent: Agent, task: Task, backend: InferenceBackend, choose: Callable[[ModelCall], str]) -> Trial:
    """Run one request to its end; `choose` names the model that answers a call. Raises what the backend raises."""
    run = in_turn(agent(task))
    models: list[str] = []
    calls: list[ModelCall] = []
    completions: list[Completion] = []
    step = _advance(run, None)
    while isinstance(step, ModelCall):
        models.append(choose(step))
        calls.append(step)
        completions.append(backend.submit(step, models[-1]).result())
        step = _advance(run, completions[-1])
    return Trial(step.score, tuple(models), tuple(calls), tuple(completions), step.answer)


def pure_trial(agent: Agent, task: Task, backend: InferenceBackend, model: str) -> Trial:
    """Run one request on one model throughout."""
    return run_trial(agent, task, backend, lambda call: model)


class _Branch(NamedTuple):
    """A path still to be walked: what was answered so far, and the model that takes the next call (None: not decided)."""

    models: tuple[str, ...]
    calls: tuple[ModelCall, ...]
    completions: tuple[Completion, ...]
    next_model: str | None


def enumerate_trials(
    agent: Agent,
    task: Task,
    backend: InferenceBackend,
    models: Sequence[str],
    max_depth: int = 15,
    *,
    max_nodes: int = MAX_NODES,
    skip_missing: bool = False,
) -> Iterator[Trial]:
    """Every placement of a request on `models`, each exactly once, in lexicographic order of the given models.

    The tree may be ragged: a placement decides which calls follow, and how many. Each node (a conversation and a model) is
    answered once, however many leaves lie below it. Calls beyond the first `max_depth` stay on the model before them, so a
    placement on one model throughout is always among the trials. `skip_missing` leaves out placements that a recording does
    not hold (RecordingMiss). Raises InputError when the tree has more than `max_nodes` nodes.
    """
    names = tuple(dict.fromkeys(models))
    nodes = 0
    pending = [_Branch((), (), (), None)]
    while pending:
        branch = pending.pop()
        run = in_turn(agent(task))
        step = _replay(run, task, branch.completions)
        chosen, calls, completions = list(branch.models), list(branch.calls), list(branch.completions)
        model = branch.next_model
        while isinstance(step, ModelCall):
            if model is None and len(chosen) < max_depth:
                so_far = tuple(chosen), tuple(calls), tuple(completions)
                pending += [_Branch(*so_far, other) for other in names[:0:-1]]
            model = model or (names[0] if len(chosen) < max_depth or not chosen else chosen[-1])
            nodes += 1
            if nodes > max_nodes:
                raise _too_many(task, max_nodes)
            try:
                completion = backend.submit(step, model).result()
            except RecordingMiss:
                if not skip_missing:
                    raise
                break
            chosen.append(model)
            calls.append(step)
            completions.append(completion)
            step = _advance(run, completion)
            model = None
        else:
            yield Trial(step.score, tuple(chosen), tuple(calls), tuple(completions), step.answer)


def _advance(run: AgentRun, completion: Completion | None) -> ModelCall | Outcome:
    """The agent's next call, or how it ended."""
    try:
        return next(run) if completion is None else run.send(completion)
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome


def _replay(run: AgentRun, task: Task, completions: tuple[Completion, ...]) -> ModelCall | Outcome:
    """Give a fresh agent the answers already in hand."""
    step = _advance(run, None)
    try:
        for completion in completions:
            step = run.send(completion)
    except StopIteration:
        raise InputError(
            f"task {task.id!r}",
            "its agent ended earlier when it was given the same completions again",
            "An agent must be a function of the task and the completions it receives.",
        ) from None
    return step


def _too_many(task: Task, max_nodes: int) -> InputError:
    return InputError(
        f"task {task.id!r}",
        f"its placements form a tree of more than {max_nodes} model calls",
        "Enumerate shorter tasks, fewer models or a smaller depth, or allow more nodes.",
    )
