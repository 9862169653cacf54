"""How often HERA's trained estimators are right: on requests they were trained on, on others, on other kinds of tasks.

HERA/AIMS (EuroSys 2026, Table 5) reports this, with and without fine-tuning on every 500 requests seen meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from sim.policies.hera.estimators import Similar
from sim.policies.hera.outlook import ROLES, Role
from sim.policies.hera.predictions import as_steps, with_goal
from sim.policies.hera.profile import Profile, ProfiledSubtask
from sim.policies.hera.similarity import EmbeddingSimilarity
from sim.policies.hera.trained import DISTANCES, Loaded
from sim.policies.hera.training import sample

_MOST_SUBTASKS = 2000
"""Subtasks judged: the standard error of a share is about a point."""


class Accuracies(NamedTuple):
    """Shares, 0..1; NaN where nothing could be judged.

    `urc`: requests whose final outputs are rightly called alike or not. `dp`: subtasks whose S-L distance is right. `sp_small` and
    `sp_large`: next subtasks predicted alike to the real one. `sse`: subtasks rightly called alike for both models, from those two
    predictions. `sd`: decompositions whose last step is alike to the large model's next subtask, where there is one.
    """

    urc: float
    dp: float
    sp_small: float
    sp_large: float
    sse: float
    sd: float


def accuracies(
    models: Loaded, profile: Profile, similarity: EmbeddingSimilarity, threshold: float, seed: int = 0
) -> Accuracies:
    """Judge the estimators on a profile, on at most 2,000 of its subtasks; texts are alike above `threshold`."""

    def similar(first: str, second: str) -> bool:
        return similarity(first, second) > threshold

    subtasks = sample(profile.subtasks, _MOST_SUBTASKS, seed)
    models.request.know([(row.task.prompt, 0) for row in profile.requests])
    models.distance.know([(row.text, row.position) for row in subtasks])
    steps = {role: _predicted(models, role, subtasks) for role in ROLES}
    similarity.know([*steps["small"], *steps["large"]])
    pairs = list(zip(subtasks, steps["small"], steps["large"], strict=True))
    return Accuracies(
        _share([
            (models.request(row.task.prompt)[0] > 0.5) == similar(row.small_answer, row.large_answer)
            for row in profile.requests
        ]),
        _share([
            DISTANCES[int(models.distance(row.text, row.position).argmax())] == row.distance for row in subtasks
        ]),
        _share([similar(small, row.small_output) for row, small, _ in pairs]),
        _share([similar(large, row.large_output) for row, _, large in pairs]),
        _share([similar(small, large) == similar(row.small_output, row.large_output) for row, small, large in pairs]),
        _share(_decomposed(models, subtasks, similar)),
    )  # fmt: skip


def _predicted(models: Loaded, role: Role, subtasks: Sequence[ProfiledSubtask]) -> list[str]:
    writer = models.steps[ROLES.index(role)]
    asked = [row.outlook.node.call.messages for row in subtasks]
    writer.know(asked)
    return [next((step.step for step in as_steps(writer(messages))), "") for messages in asked]


def _decomposed(models: Loaded, subtasks: Sequence[ProfiledSubtask], similar: Similar) -> list[bool]:
    """For each subtask from which the small model gets there: does the last written step say what the large model says next?"""
    rows = [row for row in subtasks if row.distance and math.isfinite(row.distance)]
    asked = [with_goal(row.outlook.node.call.messages, row.large_output) for row in rows]
    models.decomposer.know(asked)
    written = [as_steps(models.decomposer(messages)) for messages in asked]
    return [bool(steps) and similar(steps[-1].step, row.large_output) for row, steps in zip(rows, written, strict=True)]


def _share(right: Sequence[bool]) -> float:
    return fmean(right) if right else math.nan
