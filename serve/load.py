"""Load on a live system: agents that start at given times whatever the answers do, or one after another.

Every request runs in a thread of its own, as `result()` blocks; a thread that sleeps or waits costs nothing. Waits go to
absolute times, so that what one wait is late does not add to the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from threading import Event, Lock, Thread

from workloads.agent import Agent, in_turn
from workloads.backend import InferenceBackend
from workloads.errors import BackendError
from workloads.task import ModelCall, Task
from workloads.timed_calls import TimedCall, TimedRequest

Delay = Callable[[bool, int, int, float], float]
"""(whether upwards, request, position, bytes) -> seconds on the links between the user and the system."""
_PAUSE_S = 0.05
"""A caller in a closed loop whose call failed waits this long, so as not to flood a system that refuses at once."""


class LoadGenerator:
    """Puts requests on one model of a live backend and notes when everything happened."""

    def __init__(self, backend: InferenceBackend, model: str) -> None:
        self._backend, self._model = backend, model

    def open_loop(
        self, requests: Sequence[Task], agent: Agent, due_s: Sequence[float], delay_s: Delay | None = None
    ) -> list[TimedRequest]:
        """Start request i at `due_s[i]` (increasing, seconds from now) and return all of them, in order, when they have ended.

        Each call's way there and back takes `delay_s` of real sleep. A call the backend cannot answer ends its request with the
        reason; any other exception is raised here once all have ended.
        """
        run = _Run(self._backend, self._model, agent, delay_s)
        threads = []
        for number, (task, due) in enumerate(zip(requests, due_s, strict=True)):
            run.sleep_until(due)
            if run.broken.is_set():
                break
            thread = Thread(target=run.request, args=(number, task, due), daemon=True, name=f"load-{number}")
            thread.start()
            threads.append(thread)
        return run.finish(threads)

    def closed_loop(self, requests: Sequence[Task], agent: Agent, callers: int, seconds: float) -> list[TimedRequest]:
        """`callers` users who ask again as soon as they are answered, for `seconds`; the requests are taken in turn, again and again.

        Nothing lies between these users and the system. Requests begun in time are finished.
        """
        run = _Run(self._backend, self._model, agent, None)
        line, lock = enumerate(cycle(requests)), Lock()
        threads = [Thread(target=_user, args=(run, line, lock, seconds), daemon=True) for _ in range(callers)]
        for thread in threads:
            thread.start()
        return run.finish(threads)


def _user(run: _Run, line: Iterator[tuple[int, Task]], lock: Lock, seconds: float) -> None:
    while not run.broken.is_set() and (begun_s := run.now()) < seconds:
        with lock:
            number, task = next(line)
        if not run.request(number, task, begun_s):
            time.sleep(_PAUSE_S)


class _Run:
    """One load while it runs. Threads write to a dictionary each under a key of its own."""

    def __init__(self, backend: InferenceBackend, model: str, agent: Agent, delay_s: Delay | None) -> None:
        self._backend, self._model, self._agent = backend, model, agent
        self._delay_s: Delay = delay_s or _no_delay
        self._done: dict[int, TimedRequest] = {}
        self._error: BaseException | None = None
        self.broken = Event()
        self._start = time.perf_counter()

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def sleep_until(self, due_s: float) -> None:
        """Return at `due_s`, at once if that has passed."""
        left_s = due_s - self.now()
        if left_s > 0:
            time.sleep(left_s)

    def request(self, number: int, task: Task, due_s: float) -> bool:
        """Run one request from its due time to its end; whether it was answered."""
        begun_s = self.now()
        calls: list[TimedCall] = []
        failure, clock_s, last_tool_s = "", due_s, 0.0
        try:
            agent = in_turn(self._agent(task))  # as a chain: what is compared with it is one, too
            call = next(agent)
            while True:
                clock_s = self._call(number, call, clock_s, calls)
                call = agent.send(calls[-1].completion)
        except StopIteration as done:
            last_tool_s = done.value.tool_s
            clock_s += last_tool_s
        except (BackendError, TimeoutError) as error:
            failure, clock_s = str(error) or type(error).__name__, self.now()
        except BaseException as error:
            self._error, failure = error, "broken"
            self.broken.set()
        self.sleep_until(clock_s)
        self._done[number] = TimedRequest(task.id, due_s, begun_s, self.now(), tuple(calls), failure, last_tool_s)
        return not failure

    def _call(self, number: int, call: ModelCall, clock_s: float, calls: list[TimedCall]) -> float:
        """One call, ready at `clock_s`; returns when its answer is with the user."""
        self.sleep_until(clock_s + call.tool_s + self._delay_s(True, number, call.position, call.upload_bytes))
        sent_s = self.now()
        completion = self._backend.submit(call, self._model).result()
        answered_s = self.now()
        calls.append(TimedCall(sent_s, answered_s, completion, call.upload_bytes, call.tool_s))
        back_s = answered_s + self._delay_s(False, number, call.position, completion.download_bytes)
        self.sleep_until(back_s)
        return back_s

    def finish(self, threads: Sequence[Thread]) -> list[TimedRequest]:
        """Wait for all requests; raises the first error that is not the backend's."""
        for thread in threads:
            thread.join()
        if self._error is not None:
            raise self._error
        return [self._done[number] for number in sorted(self._done)]


def _no_delay(up: bool, request: int, position: int, size_bytes: float) -> float:
    del up, request, position, size_bytes
    return 0.0
