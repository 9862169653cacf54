from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sim.bandwidth import Capacity, ConstantCapacity, RandomCapacity, TraceCapacity

RECORDINGS = ["norway_bus_16", "norway_ferry_2", "norway_metro_1", "norway_train_4", "norway_tram_28"]
MEGABYTE = 1e6  # 8 Mbit/s carries one in a second


def recording(path: Path) -> tuple[list[float], list[float]]:
    """Durations and Mbit/s of a recording in which value i covers (t[i-1], t[i]]."""
    times, mbps = np.loadtxt(path, unpack=True)
    durations = np.diff(times)
    return durations[durations > 0].tolist(), mbps[1:][durations > 0].tolist()


def exact_arrival(durations_s: list[float], mbps: list[float], start_s: float, size_bytes: float) -> float:
    """When the last byte leaves: walks the pieces one by one in rational arithmetic, without rounding."""
    pieces = [(Fraction(d), Fraction(m) * 125_000) for d, m in zip(durations_s, mbps, strict=True)]
    loop_s, loop_bytes = sum(d for d, _ in pieces), sum(d * rate for d, rate in pieces)
    time, left = Fraction(start_s), Fraction(size_bytes)
    skip, i = time % loop_s, 0
    while skip >= pieces[i][0]:
        skip, i = skip - pieces[i][0], i + 1
    whole = max(0, math.ceil(left / loop_bytes) - 1)
    time, left = time + whole * loop_s, left - whole * loop_bytes
    while left > 0:
        duration, rate = pieces[i % len(pieces)]
        duration -= skip
        if rate * duration >= left:
            return float(time + left / rate)
        time, left, skip, i = time + duration, left - rate * duration, Fraction(0), i + 1
    return float(time)


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_trace_is_integrated_exactly(name: str, shared_data: Callable[[str], Path]) -> None:
    """On real 3G recordings the inverse meets rational arithmetic to 1e-9 s, from any start, over many loops."""
    durations, mbps = recording(shared_data(f"network/norway_hsdpa/{name}"))
    capacity = TraceCapacity(durations, mbps)
    loop_s = sum(durations)
    loop_bytes = capacity.bytes_between(0.0, loop_s)
    rng = np.random.default_rng(5)
    for start in (0.0, loop_s / 2, *rng.uniform(0, 3 * loop_s, 20), *rng.uniform(0, 1e5, 10)):
        for size in (0.0, 1.0, *(loop_bytes * 10.0 ** rng.uniform(-6, 1, 4))):
            assert capacity.time_when(start, size) == pytest.approx(
                exact_arrival(durations, mbps, start, size), rel=0, abs=1e-9
            )


def test_silence_is_waited_out_and_the_earliest_time_wins() -> None:
    """A size that ends where silence begins is through then; one byte more waits until the silence is over."""
    capacity = TraceCapacity([1.0, 2.0, 1.0, 1.0], [8.0, 0.0, 16.0, 0.0])
    arrivals = {
        (0.0, 0.0): 0.0,
        (0.0, MEGABYTE): 1.0,
        (0.0, 2 * MEGABYTE): 3.5,
        (1.5, MEGABYTE): 3.5,
        (0.0, 3 * MEGABYTE): 4.0,  # not 5, the end of the silence that closes the loop
        (4.5, MEGABYTE): 6.0,
        (0.5, 3 * MEGABYTE): 5.5,
        (0.0, 30 * MEGABYTE): 49.0,
        (500.0, 30 * MEGABYTE): 549.0,
        (4.2, 6 * MEGABYTE): 14.0,
    }
    for (start, size), expected in arrivals.items():
        assert capacity.time_when(start, size) == pytest.approx(expected, abs=1e-12), (start, size)


def test_a_crumb_left_by_rounding_does_not_wait_out_a_silence() -> None:
    """Rounding decides whether a share of a third is through when silence begins: a billionth of a byte does not count."""
    capacity = TraceCapacity([1.0, 2.0, 1.0, 1.0], [8.0, 0.0, 16.0, 0.0])
    opening = TraceCapacity([1.0, 1.0], [0.0, 8.0])
    for crumb in (-1e-9, 0.0, 1e-9):
        assert capacity.time_when(0.0, MEGABYTE + crumb) == pytest.approx(1.0)
        assert capacity.time_when(0.5, 2.5 * MEGABYTE + crumb) == pytest.approx(4.0)
        assert capacity.time_when(0.5, 3.5 * MEGABYTE + crumb) == pytest.approx(6.0)
        assert opening.time_when(0.0, 3 * MEGABYTE + crumb) == pytest.approx(6.0)
    assert capacity.time_when(0.0, MEGABYTE + 1.0) == pytest.approx(3.0 + 0.5e-6)
    assert opening.time_when(0.5, 1e-9) == 0.5
    assert opening.time_when(0.5, 1.0) == pytest.approx(1.0 + 1e-6)


def test_rates_hold_from_the_start_of_their_piece() -> None:
    """At a boundary the rate that begins there is in force; the offset moves the recording."""
    capacity = TraceCapacity([1.0, 2.0], [8.0, 24.0], offset_s=0.5)
    assert [capacity.mbps_at(t) for t in (0.0, 0.5, 2.4, 2.5, 3.0, 3.5)] == pytest.approx([8, 24, 24, 8, 8, 24])


@st.composite
def traces(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Up to six pieces, some silent, at least one not."""
    durations = draw(st.lists(st.floats(0.01, 50), min_size=1, max_size=6))
    rates = st.one_of(st.just(0.0), st.floats(0.01, 1000))
    mbps = draw(st.lists(rates, min_size=len(durations), max_size=len(durations)).filter(any))
    return durations, mbps


@given(traces(), st.floats(0, 1e4), st.floats(1, 1e9), st.floats(0, 100))
def test_trace_inverse_undoes_the_integral(
    trace: tuple[list[float], list[float]], start: float, size: float, offset: float
) -> None:
    """Between a start and the time when S bytes are through, S bytes are carried, and not before that time."""
    capacity = TraceCapacity(*trace, offset_s=offset)
    end = capacity.time_when(start, size)
    slack = 1e-9 * (end + offset) * max(trace[1]) * 125_000  # what rounding the clock by 1e-9 may carry
    assert capacity.bytes_between(start, end) == pytest.approx(size, rel=1e-9, abs=1e-6 + slack)
    earlier = start + (end - start) * 0.999
    assert capacity.bytes_between(start, earlier) < size or capacity.mbps_at(earlier) == 0.0


@given(traces(), st.floats(0, 1e3), st.floats(0, 1e3), st.floats(0, 100))
def test_an_offset_is_a_later_start(
    trace: tuple[list[float], list[float]], start: float, length: float, offset: float
) -> None:
    """A link with an offset at t carries what one without carries at t + offset."""
    moved, plain = TraceCapacity(*trace, offset_s=offset), TraceCapacity(*trace)
    assert moved.bytes_between(start, start + length) == pytest.approx(
        plain.bytes_between(start + offset, start + length + offset), rel=1e-9, abs=1e-3
    )


@pytest.mark.parametrize("kind", ["lognormal", "gamma"])
def test_random_rates_follow_their_distribution(kind: str) -> None:
    """Interval rates pass a Kolmogorov-Smirnov test against the law with the given mean and variation."""
    mean, cv = 20.0, 0.6
    capacity = RandomCapacity(mean, cv, 2.0, np.random.default_rng(7), kind)  # type: ignore[arg-type]
    rates = [capacity.mbps_at(2.0 * i + 1.0) for i in range(5000)]
    law = (
        stats.gamma(1 / cv**2, scale=mean * cv**2)
        if kind == "gamma"
        else stats.lognorm(math.sqrt(math.log1p(cv**2)), scale=mean / math.sqrt(1 + cv**2))
    )
    assert law.mean() == pytest.approx(mean)
    assert law.std() == pytest.approx(mean * cv)
    assert stats.kstest(rates, law.cdf).pvalue > 0.01


def test_random_rates_do_not_depend_on_who_asks() -> None:
    """Asking late first, or the integral first, gives the same rates as asking in order."""
    in_order, late_first, integral_first = (RandomCapacity(5, 1, 0.5, np.random.default_rng(3)) for _ in range(3))
    late_first.mbps_at(900.0)
    integral_first.time_when(0.0, 1e8)
    times = np.arange(0.0, 1000.0, 0.5).tolist()
    rates = [in_order.mbps_at(t) for t in times]
    assert rates == [late_first.mbps_at(t) for t in times] == [integral_first.mbps_at(t) for t in times]
    assert len(set(rates)) == len(rates)


@given(st.floats(0, 500), st.floats(1, 1e7), st.sampled_from([0.0, 0.5, 3.0]), st.sampled_from(["gamma", "lognormal"]))
def test_random_integral_is_that_of_its_rates(start: float, size: float, cv: float, kind: str) -> None:
    """A random capacity answers like a trace made of the rates it shows."""
    capacity = RandomCapacity(4.0, cv, 1.5, np.random.default_rng(11), kind)  # type: ignore[arg-type]
    end = capacity.time_when(start, size)
    shown = [capacity.mbps_at(1.5 * i + 0.7) for i in range(int(end / 1.5) + 2)]
    trace = TraceCapacity([1.5] * len(shown), shown)
    assert end == pytest.approx(trace.time_when(start, size), rel=0, abs=1e-6)
    assert capacity.bytes_between(start, end) == pytest.approx(size, rel=1e-9, abs=1e-2)


def test_constant_and_unlimited_rates() -> None:
    """A constant rate divides; no limit means no time, and an empty interval carries nothing."""
    constant, unlimited = ConstantCapacity(8.0), ConstantCapacity(math.inf)
    assert (constant.time_when(2.0, MEGABYTE), constant.bytes_between(2.0, 4.0)) == (3.0, 2 * MEGABYTE)
    assert (unlimited.time_when(2.0, MEGABYTE), unlimited.bytes_between(2.0, 2.0)) == (2.0, 0.0)
    assert constant.mbps_at(9.0) == 8.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConstantCapacity(0.0),
        lambda: ConstantCapacity(math.nan),
        lambda: TraceCapacity([], []),
        lambda: TraceCapacity([1.0], [1.0, 2.0]),
        lambda: TraceCapacity([1.0, 0.0], [1.0, 1.0]),
        lambda: TraceCapacity([1.0], [0.0]),
        lambda: TraceCapacity([1.0, 1.0], [-1.0, 2.0]),
        lambda: TraceCapacity([1.0], [math.inf]),
        lambda: TraceCapacity([1.0], [1.0], offset_s=-1.0),
        lambda: RandomCapacity(0.0, 1.0, 1.0, np.random.default_rng(0)),
        lambda: RandomCapacity(1.0, -1.0, 1.0, np.random.default_rng(0)),
        lambda: RandomCapacity(1.0, 1.0, 0.0, np.random.default_rng(0)),
        lambda: RandomCapacity(1.0, 1.0, 1.0, np.random.default_rng(0), "uniform"),  # type: ignore[arg-type]
    ],
)
def test_impossible_capacities_are_refused(make: Callable[[], Capacity]) -> None:
    """Rates that could never carry anything, or arrays that do not fit together, raise ValueError."""
    with pytest.raises(ValueError, match=r"found|every"):
        make()
