"""HERA's Algorithm 1 against trees worked by hand: every branch, and that every switch changes decisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from sim.policies.base import Study
from sim.policies.hera import policy as hera_policy
from sim.policies.hera.policy import Hera, HeraOptions
from tests.policies import decisions, observation, placed, study_of
from workloads.agent import conversation_agent
from workloads.backend import ScriptedBackend
from workloads.errors import InputError, RecordingMiss
from workloads.task import Completion, Message, ModelCall, Task

Texts = Mapping[str, str]
"""What is said, by path: `th` is what the huge model says after the tiny one answered. A text that starts with `!` ends the request."""


class Equality:
    """Texts are alike if they are equal."""

    def __init__(self, encoder: str = "") -> None:
        del encoder

    def know(self, texts: Iterable[str]) -> None:
        del texts

    def __call__(self, first: str, second: str) -> float:
        return float(first == second)


class Said(Equality):
    """Alike are texts that are equal but for the first letter, which tells who speaks."""

    def __call__(self, first: str, second: str) -> float:
        return float(first[2:] == second[2:])


def text_study(trees: Mapping[str, Texts]) -> Study:
    """Tasks whose models say what the trees say."""

    def answer(call: ModelCall, model: str) -> Completion:
        said = trees[call.task.prompt]
        path = "".join(message.content[0] for message in call.messages if message.role == "assistant") + model[0]
        if path not in said:
            raise RecordingMiss(f"nothing at {path}")
        ends = said[path].startswith("!")
        text = f"{model[0]} {said[path]}"
        return Completion(model, text, 10, 5, 10, tool_text=None if ends else "ok", score=1.0)

    return study_of([Task(name, prompt=name) for name in trees], conversation_agent(), ScriptedBackend(answer))


def prepared(study: Study, **options: Any) -> Hera:
    """A policy with perfect estimators that has seen the study."""
    policy = Hera(HeraOptions.model_validate({"estimators": "perfect", **options}))
    policy.prepare(study)
    return policy


def way(study: Study, policy: Hera) -> tuple[str, str]:
    """The single request's path (t: small, h: large) and the reasons."""
    made = decisions(policy, study)
    steps = [made[0, position] for position in range(len(made))]
    return "".join("t" if step.tier == "edge" else "h" for step in steps), "; ".join(step.reason for step in steps)


@pytest.fixture(autouse=True)
def _equality(monkeypatch: pytest.MonkeyPatch) -> None:
    class Said(Equality):
        """The first letter only tells who speaks."""

        def __call__(self, first: str, second: str) -> float:
            return float(first[2:] == second[2:])

    monkeypatch.setattr(hera_policy, "EmbeddingSimilarity", Said)


def full(depth: int, said: Mapping[str, str], other: str = "?") -> dict[str, str]:
    """A whole tree of this depth: what is not `said` is a text of its own, so that it is like nothing else."""
    paths = [""]
    tree: dict[str, str] = {}
    for level in range(depth):
        paths = [path + model for path in paths for model in "th"]
        for path in paths:
            text = said.get(path, f"{other}{path}")
            tree[path] = text if level < depth - 1 or text.startswith("!") else f"!{text}"
    return tree


NO_URC = "sse+sle+cd+sd"


def test_equal_final_outputs_put_the_whole_request_on_the_small_model() -> None:
    """URC: All-SLM and All-LLM end alike (`conversation_agent` returns the last text)."""
    study = text_study({"q": full(2, {"tt": "!same", "hh": "!same"})})
    assert way(study, prepared(study)) == ("tt", "urc 1.00; urc 1.00")
    assert way(study, prepared(study, components="sse+sle+sd"))[0] == "hh"
    assert way(study, prepared(study, components="urc+sse+sle+sd", tau_request=1.0))[0] == "hh"


def test_a_subtask_both_would_do_alike_runs_small() -> None:
    """SSE at the second subtask, after the first went large."""
    study = text_study({"q": full(2, {"ht": "!x", "hh": "!x"})})
    path, reasons = way(study, prepared(study))
    assert path == "ht"
    assert reasons == "large 0.00; sse 1.00"
    assert way(study, prepared(study, components="sle"))[0] == "ht"  # distance 0: the lookahead finds it, too
    assert way(study, prepared(study, components="urc+cd+sd"))[0] == "hh"


def test_the_small_model_gets_there_one_subtask_later() -> None:
    """SLE: what the small model says at its second subtask is what the large one says at the first."""
    study = text_study({"q": full(3, {"h": "goal", "tt": "goal"})})
    assert way(study, prepared(study, components="sse+sle")) == ("tth", "sle d=1; sle d=1; large 0.00")
    assert way(study, prepared(study, components="sse"))[0] == "hhh"
    # The 2026 text compares the d-th predicted subtask, which is one too early.
    assert way(study, prepared(study, components="sse+sle", sle_index="d"))[0] == "hhh"


def test_paths_that_meet_again_run_small_up_to_the_last_meeting() -> None:
    """CD: the models agree at their third and fourth steps again; four subtasks go small."""
    study = text_study({"q": full(5, {"ttt": "a", "hhh": "a", "tttt": "b", "hhhh": "b"})})
    assert way(study, prepared(study, components="sse+cd")) == (
        "tttth",
        "cd k=3; cd k=3; cd k=3; cd k=3; large 0.00",
    )
    assert way(study, prepared(study, components="sse+cd", horizon=3))[0].startswith("ttt")
    assert way(study, prepared(study, components="sse+cd", horizon=2))[0].startswith("h")


def test_parts_that_all_pass_run_small() -> None:
    """SD: the small model's finer steps reach the large one's; at each of the subtasks after them both agree."""
    said = {"h": "goal", "tt": "goal", "th": "goal", "ttt": "x", "tth": "x"}
    study = text_study({"q": full(4, said)})
    path, reasons = way(study, prepared(study, components="sd"))
    assert path.startswith("tt")
    assert reasons.startswith("sd 2 parts; sd 2 parts")
    spoilt = text_study({"q": full(4, {**said, "tth": "y"})})
    assert way(spoilt, prepared(spoilt, components="sd"))[0].startswith("h")


def test_leading_parts_that_pass_run_small_and_the_large_model_takes_over() -> None:
    """SD by prefix: of three parts the first passes, the second does not. Two subtasks small, one large, the next decided anew.

    tt: what the small model says second; the large model's first answer is what the small one says third (distance 2).
    """
    said = {"h": "goal", "ttt": "goal", "tt": "x", "th": "x", "ttht": "y", "tthh": "y"}
    study = text_study({"q": full(5, said)})
    assert way(study, prepared(study, components="sd"))[0].startswith("h")
    path, reasons = way(study, prepared(study, components="sse+sd", decomposition="prefix"))
    assert path.startswith("ttht")
    assert reasons.startswith("sd 1 of 3 parts; sd 1 of 3 parts; rest of sd 1 of 3 parts; sse 1.00")
    first = text_study({"q": full(5, {**said, "th": "z"})})  # not even the first part passes
    assert way(first, prepared(first, components="sd", decomposition="prefix"))[0].startswith("h")


def test_all_parts_that_pass_are_placed_alike_by_either_rule() -> None:
    """SD: where every part passes, `prefix` is `all`."""
    said = {"h": "goal", "tt": "goal", "th": "goal", "ttt": "x", "tth": "x"}
    study = text_study({"q": full(4, said)})
    made = [decisions(prepared(study, components="sd", decomposition=rule), study) for rule in ("all", "prefix")]
    assert made[0] == made[1]


def test_parts_are_looked_at_one_by_one() -> None:
    """Two texts are predicted and embedded for each part up to the first that fails."""
    said = {"h": "goal", "ttt": "goal", "tt": "x", "th": "x"}
    study = text_study({"q": full(5, said)})
    cost = {"embedding_s": 1.0, "prediction_s": 100.0, "components": "sd"}
    # one prediction of this subtask by both predictors; then of 2 parts: one passes, one does not
    one_by_one = decisions(prepared(study, decomposition="prefix", **cost), study)
    assert one_by_one[0, 0].decision_s == pytest.approx(100.0 + 200.0 + 4.0)
    assert decisions(prepared(study, **cost), study)[0, 0].decision_s == one_by_one[0, 0].decision_s
    assert [one_by_one[0, position].decided for position in (1, 2)] == [False, False]


def test_nothing_similar_is_the_large_models_work() -> None:
    """No component finds anything."""
    study = text_study({"q": full(3, {})})
    assert way(study, prepared(study)) == ("hhh", "large 0.00; large 0.00; large 0.00")


def test_thresholds_rise_with_position() -> None:
    """kappa_i = .60 + .02 min(i, 5), .60 .. .70."""
    policy = Hera(HeraOptions())
    assert [round(policy.kappa(i), 2) for i in (0, 1, 4, 5, 6, 20)] == [0.6, 0.62, 0.68, 0.7, 0.7, 0.7]


def test_a_decision_costs_what_it_looked_at() -> None:
    """URC embeds one text; SSE predicts two and compares two; what was decided before is free."""
    study = text_study({"q": full(3, {"h": "goal", "tt": "goal"})})
    made = decisions(prepared(study, components="urc+sse+sle", embedding_s=1.0, prediction_s=100.0), study)
    # 1 (URC) + 2 (SSE) + 1 (DP) + 1 (SLE's comparison); one prediction for SSE, one more for the second small subtask
    assert made[0, 0].decision_s == pytest.approx(5.0 + 200.0)
    assert (made[0, 1].decided, made[0, 1].decision_s) == (False, 0.0)
    beside = prepared(study, components="urc+sse+sle", embedding_s=1.0, beside_s=0.25, prediction_s=100.0)
    # only SSE's two texts are new together
    assert decisions(beside, study)[0, 0].decision_s == pytest.approx(4.25 + 200.0)


def test_what_nobody_recorded_goes_large() -> None:
    """A conversation outside the tree, as after a fail-over."""
    study = text_study({"q": full(2, {})})
    policy = prepared(study, components=NO_URC)
    strange = ModelCall(Task("other", prompt="other"), 0, (Message("user", "other"),), 10, 10)
    placement = placed(policy, observation(strange))
    assert (placement.tier, placement.reason) == ("cloud", "no outlook")


def test_without_every_placement_there_is_one_message() -> None:
    """A recording without counterfactuals."""
    study = text_study({"q": {"t": "a", "tt": "!b", "h": "c", "hh": "!d"}})
    with pytest.raises(InputError, match="does not hold every placement"):
        prepared(study)
    with pytest.raises(InputError, match="nothing to learn from"):
        Hera(HeraOptions(estimators="retrieval")).prepare(study)
