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


class _Step(NamedTuple):
    """A task moved from one choice to a dearer one with a higher score; `rate` is price per score."""

    rate: float
    gain: float
    task: int
    to: int


def _solve(scores: Sequence[FloatArray], prices: Sequence[FloatArray], need: float) -> list[int]:
    """Indices of the chosen ones; `need` is what the tasks' lowest scores lack."""
    steps = [step for task in range(len(scores)) for step in _hull_steps(task, scores[task], prices[task])]
    picked, greedy = [0] * len(scores), [0] * len(scores)
    for step in sorted(steps, key=lambda step: step.rate):  # best value first, until the target is reached
        greedy[step.task] = step.to
        if step.gain >= need - SLACK:
            break
        picked[step.task] = step.to
        need -= step.gain
    else:
        return greedy  # all there is, and no more: the target is the best score
    most = step.rate * max(0.0, step.gain - need)  # what the greedy plan loses against the relaxation
    core = _core(scores, prices, picked, step.rate, most)
    for power in (
        range(8, -1, -1) if most > 0 else ()
    ):  # the less may be lost, the fewer choices there are to go through
        changes = _improve(core, step.rate, need, most / 4**power)
        if changes is not None:
            return [changes.get(task, index) for task, index in enumerate(picked)]
    return greedy


def _hull_steps(task: int, scores: FloatArray, prices: FloatArray) -> list[_Step]:
    """Steps along the lower convex hull of (score, price), each dearer per score than the one before."""
    hull: list[_Step] = []
    for point in range(1, len(scores)):
        while True:
            start = hull[-1].to if hull else 0
            gain = float(scores[point] - scores[start])
            rate = float(prices[point] - prices[start]) / gain
            if not hull or rate > hull[-1].rate:
                break
            hull.pop()
        hull.append(_Step(rate, gain, task, point))
    return hull


class _Core(NamedTuple):
    """A task that may change its choice: what each way adds in score and loses; no change first, then the least loss."""

    task: int
    ways: IntArray
    gains: FloatArray
    losses: FloatArray


def _core(
    scores: Sequence[FloatArray], prices: Sequence[FloatArray], picked: Sequence[int], rate: float, most: float
) -> list[_Core]:
    """The tasks with another choice that loses at most `most`, the smallest loss first."""
    core = []
    for task, now in enumerate(picked):
        gains = scores[task] - scores[task][now]
        losses = np.maximum(prices[task] - prices[task][now] - rate * gains, 0.0)
        losses[now] = -1.0  # comes first
        ways = np.argsort(losses, kind="stable")[: np.count_nonzero(losses <= most)]
        losses[now] = 0.0
        if len(ways) > 1:
            core.append(_Core(task, ways, gains[ways], losses[ways]))
    return sorted(core, key=lambda member: float(member.losses[1]))


def _improve(core: Sequence[_Core], rate: float, need: float, most: float) -> dict[int, int] | None:
    """The changes that gain `need` in score at the least loss, if there are some that lose at most `most`."""
    core = core[: sum(float(member.losses[1]) <= most for member in core)]
    rise = np.cumsum([0.0, *(float(member.gains.max()) for member in reversed(core))])[::-1]
    fall = np.cumsum([0.0, *(float(member.gains.min()) for member in reversed(core))])[::-1]
    gained, lost = np.zeros(1), np.zeros(1)
    trail: list[tuple[IntArray, IntArray]] = []
    for number, member in enumerate(core, start=1):
        all_gained = np.round((gained[:, np.newaxis] + member.gains).ravel(), _DIGITS)
        all_lost = (lost[:, np.newaxis] + member.losses).ravel()
        surplus = np.maximum(all_gained + fall[number] - need, 0.0)  # what cannot be avoided any more
        kept = np.flatnonzero((all_gained + rise[number] >= need - SLACK) & (all_lost + rate * surplus <= most))
        kept = kept[_pareto(all_gained[kept], all_lost[kept] + rate * all_gained[kept])]
        gained, lost = all_gained[kept], all_lost[kept]
        trail.append((kept // len(member.ways), kept % len(member.ways)))
    enough = np.flatnonzero(gained >= need - SLACK)
    if not enough.size:
        return None
    state = int(enough[np.argmin(lost[enough] + rate * gained[enough])])
    changes = {}
    for member, (parents, ways) in zip(reversed(core), reversed(trail), strict=True):
        changes[member.task] = int(member.ways[ways[state]])
        state = int(parents[state])
    return changes


def _pareto(gained: FloatArray, price: FloatArray) -> IntArray:
    """Indices of the states that no other has more score than at no higher a price."""
    order = np.lexsort((price, -gained))
    ranked = price[order]
    before = np.concatenate(([np.inf], np.minimum.accumulate(ranked[:-1])))
    kept: IntArray = order[ranked < before]
    return kept
