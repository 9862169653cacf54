"""HERA with budgets, and with thresholds that follow what the tiers cost now: by hand on a small tree."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sim.policies.base import Observation, Study
from sim.policies.hera import policy as hera_policy
from sim.policies.hera.budget import Budgets, Forecast, Needs, RunningMean, Worth, extra_usd, late_risk, within
from sim.policies.hera.policy import Hera, HeraOptions
from tests.policies import IdleSignals, decisions, observation, placed
from tests.policies.test_hera import Said, full, text_study
from workloads.agent import in_turn


@pytest.fixture(autouse=True)
def _equality(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hera_policy, "EmbeddingSimilarity", Said)


class Busy(IdleSignals):
    """A line before the small tier."""

    def wait_s(self, tier: str) -> float:
        return 50.0 if tier == "edge" else 0.0


def study() -> Study:
    """Three subtasks that nothing finds alike."""
    return text_study({"q": full(3, {})})


def prepared(**options: Any) -> Hera:
    """With perfect estimators."""
    policy = Hera(HeraOptions.model_validate({"estimators": "perfect", **options}))
    policy.prepare(study())
    return policy


def first() -> Observation:
    """The request's first subtask."""
    return observation(next(in_turn(study().agent(study().tasks[0]))))


def test_needs_by_hand() -> None:
    """5 tokens at .01 s, the way there and back, and nominal cost; two subtasks follow."""
    forecast = Forecast(study())
    seen = first()
    tokens = seen.call.prompt_tokens + 4 * 5
    assert forecast.subtask(seen, "small") == pytest.approx(Needs(tokens * 5e-8, 0.06))
    assert forecast.subtask(seen, "large") == pytest.approx(Needs(tokens * 1e-6, 0.15))
    assert forecast.rest(seen) == pytest.approx(Needs(2 * tokens * 5e-8, 0.12))
    assert extra_usd(seen, forecast, Worth()) == pytest.approx(tokens * 9.5e-7)
    assert extra_usd(seen, forecast, Worth(second_usd=1.0)) == pytest.approx(tokens * 9.5e-7 + 0.09)
    # .06 or .15 s now and twice .06 s after it: late for sure at .2 s in the one case, hardly in the other
    near = seen._replace(deadline_s=1.2)  # a second has gone by
    risks = [late_risk(0.18, 0.2), late_risk(0.27, 0.2)]
    assert risks == pytest.approx([0.3556, 0.8063], abs=1e-4)  # normal: 1 - Phi(.3704), 1 - Phi(-.8642)
    late = extra_usd(near, forecast, Worth(late_usd=0.01)) - extra_usd(near, forecast, Worth())
    assert late == pytest.approx(0.01 * (risks[1] - risks[0]))
    assert extra_usd(seen, forecast, Worth(late_usd=0.01)) == pytest.approx(
        extra_usd(seen, forecast, Worth()), abs=1e-9
    )


def test_a_dollar_budget_keeps_subtasks_small() -> None:
    """What HERA would have the large model do goes small where it does not fit, with the reason."""
    free = decisions(prepared(), study())
    assert [step.tier for step in free.values()] == ["cloud"] * 3
    assert decisions(prepared(usd_budget=1.0), study()) == free
    tight = decisions(prepared(usd_budget=1e-9), study())
    assert [step.tier for step in tight.values()] == ["edge"] * 3
    assert {step.reason for step in tight.values()} == {"budget"}
    assert [step.decision_s for step in tight.values()] == [0.012, 0.0, 0.0]  # but for URC nothing is looked at


def test_a_latency_budget_avoids_the_slower_tier() -> None:
    """A line at the edge sends what was meant to run small to the cloud; without a budget it waits."""
    alike = text_study({"q": full(3, {"t": "x", "h": "x"})})
    for budget, tier in ((None, "edge"), (1000.0, "edge"), (30.0, "cloud")):
        policy = Hera(HeraOptions.model_validate({"estimators": "perfect", "latency_budget_s": budget}))
        policy.prepare(alike)
        seen = observation(next(in_turn(alike.agent(alike.tasks[0]))))._replace(signals=Busy())
        assert placed(policy, seen).tier == tier


def test_where_neither_fits_the_better_one_is_taken() -> None:
    """The share of the worst budget decides."""
    forecast = Forecast(study())
    seen = first()
    assert within(Budgets(usd=1e-12), seen, forecast, "large") == "small"
    assert within(Budgets(latency_s=1e-3), seen, forecast, "large") == "small"
    assert within(Budgets(latency_s=1e-3), seen._replace(signals=Busy()), forecast, "small") == "large"


def test_the_threshold_follows_what_the_large_tier_costs_now() -> None:
    """Twice the usual difference lowers kappa by the weight; the usual one leaves it."""
    policy = prepared(dear_weight=0.1, time_usd_per_s=1.0)
    seen = first()
    assert policy._threshold(seen) == pytest.approx(0.6)

    class Slow(IdleSignals):
        def transfer_s(self, tier: str, upload_bytes: float, download_bytes: float, home: int = 0) -> float:
            return 0.01 if tier == "edge" else 1.0

    assert policy._threshold(seen._replace(signals=Slow())) < 0.6 - 0.05
    mean = RunningMean()
    assert [mean.add(value) for value in (1.0, 3.0, 5.0)] == [1.0, 2.0, 3.0]


class Down(IdleSignals):
    """No way to the large tier."""

    def transfer_s(self, tier: str, upload_bytes: float, download_bytes: float, home: int = 0) -> float:
        return math.inf if tier == "cloud" else super().transfer_s(tier, upload_bytes, download_bytes, home)


def test_a_link_that_is_down_makes_the_large_tier_dear_but_not_for_ever() -> None:
    """It counts as all of the request's time; what is usual afterwards stays a number."""
    worth, forecast = Worth(second_usd=1.0, late_usd=0.01), Forecast(study())
    seen = first()._replace(signals=Down())
    extra = extra_usd(seen, forecast, worth)
    assert extra == pytest.approx(seen.deadline_s - 0.06 + 0.01, abs=1e-3)
