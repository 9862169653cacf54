"""Links against independent theory: exact fluid limits, and processor-sharing queues."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from simpy import Environment, Event

from sim.bandwidth import BYTES_PER_S_PER_MBPS, ConstantCapacity, TraceCapacity
from sim.network import Link
from tests.test_bandwidth import RECORDINGS, exact_arrival, recording


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_transfer_over_a_recorded_trace_meets_the_exact_integral(
    name: str, shared_data: Callable[[str], Path]
) -> None:
    """Alone on a real 3G recording, transfers of 1 byte to three loops arrive to 1e-9 s when rational sums say."""
    durations, mbps = recording(shared_data(f"network/norway_hsdpa/{name}"))
    env = Environment()
    link = Link(env, "uplink", TraceCapacity(durations, mbps), propagation_s=0.05)
    loop_bytes = sum(d * m for d, m in zip(durations, mbps, strict=True)) * BYTES_PER_S_PER_MBPS
    rng = np.random.default_rng(8)
    sizes = [1.0, 1e3, *(loop_bytes * 10.0 ** rng.uniform(-5, 0.5, 40))]

    def send() -> Generator[Event, None, None]:
        for i, size in enumerate(sizes):
            yield env.timeout(rng.uniform(0, 100))
            expected = exact_arrival(durations, mbps, env.now, size) + 0.05
            yield link.transfer(size, i, 0)
            assert env.now == pytest.approx(expected, rel=0, abs=1e-9)

    env.process(send())
    env.run()
    assert env.now > 3 * sum(durations)
    assert link.bytes_sent == pytest.approx(sum(sizes), rel=1e-12)


# ------------------------------------------------------------------------------------------- random workloads, rationally


class Step(NamedTuple):
    """Something done to a link: start a transfer of `amount` bytes, cancel transfer `amount`, or go up or down."""

    time_s: float
    what: str
    amount: int = 0


class Observed(NamedTuple):
    """What came of it: arrivals by transfer, bytes sent, and time with transfers under way."""

    arrivals: dict[int, float]
    bytes_sent: float
    busy_s: float


def fluid(steps: list[Step], pieces: list[tuple[float, int]], shared: bool, propagation_s: float) -> Observed:
    """The naive reference, in rational arithmetic: move everyone on to the next change of anything, and repeat."""
    now, up, sent, busy = Fraction(0), True, Fraction(0), Fraction(0)
    left: dict[int, Fraction] = {}
    arrivals: dict[int, float] = {}
    started = 0
    piece, piece_ends = 0, Fraction(pieces[0][0])
    todo = list(steps)
    while todo or left:
        rate = Fraction(pieces[piece][1]) if up else Fraction(0)
        share = rate / len(left) if shared and left else rate
        ahead = [piece_ends, *(Fraction(step.time_s) for step in todo[:1])]
        ahead += [now + bytes_left / share for bytes_left in left.values() if share]
        then = min(ahead)
        busy += (then - now) * bool(left)
        for i in list(left):
            moved = min(left[i], share * (then - now))
            left[i] -= moved
            sent += moved
            if not left[i]:
                del left[i]
                arrivals[i] = float(then + Fraction(propagation_s))
        now = then
        if now == piece_ends:
            piece = (piece + 1) % len(pieces)
            piece_ends += Fraction(pieces[piece][0])
        while todo and Fraction(todo[0].time_s) == now:
            step = todo.pop(0)
            if step.what == "start":
                left[started] = Fraction(step.amount)
                started += 1
            elif step.what == "cancel":
                left.pop(step.amount, None)
                if arrivals.get(step.amount, 0.0) > now:
                    del arrivals[step.amount]
            else:
                up = step.what == "up"
    return Observed(arrivals, float(sent), float(busy))


def simulated(steps: list[Step], pieces: list[tuple[float, int]], shared: bool, propagation_s: float) -> Observed:
    """The same on a Link."""
    env = Environment()
    mbps = [rate / BYTES_PER_S_PER_MBPS for _, rate in pieces]
    capacity = TraceCapacity([duration for duration, _ in pieces], mbps)
    link = Link(env, "uplink", capacity, shared=shared, propagation_s=propagation_s)
    arrivals: dict[int, float] = {}
    events: list[Event] = []

    def note(i: int) -> Callable[[Event], None]:
        return lambda _: arrivals.__setitem__(i, env.now)

    def act() -> Generator[Event, None, None]:
        for step in steps:
            if step.time_s > env.now:
                yield env.timeout(step.time_s - env.now)
            if step.what == "start":
                events.append(link.transfer(step.amount, len(events), 0))
                events[-1].callbacks.append(note(len(events) - 1))
            elif step.what == "cancel":
                if step.amount < len(events):
                    link.cancel(events[step.amount])
            else:
                link.set_up(step.what == "up")

    env.process(act())
    env.run()
    assert link.active == 0
    return Observed(arrivals, link.bytes_sent, link.busy_s)


@st.composite
def workloads(draw: st.DrawFn) -> list[Step]:
    """Up to 25 steps in order of time, often several at once; the link is up in the end."""
    starts = st.builds(Step, st.integers(0, 60).map(lambda k: k / 4), st.just("start"), st.integers(1, 4000))
    # Off the grid: whether a transfer that ends exactly then was cancelled would depend on rounding.
    off_grid = st.integers(0, 80).map(lambda k: k / 4 + math.pi / 100)
    cancels = st.builds(Step, off_grid, st.just("cancel"), st.integers(0, 3))
    outages = st.builds(Step, off_grid, st.sampled_from(["up", "down"]))
    steps = draw(st.lists(st.one_of(starts, starts, cancels, outages), max_size=24))
    return [*sorted(steps, key=lambda step: step.time_s), Step(25.0, "up")]


traces = st.lists(
    st.tuples(st.sampled_from([0.25, 1.0, 3.5]), st.sampled_from([0, 1, 300, 1000, 2500])), min_size=1, max_size=5
).filter(lambda pieces: any(rate >= 300 for _, rate in pieces))


@given(workloads(), traces, st.booleans(), st.sampled_from([0.0, 0.25, 4.0]))
def test_random_workloads_meet_a_naive_fluid_reference(
    steps: list[Step], pieces: list[tuple[float, int]], shared: bool, propagation_s: float
) -> None:
    """Arrivals to 1e-9 s, bytes and busy time: any starts, rates, outages and cancellations, shared or not."""
    expected, found = (run(steps, pieces, shared, propagation_s) for run in (fluid, simulated))
    assert found.arrivals.keys() == expected.arrivals.keys()
    for i, time in expected.arrivals.items():
        assert found.arrivals[i] == pytest.approx(time, rel=0, abs=1e-9)
    assert found.bytes_sent == pytest.approx(expected.bytes_sent, rel=0, abs=1e-6)
    assert found.busy_s == pytest.approx(expected.busy_s, rel=0, abs=1e-9)


# --------------------------------------------------------------------------------------------- M/G/1 processor sharing

MEAN_BYTES = 125_000.0  # one second at 1 Mbit/s, so E[S] = 1 s

SIZES: dict[str, Callable[[np.random.Generator, int], npt.NDArray[np.float64]]] = {
    "constant": lambda rng, n: np.full(n, MEAN_BYTES),
    "exponential": lambda rng, n: rng.exponential(MEAN_BYTES, n),
    # One in ten is nine times as long as the others: squared coefficient of variation 4.6.
    "hyper-exponential": lambda rng, n: rng.exponential(np.where(rng.random(n) < 0.1, 5.0, 5 / 9) * MEAN_BYTES),
}


def mean_sojourn_s(load: float, sizes: str, transfers: int, seed: int) -> float:
    """Mean time in a shared link of 1 Mbit/s under Poisson arrivals; the first quarter is warm-up."""
    rng = np.random.default_rng(seed)
    pauses = rng.exponential(1.0 / load, transfers).tolist()
    size_bytes = SIZES[sizes](rng, transfers).tolist()
    env = Environment()
    link = Link(env, "uplink", ConstantCapacity(1.0))
    total, warm_up = 0.0, transfers // 4

    def arrivals() -> Generator[Event, None, None]:
        nonlocal total
        for i, (pause, size) in enumerate(zip(pauses, size_bytes, strict=True)):
            yield env.timeout(pause)
            event = link.transfer(size, i, 0)
            if i >= warm_up:
                total -= env.now
                event.callbacks.append(leave)

    def leave(_: Event) -> None:
        nonlocal total
        total += env.now

    env.process(arrivals())
    env.run()
    return total / (transfers - warm_up)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("load", "transfers"), [(0.5, 5_000), (0.8, 15_000), (0.95, 40_000)])
def test_processor_sharing_sojourn_does_not_depend_on_the_size_distribution(
    load: float, transfers: int, sizes: str
) -> None:
    """M/G/1-PS: the mean sojourn is E[S] / (1 - load), inside the 99 % interval over 20 seeds, for three size laws."""
    means = [mean_sojourn_s(load, sizes, transfers, seed) for seed in range(20)]
    low, high = stats.t.interval(0.99, len(means) - 1, np.mean(means), stats.sem(means))
    assert low < 1 / (1 - load) < high
    assert (high - low) * (1 - load) < 0.5  # tight enough to tell sharing from first come, first served
