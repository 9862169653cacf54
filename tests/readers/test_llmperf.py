"""Tests of the reader of measured calls to hosted models, and of the endpoint fitted to them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from workloads.errors import InputError
from workloads.readers import llmperf
from workloads.readers.llmperf import MeasuredCall

GOOD = {
    "error_code": None,
    "error_msg": "",
    "inter_token_latency_s": 0.02,
    "ttft_s": 0.5,
    "end_to_end_latency_s": 2.5,
    "request_output_throughput_token_per_s": 40.0,
    "number_total_tokens": 651,
    "number_output_tokens": 101,
    "number_input_tokens": 550,
}
ENDPOINTS = ["bedrock_13b", "groq_70b", "replicate_70b", "together_70b"]


@pytest.fixture
def made(tmp_path):
    """Writes a file and returns its path."""

    def write(content: object):
        path = tmp_path / "calls.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


def synthetic(rng, n, ttft, rate):
    """`n` calls of 151 tokens with independent log-normal TTFT and rate, each given as (median, sigma)."""
    ttft_s = ttft[0] * np.exp(ttft[1] * rng.standard_normal(n))
    rates = rate[0] * np.exp(rate[1] * rng.standard_normal(n))
    return [
        MeasuredCall(first, first + 150 / tokens_per_s, 550, 151, 151 / (first + 150 / tokens_per_s))
        for first, tokens_per_s in zip(ttft_s.tolist(), rates.tolist(), strict=True)
    ]


def test_rates_are_recomputed(made):
    """The rate leaves out the first token and its wait: 100 tokens in 2 s; the whole call had 101 tokens in 2.5 s."""
    (call,) = llmperf.read(made([GOOD]))
    assert call == MeasuredCall(0.5, 2.5, 550, 101, 40.0)
    assert call.tokens_per_s == pytest.approx(50)
    assert call.request_tokens_per_s == pytest.approx(40.4)


@pytest.mark.parametrize("change", [{"number_output_tokens": 1}, {"ttft_s": 2.5}])
def test_a_call_without_a_second_token_has_no_rate(made, change):
    """One token, or all tokens at once, give no rate; such calls are counted and left out of the fit."""
    calls = list(llmperf.read(made([GOOD, GOOD, {**GOOD, **change}])))
    assert math.isnan(calls[2].tokens_per_s)
    fit = llmperf.fit(calls)
    assert (fit.calls, fit.fitted_calls, fit.unusable_calls, fit.error_rate) == (3, 2, 1, 0)


def test_errors_are_counted_but_not_fitted(made):
    """Error rows change the error rate only, whether they carry metrics, zeros or nothing at all."""
    disliked = {**GOOD, "error_code": -100, "error_msg": "Output too few tokens 39", "ttft_s": 30.0}
    refused = {**GOOD, "error_code": 429, "ttft_s": 0, "end_to_end_latency_s": 0, "number_output_tokens": 1}
    bare = {"error_code": 429, "error_msg": None, "ttft_s": None}
    calls = list(llmperf.read(made([GOOD, disliked, refused, bare, {**GOOD, "ttft_s": 0.7}])))
    assert [call.error for call in calls] == [None, "-100", "429", "429", None]
    assert calls[1].error_message == "Output too few tokens 39"
    assert math.isnan(calls[3].ttft_s)
    fit, clean = llmperf.fit(calls), llmperf.fit([calls[0], calls[4]])
    assert fit.error_rate == pytest.approx(3 / 5)
    assert fit.errors == (("429", 2), ("-100", 1))
    assert (fit.ttft_s, fit.tokens_per_s) == (clean.ttft_s, clean.tokens_per_s)


@pytest.mark.parametrize(("ttft", "rate"), [((0.3, 0.4), (80.0, 0.15)), ((2.0, 1.0), (12.0, 0.05))])
def test_fit_recovers_known_parameters(ttft, rate):
    """Over 200 fits of 400 calls the z-scores of all four parameters have mean 0 and deviation 1.

    The estimate of log median has the deviation sigma / sqrt(n), that of sigma sigma / sqrt(2 n).
    """
    rng, n, fits = np.random.default_rng(20240607), 400, 200
    scores = []
    for _ in range(fits):
        fit = llmperf.fit(synthetic(rng, n, ttft, rate))
        for (median, sigma), fitted in ((ttft, fit.ttft_s), (rate, fit.tokens_per_s)):
            scores.append(math.log(fitted.median / median) / (sigma / math.sqrt(n)))
            scores.append((fitted.sigma - sigma) / (sigma / math.sqrt(2 * n)))
    table = np.array(scores).reshape(fits, 4)
    assert np.abs(table.mean(axis=0)).max() < 4 / math.sqrt(fits)
    assert np.abs(table.std(axis=0) - 1).max() < 4 / math.sqrt(2 * fits)


def test_good_data_have_a_small_distance_and_error():
    """Calls drawn from the model itself pass Lilliefors' test, are uncorrelated and give the right mean end-to-end."""
    n = 4000
    fit = llmperf.fit(synthetic(np.random.default_rng(5), n, (0.4, 0.5), (60.0, 0.3)))
    assert max(fit.ttft_s.ks_distance, fit.tokens_per_s.ks_distance) < 0.89 / math.sqrt(n)
    assert abs(fit.correlation) < 4 / math.sqrt(n)
    assert abs(fit.end_to_end_error) < 0.02
    assert fit.reported_ratio == pytest.approx((1, 1, 1))


def test_correlation_has_its_sign():
    """A TTFT that is the inverse of the rate is perfectly anticorrelated with it; a constant one has no correlation."""
    rates = [20.0, 40.0, 80.0]
    calls = [MeasuredCall(1 / rate, 1 / rate + 100 / rate, 1, 101, 1.0) for rate in rates]
    assert llmperf.fit(calls).correlation == pytest.approx(-1)
    constant = llmperf.fit([MeasuredCall(1.0, 1.0 + 100 / rate, 1, 101, 1.0) for rate in rates])
    assert math.isnan(constant.correlation)
    assert (constant.ttft_s.sigma, constant.ttft_s.ks_distance) == (0, 0)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_fit_agrees_with_scipy_on_recorded_calls(shared_data, endpoint):
    """Median, sigma and Kolmogorov-Smirnov distance of the recorded calls are those that SciPy finds."""
    calls = list(llmperf.read(shared_data(f"cloud/{endpoint}.json")))
    fit = llmperf.fit(calls)
    good = [call for call in calls if call.error is None]
    for found, samples in (
        (fit.ttft_s, [call.ttft_s for call in good]),
        (fit.tokens_per_s, [call.tokens_per_s for call in good]),
    ):
        sigma, _, median = stats.lognorm.fit(samples, floc=0)
        assert (found.median, found.sigma) == pytest.approx((median, sigma), rel=1e-3)
        reference = stats.kstest(samples, stats.lognorm(s=found.sigma, scale=found.median).cdf)
        assert found.ks_distance == pytest.approx(reference.statistic, abs=1e-9)


@pytest.mark.parametrize(
    ("endpoint", "fitted", "errors", "ratio"),
    [
        ("bedrock_13b", 53, (("-100", 97),), 149 / 150),
        ("groq_70b", 150, (), 149 / 150),
        ("replicate_70b", 145, (), 17 / 128),
        ("together_70b", 150, (), 0.943),
    ],
)
def test_recorded_calls(shared_data, endpoint, fitted, errors, ratio):
    """Each recorded endpoint has its errors counted by code and its reported throughput compared with the recomputed."""
    fit = llmperf.fit(llmperf.read(shared_data(f"cloud/{endpoint}.json")))
    assert (fit.fitted_calls, fit.errors, fit.unusable_calls) == (fitted, errors, 0)
    assert fit.calls == fitted + sum(count for _, count in errors)
    assert fit.reported_ratio[1] == pytest.approx(ratio, rel=1e-3)
    assert abs(fit.end_to_end_error) < (0.15 if endpoint == "replicate_70b" else 0.01)


def test_mean_of_powers():
    """The mean of x and of 1/x under the fitted law agree with a large sample of it."""
    law = llmperf.LogNormal(median=3.0, sigma=0.5, ks_distance=0.0)
    samples = 3.0 * np.exp(0.5 * np.random.default_rng(1).standard_normal(200_000))
    for power in (1, -1):
        error = 5 * float(np.std(samples**power)) / math.sqrt(len(samples))
        assert law.mean(power) == pytest.approx(np.mean(samples**power), abs=error)
    assert llmperf.LogNormal(1.0, 50.0, 0.0).mean() == math.inf


def without(name):
    """A good row that lacks one field."""
    return {key: value for key, value in GOOD.items() if key != name}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"[]", ["row 1", "the list is empty"]),
        (GOOD, ["row 1", "an object"]),
        ("calls", ["row 1", '"calls"']),
        (json.dumps([GOOD]).encode()[:-30], ["not valid JSON"]),
        (b"[\n{},\n{,}]", ["row 3", "not valid JSON"]),
        ([GOOD, 7], ["row 2", "7"]),
        ([GOOD, None], ["row 2", "null"]),
        ([GOOD, without("ttft_s")], ["row 2", "'ttft_s'", "missing"]),
        ([without("number_output_tokens")], ["row 1", "'number_output_tokens'", "missing"]),
        ([{**GOOD, "ttft_s": None}], ["row 1", "ttft_s", "null"]),
        ([{**GOOD, "ttft_s": -0.5}], ["row 1", "ttft_s", "-0.5"]),
        ([{**GOOD, "ttft_s": True}], ["row 1", "ttft_s", "true"]),
        ([{**GOOD, "ttft_s": [0.5]}], ["row 1", "ttft_s", "list"]),
        ([{**GOOD, "ttft_s": 3.0}], ["row 1", "ttft_s", "later than the last"]),
        ([{**GOOD, "end_to_end_latency_s": "soon"}], ["row 1", "end_to_end_latency_s", "soon"]),
        ([{**GOOD, "number_output_tokens": 1.5}], ["row 1", "number_output_tokens", "1.5"]),
        ([{**GOOD, "error_code": 429, "ttft_s": "soon"}], ["row 1", "ttft_s", "soon"]),
        (b'[{"error_code": null, "ttft_s": NaN}]', ["NaN"]),
        (b'[{"error_code": null, "ttft_s": 1e999}]', ["row 1", "ttft_s", "inf"]),
        (b'[{"ttft_s": 1, "ttft_s": 2}]', ["ttft_s", "twice"]),
        (b'[{"error_msg": "\xff"}]', ["row 1", "UTF-8"]),
    ],
)
def test_names_what_is_wrong(made, content, words):
    """Each broken file ends as one message with the path, the row or field, and what was found there."""
    path = made(content)
    with pytest.raises(InputError) as caught:
        list(llmperf.read(path))
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)


def test_fit_needs_two_calls_that_give_a_rate():
    """With fewer than two usable calls nothing is fitted, and the message says how many there were."""
    good, bad = MeasuredCall(0.5, 2.5, 550, 101, 40.0), MeasuredCall(0.0, 0.0, 550, 1, 0.0, "429")
    for calls, found in (([], "0 of 0"), ([good], "1 of 1"), ([good, bad, bad], r"1 of 3 calls \(2 errors\)")):
        with pytest.raises(InputError, match=f"my calls: {found}"):
            llmperf.fit(calls, source="my calls")
