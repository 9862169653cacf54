"""What a call passes on its way to an engine: RPC, event loop, reading the text. It takes time and no place in the batch."""

from __future__ import annotations

from collections.abc import Callable

from simpy import Environment, Event
from simpy.events import Timeout

from sim.job import Job


class Reception:
    """Holds every job for `delay_s`, then hands it to `admit`; with no delay it is handed on at once."""

    def __init__(self, env: Environment, delay_s: float, admit: Callable[[Job], None]) -> None:
        self._env, self._delay_s, self._admit = env, delay_s, admit
        self._jobs: dict[Job, None] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def enter(self, job: Job) -> None:
        """A job comes in."""
        if self._delay_s:
            self._jobs[job] = None
            Timeout(self._env, self._delay_s, job).callbacks.append(self._through)
        else:
            self._admit(job)

    def leave(self, job: Job) -> None:
        """Forget a job that was cancelled, if it is here."""
        self._jobs.pop(job, None)

    def empty(self) -> list[Job]:
        """Forget all jobs here and return them in the order they came."""
        jobs = list(self._jobs)
        self._jobs.clear()
        return jobs

    def _through(self, timer: Event) -> None:
        job = timer.value
        assert isinstance(job, Job)
        if job in self._jobs:
            del self._jobs[job]
            self._admit(job)
