"""Timeouts without a timer per request."""

from __future__ import annotations

from collections import deque
from typing import Any

from simpy import Environment, Event, Process


class Watchdog:
    """Interrupts processes that are still at it after `timeout_s`. One timer serves all: they time out in order of arrival."""

    __slots__ = ("_armed", "_entries", "cause", "env", "timeout_s")

    def __init__(self, env: Environment, timeout_s: float, cause: str) -> None:
        self.env, self.timeout_s, self.cause = env, timeout_s, cause
        self._entries: deque[list[Any]] = deque()
        self._armed = False

    def watch(self, process: Process) -> list[Any]:
        """Start watching; `entry.clear()` on the returned entry ends it."""
        entry: list[Any] = [self.env.now + self.timeout_s, process]
        self._entries.append(entry)
        if not self._armed:
            self._arm(self.timeout_s)
        return entry

    def _arm(self, delay_s: float) -> None:
        self._armed = True
        self.env.timeout(delay_s).callbacks.append(self._check)

    def _check(self, _event: Event) -> None:
        entries, now = self._entries, self.env.now
        self._armed = False
        while entries:
            entry = entries[0]
            if entry:
                if entry[0] > now:
                    self._arm(entry[0] - now)
                    return
                entry[1].interrupt(self.cause)
            entries.popleft()
