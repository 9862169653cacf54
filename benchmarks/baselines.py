"""What Isthmus is measured against: the same M/M/4 queue, once in plain SimPy and once by hand.

Both draw from the standard library's generator, the fastest way to one exponential number, keep one row per request and do
nothing else: no network, no policy, no agent, no ledger. Their speed bounds what an event loop in this language can do.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Generator
from heapq import heappop, heappush
from typing import Any

import simpy

ARRIVALS_PER_S = 3.2
SERVICES_PER_S = 1.0
SERVERS = 4

Row = tuple[float, float, float]
"""Arrival, start of service and departure of one request, s."""


def simpy_queue(requests: int, seed: int) -> list[Row]:
    """M/M/4 as SimPy's own documentation would write it; six events a request. Rows in order of departure."""
    rng = random.Random(seed)
    env = simpy.Environment()
    servers = simpy.Resource(env, SERVERS)
    rows: list[Row] = []

    def customer() -> Generator[Any, Any, None]:
        arrival_s = env.now
        with servers.request() as turn:
            yield turn
            start_s = env.now
            yield env.timeout(rng.expovariate(SERVICES_PER_S))
        rows.append((arrival_s, start_s, env.now))

    def source() -> Generator[Any, Any, None]:
        for _ in range(requests):
            yield env.timeout(rng.expovariate(ARRIVALS_PER_S))
            env.process(customer())

    env.process(source())
    env.run()
    return rows


def heap_queue(requests: int, seed: int) -> list[Row]:
    """M/M/4 as a hand-written loop over a heap of departures; two events a request. Rows in order of service."""
    draw = random.Random(seed).expovariate
    departures: list[float] = []
    line: deque[float] = deque()
    rows: list[Row] = []
    arrived, next_arrival_s = 0, draw(ARRIVALS_PER_S)
    while arrived < requests or departures:
        if not departures or next_arrival_s <= departures[0]:
            now = next_arrival_s
            line.append(now)
            arrived += 1
            next_arrival_s = now + draw(ARRIVALS_PER_S) if arrived < requests else math.inf
        else:
            now = heappop(departures)
        if line and len(departures) < SERVERS:
            end_s = now + draw(SERVICES_PER_S)
            heappush(departures, end_s)
            rows.append((line.popleft(), now, end_s))
    return rows
