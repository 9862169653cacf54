"""Trees of agents that fork: every placement by brute force, and what is refused."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workloads.test_expansion import CountingBackend, plain, recorded, reply_of
from workloads.agent import Agent, AgentRun, Run
from workloads.backend import ScriptedBackend
from workloads.errors import InputError, RecordingMiss
from workloads.expansion import expand
from workloads.recording import ReplayBackend
from workloads.task import Completion, Message, ModelCall, Outcome, Task
from workloads.task_tree import Fork, Node
from workloads.trial import pure_trial, run_trial

WORDS = ("go", "on", "end")


def talk(task: Task, opening: str, first: int, longest: int, branch: int) -> AgentRun:
    """A conversation that ends when a model says so; its answer is all that was said."""
    messages: tuple[Message, ...] = (Message("user", opening),)
    said = ""
    for step in range(longest):
        completion = yield ModelCall(task, first + step, messages, len(messages), 100 * len(messages), branch=branch)
        said += completion.text[0]
        if completion.text == "end":
            break
        messages += (Message("assistant", completion.text), Message("tool", "seen"))
    return Outcome(float(len(said) % 2), said)


def forking(width: int, longest: int, *, before: bool = False, nested: bool = False, single: bool = False) -> Agent:
    """Talks in `width` branches, then about what they came to. `single`: branches are calls and not runs."""

    def run(task: Task) -> Run:
        plan = ""
        if before:
            plan = (yield from talk(task, f"{task.prompt} plan", 0, 1, 0)).answer
        starts = [100 * (b + 1) for b in range(width)]
        if single:
            asked = [(Message("user", f"{task.prompt} {plan} {b}"),) for b in range(width)]
            results = yield [ModelCall(task, s, m, 1, 1, branch=s) for s, m in zip(starts, asked, strict=True)]
            found = " ".join(completion.text for completion in results)
        else:
            results = yield tuple(branch(task, f"{task.prompt} {plan} {b}", s) for b, s in enumerate(starts))
            found = " ".join(outcome.answer for outcome in results)
        return (yield from talk(task, f"{task.prompt} {plan} joins {found}", 1000, 2, 0))

    def branch(task: Task, opening: str, start: int) -> Run:
        outcome = yield from talk(task, opening, start, longest, start)
        if nested:
            inner = yield tuple(
                talk(task, f"{opening} {n} {outcome.answer}", start + 10 * n, 1, start + n) for n in (1, 2)
            )
            return Outcome(outcome.score, outcome.answer + "".join(part.answer for part in inner))
        return outcome

    return run


AGENTS = {
    "two": forking(2, 2), "three": forking(3, 1), "after a plan": forking(2, 1, before=True), "nested": forking(2, 1, nested=True),
    "calls": forking(3, 1, single=True), "calls after a plan": forking(2, 1, single=True, before=True),
}  # fmt: skip


def placements(agent: Agent, task: Task, backend: ScriptedBackend, models: str) -> list[dict[int, str]]:
    """Every placement of a request, as model by position, found by walking all choices."""
    found, waiting = list[dict[int, str]](), [dict[int, str]()]
    while waiting:
        chosen = waiting.pop()
        open_at = list[int]()

        def choose(call: ModelCall, chosen: dict[int, str] = chosen, open_at: list[int] = open_at) -> str:
            if call.position not in chosen:
                open_at.append(call.position)
            return chosen.get(call.position, models[0])

        trial = run_trial(agent, task, backend, choose)
        if open_at:
            waiting += [{**chosen, open_at[0]: model} for model in models]
        else:
            found.append({call.position: model for call, model in zip(trial.calls, trial.models, strict=True)})
    return found


def by_position(placement: Mapping[int, str]) -> Callable[[ModelCall], str]:
    """Chooses as a placement says."""
    return lambda call: placement[call.position]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(sorted(AGENTS)),
    models=st.sampled_from(("ab", "abc", "a")),
    in_flight=st.sampled_from((1, 5, 256)),
)
def test_every_placement_of_a_fork_replays_exactly_and_nothing_else_is_recorded(
    seed: int, kind: str, models: str, in_flight: int
) -> None:
    """Random models: all combinations of placements of all branches, one by one, replay, and ask all that was recorded."""
    agent, live, task = AGENTS[kind], ScriptedBackend(reply_of(seed, WORDS)), Task("t", "task")
    if models == "abc" and kind in ("two", "nested"):
        models = "ab"  # thousands of placements are enough
    (tree,) = expand(agent, [task], live, models, in_flight=in_flight)
    replay = ReplayBackend(recorded([tree], models))
    needed: set[tuple[str, tuple[Message, ...]]] = set()
    for placement in placements(agent, task, live, models):
        true, again = (run_trial(agent, task, backend, by_position(placement)) for backend in (live, replay))
        assert plain(again) == plain(true)
        needed |= set(zip(true.models, (call.messages for call in true.calls), strict=True))
    assert {(answer.model, messages) for messages, answers in tree.conversations() for answer in answers} == needed
    for model in models:
        trial = pure_trial(agent, task, live, model)
        assert (tree.alone(model).score, tree.alone(model).answer) == (trial.score, trial.answer)
        assert Counter(node.call.position for node in tree.path(model)) == Counter(
            call.position for call in trial.calls
        )


def test_branches_grow_by_themselves_and_not_with_each_other() -> None:
    """Three branches of five steps: 3 x 2 x 5 answers in them where the models agree, not 2^15 paths."""

    def reply(call: ModelCall, model: str) -> Completion:
        return Completion(model, "go" if len(call.messages) < 9 else "end", 1, 1, 1)

    backend = CountingBackend(reply)
    (tree,) = expand(forking(3, 5), [Task("t", "task")], backend, "ab")
    assert tree.answer_count() == sum(backend.asked.values()) == 2 * 3 * 5 + 2 * 2
    assert tree.forks == 1
    assert isinstance(tree.root, Fork)
    assert [len(ends) for ends in tree.root.ends] == [1, 1, 1]


def test_joins_are_grown_for_every_combination_of_results() -> None:
    """Two branches that can end in two ways each are joined in four."""
    (tree,) = expand(
        forking(2, 1), [Task("t", "task")], ScriptedBackend(lambda call, model: Completion(model, model, 1, 1, 1)), "ab"
    )
    assert isinstance(tree.root, Fork)
    assert len(tree.root.after) == 4
    assert all(isinstance(step, Node) for step in tree.root.after.values())


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_beyond_the_depth_branches_stay_where_they_are(depth: int) -> None:
    """Each branch counts its own subtasks: 2^depth ways into it, then straight on; every placement that keeps to that replays."""
    agent, task = forking(2, 4), Task("t", "task")
    live = ScriptedBackend(lambda call, model: Completion(model, f"{model}{len(call.messages)}", 1, 1, 1))
    (tree,) = expand(agent, [task], live, "ab", depth)
    replay = ReplayBackend(recorded([tree], "ab"))
    for sequence in itertools.product("ab", repeat=2 * depth):

        def choose(call: ModelCall, sequence: Sequence[str] = sequence) -> str:
            if not call.branch:
                return "a"
            step, second = call.position % 100, call.position >= 200
            return sequence[depth * second + min(step, depth - 1)]

        assert plain(run_trial(agent, task, replay, choose)) == plain(run_trial(agent, task, live, choose))
    with pytest.raises(RecordingMiss):  # the first branch changes models beyond the depth
        run_trial(agent, task, replay, lambda call: "ab"[call.position % 100 >= depth] if call.branch else "a")


def test_an_agent_that_forks_differently_is_refused() -> None:
    """The same answers must lead to the same branches."""
    numbers = itertools.count()

    def fickle(task: Task) -> Run:
        results = yield [talk(task, f"{next(numbers)}", 100 * n, 2, n) for n in (1, 2)]
        return Outcome(float(len(results)))

    with pytest.raises(InputError, match="went on differently"):
        list(expand(fickle, [Task("t", "task")], ScriptedBackend(lambda c, m: Completion(m, f"{m}", 1, 1, 1)), "ab"))
