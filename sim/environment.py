"""SimPy's environment with its loop written out: the same events in the same order, at less cost per event.

SimPy ends a run by an exception out of a callback. Here whoever wants the run to end says so (`pause`), which costs no event and no
exception: a learning environment stops at every decision.
"""

from __future__ import annotations

from heapq import heappop
from typing import Any

from simpy import Environment, Event
from simpy.core import StopSimulation
from simpy.events import URGENT


class FastEnvironment(Environment):
    """An Environment whose `now` is a plain attribute and whose `run(until=event)` does not call `step` for every event."""

    __slots__ = ("_paused", "now")
    now: float  # SimPy has a property here, which costs a call at every look at the clock

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._paused = False

    def step(self) -> None:
        """Process the next event; raises simpy.core.EmptySchedule if there is none."""
        queue = self._queue
        if queue:
            self.now = queue[0][0]
        super().step()

    def run(self, until: Any = None) -> Any:
        """As SimPy's, at less cost where it waits for an event."""
        if not isinstance(until, Event) or until.callbacks is None:
            return super().run(until)
        until.callbacks.append(self.pause)
        self.proceed()
        if not until._ok:
            raise until._value
        return until._value

    def pause(self, _event: Event | None = None) -> None:
        """Have `proceed` return when the callbacks of the event under way are through, before anything else happens."""
        self._paused = True

    def proceed(self) -> None:
        """Process events until one of them pauses; raises RuntimeError if there is none left."""
        queue = self._queue
        try:
            while not self._paused:
                if not queue:
                    raise RuntimeError("no event is left, and what the run waits for has not happened")
                now, _, _, event = heappop(queue)
                self.now = self._now = now
                callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
                for callback in callbacks:
                    callback(event)
                if not event._ok and not hasattr(event, "_defused"):
                    raise event._value
        finally:
            self._paused = False


def fire(event: Event, value: Any = None) -> None:
    """Make `event` happen here and now. Only from event callbacks, never from inside a process.

    Going through the event queue would cost a second event. `env.run(until=event)` stops by raising from a callback: SimPy
    would then re-arm the event being processed, which is another one, so that case does use the queue.
    """
    callbacks = event.callbacks
    event.callbacks = None  # type: ignore[assignment]  # how SimPy marks an event as processed
    event._ok = True
    event._value = value
    for index, callback in enumerate(callbacks):
        try:
            callback(event)
        except StopSimulation:
            relay = Event(event.env)
            relay._ok, relay._value, relay.callbacks = True, value, callbacks[index:]
            event.env.schedule(relay, URGENT)
            return
