"""The multipliers: what a step's signal says, how dual ascent moves, and budgets given as a range."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from sim.tmo.constraint import Multipliers, Rule
from workloads.errors import InputError


def column(*values: float) -> np.ndarray:
    """One budget, an episode a row."""
    return np.array(values)[:, np.newaxis]


def test_signals_add_up_to_what_is_held_down() -> None:
    """chance: 0 within the budget, 1 + excess share beyond it; mean: the share spent; zero and none: nothing."""
    budget, spent = column(10.0, 10.0), [column(0.0, 0.0), column(4.0, 6.0), column(9.0, 12.0), column(10.0, 15.0)]

    def total(rule: Rule) -> list[float]:
        steps = [rule.signals(before, after, budget) for before, after in pairwise(spent)]
        return np.sum(steps, axis=0)[:, 0].tolist()

    assert total(Rule("chance")) == pytest.approx([0.0, 1.5])
    assert total(Rule("mean")) == pytest.approx([1.0, 1.5])
    assert total(Rule("zero")) == total(Rule("none")) == [0.0, 0.0]
    crossing = Rule("chance").signals(column(9.0), column(12.0), column(10.0))
    assert crossing.tolist() == [[pytest.approx(1.2)]]  # told to the very step that broke the budget


def test_a_multiplier_rises_while_its_budget_is_broken_and_falls_after() -> None:
    """Dual ascent by rate x (mean / target - 1), cut off at 1, never below 0 nor above the most; its steps shrink to nothing."""
    multipliers = Multipliers(Rule("chance", tolerance=0.1, rate=0.25, gain=0.0, most=3.0), [False])

    def after(*breaches: float, remaining: float = 1.0) -> float:
        multipliers.add(np.zeros((len(breaches), 1)), column(*breaches))
        multipliers.update(remaining)
        return float(multipliers.values[0][0])

    assert after(1.0, 0.0) == pytest.approx(0.5)
    assert after(*[0.0] * 19, 1.0) == pytest.approx(0.25)
    assert after(0.15, remaining=0.5) == pytest.approx(0.375)
    assert after(1.5, remaining=0.0) == pytest.approx(0.375)
    assert [after(1.5) for _ in range(20)][-1] == 3.0
    assert [after(0.0) for _ in range(20)][-1] == 0.0


@pytest.mark.parametrize("keep", ["zero", "none"])
def test_without_a_rule_that_learns_nothing_moves(keep: str) -> None:
    """The authors' shaping and no rule at all have no multiplier."""
    multipliers = Multipliers(Rule(keep), [False])  # type: ignore[arg-type]
    multipliers.add(column(0.0), column(5.0))
    multipliers.update()
    assert multipliers.values[0].tolist() == [0.0]


def test_a_range_of_budgets_has_multipliers_of_its_own() -> None:
    """Only the knots beside a budget move with its episodes; between knots the multiplier is interpolated."""
    multipliers = Multipliers(Rule("mean", rate=1.0, margin=0.0, gain=0.0, knots=3), [True])
    multipliers.add(column(*[0.0] * 8), column(*[2.0] * 8))
    multipliers.add(column(*[1.0] * 8), column(*[0.5] * 8))
    multipliers.update()
    assert multipliers.values[0].tolist() == [1.0, 0.0, 0.0]
    assert multipliers.at(column(0.0, 0.25, 0.5, 1.0))[:, 0].tolist() == [1.0, 0.5, 0.0, 0.0]


def test_several_budgets_have_a_multiplier_each() -> None:
    """The broken one rises alone."""
    multipliers = Multipliers(Rule("mean", rate=1.0, margin=0.0, gain=0.0), [False, False])
    multipliers.add(np.zeros((4, 2)), np.tile([1.5, 0.5], (4, 1)))
    multipliers.update()
    assert multipliers.at(np.zeros((1, 2))).tolist() == [[0.5, 0.0]]


def test_a_tolerance_is_a_share() -> None:
    """0 and 1 are none."""
    for tolerance in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="between 0 and 1"):
            Rule(tolerance=tolerance)


def test_the_proportional_part_answers_at_once_and_leaves_nothing_behind() -> None:
    """It is there while the constraint is broken, and gone when it is met; the integral part stays."""
    multipliers = Multipliers(Rule("mean", rate=0.1, margin=0.0, gain=5.0), [False])
    multipliers.add(column(0.0), column(3.0))
    multipliers.update()
    assert multipliers.values[0].tolist() == [pytest.approx(0.6)]
    multipliers.add(column(0.0), column(1.0))
    multipliers.update()
    assert multipliers.values[0].tolist() == [pytest.approx(0.1)]
