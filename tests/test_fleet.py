"""Replicas behind a balancer: who gets the job, what happens when some are down."""

from __future__ import annotations

import numpy as np
import pytest
import simpy

from sim.draws import CommonDraws
from sim.fleet import Fleet
from sim.prompt_cache import PromptCache
from sim.server import Job, SlotServer
from tests.server_cases import device, random_life
from workloads.errors import InputError


def slots(env, count, balancer="least-loaded", **options):
    """A fleet of one-slot servers."""
    return Fleet([SlotServer(env) for _ in range(count)], balancer, **options)


def replicas_of(fleet, count, service_s=1.0):
    """Which replicas the next jobs go to."""
    jobs = [Job(1, 1, request=n, service_s=service_s) for n in range(count)]
    for job in jobs:
        fleet.submit(job)
    return [job.replica for job in jobs]


def test_round_robin_takes_turns_and_skips_the_dead():
    """0, 1, 2, 0; with replica 1 down 2, 0, 2; after its return it is back in turn."""
    fleet = slots(simpy.Environment(), 3, "round-robin")
    assert replicas_of(fleet, 4) == [0, 1, 2, 0]
    fleet.servers[1].crash()
    assert replicas_of(fleet, 3) == [2, 0, 2]
    fleet.servers[1].restart()
    assert replicas_of(fleet, 2) == [0, 1]


def test_least_loaded_counts_waiting_and_running():
    """A replica with a line gets nothing until the others have as many; ties go in turn."""
    env = simpy.Environment()
    fleet = slots(env, 3)
    for _ in range(3):
        fleet.servers[0].submit(Job(1, 1, service_s=1.0))
    assert sorted(replicas_of(fleet, 6)) == [1, 1, 1, 2, 2, 2]


def test_low_load_is_spread_over_all_replicas():
    """One job at a time still uses every replica in turn."""
    env = simpy.Environment()
    fleet = slots(env, 3)
    replicas = []
    for _ in range(6):
        job = Job(1, 1, service_s=1.0)
        env.run(until=fleet.submit(job))
        replicas.append(job.replica)
    assert replicas == [0, 1, 2, 0, 1, 2]


def test_random_uses_the_draw_of_the_call():
    """The replica follows from (request, position) alone, and all replicas get about the same number."""
    env = simpy.Environment()
    draws = CommonDraws(3, "balancer")
    fleet = slots(env, 4, "random", draws=draws)
    replicas = replicas_of(fleet, 4000)
    assert replicas == [int(draws.uniform(n, 0) * 4) for n in range(4000)]
    counts = np.bincount(replicas, minlength=4)
    assert ((counts - 1000) ** 2 / 1000).sum() < 30.0  # chi-square, 3 degrees of freedom: a false alarm in 700,000


def test_least_loaded_waits_less_than_random():
    """On the same arrivals and services the mean wait is clearly shorter, seed by seed."""
    for seed in range(5):
        waits = []
        for balancer in ("least-loaded", "random"):
            env = simpy.Environment()
            fleet = slots(env, 4, balancer, draws=CommonDraws(seed, "balancer"))
            jobs, _ = random_life(env, fleet, seed, 1500, rate=3.2, faults=False)
            env.run()
            waits.append(np.mean([job.started_s - job.submitted_s for job in jobs]))
        assert waits[0] < 0.7 * waits[1]


def test_affinity_returns_to_the_replica_that_knows_the_conversation():
    """Turns of one conversation stay together and find their prefix; spread in turn they do not."""
    cached: dict[str, list[int]] = {}
    for balancer in ("affinity", "round-robin"):
        env = simpy.Environment()
        fleet = Fleet([device(env, cache=PromptCache()) for _ in range(2)], balancer)
        cached[balancer] = []
        for prompt, conversation in ((20, "a"), (20, "b"), (20, "c"), (40, "a"), (40, "b"), (40, "c")):
            job = Job(prompt, 5, conversation=conversation)
            env.run(until=fleet.submit(job))
            cached[balancer].append(job.cached_tokens)
    assert cached["affinity"] == [0, 0, 0, 25, 25, 25]
    assert sum(cached["round-robin"]) < 75


def test_affinity_gives_way_to_a_long_line_and_to_a_crash():
    """The home is kept up to the slack; beyond it, or when it is down, the conversation moves and stays moved."""
    env = simpy.Environment()
    fleet = slots(env, 2, "affinity", affinity_slack=2)

    def turn():
        job = Job(1, 1, conversation="a", service_s=100.0)
        fleet.submit(job)
        return job.replica

    assert [turn() for _ in range(5)] == [0, 0, 0, 1, 1]
    fleet.servers[1].crash()
    assert turn() == 0
    fleet.servers[1].restart()
    assert turn() == 1


def test_all_down_is_unavailable_and_one_up_is_enough():
    """A fleet is up while any replica is; crash and restart reach all of them."""
    env = simpy.Environment()
    fleet = slots(env, 2)
    fleet.crash()
    job = Job(1, 1, service_s=1.0)
    env.run(until=fleet.submit(job))
    assert job.status == "unavailable"
    assert not fleet.up
    assert fleet.estimate_wait_s() == 0.0
    fleet.servers[1].restart()
    assert fleet.up
    assert replicas_of(fleet, 2) == [1, 1]


def test_totals_are_sums_and_cancel_finds_the_replica():
    """Queue, running and busy time add up over replicas; a cancelled job leaves the replica it was given to."""
    env = simpy.Environment()
    fleet = slots(env, 2)
    jobs = [Job(1, 1, request=n, service_s=2.0) for n in range(5)]
    for job in jobs:
        fleet.submit(job)
    assert (fleet.running, fleet.queue_length) == (2, 3)
    fleet.cancel(jobs[3])
    assert (fleet.running, fleet.queue_length) == (2, 2)
    env.run()
    assert fleet.busy_s == 8.0
    assert jobs[3].status == "cancelled"


@pytest.mark.parametrize(
    ("count", "balancer", "found"),
    [(0, "random", "no servers"), (2, "least-load", "least-loaded"), (2, "random", "draws")],
)
def test_bad_settings_are_named(count, balancer, found):
    """No replicas, an unknown balancer, or random without draws raise an InputError that says so."""
    with pytest.raises(InputError, match=found):
        slots(simpy.Environment(), count, balancer)
