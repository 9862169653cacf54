"""Answering tasks off line: one placement, or all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.agent import AgentRun, conversation_agent
from workloads.backend import ScriptedBackend
from workloads.errors import InputError, RecordingMiss
from workloads.modelled import AccuracyModel, Latent, ModelledWorkload
from workloads.task import Completion, ModelCall, Outcome, Task
from workloads.trial import Trial, enumerate_trials, pure_trial, run_trial

AGENT = conversation_agent()
TASK = Task("t", prompt="go")

Tree = Mapping[tuple[str, ...], float]
"""Score by the models on the way to a leaf."""


def path_to(call: ModelCall) -> tuple[str, ...]:
    """The models that answered so far: in these tests each model says its own name."""
    return tuple(message.content for message in call.messages if message.role == "assistant")


class TreeBackend(ScriptedBackend):
    """Answers along a tree of given leaves and counts what it was asked; beyond the leaves nothing is recorded."""

    def __init__(self, leaves: Tree) -> None:
        self.asked: Counter[tuple[str, ...]] = Counter()
        self._leaves = leaves
        super().__init__(self._reply)

    def _reply(self, call: ModelCall, model: str) -> Completion:
        path = (*path_to(call), model)
        self.asked[path] += 1
        if path in self._leaves:
            return Completion(model, model, call.prompt_tokens, 1, 10, score=self._leaves[path])
        if not any(leaf[: len(path)] == path for leaf in self._leaves):
            raise RecordingMiss(f"nothing after {path}")
        return Completion(model, model, call.prompt_tokens, 1, 10, tool_text="go on")


@st.composite
def trees(draw: st.DrawFn, models: str = "sl", depth: int = 4) -> dict[tuple[str, ...], float]:
    """A ragged tree: each path over `models` ends somewhere between 1 and `depth` calls."""

    def grow(path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
        for model in models:
            child = (*path, model)
            if len(child) == depth or draw(st.booleans()):
                yield child, draw(st.sampled_from([0.0, 0.25, 1.0]))
            else:
                yield from grow(child)

    return dict(grow(()))


RAGGED: Tree = {("s", "s", "s"): 0.0, ("s", "s", "l"): 0.5, ("s", "l"): 1.0, ("l",): 0.75}
FULL: Tree = {(a, b, c): 1.0 for a in "sl" for b in "sl" for c in "sl"}


def all_trials(backend: TreeBackend, models: str = "sl") -> list[Trial]:
    """Every trial of the tree's task."""
    return list(enumerate_trials(AGENT, TASK, backend, models))


def test_a_trial_records_what_happened() -> None:
    """The chosen models answer in turn, and calls and completions come back in order."""
    trial = run_trial(AGENT, TASK, TreeBackend(RAGGED), lambda call: "sl"[call.position])
    assert (trial.score, trial.models, trial.answer) == (1.0, ("s", "l"), "l")
    assert [call.position for call in trial.calls] == [0, 1]
    assert [message.content for message in trial.calls[1].messages] == ["go", "s", "go on"]
    assert [completion.model for completion in trial.completions] == ["s", "l"]


def test_a_pure_trial_stays_on_one_model() -> None:
    """One model throughout, however many calls that takes."""
    assert pure_trial(AGENT, TASK, TreeBackend(RAGGED), "s").models == ("s", "s", "s")
    assert pure_trial(AGENT, TASK, TreeBackend(RAGGED), "l").score == 0.75


def test_a_ragged_tree_is_walked_in_order() -> None:
    """A hand-drawn tree gives its four leaves, in lexicographic order of the models as given."""
    trials = all_trials(TreeBackend(RAGGED))
    assert [(trial.models, trial.score) for trial in trials] == list(RAGGED.items())


@given(trees())
def test_every_placement_comes_once(leaves: dict[tuple[str, ...], float]) -> None:
    """The trials are exactly the leaves, each node was answered once, and each trial is what running it alone gives."""
    backend = TreeBackend(leaves)
    trials = all_trials(backend)
    assert {trial.models: trial.score for trial in trials} == leaves
    assert len(trials) == len(leaves)
    assert set(backend.asked.values()) == {1}
    assert set(backend.asked) == {leaf[:n] for leaf in leaves for n in range(1, len(leaf) + 1)}
    for trial in trials:
        assert run_trial(AGENT, TASK, TreeBackend(leaves), lambda call, t=trial: t.models[call.position]) == trial  # type: ignore[misc]


@given(trees("abc", depth=3))
def test_there_may_be_more_than_two_models(leaves: dict[tuple[str, ...], float]) -> None:
    """Three models make a ternary tree; a model named twice counts once."""
    assert [trial.models for trial in all_trials(TreeBackend(leaves), "abca")] == list(leaves)


def test_modelled_tasks_have_all_their_placements() -> None:
    """A statistical task of k steps has 2^k placements, and those within its tolerance, and no others, are right."""
    weights = AccuracyModel().weights(6)
    sizes = (10,) * 6
    task = Task("m", latent=Latent(0.3, weights, sizes, sizes, sizes, (False,) * 6))
    workload = ModelledWorkload({"s": 0.0, "l": 1.0})
    trials = list(enumerate_trials(workload.agent, task, workload, ("s", "l")))
    assert len({trial.models for trial in trials}) == len(trials) == 2**6
    for trial in trials:
        small = sum(weight for weight, model in zip(weights, trial.models, strict=True) if model == "s")
        assert trial.score == (small <= 0.3)


@pytest.mark.parametrize(("max_depth", "count"), [(0, 1), (1, 2), (2, 4), (3, 8), (15, 8)])
def test_beyond_the_depth_a_model_stays(max_depth: int, count: int) -> None:
    """Calls beyond the limit repeat the model before them, so that pure placements are always there."""
    trials = list(enumerate_trials(AGENT, TASK, TreeBackend(FULL), "sl", max_depth))
    assert len({trial.models for trial in trials}) == len(trials) == count
    assert all(len(set(trial.models[max(max_depth - 1, 0) :])) <= 1 for trial in trials)
    assert ("s", "s", "s") in {trial.models for trial in trials}


def test_a_tree_that_is_too_large_is_refused() -> None:
    """Beyond the node limit the task is named and the remedy given; at the limit all is well."""
    assert len(list(enumerate_trials(AGENT, TASK, TreeBackend(FULL), "sl", max_nodes=14))) == 8
    with pytest.raises(InputError, match=r"task 't'.*more than 13 model calls"):
        list(enumerate_trials(AGENT, TASK, TreeBackend(FULL), "sl", max_nodes=13))


def test_unrecorded_placements_can_be_left_out() -> None:
    """Of a recording of whole requests only, the two pure placements remain; without the option the gap is an error."""
    recorded: Tree = {("s", "s", "s"): 0.0, ("l", "l"): 1.0}
    trials = list(enumerate_trials(AGENT, TASK, TreeBackend(recorded), "sl", skip_missing=True))
    assert {trial.models: trial.score for trial in trials} == recorded
    with pytest.raises(RecordingMiss):
        all_trials(TreeBackend(recorded))


def test_an_agent_that_forgets_is_caught() -> None:
    """An agent that does not repeat itself cannot be enumerated, and is told so."""
    lengths = iter([2, 0])

    def agent(task: Task) -> AgentRun:
        for position in range(next(lengths) + 1):
            yield ModelCall(task, position, (), 1, 1)
        return Outcome(1.0)

    backend = ScriptedBackend(lambda call, model: Completion(model, "", 1, 1, 1))
    with pytest.raises(InputError, match="must be a function of the task"):
        list(enumerate_trials(agent, TASK, backend, "sl"))


def test_an_agent_may_ask_nothing() -> None:
    """An agent that knows the answer makes no call: one trial, without placements."""

    def agent(task: Task) -> AgentRun:
        yield from ()
        return Outcome(1.0, "known")

    backend = TreeBackend({})
    assert list(enumerate_trials(agent, TASK, backend, "sl")) == [Trial(1.0, (), (), (), "known")]
    assert pure_trial(agent, TASK, backend, "s").answer == "known"
