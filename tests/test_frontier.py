"""Frontier metrics against brute force, theory and the published outcomes of RouteLLM's GSM8K evaluation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import integrate, stats

from sim.frontier import (
    FloatArray,
    RouterCurve,
    aiq,
    apgr,
    cpt,
    hypervolume,
    non_decreasing_hull,
    oracle_curve,
    oracle_gap_closed,
    pareto,
    pgr,
    random_curve,
    router_curve,
)
from workloads.errors import InputError
from workloads.readers import routellm

REFERENCE = (101.0, -1.0)
"""Dearer and poorer than every point drawn below."""


@st.composite
def planes(draw: st.DrawFn) -> tuple[FloatArray, FloatArray]:
    """Cost in [0, 100] and quality in [0, 1], on a grid so that ties are common."""
    size = draw(st.integers(1, 12))
    cost = draw(arrays(np.float64, size, elements=st.integers(0, 20).map(lambda n: n * 5.0)))
    quality = draw(arrays(np.float64, size, elements=st.integers(0, 16).map(lambda n: n / 16)))
    return cost, quality


@st.composite
def families(draw: st.DrawFn) -> tuple[FloatArray, FloatArray]:
    """Points of a family in the plane of strong share and accuracy."""
    size = draw(st.integers(1, 10))
    elements = st.integers(0, 64).map(lambda n: n / 64)
    return draw(arrays(np.float64, size, elements=elements)), draw(arrays(np.float64, size, elements=elements))


@st.composite
def outcomes(draw: st.DrawFn, largest: int = 30) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Scores with ties, and whether the weak and the strong model were right."""
    size = draw(st.integers(1, largest))
    score = draw(arrays(np.float64, size, elements=st.integers(0, 4).map(float)))
    truth = arrays(np.float64, size, elements=st.sampled_from([0.0, 1.0]))
    return score, draw(truth), draw(truth)


GAPS = st.tuples(st.floats(0, 0.5), st.floats(0.05, 0.5)).map(lambda pair: (pair[0], pair[0] + pair[1]))
"""(weak, strong) accuracies with a real gap."""


@pytest.fixture
def rng() -> np.random.Generator:
    """A fixed stream, so that a simulated rate is the same in every run."""
    return np.random.default_rng(20240611)


def hull_at(cost: FloatArray, quality: FloatArray, grid: FloatArray) -> FloatArray:
    """Height of the hull, constant to the right of its last vertex."""
    hull = non_decreasing_hull(cost, quality)
    return np.interp(grid, cost[hull], quality[hull])


def curve_apgr(curve: RouterCurve) -> float:
    """APGR of a whole curve, whose ends are the two models."""
    return apgr(curve.strong_share, curve.accuracy, curve.accuracy[0], curve.accuracy[-1])


@given(planes())
def test_hull_is_concave_rises_and_covers_every_point(plane: tuple[FloatArray, FloatArray]) -> None:
    """Slopes of the hull fall strictly and stay positive, and no point lies above it."""
    cost, quality = plane
    hull = non_decreasing_hull(cost, quality)
    slopes = np.diff(quality[hull]) / np.diff(cost[hull])
    assert (slopes > 0).all()
    assert (np.diff(slopes) < 0).all()
    assert (quality <= hull_at(cost, quality, cost) + 1e-12).all()
    assert cost[hull[0]] == cost.min()
    assert quality[hull[-1]] == quality.max()


@given(planes())
def test_hull_is_no_higher_than_mixtures_of_two_points_reach(plane: tuple[FloatArray, FloatArray]) -> None:
    """At every cost the hull equals the best mixture of two points that costs no more."""
    cost, quality = plane
    for budget in np.linspace(cost.min(), cost.max(), 7):
        best = -math.inf
        for i, j in itertools.product(range(cost.size), repeat=2):
            if cost[i] <= budget:
                share = 1.0 if cost[j] <= budget else (budget - cost[i]) / (cost[j] - cost[i])
                best = max(best, quality[i], (1 - share) * quality[i] + share * quality[j])
        assert hull_at(cost, quality, np.array([budget]))[0] == pytest.approx(best, abs=1e-12)


@given(planes())
def test_pareto_keeps_exactly_the_undominated_points(plane: tuple[FloatArray, FloatArray]) -> None:
    """The mask agrees with the definition tried on every pair."""
    cost, quality = plane
    as_good = (cost[:, None] <= cost) & (quality[:, None] >= quality)
    better = as_good & ((cost[:, None] < cost) | (quality[:, None] > quality))
    np.testing.assert_array_equal(pareto(cost, quality), ~better.any(axis=0))


@given(planes(), st.floats(0, 100), st.floats(0, 1))
def test_hypervolume_grows_by_what_a_new_point_alone_dominates(
    plane: tuple[FloatArray, FloatArray], cost: float, quality: float
) -> None:
    """Adding a point never shrinks the volume, and adding a dominated one leaves it as it was."""
    before = hypervolume(*plane, REFERENCE)
    grown = np.append(plane[0], cost), np.append(plane[1], quality)
    after = hypervolume(*grown, REFERENCE)
    alone = (REFERENCE[0] - cost) * (quality - REFERENCE[1])
    assert after >= max(before, alone) - 1e-9
    assert after <= before + alone + 1e-9
    if not pareto(*grown)[-1]:
        assert after == before


@given(planes())
def test_hypervolume_is_the_dominated_area(plane: tuple[FloatArray, FloatArray]) -> None:
    """The sum of rectangles agrees with counting the dominated cells of the grid the points lie on."""
    cost, quality = plane
    cells = np.arange(0, 100, 5.0)[:, None] + 2.5, np.arange(0, 1, 1 / 16)[None, :] + 1 / 32
    dominated = ((cost[:, None, None] <= cells[0]) & (quality[:, None, None] >= cells[1])).any(axis=0)
    assert hypervolume(cost, quality, (100.0, 0.0)) == pytest.approx(dominated.sum() * 5 / 16, abs=1e-9)


@given(planes(), st.integers(0, 2**32 - 1))
def test_the_order_of_the_points_does_not_matter(plane: tuple[FloatArray, FloatArray], seed: int) -> None:
    """Every metric of a family is the same number for every order of its points."""
    order = np.random.default_rng(seed).permutation(plane[0].size)
    cost, quality = plane
    share = cost / 100
    assert aiq(cost, quality, 90.0) == aiq(cost[order], quality[order], 90.0)
    assert hypervolume(cost, quality, REFERENCE) == hypervolume(cost[order], quality[order], REFERENCE)
    assert apgr(share, quality, 0.2, 0.7) == apgr(share[order], quality[order], 0.2, 0.7)
    expected = cpt(0.8, share, quality, 0.2, 0.7)
    assert cpt(0.8, share[order], quality[order], 0.2, 0.7) == pytest.approx(expected, abs=0, nan_ok=True)


def test_aiq_of_one_point_is_plain_geometry() -> None:
    """One point (2, 0.8) on a budget of 10: a triangle or nothing to its left, a rectangle to its right."""
    assert aiq([2.0], [0.8], 10.0) == pytest.approx((0.5 * 2 * 0.8 + 8 * 0.8) / 10)
    assert aiq([2.0], [0.8], 10.0, left="zero") == pytest.approx(8 * 0.8 / 10)
    assert aiq([2.0], [0.8], 10.0, min_cost=2.0) == pytest.approx(0.8)
    assert aiq([2.0], [0.8], 1.0) == pytest.approx(0.2)
    assert aiq([2.0], [0.8], 1.0, left="zero") == 0.0


@given(planes(), st.floats(1, 200), st.sampled_from(["null", "zero"]))
def test_aiq_is_the_integral_of_the_hull(plane: tuple[FloatArray, FloatArray], top: float, left: str) -> None:
    """Adaptive quadrature of the hull's height gives the same average."""
    cost, quality = plane
    value = aiq(cost, quality, top, left="zero" if left == "zero" else "null")
    if left == "null":
        cost, quality = np.append(cost, 0.0), np.append(quality, 0.0)
    kinks = np.unique(np.clip(np.append(cost, [0.0, top]), 0, top))
    area = 0.0
    for lo, hi in itertools.pairwise(kinks):
        if hi > cost.min():
            area += integrate.quad(lambda c: hull_at(cost, quality, np.array([c]))[0], lo, hi)[0]
    assert value == pytest.approx(area / top, abs=1e-9)


@given(families(), GAPS, st.floats(0.1, 50), st.floats(-5, 5))
def test_pgr_metrics_ignore_the_scale_of_accuracy(
    family: tuple[FloatArray, FloatArray], gap: tuple[float, float], scale: float, shift: float
) -> None:
    """Measuring accuracy in percent, or from another zero, changes neither PGR, APGR nor the oracle's gap."""
    share, accuracy = family
    weak, strong = gap
    moved, ends = accuracy * scale + shift, (weak * scale + shift, strong * scale + shift)
    np.testing.assert_allclose(pgr(moved, *ends), pgr(accuracy, weak, strong), atol=1e-9)
    assert apgr(share, moved, *ends) == pytest.approx(apgr(share, accuracy, weak, strong), abs=1e-9)


@given(families(), GAPS)
def test_a_family_on_the_random_line_has_apgr_one_half(
    family: tuple[FloatArray, FloatArray], gap: tuple[float, float]
) -> None:
    """However many random mixes are measured, and wherever, their area is one half and CPT(x) is x."""
    share, (weak, strong) = family[0], gap
    accuracy = weak + share * (strong - weak)
    assert apgr(share, accuracy, weak, strong) == pytest.approx(0.5, abs=1e-12)
    assert cpt(0.3, share, accuracy, weak, strong) == pytest.approx(0.3, abs=1e-9)


@given(families(), GAPS, st.floats(-0.5, 1.5))
def test_cpt_is_the_first_share_where_the_curve_reaches_the_target(
    family: tuple[FloatArray, FloatArray], gap: tuple[float, float], x: float
) -> None:
    """PGR at the threshold is x, below x everywhere to its left, and NaN means below x everywhere."""
    weak, strong = gap
    share = np.unique(family[0])
    accuracy = np.resize(family[1], share.size)
    ends = np.concatenate(([0.0], share, [1.0])), np.concatenate(([weak], accuracy, [strong]))
    keep = np.concatenate(([share[0] > 0], np.ones(share.size, bool), [share[-1] < 1]))
    ends = ends[0][keep], ends[1][keep]
    threshold = cpt(x, share, accuracy, weak, strong)
    grid = np.linspace(0, 1, 1001)
    curve = pgr(np.interp(grid, *ends), weak, strong)
    if math.isnan(threshold):
        assert (curve < x).all()
        return
    reached = float(pgr(np.interp(threshold, *ends), weak, strong))
    assert (curve[grid < threshold - 1e-9] < x).all()
    assert reached == pytest.approx(x, abs=1e-8) if threshold > 0 else reached >= x - 1e-9


def test_no_gap_between_the_models_is_not_a_number() -> None:
    """Where the strong model is no better, PGR, APGR and CPT are undefined rather than infinite or zero."""
    assert math.isnan(float(pgr(0.6, 0.5, 0.5)))
    assert math.isnan(apgr([0.5], [0.6], 0.5, 0.4))
    assert math.isnan(cpt(0.5, [0.5], [0.6], 0.5, 0.5))


def test_repeated_measurements_of_a_share_count_as_their_mean() -> None:
    """Two seeds of one policy give the curve through their mean, not through the lucky one."""
    assert apgr([0.5, 0.5], [0.6, 0.8], 0.5, 0.9) == pytest.approx(apgr([0.5], [0.7], 0.5, 0.9))


@given(outcomes(largest=6))
def test_ties_are_broken_at_random_in_expectation(rows: tuple[FloatArray, FloatArray, FloatArray]) -> None:
    """The curve is the average over every order of requests that the scores allow."""
    score, weak, strong = rows
    totals = [
        weak.sum() + np.concatenate(([0.0], np.cumsum((strong - weak)[list(order)])))
        for order in itertools.permutations(range(score.size))
        if (np.diff(score[list(order)]) <= 0).all()
    ]
    curve = router_curve(score, weak, strong)
    expected = np.mean(totals, axis=0) / score.size
    grid = np.arange(score.size + 1) / score.size
    np.testing.assert_allclose(np.interp(grid, curve.strong_share, curve.accuracy), expected, atol=1e-12)


@given(outcomes())
def test_each_point_of_a_curve_is_what_its_threshold_does(rows: tuple[FloatArray, FloatArray, FloatArray]) -> None:
    """Sending score >= threshold to the strong model has the share and accuracy that the curve states."""
    score, weak, strong = rows
    for share, accuracy, threshold in zip(*router_curve(score, weak, strong), strict=True):
        sent = score >= threshold
        assert share == pytest.approx(sent.mean())
        assert accuracy == pytest.approx(np.where(sent, strong, weak).mean())


@given(outcomes(largest=7))
def test_the_oracle_is_the_best_of_all_subsets(rows: tuple[FloatArray, FloatArray, FloatArray]) -> None:
    """At each number of strong calls no choice of requests is more accurate, and one is as accurate."""
    _, weak, strong = rows
    oracle = oracle_curve(weak, strong)
    for calls in range(weak.size + 1):
        choices = itertools.combinations(range(weak.size), calls)
        best = max(np.where(np.isin(np.arange(weak.size), chosen), strong, weak).mean() for chosen in choices)
        assert np.interp(calls / weak.size, oracle.strong_share, oracle.accuracy) == pytest.approx(best)


@given(outcomes())
def test_a_score_and_its_opposite_share_the_area(rows: tuple[FloatArray, FloatArray, FloatArray]) -> None:
    """Asking in reverse order mirrors the curve, so the areas of a score and its negative are those of two randoms."""
    score, weak, strong = rows
    forward, backward = router_curve(score, weak, strong), router_curve(-score, weak, strong)
    area = np.trapezoid(forward.accuracy, forward.strong_share)
    assert area + np.trapezoid(backward.accuracy, backward.strong_share) == pytest.approx(weak.mean() + strong.mean())


@given(outcomes())
def test_apgr_follows_from_the_rank_statistic(rows: tuple[FloatArray, FloatArray, FloatArray]) -> None:
    """When the strong model is always right, APGR = p/2 + (1 - p) AUC, with AUC from the Mann-Whitney statistic."""
    score, weak, _ = rows
    hard = weak == 0
    if not 0 < hard.sum() < hard.size:
        return
    auc = stats.mannwhitneyu(score[hard], score[~hard]).statistic / (hard.sum() * (~hard).sum())
    expected = hard.mean() / 2 + (1 - hard.mean()) * auc
    assert curve_apgr(router_curve(score, weak, np.ones(weak.size))) == pytest.approx(expected)


@given(outcomes())
def test_the_oracle_closes_its_gap_and_random_none(rows: tuple[FloatArray, FloatArray, FloatArray]) -> None:
    """Oracle 1, random 0, the oracle reversed -1, every router between; undefined where the models agree throughout."""
    score, weak, strong = rows
    oracle, ends = oracle_curve(weak, strong), (weak.mean(), strong.mean())
    router, worst = router_curve(score, weak, strong), router_curve(weak - strong, weak, strong)

    def closed(curve: RouterCurve) -> float:
        return oracle_gap_closed(curve.strong_share, curve.accuracy, oracle, *ends)

    if np.unique(strong - weak).size == 1:
        assert math.isnan(closed(router))
        return
    assert closed(oracle) == pytest.approx(1)
    assert closed(worst) == pytest.approx(-1)
    assert closed(random_curve(weak, strong)) == pytest.approx(0, abs=1e-9)
    assert -1 - 1e-9 <= closed(router) <= 1 + 1e-9


@pytest.mark.parametrize(
    ("call", "place"),
    [
        (lambda: pareto([1.0], [1.0, 2.0]), "cost and quality"),
        (lambda: pareto([], []), "cost and quality"),
        (lambda: hypervolume([1.0, 2.0], [0.5, math.nan], REFERENCE), "quality[1]"),
        (lambda: aiq([-1.0], [0.5], 1.0), "cost"),
        (lambda: aiq([1.0], [0.5], 0.0), "cost range"),
        (lambda: aiq([1.0], [0.5], math.nan), "cost range"),
        (lambda: apgr([1.2], [0.5], 0.4, 0.6), "strong_share"),
        (lambda: router_curve([math.inf], [0.0], [1.0]), "scores[0]"),
    ],
)
def test_bad_points_are_named(call: Callable[[], object], place: str) -> None:
    """Columns that do not match, no points, and values that mean nothing are refused with the place they stand."""
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.place == place


WEAK, STRONG = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"


@pytest.fixture
def gsm8k(shared_data: Callable[[str], Path]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Characters of each prompt, and whether Mixtral and GPT-4 solved it."""
    rows = list(routellm.read(shared_data("outcomes/routellm_gsm8k_responses.csv")))
    table = np.array([(len(row.prompt), row.correct[WEAK], row.correct[STRONG]) for row in rows], dtype=np.float64)
    return table[:, 0], table[:, 1], table[:, 2]


def test_routellm_gsm8k_baselines(gsm8k: tuple[FloatArray, FloatArray, FloatArray]) -> None:
    """Random, prompt length (longer to the strong model) and oracle have the APGR measured on this file elsewhere."""
    length, weak, strong = gsm8k
    assert curve_apgr(random_curve(weak, strong)) == pytest.approx(0.505, abs=0.01)
    assert curve_apgr(router_curve(length, weak, strong)) == pytest.approx(0.601, abs=0.005)
    assert curve_apgr(oracle_curve(weak, strong)) == pytest.approx(1.125, abs=0.005)


def test_one_random_router_on_gsm8k_scatters_around_one_half(
    gsm8k: tuple[FloatArray, FloatArray, FloatArray], rng: np.random.Generator
) -> None:
    """Drawn random scores average 0.500 and scatter by 0.02, so that a single draw of 0.505 is nothing unusual."""
    _, weak, strong = gsm8k
    drawn = np.array([curve_apgr(router_curve(rng.random(weak.size), weak, strong)) for _ in range(400)])
    assert drawn.mean() == pytest.approx(0.5, abs=4 * drawn.std() / math.sqrt(drawn.size))
    assert drawn.std() > 0.005


def test_routellm_thresholds_approximate_the_exact_area(gsm8k: tuple[FloatArray, FloatArray, FloatArray]) -> None:
    """RouteLLM's rule, eleven thresholds at the deciles of the score, agrees with the exact area to three decimals."""
    length, weak, strong = gsm8k
    curve = router_curve(length, weak, strong)
    points = []
    for cut in np.quantile(length, np.linspace(0, 1, 11)):
        sent = length >= cut
        points.append((sent.mean(), np.where(sent, strong, weak).mean()))
    share, accuracy = np.array(points).T
    assert apgr(share, accuracy, weak.mean(), strong.mean()) == pytest.approx(curve_apgr(curve), abs=1e-3)
