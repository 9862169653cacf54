from __future__ import annotations

import math
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from simpy import Environment, Event

from sim.bandwidth import ConstantCapacity, RandomCapacity, TraceCapacity
from sim.draws import CommonDraws
from sim.impairment import LOGNORMAL_CV, Jitter, JitterKind, PacketLoss, binomial_quantile
from sim.network import Link, Route

MB = 1e6  # 8 Mbit/s carries one in a second


def link_of(env: Environment, mbps: float = 8.0, **settings: Any) -> Link:
    """A link named "uplink" with a constant rate."""
    return Link(env, "uplink", ConstantCapacity(mbps), **settings)


def play(env: Environment, link: Link, plan: list[tuple[float, float]]) -> list[tuple[int, float]]:
    """Start a transfer at each (time, size), run, and return (index, arrival) in order of arrival."""
    arrived: list[tuple[int, float]] = []

    def send(i: int, at_s: float, size: float) -> Generator[Event, None, None]:
        yield env.timeout(at_s)
        assert (yield link.transfer(size, i, 0)) is None
        arrived.append((i, env.now))

    for i, (at_s, size) in enumerate(plan):
        env.process(send(i, at_s, size))
    env.run()
    return arrived


def rounded(arrived: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Arrivals with times rounded to 1e-9 s, so that lists can be compared."""
    return [(i, round(time, 9)) for i, time in arrived]


def at(env: Environment, time_s: float, action: Callable[[], object]) -> None:
    """Do something at a time."""

    def wait() -> Generator[Event, None, None]:
        yield env.timeout(time_s - env.now)
        action()

    env.process(wait())


# ------------------------------------------------------------------------------------------------------------ sharing


def test_a_transfer_alone_takes_size_over_rate_plus_propagation() -> None:
    """2 MB at 1 MB/s with 0.25 s of propagation, twice with a pause."""
    env = Environment()
    assert rounded(play(env, link_of(env, propagation_s=0.25), [(0, 2 * MB), (5, 2 * MB)])) == [(0, 2.25), (1, 7.25)]


def test_two_transfers_share_fairly() -> None:
    """The first has 0.5 MB left when the second joins; both move at half rate until the smaller is through."""
    env = Environment()
    assert rounded(play(env, link_of(env), [(0, 1 * MB), (0.5, 0.25 * MB)])) == [(1, 1.0), (0, 1.25)]


def test_a_transfer_may_start_while_another_is_only_propagating() -> None:
    """Propagation takes time but no share: the second has the whole rate."""
    env = Environment()
    assert rounded(play(env, link_of(env, propagation_s=10), [(0, 1 * MB), (1.5, 1 * MB)])) == [(0, 11.0), (1, 12.5)]


def test_equal_transfers_finish_together() -> None:
    """Five equal ones started at once take five times as long as one."""
    env = Environment()
    arrived = play(env, link_of(env), [(1, MB)] * 5)
    assert sorted(rounded(arrived)) == [(i, 6.0) for i in range(5)]


@given(st.lists(st.floats(1, 1e7), min_size=2, max_size=12))
def test_transfers_started_together_finish_by_size(sizes: list[float]) -> None:
    """The k-th smallest leaves once everyone has sent as much as it: at the sum of min(size, its size) over rate."""
    env = Environment()
    for i, time in play(env, link_of(env), [(0, size) for size in sizes]):
        assert time == pytest.approx(sum(min(size, sizes[i]) for size in sizes) / MB, rel=1e-12)


def test_without_sharing_everyone_has_the_full_rate() -> None:
    """Three overlapping transfers do not notice each other, though many come and go in between."""
    env = Environment()
    plan = [(0.0, 3 * MB), (0.5, 1 * MB), (1.0, 1 * MB), *((0.01 * i, 0.02 * MB) for i in range(100))]
    arrived = dict(rounded(play(env, link_of(env, shared=False), plan)))
    assert arrived == {i: round(start + size / MB, 9) for i, (start, size) in enumerate(plan)}


def test_unlimited_bandwidth_leaves_only_propagation() -> None:
    """With infinite Mbit/s any size arrives after the propagation, however many share, also after an outage."""
    env = Environment()
    link = link_of(env, math.inf, propagation_s=0.1)
    at(env, 1.0, lambda: link.set_up(False))
    at(env, 3.0, lambda: link.set_up(True))
    assert rounded(play(env, link, [(0, 1e12), (0, 1e12), (2, 1e12), (2, 5e12)])) == [
        (0, 0.1),
        (1, 0.1),
        (2, 3.1),
        (3, 3.1),
    ]
    assert link.estimate_s(1e15) == 0.1


def test_nothing_to_send_still_propagates() -> None:
    """A transfer of no bytes arrives after the propagation, alone or among others."""
    env = Environment()
    plan = [(0, 0.0), (1, 2 * MB), (1.5, 1 * MB), (2, 0.0)]
    assert rounded(play(env, link_of(env, propagation_s=0.5), plan)) == [(0, 0.5), (3, 2.5), (2, 4.0), (1, 4.5)]


# ------------------------------------------------------------------------------------------------- outage and giving up


@pytest.mark.parametrize("shared", [True, False])
def test_an_outage_stalls_and_resumes(shared: bool) -> None:
    """Sent bytes are kept, nothing moves for ten seconds, and who came meanwhile joins at the end."""
    env = Environment()
    link = link_of(env, shared=shared)
    at(env, 1.0, lambda: link.set_up(False))
    at(env, 5.0, lambda: link.set_up(False))
    at(env, 11.0, lambda: link.set_up(True))
    arrived = play(env, link, [(0.0, 3 * MB), (0.5, 1 * MB), (6.0, 1 * MB)])
    # Shared, at 1.0: 0 has 2.25 MB left and 1 has 0.75 MB; with 2's 1 MB they share by three from 11.0 on.
    times = {1: 13.25, 2: 13.75, 0: 15.0} if shared else {0: 13.0, 1: 11.5, 2: 12.0}
    assert dict(rounded(arrived)) == times
    assert link.busy_s == pytest.approx(max(times.values()))
    assert link.bytes_sent == pytest.approx(5 * MB)


def test_a_second_outage_before_the_first_forecast_comes_true() -> None:
    """A transfer forecast for 3 s, stalled twice, arrives once, late; whoever waits is told then."""
    env = Environment()
    link = link_of(env)
    for time, up in [(1.0, False), (2.0, True), (2.5, False), (10.0, True)]:
        at(env, time, partial(link.set_up, up))
    assert rounded(play(env, link, [(0, 3 * MB)])) == [(0, 11.5)]


@pytest.mark.parametrize("shared", [True, False])
def test_cancelling_frees_the_share_and_never_fires(shared: bool) -> None:
    """Of three, one gives up at 1 s: the others go on as if it had left, and nobody hears of it, early or late."""
    env = Environment()
    link = link_of(env, shared=shared)
    events = [link.transfer(3 * MB, i, 0) for i in range(3)]
    heard: list[tuple[int, float]] = []

    def hear(i: int, _: Event) -> None:
        heard.append((i, env.now))

    for i, event in enumerate(events):
        event.callbacks.append(partial(hear, i))
    at(env, 1.0, lambda: link.cancel(events[1]))
    at(env, 2.0, lambda: link.cancel(events[1]))
    at(env, 50.0, lambda: events[1].callbacks.append(partial(hear, 1)))
    env.run(until=1.0)
    assert link.active == 3
    env.run(until=1.5)
    assert (link.active, events[1].triggered) == (2, False)
    env.run()
    # Shared: at 1 s each has sent 1/3 MB; two with 8/3 MB left need 16/3 s.
    assert rounded(heard) == [(0, round(1 + 16 / 3, 9) if shared else 3.0), (2, round(1 + 16 / 3, 9) if shared else 3)]
    assert not events[1].processed
    assert link.bytes_sent == pytest.approx(6 * MB + (MB / 3 if shared else MB))
    assert link.busy_s == pytest.approx(1 + 16 / 3 if shared else 3.0)


def test_cancelling_the_only_transfer_leaves_the_link_idle() -> None:
    """The next transfer has the link for itself, before and after the time forecast for the cancelled one."""
    env = Environment()
    link = link_of(env)
    first = link.transfer(4 * MB, 0, 0)
    at(env, 1.0, lambda: link.cancel(first))
    assert rounded(play(env, link, [(2.0, 1 * MB), (3.5, 1 * MB)])) == [(0, 3.0), (1, 4.5)]
    assert not first.processed
    assert (link.busy_s, link.bytes_sent) == pytest.approx((3.0, 3 * MB))


def test_cancelling_what_is_only_propagating_frees_nothing() -> None:
    """Its bytes are spent, it never arrives, and those who share afterwards do not share with it."""
    env = Environment()
    link = link_of(env, propagation_s=2)
    alone = link.transfer(MB, 0, 0)
    at(env, 1.5, lambda: link.cancel(alone))
    assert sorted(rounded(play(env, link, [(2.0, MB), (2.0, MB)]))) == [(0, 6.0), (1, 6.0)]
    assert (alone.processed, link.active) == (False, 0)
    assert (link.bytes_sent, link.busy_s) == pytest.approx((3 * MB, 3.0))


def test_cancelling_what_has_arrived_changes_nothing() -> None:
    """Of two that shared, one is cancelled on its last stretch, the other after it came."""
    env = Environment()
    link = link_of(env, propagation_s=2)
    first, second = link.transfer(MB, 0, 0), link.transfer(MB, 1, 0)
    at(env, 3.0, lambda: link.cancel(first))
    at(env, 9.0, lambda: link.cancel(second))
    assert rounded(play(env, link, [(3.0, MB)])) == [(0, 6.0)]
    assert (first.processed, second.processed) == (False, True)
    assert link.bytes_sent == pytest.approx(3 * MB)


def test_the_longest_of_several_unshared_transfers_may_be_cancelled() -> None:
    """Busy time then ends with the longest that is left, and counts no second twice for one that comes later."""
    env = Environment()
    link = link_of(env, shared=False)
    at(env, 1.5, lambda: link.transfer(MB, 2, 0))
    long, short = link.transfer(10 * MB, 0, 0), link.transfer(3 * MB, 1, 0)
    at(env, 1.0, lambda: link.cancel(long))
    env.run()
    assert short.processed
    assert (link.busy_s, link.bytes_sent) == pytest.approx((3.0, 5 * MB))


def test_cancelling_during_an_outage() -> None:
    """One that gives up while the link is down does not come back with it, though it was the next to finish."""
    env = Environment()
    link = link_of(env)
    small, large = link.transfer(1 * MB, 0, 0), link.transfer(2 * MB, 1, 0)
    arrived: list[float] = []
    large.callbacks.append(lambda _: arrived.append(env.now))
    at(env, 1.0, lambda: link.set_up(False))
    at(env, 2.0, lambda: link.cancel(small))
    at(env, 3.0, lambda: link.set_up(True))
    env.run()
    assert arrived == pytest.approx([4.5])
    assert not small.processed


def test_a_link_that_is_down_and_empty_still_stalls_newcomers() -> None:
    """After everyone gave up during an outage, the next transfer waits for its end all the same."""
    env = Environment()
    link = link_of(env)
    events = [link.transfer(MB, i, 0) for i in range(2)]
    at(env, 1.0, lambda: link.set_up(False))
    for event in events:
        at(env, 2.0, partial(link.cancel, event))
    at(env, 4.0, lambda: link.set_up(True))
    assert rounded(play(env, link, [(3.0, MB)])) == [(0, 5.0)]
    assert link.busy_s == pytest.approx(4.0)  # 0 to 2, and 3 to 5


def test_whoever_waits_can_be_interrupted_or_wait_for_several() -> None:
    """Interrupts, time-outs by `|` and late waiters behave on a forecast that became too early as on any event."""
    env = Environment()
    link = link_of(env)
    log: list[tuple[str, float]] = []
    first = link.transfer(1 * MB, 0, 0)  # forecast for 1 s; with the second, half of it takes another second: 1.5 s

    def patient(name: str, start_s: float) -> Generator[Event, Any, None]:
        yield env.timeout(start_s)
        yield first
        log.append((name, env.now))

    def impatient() -> Generator[Event, Any, None]:
        outcome = yield first | env.timeout(1.3)
        log.append(("gave up" if first not in outcome else "wrong", env.now))

    env.process(patient("early", 0.0))
    env.process(patient("after the forecast", 1.2))
    env.process(patient("after the end", 5.0))
    env.process(impatient())
    victim = env.process(patient("interrupted", 0.0))
    victim.callbacks.append(lambda event: setattr(event, "defused", True))
    at(env, 0.5, lambda: link.transfer(0.75 * MB, 1, 0))
    at(env, 1.1, lambda: victim.interrupt())
    env.run(until=first)
    assert env.now == pytest.approx(1.5)
    env.run()
    assert [(name, round(time, 9)) for name, time in log] == [
        ("gave up", 1.3),
        ("early", 1.5),
        ("after the forecast", 1.5),
        ("after the end", 5.0),
    ]


# ---------------------------------------------------------------------------------------------------------- observing


def test_what_a_link_reports_on_the_way() -> None:
    """Active transfers, bytes sent, busy time and the estimate follow the two-transfer example by hand."""
    env = Environment()
    link = link_of(env, propagation_s=0.125)
    at(env, 1.0, lambda: link.transfer(1 * MB, 0, 0))
    at(env, 1.5, lambda: link.transfer(0.25 * MB, 1, 0))
    seen = []
    for time in (0.5, 1.25, 1.75, 2.1, 3.0):
        env.run(until=time)
        seen.append((link.active, round(link.bytes_sent), round(link.busy_s, 9), round(link.estimate_s(MB), 9)))
    assert seen == [
        (0, 0, 0.0, 1.125),
        (1, 250_000, 0.25, 2.125),
        (2, 750_000, 0.75, 3.125),
        (1, 1_100_000, 1.1, 2.125),
        (0, 1_250_000, 1.25, 1.125),
    ]


@given(st.floats(0, 1e9), st.floats(0.01, 1e4), st.floats(0, 2))
def test_the_estimate_is_right_when_nothing_changes(size: float, mbps: float, propagation: float) -> None:
    """On an idle constant link a transfer takes what was estimated."""
    env = Environment()
    link = link_of(env, mbps, propagation_s=propagation)
    expected = link.estimate_s(size)
    [(_, arrival)] = play(env, link, [(0.0, size)])
    assert arrival == pytest.approx(expected, rel=1e-12)


def test_the_estimate_knows_the_present_only() -> None:
    """It uses the rate in force now, not the recording's future; silence and outages mean for ever."""
    env = Environment()
    link = Link(env, "uplink", TraceCapacity([2, 1, 1], [8, 80, 0]))
    seen = []
    for time in (1.9, 2.1, 3.1, 4.1):
        env.run(until=time)
        seen.append(link.estimate_s(MB))
    assert seen == pytest.approx([1.0, 0.1, math.inf, 1.0])
    link.set_up(False)
    assert (link.rate_mbps, link.estimate_s(0.0)) == (0.0, math.inf)


def test_the_estimate_ignores_others_when_nothing_is_shared() -> None:
    """Others on an unshared link do not slow a transfer down."""
    env = Environment()
    link = link_of(env, shared=False)
    link.transfer(9 * MB, 0, 0)
    link.transfer(9 * MB, 1, 0)
    assert (link.active, link.estimate_s(MB)) == (2, 1.0)


# -------------------------------------------------------------------------------------------------------- jitter, loss


@pytest.mark.parametrize("kind", ["exponential", "normal", "lognormal"])
def test_jitter_follows_its_distribution(kind: JitterKind) -> None:
    """Arrival less sending and propagation passes a Kolmogorov-Smirnov test against the documented law."""
    env = Environment()
    link = link_of(env, propagation_s=0.5, jitter=kind, jitter_s=0.2, shared=False, draws=CommonDraws(1, "uplink"))
    arrived = play(env, link, [(0.0, MB)] * 4000)
    delays = np.array([time for _, time in arrived]) - 1.5
    sigma = math.sqrt(math.log1p(LOGNORMAL_CV**2))
    law = {
        "exponential": stats.expon(scale=0.2),
        "normal": stats.truncnorm(0, np.inf, scale=0.2),
        "lognormal": stats.lognorm(sigma, scale=0.2 * math.exp(-(sigma**2) / 2)),
    }[kind]
    assert stats.kstest(delays, law.cdf).pvalue > 0.01
    mean = Jitter(kind, 0.2, CommonDraws(1, "uplink")).mean_s
    assert mean == pytest.approx(law.mean())
    assert link.estimate_s(MB) == pytest.approx(1.5 + mean)
    if kind == "lognormal":
        assert law.std() == pytest.approx(0.2 * LOGNORMAL_CV)


def test_draws_belong_to_the_call_not_to_the_order_of_events() -> None:
    """Sending the same calls in reverse, or fewer of them, changes no call's delay or losses."""

    def durations(calls: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
        env = Environment()
        link = link_of(
            env, propagation_s=0.1, jitter="lognormal", jitter_s=0.1, loss=0.1, draws=CommonDraws(4, "up"), shared=False
        )
        taken: dict[tuple[int, int], float] = {}

        def note(call: tuple[int, int], _: Event) -> None:
            taken[call] = env.now

        for call in calls:
            link.transfer(1e5, *call).callbacks.append(partial(note, call))
        env.run()
        return taken

    calls = [(request, position) for request in range(40) for position in range(5)]
    forward = durations(calls)
    assert forward == durations(calls[::-1])
    assert {call: forward[call] for call in calls[::3]} == durations(calls[::3])
    assert len(set(forward.values())) == len(calls)


@pytest.mark.parametrize(("size", "loss"), [(900.0, 0.3), (14_600.0, 0.05), (1e6, 0.02), (1e7, 0.01), (2e5, 0.5)])
def test_losses_cost_bytes_and_rounds_as_theory_says(size: float, loss: float) -> None:
    """Bytes grow by 1 / (1 - loss) and rounds are a maximum of geometric variables, inside 99 % intervals."""
    packet_loss = PacketLoss(loss, 1460, CommonDraws(2, "up"))
    draws = np.array([packet_loss.resend(size, request, 0) for request in range(4000)])
    for found, expected in ((draws[:, 0] / size, 1 / (1 - loss)), (draws[:, 1], packet_loss.mean_rounds(size))):
        half_width = 2.576 * found.std(ddof=1) / math.sqrt(len(found))
        assert abs(found.mean() - expected) < half_width
    packets = math.ceil(size / 1460)
    resent = np.rint((draws[:, 0] / size - 1) * packets)
    variance = packets * loss / (1 - loss) ** 2  # negative binomial
    spread = stats.chi2(len(resent) - 1).interval(0.99)[1] / (len(resent) - 1)
    assert 1 / (1.3 * spread) < resent.var(ddof=1) / variance < 1.3 * spread


@given(st.floats(1e-6, 1 - 1e-6), st.integers(1, 5000), st.floats(1e-4, 0.9))
def test_binomial_quantile_is_the_inverse_of_the_distribution(uniform: float, trials: int, probability: float) -> None:
    """The smallest k whose cumulative probability reaches the uniform, on both sides of the change of method."""
    k = binomial_quantile(uniform, trials, probability)
    assert stats.binom.cdf(k, trials, probability) >= uniform - 1e-12
    assert stats.binom.cdf(k - 1, trials, probability) < uniform + 1e-12


def test_a_lossy_transfer_pays_a_round_trip_for_every_round() -> None:
    """On the link: size grown by the lost packets over the rate, one propagation, and two more for each round."""
    env = Environment()
    draws = CommonDraws(9, "up")
    link = link_of(env, propagation_s=0.25, loss=0.2, draws=draws, shared=False)
    arrived = dict(play(env, link, [(0.0, 1e5)] * 200))
    expected = PacketLoss(0.2, 1460, draws)
    for request, time in arrived.items():
        wire_bytes, rounds = expected.resend(1e5, request, 0)
        assert time == pytest.approx(wire_bytes / MB + 0.25 + 0.5 * rounds, abs=1e-9)
    assert link.bytes_sent == pytest.approx(sum(expected.resend(1e5, request, 0)[0] for request in arrived))
    mean, half_width = np.mean(list(arrived.values())), 2.576 * np.std(list(arrived.values())) / math.sqrt(200)
    assert abs(link.estimate_s(1e5) - mean) < half_width


# -------------------------------------------------------------------------------------------------------------- routes


def test_a_route_of_no_links_is_there_at_once() -> None:
    """A process that sends to its own place goes straight on, at the same time, any number of times."""
    env = Environment()
    route = Route(env, [])
    times = []

    def send() -> Generator[Event, None, None]:
        yield env.timeout(3.0)
        for i in range(2):
            event = route.transfer(MB, 0, i)
            route.cancel(event)
            yield event
            times.append(env.now)

    env.process(send())
    env.run()
    assert times == [3.0, 3.0]
    assert (route.estimate_s(MB), route.propagation_s) == (0.0, 0.0)


def test_a_route_of_one_link_is_that_link() -> None:
    """One hop behaves like its link, cancelling included."""
    env = Environment()
    link = link_of(env, propagation_s=0.5)
    route = Route(env, [link])
    given_up = route.transfer(MB, 0, 0)
    at(env, 0.5, lambda: route.cancel(given_up))
    assert (route.propagation_s, route.estimate_s(MB)) == (0.5, link.estimate_s(MB))
    env.run()
    assert link.bytes_sent == pytest.approx(MB / 2)
    assert not given_up.processed


def test_a_route_of_several_links_stores_and_forwards() -> None:
    """2 MB: 2 s + 0.1 s, then 4 s + 0.2 s on a link that another transfer shares for its last half megabyte."""
    env = Environment()
    near, far = link_of(env, 8.0, propagation_s=0.1), link_of(env, 4.0, propagation_s=0.2)
    route = Route(env, [near, far])
    assert route.estimate_s(2 * MB) == pytest.approx(6.3)
    assert route.propagation_s == pytest.approx(0.3)
    arrived: list[float] = []
    route.transfer(2 * MB, 0, 0).callbacks.append(lambda _: arrived.append(env.now))
    at(env, 5.1, lambda: far.transfer(0.25 * MB, 1, 0))  # 0.25 MB each at 0.25 MB/s: one second instead of a half
    env.run()
    assert arrived == pytest.approx([6.1 + 0.5 + 0.2])


@pytest.mark.parametrize(("time", "near_mb", "far_mb"), [(1.0, 1.0, 0.0), (3.1, 2.0, 0.5)])
def test_giving_up_on_a_route_frees_the_hop_it_is_on(time: float, near_mb: float, far_mb: float) -> None:
    """Cancelled on the first hop it never reaches the second; on the second it stops there."""
    env = Environment()
    near, far = link_of(env, 8.0, propagation_s=0.1), link_of(env, 4.0)
    route = Route(env, [near, far])
    event = route.transfer(2 * MB, 0, 0)
    at(env, time, lambda: route.cancel(event))
    env.run()
    assert (near.bytes_sent, far.bytes_sent) == pytest.approx((near_mb * MB, far_mb * MB))
    assert not event.processed


# ---------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "settings",
    [
        {"propagation_s": -1.0},
        {"propagation_s": math.inf},
        {"jitter_s": 0.1},
        {"jitter_s": -0.1, "jitter": "normal"},
        {"jitter_s": 0.1, "jitter": "uniform"},
        {"jitter_s": 0.1, "jitter": "normal", "draws": None},
        {"loss": 1.0},
        {"loss": 0.1, "mtu_bytes": 0},
        {"loss": 0.1, "draws": None},
    ],
)
def test_impossible_links_are_refused(settings: dict[str, Any]) -> None:
    """Each wrong argument raises ValueError that names the link."""
    with pytest.raises(ValueError, match="'uplink'"):
        link_of(Environment(), **{"draws": CommonDraws(0, "up"), **settings})


@pytest.mark.parametrize("size", [-1.0, math.nan, math.inf])
def test_impossible_sizes_are_refused(size: float) -> None:
    """A transfer needs a finite size that is not negative."""
    with pytest.raises(ValueError, match="size_bytes"):
        link_of(Environment()).transfer(size, 0, 0)


def test_a_random_capacity_drives_a_link() -> None:
    """A transfer over a random capacity arrives when its integral says."""
    env = Environment()
    capacity, twin = (RandomCapacity(8.0, 0.5, 0.1, np.random.default_rng(1)) for _ in range(2))
    arrivals = [time for _, time in play(env, Link(env, "uplink", capacity), [(0.0, MB), (30.0, MB)])]
    assert arrivals == pytest.approx([twin.time_when(0.0, MB), twin.time_when(30.0, MB)], abs=1e-9)
