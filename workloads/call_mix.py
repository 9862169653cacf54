"""Single calls for measuring a model: prompts of real tasks, answers of drawn lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from workloads.agent import Agent, AgentRun, in_turn
from workloads.errors import InputError
from workloads.task import Message, ModelCall, Outcome, Task


def full_callers(max_batch: int) -> int:
    """Callers that keep a batch full: a quarter more than it holds, so that no place waits for the network."""
    return max_batch + max(2, max_batch // 4)


class CallMix(NamedTuple):
    """Where calls for measurements come from: the first call of each task, with an answer of drawn length."""

    tasks: Sequence[Task]
    agent: Agent
    longest_answer_tokens: int

    def draw(
        self, count: int, rng: np.random.Generator, shortest: float = 0.5, longest: float = 1.0, most_prompts: int = 1
    ) -> list[Task]:
        """`count` tasks of one call each; answers take `shortest` to `longest` of the longest answer, evenly distributed.

        A prompt is that of one task, or of up to `most_prompts` tasks one after the other, for prompts of many sizes. Every task
        has an id of its own, so that the same prompt drawn twice is two calls. A model that ends its turn earlier is not held
        back. `single_call` is the agent that runs them.
        """
        least = max(1, round(shortest * self.longest_answer_tokens))
        most = max(least, round(longest * self.longest_answer_tokens))
        lengths = rng.integers(least, most + 1, count)
        prompts = rng.integers(1, most_prompts + 1, count)
        chosen = [[self.tasks[i] for i in rng.integers(len(self.tasks), size=number)] for number in prompts]
        return [_one_call(self.agent, tasks, n, int(lengths[n])) for n, tasks in enumerate(chosen)]


def _one_call(agent: Agent, tasks: Sequence[Task], number: int, answer_tokens: int) -> Task:
    calls = [next(in_turn(agent(task)), None) for task in tasks]
    first = calls[0]
    if first is None:
        raise InputError(f"task {tasks[0].id!r}", "asks no model", "Use tasks whose agent makes calls")
    call = first._replace(max_tokens=answer_tokens)
    for other in calls[1:]:
        assert other is not None
        call = call._replace(
            messages=_joined(call.messages, other.messages), prompt_tokens=call.prompt_tokens + other.prompt_tokens,
            upload_bytes=call.upload_bytes + other.upload_bytes,
        )  # fmt: skip
    return replace(tasks[0], id=f"{tasks[0].id}/{number}", latent=call)


def _joined(messages: tuple[Message, ...], others: tuple[Message, ...]) -> tuple[Message, ...]:
    """A conversation whose last message also says what another one's does."""
    if not messages or not others:
        return messages
    last = messages[-1]
    return (*messages[:-1], last._replace(content=f"{last.content} {others[-1].content}"))


def single_call(task: Task) -> AgentRun:
    """The agent of a drawn call: asks it and is done."""
    call: ModelCall = task.latent
    completion = yield call._replace(task=task)
    return Outcome(1.0, completion.text)


def whole_runs(tasks: Sequence[Task], count: int, rng: np.random.Generator) -> list[Task]:
    """`count` requests that run the tasks' own agent to its end, each with an id of its own."""
    chosen = rng.integers(len(tasks), size=count)
    return [replace(tasks[i], id=f"{tasks[i].id}/{number}") for number, i in enumerate(chosen)]
