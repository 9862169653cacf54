"""Where results live: run ids, what counts as finished, manifests, and the link to the latest run."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sim.cells import expand_cells, expand_policies, run_cell
from sim.experiment import _run_cells, run_experiment
from sim.loading import LoadedScenario
from sim.metrics import frontiers, summarise, with_shares
from sim.records import read_columns, to_arrow, write_parquet
from sim.run_store import RunStore
from tests.helpers import SWEEP, file_hashes, load_text
from workloads.errors import InputError, IsthmusError

SCENARIO = """
name: small
workload:
  tasks: {kind: modelled}
  requests: 12
  arrivals: {kind: poisson, rate_per_s: 2.0}
tiers:
  edge: {role: slm, model: llama-3.2-3b-int4, device: jetson-orin-nx}
  cloud: {role: llm, model: gpt-4o, endpoint: gpt-4o-class}
links:
  - {between: [home, edge], link: wifi}
  - {between: [edge, cloud], link: wired}
policies: [all-slm, all-llm, {policy: random, p: [0.3, 0.6]}]
seeds: [1, 2]
"""
QUIET = Console(quiet=True)


def opened(
    folder: Path, *settings: str, text: str = SCENARIO, out: Path | None = None
) -> tuple[RunStore, LoadedScenario]:
    """The store of a scenario in this folder, nothing run yet."""
    loaded = load_text(folder, text, settings)
    return RunStore(out or folder / "results", loaded, expand_cells(loaded)), loaded


def simulated(store: RunStore) -> None:
    """Run what is pending."""
    store.start()
    pending = [cell for cell in store.cells if not store.finished(cell)]
    _run_cells(pending, store, ((cell, run_cell(cell)) for cell in pending), QUIET)


def _no_parallel(function: Any, cells: Any, workers: int | None) -> Any:
    raise AssertionError("a run this small starts no workers")


def run_id(folder: Path, *settings: str, text: str = SCENARIO) -> str:
    """The run id of the scenario with these settings."""
    return opened(folder, *settings, text=text)[0].run_id


# --------------------------------------------------------------------------------------------------------------- run ids

CHANGES = [
    "workload.requests=13", "workload.arrivals.rate_per_s=2.5", "workload.arrivals.kind=gamma", "workload.homes=2",
    "workload.warmup_requests=1", "workload.tasks.mean_subtasks=6.0", "tiers.edge.replicas=2", "tiers.edge.device.memory_gbytes=15",
    "tiers.cloud.endpoint.ttft_sigma=0.9", "links.0.link.loss=0.01", "links.1.shared=false", "client.timeout_s=299",
    "client.stream=false", "sla.penalty_usd=0.1", "sla.deadline_s=10", "pricing.date=2025-06-01",
    "pricing.other.carbon_g_per_kwh=100", "inference.service_time=measured", "seeds=[1]", "seeds=[2, 1]", "seeds=[1, 3]",
    "policies=[all-slm]", "policies=[all-llm, all-slm, {policy: random, p: [0.3, 0.6]}]",
    "policies=[all-slm, all-llm, {policy: random, p: [0.3, 0.7]}]", "policies=[all-slm, all-llm, {policy: random, p: [0.3]}]",
    "policies=[all-slm, all-llm, {policy: random, label: coin, p: [0.3, 0.6]}]",
    "policies=[{policy: all-slm, decision_s: 0.1}, all-llm, {policy: random, p: [0.3, 0.6]}]",
    "sweep={workload.homes: [1, 2]}", "name=other", "faults=[{target: edge, at_s: [3]}]",
]  # fmt: skip


def test_any_change_is_another_run(tmp_path: Path) -> None:
    """Every field, policy, option and seed is part of the run id, and no two of these changes share one."""
    ids = {change: run_id(tmp_path, change) for change in CHANGES}
    ids["nothing"] = run_id(tmp_path)
    assert len(set(ids.values())) == len(ids)


def test_the_same_scenario_is_the_same_run_wherever_it_lies(tmp_path: Path) -> None:
    """Folder, file time, comments and the order of YAML keys are no part of the run."""
    here, there = run_id(tmp_path / "here"), run_id(tmp_path / "far" / "there", text="# a comment\n" + SCENARIO)
    assert here == there == run_id(tmp_path, text=SCENARIO.replace("name: small\n", "") + "name: small\n")
    assert here == run_id(tmp_path, "workload.requests=12")


TRACED = SCENARIO.replace(
    "arrivals: {kind: poisson, rate_per_s: 2.0}", "arrivals: {kind: trace, path: times.csv, format: azure_llm}"
)
ROWS = "".join(f"2023-11-16 18:17:{i:02d}.0000000,{100 + i},10\n" for i in range(20))


def test_input_files_count_by_content(tmp_path: Path) -> None:
    """One changed byte of a trace is another run; the same trace in another folder is the same."""

    def traced(folder: Path, rows: str) -> RunStore:
        folder.mkdir(exist_ok=True)
        (folder / "times.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
        return opened(folder, text=TRACED)[0]

    first = traced(tmp_path / "a", ROWS)
    assert traced(tmp_path / "b", ROWS).run_id == first.run_id
    assert traced(tmp_path / "a", ROWS.replace("100,10", "101,10")).run_id != first.run_id
    expected = hashlib.sha256(("TIMESTAMP,ContextTokens,GeneratedTokens\n" + ROWS).encode()).hexdigest()
    assert first.inputs == {"times.csv": expected}


def test_a_missing_input_file_is_an_input_error(tmp_path: Path) -> None:
    """A file that is not there is named before anything runs."""
    with pytest.raises(InputError, match=r"times\.csv: no such file"):
        opened(tmp_path, text=TRACED)


POLICY = """
from sim.policies.base import Placement, RoutingPolicy


class Mine(RoutingPolicy):
    def place(self, seen):
        return Placement(seen.small)
"""


def test_policy_files_count_by_content(tmp_path: Path) -> None:
    """An edited policy is another run."""
    setting = "policies=['mine.py:Mine']"
    (tmp_path / "mine.py").write_text(POLICY)
    before = run_id(tmp_path, setting)
    assert run_id(tmp_path, setting) == before
    (tmp_path / "mine.py").write_text(POLICY.replace("seen.small", "seen.large"))
    assert run_id(tmp_path, setting) != before


def test_cells_that_cannot_be_told_apart_or_do_not_exist(tmp_path: Path) -> None:
    """Two policies of one name, an option without values, and a sweep without values are input errors."""
    for setting, message in (
        ("policies=[all-slm, all-slm]", "occurs twice"),
        ("policies=[{policy: random, p: []}]", "option 'p'.*empty list"),
        ("sweep={workload.homes: []}", "sweep.workload.homes.*empty list"),
    ):
        with pytest.raises(InputError, match=message):
            opened(tmp_path, setting)


# ------------------------------------------------------------------------------------------------- finished and pending


def test_finished_cells_are_kept(tmp_path: Path) -> None:
    """A cell is finished when both tables are there; only what is missing runs again, to the same bytes."""
    store, _ = opened(tmp_path)
    assert not any(store.finished(cell) for cell in store.cells)
    simulated(store)
    assert all(store.finished(cell) for cell in store.cells)
    hashes = file_hashes(store.folder)
    assert len(hashes) == 2 * 8
    kept, lost = store._file("requests", store.cells[0]), store._file("requests", store.cells[3])
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    again, _ = opened(tmp_path)
    assert [cell.number for cell in again.cells if not again.finished(cell)] == [3]
    simulated(again)
    assert file_hashes(store.folder) == hashes
    assert kept.stat().st_mtime_ns == stamp


def test_a_cell_without_its_request_table_is_not_finished(tmp_path: Path) -> None:
    """Subtasks are written first: a run killed between the two tables does the cell again."""
    store, _ = opened(tmp_path)
    simulated(store)
    store._file("requests", store.cells[0]).unlink()
    assert store._file("subtasks", store.cells[0]).exists()
    assert not store.finished(store.cells[0])


def test_half_written_files_go(tmp_path: Path) -> None:
    """What a killed run left half-written is removed when the run goes on."""
    store, _ = opened(tmp_path)
    store.start()
    partial = store.folder / "requests" / ".00001.parquet.4242.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"half")
    simulated(store)
    assert not list(store.folder.rglob("*.partial"))


def test_tables_come_back_as_they_were_written(tmp_path: Path) -> None:
    """All cells in order with the columns that tell them apart; one cell's subtasks by variant, policy and seed."""
    store, _ = opened(tmp_path, "sweep={workload.homes: [1, 2]}")
    simulated(store)
    table = store.requests()
    assert len(table["request"]) == 2 * 4 * 2 * 12
    assert list(dict.fromkeys(table["variant"])) == ["homes=1", "homes=2"]
    assert list(dict.fromkeys(table["policy"])) == ["all-slm", "all-llm", "random(p=0.3)", "random(p=0.6)"]
    assert sorted(set(table["seed"].tolist())) == [1, 2]
    knobs = table["knob"][table["family"] == "random"]
    assert sorted(set(knobs.tolist())) == [0.3, 0.6]
    assert np.isnan(table["knob"][table["family"] == "all-slm"]).all()
    subtasks = store.subtasks("homes=2", "random(p=0.3)", 2)
    rows = (table["variant"] == "homes=2") & (table["policy"] == "random(p=0.3)") & (table["seed"] == 2)
    assert np.sum(subtasks["status"] == "ok") == table["subtasks"][rows].sum()
    with pytest.raises(KeyError):
        store.subtasks("homes=3", "random(p=0.3)", 2)


@pytest.mark.parametrize(
    ("options", "knobs"),
    [
        ("tau_request: [0.5, 0.7]", [0.5, 0.7]),
        ("kappa: [0.8, 0.9]", [0.8, 0.9]),
        ("tau_request: [0.5, 0.7], kappa: [0.8, 0.9]", [0.8, 0.9, 0.8, 0.9]),
        ("components: [urc, sse], kappa: 0.9", [None, None]),
        ("estimators: perfect", [0.6]),
    ],
)
def test_the_knob_is_what_is_swept(tmp_path: Path, options: str, knobs: list[float | None]) -> None:
    """A family's number is its policy's knob, unless that is not swept and another option is; what is no number orders nothing."""
    loaded = load_text(tmp_path, SWEEP.replace("  - all-slm\n", f"  - {{policy: hera, {options}}}\n"))
    found = [policy.knob for policy in expand_policies(loaded.scenario, tmp_path) if policy.family == "hera"]
    assert [None if math.isnan(knob) else knob for knob in found] == knobs


def test_a_table_without_rows_survives_its_file(tmp_path: Path) -> None:
    """Every request of a cell may fail before its first attempt: its empty table is still a table."""
    store, _ = opened(tmp_path, "workload.tasks.tool_s=0.0")
    records = run_cell(store.cells[0])
    empty = {name: column[:0] for name, column in records.subtasks.items()}
    path = tmp_path / "empty.parquet"
    write_parquet(to_arrow(empty, store.cells[0].constants), path)
    back = read_columns([path])
    assert back.keys() == {**store.cells[0].constants, **empty}.keys()
    assert all(len(column) == 0 for column in back.values())


# ------------------------------------------------------------------------------------------------------ a finished run


def complete(store: RunStore, loaded: LoadedScenario) -> None:
    """Everything a run leaves behind but its report, whose figures take their time."""
    simulated(store)
    measured = with_shares(store.requests())
    frontier = frontiers(measured, np.random.default_rng(1))
    store.finish(loaded, summarise(measured), frontier, store.manifest(loaded, 1.25, 3))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunStore, LoadedScenario]:
    """A run with everything that is written at its end."""
    store, loaded = opened(tmp_path_factory.mktemp("run"))
    complete(store, loaded)
    return store, loaded


def test_the_manifest_says_what_one_needs_to_repeat_the_run(finished: tuple[RunStore, LoadedScenario]) -> None:
    """Seeds, versions, inputs, cells and wall time; nothing in it depends on where the scenario lies."""
    store, _ = finished
    manifest = json.loads((store.folder / "manifest.json").read_text())
    assert manifest["run_id"] == store.run_id == store.folder.name
    assert (manifest["scenario"], manifest["scenario_file"], manifest["seeds"]) == ("small", "scenario.yaml", [1, 2])
    assert (manifest["cells"], manifest["cells_kept_from_before"], manifest["inputs_sha256"]) == (8, 3, {})
    assert manifest["python"] == platform.python_version()
    assert manifest["packages"].keys() >= {"simpy", "numpy", "genai-prices"}
    assert manifest["wall_s"] == 1.25
    assert str(store.folder.parent.parent) not in json.dumps(manifest)


def test_summaries_agree_with_the_records(finished: tuple[RunStore, LoadedScenario]) -> None:
    """summary.json and summary.csv hold the same numbers, and these are means of the request tables."""
    store, _ = finished
    summary = json.loads((store.folder / "summary.json").read_text())
    with (store.folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["policy"] for row in summary] == [row["policy"] for row in rows]
    table = store.requests()
    for row, text in zip(summary, rows, strict=True):
        mine = table["policy"] == row["policy"]
        assert row["n"] == mine.sum() == 24
        assert row["accuracy"] == pytest.approx(table["score"][mine].mean()) == pytest.approx(float(text["accuracy"]))
        assert (
            row["cost_usd"] == pytest.approx(table["total_usd"][mine].mean()) == pytest.approx(float(text["cost_usd"]))
        )
    assert json.loads((store.folder / "frontier.json").read_text())["base"].keys() == {"random"}


def test_the_resolved_scenario_is_the_same_experiment(
    finished: tuple[RunStore, LoadedScenario], tmp_path: Path
) -> None:
    """scenario.yaml has every profile and default written out; run again, it is the very same run."""
    store, _ = finished
    resolved = (store.folder / "scenario.yaml").read_text()
    assert "ttft_median_s" in resolved
    assert opened(tmp_path, text=resolved)[0].run_id == store.run_id


def test_latest_points_to_the_last_run(tmp_path: Path) -> None:
    """The link moves from run to run, and an old run stays what it was."""
    few = ("workload.requests=3", "policies=[all-slm]", "seeds=[1]")
    first, loaded = opened(tmp_path, *few)
    complete(first, loaded)
    latest = first.folder.parent / "latest"
    assert latest.resolve() == first.folder.resolve()
    assert os.readlink(latest) == first.run_id, "relative, so that a results folder can be moved"
    manifest = (first.folder / "manifest.json").read_bytes()
    second, loaded = opened(tmp_path, *few, "workload.homes=2")
    complete(second, loaded)
    assert latest.resolve() == second.folder.resolve()
    assert (first.folder / "manifest.json").read_bytes() == manifest
    assert not list(first.folder.parent.glob(".*"))


def test_latest_replaces_a_folder_of_that_name(tmp_path: Path) -> None:
    """A copy left by a system without links gives way to the link."""
    store, loaded = opened(tmp_path, "workload.requests=3", "policies=[all-slm]", "seeds=[1]")
    old = store.folder.parent / "latest"
    old.mkdir(parents=True)
    (old / "stale.txt").write_text("of another run")
    complete(store, loaded)
    assert old.is_symlink()
    assert not (old / "stale.txt").exists()


@pytest.mark.slow
def test_a_whole_run_and_a_second_one_that_keeps_its_cells(tmp_path: Path) -> None:
    """`run_experiment` leaves tables, summaries, manifest and report; started again it simulates nothing and says the same."""
    store, loaded = opened(tmp_path, "workload.requests=3", "policies=[all-slm, all-llm]", "seeds=[1]")
    first = run_experiment(loaded, store, _no_parallel, 1, QUIET)
    assert first.report.exists()
    again, loaded = opened(tmp_path, "workload.requests=3", "policies=[all-slm, all-llm]", "seeds=[1]")
    second = run_experiment(loaded, again, _no_parallel, 1, QUIET)
    assert (second.folder, second.summary, second.frontier) == (first.folder, first.summary, first.frontier)
    assert json.loads((second.folder / "manifest.json").read_text())["cells_kept_from_before"] == 2


def test_a_run_in_which_nothing_completes_is_an_error(tmp_path: Path) -> None:
    """The error says why requests ended and where the records are; no summary is written."""
    settings = ("faults=[{target: edge, at_s: [0], duration_s: 100000}]", "client.fail_over=false", "client.retries=0")
    store, loaded = opened(tmp_path, *settings, "policies=[all-slm]")
    with pytest.raises(IsthmusError, match=r"no request completed.*unavailable at edge"):
        run_experiment(loaded, store, _no_parallel, 1, QUIET)
    assert not (store.folder / "summary.json").exists()
    assert not (store.folder.parent / "latest").exists()


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    """A file where the results folder should be is an input error that names it."""
    (tmp_path / "taken").write_text("a file")
    store, _ = opened(tmp_path, out=tmp_path / "taken")
    with pytest.raises(InputError, match=r"taken.*Choose another --out"):
        store.start()
