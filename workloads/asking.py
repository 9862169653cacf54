"""Asking models for a recording: many calls at a time, failures tried again, answers kept at once."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock
from typing import Generic, Protocol, TypeVar

from workloads.backend import Handle, InferenceBackend, cancel, started, withdraw
from workloads.errors import BackendError, ModelUnavailable, RecordingMiss
from workloads.recording import recordable
from workloads.recording_file import conversation_key
from workloads.task import Completion, ModelCall

RETRIES = 6
"""Further tries at a call that failed, after 1, 2, 4, ... seconds or as long as the server asks."""
_LONGEST_WAIT_S = 300.0
_FINAL = ("refused", "budget", "prompt-too-long")
"""Reasons of ModelUnavailable that trying again does not mend."""

Waiter = TypeVar("Waiter")


class Answers(Protocol):
    """Where answers are kept, by the key of their conversation."""

    def get(self, key: str) -> Completion | None:
        """The answer, or None."""
        ...

    def put(self, key: str, answer: Completion) -> None:
        """Keep an answer."""
        ...


class AnswersInMemory(dict[str, Completion]):
    """Answers that last as long as the process."""

    def put(self, key: str, answer: Completion) -> None:
        """Keep an answer."""
        self[key] = answer


class KeepingBackend:
    """Passes on answers as they will be replayed and keeps them; what is kept is not asked again. For any number of threads.

    A call that keeps failing raises BackendError, which no client mends by failing over: a recording of that would be one of
    an outage. To ask a conversation once that several want at the same time, put a RememberingBackend before it.
    """

    def __init__(
        self, inner: InferenceBackend, answers: Answers, sampling: str = "greedy", *, timings: bool = False, retries: int = RETRIES
    ) -> None:  # fmt: skip
        self._inner, self._answers, self._sampling = inner, answers, sampling
        self._timings, self._retries = timings, retries
        self._lock = Lock()  # a store of answers need not be made for several threads
        self._under_way: set[_KeepingHandle] = set()

    def submit(self, call: ModelCall, model: str) -> Handle:
        """The answer that is kept, or a new call."""
        return self.submit_many([(call, model)])[0]

    def submit_many(self, calls: Sequence[tuple[ModelCall, str]]) -> list[Handle]:
        """The same for many calls, of which the new ones are passed on together."""
        keys = [conversation_key(model, call.messages, self._sampling) for call, model in calls]
        with self._lock:
            kept = [self._answers.get(key) for key in keys]
        new = iter(started(self._inner, [call for call, answer in zip(calls, kept, strict=True) if answer is None]))
        handles: list[Handle] = []
        for key, call, answer in zip(keys, calls, kept, strict=True):
            handles.append(_KeepingHandle(self, key, *call, next(new)) if answer is None else answer)
        self._under_way.update(handle for handle in handles if isinstance(handle, _KeepingHandle))
        return handles

    def collect(self, handle: _KeepingHandle) -> Completion:
        """Wait for an answer and keep it; raises BackendError when it keeps failing."""
        failures = 0
        while True:
            try:
                return self._keep(handle)
            except BackendError as error:
                failures += 1
                time.sleep(wait_s(error, failures, self._retries, handle.call, handle.model))
                handle.inner = started(self._inner, [(handle.call, handle.model)])[0]

    def drain(self) -> None:
        """Keep what is still under way and can be had: it may have cost money. Only when nobody else collects any more."""
        for handle in list(self._under_way):
            with suppress(BackendError):
                self._keep(handle)

    def give_up(self, handle: _KeepingHandle) -> None:
        """Nobody waits for this answer any more."""
        self._under_way.discard(handle)
        cancel(handle.inner)

    def _keep(self, handle: _KeepingHandle) -> Completion:
        answer = recordable(handle.inner.result(), handle.model, timings=self._timings)
        with self._lock:
            self._answers.put(handle.key, answer)
        self._under_way.discard(handle)
        return answer


class _KeepingHandle:
    def __init__(self, backend: KeepingBackend, key: str, call: ModelCall, model: str, inner: Handle) -> None:
        self._backend, self.key, self.call, self.model, self.inner = backend, key, call, model, inner
        self._answer: Completion | None = None

    def result(self) -> Completion:
        """The answer, kept."""
        if self._answer is None:
            self._answer = self._backend.collect(self)
        return self._answer

    def cancel(self) -> None:
        """Wait for it no more."""
        if self._answer is None:
            self._backend.give_up(self)


class _Asked(Generic[Waiter]):
    """A call to make or under way, and who waits for its answer."""

    def __init__(self, key: str, call: ModelCall, model: str, order: tuple[int, int]) -> None:
        self.key, self.call, self.model, self.order = key, call, model, order
        self.waiters: list[Waiter] = []
        self.failures = 0


class CallQueue(Generic[Waiter]):
    """Keeps up to `in_flight` calls under way and hands out their answers in the order in which they were submitted.

    Calls of lower `priority` are made first. Answers go into `answers` as soon as they are collected.
    """

    def __init__(
        self, backend: InferenceBackend, answers: Answers, sampling: str = "greedy", *, in_flight: int = 256, retries: int = RETRIES,
        timings: bool = False,
    ) -> None:  # fmt: skip
        self._backend, self._answers, self._sampling = backend, answers, sampling
        self._in_flight, self._retries, self._timings = in_flight, retries, timings
        self._asked: dict[str, _Asked[Waiter]] = {}
        self._ready: list[tuple[tuple[int, int], _Asked[Waiter]]] = []
        self._delayed: list[tuple[float, tuple[int, int], _Asked[Waiter]]] = []
        self._flying: deque[tuple[Handle, _Asked[Waiter]]] = deque()
        self._numbers = 0

    def ask(self, call: ModelCall, model: str, waiter: Waiter, priority: int) -> Completion | None:
        """The answer if it is in hand; otherwise None, and `collect` will bring it with `waiter`."""
        key = conversation_key(model, call.messages, self._sampling)
        answer = self._answers.get(key)
        if answer is not None:
            return answer
        asked = self._asked.get(key)
        if asked is None:
            self._numbers += 1
            asked = self._asked[key] = _Asked(key, call, model, (priority, self._numbers))
            heapq.heappush(self._ready, (asked.order, asked))
        asked.waiters.append(waiter)
        return None

    def collect(self) -> tuple[Completion, list[Waiter]]:
        """Wait for the next answer. Raises BackendError for a call that keeps failing."""
        while True:
            self._submit()
            if not self._flying:
                time.sleep(max(0.0, self._delayed[0][0] - time.monotonic()))
                continue
            handle, asked = self._flying[0]  # it stays there while it is waited for: an interrupt must not lose it
            try:
                answer = self._keep(handle, asked)
            except BackendError as error:
                self._flying.popleft()
                asked.failures += 1
                due_s = time.monotonic() + wait_s(error, asked.failures, self._retries, asked.call, asked.model)
                heapq.heappush(self._delayed, (due_s, asked.order, asked))
            else:
                self._flying.popleft()
                return answer, asked.waiters

    @property
    def under_way(self) -> int:
        """Calls whose answers have not been collected."""
        return len(self._flying)

    def drain(self) -> None:
        """Send nothing more, and keep what is still under way and can be had: it may have cost money."""
        for handle, _ in self._flying:
            withdraw(handle)
        while self._flying:
            handle, asked = self._flying.popleft()
            with suppress(BackendError):
                self._keep(handle, asked)

    def _keep(self, handle: Handle, asked: _Asked[Waiter]) -> Completion:
        answer = recordable(handle.result(), asked.model, timings=self._timings)
        self._answers.put(asked.key, answer)
        self._asked.pop(asked.key, None)  # an interrupt may have come just after it was kept
        return answer

    def _submit(self) -> None:
        """Fill up in batches, not call by call: a backend may take many in one message. Never wait with idle models."""
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            _, order, asked = heapq.heappop(self._delayed)
            heapq.heappush(self._ready, (order, asked))
        room = self._in_flight - len(self._flying)
        batch = max(1, self._in_flight // 4)
        idle = len(self._flying) < max(1, self._in_flight // 2)
        if not idle and not (room >= batch and len(self._ready) >= batch):
            return
        chosen = [heapq.heappop(self._ready)[1] for _ in range(min(room, len(self._ready)))]
        if chosen:
            self._flying.extend(zip(started(self._backend, [(a.call, a.model) for a in chosen]), chosen, strict=True))


def wait_s(error: BackendError, failures: int, retries: int, call: ModelCall, model: str) -> float:
    """How long to wait before a call that failed is tried again; raises BackendError when it is not worth it."""
    if isinstance(error, RecordingMiss):
        raise error
    if failures > retries or (isinstance(error, ModelUnavailable) and error.reason in _FINAL):
        times = f" {failures} times" if failures > 1 else ""
        raise BackendError(
            f"{model!r} failed{times} on subtask {call.position} of task {call.task.id!r}: {error}"
        ) from error
    asked_s = error.retry_after_s if isinstance(error, ModelUnavailable) else 0.0
    return min(_LONGEST_WAIT_S, max(asked_s, 2.0 ** (failures - 1)))
