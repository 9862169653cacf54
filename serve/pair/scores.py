"""Answered requests, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workloads.task import Task


@dataclass(frozen=True, slots=True)
class Answered:
    """A request answered: its score, and how many subtasks each model did."""

    task: Task
    score: float
    subtasks: Mapping[str, int]
    answer: str


def mean_score(answered: Sequence[Answered]) -> float:
    """Share of right answers; NaN for none."""
    return sum(a.score for a in answered) / len(answered) if answered else float("nan")


def mean_subtasks(answered: Sequence[Answered], model: str | None = None) -> float:
    """Subtasks a request, of one model or of all; NaN for no requests."""
    if not answered:
        return float("nan")
    return sum(count for a in answered for name, count in a.subtasks.items() if model in (None, name)) / len(answered)
