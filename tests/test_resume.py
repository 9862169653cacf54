"""A run whose driving process is killed goes on where it stopped, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sim.cells import expand_cells
from sim.run_store import RunStore
from tests.conftest import ROOT
from tests.helpers import SWEEP, file_hashes, load_text, sweep

PATIENCE_S = 90.0
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own helpers notice the end of their cluster at once, but try for a minute to report it before they go."""


def started_sweep(folder: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    """The command line running SWEEP, without waiting for it."""
    (folder / "scenario.yaml").write_text(SWEEP, encoding="utf-8")
    command = [
        sys.executable, "run_sim.py", "run", str(folder / "scenario.yaml"), "--out", str(out), "--workers", str(workers),
        "--set", "workload.requests=600",
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(
    condition: Callable[[], bool], run: subprocess.Popen[bytes] | None = None, within_s: float = PATIENCE_S
) -> bool:
    """Whether the condition came true in time; a run that ends on its own before that is a failure of the test."""
    end_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        if run is not None and run.poll() is not None and not condition():
            assert run.stderr is not None
            pytest.fail(f"the run ended before it could be killed: {run.stderr.read().decode()[-2000:]}")
        time.sleep(0.02)
    return True


def processes() -> dict[int, tuple[int, str]]:
    """Parent and start time (ticks since boot) of every process, by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it ended while we looked
            if fields[0] != "Z":
                found[int(entry.name)] = (int(fields[1]), fields[19])
    return found


def descendants(pid: int) -> set[tuple[int, str]]:
    """(process id, start time) of everything a process has started, directly or not."""
    table = processes()
    family = {pid}
    while grown := {child for child, (parent, _) in table.items() if parent in family} - family:
        family |= grown
    return {(child, table[child][1]) for child in family - {pid} if child in table}


def command(pid: int) -> str:
    """The command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def alive(family: set[tuple[int, str]]) -> set[tuple[int, str]]:
    """Those of them that still run."""
    table = processes()
    return {(pid, started) for pid, started in family if pid in table and table[pid][1] == started}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """After `kill -9` of the driver in mid-sweep the same command runs what is missing only, and ends with the same bytes.

    No worker outlives the killed driver, and no half-written file outlives the second run.
    """
    out = tmp_path / "results"
    run = started_sweep(tmp_path, out, workers=2)
    loaded = load_text(tmp_path, SWEEP, ["workload.requests=600"])
    store = RunStore(out, loaded, expand_cells(loaded))

    def finished() -> list[Path]:
        return sorted((store.folder / "requests").glob("*.parquet"))

    family: set[tuple[int, str]] = set()
    try:
        assert wait_for(lambda: len(finished()) >= 2, run)
        family = descendants(run.pid)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        kept = {path: path.stat().st_mtime_ns for path in finished()}
        assert 2 <= len(kept) < len(store.cells)
        assert len(family) >= 4, "a local Ray cluster was running"
        agents = {(pid, started) for pid, started in family if command(pid) in AGENTS}
        assert wait_for(lambda: alive(family) <= agents, within_s=15.0), "workers outlive their driver"
        check_second_run(tmp_path, store, kept)
        assert wait_for(lambda: not alive(family)), f"left behind: {alive(family)}"
    finally:
        for pid, _ in alive(family):
            os.kill(pid, signal.SIGKILL)
        if run.poll() is None:
            run.kill()
        run.communicate()


def check_second_run(folder: Path, store: RunStore, kept: dict[Path, int]) -> None:
    """The same command again finishes the run and writes only what was missing."""
    out = store.folder.parent.parent
    (store.folder / "requests" / ".00009.parquet.999999999.partial").write_bytes(b"half a file")

    again = started_sweep(folder, out, workers=2)
    _, messages = again.communicate(timeout=240)
    assert again.returncode == 0, messages.decode()[-2000:]
    assert f"{len(kept)} of {len(store.cells)} cells are finished from before and kept" in messages.decode()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished cells are not written again"
    assert all(store.finished(cell) for cell in store.cells)
    assert not list(out.rglob("*.partial"))
    assert (out / "sweep" / "latest").resolve() == store.folder.resolve()
    undisturbed = sweep(folder, folder / "undisturbed", settings=["workload.requests=600"])
    assert file_hashes(store.folder) == file_hashes(undisturbed)
