"""Runs an experiment's cells, keeps what is finished, and turns the records into metrics and a report."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from sim.assignments import add_to_summary, wrong_assignments
from sim.cells import Cell, run_cell
from sim.live_cells import run_live_cells
from sim.loading import LoadedScenario
from sim.metrics import frontiers, summarise, with_shares
from sim.progress import SweepProgress
from sim.records import Records
from sim.run_store import RunStore
from sim.run_tables import RunTables
from sim.scenario import Scenario
from workloads.backend import InferenceBackend
from workloads.errors import IsthmusError
from workloads.remembering import RememberingBackend

ParallelMap = Callable[[Callable[[Cell], Records], Sequence[Cell], int | None], Iterable[tuple[Cell, Records]]]
OpenLive = Callable[[Scenario], AbstractContextManager[InferenceBackend]]
_BOOTSTRAP_SEED = 20_260_101
_FEW_REQUESTS = 2_000
"""Below this many requests in all, starting worker processes takes longer than simulating."""


class Finished(NamedTuple):
    """What a run left behind."""

    folder: Path
    summary: list[dict[str, Any]]
    frontier: Mapping[str, Any]
    report: Path


def run_experiment(
    loaded: LoadedScenario,
    store: RunStore,
    parallel: ParallelMap,
    workers: int | None,
    console: Console,
    *,
    elsewhere: bool = False,
    open_live: OpenLive | None = None,
) -> Finished:
    """Run what is not yet finished, then write metrics, figures and the report. Raises IsthmusError if nothing completes.

    `workers` defaults to one per core; with `elsewhere` the cells run on another machine's cores, whatever their number.
    `open_live` brings up the live models of scenarios that ask them; their cells run in this process (sim/live_cells.py).
    """
    started_s = time.monotonic()
    store.start()
    pending = [cell for cell in store.cells if not store.finished(cell)]
    kept = len(store.cells) - len(pending)
    if kept:
        console.print(f"{kept} of {len(store.cells)} cells are finished from before and kept.")
    if pending:
        is_live = loaded.scenario.inference.backend == "serve"
        if is_live:
            assert open_live is not None
            with closing(_live_cells(pending, open_live)) as results:  # an interrupt must not leave cells asking
                _run_cells(pending, store, results, console)
        elif not elsewhere and (workers := _local_workers(pending, workers)) == 1:
            _run_cells(pending, store, ((cell, run_cell(cell)) for cell in pending), console)
        else:
            _run_cells(pending, store, parallel(run_cell, pending, workers), console)
    requests = store.requests()
    if not (requests["status"] == "completed").any():
        reasons = sorted(set(map(str, requests["reason"])))[:3]
        raise IsthmusError(f"no request completed ({'; '.join(reasons)}); records are in {store.folder}")
    with console.status("metrics and figures ..."):
        return _finish(loaded, store, requests, time.monotonic() - started_s, kept)


def _local_workers(pending: Sequence[Cell], workers: int | None) -> int:
    if _requests(pending) <= _FEW_REQUESTS:
        return 1
    return min(workers or os.cpu_count() or 1, len(pending))


def _requests(cells: Sequence[Cell]) -> int:
    return sum(cell.scenario.workload.requests for cell in cells)


def _run_cells(
    pending: Sequence[Cell], store: RunStore, results: Iterable[tuple[Cell, Records]], console: Console
) -> None:
    with SweepProgress(console, len(pending), _requests(pending)) as progress:
        for cell, records in results:
            store.save(cell, records)
            progress.advance(records)


def _live_cells(cells: Sequence[Cell], open_live: OpenLive) -> Generator[tuple[Cell, Records]]:
    """Cells whose tiers serve the same models share them, and their answers."""
    for _, group in itertools.groupby(cells, key=lambda cell: _served(cell.scenario)):
        same = list(group)
        measured = any(cell.scenario.inference.service_time == "measured" for cell in same)
        with open_live(same[0].scenario) as backend:
            shared = RememberingBackend(backend)
            cells_run = run_live_cells(same, shared, one_by_one=measured, on_stop=shared.close)
            with closing(cells_run) as results:
                yield from results


def _served(scenario: Scenario) -> list[Any]:
    """What decides which live models are brought up."""
    return [(name, tier.serve, tier.replicas, tier.max_batch) for name, tier in scenario.tiers.items()]


def _finish(loaded: LoadedScenario, store: RunStore, requests: dict[str, Any], wall_s: float, kept: int) -> Finished:
    from sim.report import family_policies, write_report  # matplotlib is slow to import and only needed here

    scenario = loaded.scenario
    measured = with_shares(requests, scenario.workload.warmup_requests)
    summary = summarise(measured)
    frontier = frontiers(measured, np.random.default_rng(_BOOTSTRAP_SEED))
    tables = RunTables(
        measured,
        store.subtasks,
        tuple(scenario.tiers),
        tuple(tier.role for tier in scenario.tiers.values()),
        _slots(scenario),
    )
    policies = family_policies(scenario)
    wrong = wrong_assignments(tables, summary, policies)
    add_to_summary(summary, policies, wrong)
    manifest = store.manifest(loaded, wall_s, kept)
    store.finish(loaded, summary, frontier, manifest, wrong)
    report = write_report(store.folder, tables, summary, dict(frontier), scenario, manifest, wrong)
    return Finished(store.folder, summary, frontier, report)


def _slots(scenario: Scenario) -> tuple[float, ...]:
    """How many jobs each tier can serve at the same time; infinite where nothing limits it."""
    return tuple(
        float(tier.replicas * (tier.max_batch if tier.device else tier.service.slots if tier.service else math.inf))
        if tier.endpoint is None or tier.endpoint.concurrency is None
        else float(tier.replicas * tier.endpoint.concurrency)
        for tier in scenario.tiers.values()
    )
