"""Steps and decompositions as texts that a small decoder can learn to write, and what was written as steps again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from workloads.task import Message

SEPARATOR = " ? "
"""Between a step and the environment's answer to it, and between one step and the next; steps hold no question mark."""


class Prediction(NamedTuple):
    """A step and the environment's answer to it; the answer is empty where the request ends with the step."""

    step: str
    reply: str


def as_text(steps: Iterable[Prediction]) -> str:
    """The steps, as they are learned and written."""
    return SEPARATOR.join(part for step in steps for part in step).rstrip(SEPARATOR)


def as_steps(text: str) -> list[Prediction]:
    """The steps of a text; a decoder may write anything, so anything is read."""
    parts = [part.strip() for part in f" {text} ".split(SEPARATOR)]
    if not any(parts):
        return []
    return [Prediction(step, reply) for step, reply in zip(parts[::2], [*parts[1::2], ""], strict=False)]


def with_goal(messages: tuple[Message, ...], goal: str) -> tuple[Message, ...]:
    """The conversation that SD is asked about: how to get to `goal`, the large model's next subtask, by smaller steps."""
    return (*messages, Message("user", goal))


def after_steps(messages: tuple[Message, ...], steps: Sequence[Prediction]) -> Iterable[tuple[Message, ...]]:
    """The conversation after the first step, after the second, and so on, as far as the environment answers."""
    for step, reply in steps:
        if not reply:
            return
        messages = (*messages, Message("assistant", step), Message("tool", reply))
        yield messages
