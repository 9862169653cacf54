"""Bootstrap intervals for metrics that are no mean: areas, thresholds and hulls of a frontier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from scipy import stats

from sim.statistics import FloatArray, IntArray, Interval, label_codes, upper_probability
from workloads.errors import InputError

_JACKKNIFE_GROUPS = 200
"""Acceleration is a skewness: 200 groups estimate it to about 0.003, whatever the number of requests."""
_UNDEFINED_ALLOWED = 0.01
"""Share of resamples in which a metric may be undefined before its interval is."""


def bootstrap_metric(
    metric: Callable[[IntArray], npt.ArrayLike],
    tasks: npt.ArrayLike,
    rng: np.random.Generator,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> list[Interval]:
    """Bias-corrected and accelerated (BCa) bootstrap intervals of metrics that are no mean, such as APGR or AIQ.

    `tasks` names the task of each row. Whole tasks are drawn with replacement, rows of one task staying together, and
    `metric(rows)` computes one number or several from the drawn row indices; every policy and metric inside one call
    sees the same draw, so that differences between policies are paired. One Interval for each number, `n` counts tasks.
    Efron (1987), https://doi.org/10.2307/2289144; acceleration from a jackknife over groups of tasks. A metric that is
    undefined (NaN) in more than 1 % of the resamples has NaN bounds.
    """
    task = label_codes("tasks", tasks, np.size(tasks))
    if not task.size:
        raise InputError("tasks", "found no rows", "A bootstrap needs at least one request.")
    rows = _TaskRows(task)
    estimate = np.atleast_1d(np.asarray(metric(np.arange(task.size)), dtype=np.float64))
    if rows.tasks == 1:
        return [Interval(float(value), math.nan, math.nan, 1) for value in estimate]
    draws = np.array([np.atleast_1d(metric(rows.draw(rng))) for _ in range(resamples)], dtype=np.float64)
    left_out = np.array([np.atleast_1d(metric(part)) for part in rows.leave_out(rng)], dtype=np.float64)
    bounds = [_bca(*columns, confidence) for columns in zip(estimate, draws.T, left_out.T, strict=True)]
    return [Interval(float(value), lo, hi, rows.tasks) for value, (lo, hi) in zip(estimate, bounds, strict=True)]


class _TaskRows:
    """The row indices of each task, side by side, so that drawing tasks is a few array operations."""

    def __init__(self, task: IntArray) -> None:
        self._order = np.argsort(task, kind="stable")
        self._count = np.bincount(task)
        self._start = np.cumsum(self._count) - self._count
        self.tasks = self._count.size

    def of(self, tasks: IntArray) -> IntArray:
        """Rows of these tasks, repeated as often as the task is."""
        count = self._count[tasks]
        offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        rows: IntArray = self._order[np.repeat(self._start[tasks], count) + offset]
        return rows

    def draw(self, rng: np.random.Generator) -> IntArray:
        return self.of(rng.integers(0, self.tasks, self.tasks))

    def leave_out(self, rng: np.random.Generator) -> Iterator[IntArray]:
        """All rows but those of one group of tasks, for each group; groups are random, or skewness would be lost."""
        shuffled = rng.permutation(self.tasks)
        for group in np.array_split(np.arange(self.tasks), min(self.tasks, _JACKKNIFE_GROUPS)):
            yield self.of(np.delete(shuffled, group))


def _bca(estimate: np.float64, draws: FloatArray, left_out: FloatArray, confidence: float) -> tuple[float, float]:
    """Percentiles of the draws, moved by the bias and the acceleration of the metric."""
    defined = draws[~np.isnan(draws)]
    if math.isnan(estimate) or defined.size < (1 - _UNDEFINED_ALLOWED) * draws.size:
        return math.nan, math.nan
    below = (np.mean(defined < estimate) + np.mean(defined <= estimate)) / 2  # ties count half: no bias among equals
    bias = stats.norm.ppf(np.clip(below, 0.5 / defined.size, 1 - 0.5 / defined.size))
    influence = np.nanmean(left_out) - left_out[~np.isnan(left_out)] if not np.isnan(left_out).all() else np.zeros(1)
    spread = float(influence @ influence)
    acceleration = float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    z = bias + stats.norm.ppf([1 - upper_probability(confidence), upper_probability(confidence)])
    # A denominator near 0 is the limit of extreme skewness: the bound becomes the outermost draw, and never wraps round.
    lo, hi = np.quantile(defined, stats.norm.cdf(bias + z / np.maximum(1 - acceleration * z, 1e-3)))
    return float(lo), float(hi)
