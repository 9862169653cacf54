"""`run_sim.py profile`: HERA's offline profile of a scenario's training requests, as tables on file and as a summary.

The tables are what estimators are trained on: requests.parquet (URC: are the two models' final outputs alike) and subtasks.parquet
(SP_SLM, SP_LLM: the next subtask by who runs this one; DP: the S-L distance).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet
from rich.table import Table

from sim.loading import LoadedScenario
from sim.policies.base import Study
from sim.policies.features import PACKAGED_ENCODER
from sim.policies.hera.profile import Profile, profile_of
from sim.policies.hera.similarity import EmbeddingSimilarity
from sim.policies.hera.trained import Card
from sim.policies.hera.training import Plan, Progress, train_estimators
from sim.policies.trees import grow_trees, training_of, two_models, worth
from sim.study import study_of
from sim.workload import build_workload
from workloads.expansion import TaskTree

THIRDS = ("early", "middle", "late")


class Switched(NamedTuple):
    """What one subtask moved from the large to the small model does to All-LLM's score, by where in the request it is.

    `lost` is the mean loss in points (0-100), over `subtasks` of them.
    """

    third: str
    subtasks: int
    lost: float


class Profiled(NamedTuple):
    """A profile with what was counted on the way."""

    profile: Profile
    switched: list[Switched]
    subtasks_small: float
    """Mean subtasks of a request that the small model gets right alone."""
    subtasks_large: float


def profile_scenario(loaded: LoadedScenario, threshold: float, encoder: str = PACKAGED_ENCODER) -> Profiled:
    """Profile the training requests of a scenario. Raises InputError where it names none."""
    return profile_training(_training(loaded), EmbeddingSimilarity(encoder), threshold)


def _training(loaded: LoadedScenario) -> Study:
    seed = loaded.scenario.seeds[0]
    workload = build_workload(loaded.scenario, seed, loaded.path)
    return training_of(study_of(loaded.scenario, workload, seed), "hera")


def train_on(
    loaded: LoadedScenario, threshold: float, plan: Plan, requests: int | None, out: Path, progress: Progress
) -> Card:
    """Train HERA's estimators on the first `requests` of a scenario's training requests (None: on all) and write them into `out`."""
    training = _training(loaded)
    if requests is not None:
        training = training._replace(tasks=training.tasks[:requests])
    profile = profile_of(training, EmbeddingSimilarity(PACKAGED_ENCODER), threshold)
    return train_estimators(profile, PACKAGED_ENCODER, threshold, plan, out, progress)


def profile_training(training: Study, similarity: EmbeddingSimilarity, threshold: float) -> Profiled:
    """Profile these requests; texts are similar from `threshold` on."""
    models, trees = two_models(training), grow_trees(training, training.tasks)
    profile = profile_of(training, similarity, threshold)
    counts = [[len(tree.path(model)) for tree in trees if tree.alone(model).score >= 0.5] for model in models]
    return Profiled(profile, switched_one(trees, models), *(fmean(count) if count else math.nan for count in counts))


def switched_one(trees: Sequence[TaskTree], models: tuple[str, str]) -> list[Switched]:
    """For each third of a request: All-LLM's score less that with one of the third's subtasks run small (HERA's Fig. 4a)."""
    lost: dict[str, list[float]] = {third: [] for third in THIRDS}
    for tree in trees:
        path, score = tree.path(models[1]), tree.alone(models[1]).score
        values = worth(tree, models, 1.0)
        for position, node in enumerate(path):
            if models[0] in node.after:
                third = THIRDS[min(2, 3 * position // len(path))]
                lost[third].append(100 * (score - values[node.call.messages].small))
    return [Switched(third, len(found), fmean(found) if found else math.nan) for third, found in lost.items()]


def write_profile(profiled: Profiled, folder: Path) -> None:
    """The two tables as Parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    requests = [
        {"task": row.task.id, "family": row.task.family, "prompt": row.task.prompt, **_fields(row, ("task",))}
        for row in profiled.profile.requests
    ]
    subtasks = [
        {"task": row.task.id, "family": row.task.family, **_fields(row, ("task", "outlook"))}
        for row in profiled.profile.subtasks
    ]
    for name, rows in (("requests", requests), ("subtasks", subtasks)):
        parquet.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


def _fields(row: Any, without: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in row._asdict().items() if name not in without}


def profile_tables(profiled: Profiled, threshold: float) -> list[Table]:
    """The summary for the terminal: requests, subtasks by position, one subtask switched."""
    profile = profiled.profile
    requests = profile.requests
    overview = Table("what", "value", title=f"{len(requests):,} requests profiled")
    alike = fmean(row.similarity > threshold for row in requests)
    for what, value in (
        ("right, All-SLM", f"{fmean(row.small_score for row in requests):.1%}"),
        ("right, All-LLM", f"{fmean(row.large_score for row in requests):.1%}"),
        ("subtasks of a right request, All-SLM", f"{profiled.subtasks_small:.2f}"),
        ("subtasks of a right request, All-LLM", f"{profiled.subtasks_large:.2f}"),
        (f"final outputs alike (cosine > {threshold:g})", f"{alike:.1%}"),
    ):
        overview.add_row(what, value)
    positions = Table(
        "position", "subtasks", "outputs alike", "S-L distance", "never matched", title="On All-LLM's path"
    )
    for position, cells in position_rows(profile, threshold).items():
        positions.add_row(str(position), *cells)
    switched = Table("third of the request", "subtasks", "points lost", title="One subtask moved to the small model")
    for row in profiled.switched:
        switched.add_row(row.third, f"{row.subtasks:,}", f"{row.lost:.2f}")
    return [overview, positions, switched]


def position_rows(profile: Profile, threshold: float) -> Mapping[int, tuple[str, str, str, str]]:
    """By position on the large model's path: subtasks, share alike, mean finite distance, share never matched."""
    by_position: dict[int, list[Any]] = defaultdict(list)
    for row in profile.subtasks:
        if row.on_large_path:
            by_position[row.position].append(row)

    def share(rows: Sequence[Any], holds: Callable[[Any], bool]) -> str:
        return f"{fmean(holds(row) for row in rows):.1%}"

    cells = {}
    for position, rows in sorted(by_position.items()):
        finite = [row.distance for row in rows if math.isfinite(row.distance)]
        cells[position] = (
            f"{len(rows):,}",
            share(rows, lambda row: row.similarity > threshold),
            f"{fmean(finite):.2f}" if finite else "-",
            share(rows, lambda row: math.isinf(row.distance)),
        )
    return cells
