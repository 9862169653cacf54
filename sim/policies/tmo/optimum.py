"""The constrained optimum of dialogues whose truth is known: most expected reward at a mean cost per dialogue within a budget.

An answer's expected reward depends on its turn, its action and the history (who answered last, what was seen so far), and the history
on the actions alone, never on chance. So for a price `rate` per unit of cost the best plan of a dialogue comes exactly from a dynamic
program backwards over its turns (Bellman 1957),

    V[t](last, seen) = max over a of  reward[t](last, seen, a) - rate cost[t](a) + V[t + 1](tier of a, seen + modalities of a),

and the sum of all dialogues' V plus rate x budget bounds what any policy gets that keeps the budget, whatever it foresees
(Lagrange; Everett 1963). The smallest bound lies at the rate for which a plan within the budget and one beyond it are both best: from
one such pair, the rate at which the two are worth the same gives the next, until no third plan is better there (as in Dinkelbach 1967).
The plan takes the cheaper of the two, then moves dialogues to the dearer one as long as the budget lasts; it falls short of the bound by
less than one dialogue's move, and by how much is told (`Plan.gap`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
_EQUAL = 1e-12


class Step(NamedTuple):
    """Turn t of the dialogues that are long enough to have one: `rows` numbers them.

    `reward` has shape (dialogues, seen, actions), without what a change of the model costs, `cost` (dialogues, actions).
    """

    rows: IntArray
    reward: FloatArray
    cost: FloatArray


@dataclass(frozen=True)
class Dialogues:
    """Dialogues with the same actions, turn by turn.

    `seen` counts sets of modalities as bit masks; `tier` (actions,) and `mask` (actions,) say where an action runs and what it shows;
    `switch[last, a]` is what it costs that `last` answered the turn before, the last row standing for nobody. A reward is at
    least `floor` (dialogues by turn as in Step, actions), as a score is at least 0.
    """

    steps: Sequence[Step]
    floors: Sequence[FloatArray]
    tier: IntArray
    mask: IntArray
    switch: FloatArray
    count: int

    @property
    def masks(self) -> int:
        """Sets of modalities."""
        return int(self.steps[0].reward.shape[1])


class Plan(NamedTuple):
    """An action per (dialogue, turn), -1 beyond its end; its mean reward and cost per dialogue; a bound no policy exceeds."""

    actions: IntArray
    reward: float
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How far below the optimum the plan can be at most, in reward per dialogue."""
        return self.bound - self.reward


class Best(NamedTuple):
    """Every dialogue's best plan for one rate: its actions (dialogues, turns), reward and cost (dialogues,)."""

    rate: float
    actions: IntArray
    reward: FloatArray
    cost: FloatArray


def best_plan(dialogues: Dialogues, budget: float, weights: FloatArray | None = None) -> Plan:
    """The plan of the module's docstring; `weights` (dialogues,) says how often each dialogue counts.

    `budget` is the mean cost per dialogue, in the unit of `Step.cost`. Raises ValueError, with the least mean cost there is, for one
    that no plan keeps.
    """
    share = np.full(dialogues.count, 1.0 / dialogues.count) if weights is None else weights / weights.sum()
    dear = best_for_rate(dialogues, 0.0)
    if share @ dear.cost <= budget:
        return Plan(dear.actions, float(share @ dear.reward), float(share @ dear.cost), float(share @ dear.reward))
    cheap = _affordable(dialogues, budget, share)
    bound = min(_bound(best, budget, share) for best in (dear, cheap))
    while (rate := _rate_between(cheap, dear, share)) is not None:
        middle = best_for_rate(dialogues, rate)
        better = float(share @ (middle.reward - cheap.reward - rate * (middle.cost - cheap.cost)))
        bound = min(bound, _bound(middle, budget, share))
        if better <= _EQUAL:  # both ends are as good at this rate: it is the one
            break
        if share @ middle.cost <= budget:
            cheap = middle
        else:
            dear = middle
    actions, reward, cost = _filled_up(cheap, dear, budget, share)
    return Plan(actions, float(share @ reward), float(share @ cost), bound)


def _rate_between(cheap: Best, dear: Best, share: FloatArray) -> float | None:
    """What a unit of cost gains from one plan to the other; None where they cost the same."""
    more = float(share @ (dear.cost - cheap.cost))
    return float(share @ (dear.reward - cheap.reward)) / more if more > 0.0 else None


def _affordable(dialogues: Dialogues, budget: float, share: FloatArray) -> Best:
    """A plan that keeps the budget, for a rate high enough."""
    least = share @ np.array(_least_costs(dialogues))
    if least > budget * (1 + _EQUAL) + _EQUAL:
        raise ValueError(f"{least:.6g}")
    rate = 1.0
    while True:
        best = best_for_rate(dialogues, rate)
        if share @ best.cost <= budget or rate > 1e18:
            return best
        rate *= 4.0


def _least_costs(dialogues: Dialogues) -> FloatArray:
    """The least each dialogue can cost."""
    least = np.zeros(dialogues.count)
    for step in dialogues.steps:
        least[step.rows] += step.cost.min(axis=1)
    return least


def _bound(best: Best, budget: float, share: FloatArray) -> float:
    return float(share @ (best.reward - best.rate * best.cost) + best.rate * budget)


def _filled_up(cheap: Best, dear: Best, budget: float, share: FloatArray) -> tuple[IntArray, FloatArray, FloatArray]:
    """Move dialogues from the cheaper plan to the dearer one, best value first, as far as the budget lasts."""
    gain, more = dear.reward - cheap.reward, share * (dear.cost - cheap.cost)
    actions, reward, cost = cheap.actions.copy(), cheap.reward.copy(), cheap.cost.copy()
    left = budget - share @ cheap.cost
    worth = np.flatnonzero((gain > 0) & (more > 0))
    free = np.flatnonzero((gain >= 0) & (more <= 0) & ((gain > 0) | (more < 0)))
    for row in [*free, *worth[np.argsort(-gain[worth] / more[worth], kind="stable")]]:
        if more[row] <= left:
            left -= more[row]
            actions[row], reward[row], cost[row] = dear.actions[row], dear.reward[row], dear.cost[row]
    return actions, reward, cost


def best_for_rate(dialogues: Dialogues, rate: float) -> Best:
    """Every dialogue's best plan where a unit of cost takes `rate` off the reward."""
    values = [np.zeros((dialogues.count, len(dialogues.switch), dialogues.masks))]
    choices: list[IntArray] = []
    for number in reversed(range(len(dialogues.steps))):
        rows = dialogues.steps[number].rows
        worth = worth_of(dialogues, number, rate, values[-1][rows])
        choice = worth.argmax(axis=-1)  # (rows, last, seen)
        value = np.zeros_like(values[0])
        value[rows] = np.take_along_axis(worth, choice[..., np.newaxis], axis=-1)[..., 0]
        choices.append(choice)
        values.append(value)
    return followed(dialogues, rate, choices[::-1])


def worth_of(dialogues: Dialogues, number: int, rate: float, after: FloatArray) -> FloatArray:
    """What each action is worth at turn `number`, shape (rows, last, seen, actions); `after` (rows, last, seen) is what comes then."""
    rewards, seen = rewards_of(dialogues, number), np.arange(dialogues.masks)[:, np.newaxis] | dialogues.mask
    cost = dialogues.steps[number].cost[:, np.newaxis, np.newaxis, :]
    worth: FloatArray = rewards - rate * cost + after[:, dialogues.tier, seen][:, np.newaxis]
    return worth


def rewards_of(dialogues: Dialogues, number: int) -> FloatArray:
    """The expected rewards at turn `number`, shape (rows, last, seen, actions)."""
    step = dialogues.steps[number]
    rewards: FloatArray = np.maximum(
        step.reward[:, np.newaxis] - dialogues.switch[:, np.newaxis, :], dialogues.floors[number][:, np.newaxis, np.newaxis]
    )  # fmt: skip
    return rewards


def followed(dialogues: Dialogues, rate: float, choices: Sequence[IntArray]) -> Best:
    """The plans that the choices make from the first turn on."""
    count = dialogues.count
    actions = np.full((count, len(choices)), -1)
    reward, cost = np.zeros(count), np.zeros(count)
    last, seen = np.full(count, len(dialogues.switch) - 1), np.zeros(count, dtype=np.intp)
    for number, choice in enumerate(choices):
        step = dialogues.steps[number]
        rows, places = step.rows, np.arange(len(step.rows))
        action = choice[places, last[rows], seen[rows]]
        plain = step.reward[places, seen[rows], action] - dialogues.switch[last[rows], action]
        reward[rows] += np.maximum(plain, dialogues.floors[number][places, action])
        cost[rows] += step.cost[places, action]
        actions[rows, number] = action
        last[rows], seen[rows] = dialogues.tier[action], seen[rows] | dialogues.mask[action]
    return Best(rate, actions, reward, cost)
