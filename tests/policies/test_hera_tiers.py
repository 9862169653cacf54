"""HERA on more than two models, by hand: which model is tried first, which is taken, and on which tier it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sim.policies.base import Study, TierView
from sim.policies.hera import policy as hera_policy
from sim.policies.hera.policy import Hera, HeraOptions
from tests.policies import IdleSignals, decisions, observation, placed
from tests.policies.test_hera import Said, full, text_study
from workloads.agent import conversation_agent, in_turn
from workloads.backend import ScriptedBackend
from workloads.errors import InputError
from workloads.task import Completion, ModelCall, Task

SMALL, MIDDLE, LARGE = (
    TierView("device", "slm", "tiny", 0.0),
    TierView("box", "slm", "middling", 0.5, 1e-7, 1e-7, 4e-7),
    TierView("cloud", "llm", "huge", 1.0, 1e-6, 1e-7, 4e-6),
)
PER_CALL_USD = {"device": 1.0, "box": 3.0, "cloud": 10.0, "phone": 2.0}
LETTER = {"device": "t", "phone": "t", "box": "m", "cloud": "h"}


@pytest.fixture(autouse=True)
def _equality(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hera_policy, "EmbeddingSimilarity", Said)


def study(
    said: Mapping[str, str],
    depth: int,
    tiers: tuple[TierView, ...] = (SMALL, MIDDLE, LARGE),
    costs: Mapping[str, float] = PER_CALL_USD,
) -> Study:
    """One request of so many subtasks; `said[path]` is what is said there, anything else is said only once.

    A path is who answered (t, m, h), the one who speaks last. Costs are dollars a call, whatever it is.
    """

    def answer(call: ModelCall, model: str) -> Completion:
        path = "".join(message.content[0] for message in call.messages if message.role == "assistant") + model[0]
        text = f"{model[0]} {said.get(path, '?' + path)}"
        return Completion(model, text, 10, 5, 10, tool_text="ok" if len(path) < depth else None, score=1.0)

    made = text_study({"q": full(1, {})})
    return made._replace(
        tasks=[Task("q", prompt="q")], agent=conversation_agent(), backend=ScriptedBackend(answer), tiers=tiers,
        expected_cost_usd=lambda call, tier, tokens: costs[tier],
    )  # fmt: skip


def prepared(made: Study, **options: Any) -> Hera:
    """Perfect estimators on all tiers."""
    policy = Hera(HeraOptions.model_validate({"estimators": "perfect", "tiers": "all", **options}))
    policy.prepare(made)
    return policy


def way(made: Study, **options: Any) -> tuple[str, str]:
    """Which models ran the request's subtasks, and the reasons."""
    placements = decisions(prepared(made, **options), made)
    steps = [placements[0, position] for position in range(len(placements))]
    return "".join(LETTER[step.tier] for step in steps), "; ".join(step.reason for step in steps)


def test_the_cheapest_model_that_does_as_well_is_taken() -> None:
    """First subtask: small and middle both say what the large one does; second: the middle one only; third: none does."""
    said = {"t": "a", "m": "a", "h": "a", "tm": "b", "th": "b"}
    assert way(study(said, 3), components="sse") == ("tmh", "sse 1.00; sse 1.00; large 0.00")


def test_every_model_is_compared_with_the_best_one_and_not_with_the_next() -> None:
    """The small and the middle model agree with each other everywhere, and never with the large one."""
    said = {"t": "a", "m": "a", "h": "x", "ht": "b", "hm": "b", "hh": "y"}
    assert way(study(said, 2), components="sse")[0] == "hh"


def test_a_request_that_ends_alike_runs_on_the_cheapest_model_throughout() -> None:
    """URC: the middle model's final output is the large one's, the small one's is not."""
    said = {"mm": "same", "hh": "same", "tt": "other"}
    assert way(study(said, 2), components="urc") == ("mm", "urc 1.00; urc 1.00")
    assert way(study({**said, "tt": "same"}, 2), components="urc")[0] == "tt"


def test_lookahead_commits_to_the_model_it_looked_at() -> None:
    """SLE: the middle model says at its second subtask what the large one says now; the small one never does."""
    said = {"h": "goal", "mm": "goal"}
    path, reasons = way(study(said, 3), components="sse+sle")
    assert path == "mmh"
    assert reasons.startswith("sle d=1; sle d=1")


def test_paths_converge_pair_by_pair() -> None:
    """CD: the middle model's third step is the large one's third step."""
    said = {"mmm": "a", "hhh": "a"}
    assert way(study(said, 4), components="sse+cd")[0].startswith("mmm")


def test_parts_of_the_middle_model_are_its_own() -> None:
    """SD by prefix: two of its finer steps lead where the large model's does; the first part passes, then the large one takes over."""
    said = {"h": "goal", "mmm": "goal", "mm": "x", "mh": "x"}
    path, reasons = way(study(said, 5), components="sd", decomposition="prefix")
    assert path.startswith("mmh")
    assert reasons.startswith("sd 1 of 3 parts; sd 1 of 3 parts; rest of sd 1 of 3 parts")


def test_a_model_that_costs_more_than_the_best_one_is_not_tried() -> None:
    """What is cheap is what it costs now: a middle tier dearer than the large one is left out, a cheaper one goes first."""
    said = {"t": "x", "m": "a", "h": "a"}
    assert way(study(said, 1), components="sse")[0] == "m"
    assert way(study(said, 1, costs={**PER_CALL_USD, "box": 11.0}), components="sse")[0] == "h"
    alike = {"t": "a", "m": "a", "h": "a"}
    assert way(study(alike, 1, costs={**PER_CALL_USD, "box": 0.5}), components="sse")[0] == "m"
    assert way(study(alike, 1, costs={**PER_CALL_USD, "cloud": 0.1}), components="sse") == (
        "h",
        "large, as cheap as any",
    )


def test_conversations_with_a_third_models_answers_are_known() -> None:
    """After the middle model answered, the small one is compared with the large one in that very conversation."""
    said = {"m": "a", "h": "a", "mt": "b", "mm": "c", "mh": "b"}
    assert way(study(said, 2), components="sse")[0] == "mt"


def test_equal_models_run_where_they_are_cheaper_now() -> None:
    """Two tiers have the small model; a line in front of one, at a price for waiting, sends the subtask to the other."""
    tiers = (SMALL, SMALL._replace(name="phone"), MIDDLE, LARGE)
    made = study({"t": "a", "m": "a", "h": "a"}, 1, tiers)

    class Busy(IdleSignals):
        def wait_s(self, tier: str) -> float:
            return 30.0 if tier == "device" else 0.0

    policy = prepared(made, components="sse", time_usd_per_s=0.1)
    (call,) = [next(in_turn(made.agent(task))) for task in made.tasks]
    seen = observation(call, tiers=tiers)
    assert placed(policy, seen).tier == "device"
    assert placed(policy, seen._replace(request=1, signals=Busy())).tier == "phone"
    indifferent = prepared(made, components="sse")
    assert placed(indifferent, seen._replace(signals=Busy())).tier == "device"


def test_on_two_tiers_all_is_two() -> None:
    """With one model below the best one nothing changes: the same placements with the same reasons and times."""
    trees = {
        "q": full(4, {"h": "goal", "tt": "goal", "ht": "x", "hh": "x"}), "r": full(3, {"ttt": "!e", "hhh": "!e"}),
        "s": full(5, {"ttt": "a", "hhh": "a"}),
    }  # fmt: skip
    made = text_study(trees)
    for components in ("urc+sse+sle+cd+sd", "sse+sle", "cd", "sd"):
        two, every = (
            decisions(prepared(made, tiers=tiers, components=components, embedding_s=1.0, prediction_s=9.0), made)
            for tiers in ("two", "all")
        )
        assert two == every


def test_what_does_not_go_with_many_tiers_is_said() -> None:
    """Each with its remedy."""
    views = (SMALL, MIDDLE, LARGE)

    def check(tiers: tuple[TierView, ...], **options: Any) -> None:
        Hera(HeraOptions.model_validate({"estimators": "perfect", "tiers": "all", **options})).check(tiers)

    check(views)
    with pytest.raises(InputError, match=r"option 'tiers': 'all' does not go with usd_budget.*Leave usd_budget out"):
        check(views, usd_budget=1.0)
    with pytest.raises(InputError, match="'all' does not go with dear_weight"):
        check(views, dear_weight=0.1)
    with pytest.raises(InputError, match=r"'all' finds one model only \(tiny\).*at least two models"):
        check((SMALL, SMALL._replace(name="phone")))
