"""What breaks, when, and what comes back: fault times, faults that overlap, and what a simulation makes of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from simpy import Environment

from sim.faults import start_faults
from sim.scenario import Fault
from tests.helpers import Step, always, api, attempts_of, device, link, phases, rows, run, scenario, slots, task


class Switch:
    """A link or server that notes what is done to it."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self.log: list[tuple[str, float]] = []
        self.up = True
        self.slowdown = 1.0

    def _turn(self, what: str, *, up: bool) -> None:
        if up != self.up:
            self.log.append((what, self._env.now))
        self.up = up

    def set_up(self, up: bool) -> None:
        self._turn("up" if up else "down", up=up)

    def crash(self) -> None:
        self._turn("down", up=False)

    def restart(self) -> None:
        self._turn("up", up=True)


def broken(
    *faults: dict[str, Any], until_s: float, seed: int = 1, replicas: int = 2
) -> tuple[list[Switch], list[Switch]]:
    """What happens to the two directions of link `a-b` and to the servers of tier `edge`."""
    env = Environment()
    links, servers = [Switch(env), Switch(env)], [Switch(env) for _ in range(replicas)]
    hops: Any = {"a-b": [tuple(links)]}
    tiers: Any = {"edge": SimpleNamespace(fleet=SimpleNamespace(servers=tuple(servers)))}
    start_faults(env, [Fault(**fault) for fault in faults], seed, tiers, hops)
    env.run(until=until_s)
    return links, servers


def test_faults_at_given_times() -> None:
    """Both directions of a link go down at each time and come back after the duration."""
    links, servers = broken({"target": "a-b", "at_s": (30.0, 5.0), "duration_s": 10.0}, until_s=100)
    assert links[0].log == links[1].log == [("down", 5.0), ("up", 15.0), ("down", 30.0), ("up", 40.0)]
    assert not servers[0].log


def test_a_fault_that_happens_again_before_it_is_over() -> None:
    """Occurrences that overlap are one long outage; the next begins on time."""
    links, _ = broken({"target": "a-b", "at_s": (5.0, 12.0, 40.0), "duration_s": 10.0}, until_s=100)
    assert links[0].log == [("down", 5.0), ("up", 22.0), ("down", 40.0), ("up", 50.0)]


def test_two_faults_on_one_target() -> None:
    """What two faults hold down comes back when the later one ends, whichever began first."""
    long = {"target": "edge", "at_s": (10.0,), "duration_s": 50.0}
    short = {"target": "edge", "at_s": (20.0,), "duration_s": 10.0}
    for faults in ((long, short), (short, long)):
        _, servers = broken(*faults, until_s=100)
        assert servers[0].log == [("down", 10.0), ("up", 60.0)]


def test_a_crash_within_an_outage() -> None:
    """A replica that restarts while its tier is unreachable stays down; the others never crashed."""
    outage = {"target": "edge", "at_s": (10.0,), "duration_s": 20.0}
    crash = {"target": "edge", "kind": "crash", "replica": 1, "at_s": (5.0, 15.0), "duration_s": 7.0}
    _, servers = broken(outage, crash, until_s=100)
    assert servers[0].log == [("down", 10.0), ("up", 30.0)]
    assert servers[1].log == [("down", 5.0), ("up", 30.0)]


def test_slow_spells_multiply_and_end() -> None:
    """Two causes at once multiply; afterwards the endpoint is as fast as before."""
    slow = {"target": "edge", "kind": "slow", "at_s": (10.0,), "duration_s": 20.0, "factor": 3.0}
    worse = {**slow, "at_s": (20.0,), "factor": 2.0}
    for until_s, factor in ((9.0, 1.0), (11.0, 3.0), (21.0, 6.0), (31.0, 2.0), (41.0, 1.0)):
        _, servers = broken(slow, worse, until_s=until_s)
        assert [server.slowdown for server in servers] == [factor, factor]


def test_random_faults_have_their_means() -> None:
    """Times up and times down are exponential with the given means."""
    links, _ = broken({"target": "a-b", "mean_time_between_s": 90.0, "duration_s": 10.0}, until_s=400_000)
    times = np.array([time for _, time in links[0].log])
    down_s, up_s = times[1::2] - times[:-1:2][: len(times[1::2])], times[2::2] - times[1:-1:2]
    assert len(times) > 7000
    assert down_s.mean() == pytest.approx(10.0, rel=0.06)
    assert up_s.mean() == pytest.approx(90.0, rel=0.06)
    assert np.std(up_s) == pytest.approx(90.0, rel=0.08)


def test_random_faults_belong_to_seed_and_place() -> None:
    """The same seed and place in the list give the same times; another seed or place gives others."""
    fault = {"target": "a-b", "mean_time_between_s": 90.0, "duration_s": 10.0}
    other = {"target": "edge", "at_s": (1e9,)}

    def times(*faults: dict[str, Any], seed: int = 1) -> list[tuple[str, float]]:
        return broken(*faults, until_s=2000, seed=seed)[0][0].log

    assert times(fault) == times(fault, other) == times(fault)
    assert times(fault) != times(fault, seed=2)
    assert times(fault) != times(other, fault)


def test_a_link_outage_stalls_a_transfer() -> None:
    """An upload of 0.5 s that is cut for 3 s in its middle keeps what it has sent and takes 3.5 s."""
    fault = {"target": "home-edge", "at_s": (0.2,), "duration_s": 3.0}
    records = run(scenario({"edge": slots()}, links=(link("home", "edge"),), faults=(fault,)), [task()], always("edge"))
    assert phases(rows(records.subtasks)[0])[0] == ("uplink_s", 3.6)


def test_a_crash_takes_one_replica_only() -> None:
    """The request on the replica that crashes is retried on the other one, which serves on undisturbed."""
    fault = {"target": "edge", "kind": "crash", "replica": 0, "at_s": (0.5,), "duration_s": 100.0}
    world = scenario({"edge": device(replicas=2)}, faults=(fault,), client={"backoff_s": 0.0})
    records = run(world, [task(), task()], always("edge"))
    assert [(row["replica"], row["status"]) for row in attempts_of(records, 0)] == [(0, "crashed"), (1, "ok")]
    assert [(row["replica"], row["status"]) for row in attempts_of(records, 1)] == [(1, "ok")]
    assert attempts_of(records, 0)[0]["device_s"] == pytest.approx(0.5), "the crashed work was done and is paid for"


def test_a_crash_loses_the_prompt_cache_of_a_device_but_not_of_an_api() -> None:
    """A restarted device starts cold; a provider's outage leaves its cache as it was."""
    fault = {"target": "edge", "at_s": (20.0,), "duration_s": 1.0}
    steps = [Step(prompt_tokens=2000), Step(prompt_tokens=2100, tool_s=30.0)]
    for tier, kept in ((device(), False), (api(), True)):
        records = run(scenario({"edge": tier}, faults=(fault,)), [task(*steps)], always("edge"))
        assert bool(records.subtasks["cached_tokens"][1]) is kept


def test_a_slow_api_slows_calls_that_start_in_the_spell() -> None:
    """Time to first token and time per token are both five times as long, for calls that start then."""
    fault = {"target": "cloud", "kind": "slow", "at_s": (10.0,), "duration_s": 10.0, "factor": 5.0}
    records = run(scenario({"cloud": api()}, faults=(fault,)), [task()] * 3, always("cloud"), [5.0, 15.0, 25.0])
    assert [phases(row) for row in rows(records.subtasks)] == [
        [("prefill_s", 0.4), ("decode_s", 2.0)], [("prefill_s", 2.0), ("decode_s", 10.0)], [("prefill_s", 0.4), ("decode_s", 2.0)]
    ]  # fmt: skip


def test_an_outage_ends_for_those_who_wait_it_out() -> None:
    """Refused at once during an outage, a patient client is served after it."""
    fault = {"target": "cloud", "at_s": (0.0,), "duration_s": 5.0}
    client = {"retries": 20, "backoff_s": 4.0, "backoff_max_s": 4.0}
    records = run(scenario({"cloud": api()}, faults=(fault,), client=client), [task()], always("cloud"), [1.0])
    attempts = attempts_of(records, 0)
    assert {row["status"] for row in attempts[:-1]} == {"unavailable"}
    assert attempts[-1]["status"] == "ok"
    assert attempts[-1]["start_s"] + attempts[-1]["backoff_s"] >= 5.0
