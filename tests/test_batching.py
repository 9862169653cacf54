"""Continuous batching against a token-by-token reference, and its rules one by one."""

from __future__ import annotations

import math

import pytest
import simpy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sim.batching import BatchingServer
from sim.prompt_cache import PromptCache
from sim.roofline import Roofline
from sim.server import Job
from tests.batching_reference import Call, Reference
from workloads.errors import InputError

STEP = Roofline(peak_flops=2.0, memory_bandwidth_bytes_s=1.0, memory_bytes=100.0, parameters=1.0, weight_bytes=0.5)
"""1 s per prompt token, 1 s x batch per decode iteration: times that are exact in binary."""


def submit_at(env, server, time_s, job, left=None):
    """Submit a job at a given time; append it to `left` when it leaves."""

    def process():
        if time_s:
            yield env.timeout(time_s)
        yield server.submit(job)
        if left is not None:
            left.append(job)

    return env.process(process())


def at(env, time_s, action):
    """Do something at a given time."""

    def process():
        yield env.timeout(time_s)
        action()

    return env.process(process())


@st.composite
def rooflines(draw):
    """Anything from compute-bound to bandwidth-bound, with and without overheads."""
    positive = st.floats(0.1, 10.0)
    return Roofline(
        peak_flops=draw(positive) * 1e3,
        memory_bandwidth_bytes_s=draw(positive) * 1e3,
        memory_bytes=1e9,
        parameters=draw(positive) * 10.0,
        weight_bytes=draw(st.sampled_from([0.0, 1.0, 100.0])) * draw(positive),
        kv_bytes_per_token=draw(st.sampled_from([0.0, 1.0, 10.0])) * draw(positive),
        flops_efficiency=draw(st.floats(0.1, 1.0)),
        bandwidth_efficiency=draw(st.floats(0.1, 1.0)),
        step_overhead_s=draw(st.sampled_from([0.0, 0.01, 0.3])),
        attention_flops_per_pair=draw(st.sampled_from([0.0, 0.5])),
    )


@st.composite
def workloads(draw):
    """Bursts of calls at times that cannot meet an iteration's end except by chance."""
    now, calls = 0.0, []
    for _ in range(draw(st.integers(1, 12))):
        now += draw(st.sampled_from([0.0, 0.0, 0.013, 0.7, 7.0])) * draw(st.floats(0.5, 1.5))
        prompt = draw(st.integers(0, 40))
        calls.append(
            Call(
                arrival_s=now,
                prompt=prompt,
                output=draw(st.integers(0, 30)),
                cached=draw(st.integers(0, prompt)),
                priority=draw(st.integers(0, 2)),
                cancel_s=now + draw(st.sampled_from([math.inf, math.inf, 0.05, 1.0, 20.0])) * draw(st.floats(0.5, 1.5)),
            )
        )
    return calls


@settings(max_examples=150, deadline=None)
@given(
    roofline=rooflines(),
    calls=workloads(),
    max_batch=st.integers(1, 6),
    capacity=st.one_of(st.none(), st.integers(30, 200)),
    discipline=st.sampled_from(["fifo", "priority"]),
    crash_s=st.one_of(st.just(math.inf), st.floats(0.5, 30.0)),
)
def test_equals_the_token_by_token_reference(roofline, calls, max_batch, capacity, discipline, crash_s):
    """Statuses agree, and all times and shares to 1e-9, with priorities, memory limits, cancellations and a crash."""
    reference = Reference(roofline, max_batch, capacity or math.inf, discipline == "priority", crash_s, calls)
    reference.run()
    instants = [t for call in calls for t in (call.arrival_s, call.cancel_s, crash_s) if t < math.inf]
    assume(all(abs(end - t) > 1e-9 * (1.0 + t) for end in reference.boundaries for t in instants))
    assume(all(t == crash_s == math.inf or abs(t - crash_s) > 1e-9 for c in calls for t in (c.arrival_s, c.cancel_s)))

    env = simpy.Environment()
    server = BatchingServer(env, roofline, max_batch=max_batch, discipline=discipline, kv_capacity_tokens=capacity)
    jobs = [Job(c.prompt, c.output, cached_tokens=c.cached, priority=c.priority) for c in calls]
    departures: list[Job] = []
    for job, call in zip(jobs, calls, strict=True):
        submit_at(env, server, call.arrival_s, job, departures)
        if call.cancel_s < math.inf:
            at(env, call.cancel_s, lambda job=job: server.cancel(job))
    if crash_s < math.inf:
        at(env, crash_s, server.crash)
    env.run()

    assert sorted(map(id, departures)) == sorted(map(id, jobs))
    for job, call in zip(jobs, calls, strict=True):
        assert job.status == call.status
        for name in ("started_s", "first_token_s", "finished_s", "device_s"):
            expected = pytest.approx(getattr(call, name), rel=1e-9, abs=1e-9, nan_ok=True)
            assert getattr(job, name) == expected, name
    assert server.busy_s == pytest.approx(sum(call.device_s for call in calls), rel=1e-9, abs=1e-9)
    assert (server.running, server.queue_length) == (0, 0)


def run(server, env, *jobs_at):
    """Run (time, job) pairs to the end; returns the jobs."""
    for time_s, job in jobs_at:
        submit_at(env, server, time_s, job)
    env.run()
    return [job for _, job in jobs_at]


def batching(**options):
    """A server of two jobs on the exact device, and its environment."""
    env = simpy.Environment()
    return env, BatchingServer(env, STEP, **{"max_batch": 2, **options})


def test_lone_job_is_prefilled_then_decoded():
    """A prompt of 3 tokens takes 3 s to the first token, the 4 further tokens 1 s each."""
    env, server = batching()
    (job,) = run(server, env, (2.0, Job(3, 5)))
    assert (job.started_s, job.first_token_s, job.finished_s, job.device_s) == (2.0, 5.0, 9.0, 7.0)


@pytest.mark.parametrize(("output", "first_token_s"), [(0, math.nan), (1, 3.0)])
def test_one_output_token_comes_from_the_prefill(output, first_token_s):
    """With one or no output token a job leaves when its prompt is processed."""
    env, server = batching()
    (job,) = run(server, env, (0.0, Job(3, output)))
    assert job.status == "ok"
    assert job.finished_s == 3.0
    assert job.first_token_s == pytest.approx(first_token_s, nan_ok=True)


def test_arrival_waits_for_the_iteration_and_then_blocks_decoding():
    """An arrival at 2.5 s is prefilled from 3 s to 5 s while the first job stands still; then both share steps of 2 s."""
    env, server = batching()
    first, second = run(server, env, (0.0, Job(1, 4)), (2.5, Job(2, 2)))
    assert (second.started_s, second.first_token_s, second.finished_s) == (3.0, 5.0, 7.0)
    assert first.finished_s == 7.0
    assert (first.device_s, second.device_s) == (5.0, 2.0)
    assert server.busy_s == 7.0


def test_arrival_at_the_end_of_an_iteration_is_admitted_then():
    """At exactly 3 s a decode iteration ends: the arrival does not wait for another one."""
    env, server = batching()
    _, second = run(server, env, (0.0, Job(1, 9)), (3.0, Job(2, 1)))
    assert second.started_s == 3.0


def test_simultaneous_arrivals_share_a_prefill_behind_the_first():
    """At an idle server the first of one instant starts alone; the others' prompts of 2 and 3 tokens follow together."""
    env, server = batching(max_batch=3)
    jobs = run(server, env, (1.0, Job(4, 1)), (1.0, Job(2, 1)), (1.0, Job(3, 1)))
    assert [job.first_token_s for job in jobs] == [5.0, 10.0, 10.0]


def test_full_batch_makes_others_wait_in_order():
    """With room for two, the third starts when the first leaves, although the fourth is shorter."""
    env, server = batching()
    jobs = run(server, env, *((0.0, Job(1, n)) for n in (2, 9, 3, 1)))
    assert jobs[2].started_s == jobs[0].finished_s
    assert jobs[3].started_s >= jobs[2].finished_s


def test_smaller_priority_goes_first_among_those_waiting():
    """An urgent job overtakes a patient one that came earlier, but not one that already runs."""
    env, server = batching(max_batch=1, discipline="priority")
    jobs = run(server, env, (0.0, Job(1, 5, priority=9)), (0.5, Job(1, 1, priority=2)), (0.6, Job(1, 1, priority=1)))
    assert [job.finished_s for job in jobs] == [5.0, 7.0, 6.0]


def test_nobody_overtakes_a_head_that_does_not_fit():
    """The second job needs more memory than is left; the small third one waits behind it."""
    env, server = batching(max_batch=3, kv_capacity_tokens=10)
    jobs = run(server, env, (0.0, Job(4, 4)), (0.5, Job(4, 4)), (0.6, Job(1, 1)))
    assert jobs[1].started_s == jobs[2].started_s == jobs[0].finished_s


def test_urgent_small_job_overtakes_a_head_that_does_not_fit():
    """By priority the newcomer becomes the head itself and starts at the end of the iteration in which it came."""
    env, server = batching(max_batch=3, kv_capacity_tokens=10, discipline="priority")
    jobs = run(server, env, (0.0, Job(4, 4)), (4.5, Job(4, 4, priority=5)), (5.5, Job(1, 1, priority=1)))
    assert [job.started_s for job in jobs] == [0.0, 8.0, 6.0]


def test_cancelled_head_lets_the_next_one_in():
    """When the head that does not fit gives up, the job behind it starts at the end of the iteration."""
    env, server = batching(max_batch=3, kv_capacity_tokens=10)
    head, small = Job(4, 4), Job(1, 1)
    at(env, 5.5, lambda: server.cancel(head))
    run(server, env, (0.0, Job(4, 4)), (0.5, head), (0.6, small))
    assert (head.status, head.finished_s, head.device_s) == ("cancelled", 5.5, 0.0)
    assert small.started_s == 6.0


def test_job_larger_than_the_memory_is_turned_away_at_once():
    """Prompt and output together do not fit even alone: `oversized`, without waiting."""
    env, server = batching(kv_capacity_tokens=10)
    _, job = run(server, env, (0.0, Job(4, 4)), (1.0, Job(8, 3)))
    assert (job.status, job.finished_s) == ("oversized", 1.0)


def test_cancelled_job_leaves_at_the_end_of_the_iteration():
    """Cancelled at 4.5 s in a step of 2 s that began at 4 s, it leaves at 6 s and has known its share since 4.5 s."""
    env, server = batching()
    first, second = Job(1, 9), Job(1, 9)
    known = []

    def give_up():
        server.cancel(second)
        known.append((second.device_s, second.done.triggered))

    at(env, 4.5, give_up)
    run(server, env, (0.0, first), (0.0, second))
    assert (second.status, second.finished_s) == ("cancelled", 6.0)
    assert known == [(2.5, False)]
    assert second.device_s == 2.5
    assert first.finished_s == 6.0 + 6 * 1.0


def test_crash_in_a_prefill_leaves_no_first_token_behind():
    """A crash at 2 s ends a prefill of 3 s: no token was ever produced; after the restart the server works."""
    env, server = batching()
    at(env, 2.0, server.crash)
    at(env, 4.0, server.restart)
    early, refused, late = run(server, env, (0.0, Job(3, 5)), (3.0, Job(3, 5)), (5.0, Job(3, 5)))
    assert (early.status, early.finished_s, early.device_s) == ("crashed", 2.0, 2.0)
    assert math.isnan(early.first_token_s)
    assert (refused.status, refused.finished_s) == ("unavailable", 3.0)
    assert (late.status, late.finished_s) == ("ok", 12.0)


def test_prompt_cache_shortens_the_next_turn_and_is_lost_in_a_crash():
    """The second turn prefills only what is new, one after a crash everything again; at least one token is computed."""
    env, server = batching(cache=PromptCache())
    at(env, 50.0, server.crash)
    at(env, 50.0, server.restart)
    turns = run(
        server,
        env,
        (0.0, Job(4, 2)),
        (20.0, Job(9, 2)),
        (40.0, Job(9, 1)),
        (60.0, Job(9, 1)),
        (80.0, Job(9, 1, request=7)),
    )
    assert [job.cached_tokens for job in turns] == [0, 6, 9, 0, 0]
    assert [job.first_token_s - job.started_s for job in turns] == [4.0, 3.0, 1.0, 9.0, 9.0]


def test_follow_up_submitted_from_the_done_event_runs():
    """A client that answers at once finds a consistent server, and `run(until=done)` stops at the right time."""
    env, server = batching()
    times = []

    def client():
        for _ in range(3):
            job = yield server.submit(Job(1, 2))
            times.append((env.now, job.finished_s))

    env.process(client())
    last = submit_at(env, server, 0.0, Job(1, 20))
    env.run(until=last)
    assert [now for now, _ in times] == [finished for _, finished in times]
    assert len(times) == 3
    assert env.now == max(server.busy_s, times[-1][0])


def test_estimate_is_zero_when_idle_and_grows_with_the_line():
    """Idle: no wait. With a full batch the estimate grows with every job in line."""
    env, server = batching()
    assert server.estimate_wait_s() == 0.0
    run(server, env, (0.0, Job(1, 5)))
    estimates = []
    for _ in range(4):
        server.submit(Job(1, 5))
        env.run(until=env.now + 0.25)
        estimates.append(server.estimate_wait_s())
    assert estimates == sorted(estimates)
    assert 0.0 < estimates[0] < estimates[1] < estimates[3]


@pytest.mark.parametrize("options", [{"max_batch": 0}, {"kv_capacity_tokens": 0}, {"discipline": "fifa"}])
def test_bad_settings_are_named(options):
    """Impossible settings raise an InputError that names the field."""
    with pytest.raises(InputError, match=next(iter(options))):
        batching(**options)


def test_a_job_is_submitted_once():
    """A retry needs a new Job, else the first attempt's record would be overwritten."""
    env, server = batching()
    (job,) = run(server, env, (0.0, Job(1, 1)))
    with pytest.raises(RuntimeError, match="once"):
        server.submit(job)
