"""The oracles against hand-worked trees, brute force and every other policy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.policies import POLICIES
from sim.policies.base import RoutingPolicy, Study
from sim.policies.oracle import OracleCost, OracleSlmUsage
from tests.policies import (
    MADE_FOR_ONE,
    TRAINED,
    Decisions,
    decisions,
    modelled_study,
    observation,
    placed,
    prepared,
    study_of,
)
from workloads.agent import conversation_agent
from workloads.backend import ScriptedBackend
from workloads.errors import InputError, RecordingMiss
from workloads.task import Completion, ModelCall, Task
from workloads.trial import enumerate_trials, pure_trial, run_trial

Leaf = tuple[float, int]
"""Score, and the tokens of the answer that leads there."""
Tree = Mapping[str, Leaf]
"""Leaves by path, where `t` is the tiny and `h` the huge model: `tth` is tiny, tiny, huge."""

MODELS = {"t": "tiny", "h": "huge"}


def tree_study(trees: Mapping[str, Tree], requests: Sequence[str] | None = None) -> Study:
    """A study whose tasks have these placement trees, asked once each or as in `requests`."""

    def answer(call: ModelCall, model: str) -> Completion:
        leaves = trees[call.task.id]
        path = "".join(message.content for message in call.messages if message.role == "assistant") + model[0]
        if path in leaves:
            score, tokens = leaves[path]
            return Completion(model, model[0], call.prompt_tokens, tokens, 10, score=score)
        if not any(leaf.startswith(path) for leaf in leaves):
            raise RecordingMiss(f"nothing after {path}")
        return Completion(model, model[0], call.prompt_tokens, 5, 10, tool_text="go on")

    tasks = [Task(name, prompt="go") for name in requests or trees]
    return study_of(tasks, conversation_agent(), ScriptedBackend(answer))


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> dict[str, Leaf]:
    """A ragged placement tree with fractional scores and uneven answers."""

    def grow(path: str) -> Iterator[tuple[str, Leaf]]:
        for model in "th":
            child = path + model
            if len(child) == depth or draw(st.booleans()):
                yield child, (draw(st.sampled_from([0.0, 0.3, 0.55, 1.0])), draw(st.integers(1, 50)))
            else:
                yield from grow(child)

    return dict(grow(""))


class Result:
    """What a study's requests came to: accuracy, SLM usage and nominal cost, each averaged over requests."""

    def __init__(self, study: Study, paths: Sequence[Sequence[str]]) -> None:
        self.accuracy = self.usage = self.cost_usd = 0.0
        for task, path in zip(study.tasks, paths, strict=True):
            trial = run_trial(study.agent, task, study.backend, lambda call, p=path: p[call.position])  # type: ignore[misc]
            self.accuracy += trial.score / len(paths)
            self.usage += trial.models.count("tiny") / len(trial.models) / len(paths)
            self.cost_usd += sum(
                study.expected_cost_usd(call, "edge" if model == "tiny" else "cloud", completion.completion_tokens)
                for call, model, completion in zip(trial.calls, trial.models, trial.completions, strict=True)
            ) / len(paths)


def result(study: Study, made: Decisions) -> Result:
    """The result of placements that a policy made."""
    paths: list[list[str]] = [[] for _ in study.tasks]
    for (request, _), placement in sorted(made.items()):
        paths[request].append("tiny" if placement.tier == "edge" else "huge")
    return Result(study, paths)


def planned(policy_type: type[RoutingPolicy], study: Study, share: float) -> Result:
    """The result of an oracle's plan."""
    return result(study, decisions(prepared(policy_type, study, accuracy_share=share), study))


def all_llm_accuracy(study: Study) -> float:
    """Accuracy of the large model on every request."""
    return math.fsum(pure_trial(study.agent, task, study.backend, "huge").score for task in study.tasks) / len(
        study.tasks
    )


def every_result(study: Study) -> list[Result]:
    """The results of all combinations of placements: brute force."""
    ways = [
        [trial.models for trial in enumerate_trials(study.agent, task, study.backend, ("tiny", "huge"))]
        for task in study.tasks
    ]
    return [Result(study, paths) for paths in itertools.product(*ways)]


HAND_WORKED = {
    "easy": {"tt": (1.0, 10), "th": (1.0, 10), "h": (1.0, 10)},
    "late": {"tt": (0.0, 10), "th": (1.0, 10), "ht": (0.0, 10), "hh": (1.0, 10)},
    "hard": {"t": (0.0, 10), "h": (1.0, 10)},
}


@pytest.mark.parametrize(
    ("share", "accuracy", "usage"),
    [
        (1.0, 1.0, (1 + 1 / 2 + 0) / 3),  # all right: easy small throughout, late large at the end, hard large
        (0.9, 1.0, (1 + 1 / 2 + 0) / 3),  # 0.9 of 3 needs all 3
        (0.6, 2 / 3, (1 + 1 / 2 + 1) / 3),  # one may fail: giving up `hard` frees a whole request, `late` only a half
        (0.3, 1 / 3, 1.0),  # two may fail: everything small
        (0.0, 1 / 3, 1.0),
    ],
)
def test_hand_worked_trees(share: float, accuracy: float, usage: float) -> None:
    """Three small trees whose best plans can be seen at a glance."""
    found = planned(OracleSlmUsage, tree_study(HAND_WORKED), share)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.usage == pytest.approx(usage)


def test_mixing_may_beat_the_large_model() -> None:
    """A share above 1 is reached where the small model knows what the large one does not; beyond that it is refused."""
    study = tree_study({"a": {"t": (1.0, 9), "h": (0.0, 9)}, "b": {"t": (0.0, 9), "h": (1.0, 9)}})
    found = planned(OracleSlmUsage, study, 2.0)
    assert (found.accuracy, found.usage) == (1.0, 0.5)
    with pytest.raises(InputError, match=r"reaches 2\.01 of All-LLM's accuracy.*within reach is 2\."):
        prepared(OracleSlmUsage, study, accuracy_share=2.01)


def test_a_task_counts_as_often_as_it_is_asked() -> None:
    """A task asked three times outweighs two others, and each of its requests is placed alike."""
    leaves: Tree = {"t": (0.0, 9), "h": (1.0, 9)}
    study = tree_study(dict.fromkeys("abc", leaves), requests="abaca")
    made = decisions(prepared(OracleSlmUsage, study, accuracy_share=0.6), study)
    assert [made[request, 0].tier for request in range(5)] == ["cloud", "edge", "cloud", "edge", "cloud"]


def test_the_plan_does_not_depend_on_the_order_of_tasks() -> None:
    """Among equally good plans the same one is chosen however the tasks are listed."""
    leaves: Tree = {"t": (0.0, 9), "h": (1.0, 9)}
    names = "abcdefgh"
    plans = []
    for listed in (names, names[::-1]):
        study = tree_study(dict.fromkeys(listed, leaves))
        made = decisions(prepared(OracleSlmUsage, study, accuracy_share=0.5), study)
        plans.append({task.id: made[i, 0].tier for i, task in enumerate(study.tasks)})
    assert plans[0] == plans[1]
    assert list(plans[0].values()).count("cloud") == 4


def test_an_unplanned_position_runs_small() -> None:
    """After a fail-over has changed the conversation, what the plan does not know runs on the small model."""
    study = tree_study({"a": {"t": (0.0, 9), "h": (1.0, 9)}})
    oracle = prepared(OracleSlmUsage, study, accuracy_share=1.0)
    calls = [ModelCall(study.tasks[0], position, (), 5, 20) for position in (0, 1)]
    assert [placed(oracle, observation(call)).tier for call in calls] == ["cloud", "edge"]


def test_recorded_requests_alone_can_be_planned() -> None:
    """A recording of whole requests bounds whole-request routing: unrecorded mixtures are left out."""
    whole: Tree = {"ttt": (0.0, 9), "hh": (1.0, 9)}
    study = tree_study({"a": whole, "b": {"ttt": (1.0, 9), "hh": (1.0, 9)}})
    found = planned(OracleSlmUsage, study, 1.0)
    assert (found.accuracy, found.usage) == (1.0, 0.5)


def test_without_the_large_models_recording_there_is_no_yardstick() -> None:
    """All-LLM's accuracy must be known: where it was not recorded, replay says what is missing."""
    with pytest.raises(RecordingMiss):
        prepared(OracleSlmUsage, tree_study({"a": {"t": (1.0, 9)}}))


@settings(max_examples=40, deadline=None)
@given(st.lists(trees(), min_size=1, max_size=3), st.sampled_from([0.0, 0.5, 0.7, 0.9, 1.0, 1.1]))
def test_oracles_equal_brute_force(drawn: list[dict[str, Leaf]], share: float) -> None:
    """On any small set the oracles reach exactly the optimum over all combinations of placements."""
    study = tree_study({f"task {i}": tree for i, tree in enumerate(drawn)})
    target = share * all_llm_accuracy(study)
    allowed = [found for found in every_result(study) if found.accuracy >= target - 1e-9]
    if not allowed:
        with pytest.raises(InputError, match="within reach"):
            prepared(OracleSlmUsage, study, accuracy_share=share)
        return
    most = planned(OracleSlmUsage, study, share)
    assert most.accuracy >= target - 1e-9
    assert most.usage == pytest.approx(max(found.usage for found in allowed))
    cheapest = planned(OracleCost, study, share)
    assert cheapest.accuracy >= target - 1e-9
    assert cheapest.cost_usd == pytest.approx(min(found.cost_usd for found in allowed))


def test_no_policy_beats_the_oracles() -> None:
    """At any policy's accuracy the oracles use the small model at least as much, and pay no more."""
    study = modelled_study(60, max_subtasks=5)
    full = all_llm_accuracy(study)
    names = sorted(name for name in POLICIES.keys() - TRAINED - MADE_FOR_ONE if not name.startswith("oracle-"))
    rivals = [prepared(POLICIES[name], study) for name in names]
    rivals += [prepared(POLICIES["random"], study, p=p) for p in (0.1, 0.3, 0.7, 0.9)]
    for rival in rivals:
        reached = result(study, decisions(rival, study))
        share = reached.accuracy / full
        assert planned(OracleSlmUsage, study, share).usage >= reached.usage - 1e-9
        assert planned(OracleCost, study, share).cost_usd <= reached.cost_usd * (1 + 1e-9)


def test_the_sweep_traces_a_frontier() -> None:
    """Asking for less accuracy never means less small-model usage or a higher cost, and accuracy is always met."""
    study = modelled_study(60, max_subtasks=5)
    full = all_llm_accuracy(study)
    shares = [0.0, 0.5, 0.7, 0.8, 0.9, 1.0]
    usages = [planned(OracleSlmUsage, study, share) for share in shares]
    costs = [planned(OracleCost, study, share) for share in shares]
    for found in (usages, costs):
        assert all(one.accuracy >= share * full - 1e-9 for one, share in zip(found, shares, strict=True))
    assert [one.usage for one in usages] == sorted((one.usage for one in usages), reverse=True)
    assert [one.cost_usd for one in costs] == sorted(one.cost_usd for one in costs)
    assert usages[0].usage == pytest.approx(1.0)
