"""The roofline's closed forms against step-by-step sums, and its predictions against measured latencies."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from sim.roofline import Roofline
from workloads.errors import InputError

A100 = Roofline(
    peak_flops=312e12,
    memory_bandwidth_bytes_s=2.039e12,
    memory_bytes=80e9,
    parameters=7e9,
    weight_bytes=14e9,
    kv_bytes_per_token=524_288,
    flops_efficiency=0.5,
    bandwidth_efficiency=0.7,
    step_overhead_s=0.001,
)

positive = st.floats(1e-3, 1e3)
or_zero = st.one_of(st.just(0.0), positive)


@st.composite
def rooflines(draw):
    """Rooflines over twelve orders of magnitude of balance between arithmetic and memory."""
    return Roofline(
        peak_flops=draw(positive),
        memory_bandwidth_bytes_s=draw(positive),
        memory_bytes=1e12,
        parameters=draw(positive),
        weight_bytes=draw(or_zero),
        kv_bytes_per_token=draw(or_zero),
        step_overhead_s=draw(or_zero),
    )


@given(roofline=rooflines(), batch=st.integers(1, 64), kv=st.integers(0, 10_000), steps=st.integers(0, 400))
def test_span_is_the_sum_of_its_steps(roofline, batch, kv, steps):
    """The closed form over a span equals adding up single steps with a growing cache."""
    total = math.fsum(roofline.decode_step_s(batch, kv + batch * i) for i in range(steps))
    assert roofline.decode_span_s(batch, kv, steps) == pytest.approx(total, rel=1e-12)


@given(roofline=rooflines(), batch=st.integers(1, 64), kv=st.integers(0, 10_000), seconds=st.floats(0.0, 1e4))
def test_steps_within_is_the_largest_number_that_fits(roofline, batch, kv, seconds):
    """One step more would not fit, and this many do."""
    steps = roofline.steps_within(batch, kv, seconds)
    assert steps >= 0
    assert roofline.decode_span_s(batch, kv, steps) <= seconds < roofline.decode_span_s(batch, kv, steps + 1)


@given(roofline=rooflines(), batch=st.integers(1, 64), kv=st.integers(0, 10_000), steps=st.integers(0, 10_000))
def test_inverse_recovers_the_steps_at_exact_boundaries(roofline, batch, kv, steps):
    """Asked at the very end of a span, both inverses answer with that span, and a moment earlier with one less."""
    span = roofline.decode_span_s(batch, kv, steps)
    assert roofline.steps_within(batch, kv, span) == steps
    assert roofline.steps_to_reach(batch, kv, span) == (steps, span)
    if steps:
        assert roofline.steps_within(batch, kv, math.nextafter(span, 0.0)) == steps - 1


def test_decoding_crosses_from_arithmetic_to_memory():
    """A large batch is compute-bound while its cache is small and memory-bound once it has grown."""
    small, large = A100.decode_step_s(256, 256), A100.decode_step_s(256, 256 * 4000)
    assert small == pytest.approx(2 * 7e9 * 256 / (312e12 * 0.5) + 0.001)
    assert large == pytest.approx((14e9 + 524_288 * 256 * 4000) / (2.039e12 * 0.7) + 0.001)
    assert large > small


def test_prefill_reads_the_weights_at_least_once():
    """One token costs a pass over the weights; 2,000 tokens their arithmetic; a long cached context its reading."""
    weights_s = 14e9 / (2.039e12 * 0.7)
    assert A100.prefill_s(1) == pytest.approx(weights_s + 0.001)
    assert A100.prefill_s(2000) == pytest.approx(2 * 7e9 * 2000 / (312e12 * 0.5) + 0.001)
    assert A100.prefill_s(1, context=50_000) == pytest.approx(weights_s + 50_000 * 524_288 / (2.039e12 * 0.7) + 0.001)


def test_attention_makes_long_prompts_more_than_proportional():
    """The optional quadratic term adds 4 x layers x width operations for each of n (n + 1) / 2 pairs."""
    with_attention = replace(A100, attention_flops_per_pair=4 * 32 * 4096)
    extra_s = with_attention.prefill_s(8000) - A100.prefill_s(8000)
    assert extra_s == pytest.approx(4 * 32 * 4096 * 8000 * 8001 / 2 / (312e12 * 0.5))


def test_cache_capacity_is_what_the_weights_leave():
    """(80 - 14) GB at 512 KiB per token; unlimited when a token takes no memory."""
    assert A100.kv_capacity_tokens == int(66e9 / 524_288)
    assert replace(A100, kv_bytes_per_token=0.0).kv_capacity_tokens is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peak_flops", 0.0),
        ("flops_efficiency", 1.5),
        ("parameters", math.nan),
        ("step_overhead_s", -1.0),
        ("weight_bytes", 9e10),
    ],
)
def test_impossible_numbers_are_named(field, value):
    """Zero, negative, NaN and too large values raise an InputError that names the field."""
    with pytest.raises(InputError, match=field):
        replace(A100, **{field: value})


LLAMA2_70B = {
    "parameters": 68.98e9,
    "weight_bytes": 137.95e9,
    "kv_bytes_per_token": 2 * 80 * 8 * 128 * 2,  # keys and values x layers x heads x width x bytes (config.json)
    "attention_flops_per_pair": 4 * 80 * 8192,
}


def measured_runs(path):
    """(tensor parallel, prompt, batch, output tokens, prefill s, decode s per token) of Llama-2-70B on A100 80 GB."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["model"], row["hardware"]) == ("llama2-70b", "a100-80gb")]
    names = ("tensor_parallel", "prompt_size", "batch_size", "token_size")
    runs = [(*(int(r[n]) for n in names), float(r["prompt_time"]) / 1e3, float(r["token_time"]) / 1e3) for r in rows]
    return [run for run in dict.fromkeys(runs) if run[4] > 0.0 and run[5] > 0.0]


def predictions(runs, flops_efficiency, bandwidth_efficiency, step_overhead_s):
    """Predicted (prefill s, mean decode s per token) of each run."""
    predicted = []
    for parallel, prompt, batch, output, _, _ in runs:
        roofline = Roofline(
            peak_flops=312e12 * parallel,
            memory_bandwidth_bytes_s=2.039e12 * parallel,
            memory_bytes=80e9 * parallel,
            flops_efficiency=flops_efficiency,
            bandwidth_efficiency=bandwidth_efficiency,
            step_overhead_s=step_overhead_s,
            **LLAMA2_70B,
        )
        prefill_s = roofline.prefill_many_s(prompt * batch, 0, batch * prompt * (prompt + 1) / 2)
        predicted.append((prefill_s, roofline.decode_span_s(batch, prompt * batch, output) / output))
    return np.array(predicted)


def relative_errors(runs, *parameters):
    """|predicted / measured - 1|, one row per run: prefill, decode."""
    return np.abs(predictions(runs, *parameters) / np.array([run[4:] for run in runs]) - 1.0)


def fitted(runs, with_overhead):
    """The efficiencies (and the overhead in s) with the least mean absolute log error."""
    measured = np.array([run[4:] for run in runs])

    def unpack(free):
        efficiencies = 1.0 / (1.0 + np.exp(-free[:2]))
        return float(efficiencies[0]), float(efficiencies[1]), float(np.exp(free[2])) if with_overhead else 0.0

    def loss(free):
        return float(np.abs(np.log(predictions(runs, *unpack(free)) / measured)).mean())

    start = [0.0, 0.0, -5.0] if with_overhead else [0.0, 0.0]
    return unpack(minimize(loss, start, method="Nelder-Mead").x)


def by_configuration(runs):
    """The five repetitions of each configuration reduced to their median."""
    groups: dict[tuple, list] = {}
    for run in runs:
        groups.setdefault(run[:4], []).append(run[4:])
    return [(*key, *np.median(values, axis=0)) for key, values in groups.items()]


@pytest.mark.parametrize("parallel", [2, 4, 8])
def test_two_efficiencies_predict_held_out_measurements(shared_data, parallel):
    """Fitted on half the configurations of a device group, they predict the other half's median prefill and decode."""
    configurations = by_configuration(measured_runs(shared_data("cloud/perf_model.csv")))
    runs = [run for run in configurations if run[0] == parallel]
    flops_efficiency, bandwidth_efficiency, _ = parameters = fitted(runs[::2], with_overhead=False)
    assert 0.1 < flops_efficiency < 0.9
    assert 0.1 < bandwidth_efficiency < 0.9
    prefill_error, decode_error = np.median(relative_errors(runs[1::2], *parameters), axis=0)
    assert prefill_error < 0.20
    assert decode_error < 0.08


def test_one_profile_for_all_group_sizes_is_rougher(shared_data):
    """Splitting a model over 2, 4 and 8 devices costs communication, which one set of numbers meets only roughly."""
    runs = by_configuration(measured_runs(shared_data("cloud/perf_model.csv")))
    errors = relative_errors(runs[1::2], *fitted(runs[::2], with_overhead=True))
    assert np.median(errors) < 0.25
