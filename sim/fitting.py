"""Measurements of others as lines of a scenario: an endpoint profile from measured calls, a delay from a latency matrix."""

from __future__ import annotations

from pathlib import Path

from sim.profiles import EndpointProfile
from workloads.errors import InputError
from workloads.readers import llmperf, rtt_matrix


def endpoint_from_calls(path: Path) -> tuple[EndpointProfile, list[str]]:
    """An endpoint profile fitted to llmperf calls by maximum likelihood, and what to know of the fit."""
    fit = llmperf.fit(llmperf.read(path), source=path.name)
    profile = EndpointProfile(
        ttft_median_s=_round(fit.ttft_s.median), ttft_sigma=_round(fit.ttft_s.sigma),
        tokens_per_s_median=_round(fit.tokens_per_s.median), tokens_per_s_sigma=_round(fit.tokens_per_s.sigma),
        source=f"fitted to {fit.fitted_calls} of {fit.calls} calls in {path.name}",
    )  # fmt: skip
    notes = [
        f"{fit.fitted_calls} of {fit.calls} calls fitted; errors by code: {dict(fit.errors) or 'none'}",
        f"distance to log-normal (Kolmogorov-Smirnov): {fit.ttft_s.ks_distance:.3f} for the time to first token, "
        f"{fit.tokens_per_s.ks_distance:.3f} for tokens/s",
        f"mean end-to-end time of the fit against the measured one: {fit.end_to_end_error:+.1%}",
    ]
    return profile, notes


def delay_from_matrix(path: Path, source: str | None, target: str | None) -> float:
    """One-way delay between two regions, s: half the measured round trip."""
    matrix = rtt_matrix.read(path)
    if source is None or target is None:
        raise InputError("--from and --to", "not given", f"Regions: {', '.join(matrix.regions)}")
    return matrix.one_way_s(source, target)


def _round(value: float) -> float:
    return float(f"{value:.4g}")
