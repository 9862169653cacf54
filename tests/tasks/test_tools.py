from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.task import Task
from workloads.tools import MAX_EXPRESSION, compute

TASK = Task("t")

_SUMS = st.recursive(
    st.integers(0, 999).map(lambda n: (str(n), Fraction(n))),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: _joined(*parts)),
    max_leaves=12,
).filter(lambda pair: pair[1] is not None and len(pair[0]) < MAX_EXPRESSION)


def _joined(left, sign, right):
    """Two bracketed expressions around a sign, and their value (None where it does not exist)."""
    text = f"( {left[0]} ) {sign} ( {right[0]} )"
    if left[1] is None or right[1] is None or (sign == "/" and right[1] == 0):
        return text, None
    a, b = left[1], right[1]
    return text, {"+": a + b, "-": a - b, "*": a * b, "/": a / b if sign == "/" else None}[sign]


@given(_SUMS)
def test_the_calculator_is_exact(pair):
    """Any expression of whole numbers, signs and brackets has the value of exact arithmetic."""
    text, value = pair
    found = compute(TASK, text)
    if max(abs(value.numerator), value.denominator) >= 10**60:
        assert found.startswith("error: ")
    elif value.denominator == 1:
        assert found == str(value)
    else:
        assert abs(Fraction(found) - value) <= Fraction(1, 2 * 10**6)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("( 11 + 10 ) * 2", "42"),
        ("2 + 3 * 4", "14"),
        ("10 - 4 - 3", "3"),
        ("24 / 4 / 2", "3"),
        ("- ( 2 + 3 )", "-5"),
        ("1 / 8", "0.125"),
        ("2 / 3", "0.666667"),
        ("1 - 1 . 5".replace(" . ", "."), "-0.5"),
        ("1,250 * 2", "2500"),
        ("$3 × 4 =", "12"),
        ("Ben = 29 + 12", "Ben = 41"),
        ("Ben = 29 + 12 ; Ivo = Ben * 2", "Ben = 41 ; Ivo = 82"),
        ("Ben = 2 - 5 ; Ivo = 1 - Ben", "Ben = -3 ; Ivo = 4"),
        ("2 + 2 ; 3", "4 ; 3"),
        ("Ivo needs Ben : Ben = 29 + 12 ; Ivo = Ben * 2", "Ben = 41 ; Ivo = 82"),
        ("-1 / 3000000", "0"),
    ],
)
def test_examples(text, value):
    """Precedence, left association, signs, decimals, thousands, labels."""
    assert compute(TASK, text) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "ends too early"),
        ("2 +", "ends too early"),
        ("2 3", "unexpected 3"),
        ("( 2 + 3", "not closed"),
        ("2 / ( 3 - 3 )", "division by zero"),
        ("__import__('os')", "cannot read"),
        ("2 ** 3", r"unexpected \*"),
        ("9" * 61, "too large"),
        ("(" * 45 + "1" + ")" * 45, "nested"),
        ("1 + " * 200 + "1", "characters"),
        ("Ivo = Ben * 2 ; Ben = 3", "cannot read Ben"),
        ("Ben = 1 / 0 ; Ivo = Ben", "division by zero ; Ivo = error: cannot read error"),
        ("1 ; " * 8 + "1", "more than 8 statements"),
    ],
)
def test_what_it_cannot_compute_is_said(text, problem):
    """Errors are observations in plain words."""
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(compute(TASK, text).split("error: ", 1)[1])


@given(st.one_of(st.text(max_size=600), st.text("0123456789+-*/(). =a", max_size=600)))
def test_the_calculator_never_raises(text):
    """Any text at all gets an answer in text, of bounded length."""
    found = compute(TASK, text)
    assert isinstance(found, str)
    assert 0 < len(found) <= 2 * MAX_EXPRESSION
