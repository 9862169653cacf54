"""Intervals: how far a number from one simulation can be trusted. Functions of columns only.

Every interval is two-sided. Where the sample is too small to say anything its bounds are NaN, never a made-up width.
Values that were not measured are the caller's to leave out: a NaN among them is an error, not a smaller sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from workloads.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]


class Interval(NamedTuple):
    """An estimate with its confidence bounds, in the unit of the values; `n` is the number of values behind it."""

    estimate: float
    lo: float
    hi: float
    n: int


class Pairing(NamedTuple):
    """Row numbers of matching rows in two tables, and how many rows of either have no partner."""

    a: IntArray
    b: IntArray
    unmatched: int


class PairedDifference(NamedTuple):
    """Mean of a - b. `p_value` belongs to the interval; `p_wilcoxon` is the rank test of the same differences."""

    difference: Interval
    p_value: float
    p_wilcoxon: float


def mean_interval(values: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of independent values with Student's t interval."""
    sample = _sample("values", values)
    if not sample.size:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, math.nan, math.nan, 1)
    error = float(sample.std(ddof=1)) / math.sqrt(sample.size)
    half = error * _t_quantile(confidence, sample.size - 1)
    return Interval(mean, mean - half, mean + half, sample.size)


def proportion_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Share of successes with Wilson's score interval (1927): inside [0, 1], and not of width 0 at 0 or 1."""
    if not 0 <= successes <= n:
        raise InputError("successes", f"found {successes} of {n}", "Successes must lie between 0 and n.")
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    z = float(stats.norm.ppf(upper_probability(confidence)))
    share, shrink = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    lo = 0.0 if successes == 0 else centre - half  # exact at both ends, where rounding would leave 1e-17
    hi = 1.0 if successes == n else centre + half
    return Interval(share, lo, hi, n)


def quantile_interval(values: npt.ArrayLike, q: float, confidence: float = 0.95) -> Interval:
    """The q-quantile of independent values between two of their order statistics.

    The number of values below the true quantile is binomial(n, q) whatever the distribution, so the bounds need no
    density. A bound is NaN where even the extreme value is too close in, such as the 99th percentile of 100 values.
    """
    if not 0 < q < 1:
        raise InputError("q", f"found {q:g}", "A quantile must lie strictly between 0 and 1.")
    sample = np.sort(_sample("values", values))
    if not sample.size:
        return Interval(math.nan, math.nan, math.nan, 0)
    upper = upper_probability(confidence)
    below = int(stats.binom.ppf(1 - upper, sample.size, q))
    above = int(stats.binom.ppf(upper, sample.size, q)) + 1
    lo = float(sample[below - 1]) if below >= 1 else math.nan
    hi = float(sample[above - 1]) if above <= sample.size else math.nan
    return Interval(float(np.quantile(sample, q)), lo, hi, sample.size)


def cluster_interval(
    values: npt.ArrayLike, tasks: npt.ArrayLike, seeds: npt.ArrayLike, confidence: float = 0.95
) -> Interval:
    """Mean over requests and seeds, where one task appears under several seeds and one seed's requests share a world.

    The widest of three t intervals around the mean of all values: clustered by task, clustered by seed, and by both
    (task + seed - cell variance of Cameron, Gelbach and Miller 2011, with Satterthwaite's degrees of freedom). Each of
    the first two is blind to the other's variation; the third is unreliable with few clusters. Few seeds give a wide
    interval: t is 12.7 at two seeds and 2.8 at five. With one seed only the tasks vary, so the interval says nothing
    about other arrivals or networks; with one task, likewise; with one of each the bounds are NaN.
    """
    sample = _sample("values", values)
    if not sample.size:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(sample.mean())
    half = _half_width(_errors(sample, tasks, seeds), confidence)
    return Interval(mean, mean - half, mean + half, sample.size)


def pair_by_key(keys_a: Sequence[npt.ArrayLike], keys_b: Sequence[npt.ArrayLike]) -> Pairing:
    """Match the rows of two tables on key columns, such as (seed, request), that identify a row in each table."""
    rows = np.size(keys_a[0])
    code = np.zeros(rows + np.size(keys_b[0]), dtype=np.intp)
    for a, b in zip(keys_a, keys_b, strict=True):
        column = label_codes("keys", np.concatenate((np.asarray(a), np.asarray(b))), code.size)
        code = label_codes(
            "keys", code * (code.size + 1) + column, code.size
        )  # numbered anew, so that nothing overflows
    for name, part in (("a", code[:rows]), ("b", code[rows:])):
        if np.unique(part).size < part.size:
            raise InputError(
                f"keys of {name}", "a key appears twice", "Use columns that name one row, such as seed, id."
            )
    common, index_a, index_b = np.intersect1d(code[:rows], code[rows:], assume_unique=True, return_indices=True)
    if not common.size:
        raise InputError("keys", "the two tables share no key", "Compare runs of the same tasks under the same seeds.")
    return Pairing(index_a, index_b, code.size - 2 * common.size)


def paired_difference(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    tasks: npt.ArrayLike | None = None,
    seeds: npt.ArrayLike | None = None,
    confidence: float = 0.95,
) -> PairedDifference:
    """Mean of a - b over pairs (row i of `a` and of `b` are the same request), with its interval and two tests.

    Without `tasks` and `seeds` this is the paired t test; with them, interval and p-value are those of
    `cluster_interval`. Wilcoxon's signed-rank test runs on the mean difference of each task, ignoring equal ones.
    """
    left, right = _sample("a", a), _sample("b", b)
    if left.size != right.size:
        raise InputError("a and b", f"found {left.size} and {right.size} values", "Pair them with pair_by_key first.")
    gap = left - right
    tasks = np.arange(gap.size) if tasks is None else tasks
    seeds = np.zeros(gap.size) if seeds is None else seeds
    if not gap.size:
        return PairedDifference(Interval(math.nan, math.nan, math.nan, 0), math.nan, math.nan)
    mean, errors = float(gap.mean()), _errors(gap, tasks, seeds)
    half = _half_width(errors, confidence)
    task = label_codes("tasks", tasks, gap.size)
    by_task = np.bincount(task, weights=gap) / np.bincount(task)
    return PairedDifference(
        Interval(mean, mean - half, mean + half, gap.size), _p_value(mean, errors), _wilcoxon(by_task)
    )


def label_codes(name: str, labels: npt.ArrayLike, size: int) -> IntArray:
    """Labels as whole numbers from 0 in the order of the labels."""
    column = np.asarray(labels)
    if column.shape != (size,):
        raise InputError(name, f"found shape {column.shape} for {size} values", "Give one label for each value.")
    return np.unique(column, return_inverse=True)[1].astype(np.intp)


def upper_probability(confidence: float) -> float:
    """The upper tail's cumulative probability of a two-sided interval."""
    if not 0 < confidence < 1:
        raise InputError("confidence", f"found {confidence:g}", "It must lie strictly between 0 and 1, such as 0.95.")
    return (1 + confidence) / 2


def _errors(sample: FloatArray, tasks: npt.ArrayLike, seeds: npt.ArrayLike) -> list[tuple[float, float]]:
    """(Standard error of the mean, degrees of freedom) by task, by seed and by both, as far as there are several."""
    task, seed = label_codes("tasks", tasks, sample.size), label_codes("seeds", seeds, sample.size)
    residual = sample - sample.mean()
    groups = [codes for codes in (task, seed) if codes.max() > 0]
    variances = [_cluster_variance(residual, codes) for codes in groups]
    freedoms = [float(codes.max()) for codes in groups]
    errors = [(math.sqrt(variance), freedom) for variance, freedom in zip(variances, freedoms, strict=True)]
    if len(groups) == 2 and any(variances):
        cell = np.unique(task * (seed.max() + 1) + seed, return_inverse=True)[1]
        both = max(sum(variances) - _cluster_variance(residual, cell), 0.0)
        weights = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms, strict=True))
        errors.append((math.sqrt(both), sum(variances) ** 2 / weights))
    return errors


def _cluster_variance(residual: FloatArray, codes: IntArray) -> float:
    """Variance of the mean from the sums of residuals in each cluster; with clusters of one it is s^2 / n."""
    sums = np.bincount(codes, weights=residual)
    return float(sums @ sums) * sums.size / (sums.size - 1) / residual.size**2


def _half_width(errors: list[tuple[float, float]], confidence: float) -> float:
    return max((error * _t_quantile(confidence, freedom) for error, freedom in errors), default=math.nan)


def _p_value(mean: float, errors: list[tuple[float, float]]) -> float:
    """Largest two-sided p-value of a zero mean: below 1 - confidence exactly where the interval leaves out 0."""
    if mean == 0:
        return 1.0 if errors else math.nan
    tails = [stats.t.sf(abs(mean) / error, freedom) if error > 0 else 0.0 for error, freedom in errors]
    return float(2 * max(tails, default=math.nan))


def _wilcoxon(difference: FloatArray) -> float:
    """Two-sided p-value of the signed-rank test; 1 where nothing differs, as nothing speaks against equality."""
    if not difference.any():
        return 1.0
    return float(stats.wilcoxon(difference).pvalue)


def _sample(name: str, values: npt.ArrayLike) -> FloatArray:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1:
        raise InputError(name, f"found an array of shape {sample.shape}", "Give one list of numbers.")
    if not np.isfinite(sample).all():
        bad = int(np.flatnonzero(~np.isfinite(sample))[0])
        raise InputError(f"{name}[{bad}]", f"found {sample[bad]}", "Leave out values that were not measured.")
    return sample


def _t_quantile(confidence: float, freedom: float) -> float:
    return float(stats.t.ppf(upper_probability(confidence), freedom))
