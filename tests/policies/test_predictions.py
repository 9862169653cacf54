"""Steps as texts and back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sim.policies.hera.predictions import Prediction, after_steps, as_steps, as_text
from workloads.task import Message

_words = st.lists(
    st.sampled_from(["compute", "Ben", "=", "3", "+", "4", ";", "answer", ":", "'s"]), min_size=1, max_size=6
).map(" ".join)
_answered = st.builds(Prediction, _words, _words)
_last = st.builds(Prediction, _words, st.just(""))


@given(st.lists(_answered, max_size=4), st.lists(_last, max_size=1))
def test_what_is_written_is_read_again(steps: list[Prediction], last: list[Prediction]) -> None:
    """Any steps of which only the last may have no answer."""
    assert as_steps(as_text([*steps, *last])) == [*steps, *last]


@given(st.text(alphabet="ab ?", max_size=30))
def test_whatever_a_decoder_writes_is_read(text: str) -> None:
    """Without an error; all that was said is in the steps."""
    said = "".join(part for step in as_steps(text) for part in step)
    assert [letter for letter in said if letter in "ab"] == [letter for letter in text if letter in "ab"]


def test_a_conversation_grows_as_far_as_the_environment_answers() -> None:
    """One conversation an answered step."""
    start = (Message("user", "how much is Ben ?"),)
    steps = [Prediction("a", "1"), Prediction("b", ""), Prediction("c", "3")]
    assert list(after_steps(start, steps)) == [(*start, Message("assistant", "a"), Message("tool", "1"))]
