"""The event of one transfer, which can be scheduled before anyone knows whether it will have to share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from simpy import Environment, Event
from simpy.events import NORMAL, PENDING


class Transfer(Event):
    """A transfer under way; happens when its last byte arrives.

    A transfer alone on its link knows its arrival when it starts and is scheduled then, like a Timeout (so, like a
    Timeout, it is `triggered` at once; ask `processed` whether it has arrived). If others join before it has left,
    that entry in SimPy's queue has become too early and cannot be taken out. `hold` makes it harmless: a callback put
    first empties the list that the environment is working through, and gives the event its waiters back.
    """

    _ok = True
    _value: Any = None
    finish_tag = 0.0
    """Virtual time at which the last byte leaves, while sharing."""
    cancelled = False
    _waiters: list[Callable[[Any], None]] = []  # noqa: RUF012 - never changed: it means that no entry is too early

    def __init__(self, env: Environment, departs_s: float, latency_s: float) -> None:
        self.env = env
        self.callbacks = []
        self.departs_s = departs_s
        """When the last byte leaves; infinite while that is not yet known."""
        self.latency_s = latency_s
        self._queued = departs_s < math.inf  # who makes one of known departure also schedules it

    def hold(self) -> None:
        """Forget when the last byte leaves."""
        self.departs_s = math.inf
        self._disarm()

    def give_up(self) -> None:
        """Never happen. `departs_s` stays: what has left already is no longer under way."""
        self.cancelled = True
        self._value = PENDING
        self._disarm()

    def _disarm(self) -> None:
        if self._queued and not self._waiters:
            self._waiters = self.callbacks
            self.callbacks.insert(0, Transfer._come_early)

    def depart(self, departs_s: float) -> None:
        """The last byte leaves at `departs_s` (now or later)."""
        self.departs_s = departs_s
        if not self._queued:
            self._queued = True
            self.env.schedule(self, NORMAL, max(0.0, departs_s + self.latency_s - self.env.now))

    def _come_early(self) -> None:
        waiters, self._waiters, self._queued = self._waiters, [], False
        self.callbacks = waiters[1:]
        waiters.clear()
        if self.departs_s < math.inf and not self.cancelled:
            self.depart(self.departs_s)
