"""HERA's offline profile of a scenario's training requests as two tables.

The tables are what estimators learn from and what the profile's figures show: requests (URC: are the two models' final outputs alike)
and subtasks (SP_SLM, SP_LLM: the next subtask by who runs this one; DP: the S-L distance).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.loading import LoadedScenario
from sim.policies.base import Study
from sim.policies.hera.profile import profile_of
from sim.policies.hera.similarity import EmbeddingSimilarity
from sim.policies.trees import grow_trees, training_of, two_models
from sim.study import study_of
from sim.workload import build_workload
from workloads.task_tree import Fork, Next, Node, TaskTree


class ProfileTables(NamedTuple):
    """A profile as columns: `requests` has one row a request, `subtasks` one for each at which both models were asked.

    Beside the fields of `ProfiledRequest` and `ProfiledSubtask` a request has `small_subtasks` and `large_subtasks`, how many it takes
    when one model runs it alone. A subtask has `path_subtasks`, how many All-LLM takes, `path_index`, which of them it is (-1: none),
    and `score_lost`, All-LLM's score (0-1) less that with this one subtask run small; NaN off All-LLM's path.
    """

    requests: dict[str, npt.NDArray[Any]]
    subtasks: dict[str, npt.NDArray[Any]]


def training_requests(loaded: LoadedScenario) -> Study:
    """The study of the requests a scenario may profile. Raises InputError where it names none."""
    return training_of(scenario_study(loaded), "hera")


def scenario_study(loaded: LoadedScenario) -> Study:
    """What policies may study under a scenario's first seed."""
    seed = loaded.scenario.seeds[0]
    return study_of(loaded.scenario, build_workload(loaded.scenario, seed, loaded.path), seed)


def profile_tables(training: Study, similarity: EmbeddingSimilarity, threshold: float) -> ProfileTables:
    """Profile these requests; texts are similar from `threshold` on."""
    models, trees = two_models(training), grow_trees(training, training.tasks)
    profile = profile_of(training, similarity, threshold)
    lengths = {tree.task.id: [len(tree.path(model)) for model in models] for tree in trees}
    on_path = {id(node): (at, lost) for tree in trees for at, (node, lost) in enumerate(scores_lost(tree, models))}
    requests = [
        {
            **_task(row), "prompt": row.task.prompt, **_fields(row, ("task",)),
            "small_subtasks": lengths[row.task.id][0], "large_subtasks": lengths[row.task.id][1],
        }
        for row in profile.requests
    ]  # fmt: skip
    subtasks = [
        {
            **_task(row), **_fields(row, ("task", "outlook")),
            "path_subtasks": lengths[row.task.id][1], "path_index": at, "score_lost": lost,
        }
        for row in profile.subtasks
        for at, lost in (on_path.get(id(row.outlook.node), (-1, math.nan)),)
    ]  # fmt: skip
    return ProfileTables(_columns(requests), _columns(subtasks))


def scores_lost(tree: TaskTree, models: tuple[str, str]) -> list[tuple[Node, float]]:
    """The nodes of All-LLM's path in order, and its score less that with the one small and the rest large; NaN where nobody knows."""
    score = tree.alone(models[1]).score
    return [
        (node, score - _ended(tree.root, models, node).score if models[0] in node.after else math.nan)
        for node in tree.path(models[1])
    ]


def _ended(step: Next, models: tuple[str, str], small: Node) -> Any:
    """How a request ends, an Outcome, or one of its branches, when `small` alone runs on the small model."""
    while isinstance(step, Node | Fork):
        if isinstance(step, Fork):
            step = step.after[tuple(_ended(branch, models, small) for branch in step.branches)]
        else:
            model = models[0] if step is small else models[1]
            step = step.after[
                model if model in step.after else models[0]
            ]  # beyond the recorded depth models do not change
    return step


def _task(row: Any) -> dict[str, str]:
    return {"task": row.task.id, "family": row.task.family}


def _fields(row: Any, without: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in row._asdict().items() if name not in without}


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    text = {name for name, value in rows[0].items() if isinstance(value, str)}
    return {name: np.array([row[name] for row in rows], object if name in text else None) for name in rows[0]}
