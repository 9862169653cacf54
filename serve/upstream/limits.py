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
            while (wait_s := self.wait_s(amount)) > 0:
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

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` fits, if nothing is corrected meanwhile."""
        amount, now = min(float(amount), self._limit), asyncio.get_running_loop().time()
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
    reserved_usd: the most that calls on their way may cost; waiting_usd: the most that one waiting for a grant may.
    retried: attempts after a call's first.
    """

    confirmed_usd: float = 0.0
    unconfirmed_usd: float = 0.0
    reserved_usd: float = 0.0
    waiting_usd: float = 0.0
    retried: int = 0

    @property
    def total_usd(self) -> float:
        """The most that can be on the bill."""
        return self.confirmed_usd + self.unconfirmed_usd + self.reserved_usd

    @property
    def ended(self) -> Spending:
        """As it stands when nobody is left to say what the calls on their way have cost."""
        return Spending(self.confirmed_usd, self.unconfirmed_usd + self.reserved_usd, retried=self.retried)


class Budget:
    """A hard limit on dollars: what a call may cost is reserved before it is sent, so calls cannot pass it together.

    `max_usd` None counts only; `before` was spent earlier, under the same limit. Up to `granted_usd` calls are reserved at
    once; beyond it they wait for `grant`, which comes when that much more is written down where a crash does not reach it. Between
    looking and reserving nothing waits, so no other call comes between. The methods are coroutines for subclasses that ask another
    process, where several replicas share one limit.
    """

    def __init__(
        self, max_usd: float | None = None, before: Spending | None = None, granted_usd: float = math.inf
    ) -> None:
        self.max_usd = math.inf if max_usd is None else float(max_usd)
        spent = (before or Spending()).ended
        self._confirmed_usd, self._unconfirmed_usd, self._retried = (
            spent.confirmed_usd,
            spent.unconfirmed_usd,
            spent.retried,
        )
        self._granted_usd, self._waiting_usd, self._changed = granted_usd, 0.0, asyncio.Event()
        self._stopped = ""
        self._reserved: dict[int, float] = {}
        self._next = count()

    async def reserve(self, usd: float, *, retry: bool = False) -> int:
        """Set aside the most a call can cost; BudgetExceeded if the limit could then be passed."""
        while self._total_with(usd) > self._granted_usd:
            self._waiting_usd = max(self._waiting_usd, usd)
            self._changed.clear()
            await self._changed.wait()
        self._retried += retry
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

    async def grant(self, usd: float) -> None:
        """Let the total grow up to `usd`."""
        self._granted_usd, self._waiting_usd = max(self._granted_usd, usd), 0.0
        self._changed.set()

    async def stop(self, problem: str) -> None:
        """Refuse every call from now on."""
        self._stopped = problem
        self._changed.set()

    async def spending(self) -> Spending:
        """Where the budget stands."""
        return self._now()

    def _now(self) -> Spending:
        reserved_usd = math.fsum(self._reserved.values())
        return Spending(self._confirmed_usd, self._unconfirmed_usd, reserved_usd, self._waiting_usd, self._retried)

    def _total_with(self, usd: float) -> float:
        """The total with one more call; BudgetExceeded if it must not be sent."""
        now = self._now()
        if self._stopped:
            raise BudgetExceeded(self._stopped)
        if now.total_usd + usd > self.max_usd:
            raise BudgetExceeded(
                f"this call may cost {usd:.6f} USD; of {self.max_usd:g} USD, {now.confirmed_usd:.6f} are spent, up to "
                f"{now.unconfirmed_usd:.6f} more on calls without a known cost, and {now.reserved_usd:.6f} are reserved"
            )
        return now.total_usd + usd
