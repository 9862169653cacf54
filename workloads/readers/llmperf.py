"""Calls to hosted models measured by LLMPerf, and the statistical model of an endpoint fitted to them.

Source: `raw_data/individual/*.json` of ray-project/llmperf-leaderboard: one JSON list of calls, all with the same prompt
length and output limit, five at a time.

Traps
- A row whose `error_code` is not null is an error row, and yet carries metrics: zeros after a refused call (429), real ones
  where the benchmark only disliked a short answer (-100, "Output too few tokens"). Fits leave them all out and count them
  by code, because only some of them are failures of the endpoint.
- `request_output_throughput_token_per_s` counts tokens in ways that differ between endpoints and is off by a factor of 8
  for one of the recorded ones: rates are recomputed from tokens and times, and the field's ratio to them is reported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workloads.errors import InputError
from workloads.readers._rows import StrPath, json_document, json_kind, number

FORMAT = "LLMPerf results: a JSON list of measured calls with ttft_s, end_to_end_latency_s and token counts"

Values = npt.NDArray[np.float64]


class MeasuredCall(NamedTuple):
    """One call. `error` is its code as text, None if it succeeded; an error's numbers are NaN or 0 where missing."""

    ttft_s: float
    end_to_end_s: float
    input_tokens: int
    output_tokens: int
    reported_tokens_per_s: float
    error: str | None = None
    error_message: str = ""

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second after the first token; NaN where no second token or no time followed it."""
        decode_s = self.end_to_end_s - self.ttft_s
        return (self.output_tokens - 1) / decode_s if self.output_tokens > 1 and decode_s > 0 else math.nan

    @property
    def request_tokens_per_s(self) -> float:
        """All output tokens over the whole call: what the reported throughput claims to be; NaN if it took no time."""
        return self.output_tokens / self.end_to_end_s if self.end_to_end_s > 0 else math.nan


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A log-normal distribution: `median` in the unit of the samples, `sigma` the deviation of their natural logarithm.

    `ks_distance` is the Kolmogorov-Smirnov distance to the samples it was fitted to: the largest gap between the two
    cumulative distributions, 0 (perfect) to 1. Above about 0.89 / sqrt(n) the samples have another shape, with 95 %
    confidence (Lilliefors 1967: the limit where median and sigma come from the same samples).
    """

    median: float
    sigma: float
    ks_distance: float

    def mean(self, power: int = 1) -> float:
        """Expectation of x ** power, for example the mean time per token from a rate with power=-1."""
        exponent = power * math.log(self.median) + (power * self.sigma) ** 2 / 2
        return math.exp(exponent) if exponent < 709 else math.inf


@dataclass(frozen=True, slots=True)
class EndpointFit:
    """What calls to one endpoint say about it.

    `ttft_s` and `tokens_per_s` are fitted to the `fitted_calls`: those without error that had a second token. Of all
    `calls`, the share `error_rate` failed, `errors` counts them by code, and `unusable_calls` succeeded but give no rate.
    `correlation` is that of log TTFT with log rate (NaN if one is constant). `end_to_end_error` is the relative error of
    the mean end-to-end time that the two fits imply if independent. `reported_ratio` is the least, median and greatest
    ratio of the throughput in the file to the one recomputed from tokens and times (1 if they agreed).
    """

    ttft_s: LogNormal
    tokens_per_s: LogNormal
    calls: int
    fitted_calls: int
    unusable_calls: int
    error_rate: float
    errors: tuple[tuple[str, int], ...]
    correlation: float
    end_to_end_error: float
    reported_ratio: tuple[float, float, float]


def read(path: StrPath) -> Iterator[MeasuredCall]:
    """Yield all calls, errors included; raises InputError naming the row (its place in the list) and the field."""
    document = json_document(path)
    if not isinstance(document, list) or not document:
        problem = "the list is empty" if document == [] else f"holds {json_kind(document)}"
        raise InputError(f"{path}: row 1", problem, "Give a JSON list [...] of at least one call")
    for row, entry in enumerate(document, start=1):
        if not isinstance(entry, dict):
            raise InputError(
                f"{path}: row {row}", f"holds {json_kind(entry)}", "Give every call as a JSON object {...}"
            )
        yield _failed_call(path, row, entry) if entry.get("error_code") is not None else _call(path, row, entry)


def _call(path: StrPath, row: int, entry: Mapping[str, Any]) -> MeasuredCall:
    def field(name: str) -> float:
        _require(path, row, entry, name)
        return number(entry[name], path, row, name, minimum=0)

    def count(name: str) -> int:
        _require(path, row, entry, name)
        return number(entry[name], path, row, name, minimum=0, integer=True)

    ttft_s, end_to_end_s = field("ttft_s"), field("end_to_end_latency_s")
    if ttft_s > end_to_end_s:
        problem = f"the first token came after {ttft_s:g} s, later than the last after {end_to_end_s:g} s"
        raise InputError(f"{path}: row {row}, field 'ttft_s'", problem, "Correct the row or mark it with an error_code")
    tokens = count("number_input_tokens"), count("number_output_tokens")
    return MeasuredCall(ttft_s, end_to_end_s, *tokens, field("request_output_throughput_token_per_s"))


def _require(path: StrPath, row: int, entry: Mapping[str, Any], name: str) -> None:
    if name not in entry:
        problem = f"the field '{name}' is missing from a call without an error_code"
        raise InputError(f"{path}: row {row}", problem, f"Add it. Fields found: {', '.join(map(str, entry)) or 'none'}")


def _failed_call(path: StrPath, row: int, entry: Mapping[str, Any]) -> MeasuredCall:
    def field(name: str) -> float:
        value = entry.get(name)
        return math.nan if value is None else number(value, path, row, name)

    def count(name: str) -> int:
        value = entry.get(name)
        return 0 if value is None else number(value, path, row, name, minimum=0, integer=True)

    return MeasuredCall(
        field("ttft_s"),
        field("end_to_end_latency_s"),
        count("number_input_tokens"),
        count("number_output_tokens"),
        field("request_output_throughput_token_per_s"),
        str(entry["error_code"]),
        str(entry.get("error_msg") or ""),
    )


def fit(calls: Iterable[MeasuredCall], source: str = "measured calls") -> EndpointFit:
    """Fit an endpoint to `calls`; raises InputError, naming `source`, with fewer than two calls that give a rate."""
    calls = list(calls)
    successes = [call for call in calls if call.error is None]
    fitted = [call for call in successes if call.ttft_s > 0 and call.tokens_per_s > 0]
    errors = Counter(call.error for call in calls if call.error is not None)
    if len(fitted) < 2:
        problem = f"{len(fitted)} of {len(calls)} calls ({errors.total()} errors) have a first and a second token"
        raise InputError(source, problem, "Give at least two calls without error that answer with two tokens or more")
    ttft_s = np.array([call.ttft_s for call in fitted])
    tokens_per_s = np.array([call.tokens_per_s for call in fitted])
    ttft_fit, rate_fit = fit_lognormal(ttft_s), fit_lognormal(tokens_per_s)
    mean_decode_tokens = np.mean([call.output_tokens - 1 for call in fitted])
    implied_s = ttft_fit.mean() + mean_decode_tokens * rate_fit.mean(-1)
    measured_s = np.mean([call.end_to_end_s for call in fitted])
    ratios = np.array([call.reported_tokens_per_s / call.request_tokens_per_s for call in fitted])
    return EndpointFit(
        ttft_s=ttft_fit,
        tokens_per_s=rate_fit,
        calls=len(calls),
        fitted_calls=len(fitted),
        unusable_calls=len(successes) - len(fitted),
        error_rate=errors.total() / len(calls),
        errors=tuple(errors.most_common()),
        correlation=_correlation(np.log(ttft_s), np.log(tokens_per_s)),
        end_to_end_error=float(implied_s / measured_s - 1),
        reported_ratio=(float(ratios.min()), float(np.median(ratios)), float(ratios.max())),
    )


def fit_lognormal(samples: Values) -> LogNormal:
    """Maximum-likelihood fit to positive samples, shape (n,): mean and deviation (over n) of their logarithms."""
    logs = np.sort(np.log(samples))
    centre, sigma = float(logs.mean()), float(logs.std())
    if math.isclose(logs[0], logs[-1], rel_tol=0, abs_tol=1e-12):
        return LogNormal(math.exp(centre), 0.0, 0.0)  # one value only: the fit is a step there, and so are the samples
    scores = (logs - centre) / (sigma * math.sqrt(2))
    fitted = np.array([(1 + math.erf(score)) / 2 for score in scores])
    steps = np.arange(len(logs) + 1) / len(logs)
    distance = max(float(np.max(steps[1:] - fitted)), float(np.max(fitted - steps[:-1])))
    return LogNormal(math.exp(centre), sigma, distance)


def _correlation(first: Values, second: Values) -> float:
    deviations = float(first.std() * second.std())
    if deviations < 1e-12:
        return math.nan
    return float(np.mean((first - first.mean()) * (second - second.mean())) / deviations)
