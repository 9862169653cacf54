"""Arrival processes against their theory: rates, burstiness, and the intensity they promise."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sim.workload import build_workload
from tests.helpers import NOWHERE, scenario, slots
from workloads import arrivals
from workloads.arrivals import Times
from workloads.errors import InputError

Process = Callable[[int, np.random.Generator], Times]
PROCESSES: dict[str, Process] = {
    "constant": lambda n, rng: arrivals.constant(n, 3.0),
    "poisson": lambda n, rng: arrivals.poisson(n, 3.0, rng),
    "regular gamma": lambda n, rng: arrivals.gamma(n, 3.0, 0.3, rng),
    "bursty gamma": lambda n, rng: arrivals.gamma(n, 3.0, 3.0, rng),
    "mmpp": lambda n, rng: arrivals.mmpp(n, 3.0, 5.0, 0.2, 4.0, rng),
    "diurnal": lambda n, rng: arrivals.diurnal(n, 3.0, 100.0, 1.0, rng),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_mean_rate(name: str) -> None:
    """Three requests a second in the long run, whatever the process."""
    times = PROCESSES[name](60_000, np.random.default_rng(1))
    assert len(times) / times[-1] == pytest.approx(3.0, rel=0.04)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_times_are_sorted_positive_and_as_many_as_asked_for(name: str, count: int) -> None:
    """Arrival times never go back, start after 0 and are exactly `count`."""
    times = PROCESSES[name](count, np.random.default_rng(2))
    assert times.shape == (count,)
    assert (np.diff(times) >= 0).all()
    assert times[0] > 0.0


@pytest.mark.parametrize("name", PROCESSES)
@settings(deadline=None)
@given(short=st.integers(1, 400), seed=st.integers(0, 1000))
def test_fewer_requests_are_a_prefix(name: str, short: int, seed: int) -> None:
    """The first arrivals are the same to the bit however many follow."""
    process = PROCESSES[name]
    few, many = process(short, np.random.default_rng(seed)), process(500, np.random.default_rng(seed))
    assert few.tolist() == many[:short].tolist()


@pytest.mark.parametrize("cv", [0.25, 1.0, 2.5])
def test_gamma_gaps(cv: float) -> None:
    """Gaps follow the gamma distribution of the given mean and coefficient of variation."""
    gaps = np.diff(arrivals.gamma(20_000, 2.0, cv, np.random.default_rng(3)), prepend=0.0)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)
    shape = 1 / cv**2
    assert stats.kstest(gaps, stats.gamma(shape, scale=0.5 / shape).cdf).pvalue > 1e-3


def test_poisson_gaps() -> None:
    """Gaps are exponential and neighbours are uncorrelated."""
    gaps = np.diff(arrivals.poisson(20_000, 2.0, np.random.default_rng(4)), prepend=0.0)
    assert stats.kstest(gaps, stats.expon(scale=0.5).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4 / math.sqrt(len(gaps))


@pytest.mark.parametrize(("amplitude", "period_s"), [(0.0, 50.0), (0.5, 50.0), (1.0, 50.0), (0.8, 86_400.0)])
def test_diurnal_intensity(amplitude: float, period_s: float) -> None:
    """Run by the clock of its own integrated rate, the process is Poisson of unit rate: its gaps are Exp(1)."""
    times = arrivals.diurnal(20_000, 4.0, period_s, amplitude, np.random.default_rng(5))
    omega = 2 * math.pi / period_s
    clock = 4.0 * (times + amplitude / omega * (1 - np.cos(omega * times)))
    gaps = np.diff(clock, prepend=0.0)
    assert stats.kstest(gaps, stats.expon.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4 / math.sqrt(len(gaps))


def test_diurnal_times_solve_their_equation() -> None:
    """Every time is where the integrated rate reaches its goal, to a billionth of a second, whatever the swing."""
    for amplitude in (0.3, 0.9, 1.0):
        times = arrivals.diurnal(5_000, 0.5, 60.0, amplitude, np.random.default_rng(6))
        goals = np.cumsum(np.random.default_rng(6).exponential(1.0, 5_000)) / 0.5
        omega = 2 * math.pi / 60.0
        assert np.abs(times + amplitude / omega * (1 - np.cos(omega * times)) - goals).max() < 1e-9


def test_diurnal_peaks_where_the_sine_does() -> None:
    """With full swing the quarter day around the peak has (1/4 + 1/(pi sqrt 2)) of a day's requests, the trough the rest of 1/2."""
    times = arrivals.diurnal(40_000, 10.0, 100.0, 1.0, np.random.default_rng(7)) % 100.0
    peak, trough = np.mean((times > 12.5) & (times < 37.5)), np.mean((times > 62.5) & (times < 87.5))
    assert peak == pytest.approx(0.25 + 1 / (math.pi * math.sqrt(2)), abs=0.01)
    assert trough == pytest.approx(0.25 - 1 / (math.pi * math.sqrt(2)), abs=0.01)


def test_mmpp_counts_are_overdispersed_as_theory_says() -> None:
    """Variance to mean of counts in long windows: 1 + 2 (difference of rates)^2 p q tau / mean rate, tau the relaxation time."""
    rate, factor, share, burst_s = 2.0, 6.0, 0.25, 3.0
    quiet = rate / (1 - share + share * factor)
    relaxation_s = 1 / (1 / burst_s + share / (burst_s * (1 - share)))
    swing = quiet * (factor - 1)
    expected = 1 + 2 * swing**2 * share * (1 - share) * relaxation_s / rate
    times = arrivals.mmpp(400_000, rate, factor, share, burst_s, np.random.default_rng(8))
    counts = np.histogram(times, np.arange(0.0, times[-1], 150.0))[0]
    assert counts.mean() == pytest.approx(rate * 150.0, rel=0.02)
    assert expected > 2.0
    assert counts.var() / counts.mean() == pytest.approx(expected, rel=0.15)


def test_mmpp_without_bursts_is_poisson() -> None:
    """With equal rates in both states nothing is left but a Poisson process."""
    gaps = np.diff(arrivals.mmpp(20_000, 2.0, 1.0, 0.3, 5.0, np.random.default_rng(9)), prepend=0.0)
    assert stats.kstest(gaps, stats.expon(scale=0.5).cdf).pvalue > 1e-3


def test_mmpp_starts_in_its_stationary_state() -> None:
    """The first seconds of many runs have the mean rate, not the rate of one of the states."""
    rng = np.random.default_rng(10)
    counts = [np.searchsorted(arrivals.mmpp(200, 2.0, 10.0, 0.1, 50.0, rng), 5.0) for _ in range(4000)]
    assert np.mean(counts) == pytest.approx(10.0, rel=0.08)


# ------------------------------------------------------------------------------------------------------------------ traces

TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:17:{second:02d}.0000000,{100 + second},{10 + second}\n" for second in (3, 4, 4, 9)
)


def traced(tmp_path, requests: int = 4, **fields: object):
    """The workload of a four-row Azure trace."""
    (tmp_path / "trace.csv").write_text(TRACE)
    workload = {
        "tasks": {"kind": "trace"}, "requests": requests,
        "arrivals": {"kind": "trace", "path": "trace.csv", "format": "azure_llm", **fields},
    }  # fmt: skip
    return build_workload(scenario({"edge": slots()}, workload=workload), 1, tmp_path / NOWHERE.name)


def test_a_trace_is_replayed_and_scaled(tmp_path) -> None:
    """Recorded times count from the first row; a time scale of 2 halves the load."""
    assert traced(tmp_path).arrival_s.tolist() == [0.0, 1.0, 1.0, 6.0]
    assert traced(tmp_path, time_scale=2.0).arrival_s.tolist() == [0.0, 2.0, 2.0, 12.0]
    assert traced(tmp_path, requests=2).arrival_s.tolist() == [0.0, 1.0]


def test_a_trace_that_is_too_short_says_so(tmp_path) -> None:
    """More requests than rows is an input error that names the file and the most there can be."""
    with pytest.raises(InputError, match=r"trace\.csv.*holds 4 requests, 5 are asked for.*at most 4"):
        traced(tmp_path, requests=5)


def test_a_recorded_trace(shared_data) -> None:
    """The first 1000 requests of the Azure code trace arrive in order and carry its token counts."""
    path = shared_data("llm_arrivals/azure_llm_2023_code.csv")
    workload = {
        "tasks": {"kind": "trace"}, "requests": 1000, "arrivals": {"kind": "trace", "path": str(path), "format": "azure_llm"},
    }  # fmt: skip
    built = build_workload(scenario({"edge": slots()}, workload=workload), 1, NOWHERE)
    assert built.arrival_s is not None
    assert (np.diff(built.arrival_s) >= 0).all()
    rows = path.read_text().splitlines()[1:1001]
    assert [task.prompt_tokens for task in built.requests] == [int(row.split(",")[1]) for row in rows]
