"""Servers against queueing theory: M/M/1, M/M/4, M/D/1, and processor sharing from continuous batching.

Each case is simulated with 20 independent seeds, chosen before the first run as 0..19; every run starts empty and drops its
first fifth, at least five relaxation times. The theory's value must lie inside the 99 % Student-t interval over the seeds'
means. So a right simulator fails one case in a hundred by chance: with the 22 intervals here (wait and sojourn of one case
are nearly the same number, so 13 independent ones) the chance that a fresh choice of seeds fails somewhere is about 12 %.
The seeds are fixed, so a suite that passes keeps passing until the simulator changes. The intervals are 1 to 15 % of the
value wide each way; that single jobs are timed exactly is shown in test_slot_server.py and test_batching.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import simpy
from scipy.stats import t as student

from sim.batching import BatchingServer
from sim.roofline import Roofline
from sim.server import Job, Server, SlotServer

SEEDS = range(20)
LOADS = {0.5: 8_000, 0.8: 16_000, 0.95: 40_000}
"""Jobs per seed. Relaxation of M/M/1 takes about (1 - sqrt(load))^-2 services: 12, 90 and 1,560."""

pytestmark = pytest.mark.slow


def erlang_c(slots: int, load: float) -> float:
    """Probability that an arrival waits in M/M/c (Erlang 1917; Kleinrock, Queueing Systems I, eq. 3.40)."""
    offered = slots * load
    last = offered**slots / math.factorial(slots) / (1.0 - load)
    return last / (sum(offered**k / math.factorial(k) for k in range(slots)) + last)


def mean_wait(system: str, load: float) -> float:
    """Mean wait in line in units of the mean service time."""
    if system == "M/M/4":
        return erlang_c(4, load) / (4 * (1.0 - load))
    squared_variation = {"M/M/1": 1.0, "M/D/1": 0.0}[system]  # Pollaczek-Khinchine
    return load * (1.0 + squared_variation) / (2.0 * (1.0 - load))


def serve(server: Server, env: simpy.Environment, gaps: np.ndarray, jobs: Iterable[Job]) -> tuple[float, float]:
    """Submit the jobs one gap after another and run to the end; returns (mean wait, mean stay) without the warm-up."""
    waits, stays = [], []

    def note(event):
        job = event.value
        waits.append(job.started_s - job.submitted_s)
        stays.append(job.finished_s - job.submitted_s)

    def arrivals():
        for gap, job in zip(gaps.tolist(), jobs, strict=True):
            yield env.timeout(gap)
            server.submit(job).callbacks.append(note)

    env.process(arrivals())
    env.run()
    warm_up = len(gaps) // 5
    return float(np.mean(waits[warm_up:])), float(np.mean(stays[warm_up:]))


def assert_inside_interval(means: list[float], theory: float, granularity: float = 0.0) -> None:
    """The theory lies inside the seeds' 99 % interval, widened by a stated bound on the model's own deviation."""
    half_width = float(student.ppf(0.995, len(means) - 1)) * float(np.std(means, ddof=1)) / math.sqrt(len(means))
    assert abs(float(np.mean(means)) - theory) <= half_width + granularity, (
        f"theory {theory:.4f}, simulated {np.mean(means):.4f} +- {half_width:.4f}"
    )


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("system", ["M/M/1", "M/M/4", "M/D/1"])
def test_mean_wait_and_sojourn(system, load):
    """Mean wait and mean sojourn of Poisson arrivals at a SlotServer agree with the formulas."""
    slots = 4 if system == "M/M/4" else 1
    count = LOADS[load]
    waits, sojourns = [], []
    for seed in SEEDS:
        rng = np.random.default_rng([seed, slots, round(100 * load), system == "M/D/1"])
        works = np.ones(count) if system == "M/D/1" else rng.exponential(1.0, count)
        gaps = rng.exponential(1.0, count)
        jobs = (Job(1, 1, service_s=work) for work in works.tolist())
        env = simpy.Environment()
        wait, sojourn = serve(SlotServer(env, slots), env, gaps / (slots * load), jobs)
        waits.append(wait)
        sojourns.append(sojourn)
    assert_inside_interval(waits, mean_wait(system, load))
    assert_inside_interval(sojourns, mean_wait(system, load) + 1.0)


@pytest.mark.parametrize("load", [0.5, 0.8, 0.9])
def test_compute_bound_batching_shares_the_processor(load):
    """Where an iteration takes time in proportion to its batch, batching is processor sharing: E[T] = E[S] / (1 - load).

    Lengths are geometric with mean 2,000 tokens, prompts one token (so prefill is one more token's work), a token takes
    1/2,000 s. Processor sharing is the limit of vanishing quanta; here an arrival waits for the rest of an iteration and
    a finished job for its end, together less than one iteration on average, which is the mean batch of
    load / (1 - load) tokens' time plus one: the granularity by which the interval is widened (0.05 % of E[T]).
    """
    assert_processor_sharing(load, {0.5: 3_000, 0.8: 8_000, 0.9: 12_000}[load], deterministic=False)


def test_processor_sharing_depends_on_the_mean_length_only():
    """Constant lengths give the same mean stay as geometric ones at equal load: the insensitivity of sharing."""
    assert_processor_sharing(0.8, 6_000, deterministic=True)


def assert_processor_sharing(load: float, count: int, *, deterministic: bool) -> None:
    """Simulate all seeds and compare the mean stay with 1 / (1 - load)."""
    tokens = 2_000
    compute_bound = Roofline(
        peak_flops=2.0 * tokens, memory_bandwidth_bytes_s=1.0, memory_bytes=1.0, parameters=1.0, weight_bytes=0.0
    )
    means = []
    for seed in SEEDS:
        rng = np.random.default_rng([seed, 99, round(100 * load), deterministic])
        lengths = np.full(count, tokens) if deterministic else rng.geometric(1.0 / tokens, count)
        gaps = rng.exponential(1.0, count)
        jobs = (Job(1, length) for length in lengths.tolist())
        env = simpy.Environment()
        _, stay = serve(BatchingServer(env, compute_bound, max_batch=count), env, gaps / load, jobs)
        means.append(stay)
    assert_inside_interval(means, 1.0 / (1.0 - load), (load / (1.0 - load) + 1.0) / tokens)
