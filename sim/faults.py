"""Things that break: each fault is one SimPy process that takes its target down and brings it back."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

from simpy import Environment, Event

from sim.draws import component_rng
from sim.network import Link
from sim.scenario import Fault
from sim.tier import TierRuntime


def start_faults(
    env: Environment, faults: Iterable[Fault], seed: int, tiers: Mapping[str, TierRuntime],
    links: Mapping[str, list[tuple[Link, Link]]],
) -> None:  # fmt: skip
    """Start every fault's process. Times depend on the seed and the fault's place in the list, never on the policy."""
    for number, fault in enumerate(faults):
        env.process(_fault_process(env, fault, f"fault/{number}", seed, tiers, links))


def _fault_process(
    env: Environment, fault: Fault, name: str, seed: int, tiers: Mapping[str, TierRuntime],
    links: Mapping[str, list[tuple[Link, Link]]],
) -> Generator[Event, Any, None]:  # fmt: skip
    for start_s, duration_s in _spells(fault, name, seed):
        if start_s > env.now:
            yield env.timeout(start_s - env.now)
        _apply(fault, tiers, links, broken=True)
        yield env.timeout(duration_s)
        _apply(fault, tiers, links, broken=False)


def _spells(fault: Fault, name: str, seed: int) -> Iterator[tuple[float, float]]:
    """(start, duration) of every occurrence; endless for random faults."""
    if fault.mean_time_between_s is None:
        for start_s in sorted(fault.at_s):
            yield start_s, fault.duration_s
        return
    rng, now_s = component_rng(seed, name), 0.0
    while True:
        now_s += rng.exponential(fault.mean_time_between_s)
        duration_s = rng.exponential(fault.duration_s)
        yield now_s, duration_s
        now_s += duration_s


def _apply(
    fault: Fault, tiers: Mapping[str, TierRuntime], links: Mapping[str, list[tuple[Link, Link]]], *, broken: bool
) -> None:
    if fault.target in links:
        for up, down in links[fault.target]:
            up.set_up(not broken)
            down.set_up(not broken)
        return
    servers = tiers[fault.target].fleet.servers
    if fault.kind == "slow":
        for server in servers:
            server.slowdown = fault.factor if broken else 1.0  # type: ignore[attr-defined]
        return
    for server in servers if fault.kind == "outage" else (servers[fault.replica],):
        if broken:
            server.crash()
        else:
            server.restart()
