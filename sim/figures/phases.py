"""The phases of an attempt, in the order in which they happen, and when each of them was."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sim.figures.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW, FloatArray
from sim.records import Columns


class Phase(NamedTuple):
    """One phase: its column in the subtask table, its name and colour, and whether it is spent at the user's device."""

    column: str
    name: str
    colour: str
    at_home: bool


PHASES = (
    Phase("tool_s", "tool", "#8C8C8C", at_home=True),
    Phase("backoff_s", "backoff", VERMILION, at_home=True),
    Phase("decision_s", "decision", PURPLE, at_home=True),
    Phase("uplink_s", "network up", SKY, at_home=False),
    Phase("queue_s", "queue", ORANGE, at_home=False),
    Phase("prefill_s", "prefill", GREEN, at_home=False),
    Phase("decode_s", "decode", BLUE, at_home=False),
    Phase("downlink_s", "network down", YELLOW, at_home=False),
)
"""Columns add up to `end_s - start_s` of an attempt. The tool ran before a first attempt, backoff comes before a retry."""

REST, REST_COLOUR = "last tool", "#CCCCCC"
"""Time of a request outside its attempts: the tool that ran after the last answer, or was running when time was up."""

QUEUE, PREFILL, DOWNLINK = (
    next(i for i, phase in enumerate(PHASES) if phase.column == column)
    for column in ("queue_s", "prefill_s", "downlink_s")
)


def boundaries_s(subtasks: Columns) -> FloatArray:
    """When the phases of each attempt began, shape (attempts, phases + 1); the last column is when the attempt ended."""
    lengths = np.stack([subtasks[phase.column] for phase in PHASES], axis=1).astype(np.float64)
    start = np.asarray(subtasks["start_s"], dtype=np.float64)[:, None]
    return np.concatenate((start, start + np.cumsum(lengths, axis=1)), axis=1)
