"""The plain queueing server: order, slots, priorities, cancellation, crash."""

from __future__ import annotations

import math

import numpy as np
import pytest
import simpy

from sim.server import Job, SlotServer
from tests.server_cases import at
from workloads.errors import InputError


def log_of(env, server, *arrivals):
    """Submit (time, name, service seconds, priority); returns (name, finished) in order of departure."""
    left = []

    def client(time_s, name, service_s, priority=0):
        yield env.timeout(time_s)
        job = yield server.submit(Job(1, 1, service_s=service_s, priority=priority))
        left.append((name, job.finished_s))

    for arrival in arrivals:
        env.process(client(*arrival))
    env.run()
    return left


def test_one_slot_serves_in_order():
    """Jobs of 3, 1 and 1 s that arrive together leave at 3, 4 and 5 s."""
    env = simpy.Environment()
    assert log_of(env, SlotServer(env), (0, "a", 3.0), (0, "b", 1.0), (0, "c", 1.0)) == [
        ("a", 3.0),
        ("b", 4.0),
        ("c", 5.0),
    ]


def test_two_slots_share_one_line():
    """With two slots the third job takes the slot that is free first."""
    env = simpy.Environment()
    left = log_of(env, SlotServer(env, 2), (0, "a", 3.0), (0, "b", 1.0), (0, "c", 1.0))
    assert left == [("b", 1.0), ("c", 2.0), ("a", 3.0)]


def test_smaller_priority_overtakes_in_line_but_interrupts_nobody():
    """The urgent job waits for the one in service only; equals keep their order."""
    env = simpy.Environment()
    server = SlotServer(env, discipline="priority")
    left = log_of(env, server, (0, "a", 5.0, 9), (1, "b", 1.0, 2), (2, "c", 1.0, 2), (3, "d", 1.0, 1))
    assert left == [("a", 5.0), ("d", 6.0), ("b", 7.0), ("c", 8.0)]


@pytest.mark.parametrize("slots", [1, 3])
def test_waits_equal_the_recursion_on_free_times(slots):
    """Waits of a random sample equal those of the Kiefer-Wolfowitz recursion, job by job."""
    rng = np.random.default_rng(5)
    arrivals = np.cumsum(rng.exponential(1.0, 2000))
    services = rng.gamma(0.5, 2.0 * 0.9 * slots, 2000)
    env = simpy.Environment()
    server = SlotServer(env, slots)
    jobs = [Job(1, 1, service_s=float(service)) for service in services]
    for job, arrival in zip(jobs, arrivals, strict=True):
        at(env, float(arrival), lambda job=job: server.submit(job))
    env.run()
    free = [0.0] * slots
    for job, arrival, service in zip(jobs, arrivals, services, strict=True):
        started = max(arrival, min(free))
        free[free.index(min(free))] = started + service
        assert job.started_s == pytest.approx(started, rel=1e-12)
        assert job.finished_s == pytest.approx(started + service, rel=1e-12)


def test_cancelled_jobs_make_room():
    """The running job leaves at once and pays for what it used; a waiting one is skipped."""
    env = simpy.Environment()
    server = SlotServer(env)
    jobs = [Job(1, 1, service_s=10.0), Job(1, 1, service_s=10.0), Job(1, 1, service_s=1.0)]
    for job in jobs:
        server.submit(job)
    at(env, 1.0, lambda: server.cancel(jobs[1]))
    at(env, 2.0, lambda: server.cancel(jobs[0]))
    env.run()
    assert [job.status for job in jobs] == ["cancelled", "cancelled", "ok"]
    assert [job.finished_s for job in jobs] == [2.0, 1.0, 3.0]
    assert [job.device_s for job in jobs] == [2.0, 0.0, 1.0]
    assert server.busy_s == 3.0


def test_crash_empties_slots_and_line_until_the_restart():
    """Running and waiting jobs leave as crashed; stale ends of their services do not disturb later ones."""
    env = simpy.Environment()
    server = SlotServer(env)
    jobs = [Job(1, 1, service_s=10.0), Job(1, 1, service_s=10.0)]
    late = Job(1, 1, service_s=10.0)
    for job in jobs:
        server.submit(job)
    for action in (server.crash, server.restart, lambda: server.submit(late)):
        at(env, 4.0, action)
    env.run(until=5.0)
    assert server.busy_s == 5.0
    env.run()
    assert [(job.status, job.finished_s) for job in jobs] == [("crashed", 4.0)] * 2
    assert (late.status, late.finished_s) == ("ok", 14.0)


def test_unlimited_slots_never_queue():
    """Without a limit a hundred jobs run at once."""
    env = simpy.Environment()
    server = SlotServer(env, None)
    for _ in range(100):
        server.submit(Job(1, 1, service_s=1.0))
    assert (server.running, server.queue_length) == (100, 0)
    env.run()
    assert env.now == 1.0


def test_estimate_counts_the_line_in_mean_services():
    """With two slots, services of 2 s and three in line the next job expects (3 + 1) x 2 / 2 s."""
    env = simpy.Environment()
    server = SlotServer(env, 2)
    log_of(env, server, (0, "a", 2.0))
    for _ in range(2):
        assert server.estimate_wait_s() == 0.0
        server.submit(Job(1, 1, service_s=2.0))
    for _ in range(3):
        server.submit(Job(1, 1, service_s=2.0))
    assert server.estimate_wait_s() == 4.0


@pytest.mark.parametrize("service_s", [None, -1.0, math.nan, math.inf])
def test_service_time_must_be_a_time(service_s):
    """A missing, negative, infinite or undefined service time is an InputError, not a corrupt event queue."""
    env = simpy.Environment()
    with pytest.raises(InputError, match="service_s"):
        SlotServer(env).submit(Job(1, 1, service_s=service_s))


def test_bad_settings_are_named():
    """No slots or an unknown discipline raise an InputError that names the choices."""
    env = simpy.Environment()
    with pytest.raises(InputError, match="slots"):
        SlotServer(env, 0)
    with pytest.raises(InputError, match="Did you mean 'priority'"):
        SlotServer(env, discipline="prority")
