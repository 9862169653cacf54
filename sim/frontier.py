"""Frontiers: what a family of policies achieves in the plane of cost and quality. Pure functions of points.

Two planes. (cost, quality): any non-negative cost (dollars, joules, seconds) and a quality such as accuracy.
(strong share, accuracy): the share of calls answered by the strong model, in [0, 1], where the weak model alone is the
point (0, weak) and the strong model alone is (1, strong).

In the second plane a family is the piecewise linear curve through its points: tossing a coin between two neighbouring
policies reaches every point of the chord, so linear interpolation is what can be had, not an approximation. Areas are
exact integrals of that curve. RouteLLM (arXiv:2406.18665) integrates over about ten sampled thresholds instead, which
approximates the same area, and averages few random routers, which is why its random line is not exactly 0.5.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from workloads.errors import InputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

_NO_GAP = 1e-12
"""A difference of accuracies (or areas) up to this size is rounding, not a gap that could be recovered."""


class RouterCurve(NamedTuple):
    """The operating points of one router, from nobody to everybody sent to the strong model.

    Point i sends every request with score >= threshold[i] to the strong model; threshold[0] is infinite.
    """

    strong_share: FloatArray
    accuracy: FloatArray
    threshold: FloatArray


def non_decreasing_hull(cost: npt.ArrayLike, quality: npt.ArrayLike) -> IntArray:
    """Indices of the vertices of the upper, concave, non-decreasing hull, by rising cost.

    The non-decreasing convex hull of RouterBench (arXiv:2403.12031): it starts at the cheapest point, ends at the
    cheapest point of the highest quality, and quality rises strictly between. Points on an edge are no vertices.
    """
    costs, qualities = _points("cost", cost, "quality", quality)
    hull: list[int] = []
    for point in _frontier_order(costs, qualities):
        while len(hull) >= 2 and not _turns_down(costs, qualities, hull[-2], hull[-1], int(point)):
            hull.pop()
        hull.append(int(point))
    return np.array(hull, dtype=np.intp)


def pareto(cost: npt.ArrayLike, quality: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which points no other point beats: none is as cheap and as good, and better in one of the two.

    Points that coincide on the frontier are all kept.
    """
    costs, qualities = _points("cost", cost, "quality", quality)
    frontier = _frontier_order(costs, qualities)
    place = np.searchsorted(costs[frontier], costs, side="right") - 1
    nearest = frontier[place]
    mask: npt.NDArray[np.bool_] = (costs == costs[nearest]) & (qualities == qualities[nearest])
    return mask


def aiq(
    cost: npt.ArrayLike,
    quality: npt.ArrayLike,
    max_cost: float,
    min_cost: float = 0.0,
    left: Literal["null", "zero"] = "null",
) -> float:
    """Average quality of the non-decreasing hull over costs from `min_cost` to `max_cost`, in units of quality.

    RouterBench's AIQ (arXiv:2403.12031): the area under the hull divided by the cost range. Give every family that is
    compared the same range; RouterBench takes the dearest point of all families as `max_cost`.
    To the right of its best point a family keeps that quality: the rest of the budget is not spent. To the left of its
    cheapest point, left="null" mixes with a null system that costs nothing and is never right, so the hull starts at
    (0, 0); left="zero" counts quality 0 there, as RouterBench's published code does. Both assume quality >= 0.
    """
    costs, qualities = _points("cost", cost, "quality", quality)
    if costs.min() < 0:
        raise InputError("cost", f"found {costs.min():g}", "Costs must not be negative.")
    if not 0 <= min_cost < max_cost < math.inf:
        raise InputError("cost range", f"found [{min_cost:g}, {max_cost:g}]", "It must satisfy 0 <= min < max.")
    if left == "null":
        costs, qualities = np.append(costs, 0.0), np.append(qualities, 0.0)
    hull = non_decreasing_hull(costs, qualities)
    start = max(min_cost, float(costs[hull[0]]))  # nothing can be bought to the left of the hull
    if start >= max_cost:
        return 0.0
    inside = costs[hull][(costs[hull] > start) & (costs[hull] < max_cost)]
    grid = np.concatenate(([start], inside, [max_cost]))
    return float(np.trapezoid(np.interp(grid, costs[hull], qualities[hull]), grid)) / (max_cost - min_cost)


def hypervolume(cost: npt.ArrayLike, quality: npt.ArrayLike, reference: tuple[float, float]) -> float:
    """Area of the plane that the family dominates, up to the reference point (cost, quality): a dear, poor system.

    Unit: cost times quality. Points that do not beat the reference in both count nothing. Families are comparable only
    under one reference.
    """
    costs, qualities = _points("cost", cost, "quality", quality)
    frontier = _frontier_order(costs, qualities)
    frontier = frontier[(costs[frontier] < reference[0]) & (qualities[frontier] > reference[1])]
    widths = np.diff(costs[frontier], append=reference[0])
    return float(widths @ (qualities[frontier] - reference[1]))


def pgr(accuracy: npt.ArrayLike, weak: float, strong: float) -> FloatArray:
    """Performance gap recovered: (accuracy - weak) / (strong - weak), RouteLLM (arXiv:2406.18665).

    0 is the weak model, 1 the strong one; NaN where the strong model is no better, since there is no gap to recover.
    """
    values = np.asarray(accuracy, dtype=np.float64)
    if not strong - weak > _NO_GAP:
        return np.full(values.shape, math.nan)
    return (values - weak) / (strong - weak)


def apgr(strong_share: npt.ArrayLike, accuracy: npt.ArrayLike, weak: float, strong: float) -> float:
    """Average PGR over strong shares from 0 to 1: the exact area under the family's curve of PGR.

    A random mix has 0.5, a perfect router may exceed 1 (it avoids the strong model's own mistakes); NaN without a gap.
    """
    shares, accuracies = _anchored(strong_share, accuracy, weak, strong)
    return float(np.trapezoid(pgr(accuracies, weak, strong), shares))


def cpt(x: float, strong_share: npt.ArrayLike, accuracy: npt.ArrayLike, weak: float, strong: float) -> float:
    """Call-performance threshold: the smallest strong share at which the family's curve reaches PGR `x`.

    RouteLLM's CPT(50) is cpt(0.5, ...) in shares, not percent. NaN if the curve never reaches `x` or there is no gap.
    """
    shares, accuracies = _anchored(strong_share, accuracy, weak, strong)
    recovered = pgr(accuracies, weak, strong)
    reached = np.flatnonzero(recovered >= x - _NO_GAP)
    if not reached.size:
        return math.nan
    end = int(reached[0])
    if end == 0:
        return 0.0
    part = (x - recovered[end - 1]) / (recovered[end] - recovered[end - 1])
    return float(shares[end - 1] + min(part, 1.0) * (shares[end] - shares[end - 1]))


def oracle_gap_closed(
    strong_share: npt.ArrayLike, accuracy: npt.ArrayLike, oracle: RouterCurve, weak: float, strong: float
) -> float:
    """Share of the area between the random line and the oracle's curve that the family closes.

    (F - R) / (O - R), where F and O are the areas under the family's and the oracle's accuracy over strong shares from
    0 to 1 and R = (weak + strong) / 2 is the area under the straight line of random mixes. 1 is the oracle, 0 a random
    mix, below 0 worse than random. NaN where the oracle gains nothing. Unlike APGR it needs no gap between the models.
    """
    random_area = (weak + strong) / 2
    family_area = _area(*_anchored(strong_share, accuracy, weak, strong))
    oracle_area = _area(*_anchored(oracle.strong_share, oracle.accuracy, weak, strong))
    if oracle_area - random_area <= _NO_GAP:
        return math.nan
    return (family_area - random_area) / (oracle_area - random_area)


def router_curve(scores: npt.ArrayLike, weak_correct: npt.ArrayLike, strong_correct: npt.ArrayLike) -> RouterCurve:
    """Every operating point of a router that sends the requests of the highest score to the strong model first.

    `scores` has one number per request; `weak_correct` and `strong_correct` are each model's grade of that request,
    booleans or numbers in [0, 1]. Equal scores cannot be told apart: the curve has no point inside such a group, and
    the straight line across it is the expected accuracy of picking its members at random.
    """
    values, weak = _points("scores", scores, "weak_correct", weak_correct)
    _, strong = _points("scores", scores, "strong_correct", strong_correct)
    levels, group = np.unique(-values, return_inverse=True)  # unique sorts upwards: the highest score comes first
    gain = np.bincount(group, weights=strong - weak, minlength=levels.size)
    count = np.bincount(group, minlength=levels.size)
    weak_mean, strong_mean = float(weak.mean()), float(strong.mean())
    accuracy = weak_mean + np.concatenate(([0.0], np.cumsum(gain))) / values.size
    accuracy[-1] = strong_mean  # the same number, without the rounding of the running sum
    share = np.concatenate(([0.0], np.cumsum(count) / values.size))
    return RouterCurve(share, accuracy, np.concatenate(([math.inf], -levels)))


def oracle_curve(weak_correct: npt.ArrayLike, strong_correct: npt.ArrayLike) -> RouterCurve:
    """The best accuracy at exactly each strong share: first the requests that only the strong model gets right.

    It ends at (1, strong), so it falls where the strong model fails on what the weak one knows. Where a share is only
    a ceiling, `non_decreasing_hull` of this curve is the oracle.
    """
    weak, strong = _points("weak_correct", weak_correct, "strong_correct", strong_correct)
    return router_curve(strong - weak, weak, strong)


def random_curve(weak_correct: npt.ArrayLike, strong_correct: npt.ArrayLike) -> RouterCurve:
    """The expected accuracy of sending a random share to the strong model: a straight line from weak to strong."""
    weak, strong = _points("weak_correct", weak_correct, "strong_correct", strong_correct)
    return router_curve(np.zeros(weak.size), weak, strong)


def _points(x_name: str, x: npt.ArrayLike, y_name: str, y: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Both columns as finite float arrays of one length, at least one point long."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if xs.ndim != 1 or xs.shape != ys.shape:
        problem = f"found shapes {xs.shape} and {ys.shape}"
        raise InputError(f"{x_name} and {y_name}", problem, "Give two lists of the same length.")
    if not xs.size:
        raise InputError(f"{x_name} and {y_name}", "found no points", "A frontier needs at least one point.")
    for name, column in ((x_name, xs), (y_name, ys)):
        if not np.isfinite(column).all():
            bad = int(np.flatnonzero(~np.isfinite(column))[0])
            raise InputError(f"{name}[{bad}]", f"found {column[bad]}", "Leave out points that were not measured.")
    return xs, ys


def _frontier_order(costs: FloatArray, qualities: FloatArray) -> IntArray:
    """One index for each distinct point of the Pareto frontier, by rising cost and rising quality."""
    order = np.lexsort((-qualities, costs))
    ranked = qualities[order]
    best_before = np.concatenate(([-math.inf], np.maximum.accumulate(ranked)[:-1]))
    frontier: IntArray = order[ranked > best_before]
    return frontier


def _turns_down(costs: FloatArray, qualities: FloatArray, first: int, middle: int, last: int) -> bool:
    """Whether the slope falls at `middle`, so that it lies strictly above the chord from `first` to `last`."""
    rise = (qualities[middle] - qualities[first]) * (costs[last] - costs[middle])
    return bool(rise > (qualities[last] - qualities[middle]) * (costs[middle] - costs[first]))


def _anchored(
    strong_share: npt.ArrayLike, accuracy: npt.ArrayLike, weak: float, strong: float
) -> tuple[FloatArray, FloatArray]:
    """The family's curve over [0, 1], by rising share, with both models' own points where the family lacks them.

    Points of one share are repeated measurements and count as their mean: the best of them would flatter the family.
    """
    shares, accuracies = _points("strong_share", strong_share, "accuracy", accuracy)
    if shares.min() < 0 or shares.max() > 1:
        raise InputError("strong_share", f"found values from {shares.min():g} to {shares.max():g}", "Allowed: 0 to 1.")
    order = np.lexsort((accuracies, shares))  # a fixed order of summation: the input's order never shows
    distinct, group = np.unique(shares[order], return_inverse=True)
    means = np.bincount(group, weights=accuracies[order]) / np.bincount(group)
    if distinct[0] > 0:
        distinct, means = np.concatenate(([0.0], distinct)), np.concatenate(([weak], means))
    if distinct[-1] < 1:
        distinct, means = np.append(distinct, 1.0), np.append(means, strong)
    return distinct, means


def _area(shares: FloatArray, accuracies: FloatArray) -> float:
    return float(np.trapezoid(accuracies, shares))
