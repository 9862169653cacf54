"""The same optimum under other rules: a budget that every dialogue keeps by itself, and a planner that foresees no turn.

With a budget per dialogue the trade is no longer between dialogues, and prices do not reach every plan. All plans are: a dialogue's
partial plans that end in the same history compete, and those that another beats in cost and reward at once are dropped (Martins 1984,
"On a multicriteria shortest path problem"), which is exact.

Who foresees nothing knows how good every action is now, and of the turns to come only what they are worth on average in other
dialogues: V[t + 1] of optimum.py is averaged over those that have reached turn t, as 0 where they end there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sim.policies.tmo.optimum import (
    Dialogues,
    FloatArray,
    IntArray,
    Plan,
    best_for_rate,
    followed,
    worth_of,
)  # fmt: skip

_BISECTIONS = 40


class _Labels(NamedTuple):
    """Partial plans of one dialogue that no other beats: history (last, seen), cost, reward, and where each came from."""

    last: IntArray
    seen: IntArray
    cost: FloatArray
    reward: FloatArray
    parent: IntArray
    action: IntArray


def plan_each(dialogues: Dialogues, budget: float, tolerance: float = 0.0, weights: FloatArray | None = None) -> Plan:
    """The most reward where every dialogue's own cost keeps the budget, but for a share `tolerance` of them, chosen for the best.

    A dialogue that cannot keep it takes its cheapest plan. `Plan.bound` is the plan's own reward: it is exact.
    """
    share = np.full(dialogues.count, 1.0 / dialogues.count) if weights is None else weights / weights.sum()
    free = best_for_rate(dialogues, 0.0)
    actions, reward, cost = free.actions.copy(), free.reward.copy(), free.cost.copy()
    over = np.flatnonzero(free.cost > budget)
    for row in over:
        actions[row], cost[row], reward[row] = _within(dialogues, int(row), budget)
    left = tolerance + 1e-12
    for row in over[np.argsort((reward - free.reward)[over], kind="stable")]:
        if share[row] <= left and free.reward[row] > reward[row]:
            left -= share[row]
            actions[row], cost[row], reward[row] = free.actions[row], free.cost[row], free.reward[row]
    return Plan(actions, float(share @ reward), float(share @ cost), float(share @ reward))


def _within(dialogues: Dialogues, row: int, budget: float) -> tuple[IntArray, float, float]:
    """(actions, cost, reward) of a dialogue's best plan within the budget, or of its cheapest where none is."""
    turns = [number for number, step in enumerate(dialogues.steps) if row in step.rows]
    places = [int(np.searchsorted(dialogues.steps[number].rows, row)) for number in turns]
    least = [float(dialogues.steps[number].cost[place].min()) for number, place in zip(turns, places, strict=True)]
    most = max(budget, sum(least))
    zero, nobody = np.zeros(1, dtype=np.intp), np.array([len(dialogues.switch) - 1])
    trail = [_Labels(nobody, zero, np.zeros(1), np.zeros(1), zero, zero)]
    for number, place in zip(turns, places, strict=True):
        spare = most - sum(least[turns.index(number) + 1 :])
        trail.append(_extended(dialogues, number, place, trail[-1], spare * (1 + 1e-12)))
    end = int(np.lexsort((trail[-1].cost, -trail[-1].reward))[0])
    actions, at = np.full(len(dialogues.steps), -1), end
    for number, labels in zip(reversed(turns), reversed(trail), strict=False):
        actions[number], at = labels.action[at], labels.parent[at]
    return actions, float(trail[-1].cost[end]), float(trail[-1].reward[end])


def _extended(dialogues: Dialogues, number: int, place: int, before: _Labels, most: float) -> _Labels:
    """The partial plans with one more turn that cost `most` at most, without those that another beats."""
    step, floor = dialogues.steps[number], dialogues.floors[number]
    plain = step.reward[place][before.seen] - dialogues.switch[before.last]
    reward = before.reward[:, np.newaxis] + np.maximum(plain, floor[place])
    cost = before.cost[:, np.newaxis] + step.cost[place]
    parent, action = np.nonzero(cost <= most)
    last, seen = dialogues.tier[action], before.seen[parent] | dialogues.mask[action]
    spent, gained = cost[parent, action], reward[parent, action]
    history = last * dialogues.masks + seen
    order = np.lexsort((-gained, spent, history))
    span = float(np.ptp(gained)) + 1.0
    risen = gained[order] + span * 2 * history[order]  # histories one above the other, so that one running maximum does
    best = np.maximum.accumulate(risen)
    kept = order[np.concatenate(([True], risen[1:] > best[:-1]))]
    return _Labels(last[kept], seen[kept], spent[kept], gained[kept], parent[kept], action[kept])


def plan_unforeseen(own: Dialogues, others: Dialogues, budget: float, weights: FloatArray | None = None) -> Plan:
    """The planner that foresees nothing on `own`, with futures and the rate learned from `others`; no bound (NaN).

    The rate is the lowest at which the others' mean cost keeps the budget; its own cost may differ by chance.
    """
    share = np.full(own.count, 1.0 / own.count) if weights is None else weights / weights.sum()
    low, high = 0.0, 1.0
    while _decided(others, _futures(others, high), high)[2].mean() > budget and high < 1e18:
        high *= 4.0
    if _decided(others, _futures(others, low), low)[2].mean() <= budget:
        high = low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _decided(others, _futures(others, middle), middle)[2].mean() <= budget:
            high = middle
        else:
            low = middle
    actions, reward, cost = _decided(own, _futures(others, high), high)
    return Plan(actions, float(share @ reward), float(share @ cost), float("nan"))


def _futures(others: Dialogues, rate: float) -> list[FloatArray]:
    """After turn t: what is to come, shape (last, seen), in the mean over dialogues that have reached turn t."""
    after = np.zeros((len(others.switch), others.masks))
    found = [after]
    for number in reversed(range(1, len(others.steps))):
        rows = others.steps[number].rows
        value = worth_of(others, number, rate, np.broadcast_to(after, (len(rows), *after.shape))).max(axis=-1)
        after = value.sum(axis=0) / len(others.steps[number - 1].rows)
        found.append(after)
    return found[::-1]


def _decided(dialogues: Dialogues, futures: list[FloatArray], rate: float) -> tuple[IntArray, FloatArray, FloatArray]:
    """(actions, reward, cost) of the dialogues under the choice that is best with these futures."""
    choices = []
    for number, step in enumerate(dialogues.steps):
        after = futures[min(number, len(futures) - 1)]
        worth = worth_of(dialogues, number, rate, np.broadcast_to(after, (len(step.rows), *after.shape)))
        choices.append(worth.argmax(axis=-1))
    best = followed(dialogues, rate, choices)
    return best.actions, best.reward, best.cost
