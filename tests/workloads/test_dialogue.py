"""Dialogues: the agent that asks them, the turn behind a call, and what is no dialogue."""

from __future__ import annotations

import math
from typing import Any

import pytest

from workloads.agent import FRAMING_BYTES, payload_bytes
from workloads.dialogue import Turn, dialogue_agent, dialogue_task, is_dialogue, turn_of, turns_of
from workloads.errors import InputError
from workloads.task import Attachment, Completion, Message, ModelCall, Outcome, Task

PHOTO, SOUND = Attachment("photo", 200_000, 425), Attachment("sound", 80_000, 50)
TURNS = (
    Turn("What is wrong with this leaf?", "diagnosis", (0.9, 0.1)),
    Turn("Tell my neighbour.", "message editing", (0.1, 0.0)),
    Turn("And the noise?", "query", (0.0, 0.8)),
)
TASK = dialogue_task("d", TURNS, (PHOTO, SOUND), "farm")


def answered(*scores: float, text: str = "It is dry.") -> tuple[list[ModelCall], Outcome]:
    """The calls of the dialogue where every answer says the same, and its end."""
    run, calls = dialogue_agent()(TASK), []
    call = next(run)
    try:
        for score in scores:
            assert isinstance(call, ModelCall)
            calls.append(call)
            size = FRAMING_BYTES + len(text.encode())
            call = run.send(Completion("m", text, call.prompt_tokens, 7, size, score=score))
    except StopIteration as ended:
        return calls, ended.value
    raise AssertionError("the dialogue goes on")


def test_every_turn_is_a_call_with_the_conversation_so_far() -> None:
    """Questions and answers alternate; sizes are those of the messages on the wire, tokens those of questions and answers."""
    calls, _ = answered(1.0, 1.0, 1.0)
    assert [call.position for call in calls] == [0, 1, 2]
    said = Message("assistant", "It is dry.")
    asked = [Message("user", turn.question) for turn in TURNS]
    assert calls[2].messages == (asked[0], said, asked[1], said, asked[2])
    assert [call.upload_bytes for call in calls] == [payload_bytes(call.messages) for call in calls]
    words = [round(len(turn.question) / 4) for turn in TURNS]
    assert [call.prompt_tokens for call in calls] == [words[0], words[0] + 7 + words[1], sum(words) + 14]


def test_a_dialogues_score_is_the_mean_of_its_turns() -> None:
    """An answer that nobody graded counts as 0."""
    assert answered(0.5, 1.0, 0.9)[1].score == pytest.approx(0.8)
    assert answered(0.5, math.nan, 1.0)[1] == Outcome(0.5, "It is dry.")


def test_a_call_knows_its_turn() -> None:
    """Of a dialogue the turn at its position; of any other agent's call its last message, family and attachments."""
    calls, _ = answered(1.0, 1.0, 1.0)
    assert tuple(map(turn_of, calls)) == TURNS == turns_of(TASK)
    other = Task("t", "Count the hens.", family="sums", attachments=(Attachment("photo", 1, 1, 0.4),))
    assert turn_of(ModelCall(other, 0, (Message("user", "How many?"),), 3, 400)) == Turn("How many?", "sums", (0.4,))
    assert turn_of(ModelCall(other, 3, (), 3, 400)).question == "Count the hens."
    assert is_dialogue(TASK)
    assert not is_dialogue(other)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no turn": ({"turns": ()}, "empty"),
    "names": ({"attachments": (PHOTO, PHOTO)}, "one name"),
    "bytes": ({"attachments": (PHOTO, Attachment("sound", -1))}, "-1 bytes"),
    "tokens": ({"attachments": (PHOTO, Attachment("sound", 1, -5))}, "-5 tokens"),
    "size": ({"attachments": (PHOTO, Attachment("sound", math.nan))}, "nan bytes"),  # type: ignore[arg-type]
    "few scores": ({"turns": (Turn("?", "query", (0.5,)),)}, "1 association scores for 2 attachments"),
    "high score": ({"turns": (*TURNS, Turn("?", "query", (0.5, 1.5)))}, "turn 3: an association score is 1.5"),
    "NaN score": ({"turns": (Turn("?", "query", (0.5, math.nan)),)}, "association score is nan"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_dialogue_is_one_message(case: str) -> None:
    """No turns, attachments that cannot be told apart or have impossible sizes, association scores that are none."""
    fields, words = BAD[case]
    with pytest.raises(InputError, match=f"dialogue 'd'.*{words}"):
        dialogue_task("d", **{"turns": TURNS, "attachments": (PHOTO, SOUND), **fields})


def test_other_tasks_have_no_turns() -> None:
    """Whoever asks for them is told so; an agent cannot ask them."""
    with pytest.raises(InputError, match="is no dialogue"):
        turns_of(Task("t"))
    with pytest.raises(InputError, match="is no dialogue"):
        next(dialogue_agent()(Task("t")))
    with pytest.raises(InputError, match="bytes_per_token"):
        dialogue_agent(0.0)
