"""Graders against the published rules, and what must hold for any text."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.errors import InputError
from workloads.grading import GRADERS, exact_match, f1, last_number, normalise, numeric_match, token_f1
from workloads.task import Task

WORDS = ["a", "an", "the", "The", "yes", "no", "noanswer", "Nia", "Voss", ",", ".", "-", "_", "th", "e", "42"]
MARKS = ["\N{EN DASH}", "\N{KELVIN SIGN}", "a\N{COMBINING ACUTE ACCENT}", "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}"]
TEXT = (
    st.text()
    | st.lists(st.sampled_from(WORDS + MARKS)).map(" ".join)
    | st.lists(st.sampled_from(WORDS + MARKS)).map("".join)
)
AMOUNT = st.decimals(min_value=-(10**9), max_value=10**9, places=2)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Blue  Harbor!", "blue harbor"),
        ("an apple, a pear", "apple pear"),
        ("U.S.A.", "usa"),
        ("theatre", "theatre"),
        ("  \t\n", ""),
        ("th.e end", "end"),
        ("Nia's", "nias"),
        ("\N{EN DASH}", "\N{EN DASH}"),
    ],
)
def test_normalise(text, plain):
    """Lower case, ASCII punctuation dropped (not replaced), articles as whole words, white space: SQuAD's order."""
    assert normalise(text) == plain


@pytest.mark.parametrize(
    ("first", "second", "score"),
    [
        ("Nia Voss", "nia voss.", 1.0),
        ("Nia Voss", "Ben Voss", 0.5),
        ("the mother is Nia Voss", "Nia Voss", 2 / 3),
        ("Voss Voss", "Voss", 2 / 3),
        ("Nia", "Ben", 0.0),
        ("", "", 1.0),
        ("the", "Nia", 0.0),
        ("yes", "yes it is", 0.0),
        ("Yes.", "yes", 1.0),
        ("no", "noanswer", 0.0),
    ],
)
def test_f1(first, second, score):
    """Word overlap by hand, repeated words counted as often as both have them; yes and no match as a whole or not at all."""
    assert f1(first, second) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("She has 42 apples left.", 42),
        ("#### 42", 42),
        ("48/2 = <<48/2=24>>24\n24+48 = 72\n#### 72", 72),
        ("#### 5,000", 5000),
        ("It costs $1,234,567.50 in all", Decimal("1234567.5")),
        ("-7", -7),
        ("\N{MINUS SIGN}7", -7),
        ("-$3.20", Decimal("-3.2")),
        ("$-3.20", Decimal("-3.2")),
        ("10-3", 3),
        ("(10)-3", 3),
        ("x-3", 3),
        ("about 35%", 35),
        (".5", Decimal("0.5")),
        ("5.", 5),
        ("1, 2, 3", 3),
        ("12,34", 34),
        ("1,2345", 2345),
        ("007", 7),
        ("3 #### none", None),
        ("\N{ARABIC-INDIC DIGIT FOUR}", None),
        ("no number", None),
        ("", None),
    ],
)
def test_last_number(text, number):
    """Where the number stands, its sign, commas, currency and units: each case read by hand."""
    assert last_number(text) == number


def test_the_three_graders():
    """Each grades an answer against the task's, and is known by its name in scenarios."""
    name, sum_ = Task("t", answer="Nia Voss"), Task("s", answer="1000")
    assert [exact_match(name, text) for text in ("nia voss!", "Nia", "")] == [1.0, 0.0, 0.0]
    assert [token_f1(name, text) for text in ("nia voss!", "Nia", "")] == [1.0, pytest.approx(2 / 3), 0.0]
    assert [numeric_match(sum_, text) for text in ("$1,000.00", "#### 1000", "1,001", "")] == [1.0, 1.0, 0.0, 0.0]
    assert [*GRADERS.items()] == [("exact_match", exact_match), ("f1", token_f1), ("numeric", numeric_match)]


@pytest.mark.parametrize("grader", GRADERS.values(), ids=GRADERS)
def test_a_task_without_an_answer(grader):
    """Grading what has no answer is an error, not a zero that looks like a wrong answer."""
    with pytest.raises(InputError, match="task 'x': has no answer"):
        grader(Task("x"), "42")


@given(TEXT)
def test_normalising_twice_changes_nothing(text):
    """The normal form is its own normal form."""
    assert normalise(normalise(text)) == normalise(text)


@given(TEXT, TEXT)
def test_f1_is_symmetric_and_bounded(first, second):
    """The overlap does not depend on which text is the answer, lies in [0, 1], and is 1 where exact match is."""
    score = f1(first, second)
    assert score == f1(second, first)
    assert 0.0 <= score <= 1.0
    assert f1(first, first) == 1.0
    if exact_match(Task("t", answer=second), first):
        assert score == 1.0


@given(
    AMOUNT,
    st.sampled_from(["{:f}", "{:,.2f}", "${:,.2f}", "#### {:f}", "The answer is {:f} dollars.", "1 and 2 and {:f}"]),
)
def test_a_number_is_found_however_it_is_written(amount, written):
    """A number survives commas, currency, units and other numbers before it."""
    assert last_number(written.format(amount)) == amount


@given(st.text(), st.text())
def test_graders_take_any_text(answer, text):
    """Whatever a model says, a grade is 0 to 1, also for thousands of digits."""
    for grader in GRADERS.values():
        assert 0.0 <= grader(Task("t", answer=answer), text) <= 1.0
    assert numeric_match(Task("t", answer="9" * 6000), "9" * 6000) == 1.0
