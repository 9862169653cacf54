"""One direction of a hop: transfers that share a capacity varying over time, in one SimPy event each if nobody contends.

Sharing is egalitarian processor sharing with a virtual time, the bytes that one transfer present throughout would have
sent (Parekh and Gallager 1993, generalised processor sharing with equal weights): V grows at rate / transfers, a
transfer of size S that joined at V0 is through when V reaches V0 + S, and the next to finish is the top of a heap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

from simpy import Environment, Event
from simpy.events import NORMAL

from sim.bandwidth import BYTES_PER_S_PER_MBPS, Capacity, ConstantCapacity
from sim.draws import CommonDraws
from sim.impairment import Jitter, JitterKind, PacketLoss
from sim.transfer import Transfer

_INF = math.inf
_PRUNE_ABOVE = 16


class Link:
    """One direction of a hop.

    Times in seconds, sizes in bytes; `jitter_s` as in `Jitter`, `loss` in [0, 1) as in `PacketLoss`, both drawn from
    `draws` by (request, position). `shared=False` gives every transfer the full rate. The last byte arrives
    `propagation_s` + jitter after it left; a round of sending lost packets again adds its bytes to the transfer and
    one round trip (2 * propagation_s) to its latency. `bytes_sent` and the capacity count bytes sent again too.
    """

    def __init__(
        self,
        env: Environment,
        name: str,
        capacity: Capacity,
        *,
        propagation_s: float = 0.0,
        jitter_s: float = 0.0,
        jitter: JitterKind = "none",
        loss: float = 0.0,
        mtu_bytes: int = 1460,
        shared: bool = True,
        draws: CommonDraws | None = None,
    ) -> None:
        _check_link(name, propagation_s, jitter_s, jitter, loss, mtu_bytes, draws)
        self.name, self.propagation_s, self.shared = name, float(propagation_s), shared
        self._env, self._capacity = env, capacity
        self._constant_rate = capacity.bytes_per_s if isinstance(capacity, ConstantCapacity) else 0.0
        self._jitter = Jitter(jitter, jitter_s, draws) if draws and jitter != "none" and jitter_s else None
        self._loss = PacketLoss(loss, mtu_bytes, draws) if draws and loss else None
        self._impaired = self._jitter is not None or self._loss is not None
        self._mean_latency_s = self.propagation_s + (self._jitter.mean_s if self._jitter else 0.0)
        self._up = True
        self._bytes = 0.0
        """Bytes of all transfers started, including what those under way have yet to send."""
        self._busy_s = 0.0
        """Busy time up to `_clock_s`, which lies ahead while transfers whose departure is known are under way."""
        self._clock_s = env.now
        self._free_from_s = -_INF
        """From when on a new transfer need not share."""
        self._sending: list[Transfer] = []
        """Transfers whose departure is known, and a few that have left already."""
        self._prune_above = _PRUNE_ABOVE
        self._sharing: list[tuple[float, int, Transfer]] = []
        """Heap of (finish tag, order, transfer) of those that share or wait for an outage to end."""
        self._sharers = 0
        """Transfers in the heap that are not cancelled; the cancelled ones go when their turn comes."""
        self._virtual_bytes = 0.0
        self._order = count()
        self._due_s = self._wake_s = _INF  # when the top of the heap leaves, if known; the next wake-up in the queue
        self._wake_callbacks: list[Callable[[Any], None]] = [self._on_wake]
        self._wake = Event(env)
        self._wake._ok, self._wake.callbacks = True, self._wake_callbacks

    def transfer(self, size_bytes: float, request: int, position: int) -> Event:
        """Start sending; the event (value None) happens when the last byte has arrived at the far end."""
        if not 0.0 <= size_bytes < _INF:
            raise ValueError(f"link {self.name!r}: size_bytes must be finite and >= 0, found {size_bytes}")
        latency_s = self.propagation_s
        if self._impaired:
            size_bytes, latency_s = self._impair(size_bytes, request, position)
        env = self._env
        now = env.now
        self._bytes += size_bytes
        if now < self._free_from_s:
            return self._join(size_bytes, latency_s, now)
        rate = self._constant_rate
        departs_s = now + size_bytes / rate if rate else self._capacity.time_when(now, size_bytes)
        event = Transfer(env, departs_s, latency_s)
        if self.shared:  # all others have left
            self._sending = [event]
            self._busy_s += departs_s - now
            self._clock_s = self._free_from_s = departs_s
        else:
            self._occupy(event, departs_s, now)
        env.schedule(event, NORMAL, departs_s - now + latency_s)
        return event

    def cancel(self, event: Event) -> None:
        """Give up: the share is free at once and the event never happens. No effect on one that has happened."""
        if not isinstance(event, Transfer) or event.processed or event.cancelled:
            return
        now = self._env.now
        event.give_up()
        if event.departs_s == _INF:
            self._advance(now)
            self._bytes -= event.finish_tag - self._virtual_bytes
            self._sharers -= 1  # it stays in the heap until it comes to the top
            self._settle(now)
        elif event.departs_s > now:
            self._sending.remove(event)
            self._bytes -= self._capacity.bytes_between(now, event.departs_s)
            until_s = max((other.departs_s for other in self._sending), default=now)
            self._busy_s -= self._clock_s - max(now, until_s)
            self._clock_s = max(now, until_s)
            self._free_from_s = now if self.shared else -_INF

    def set_up(self, up: bool) -> None:
        """Begin or end an outage: transfers under way stall, keep what they have sent, and go on afterwards."""
        if up == self._up:
            return
        now = self._env.now
        self._advance(now)
        self._up, self._free_from_s = up, _INF
        if up:
            self._settle(now)

    def estimate_s(self, size_bytes: float) -> float:
        """Seconds a transfer started now would take if the rate and the number sharing stayed as they are.

        Looks at the present only. Means stand in for jitter and loss; infinite while the link is down or its rate 0.
        """
        now = self._env.now
        rate = self._capacity.mbps_at(now) * BYTES_PER_S_PER_MBPS if self._up else 0.0
        if now < self._free_from_s and self.shared:
            rate /= self.active + 1
        latency_s = self._mean_latency_s
        if self._loss and size_bytes:
            latency_s += 2.0 * self.propagation_s * self._loss.mean_rounds(size_bytes)
            size_bytes *= self._loss.bytes_factor
        return latency_s + size_bytes / rate if rate else _INF

    @property
    def rate_mbps(self) -> float:
        """The link's whole rate now; 0 during an outage."""
        return self._capacity.mbps_at(self._env.now) if self._up else 0.0

    @property
    def active(self) -> int:
        """Transfers whose last byte has not left yet."""
        now = self._env.now
        return self._sharers or sum(event.departs_s > now for event in self._sending)

    @property
    def bytes_sent(self) -> float:
        """Bytes that have left so far, those sent again included."""
        now, capacity = self._env.now, self._capacity
        if not self._sharers:
            unsent = (capacity.bytes_between(now, e.departs_s) for e in self._sending if e.departs_s > now)
            return self._bytes - sum(unsent)
        virtual = self._virtual_at(now)
        return self._bytes - sum(tag - virtual for tag, _, event in self._sharing if not event.cancelled)

    @property
    def busy_s(self) -> float:
        """Time with at least one transfer under way, outages included."""
        now = self._env.now
        return self._busy_s + (now - self._clock_s if self._sharers or now < self._clock_s else 0.0)

    def _impair(self, size_bytes: float, request: int, position: int) -> tuple[float, float]:
        latency_s, rounds = self.propagation_s, 0
        if self._jitter:
            latency_s += self._jitter.delay_s(request, position)
        if self._loss:
            size_bytes, rounds = self._loss.resend(size_bytes, request, position)
        return size_bytes, latency_s + 2.0 * self.propagation_s * rounds

    def _occupy(self, event: Transfer, departs_s: float, now: float) -> None:
        """Book a transfer whose departure is known."""
        sending, clock_s = self._sending, self._clock_s
        if len(sending) > self._prune_above:
            sending[:] = [other for other in sending if other.departs_s > now]
            self._prune_above = 2 * len(sending) + _PRUNE_ABOVE
        sending.append(event)
        if departs_s > clock_s:
            self._busy_s += departs_s - (clock_s if clock_s > now else now)
            self._clock_s = departs_s
        if self.shared:
            self._free_from_s = departs_s

    def _join(self, size_bytes: float, latency_s: float, now: float) -> Transfer:
        alone_so_far = not self._sharers
        self._advance(now)
        event = Transfer(self._env, _INF, latency_s)
        self._share(event, size_bytes)
        if self._up:
            if alone_so_far or self._sharing[0][2] is event:
                self._arm(now)
            else:
                self._due_s = _INF  # later than the wake-up in the queue; worked out when that comes
        return event

    def _share(self, event: Transfer, left_bytes: float) -> None:
        event.finish_tag = self._virtual_bytes + left_bytes
        heappush(self._sharing, (event.finish_tag, next(self._order), event))
        self._sharers += 1

    def _virtual_at(self, now: float) -> float:
        if not self._up or not self._sharers:
            return self._virtual_bytes
        return self._virtual_bytes + self._capacity.bytes_between(self._clock_s, now) / self._sharers

    def _advance(self, now: float) -> None:
        """Bring the clock and the virtual time to `now`; from here on the heap holds all that is under way."""
        self._virtual_bytes = self._virtual_at(now)
        if self._sharers or self._clock_s > now:
            self._busy_s += now - self._clock_s
        self._clock_s = now
        for event in self._sending:
            if event.departs_s > now:
                self._share(event, self._capacity.bytes_between(now, event.departs_s))
                event.hold()
        self._sending.clear()
        self._free_from_s = _INF

    def _settle(self, now: float) -> None:
        """After transfers left the heap, or the link came up: find out who leaves next."""
        sharing = self._sharing
        if self._up and self._sharers > 1 and self.shared:
            self._arm(now)
        elif self._up or not self._sharers:
            left = [(tag - self._virtual_bytes, event) for tag, _, event in sharing if not event.cancelled]
            sharing.clear()
            self._sharers, self._virtual_bytes, self._due_s = 0, 0.0, _INF
            self._free_from_s = -_INF if self._up else _INF
            for left_bytes, event in left:
                event.depart(self._capacity.time_when(now, left_bytes))
                self._occupy(event, event.departs_s, now)

    def _arm(self, now: float) -> None:
        """Work out when the top of the heap leaves; wake up then unless a wake-up comes earlier anyway."""
        left_bytes = (self._sharing[0][0] - self._virtual_bytes) * self._sharers
        delay_s = max(0.0, self._capacity.time_when(now, left_bytes) - now)
        self._due_s = now + delay_s
        if self._due_s < self._wake_s:
            self._wake_s = self._due_s
            self._env.schedule(self._wake, NORMAL, delay_s)

    def _on_wake(self, wake: Event) -> None:
        wake.callbacks = self._wake_callbacks  # the environment took them off; the same event may be queued again
        now = self._env.now
        if now != self._wake_s:
            return  # an earlier wake-up replaced this one
        self._wake_s = _INF
        if not (self._up and self._sharers):
            return
        if self._due_s > now:
            self._advance(now)
            self._arm(now)
        else:
            self._finish(now)

    def _finish(self, now: float) -> None:
        sharing = self._sharing
        self._advance(now)
        self._virtual_bytes = sharing[0][0]  # exactly, not up to rounding
        while sharing and sharing[0][0] <= self._virtual_bytes:
            event = heappop(sharing)[2]
            if not event.cancelled:
                event.depart(now)
                self._sharers -= 1
        self._settle(now)


def _check_link(
    name: str,
    propagation_s: float,
    jitter_s: float,
    jitter: JitterKind,
    loss: float,
    mtu_bytes: int,
    draws: CommonDraws | None,
) -> None:
    if not (0.0 <= propagation_s < _INF and 0.0 <= jitter_s < _INF):
        raise ValueError(f"link {name!r}: delays must be finite and >= 0, found {propagation_s} and {jitter_s}")
    if jitter not in ("none", "exponential", "normal", "lognormal"):
        raise ValueError(f"link {name!r}: jitter must be none, exponential, normal or lognormal, found {jitter!r}")
    if jitter_s and jitter == "none":
        raise ValueError(f"link {name!r}: jitter_s = {jitter_s} needs a jitter distribution")
    if not (0.0 <= loss < 1.0 and mtu_bytes >= 1):
        raise ValueError(f"link {name!r}: loss must be in [0, 1) and mtu_bytes >= 1, found {loss} and {mtu_bytes}")
    if draws is None and (loss or jitter_s):
        raise ValueError(f"link {name!r}: jitter and loss need `draws`")
