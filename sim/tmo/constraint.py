"""How a learner keeps a budget: a Lagrange multiplier learned by dual ascent, or the authors' zero reward for comparison.

The learner maximises reward - sum of lambda x signal, and lambda rises while the constraint is broken (Altman, Constrained Markov
Decision Processes, 1999; Tessler et al., Reward Constrained Policy Optimization, ICLR 2019), with a proportional part that damps its
swings (Stooke et al., Responsive Safety in Reinforcement Learning by PID Lagrangian Methods, ICML 2020):

    chance   P(C > b) <= tolerance, for the cost C of an episode and its budget b. The signal of a step is what it adds to
             1[C > b] + max(0, C - b) / b, whose mean is held at or below the tolerance; so is the share of episodes over budget,
             which is never larger.
    mean     E[C] <= b. The signal of a step is its cost / b, whose sum is held at or below 1 - margin in the mean.
    zero     no multiplier: a step gives reward 0 once its episode is over budget (the authors' shaping).
    none     budgets are shown and counted, nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from workloads.errors import InputError

Array = npt.NDArray[np.float64]
Keep = Literal["chance", "mean", "zero", "none"]


@dataclass(frozen=True)
class Rule:
    """How budgets are kept."""

    keep: Keep = "chance"
    tolerance: float = 0.02
    """chance: how much of 1[C > b] + excess share is tolerated in the mean, and with it of episodes over budget."""
    margin: float = 0.03
    """mean: the share of the budget that is left as a reserve against chance."""
    rate: float = 0.2
    """mean: how far the integral part of a multiplier moves at most at a time, in rewards, at the beginning; it falls to 0. For a
    chance, whose prices are higher, twice as far."""
    gain: float = 3.0
    """Proportional part of a multiplier, as a multiple of the rate: it answers at once, and damps what the integral part overshoots."""
    most: float = 50.0
    """Largest multiplier."""
    knots: int = 5
    """Multipliers per budget that was given as a range; between them it is interpolated."""

    def __post_init__(self) -> None:
        if not 0.0 < self.tolerance < 1.0:
            raise InputError("tolerance", f"found {self.tolerance}", "Give a share of episodes between 0 and 1")

    @property
    def target(self) -> float:
        """What the sum of an episode's signals may be in the mean."""
        return self.tolerance if self.keep == "chance" else 1.0 - self.margin

    @property
    def step(self) -> float:
        """Of the dual ascent, in rewards."""
        return 2.0 * self.rate if self.keep == "chance" else self.rate

    def signals(self, before: Array, after: Array, budgets: Array) -> Array:
        """The signals of a step that took an episode's costs from `before` to `after`; all of shape (episodes, budgets)."""
        if self.keep == "chance":
            return self._breach(after / budgets) - self._breach(before / budgets)
        if self.keep == "mean":
            return (after - before) / budgets
        return np.zeros_like(after)

    @staticmethod
    def _breach(share: Array) -> Array:
        breach: Array = np.where(share > 1.0, share, 0.0)
        return breach


class Multipliers:
    """One multiplier per budget, or for a range of budgets one per knot, evenly spaced on its scale (0 to 1)."""

    def __init__(self, rule: Rule, ranged: list[bool]) -> None:
        self.rule = rule
        self.values = [np.zeros(rule.knots if many else 1) for many in ranged]
        self.integrals = [knots.copy() for knots in self.values]
        self._learned = rule.keep in ("chance", "mean")
        self.forget()

    def forget(self) -> None:
        """Drop the episodes that did not lead to an update yet."""
        self._weights = [np.zeros_like(knots) for knots in self.values]
        self._sums = [np.zeros_like(knots) for knots in self.values]
        self.episodes = 0

    def at(self, places: Array) -> Array:
        """The multipliers where budgets lie at `places`; both of shape (n, budgets)."""
        if not self.values:
            return np.zeros_like(places)
        return np.stack([self.hats(index, places[:, index]) @ knots for index, knots in enumerate(self.values)], axis=1)

    def add(self, places: Array, totals: Array) -> None:
        """Episodes that ended: where their budgets lay and the sums of their signals, both of shape (n, budgets)."""
        for index in range(len(self.values)):
            hats = self.hats(index, places[:, index])
            self._weights[index] += hats.sum(axis=0)
            self._sums[index] += hats.T @ totals[:, index]
        self.episodes += len(places)

    def update(self, remaining: float = 1.0) -> None:
        """Dual ascent on the episodes added since the last update, by the share of its target by which each constraint is broken.

        The share is cut off at 1, so that a constraint that is far off moves its multiplier no faster up than down. `remaining` is
        the share of the training to come: steps that shrink let a policy settle at its price (Robbins and Monro 1951).
        """
        if self._learned:
            step = self.rule.step
            for index, integral in enumerate(self.integrals):
                weights, target = self._weights[index], self.rule.target
                mean = np.divide(self._sums[index], weights, out=np.full_like(weights, target), where=weights > 0)
                broken = np.clip(mean / target - 1.0, -1.0, 1.0) * np.minimum(weights, 1.0)
                self.integrals[index] = np.clip(integral + step * remaining * broken, 0.0, self.rule.most)
                proportional = self.rule.gain * step * remaining * broken
                self.values[index] = np.clip(self.integrals[index] + proportional, 0.0, self.rule.most)
        self.forget()

    def hats(self, index: int, places: Array) -> Array:
        """How much each knot counts at `places`: (n, knots), rows add up to 1."""
        last = len(self.values[index]) - 1
        if not last:
            return np.ones((len(places), 1))
        distance = np.abs(np.clip(places, 0.0, 1.0)[:, None] * last - np.arange(last + 1))
        hats: Array = np.maximum(0.0, 1.0 - distance)
        return hats
