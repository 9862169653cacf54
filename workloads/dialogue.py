"""Dialogues: requests of several turns, to whose questions attachments (images, clips, readings) may or may not be sent along.

A dialogue is one Task. Its `attachments` are the modalities that could be sent with any turn, its `features["turns"]` the turns; a
turn is one subtask. After TMO (Yuan et al., "Local-Cloud Inference Offloading for LLMs in Multi-Modal, Multi-Task, Multi-Dialogue
Settings", MobiHoc 2025), where the attachments are three views of a kitchen and the turns are of four kinds.

A policy reads the turn at hand with `turn_of`. The turns to come belong to the user, who has not asked them yet: only the agent
and what says so in its name (an oracle) look at those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from workloads.agent import FRAMING_BYTES, Agent, AgentRun
from workloads.errors import InputError
from workloads.task import Attachment, Message, ModelCall, Outcome, Task, fast_constructor

_call, _message = fast_constructor(ModelCall), fast_constructor(Message)
_UNPLACED = tuple(ModelCall._field_defaults.values())[2:]
"""What a call says beyond `tool_s` and `max_tokens`."""

TURNS = "turns"
"""The feature of a Task that holds its turns."""
_MESSAGE_BYTES = 30
"""JSON around one message, as in workloads.agent.payload_bytes."""


class Turn(NamedTuple):
    """One question of a dialogue: its text, its kind (task category) and, per attachment of the task, how much it needs it (0..1)."""

    question: str
    kind: str
    associations: tuple[float, ...] = ()


def dialogue_task(
    name: str, turns: Iterable[Turn], attachments: Iterable[Attachment] = (), family: str = "dialogue", latent: Any = None,
) -> Task:  # fmt: skip
    """A dialogue as a Task. Raises InputError for one without turns, and for attachments or associations that cannot be."""
    asked, attached = tuple(turns), tuple(attachments)
    place = f"dialogue {name!r}"
    if not asked:
        raise InputError(place, "the dialogue is empty", "Give at least one turn")
    names = [attachment.name for attachment in attached]
    if len(set(names)) < len(names):
        raise InputError(place, f"two attachments have one name among {', '.join(names)}", "Give each its own")
    for attachment in attached:
        if not attachment.size_bytes >= 0 or not attachment.tokens >= 0:
            problem = f"attachment {attachment.name!r} has {attachment.size_bytes} bytes and {attachment.tokens} tokens"
            raise InputError(place, problem, "Neither can be less than 0")
    for number, turn in enumerate(asked):
        _check_associations(turn, len(attached), f"{place}, turn {number}")
    return Task(name, asked[0].question, family=family, attachments=attached, features={TURNS: asked}, latent=latent)


def _check_associations(turn: Turn, attached: int, place: str) -> None:
    if len(turn.associations) != attached:
        problem = f"{len(turn.associations)} association scores for {attached} attachments"
        raise InputError(place, problem, "Give one score per attachment, in their order")
    for score in turn.associations:
        if not 0.0 <= score <= 1.0:  # false for NaN too
            raise InputError(place, f"an association score is {score}", "Scores are from 0 (useless) to 1 (needed)")


def is_dialogue(task: Task) -> bool:
    """Whether a task has turns."""
    return bool(task.features.get(TURNS))


def turns_of(task: Task) -> tuple[Turn, ...]:
    """All turns of a dialogue, those to come included. Raises InputError for a task that is none."""
    turns: tuple[Turn, ...] | None = task.features.get(TURNS)
    if not turns:
        raise InputError(f"task {task.id!r}", "is no dialogue", "Use workload.tasks of kind dialogues or m4a1")
    return turns


def turn_of(call: ModelCall) -> Turn:
    """The turn a call asks.

    A call of an agent that is no dialogue counts as a turn of the kind `task.family` that asks the conversation's last message, so
    that policies made for dialogues can place any agent's calls.
    """
    turns: Sequence[Turn] = call.task.features.get(TURNS, ())
    if call.position < len(turns):
        return turns[call.position]
    question = call.messages[-1].content if call.messages else call.task.prompt
    return Turn(question, call.task.family, tuple(a.association for a in call.task.attachments))


def dialogue_agent(bytes_per_token: float = 4.0, max_tokens: int = 1024) -> Agent:
    """An agent that asks turn after turn, each with the conversation so far; a request's score is the mean of its turns'.

    Sizes are those of the text alone; what attachments add depends on where they are sent. An answer joins the conversation with the
    bytes it came with and the tokens it has. A turn that nobody graded counts as 0.
    """
    if not bytes_per_token > 0:
        raise InputError("dialogue agent: bytes_per_token", f"found {bytes_per_token}", "Give a positive number")

    def run(task: Task) -> AgentRun:
        turns = turns_of(task)
        messages: tuple[Message, ...] = ()
        size_bytes, tokens, scores = FRAMING_BYTES, 0, []
        for position, turn in enumerate(turns):
            asked_bytes = len(turn.question.encode())
            messages += (_message(("user", turn.question)),)
            size_bytes += asked_bytes + _MESSAGE_BYTES
            tokens += max(1, round(asked_bytes / bytes_per_token))
            done = yield _call((task, position, messages, tokens, size_bytes, 0.0, max_tokens, *_UNPLACED))
            messages += (_message(("assistant", done.text)),)
            size_bytes += max(0, done.download_bytes - FRAMING_BYTES) + _MESSAGE_BYTES
            tokens += done.completion_tokens
            scores.append(done.score if done.score == done.score else 0.0)
        return Outcome(math.fsum(scores) / len(scores), done.text)

    return run
