"""The speed benchmark: its comparators compute the queue they claim to, and its result has every field."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.baselines import ARRIVALS_PER_S, SERVERS, SERVICES_PER_S, heap_queue, simpy_queue
from benchmarks.peers import ciw_queue, installed_peers
from benchmarks.side_by_side import measure, ratio
from benchmarks.speed import growth, ratio_to_peer
from benchmarks.worlds import events_per_subtask, one_device, run_file

ROOT = Path(__file__).resolve().parents[1]


def erlang_c_wait_s() -> float:
    """Mean wait in M/M/c: P(wait) / (c mu - lambda), P(wait) by Erlang's C formula (Kleinrock, Queueing Systems I, 3.5)."""
    load = ARRIVALS_PER_S / SERVICES_PER_S
    below = sum(load**k / math.factorial(k) for k in range(SERVERS))
    full = load**SERVERS / math.factorial(SERVERS) * SERVERS / (SERVERS - load)
    return full / (below + full) / (SERVERS * SERVICES_PER_S - ARRIVALS_PER_S)


@pytest.mark.slow
def test_baselines_wait_as_erlang_c_says() -> None:
    """Both baselines are M/M/4: their mean wait over ten seeds is Erlang's within four standard errors."""
    for queue in (simpy_queue, heap_queue):
        waits_s = [
            statistics.fmean(start_s - arrival_s for arrival_s, start_s, _ in queue(20_000, seed)) for seed in range(10)
        ]
        error_s = statistics.stdev(waits_s) / math.sqrt(len(waits_s))
        assert abs(statistics.fmean(waits_s) - erlang_c_wait_s()) < 4 * error_s


def test_both_baselines_are_the_same_queue() -> None:
    """Drawing the same numbers in the same order, the SimPy loop and the hand-written one tell the same story."""
    by_hand = sorted(heap_queue(500, 3))
    in_simpy = sorted(simpy_queue(500, 3))
    assert [row == pytest.approx(other) for row, other in zip(in_simpy, by_hand, strict=True)] == [True] * 500


@pytest.mark.slow
def test_ciw_waits_as_erlang_c_says() -> None:
    """The Ciw model is the same M/M/4 queue."""
    pytest.importorskip("ciw")
    runs = [ciw_queue(10_000, seed) for seed in range(8)]
    assert [count for count, _ in runs] == [10_000] * 8
    waits_s = [wait_s for _, wait_s in runs]
    error_s = statistics.stdev(waits_s) / math.sqrt(len(waits_s))
    assert abs(statistics.fmean(waits_s) - erlang_c_wait_s()) < 4 * error_s


def test_the_worlds_do_the_work_they_are_timed_for() -> None:
    """Every request completes, with rows, network time, queueing and money in the tables; the device serves every call."""
    records = run_file("speed", 200)
    assert set(records.requests["status"]) == {"completed"}
    assert set(records.subtasks["tier"]) == {0, 1}
    for column in ("uplink_s", "queue_s", "decode_s", "downlink_s", "total_usd"):
        assert records.subtasks[column].sum() > 0, column
    full = run_file("full_world", 100)
    assert set(full.requests["status"]) == {"completed"}
    assert full.subtasks["cached_tokens"].sum() > 0
    assert (one_device(200).subtasks["completion_tokens"] == 32).all()


def test_events_per_subtask_are_counted() -> None:
    """A subtask in front of two links and a slot server costs at least its three waits."""
    assert 3.0 <= events_per_subtask("speed", 50) < events_per_subtask("full_world", 50)


def test_ratios_pair_the_repeats() -> None:
    """A ratio is taken within each repeat, and a peer that is not there gives none."""
    rates = {"ours": [10.0, 50.0, 12.0], "theirs": [20.0, 100.0, 20.0]}
    assert ratio(rates, "ours", "theirs") == 0.5
    assert ratio_to_peer(rates, "ours", "absent") is None
    assert set(measure({"one": lambda: 1}, 2)) == {"one"}


def test_growth_is_per_subtask() -> None:
    """Ten times the time for ten times the work is growth 1; a size that did not run gives none."""
    sizes = {"10k": {"cpu_s": 1.0, "subtasks": 10_000}, "100k": {"cpu_s": 11.0, "subtasks": 100_000}}
    assert growth(sizes, "10k", "100k") == pytest.approx(1.1)
    assert growth(sizes, "100k", "1m") is None


@pytest.mark.slow
def test_the_command_prints_one_json_object() -> None:
    """`python benchmarks/speed.py --json` prints every field; what needs no optional peer is a finite positive number."""
    command = [sys.executable, "benchmarks/speed.py", "--json", "--requests", "100", "--repeats", "1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    fields = (
        "subtasks_per_s", "full_world_subtasks_per_s", "one_device_subtasks_per_s", "ratio_to_simpy", "ratio_to_heapq",
        "growth_10k_to_100k", "peak_rss_bytes",
    )  # fmt: skip
    for field in fields:
        assert 0 < result[field] < math.inf, field
    for peer in ("ciw", "dynosim"):
        assert (result[f"ratio_to_{peer}"] is not None) == (peer in installed_peers())
    assert result["growth_100k_to_1m"] is None
    assert result["context"]["growth"]["100k"]["subtasks"] == pytest.approx(100_000, rel=0.05)
    assert {"python", "versions", "events_per_subtask", "requests"} <= set(result["context"])
