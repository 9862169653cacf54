"""Parallel branches of one request: each is a SimPy process, and the request goes on when the last of them has ended.

Branches share what their request has: its deadline, its attempts, its place in the records. A request that times out takes all its
branches with it. A branch in which every way to answer a subtask failed fails the request at once; what the other branches have
under way is taken back, and its row says `abandoned`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

from simpy import Environment, Event, Interrupt, Process

from sim.records import SubtaskRow
from workloads.agent import Branch, Step, branches_of
from workloads.errors import InputError
from workloads.task import Task

Waits = Generator[Event, Any, Any]
ABANDONED = "abandoned"
"""Cut short because another branch of the same request failed."""


class GivenUp(Exception):
    """Every way the client may try has failed."""


class Branches:
    """The branches of one fork under way; `see_through(branch)` is the work of one.

    Starts the first `most` now (None: all), each further one when another has ended.
    """

    def __init__(
        self, env: Environment, fork: Step, see_through: Callable[[Branch], Waits], most: int | None = None
    ) -> None:
        branches = branches_of(fork)
        self._env, self._see_through = env, see_through
        self._results: list[Any] = [None] * len(branches)
        self._open = len(branches)
        self._failure: Exception | None = None
        self._turn = env.event()  # the last has ended, or the first has failed
        self._processes: list[Process] = []
        self._waiting = deque(enumerate(branches))
        for _ in branches[:most]:
            self._start()

    def joined(self) -> Waits:
        """Wait for all; returns the tuple of results. Raises GivenUp as soon as one branch has, Interrupt when interrupted itself."""
        if self._open:
            try:
                yield self._turn
            except Interrupt as interrupt:
                yield from self._stop(str(interrupt.cause))
                raise
        if self._failure is not None:
            yield from self._stop(ABANDONED)
            raise self._failure
        return tuple(self._results)

    def _start(self) -> None:
        process = self._env.process(self._run(*self._waiting.popleft()))
        process.callbacks.append(raise_failure)
        self._processes.append(process)

    def _run(self, number: int, branch: Branch) -> Waits:
        try:
            self._results[number] = yield from self._see_through(branch)
        except (GivenUp, Interrupt) as failure:
            self._failure = self._failure or failure
        self._open -= 1
        if self._waiting and self._failure is None:
            self._start()
        if not self._turn.triggered and (not self._open or self._failure is not None):
            self._turn.succeed()

    def _stop(self, cause: str) -> Waits:
        """Interrupt who is still at it, and wait until they have written their rows: no time passes."""
        self._waiting.clear()
        under_way = [process for process in self._processes if process.is_alive]
        for process in under_way:
            process.interrupt(cause)
        if under_way:
            yield self._env.all_of(under_way)


def check_positions(task: Task, attempts: Sequence[SubtaskRow]) -> None:
    """Raise InputError where two subtasks of a request share a position: rows, draws and decisions are told apart by it."""
    counts = Counter((attempt.position, attempt.attempt) for attempt in attempts)
    position, most = max(
        ((place[0], count) for place, count in counts.items()), key=lambda found: found[1], default=(0, 0)
    )
    if most > 1:
        raise InputError(
            f"the agent, on task {task.id!r}", f"gave position {position} to {most} subtasks of parallel branches",
            "Number all subtasks of a request differently, branches included",
        )  # fmt: skip


def raise_failure(process: Event) -> None:
    """Stop the simulation with the very error a request met; SimPy would make a new one of its class and might fail to."""
    if not process.ok:
        error = process.value
        assert isinstance(error, BaseException)
        raise error
