"""Measured step times: closed forms against sums, the server against the token-by-token reference, and the scenario's fields."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import simpy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sim.batching import BatchingServer
from sim.nominal import nominal_service_s
from sim.profiles import StepTimesProfile
from sim.roofline import attention_pairs
from sim.server import CANCELLED, CRASHED, OK, Job
from sim.step_times import StepTimes
from sim.study import roofline_of
from tests.batching_reference import Call, Reference
from tests.helpers import load_text
from tests.server_cases import random_life
from tests.test_batching import at, submit_at
from tests.test_batching import workloads as call_lists
from workloads.errors import InputError

CPU = StepTimes(
    prefill_base_s=0.004, prefill_s_per_prompt=0.0005, prefill_s_per_token=0.0001, prefill_s_per_pair=1e-7,
    decode_base_s=0.0015, decode_s_per_sequence=0.0002, decode_s_per_kv_token=1e-6,
)  # fmt: skip
"""A model of about a million parameters on one slow core."""
TERM = st.one_of(st.just(0.0), st.floats(1e-6, 1e2))


@st.composite
def step_times(draw: Callable[..., float]) -> StepTimes:
    """Any mixture of terms, each of which may be missing but for one."""
    terms = {
        item.name: draw(TERM)
        for item in fields(StepTimes)
        if item.name not in ("kv_capacity_tokens", "call_overhead_s")
    }
    return StepTimes(**{**terms, "decode_base_s": draw(st.floats(1e-6, 1e2))})  # type: ignore[arg-type]


@dataclass
class PromptReference(Reference):
    """The reference, told how many prompts an iteration reads."""

    def prefill_s(self, new: list[Call]) -> float:
        """All new prompts in one pass."""
        parts = [(max(1, call.prompt - call.cached), call.cached) for call in new]
        pairs = sum(attention_pairs(tokens, cached) for tokens, cached in parts)
        steps = self.roofline
        return steps.prefill_many_s(sum(t for t, _ in parts), sum(c for _, c in parts), pairs, len(parts))


@given(times=step_times(), batch=st.integers(1, 64), kv=st.integers(0, 10_000), steps=st.integers(0, 400))
def test_span_is_the_sum_of_its_steps(times, batch, kv, steps):
    """The closed form over a span equals adding up single steps with a growing cache."""
    total = math.fsum(times.decode_step_s(batch, kv + batch * i) for i in range(steps))
    assert times.decode_span_s(batch, kv, steps) == pytest.approx(total, rel=1e-12)


@given(times=step_times(), batch=st.integers(1, 64), kv=st.integers(0, 10_000), steps=st.integers(0, 10_000))
def test_inverse_recovers_the_steps_at_exact_boundaries(times, batch, kv, steps):
    """Asked at the very end of a span both inverses answer with that span, and a moment earlier with one step less."""
    span = times.decode_span_s(batch, kv, steps)
    assert times.steps_within(batch, kv, span) == steps
    assert times.steps_to_reach(batch, kv, span) == (steps, span)
    if steps:
        assert times.steps_within(batch, kv, math.nextafter(span, 0.0)) == steps - 1


def test_every_term_counts_what_its_name_says():
    """Three prompts of 100 tokens in one iteration; a batch of four holding 500 tokens; nothing else costs anything."""
    pairs = 3 * attention_pairs(100, 0)
    assert CPU.prefill_many_s(300, 0, pairs, 3) == pytest.approx(0.004 + 3 * 0.0005 + 300 * 0.0001 + pairs * 1e-7)
    assert CPU.prefill_s(100) == pytest.approx(CPU.prefill_many_s(100, 0, attention_pairs(100, 0), 1))
    assert CPU.decode_step_s(4, 500) == pytest.approx(0.0015 + 4 * 0.0002 + 500 * 1e-6)


@settings(max_examples=150, deadline=None)
@given(
    times=step_times(),
    calls=call_lists(),
    max_batch=st.integers(1, 6),
    capacity=st.one_of(st.none(), st.integers(30, 200)),
    crash_s=st.one_of(st.just(math.inf), st.floats(0.5, 30.0)),
)
def test_server_equals_the_token_by_token_reference(times, calls, max_batch, capacity, crash_s):
    """Statuses agree, and all times and shares to 1e-9, with memory limits, cancellations and a crash."""
    reference = PromptReference(times, max_batch, capacity or math.inf, False, crash_s, calls)
    reference.run()
    instants = [t for call in calls for t in (call.arrival_s, call.cancel_s, crash_s) if t < math.inf]
    assume(all(abs(end - t) > 1e-9 * (1.0 + t) for end in reference.boundaries for t in instants))
    assume(all(t == crash_s == math.inf or abs(t - crash_s) > 1e-9 for c in calls for t in (c.arrival_s, c.cancel_s)))
    env = simpy.Environment()
    server = BatchingServer(env, times, max_batch=max_batch, kv_capacity_tokens=capacity)
    jobs = [Job(c.prompt, c.output, cached_tokens=c.cached) for c in calls]
    for job, call in zip(jobs, calls, strict=True):
        submit_at(env, server, call.arrival_s, job)
        if call.cancel_s < math.inf:
            at(env, call.cancel_s, lambda job=job: server.cancel(job))
    if crash_s < math.inf:
        at(env, crash_s, server.crash)
    env.run()
    for job, call in zip(jobs, calls, strict=True):
        assert job.status == call.status
        for name in ("started_s", "first_token_s", "finished_s", "device_s"):
            expected = pytest.approx(getattr(call, name), rel=1e-9, abs=1e-9, nan_ok=True)
            assert getattr(job, name) == expected, name


@given(times=step_times(), calls=call_lists(), overhead_s=st.floats(1e-3, 5.0))
def test_an_overhead_per_call_is_a_later_arrival_at_the_engine(times, calls, overhead_s):
    """A server with an overhead does at every moment what one without does to the same calls that much later."""

    def served(delay_s: float, overhead_s: float) -> list[Job]:
        env = simpy.Environment()
        server = BatchingServer(env, replace(times, call_overhead_s=overhead_s), max_batch=3)
        jobs = [Job(call.prompt, call.output) for call in calls]
        for job, call in zip(jobs, calls, strict=True):
            submit_at(env, server, call.arrival_s + delay_s, job)
        env.run()
        return jobs

    for late, held in zip(served(overhead_s, 0.0), served(0.0, overhead_s), strict=True):
        assert held.status == OK
        assert held.device_s == pytest.approx(late.device_s, rel=1e-6)
        assert held.finished_s == pytest.approx(late.finished_s, rel=1e-9)


def test_a_call_in_the_reception_can_be_cancelled_and_crashes_with_the_server():
    """It counts as waiting, leaves at once, and its timer does nothing afterwards."""
    env = simpy.Environment()
    server = BatchingServer(env, replace(CPU, call_overhead_s=1.0), max_batch=1)
    first, second, third = Job(10, 2), Job(10, 2), Job(10, 2)
    for job in (first, second, third):
        server.submit(job)
    assert server.queue_length == 3
    at(env, 0.25, lambda: server.cancel(second))
    at(env, 0.5, server.crash)
    at(env, 0.75, server.restart)
    env.run()
    assert [(job.status, job.finished_s) for job in (first, second, third)] == [(CRASHED, 0.5), (CANCELLED, 0.25), (CRASHED, 0.5)]  # fmt: skip
    assert (server.queue_length, server.running, server.busy_s) == (0, 0, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_behind_a_reception_each_job_still_leaves_exactly_once(seed):
    """With cancellations and crashes at any time every job leaves once and device time adds up."""
    env = simpy.Environment()
    server = BatchingServer(env, replace(CPU, decode_base_s=0.05, call_overhead_s=0.3), max_batch=4)
    jobs, departures = random_life(env, server, seed, 300)
    env.run()
    assert sorted(map(id, departures)) == sorted(map(id, jobs))
    assert {OK, CANCELLED, CRASHED} <= {job.status for job in jobs}
    assert (server.queue_length, server.running) == (0, 0)
    assert server.busy_s == pytest.approx(sum(job.device_s for job in jobs), rel=1e-9)


SCENARIO = """
name: measured
workload: {tasks: {kind: modelled}, requests: 20, arrivals: {kind: poisson, rate_per_s: 0.5}}
tiers:
  edge:
    role: slm
    model: {parameters_b: 0.001, kv_bytes_per_token: 5000}
    device:
      memory_gbytes: 1.0
      step_times: {prefill_base_s: 0.01, decode_base_s: 0.002, call_overhead_s: 0.005}
policies: [all-slm]
"""


def test_a_scenario_gives_measured_times_instead_of_the_roofline(tmp_path: Path):
    """The step times reach the server's model; memory left by the weights limits the cache; overhead is no device time."""
    tier = load_text(tmp_path, SCENARIO).scenario.tiers["edge"]
    steps = roofline_of(tier)
    assert steps == StepTimes(
        prefill_base_s=0.01, decode_base_s=0.002, call_overhead_s=0.005, kv_capacity_tokens=199_600
    )
    assert nominal_service_s(tier, steps, 50, 11) == pytest.approx(0.01 + 10 * 0.002)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("tiers.edge.device.step_times=null", "device.peak_tflops: is missing. Give it, or measured step_times"),
        ("tiers.edge.device.step_times={prefill_base_s: 1.0}", "a decode iteration takes no time"),
        ("tiers.edge.device.step_times.decode_s=1.0", "unknown field 'decode_s'"),
        ("tiers.edge.device.step_times.decode_base_s=-1.0", "decode_base_s"),
        ("tiers.edge.device.step_times.call_overhead_s=-0.1", "call_overhead_s"),
    ],
)
def test_impossible_step_times_are_named(tmp_path: Path, change: str, says: str):
    """Missing, negative and unknown fields give one message with the field's name."""
    with pytest.raises(InputError) as error:
        load_text(tmp_path, SCENARIO, [change])
    assert says in str(error.value)


def test_times_built_in_code_are_checked_as_well():
    """NaN, negative and all-zero terms raise an InputError that names the field."""
    for wrong in ({"decode_base_s": math.nan}, {"prefill_s_per_pair": -1.0}, {"call_overhead_s": math.inf}, {"decode_base_s": 0.0, "decode_s_per_sequence": 0.0}):  # fmt: skip
        with pytest.raises(InputError, match=next(iter(wrong))):
            replace(CPU, **wrong)  # type: ignore[arg-type]


def test_the_profile_has_exactly_the_terms_of_the_model():
    """A term added to one and not to the other would be lost on the way from YAML to the server."""
    assert set(StepTimesProfile.model_fields) == {item.name for item in fields(StepTimes)} - {"kv_capacity_tokens"}
