"""How many subtasks a second, side by side with others in one process: `python benchmarks/speed.py [--json] [--full]`.

CPU time of this process, as wall time means little on a shared machine; every repeat runs all candidates one after the other,
and a ratio is the median of the ratios within the repeats, so a slow spell of the machine hits both sides. Garbage collection is
as everybody's users have it: on, except where `simulate()` pauses it; what the run before left behind is collected first.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # started as a file, Python looks for imports beside that file only
    sys.path.insert(0, str(ROOT))

import typer  # noqa: E402 - these need the line above
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.baselines import heap_queue, simpy_queue  # noqa: E402
from benchmarks.peers import installed_peers  # noqa: E402
from benchmarks.side_by_side import Candidate, Rates, measure, ratio  # noqa: E402
from benchmarks.worlds import events_per_subtask, one_device, run_file  # noqa: E402

GROWTH_REQUESTS = {"10k": 1_640, "100k": 16_400, "1m": 164_000}
"""Requests that make about so many subtasks, 6.1 each."""
GROWTH_REPEATS = {"10k": 5, "100k": 3, "1m": 1}
LABELS = {
    "speed": "Isthmus: agent, policy, two links, two M/M/4 tiers, full records and ledger",
    "full_world": "Isthmus, everything on: batching device, endpoint, prompt caches, 1 and 3 lossy hops",
    "one_device": "Isthmus: one batching device, requests of one call (what DynoSim does)",
    "simpy": "M/M/4 in plain SimPy, nothing else",
    "heapq": "M/M/4 in a hand-written heapq loop, nothing else",
    "ciw": "M/M/4 in Ciw",
    "dynosim": "one batching device in ai-dynamo's offline replay, compiled",
}


def candidates(requests: int) -> dict[str, Candidate]:
    """Ours first, then everybody else; the others simulate about as many requests as ours has subtasks.

    The two further worlds of ours are shorter, as they take longer and nobody's ratio but DynoSim's depends on them.
    """
    calls = round(6.1 * requests)
    peers = {name: lambda run=run: run(calls, 1)[0] for name, run in installed_peers().items()}
    return {
        "speed": lambda: _subtasks(run_file("speed", requests)),
        "simpy": lambda: len(simpy_queue(calls, 1)),
        "heapq": lambda: len(heap_queue(calls, 1)),
        **peers,
        "full_world": lambda: _subtasks(run_file("full_world", requests // 4)),
        "one_device": lambda: _subtasks(one_device(calls // 4)),
    }


def _subtasks(records: Any) -> int:
    return len(records.subtasks["request"])


def ratio_to_peer(rates: Rates, ours: str, theirs: str) -> float | None:
    """Our rate over theirs; None for a peer that is not installed."""
    return ratio(rates, ours, theirs) if theirs in rates else None


def measure_growth(size: str) -> dict[str, float]:
    """One size in a process of its own, so that its peak memory is its own: CPU seconds, subtasks, peak bytes."""
    command = [sys.executable, __file__, "--child", size]
    child = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this very file
    if child.returncode:
        raise RuntimeError(f"the run of {size} subtasks failed:\n{child.stderr}")
    result: dict[str, float] = json.loads(child.stdout)
    return result


def run_child(size: str) -> dict[str, float]:
    """What `measure_growth` starts: garbage collection as it comes, the median of several runs where they are short."""
    run_file("speed", 200)  # loads and compiles what every run shares
    seconds: list[float] = []
    peak_rss_bytes = 0
    subtasks = 0
    for _ in range(GROWTH_REPEATS[size]):
        began_s = time.process_time()
        subtasks = _subtasks(run_file("speed", GROWTH_REQUESTS[size]))
        seconds.append(time.process_time() - began_s)
        peak_rss_bytes = peak_rss_bytes or peak_memory_bytes()  # of the first run: later ones add to what it left
    return {"subtasks": subtasks, "cpu_s": statistics.median(seconds), "peak_rss_bytes": peak_rss_bytes}


def peak_memory_bytes() -> int:
    """Most memory this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: `getrusage` would hand on the peak of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts in bytes, others in KiB


def growth(sizes: Mapping[str, Mapping[str, float]], small: str, large: str) -> float | None:
    """CPU time per subtask at the larger size over that at the smaller: 1 is linear. None where a size did not run."""
    if small not in sizes or large not in sizes:
        return None
    per_subtask = {name: sizes[name]["cpu_s"] / sizes[name]["subtasks"] for name in (small, large)}
    return per_subtask[large] / per_subtask[small]


def summarise(rates: Rates, sizes: Mapping[str, Mapping[str, float]], requests: int) -> dict[str, Any]:
    """The benchmark's result as one JSON object."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "subtasks_per_s": medians["speed"],
        "full_world_subtasks_per_s": medians["full_world"],
        "one_device_subtasks_per_s": medians["one_device"],
        "ratio_to_simpy": ratio_to_peer(rates, "speed", "simpy"),
        "ratio_to_heapq": ratio_to_peer(rates, "speed", "heapq"),
        "ratio_to_ciw": ratio_to_peer(rates, "speed", "ciw"),
        "ratio_to_dynosim": ratio_to_peer(rates, "one_device", "dynosim"),
        "growth_10k_to_100k": growth(sizes, "10k", "100k"),
        "growth_100k_to_1m": growth(sizes, "100k", "1m"),
        "peak_rss_bytes": max(size["peak_rss_bytes"] for size in sizes.values()),
        "context": {
            "meaning": "rates: subtasks (others: requests) per CPU second of one core; growth: CPU time per subtask, 1 = linear",
            "requests": requests,
            "repeats": len(rates["speed"]),
            "events_per_subtask": {name: events_per_subtask(name) for name in ("speed", "full_world")},
            "rates_per_s": medians,
            "repeats_per_s": {name: list(values) for name, values in rates.items()},
            "growth": dict(sizes),
            "garbage_collection": "on; simulate() pauses it in its event loop",
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": _versions(),
        },
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("simpy", "numpy", "ciw", "ai-dynamo"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def as_tables(result: Mapping[str, Any]) -> list[Table]:
    """The result for people: who simulates how much, then how time and memory grow."""
    rates = result["context"]["rates_per_s"]
    speeds = Table("what is simulated", header_style="bold")
    speeds.add_column("per CPU s", justify="right")
    speeds.add_column("ours is", justify="right")
    for name, rate in rates.items():
        times = result.get(f"ratio_to_{name}")
        speeds.add_row(LABELS[name], f"{rate:,.0f}", f"{times:.2f} x" if times else "")
    sizes = Table("subtasks", header_style="bold")
    for heading in ("CPU s", "subtasks/s", "peak MiB"):
        sizes.add_column(heading, justify="right")
    for size in result["context"]["growth"].values():
        count, cpu_s = size["subtasks"], size["cpu_s"]
        sizes.add_row(
            f"{count:,.0f}", f"{cpu_s:.2f}", f"{count / cpu_s:,.0f}", f"{size['peak_rss_bytes'] / 2**20:,.0f}"
        )
    return [speeds, sizes]


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    requests: Annotated[
        int, typer.Option(min=50, help="Agent requests per timed run, about 6.1 subtasks each.")
    ] = 16_400,
    repeats: Annotated[int, typer.Option(min=1, help="Times that everybody runs.")] = 3,
    full: Annotated[bool, typer.Option("--full", help="Grow to a million subtasks.")] = False,
    child: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure the simulator's speed next to raw SimPy, a hand-written loop and other simulators that are installed."""
    if child:
        print(json.dumps(run_child(child)))
        return
    runs = candidates(requests)
    for run in candidates(50).values():  # nobody pays for imports
        run()
    rates = measure(runs, repeats)
    sizes = {size: measure_growth(size) for size in GROWTH_REQUESTS if full or size != "1m"}
    result = summarise(rates, sizes, requests)
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        for table in as_tables(result):
            Console().print(table)


if __name__ == "__main__":
    typer.run(main)
