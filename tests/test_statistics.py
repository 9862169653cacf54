"""Intervals against scipy, exact probabilities and simulated coverage."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from sim.bootstrap import bootstrap_metric
from sim.frontier import apgr, cpt, router_curve
from sim.statistics import (
    FloatArray,
    IntArray,
    Interval,
    cluster_interval,
    mean_interval,
    pair_by_key,
    paired_difference,
    proportion_interval,
    quantile_interval,
)
from workloads.errors import InputError

SAMPLES = arrays(np.float64, st.integers(2, 30), elements=st.floats(-100, 100, width=32))


@pytest.fixture
def rng() -> np.random.Generator:
    """A fixed stream, so that a simulated rate is the same in every run."""
    return np.random.default_rng(20240611)


def covers(intervals: list[Interval], truth: float) -> float:
    """Share of the intervals that hold the truth."""
    return float(np.mean([found.lo <= truth <= found.hi for found in intervals]))


def tolerance(repeats: int, nominal: float = 0.95) -> float:
    """Four standard errors of a simulated coverage."""
    return 4 * math.sqrt(nominal * (1 - nominal) / repeats)


@given(SAMPLES, st.floats(0.5, 0.999))
def test_mean_interval_is_scipys_t_interval(values: FloatArray, confidence: float) -> None:
    """Bounds agree with the confidence interval of scipy's one-sample t test."""
    if np.ptp(values) < 1e-3:
        return
    expected = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    found = mean_interval(values, confidence)
    np.testing.assert_allclose((found.lo, found.hi), expected, rtol=1e-9, atol=1e-9)


def test_a_single_value_has_no_width() -> None:
    """One value gives an estimate without bounds, no value not even an estimate."""
    one, none = mean_interval([3.0]), mean_interval([])
    assert one.estimate == 3.0
    assert math.isnan(one.lo)
    assert math.isnan(one.hi)
    assert math.isnan(none.estimate)
    assert (one.n, none.n) == (1, 0)


def test_mean_interval_covers_at_the_stated_rate(rng: np.random.Generator) -> None:
    """Over 4000 normal samples of five, 95 % and 80 % intervals hold the mean that often."""
    samples = rng.normal(7.0, 2.0, (4000, 5))
    for confidence in (0.95, 0.8):
        rate = covers([mean_interval(sample, confidence) for sample in samples], 7.0)
        assert rate == pytest.approx(confidence, abs=tolerance(4000, confidence))


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (1, 1), (700, 1319)])
def test_proportion_interval_is_wilsons(successes: int, n: int) -> None:
    """Bounds agree with scipy's Wilson interval, also where nothing or everything succeeded."""
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    found = proportion_interval(successes, n)
    assert (found.lo, found.hi) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found.lo <= successes / n <= found.hi <= 1


@pytest.mark.parametrize(("n", "q"), [(30, 0.5), (200, 0.5), (500, 0.95), (1000, 0.99)])
def test_quantile_interval_covers_by_the_binomial_law(n: int, q: float) -> None:
    """The exact probability that the chosen ranks enclose the quantile is at least, and little above, 95 %."""
    found = quantile_interval(np.arange(1, n + 1), q)
    coverage = stats.binom.cdf(found.hi - 1, n, q) - stats.binom.cdf(found.lo - 1, n, q)
    assert 0.95 <= coverage <= 0.985
    expected = stats.quantile_test(np.arange(1.0, n + 1), q=0, p=q).confidence_interval(0.95)
    assert found.lo == expected.low
    assert found.hi == expected.high


def test_an_extreme_quantile_of_a_small_sample_has_no_bound() -> None:
    """The 99th percentile of 100 values may lie above them all: no upper bound rather than the largest value."""
    found = quantile_interval(np.arange(100.0), 0.99)
    assert math.isnan(found.hi)
    assert found.lo <= found.estimate


def test_clusters_of_one_are_students_interval(rng: np.random.Generator) -> None:
    """With one seed and every task once, the clustered interval is the ordinary one."""
    values = rng.gamma(2.0, 1.0, 50)
    clustered = cluster_interval(values, np.arange(50), np.zeros(50))
    assert clustered == pytest.approx(mean_interval(values))


def test_copies_of_a_task_are_no_new_evidence(rng: np.random.Generator) -> None:
    """Repeating each task's value ten times leaves the interval of one copy unchanged."""
    values, tasks = rng.normal(0, 1, 20), np.arange(20)
    copied = cluster_interval(np.repeat(values, 10), np.repeat(tasks, 10), np.zeros(200))
    once = mean_interval(values)
    assert (copied.lo, copied.hi) == pytest.approx((once.lo, once.hi))
    assert copied.n == 200


def test_requests_of_one_seed_are_no_new_evidence(rng: np.random.Generator) -> None:
    """When all requests of a seed agree, the interval is at least that of the seeds' means."""
    seeds = np.repeat(np.arange(6), 100)
    means = rng.normal(0, 1, 6)
    found = cluster_interval(means[seeds], np.tile(np.arange(100), 6), seeds)
    once = mean_interval(means)
    assert found.lo <= once.lo + 1e-12
    assert found.hi >= once.hi - 1e-12


@pytest.mark.parametrize(("task_sd", "seed_sd"), [(1.0, 0.0), (0.0, 0.3), (1.0, 0.3), (0.0, 0.0)])
def test_cluster_interval_covers_crossed_tasks_and_seeds(
    task_sd: float, seed_sd: float, rng: np.random.Generator
) -> None:
    """60 tasks under six seeds: the mean is held in at least 93 % of 800 worlds, whichever part varies."""
    tasks, seeds = np.tile(np.arange(60), 6), np.repeat(np.arange(6), 60)
    found = []
    for _ in range(800):
        values = rng.normal(0, task_sd, 60)[tasks] + rng.normal(0, seed_sd, 6)[seeds] + rng.normal(0, 1, 360)
        found.append(cluster_interval(values, tasks, seeds))
    assert covers(found, 0.0) >= 0.93 - tolerance(800) / 2


def test_treating_crossed_requests_as_independent_would_mislead(rng: np.random.Generator) -> None:
    """On the worlds above the plain t interval misses far more often: the clustering is needed."""
    tasks, seeds = np.tile(np.arange(60), 6), np.repeat(np.arange(6), 60)
    worlds = [rng.normal(0, 1, 60)[tasks] + rng.normal(0, 0.3, 6)[seeds] + rng.normal(0, 1, 360) for _ in range(400)]
    assert covers([mean_interval(values) for values in worlds], 0.0) < 0.75


def test_both_kinds_of_cluster_add_up(rng: np.random.Generator) -> None:
    """Where tasks and seeds both vary, the variance is the sum of e_i e_j over pairs that share a task or a seed."""
    tasks, seeds = np.tile(np.arange(40), 40), np.repeat(np.arange(40), 40)
    values = rng.normal(0, 0.3, 40)[tasks] + rng.normal(0, 0.3, 40)[seeds] + rng.normal(0, 1, 1600)
    residual = values - values.mean()
    related = (tasks[:, None] == tasks) | (seeds[:, None] == seeds)
    error = math.sqrt(float(residual @ related @ residual)) / residual.size
    found = cluster_interval(values, tasks, seeds)
    half = (found.hi - found.lo) / 2
    assert stats.norm.ppf(0.975) * error < half < stats.t.ppf(0.975, 39) * error * 1.03


def test_one_task_and_one_seed_say_nothing() -> None:
    """Repetitions of one task under one seed have a mean and no bounds."""
    found = cluster_interval([1.0, 2.0], ["a", "a"], [7, 7])
    assert found.estimate == 1.5
    assert math.isnan(found.lo)
    assert math.isnan(found.hi)


@given(SAMPLES, st.integers(0, 2**32 - 1))
def test_the_order_of_rows_does_not_matter(values: FloatArray, seed: int) -> None:
    """Shuffling values together with their labels leaves the clustered interval where it was."""
    order = np.random.default_rng(seed).permutation(values.size)
    tasks, seeds = np.arange(values.size) // 2, np.arange(values.size) % 2
    first, second = cluster_interval(values, tasks, seeds), cluster_interval(values[order], tasks[order], seeds[order])
    assert second == pytest.approx(first, abs=1e-9, nan_ok=True)


def test_rows_are_paired_by_their_keys() -> None:
    """Rows meet by (seed, task) in any order, and rows without a partner are counted."""
    pairing = pair_by_key(([1, 1, 2], ["x", "y", "x"]), ([2, 3, 1], ["x", "x", "y"]))
    assert {(int(a), int(b)) for a, b in zip(pairing.a, pairing.b, strict=True)} == {(1, 2), (2, 0)}
    assert pairing.unmatched == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, unique=True), st.integers(0, 2**32 - 1))
def test_pairing_a_table_with_its_shuffle_finds_every_row(keys: list[tuple[int, int]], seed: int) -> None:
    """Each row is paired with itself and none is left over."""
    table = np.array(keys)
    shuffled = table[np.random.default_rng(seed).permutation(len(keys))]
    pairing = pair_by_key(list(table.T), list(shuffled.T))
    np.testing.assert_array_equal(table[pairing.a], shuffled[pairing.b])
    assert (pairing.a.size, pairing.unmatched) == (len(keys), 0)


def test_paired_difference_is_scipys_paired_test(rng: np.random.Generator) -> None:
    """Without clusters the interval, t and Wilcoxon p-values are scipy's."""
    a, b = rng.normal(0.4, 1, 25), rng.normal(0, 1, 25)
    found, reference = paired_difference(a, b), stats.ttest_rel(a, b)
    bounds = reference.confidence_interval()
    assert (found.difference.lo, found.difference.hi) == pytest.approx((bounds.low, bounds.high))
    assert found.p_value == pytest.approx(reference.pvalue)
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(a - b).pvalue)


def test_wilcoxon_ranks_one_difference_for_each_task(rng: np.random.Generator) -> None:
    """Tasks seen once and tasks seen four times count alike, with their mean difference."""
    tasks = np.repeat(np.arange(12), np.tile([1, 4], 6))
    gap = rng.normal(0.5, 1, tasks.size)
    means = [gap[tasks == task].mean() for task in range(12)]
    found = paired_difference(gap, np.zeros(gap.size), tasks, np.zeros(gap.size))
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(means).pvalue)


def test_pairing_removes_what_both_policies_share(rng: np.random.Generator) -> None:
    """Under common random numbers a small gain is certain although the policies' own intervals overlap widely."""
    world = rng.normal(0, 5, 300)
    a, b = world + rng.normal(0.2, 0.5, 300), world
    assert mean_interval(a).lo < mean_interval(b).hi
    assert paired_difference(a, b).difference.lo > 0


@given(SAMPLES, st.integers(0, 2**32 - 1))
def test_interval_and_p_value_never_contradict(values: FloatArray, seed: int) -> None:
    """The 95 % interval leaves out 0 exactly when p < 0.05, with clusters as without."""
    rng = np.random.default_rng(seed)
    found = paired_difference(
        values, np.zeros(values.size), rng.integers(0, 3, values.size), rng.integers(0, 2, values.size)
    )
    if math.isnan(found.difference.lo):
        assert math.isnan(found.p_value) or values.mean() == 0
    elif abs(found.p_value - 0.05) > 1e-9:
        assert (found.p_value < 0.05) == (found.difference.lo > 0 or found.difference.hi < 0)


def test_equal_policies_do_not_differ() -> None:
    """Two policies with the same rows differ by exactly 0, with p-values of 1."""
    found = paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert found == (Interval(0.0, 0.0, 0.0, 3), 1.0, 1.0)


def test_clustered_p_values_are_uniform_under_no_difference(rng: np.random.Generator) -> None:
    """With differences that hang together by task, p < 0.05 happens in about 5 % of 1000 equal comparisons."""
    tasks = np.repeat(np.arange(40), 3)
    rejected = [
        paired_difference(rng.normal(0, 1, 40)[tasks], rng.normal(0, 0.3, 120), tasks, np.zeros(120)).p_value < 0.05
        for _ in range(1000)
    ]
    assert np.mean(rejected) == pytest.approx(0.05, abs=tolerance(1000))


def mean_of(values: FloatArray) -> Callable[[IntArray], npt.ArrayLike]:
    """The mean as a metric of row indices."""
    return lambda rows: values[rows].mean()


@pytest.mark.parametrize("metric", [np.mean, np.var])
def test_bootstrap_agrees_with_scipys_bca(metric: Callable[..., np.float64], rng: np.random.Generator) -> None:
    """On a skewed sample the bounds of a mean and of the biased variance are scipy's, to the noise of resampling."""
    values = rng.lognormal(0, 1, 60)
    (found,) = bootstrap_metric(lambda rows: metric(values[rows]), np.arange(60), rng, resamples=8000)
    expected, percentile = (
        stats.bootstrap((values,), metric, n_resamples=8000, method=method, rng=rng).confidence_interval
        for method in ("BCa", "percentile")
    )
    width = expected.high - expected.low
    assert (found.lo, found.hi) == pytest.approx((expected.low, expected.high), abs=0.04 * width)
    assert expected.high - percentile.high > 0.05 * width  # the correction that the agreement above is about


def test_bootstrap_draws_whole_tasks(rng: np.random.Generator) -> None:
    """Ten copies of each task give the interval of one copy, and every draw holds a task's rows together."""
    values = rng.normal(0, 1, 60)
    tasks = np.tile(np.arange(60), 10)
    (once,) = bootstrap_metric(mean_of(values), np.arange(60), rng, resamples=3000)
    (copied,) = bootstrap_metric(mean_of(values[tasks]), tasks, rng, resamples=3000)
    assert (copied.lo, copied.hi) == pytest.approx((once.lo, once.hi), abs=0.1 * (once.hi - once.lo))
    assert copied.n == 60

    def unbroken(rows: IntArray) -> bool:
        drawn = np.bincount(tasks[rows], minlength=60)
        return bool((drawn % 10 == 0).all())

    (together,) = bootstrap_metric(unbroken, tasks, rng, resamples=50)
    assert (together.estimate, together.lo, together.hi) == (1.0, 1.0, 1.0)


def apgr_of(score: FloatArray, weak: FloatArray) -> Callable[[IntArray], npt.ArrayLike]:
    """APGR of a router as a metric of row indices, with a strong model that is always right."""

    def metric(rows: IntArray) -> float:
        curve = router_curve(score[rows], weak[rows], np.ones(rows.size))
        return apgr(curve.strong_share, curve.accuracy, curve.accuracy[0], curve.accuracy[-1])

    return metric


def test_bootstrap_covers_the_apgr_of_a_router(rng: np.random.Generator) -> None:
    """Over 150 samples of 80 requests, 90 % intervals hold the APGR known from the model that made them.

    The weak model fails with probability `score`, uniform: the gain at share u is u - u^2/2 out of 1/2, its area 2/3.
    """
    hits = []
    for _ in range(150):
        score = rng.random(80)
        weak = (rng.random(80) >= score).astype(float)
        hits += bootstrap_metric(apgr_of(score, weak), np.arange(80), rng, resamples=150, confidence=0.9)
    assert covers(hits, 2 / 3) == pytest.approx(0.9, abs=tolerance(150, 0.9))


def test_several_metrics_share_their_draws(rng: np.random.Generator) -> None:
    """Two metrics of one call see the same tasks: the difference of equal metrics has no width."""
    values = rng.normal(0, 1, 40)
    first, second, difference = bootstrap_metric(
        lambda rows: [values[rows].mean(), values[rows].mean() + 1, 1.0], np.arange(40), rng, resamples=200
    )
    assert (second.lo - 1, second.hi - 1) == pytest.approx((first.lo, first.hi))
    assert difference == Interval(1.0, 1.0, 1.0, 40)


def test_an_often_undefined_metric_has_no_bounds(rng: np.random.Generator) -> None:
    """CPT of a router that hardly ever reaches its target: an estimate, but no made-up bounds."""
    accuracy = np.array([0.9] + [0.5] * 9)

    def metric(rows: IntArray) -> float:
        return cpt(1.2, [0.5], [accuracy[rows].max()], 0.4, 0.7)

    (found,) = bootstrap_metric(metric, np.arange(10), rng, resamples=200)
    assert found.estimate > 0
    assert math.isnan(found.lo)
    assert math.isnan(found.hi)


def test_the_same_generator_state_gives_the_same_interval() -> None:
    """A bootstrap is a function of the rows and the generator it was given."""
    values = np.arange(30.0) ** 2
    first, second = (
        bootstrap_metric(mean_of(values), np.arange(30), np.random.default_rng(5), resamples=100) for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(
    ("call", "place"),
    [
        (lambda: mean_interval([1.0, math.nan]), "values[1]"),
        (lambda: mean_interval([1.0, 2.0], confidence=95), "confidence"),
        (lambda: proportion_interval(3, 2), "successes"),
        (lambda: quantile_interval([1.0], 1.0), "q"),
        (lambda: cluster_interval([1.0, 2.0], ["a"], [1, 1]), "tasks"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "a and b"),
        (lambda: pair_by_key(([1, 1],), ([1],)), "keys of a"),
        (lambda: pair_by_key(([1],), ([2],)), "keys"),
        (lambda: bootstrap_metric(mean_of(np.zeros(0)), [], np.random.default_rng(0)), "tasks"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], place: str) -> None:
    """Unmeasured values, percentages for shares and rows that do not match are refused with the place they stand."""
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.place == place
