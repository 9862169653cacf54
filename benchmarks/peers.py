"""Other simulators, where they are installed, on work as near to ours as they can express.

Each function simulates `requests` requests and returns (how many it simulated, their mean wait or stay in seconds), so that a
test can hold the answer against theory.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

from benchmarks.baselines import ARRIVALS_PER_S, SERVERS, SERVICES_PER_S

DYNOSIM_PROMPT_TOKENS, DYNOSIM_ANSWER_TOKENS, DYNOSIM_REQUESTS_PER_S = 128, 32, 20.0


def ciw_queue(requests: int, seed: int) -> tuple[int, float]:
    """M/M/4 in Ciw, until `requests` have left; the mean is the wait for a server."""
    import ciw

    ciw.seed(seed)
    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Exponential(ARRIVALS_PER_S)],
        service_distributions=[ciw.dists.Exponential(SERVICES_PER_S)],
        number_of_servers=[SERVERS],
    )
    simulation: Any = ciw.Simulation(network)
    simulation.simulate_until_max_customers(requests, method="Finish")
    records = simulation.get_all_records()
    return len(records), sum(record.waiting_time for record in records) / len(records)


def dynosim_replay(requests: int, seed: int) -> tuple[int, float]:
    """Poisson requests of one size on one mocked vLLM replica in ai-dynamo's offline replay; the mean is the whole stay.

    It is compiled code that simulates the engine alone and reports summaries. Compare with `worlds.one_device`.
    """
    replay = importlib.import_module("dynamo.replay")
    report: Any = replay.run_synthetic_trace_replay(
        DYNOSIM_PROMPT_TOKENS, DYNOSIM_ANSWER_TOKENS, requests, request_rate=DYNOSIM_REQUESTS_PER_S, arrival_seed=seed,
        num_workers=1, replay_mode="offline",
    )  # fmt: skip
    return int(report.summary["completed_requests"]), float(report.summary["mean_e2e_latency_ms"]) / 1000.0


PEERS: dict[str, tuple[str, Callable[[int, int], tuple[int, float]]]] = {
    "ciw": ("ciw", ciw_queue),
    "dynosim": ("dynamo.replay", dynosim_replay),
}
"""Name -> (the module it needs, the function)."""


def installed_peers() -> dict[str, Callable[[int, int], tuple[int, float]]]:
    """The peers whose module can be imported here."""
    return {name: function for name, (module, function) in PEERS.items() if _is_installed(module)}


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of the parent package
        return False
