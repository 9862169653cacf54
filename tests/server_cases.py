"""One small server of every kind, and a random life for it."""

from __future__ import annotations

import numpy as np
import simpy

from sim.batching import BatchingServer
from sim.draws import CommonDraws
from sim.endpoint import CloudEndpoint, LogNormal
from sim.fleet import Fleet
from sim.prompt_cache import PromptCache
from sim.roofline import Roofline
from sim.server import Job, Server, SlotServer

DEVICE = Roofline(
    peak_flops=1e3,
    memory_bandwidth_bytes_s=1e3,
    memory_bytes=1e9,
    parameters=5.0,
    weight_bytes=20.0,
    kv_bytes_per_token=0.1,
)


def endpoint(env: simpy.Environment, **options) -> CloudEndpoint:
    """An endpoint with seeded draws; one second to the first token and 10 tokens/s unless told otherwise."""
    draws = (CommonDraws(1, "ttft"), CommonDraws(1, "rate"))
    profile = {"ttft_s": LogNormal(1.0), "tokens_per_s": LogNormal(10.0), "draws": draws}
    return CloudEndpoint(env, "api", **{**profile, **options})


def device(env: simpy.Environment, **options) -> BatchingServer:
    """A batching device of four."""
    return BatchingServer(env, DEVICE, **{"max_batch": 4, **options})


SERVERS = {
    "one slot": lambda env: SlotServer(env),
    "four slots by priority": lambda env: SlotServer(env, 4, discipline="priority"),
    "batching": lambda env: device(env, kv_capacity_tokens=150, cache=PromptCache()),
    "batching by priority": lambda env: device(env, discipline="priority"),
    "endpoint that refuses": lambda env: endpoint(env, ttft_s=LogNormal(1.0, 0.5), concurrency=3, rpm=40, tpm=2000),
    "endpoint that queues": lambda env: endpoint(env, concurrency=2, queue_when_full=True, cache=PromptCache(20.0)),
    "fleet of slots": lambda env: Fleet([SlotServer(env) for _ in range(3)]),
    "fleet by affinity": lambda env: Fleet([device(env, cache=PromptCache()) for _ in range(2)], "affinity"),
}


def at(env: simpy.Environment, time_s: float, action) -> None:
    """Do something at a given time."""

    def process():
        yield env.timeout(time_s)
        action()

    env.process(process())


def random_job(rng: np.random.Generator, request: int) -> Job:
    """A job of random size, priority and service time."""
    prompt, output, priority = (int(value) for value in rng.integers(0, (60, 40, 3)))
    service_s = float(rng.exponential(1.0))
    return Job(prompt, output, priority=priority, request=request % 20, position=request // 20, service_s=service_s)


def random_life(
    env: simpy.Environment, server: Server, seed: int, count: int, *, rate: float = 2.0, faults: bool = True
) -> tuple[list[Job], list[Job]]:
    """Start Poisson arrivals and, with faults, cancellations and crashes; returns (jobs, departures so far)."""
    rng = np.random.default_rng(seed)
    jobs: list[Job] = []
    departures: list[Job] = []

    def arrivals():
        for request in range(count):
            yield env.timeout(float(rng.exponential(1.0 / rate)))
            job = random_job(rng, request)
            jobs.append(job)
            server.submit(job).callbacks.append(lambda event: departures.append(event.value))
            if faults and rng.random() < 0.2:
                at(env, float(rng.exponential(1.0)), lambda job=job: server.cancel(job))

    env.process(arrivals())
    if faults:
        for _ in range(3):
            down_s = float(rng.uniform(0.0, count / rate))
            at(env, down_s, server.crash)
            at(env, down_s + 5.0, server.restart)
    return jobs, departures
