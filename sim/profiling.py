"""HERA's offline profile of a scenario's training requests as two tables.

The tables are what estimators learn from and what the profile's figures show: requests (URC: are the two models' final outputs alike)
and subtasks (SP_SLM, SP_LLM: the next subtask by who runs this one; DP: the S-L distance).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.loading import LoadedScenario
from sim.policies.base import Study
from sim.policies.hera.profile import profile_of
from sim.policies.hera.similarity import EmbeddingSimilarity
from sim.policies.trees import grow_trees, training_of, two_models, worth
from sim.study import study_of
from sim.workload import build_workload
from workloads.expansion import TaskTree


class ProfileTables(NamedTuple):
    """A profile as columns: `requests` has one row a request, `subtasks` one for each at which both models were asked.

    Beside the fields of `ProfiledRequest` and `ProfiledSubtask` a request has `small_subtasks` and `large_subtasks`, how many it takes
    when one model runs it alone. A subtask has `path_subtasks`, how many All-LLM takes, and `score_lost`, All-LLM's score (0-1) less
    that with this one subtask run small; NaN off All-LLM's path.
    """

    requests: dict[str, npt.NDArray[Any]]
    subtasks: dict[str, npt.NDArray[Any]]


def training_requests(loaded: LoadedScenario) -> Study:
    """The study of the requests a scenario may profile. Raises InputError where it names none."""
    seed = loaded.scenario.seeds[0]
    workload = build_workload(loaded.scenario, seed, loaded.path)
    return training_of(study_of(loaded.scenario, workload, seed), "hera")


def profile_tables(training: Study, similarity: EmbeddingSimilarity, threshold: float) -> ProfileTables:
    """Profile these requests; texts are similar from `threshold` on."""
    models, trees = two_models(training), grow_trees(training, training.tasks)
    profile = profile_of(training, similarity, threshold)
    lost, lengths = scores_lost(trees, models), {tree.task.id: [len(tree.path(m)) for m in models] for tree in trees}
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
            "path_subtasks": lengths[row.task.id][1], "score_lost": lost.get(id(row.outlook.node), math.nan),
        }
        for row in profile.subtasks
    ]  # fmt: skip
    return ProfileTables(_columns(requests), _columns(subtasks))


def scores_lost(trees: Iterable[TaskTree], models: tuple[str, str]) -> dict[int, float]:
    """All-LLM's score less that with one subtask of its path run small and the rest large, by the id of the subtask's node."""
    lost = {}
    for tree in trees:
        values, score = worth(tree, models, 1.0), tree.alone(models[1]).score
        for node in tree.path(models[1]):
            if models[0] in node.after:
                lost[id(node)] = score - values[node.call.messages].small
    return lost


def _task(row: Any) -> dict[str, str]:
    return {"task": row.task.id, "family": row.task.family}


def _fields(row: Any, without: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in row._asdict().items() if name not in without}


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    text = {name for name, value in rows[0].items() if isinstance(value, str)}
    return {name: np.array([row[name] for row in rows], object if name in text else None) for name in rows[0]}
