"""Things that break: each fault is one SimPy process that takes its target down and brings it back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from simpy import Environment, Event

from sim.draws import component_rng
from sim.network import Link
from sim.scenario import Fault
from sim.server import Server
from sim.tier import TierRuntime


def start_faults(
    env: Environment, faults: Iterable[Fault], seed: int, tiers: Mapping[str, TierRuntime],
    links: Mapping[str, list[tuple[Link, Link]]],
) -> None:  # fmt: skip
    """Start every fault's process. Times depend on the seed and the fault's place in the list, never on the policy."""
    damage = _Damage(tiers, links)
    for number, fault in enumerate(faults):
        env.process(_fault_process(env, fault, f"fault/{number}", seed, damage))


def _fault_process(
    env: Environment, fault: Fault, name: str, seed: int, damage: _Damage
) -> Generator[Event, Any, None]:
    for start_s, duration_s in _spells(fault, name, seed):
        if start_s > env.now:
            yield env.timeout(start_s - env.now)
        damage.begin(fault)
        yield env.timeout(duration_s)
        damage.end(fault)


def _spells(fault: Fault, name: str, seed: int) -> Iterator[tuple[float, float]]:
    """(start, duration) of every occurrence; endless for random faults."""
    if fault.mean_time_between_s is None:
        starts_s = sorted(fault.at_s)
        begun_s = starts_s[0]
        for start_s, next_s in zip(starts_s, [*starts_s[1:], math.inf], strict=True):
            if next_s > start_s + fault.duration_s:  # else it happens again before it is over
                yield begun_s, start_s + fault.duration_s - begun_s
                begun_s = next_s
        return
    rng, now_s = component_rng(seed, name), 0.0
    while True:
        now_s += rng.exponential(fault.mean_time_between_s)
        duration_s = rng.exponential(fault.duration_s)
        yield now_s, duration_s
        now_s += duration_s


class _Damage:
    """What is broken at present. What several faults have hit works again when the last of them is over."""

    def __init__(self, tiers: Mapping[str, TierRuntime], links: Mapping[str, list[tuple[Link, Link]]]) -> None:
        self._tiers, self._links = tiers, links
        self._down: Counter[Link | Server] = Counter()
        self._factors: dict[Server, list[float]] = {}

    def begin(self, fault: Fault) -> None:
        """Break the fault's target."""
        for link in self._links_of(fault):
            self._down[link] += 1
            link.set_up(False)
        for server in self._servers_of(fault):
            if fault.kind == "slow":
                self._factors.setdefault(server, []).append(fault.factor)
                self._slow_down(server)
            else:
                self._down[server] += 1
                if self._down[server] == 1:
                    server.crash()

    def end(self, fault: Fault) -> None:
        """Repair it, unless another fault still holds it."""
        for link in self._links_of(fault):
            self._down[link] -= 1
            link.set_up(not self._down[link])
        for server in self._servers_of(fault):
            if fault.kind == "slow":
                self._factors[server].remove(fault.factor)
                self._slow_down(server)
            else:
                self._down[server] -= 1
                if not self._down[server]:
                    server.restart()

    def _links_of(self, fault: Fault) -> list[Link]:
        return [link for pair in self._links.get(fault.target, ()) for link in pair]

    def _servers_of(self, fault: Fault) -> Sequence[Server]:
        if fault.target in self._links:
            return ()
        servers = self._tiers[fault.target].fleet.servers
        return (servers[fault.replica],) if fault.kind == "crash" else servers

    def _slow_down(self, server: Server) -> None:
        server.slowdown = math.prod(self._factors[server])  # type: ignore[attr-defined]
