"""Same scenario and seed, same bytes: again, in another process, and on any number of workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.cluster import run_parallel
from tests.conftest import ROOT
from tests.helpers import file_hashes, sweep
from workloads.errors import InputError, RecordingMiss


def test_a_rerun_writes_the_same_bytes(tmp_path: Path) -> None:
    """Two runs of ten cells in one process leave byte-identical tables."""
    few = ["workload.requests=60"]
    first, second = (sweep(tmp_path, tmp_path / name, settings=few) for name in ("first", "second"))
    hashes = file_hashes(first)
    assert len(hashes) == 2 * 10
    assert file_hashes(second) == hashes
    assert len(set(hashes.values())) == len(hashes), "no two cells are alike, so the comparison means something"


def test_order_and_neighbours_of_a_cell_do_not_matter(tmp_path: Path) -> None:
    """A cell alone writes what it writes among others: nothing leaks from one simulation into the next."""
    few = ["workload.requests=60"]
    among = file_hashes(sweep(tmp_path, tmp_path / "among", settings=few))
    alone = file_hashes(
        sweep(tmp_path, tmp_path / "alone", settings=[*few, "policies=[{policy: random, p: 0.5}]", "seeds=[2]"])
    )
    assert set(alone.values()) < set(among.values())


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    """The order of sets and the hashes of strings differ between processes and show nowhere."""
    program = (
        "import sys; from pathlib import Path; from tests.helpers import sweep\n"
        "sweep(Path(sys.argv[1]), Path(sys.argv[2]), settings=['workload.requests=100'])"
    )
    for hash_seed in ("1", "4242"):
        command = [sys.executable, "-c", program, str(tmp_path), str(tmp_path / hash_seed)]
        subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, check=True)
    first, second = (file_hashes(tmp_path / hash_seed) for hash_seed in ("1", "4242"))
    assert len(first) == 2 * 10
    assert first == second


# ------------------------------------------------------------------------------------------------------------ workers


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray instance of two workers for the tests below; `run_parallel` uses one that is there."""
    ray = pytest.importorskip("ray")
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=2, runtime_env=environment, **options)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_two_workers_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    """On one worker and on two, the same files with the same bytes."""
    one, two = (sweep(tmp_path, tmp_path / str(workers), workers) for workers in (1, 2))
    hashes = file_hashes(one)
    assert len(hashes) == 2 * 10
    assert file_hashes(two) == hashes


def refuse(number: int) -> int:
    """Fail on 3 with an input error, on 5 with a recording miss."""
    if number == 3:
        raise InputError("file.csv: row 3", "found x", "Write y")
    if number == 5:
        raise RecordingMiss("nobody recorded this")
    return number * number


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_results_come_with_their_items() -> None:
    """Every item once, each with its own result, in whatever order they finish."""
    assert sorted(run_parallel(refuse, [0, 1, 2, 4, 6, 7], 2)) == [(0, 0), (1, 1), (2, 4), (4, 16), (6, 36), (7, 49)]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_an_error_in_a_worker_arrives_as_itself() -> None:
    """An error raised on purpose is the same error here: its kind, its parts and its text, without Ray's traceback around it."""
    with pytest.raises(InputError) as caught:
        list(run_parallel(refuse, [1, 3, 2], 2))
    assert type(caught.value) is InputError
    assert str(caught.value) == "file.csv: row 3: found x. Write y"
    assert caught.value.remedy == "Write y"
    with pytest.raises(RecordingMiss) as missed:
        list(run_parallel(refuse, [5], 2))
    assert type(missed.value) is RecordingMiss
    assert str(missed.value) == "nobody recorded this"


def die_once(marker: Path) -> str:
    """Kill the own process the first time; answer the second time."""
    if not marker.exists():
        marker.write_text("died")
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_killed_is_tried_again(tmp_path: Path) -> None:
    """A worker that dies without an error (out of memory, say) costs its cell a second try and nothing else."""
    assert list(run_parallel(die_once, [tmp_path / "marker"], 2)) == [(tmp_path / "marker", "alive")]
    assert (tmp_path / "marker").read_text() == "died"
