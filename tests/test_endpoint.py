"""A hosted model: drawn times, limits, 429s, outages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from sim.draws import CommonDraws
from sim.endpoint import LogNormal, TokenBucket
from sim.prompt_cache import PromptCache
from sim.server import Job
from tests.server_cases import at, endpoint
from workloads.errors import InputError


def finished(env, server, job):
    """Submit and run to the job's departure."""
    return env.run(until=server.submit(job))


def test_service_is_first_token_then_rate():
    """1 s to the first token and 20 further tokens at 10 per second: 3 s."""
    env = simpy.Environment()
    job = finished(env, endpoint(env), Job(100, 21))
    assert (job.started_s, job.first_token_s, job.finished_s) == (0.0, 1.0, pytest.approx(3.0))
    assert job.device_s == job.finished_s


@pytest.mark.parametrize(("output", "first_token_s"), [(0, math.nan), (1, 1.0)])
def test_no_or_one_token_ends_with_the_first(output, first_token_s):
    """With one token the answer is complete at the first; with none there is no first token."""
    env = simpy.Environment()
    job = finished(env, endpoint(env), Job(100, output))
    assert job.finished_s == 1.0
    assert job.first_token_s == pytest.approx(first_token_s, nan_ok=True)


def test_draws_are_log_normal_and_belong_to_the_call():
    """Logs of drawn first-token times have the given median and spread, and do not depend on the order of calls."""
    env = simpy.Environment()
    options = {"ttft_s": LogNormal(2.0, 0.4), "tokens_per_s": LogNormal(30.0, 0.2)}
    forward, backward = endpoint(env, **options), endpoint(env, **options)
    jobs = {request: Job(10, 50, request=request) for request in range(4000)}
    again = {request: Job(10, 50, request=request) for request in reversed(range(4000))}
    for server, batch in ((forward, jobs), (backward, again)):
        for job in batch.values():
            server.submit(job)
    env.run()
    assert all(jobs[n].finished_s == again[n].finished_s for n in jobs)
    logs = np.log([job.first_token_s for job in jobs.values()])
    rates = np.log([49 / (job.finished_s - job.first_token_s) for job in jobs.values()])
    for sample, median, sigma in ((logs, 2.0, 0.4), (rates, 30.0, 0.2)):
        # Five standard errors: a false alarm in 2 million.
        assert sample.mean() == pytest.approx(math.log(median), abs=5 * sigma / math.sqrt(4000))
        assert sample.std() == pytest.approx(sigma, abs=5 * sigma / math.sqrt(8000))
    assert abs(np.corrcoef(logs, rates)[0, 1]) < 5 / math.sqrt(4000)


def test_prompt_tokens_and_the_cache_set_the_first_token():
    """10 ms per uncached prompt token: the second turn of 1,500 tokens pays for the 400 that are new."""
    env = simpy.Environment()
    server = endpoint(env, ttft_per_prompt_token_s=0.01, cache=PromptCache(300.0, minimum_tokens=1024))
    first = finished(env, server, Job(1000, 100))
    second = finished(env, server, Job(1500, 1))
    assert first.first_token_s - first.started_s == pytest.approx(1.0 + 10.0)
    assert second.cached_tokens == 1100
    assert second.first_token_s - second.started_s == pytest.approx(1.0 + 4.0)


def test_measured_service_time_replaces_the_drawn_one():
    """A job with service_s takes that long; the first token keeps its share of it."""
    env = simpy.Environment()
    job = finished(env, endpoint(env), Job(100, 21, service_s=6.0))
    assert (job.first_token_s, job.finished_s) == (pytest.approx(2.0), 6.0)


def test_slowdown_stretches_calls_that_start_later():
    """A slow cloud takes three times as long; the call in flight keeps its time."""
    env = simpy.Environment()
    server = endpoint(env)
    early, late = Job(100, 11), Job(100, 11)
    server.submit(early)
    server.slowdown = 3.0
    server.submit(late)
    env.run()
    assert (early.finished_s, late.first_token_s, late.finished_s) == (2.0, 3.0, 6.0)


def test_too_many_at_once_are_rejected_until_one_has_left():
    """The third of two allowed calls is told when the first of the others ends, and may come back then."""
    env = simpy.Environment()
    server = endpoint(env, concurrency=2)
    jobs = [Job(1, 11), Job(1, 31), Job(1, 1)]
    for job in jobs:
        server.submit(job)
    assert (jobs[2].status, jobs[2].retry_after_s) == ("rejected", 2.0)
    retry = Job(1, 1)
    at(env, 2.0, lambda: server.submit(retry))
    env.run()
    assert (retry.status, retry.finished_s) == ("ok", 3.0)


def test_queue_when_full_makes_calls_wait_instead():
    """The same third call waits in line for the first free place."""
    env = simpy.Environment()
    server = endpoint(env, concurrency=2, queue_when_full=True)
    jobs = [Job(1, 11), Job(1, 31), Job(1, 1)]
    for job in jobs:
        server.submit(job)
    env.run()
    assert [job.started_s for job in jobs] == [0.0, 0.0, 2.0]


def test_retry_after_is_exactly_when_the_rate_limits_allow_it():
    """60 requests and 6,000 tokens per minute, all used up: a call of 200 tokens fits again after 2 s, not before."""
    env = simpy.Environment()
    server = endpoint(env, rpm=60, tpm=6000)
    for _ in range(60):
        assert server.submit(Job(90, 10)).triggered is False
    refused = Job(150, 50)
    server.submit(refused)
    assert refused.status == "rejected"
    assert refused.retry_after_s == pytest.approx(2.0)
    assert server.estimate_wait_s() == pytest.approx(1.0)
    early, late = Job(150, 50), Job(150, 50)
    at(env, 1.999, lambda: server.submit(early))
    at(env, 2.001, lambda: server.submit(late))
    env.run()
    assert (early.status, late.status) == ("rejected", "ok")


def test_call_larger_than_the_token_limit_never_fits():
    """More tokens than a full minute holds: `oversized`, as waiting would not help."""
    env = simpy.Environment()
    job = finished(env, endpoint(env, tpm=1000), Job(900, 200))
    assert (job.status, job.retry_after_s) == ("oversized", 0.0)


def test_rejected_calls_use_up_nothing():
    """A call refused for its tokens leaves the request limit alone, and one refused for concurrency leaves both."""
    env = simpy.Environment()
    server = endpoint(env, rpm=2, tpm=1000, concurrency=1)
    jobs = [Job(499, 1), Job(1, 1), Job(600, 1), Job(400, 1)]
    for job in jobs[:2]:
        server.submit(job)
    env.run(until=jobs[0].done)
    for job in jobs[2:]:
        env.run(until=server.submit(job))
    assert [job.status for job in jobs] == ["ok", "rejected", "rejected", "ok"]


def test_outage_ends_calls_in_flight_and_refuses_new_ones():
    """During an outage calls are unavailable at once; the prompt cache is still there afterwards."""
    env = simpy.Environment()
    server = endpoint(env, cache=PromptCache())
    first = finished(env, server, Job(100, 21))
    hit, refused, late = Job(100, 200), Job(100, 1), Job(200, 1)
    server.submit(hit)
    at(env, 1.5, lambda: server.set_up(False))
    at(env, 2.0, lambda: server.submit(refused))
    at(env, 3.0, lambda: server.set_up(True))
    at(env, 4.0, lambda: server.submit(late))
    start = env.now
    env.run()
    assert (hit.status, refused.status) == ("crashed", "unavailable")
    assert [hit.finished_s - start, hit.device_s, refused.finished_s - start] == pytest.approx([1.5, 1.5, 2.0])
    assert (late.status, late.cached_tokens) == ("ok", first.prompt_tokens + first.output_tokens)


@given(
    per_minute=st.floats(1.0, 1e6),
    attempts=st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 2.0)), min_size=1, max_size=60),
)
def test_bucket_never_gives_more_than_a_minute_plus_the_rate(per_minute, attempts):
    """In every window of t seconds at most capacity + rate x t is taken, and what is refused would have exceeded it."""
    bucket = TokenBucket(per_minute)
    now, taken = 0.0, []
    for gap_s, fraction in attempts:
        now += gap_s
        amount = fraction * per_minute
        missing_s = bucket.missing_s(amount, now)
        if missing_s == 0.0:
            bucket.take(amount)
            taken.append((now, amount))
        elif math.isfinite(missing_s):
            assert bucket.missing_s(amount, now + missing_s * (1.0 + 1e-9) + 1e-9) == 0.0
            now += missing_s * (1.0 + 1e-9) + 1e-9
            bucket.take(amount)
            taken.append((now, amount))
        else:
            assert amount > bucket.capacity
    for first in range(len(taken)):
        total = 0.0
        for time_s, amount in taken[first:]:
            total += amount
            assert total <= (bucket.capacity + bucket.rate * (time_s - taken[first][0])) * (1.0 + 1e-9)


@pytest.mark.parametrize(
    "options", [{"rpm": 0.0}, {"tpm": math.inf}, {"concurrency": 0}, {"ttft_per_prompt_token_s": -1.0}]
)
def test_bad_limits_are_named(options):
    """Impossible settings raise an InputError."""
    with pytest.raises(InputError):
        endpoint(simpy.Environment(), **options)


@pytest.mark.parametrize(("median", "sigma"), [(0.0, 0.1), (1.0, -0.1), (math.nan, 0.0)])
def test_bad_distributions_are_refused(median, sigma):
    """A median must be positive and a spread not negative."""
    with pytest.raises(InputError, match="median"):
        LogNormal(median, sigma)


def test_common_draws_are_the_only_source_of_chance():
    """Another seed gives other times, the same seed the same."""
    times = []
    for seed in (1, 1, 2):
        env = simpy.Environment()
        draws = (CommonDraws(seed, "ttft"), CommonDraws(seed, "rate"))
        times.append(finished(env, endpoint(env, ttft_s=LogNormal(1.0, 0.5), draws=draws), Job(10, 10)).finished_s)
    assert times[0] == times[1] != times[2]
