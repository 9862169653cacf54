"""The multiple-choice knapsack behind the oracles, solved exactly.

One choice per task; the scores must add up to a target, the prices be as small as they can. Relaxing the target into a price
`rate` per unit of score (Lagrange) leaves each task a best choice on its own, and every other choice a loss >= 0. Whatever beats a
known plan has losses that add up to less than that plan's, so a dynamic program over the few choices of small loss finds the
optimum (Pisinger 1995, "A minimal algorithm for the multiple-choice knapsack problem"). Unlike an integer-programming library
it has no tolerance in either the target or the price beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

SLACK = 1e-9
"""Score a plan may lack of its target in all: sums of scores are rounded."""
_DIGITS = 12


class Choice(NamedTuple):
    """One way to place a task: its score, its price (whatever is minimised) and, per position, whether it runs large."""

    score: float
    price: float
    large: tuple[bool, ...] = ()


def undominated(choices: Iterable[Choice]) -> list[Choice]:
    """The choices that no other beats in score and price at once, by rising score; of equal ones the first."""
    cheapest: dict[float, Choice] = {}
    for choice in choices:
        known = cheapest.get(choice.score)
        if known is None or choice.price < known.price:
            cheapest[choice.score] = choice
    kept: list[Choice] = []
    for score in sorted(cheapest, reverse=True):
        if not kept or cheapest[score].price < kept[-1].price:
            kept.append(cheapest[score])
    return kept[::-1]


def cheapest_plan(choices: Sequence[Sequence[Choice]], counts: Sequence[int], least_score: float) -> list[Choice]:
    """One choice per task such that sum(counts * score) >= least_score and sum(counts * price) is as small as can be.

    `choices` holds the undominated ones of each task by rising score, `counts` how often the task is asked. Raises
    ValueError when no plan reaches `least_score`.
    """
    scores = [np.array([count * choice.score for choice in task]) for task, count in zip(choices, counts, strict=True)]
    prices = [np.array([count * choice.price for choice in task]) for task, count in zip(choices, counts, strict=True)]
    best = math.fsum(float(task[-1]) for task in scores)
    if best < least_score - SLACK:
        raise ValueError(f"no plan scores more than {best}")
    picked = [0] * len(choices)
    need = least_score - math.fsum(float(task[0]) for task in scores)
    if need > SLACK:
        picked = _solve(scores, prices, need)
    return [task[index] for task, index in zip(choices, picked, strict=True)]


def _solve(scores: Sequence[FloatArray], prices: Sequence[FloatArray], need: float) -> list[int]:
    """Indices of the chosen ones; `need` is what the tasks' lowest scores lack."""
    steps = sorted(
        (
            ((prices[task][to] - prices[task][start]) / (scores[task][to] - scores[task][start]), task, start, to)
            for task in range(len(scores))
            for start, to in _hull_steps(scores[task], prices[task])
        ),
        key=lambda step: step[0],
    )
    picked, greedy, rate = [0] * len(scores), [0] * len(scores), 0.0
    for rate, task, start, to in steps:  # best value first, until the target is reached
        gained = float(scores[task][to] - scores[task][start])
        greedy[task] = to
        if gained >= need - SLACK:
            break
        picked[task] = to
        need -= gained
    else:
        return greedy  # all there is, and no more: the target is the best score
    most = rate * max(0.0, gained - need)  # what the greedy plan loses against the relaxation
    for part in (1 / 256, 1 / 64, 1 / 16, 1 / 4, 1.0):
        changes = _improve(scores, prices, picked, rate, need, part * most)
        if changes is not None:
            return [changes.get(task, index) for task, index in enumerate(picked)]
    return greedy


def _hull_steps(scores: FloatArray, prices: FloatArray) -> list[tuple[int, int]]:
    """Steps between neighbours on the lower convex hull of (score, price), each dearer per score than the one before."""
    hull: list[int] = []
    for point in range(len(scores)):
        while len(hull) > 1 and (prices[hull[-1]] - prices[hull[-2]]) * (scores[point] - scores[hull[-1]]) >= (
            prices[point] - prices[hull[-1]]
        ) * (scores[hull[-1]] - scores[hull[-2]]):
            hull.pop()
        hull.append(point)
    return list(zip(hull, hull[1:], strict=False))


class _Core(NamedTuple):
    """A task that may change its choice: what each way adds in score and loses, the way of no change first."""

    task: int
    ways: IntArray
    gains: FloatArray
    losses: FloatArray


def _improve(
    scores: Sequence[FloatArray],
    prices: Sequence[FloatArray],
    picked: Sequence[int],
    rate: float,
    need: float,
    most: float,
) -> dict[int, int] | None:
    """The changes to `picked` that gain `need` at the least loss, if some do so at a loss of at most `most`."""
    core = []
    for task, now in enumerate(picked):
        gains = scores[task] - scores[task][now]
        losses = np.maximum(prices[task] - prices[task][now] - rate * gains, 0.0)
        losses[now] = 0.0
        ways = np.array([now, *(way for way in np.flatnonzero(losses <= most).tolist() if way != now)])
        if len(ways) > 1:
            core.append(_Core(task, ways, gains[ways], losses[ways]))
    core.sort(key=lambda task: float(task.losses[1:].min()))
    rise = np.cumsum([0.0, *(task.gains.max() for task in reversed(core))])[::-1]
    fall = np.cumsum([0.0, *(task.gains.min() for task in reversed(core))])[::-1]
    gained, lost = np.zeros(1), np.zeros(1)
    trail: list[tuple[IntArray, IntArray]] = []
    for number, task in enumerate(core, start=1):
        all_gained = np.round((gained[:, np.newaxis] + task.gains).ravel(), _DIGITS)
        all_lost = (lost[:, np.newaxis] + task.losses).ravel()
        surplus = np.maximum(all_gained + fall[number] - need, 0.0)  # what cannot be avoided any more
        kept = np.flatnonzero((all_gained + rise[number] >= need - SLACK) & (all_lost + rate * surplus <= most))
        kept = kept[_pareto(all_gained[kept], all_lost[kept] + rate * all_gained[kept])]
        gained, lost = all_gained[kept], all_lost[kept]
        trail.append((kept // len(task.ways), kept % len(task.ways)))
    enough = np.flatnonzero(gained >= need - SLACK)
    if not enough.size:
        return None
    state = int(enough[np.argmin(lost[enough] + rate * gained[enough])])
    changes = {}
    for task, (parents, ways) in zip(reversed(core), reversed(trail), strict=True):
        changes[task.task] = int(task.ways[ways[state]])
        state = int(parents[state])
    return changes


def _pareto(gained: FloatArray, price: FloatArray) -> IntArray:
    """Indices of the states that no other has more score than at no higher a price."""
    order = np.lexsort((price, -gained))
    ranked = price[order]
    before = np.concatenate(([np.inf], np.minimum.accumulate(ranked)[:-1]))
    kept: IntArray = order[ranked < before]
    return kept
