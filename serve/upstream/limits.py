"""Limits on what is sent to an upstream: calls and tokens a minute, and a hard limit on dollars."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from serve.upstream.errors import BudgetExceeded


@dataclass(slots=True, eq=False)
class Passage:
    """What one call took from a RateLimit, and when."""

    at_s: float
    amount: float


class RateLimit:
    """At most `per_window` units in any `window_s` seconds, first come first served; None is no limit.

    An amount above the whole limit waits for an empty window, then fills it. Belongs to one event loop.
    """

    def __init__(self, per_window: float | None, window_s: float = 60.0) -> None:
        self._limit, self._window_s = math.inf if per_window is None else float(per_window), window_s
        self._passages: deque[Passage] = deque()
        self._turn = asyncio.Lock()  # hands itself on in the order of waiting, also when a waiter is cancelled
        self._corrected = asyncio.Event()

    async def acquire(self, amount: float = 1.0) -> Passage:
        """Wait until `amount` fits, and take it."""
        amount = min(float(amount), self._limit)
        async with self._turn:
            while (wait_s := self._wait_s(amount)) > 0:
                self._corrected.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._corrected.wait()
            passage = Passage(asyncio.get_running_loop().time(), amount)
            if math.isfinite(self._limit):
                self._passages.append(passage)
            return passage

    def correct(self, passage: Passage, amount: float) -> None:
        """Replace the amount a call took by estimate; what it did not need is free for others at once."""
        passage.amount = min(float(amount), self._limit)
        self._corrected.set()

    def _wait_s(self, amount: float) -> float:
        """Seconds until `amount` fits, if nothing is corrected meanwhile."""
        now = asyncio.get_running_loop().time()
        while self._passages and self._passages[0].at_s + self._window_s <= now:
            self._passages.popleft()
        excess = sum(passage.amount for passage in self._passages) + amount - self._limit
        wait_s = 0.0
        for passage in self._passages:
            if excess <= 0:
                break
            excess -= passage.amount
            wait_s = passage.at_s + self._window_s - now
        return wait_s


@dataclass(frozen=True, slots=True)
class Spending:
    """Where a budget stands, in dollars.

    confirmed_usd: calls whose usage the upstream reported.
    unconfirmed_usd: the most that calls may have cost whose answer or usage never came.
    reserved_usd: the most that calls on their way may cost.
    """

    confirmed_usd: float
    unconfirmed_usd: float
    reserved_usd: float

    @property
    def total_usd(self) -> float:
        """The most that can be on the bill."""
        return self.confirmed_usd + self.unconfirmed_usd + self.reserved_usd


class Budget:
    """A hard limit on dollars: what a call may cost is reserved before it is sent, so calls cannot pass it together.

    `max_usd` None counts only. Nothing here waits, so no other call comes between looking and reserving; the methods are
    coroutines for subclasses that ask another process, where several replicas share one limit.
    """

    def __init__(self, max_usd: float | None = None) -> None:
        self.max_usd = math.inf if max_usd is None else float(max_usd)
        self._confirmed_usd = self._unconfirmed_usd = 0.0
        self._reserved: dict[int, float] = {}
        self._next = count()

    async def reserve(self, usd: float) -> int:
        """Set aside the most a call can cost; BudgetExceeded if the limit could then be passed."""
        now = await self.spending()
        if now.total_usd + usd > self.max_usd:
            raise BudgetExceeded(
                f"this call may cost {usd:.6f} USD; of {self.max_usd:g} USD, {now.confirmed_usd:.6f} are spent, up to "
                f"{now.unconfirmed_usd:.6f} more on calls without a known cost, and {now.reserved_usd:.6f} are reserved"
            )
        reservation = next(self._next)
        self._reserved[reservation] = usd
        return reservation

    async def settle(self, reservation: int, usd: float | None) -> None:
        """Replace a reservation by the true cost; None, when nobody knows it, keeps counting the reserved amount."""
        reserved_usd = self._reserved.pop(reservation)
        if usd is None:
            self._unconfirmed_usd += reserved_usd
        else:
            self._confirmed_usd += usd

    async def spending(self) -> Spending:
        """Where the budget stands."""
        return Spending(self._confirmed_usd, self._unconfirmed_usd, math.fsum(self._reserved.values()))
