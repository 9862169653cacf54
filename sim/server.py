"""What every model server has in common, and the plain queueing server.

A server is passive: `submit(job)` returns `job.done`, a SimPy event that fires with the job when it leaves for
whatever reason. There is no process per job, and each service costs one scheduled event (see `ServiceTimer` and `fire`).
"""

from __future__ import annotations

import math
from typing import Protocol

from simpy import Environment, Event
from simpy.events import NORMAL

from sim.environment import fire
from sim.job import (
    CANCELLED,
    CRASHED,
    NEW,
    OK,
    OVERSIZED,
    REJECTED,
    RUNNING,
    UNAVAILABLE,
    WAITING,
    Job,
)
from sim.waiting_line import DISCIPLINES
from workloads.errors import InputError, suggest

__all__ = [
    "CANCELLED",
    "CRASHED",
    "NEW",
    "OK",
    "OVERSIZED",
    "REJECTED",
    "RUNNING",
    "UNAVAILABLE",
    "WAITING",
    "BaseServer",
    "Job",
    "Server",
    "ServiceTimer",
    "SlotServer",
    "fire",
]


class Server(Protocol):
    """What a request's process sees of a server, be it one device, one endpoint or a fleet."""

    name: str

    @property
    def up(self) -> bool:
        """False between crash() and restart()."""
        ...

    @property
    def queue_length(self) -> int:
        """Jobs submitted and not yet started."""
        ...

    @property
    def running(self) -> int:
        """Jobs in service."""
        ...

    @property
    def busy_s(self) -> float:
        """Device seconds used so far; equals the sum of `device_s` once all jobs have left."""
        ...

    def submit(self, job: Job) -> Event:
        """Take the job; returns `job.done`."""
        ...

    def cancel(self, job: Job) -> None:
        """Take the job back; a job that has already left is left alone."""
        ...

    def crash(self) -> None:
        """Go down: jobs here leave as `crashed`, later ones as `unavailable`."""
        ...

    def restart(self) -> None:
        """Come back, empty."""
        ...

    def estimate_wait_s(self) -> float:
        """Rough expected queueing delay of a job submitted now, from what an operator could see."""
        ...


class BaseServer:
    """Name, up or down, and the line in front: what the server kinds share."""

    def __init__(self, env: Environment, name: str, discipline: str) -> None:
        if discipline not in DISCIPLINES:
            raise InputError(
                f"server '{name}': discipline", f"found '{discipline}'", suggest(discipline, DISCIPLINES) + "."
            )
        self.env, self.name, self.up = env, name, True
        self.queue_length = 0
        self.running = 0
        self._line = DISCIPLINES[discipline]()

    def _receive(self, job: Job) -> None:
        """Stamp the job and give it its event."""
        if job.status != NEW:
            raise RuntimeError(
                f"{self.name}: a job is submitted once (this one is '{job.status}'); retry with a new Job"
            )
        job.submitted_s = self.env.now
        job.done = Event(self.env)

    def _dismiss(self, job: Job, status: str) -> Event:
        """Let a job go that is not in service; its event fires through the queue, as callers may be processes."""
        job.status = status
        job.finished_s = self.env.now
        return job.done.succeed(job)

    def _dismiss_waiting(self, status: str) -> None:
        while (job := self._line.head()) is not None:
            self._line.pop()
            self._dismiss(job, status)
        self.queue_length = 0

    def restart(self) -> None:
        """Come back, empty."""
        self.up = True


class ServiceTimer(Event):
    """The end of one service. Reused service after service; abandoned when its job is cut short."""

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None
        self.job: Job | None = None


class SlotServer(BaseServer):
    """`slots` identical servers with one shared line; the service time is the job's own `service_s`.

    `first_token_s` stays NaN: such a server does not know when the answer began.
    """

    def __init__(
        self, env: Environment, slots: int | None = 1, *, discipline: str = "fifo", name: str = "server"
    ) -> None:
        super().__init__(env, name, discipline)
        if slots is not None and slots < 1:
            raise InputError(f"server '{name}': slots", f"found {slots}", "Give at least 1, or null for no limit.")
        self.slots: float = math.inf if slots is None else slots
        self._idle: list[ServiceTimer] = []
        self._timers: list[ServiceTimer] = []
        self._on_finish = [self._finish]  # shared by all timers: SimPy only reads it
        self._busy_s = 0.0
        self._served = 0

    @property
    def busy_s(self) -> float:
        """Slot seconds used so far, running services included."""
        now = self.env.now
        return self._busy_s + sum(now - timer.job.started_s for timer in self._timers if timer.job is not None)

    def submit(self, job: Job) -> Event:
        """Take the job; returns `job.done`."""
        self._receive(job)
        if not self.up:
            return self._dismiss(job, UNAVAILABLE)
        return self._enter(job)

    def _enter(self, job: Job) -> Event:
        if self.running < self.slots:
            self._start(job)
        else:
            job.status = WAITING
            self._line.push(job)
            self.queue_length += 1
        return job.done

    def _service_s(self, job: Job) -> float:
        """Seconds of service, asked when it starts."""
        if job.service_s is None:
            raise InputError(f"server '{self.name}'", "a job without service_s", "Give every job its service seconds.")
        return job.service_s

    def _start(self, job: Job) -> None:
        env = self.env
        service_s = self._service_s(job)
        if not 0.0 <= service_s < math.inf:  # NaN or a negative delay would corrupt the event queue silently
            raise InputError(
                f"server '{self.name}'", f"service_s = {service_s}", "Service takes a finite time of 0 s or more."
            )
        if self._idle:
            timer = self._idle.pop()
        else:
            timer = ServiceTimer(env)
            self._timers.append(timer)
        timer.job = job
        timer.callbacks = self._on_finish  # type: ignore[assignment]
        job.ticket = timer
        job.status = RUNNING
        job.started_s = env.now
        self.running += 1
        env.schedule(timer, NORMAL, service_s)

    def _finish(self, timer: ServiceTimer) -> None:
        job = timer.job
        if job is None:
            return
        timer.job = None
        self._idle.append(timer)
        self._served += 1
        self._leave(job, OK)
        fire(job.done, job)

    def _leave(self, job: Job, status: str) -> None:
        """End a service and start the next job in line."""
        now = self.env.now
        job.finished_s = now
        job.status = status
        job.ticket = None
        job.device_s = used_s = now - job.started_s
        self._busy_s += used_s
        self.running -= 1
        if self.queue_length and self.up:
            following = self._line.head()
            if following is not None:
                self._line.pop()
                self.queue_length -= 1
                self._start(following)

    def cancel(self, job: Job) -> None:
        """Take the job back at once; the next in line starts."""
        if job.status == WAITING:
            self.queue_length -= 1
            self._dismiss(job, CANCELLED)
        elif job.status == RUNNING:
            self._abort(job, CANCELLED)

    def _abort(self, job: Job, status: str) -> None:
        timer = job.ticket
        timer.job = None  # its event stays in SimPy's queue and is ignored
        self._timers.remove(timer)
        if job.first_token_s > self.env.now:
            job.first_token_s = math.nan
        self._leave(job, status)
        job.done.succeed(job)

    def crash(self) -> None:
        """Go down: jobs here leave as `crashed`, later ones as `unavailable`."""
        self.up = False
        for timer in list(self._timers):
            if timer.job is not None:
                self._abort(timer.job, CRASHED)
        self._dismiss_waiting(CRASHED)

    def estimate_wait_s(self) -> float:
        """Jobs ahead x mean service time so far / slots; 0 while a slot is free."""
        if self.running < self.slots or not self._served:
            return 0.0
        return (self.queue_length + 1) * (self._busy_s / self._served) / self.slots
