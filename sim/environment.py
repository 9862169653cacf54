"""SimPy's environment with its loop written out: the same events in the same order, at less cost per event."""

from __future__ import annotations

from heapq import heappop
from typing import Any

from simpy import Environment, Event
from simpy.core import StopSimulation
from simpy.events import URGENT, EventPriority


class FastEnvironment(Environment):
    """An Environment whose `now` is a plain attribute and whose `run(until=event)` does not call `step` for every event."""

    __slots__ = ("now",)
    now: float  # SimPy has a property here, which costs a call at every look at the clock

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def step(self) -> None:
        """Process the next event; raises simpy.core.EmptySchedule if there is none."""
        queue = self._queue
        if queue:
            self.now = queue[0][0]
        super().step()

    def run(self, until: Any = None) -> Any:
        """As SimPy's; the loop is written out for the case that a simulation consists of, waiting for an event."""
        if not isinstance(until, Event) or until.callbacks is None:
            return super().run(until)
        until.callbacks.append(StopSimulation.callback)
        queue = self._queue
        try:
            while queue:
                now, _, _, event = heappop(queue)
                self.now = self._now = now
                callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
                for callback in callbacks:
                    callback(event)
                if not event._ok and not hasattr(event, "_defused"):
                    raise event._value
        except StopSimulation as stop:  # the callbacks that are left have their turn when the simulation goes on
            event.callbacks = callbacks[callbacks.index(callback) + 1 :]
            self.schedule(event, EventPriority(-1))
            return stop.args[0]
        raise RuntimeError(f"no event is left that could bring {until}")


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
