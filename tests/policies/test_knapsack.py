"""The multiple-choice knapsack against brute force and an integer-programming library."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from sim.policies.knapsack import Choice, cheapest_plan, undominated

Task = tuple[list[Choice], int]
"""A task's undominated choices, and how often it is asked."""


def tasks(
    scores: st.SearchStrategy[float], prices: st.SearchStrategy[float], most: int
) -> st.SearchStrategy[list[Task]]:
    """Up to `most` tasks of up to four choices."""
    choice = st.tuples(scores, prices).map(lambda pair: Choice(*pair))
    task = st.lists(choice, min_size=1, max_size=4).map(undominated)
    return st.lists(st.tuples(task, st.integers(1, 3)), min_size=1, max_size=most)


def total(plan: Sequence[Choice], counts: Sequence[int], field: str) -> float:
    """What a plan scores or costs in all."""
    return math.fsum(count * getattr(choice, field) for choice, count in zip(plan, counts, strict=True))


def check_against_brute_force(drawn: list[Task], part: float) -> None:
    """The plan reaches its target, at the least price of all combinations."""
    choices, counts = [options for options, _ in drawn], [count for _, count in drawn]
    target = part * total([options[-1] for options in choices], counts, "score")
    plan = cheapest_plan(choices, counts, target)
    assert total(plan, counts, "score") >= target - 1e-9
    allowed = [every for every in itertools.product(*choices) if total(every, counts, "score") >= target]
    least = min((total(every, counts, "price") for every in allowed), default=math.inf)
    assert total(plan, counts, "price") <= least * (1 + 1e-12) + 1e-15


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 5)), min_size=1))
def test_undominated_choices(pairs: list[tuple[float, int]]) -> None:
    """What is kept rises in score and price and matches or beats all that is dropped; of equal choices the first stays."""
    choices = [Choice(score, price, (bool(i % 2),) * i) for i, (score, price) in enumerate(pairs)]
    kept = undominated(choices)
    assert all(a.score < b.score and a.price < b.price for a, b in itertools.pairwise(kept))
    assert all(any(k.score >= c.score and k.price <= c.price for k in kept) for c in choices)
    assert all(k == next(c for c in choices if c[:2] == k[:2]) for k in kept)


@settings(max_examples=200, deadline=None)
@given(tasks(st.sampled_from([0.0, 1.0]), st.integers(0, 6).map(float), 6), st.floats(0, 1))
def test_right_and_wrong_answers(drawn: list[Task], part: float) -> None:
    """Scores of 0 and 1 and prices with many ties."""
    check_against_brute_force(drawn, part)


@settings(max_examples=200, deadline=None)
@given(tasks(st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 2 / 3, 1.0]), st.floats(0, 1), 5), st.floats(0, 1))
def test_partial_scores(drawn: list[Task], part: float) -> None:
    """Scores such as graded queries have, whose sums are rounded."""
    check_against_brute_force(drawn, part)


@settings(max_examples=200, deadline=None)
@given(tasks(st.floats(0, 1).map(lambda x: round(x, 5)), st.floats(0, 1e-4), 5), st.floats(0, 1))
def test_small_prices(drawn: list[Task], part: float) -> None:
    """Prices as small as a request's cost in dollars are told apart as well as large ones."""
    check_against_brute_force(drawn, part)


def test_the_target_may_be_out_of_reach() -> None:
    """More than all best choices together is refused; exactly that much is not."""
    options = [Choice(0.0, 0.0), Choice(0.7, 2.0)]
    assert cheapest_plan([options] * 3, [1] * 3, 2.1) == [options[1]] * 3
    with pytest.raises(ValueError, match="no plan scores more"):
        cheapest_plan([options] * 3, [1] * 3, 2.2)


@pytest.mark.parametrize("part", [0.5, 0.75, 0.9, 0.99])
@pytest.mark.parametrize("graded", [False, True])
def test_large_sets_agree_with_integer_programming(graded: bool, part: float) -> None:
    """On 400 tasks HiGHS, within its own tolerance, finds no cheaper plan and no plan of a different price."""
    rng = np.random.default_rng(7)
    levels = [0.0, 0.25, 1 / 3, 0.5, 1.0] if graded else [0.0, 1.0]
    choices = [
        undominated([Choice(float(rng.choice(levels)), float(rng.random())) for _ in range(4)]) for _ in range(400)
    ]
    target = part * total([options[-1] for options in choices], [1] * 400, "score")
    plan = cheapest_plan(choices, [1] * 400, target)

    flat = [choice for options in choices for choice in options]
    owner = np.repeat(np.arange(400), [len(options) for options in choices])
    found = milp(
        [choice.price for choice in flat],
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint((owner == np.arange(400)[:, np.newaxis]).astype(float), 1, 1),
            LinearConstraint([[choice.score for choice in flat]], target - 1e-9, np.inf),
        ],
        options={"mip_rel_gap": 0.0},
    )
    assert found.status == 0
    assert total(plan, [1] * 400, "score") >= target - 1e-9
    assert total(plan, [1] * 400, "price") == pytest.approx(found.fun, abs=1e-5)
