"""What holds for every kind of server, whatever happens to it."""

from __future__ import annotations

import math

import pytest
import simpy

from sim.server import CANCELLED, CRASHED, OK, OVERSIZED, REJECTED, UNAVAILABLE, Job
from tests.server_cases import SERVERS, random_life

FINAL = {OK, CANCELLED, CRASHED, REJECTED, UNAVAILABLE, OVERSIZED}


@pytest.fixture(params=SERVERS)
def make(request):
    """A function that builds one kind of server in an environment."""
    return SERVERS[request.param]


@pytest.mark.parametrize("seed", range(5))
def test_each_job_leaves_exactly_once(make, seed):
    """With cancellations and crashes every job leaves once, its times are in order and device time adds up."""
    env = simpy.Environment()
    server = make(env)
    jobs, departures = random_life(env, server, seed, 300)
    env.run()
    assert len(departures) == len(jobs) == 300
    assert {id(job) for job in departures} == {id(job) for job in jobs}
    assert {job.status for job in jobs} <= FINAL
    assert any(job.status == OK for job in jobs)
    assert any(job.status in (CRASHED, UNAVAILABLE) for job in jobs)
    assert (server.queue_length, server.running) == (0, 0)
    for job in jobs:
        moments = [job.submitted_s, job.started_s, job.first_token_s, job.finished_s]
        known = [moment for moment in moments if not math.isnan(moment)]
        assert known == sorted(known)
        assert (job.device_s > 0.0) <= (not math.isnan(job.started_s))
    assert server.busy_s == pytest.approx(sum(job.device_s for job in jobs), rel=1e-9)


def test_littles_law_holds_exactly(make):
    """The integral of jobs present over time equals the sum of their stays."""
    env = simpy.Environment()
    server = make(env)
    jobs, _ = random_life(env, server, 7, 400)
    present = last_s = 0.0
    integral = 0.0
    while env.peek() < math.inf:
        integral += present * (env.peek() - last_s)
        last_s = env.peek()
        env.step()
        present = server.queue_length + server.running
    assert integral == pytest.approx(sum(job.finished_s - job.submitted_s for job in jobs), rel=1e-9)


def test_a_server_that_is_down_refuses_at_once(make):
    """Between crash and restart a job is `unavailable` without waiting; afterwards it is served."""
    env = simpy.Environment()
    server = make(env)
    server.crash()
    assert not server.up
    refused, served = (Job(10, 5, service_s=1.0) for _ in range(2))
    assert env.run(until=server.submit(refused)) is refused
    assert (refused.status, env.now) == (UNAVAILABLE, 0.0)
    server.restart()
    assert server.up
    assert env.run(until=server.submit(served)) is served
    assert (served.status, served.finished_s) == (OK, env.now)
    assert env.now > 0.0


def test_a_job_is_submitted_once(make):
    """A retry needs a new Job, else the first attempt's record would be overwritten."""
    env = simpy.Environment()
    server = make(env)
    job = Job(10, 5, service_s=1.0)
    env.run(until=server.submit(job))
    with pytest.raises(RuntimeError, match="once"):
        server.submit(job)


def test_cancelling_a_job_that_has_left_changes_nothing(make):
    """A client's cancellation may cross with the answer."""
    env = simpy.Environment()
    server = make(env)
    job = Job(10, 5, service_s=1.0)
    env.run(until=server.submit(job))
    finished_s = job.finished_s
    server.cancel(job)
    env.run()
    assert (job.status, job.finished_s) == (OK, finished_s)


def test_stopping_the_run_at_a_job_loses_nobody(make):
    """`run(until=done)` stops inside a departure; other listeners and the jobs behind are served when it goes on."""
    env = simpy.Environment()
    server = make(env)
    first, second = (Job(10, 5, request=n, service_s=1.0) for n in range(2))
    heard = []
    done = server.submit(first)
    server.submit(second)
    done.callbacks.append(lambda event: heard.append("before"))
    stopping = simpy.events.Event(env)

    def listen():
        yield done
        heard.append("process")
        stopping.succeed()

    env.process(listen())
    assert env.run(until=done) is first
    env.run(until=stopping)
    env.run()
    assert heard == ["before", "process"]
    assert second.status == OK


def test_same_seed_gives_the_same_times(make):
    """Two runs of one random life agree to the last bit."""
    lives = []
    for _ in range(2):
        env = simpy.Environment()
        server = make(env)
        jobs, _ = random_life(env, server, 3, 200)
        env.run()
        lives.append([(job.status, job.finished_s, job.device_s, job.replica) for job in jobs])
    assert lives[0] == lives[1]
