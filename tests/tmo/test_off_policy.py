from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.tmo.logged import FloatArray, IntArray, LoggedTurns
from sim.tmo.off_policy import Behaviour, Horizon, Part, importance, judged
from sim.tmo.responses import TaskActionMeans
from sim.tmo.turn_policies import TurnPolicy, by_kind, fixed, mixed
from tests.tmo.made_up_log import LAYOUT, logging_policy, made_up_log, replaced, true_value, truth

Means = partial(TaskActionMeans, 3.0)
seeds = st.integers(0, 2**32 - 1)
HORIZONS: tuple[Horizon, ...] = ("turn", "dialogue")


def part(log: LoggedTurns, policy: TurnPolicy, known: float = 0.0) -> Part:
    """A log and a policy; every action is certain to earn `known` besides."""
    return Part(log, policy, np.full((len(log), LAYOUT.actions), known))


def fewer_actions(features: FloatArray) -> FloatArray:
    """Never action 4."""
    return np.tile([0.4, 0.2, 0.2, 0.2, 0.0], (len(features), 1))


def dialogue_mean(log: LoggedTurns, values: FloatArray) -> float:
    """The mean over dialogues of the mean turn."""
    return float((np.bincount(log.dialogue, values) / np.bincount(log.dialogue)).mean())


@given(seed=seeds, horizon=st.sampled_from(HORIZONS))
@settings(max_examples=25)
def test_judging_the_logs_own_policy_weighs_every_turn_the_same(seed: int, horizon: Horizon) -> None:
    """On policy all weights are 1: the weighted value is the log's own mean and every turn counts."""
    log = made_up_log(12, np.random.default_rng(seed), truth())
    behaviour = Behaviour(log)
    assert importance(log, behaviour(log.features), behaviour, horizon) == pytest.approx(np.ones(len(log)))
    if horizon == "turn":
        found = judged([part(log, behaviour)], Means, behaviour, horizon, resamples=20)
        assert found.weighted.estimate == pytest.approx(dialogue_mean(log, log.response))
        assert found.effective == pytest.approx(len(log))


@given(seed=seeds, horizon=st.sampled_from(HORIZONS))
@settings(max_examples=25)
def test_without_weight_the_doubly_robust_value_is_the_direct_one(seed: int, horizon: Horizon) -> None:
    """A policy that does nothing the log did gets no correction, no weighted value, and a warning."""
    log = made_up_log(12, np.random.default_rng(seed), truth(), fewer_actions)
    model = TaskActionMeans(1e12)  # means of local and cloud alone, which all resamples and folds of a constant share
    log = replaced(log, log.features, log.action, np.where(log.action > 0, 2.0, 1.0))
    found = judged([part(log, fixed(LAYOUT, 4))], lambda: model, Behaviour(log), horizon, resamples=20)
    assert found.doubly_robust.estimate == pytest.approx(found.direct.estimate)
    assert math.isnan(found.weighted.estimate)
    assert found.effective == 0.0
    assert found.unsupported == 1.0
    assert "100% of decisions have no support" in found.warning
    assert "only 0 effective turns" in found.warning


@given(seed=seeds, known=st.floats(-5, 5), horizon=st.sampled_from(HORIZONS))
@settings(max_examples=15)
def test_what_is_known_is_added_exactly(seed: int, known: float, horizon: Horizon) -> None:
    """A certain reward moves all three values by itself and no interval's width."""
    log = made_up_log(12, np.random.default_rng(seed), truth())
    behaviour, policy = Behaviour(log), mixed(LAYOUT, 0.5)
    plain, more = (judged([part(log, policy, x)], Means, behaviour, horizon, resamples=20) for x in (0.0, known))
    for a, b in zip(plain[:3], more[:3], strict=True):
        assert b.estimate - a.estimate == pytest.approx(known, abs=1e-9)


@given(seed=seeds)
@settings(max_examples=15)
def test_a_model_that_is_right_needs_no_correction(seed: int) -> None:
    """Without noise and with enough turns of every cell, direct and doubly robust agree, whatever the weights."""

    class Right:
        def fit(self, turns: LoggedTurns) -> Right:
            return self

        def predict(self, features: FloatArray, action: IntArray) -> tuple[FloatArray, FloatArray]:
            return truth(0.3)(features, action), np.ones(len(action))

    log = made_up_log(12, np.random.default_rng(seed), truth(0.3))
    log = replaced(log, log.features, log.action, truth(0.3)(log.features, log.action))
    for horizon in HORIZONS:
        found = judged([part(log, mixed(LAYOUT, 0.2))], Right, Behaviour(log), horizon, resamples=20)
        assert found.doubly_robust.estimate == pytest.approx(found.direct.estimate)


def test_the_behaviour_policy_is_smoothed_counts() -> None:
    """Its rows sum to 1, no action is impossible, and much data outweighs the smoothing."""
    log = made_up_log(3_000, np.random.default_rng(6), truth())
    table = Behaviour(log)(log.features)
    assert table.sum(axis=1) == pytest.approx(np.ones(len(log)))
    assert table == pytest.approx(logging_policy(log.features), abs=0.03)
    few = log.rows(np.arange(5))
    assert (Behaviour(few)(few.features) > 0).all()


def test_weights_multiply_along_a_dialogue() -> None:
    """For the dialogue horizon a turn weighs as all decisions up to it, and the next dialogue begins anew."""
    log = made_up_log(40, np.random.default_rng(7), truth())
    behaviour, policy = Behaviour(log), mixed(LAYOUT, 0.9)
    single = importance(log, policy(log.features), behaviour, "turn")
    whole = importance(log, policy(log.features), behaviour, "dialogue")
    for number in range(40):
        rows = log.dialogue == number
        assert whole[rows] == pytest.approx(np.cumprod(single[rows]))


def coverage(policy: TurnPolicy, horizon: Horizon, dialogues: int, repeats: int, carried: float) -> FloatArray:
    """Share of logs whose intervals (direct, weighted, doubly robust) hold the truth."""
    mean = truth(carried)
    true = true_value(policy, mean, horizon)
    hits = np.zeros(3)
    for seed in range(repeats):
        log = made_up_log(dialogues, np.random.default_rng(seed), mean)
        found = judged([part(log, policy)], Means, Behaviour(log), horizon, seed=seed, resamples=200)
        hits += [interval.lo <= true <= interval.hi for interval in (found.direct, found.weighted, found.doubly_robust)]
    return hits / repeats


@pytest.mark.slow
@pytest.mark.parametrize("policy", [mixed(LAYOUT, 0.5), fixed(LAYOUT, 1), by_kind(LAYOUT, np.array([0, 4, 3]))])
def test_intervals_hold_the_truth(policy: TurnPolicy) -> None:
    """In at least 90 % of 100 logs of 200 dialogues, up to what 100 coin tosses of 90 % allow (one-sided 99 %: 83)."""
    _, weighted, robust = coverage(policy, "turn", 200, 100, carried=0.3)
    assert weighted >= 0.83
    assert robust >= 0.83


@pytest.mark.slow
def test_only_the_dialogue_horizon_sees_a_policys_own_consequences() -> None:
    """Where a cloud turn helps the next one, always-cloud is worth more than the log's histories show, and the long horizon finds it."""
    policy, mean = mixed(LAYOUT, 0.1), truth(0.5)
    own, logged = (true_value(policy, mean, horizon) for horizon in ("dialogue", "turn"))
    assert own > logged + 0.1
    log = made_up_log(3_000, np.random.default_rng(8), mean)
    values = {h: judged([part(log, policy)], Means, Behaviour(log), h, resamples=200) for h in HORIZONS}
    assert values["dialogue"].weighted.estimate == pytest.approx(own, abs=0.06)
    assert values["dialogue"].doubly_robust.estimate == pytest.approx(own, abs=0.06)
    assert values["turn"].doubly_robust.estimate == pytest.approx(logged, abs=0.06)


def test_a_dialogue_in_two_parts_counts_once() -> None:
    """The same part twice gives the same values and the same intervals as once: no second sample was drawn."""
    log = made_up_log(40, np.random.default_rng(9), truth())
    own, behaviour = part(log, mixed(LAYOUT, 0.6)), Behaviour(log)
    once, twice = (judged([own] * count, Means, behaviour, resamples=50) for count in (1, 2))
    for a, b in zip(once[:3], twice[:3], strict=True):
        assert b == pytest.approx(a)
    assert twice.effective == pytest.approx(2 * once.effective)
