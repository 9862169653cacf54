"""Asking each conversation once: greedy answers repeat, so whoever asks again gets the answer in hand or the one under way."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

from workloads.backend import Closable, Handle, InferenceBackend, cancel, started
from workloads.errors import BackendError, IsthmusError
from workloads.task import Completion, Message, ModelCall

Conversation = tuple[str, tuple[Message, ...]]
"""A model and what it is asked."""


class RememberingBackend:
    """Passes each conversation on once and remembers its answer, for any number of threads.

    A call is under way until somebody has collected its outcome, and given up when all who asked for it have given it up. A
    failure meets everyone who waits for that call and is not remembered: the next one to ask starts a new call.
    """

    def __init__(self, inner: InferenceBackend) -> None:
        self._inner, self._lock = inner, Lock()
        self._answers: dict[Conversation, Completion] = {}
        self._under_way: dict[Conversation, _Shared] = {}
        self._closed = False

    def submit(self, call: ModelCall, model: str) -> Handle:
        """The answer in hand, the one under way, or a new call."""
        return self.submit_many([(call, model)])[0]

    def submit_many(self, calls: Sequence[tuple[ModelCall, str]]) -> list[Handle]:
        """The same for many calls, of which the new ones are passed on together."""
        asked = [(model, call.messages) for call, model in calls]
        with self._lock:
            if self._closed:
                raise IsthmusError("the run was stopped")
            new = {
                a: c for a, c in zip(asked, calls, strict=True) if a not in self._answers and a not in self._under_way
            }
            for conversation, handle in zip(new, started(self._inner, list(new.values())), strict=True):
                self._under_way[conversation] = _Shared(self, conversation, handle)
            return [self._answers[a] if a in self._answers else self._under_way[a].one_more() for a in asked]

    def close(self) -> None:
        """Give up all calls under way, and close the backend behind; who asks again gets an IsthmusError."""
        with self._lock:
            self._closed = True
            calls = list(self._under_way.values())
        for call in calls:
            cancel(call.inner)
        if isinstance(self._inner, Closable):
            self._inner.close()

    def ended(self, call: _Shared, outcome: Completion | BackendError) -> None:
        """A call is under way no more."""
        with self._lock:
            if isinstance(outcome, Completion):
                self._answers[call.conversation] = outcome
            self._under_way.pop(call.conversation, None)

    def left(self, call: _Shared) -> None:
        """One of those who asked for a call has given it up."""
        with self._lock:
            call.waiting -= 1
            if call.waiting or self._under_way.get(call.conversation) is not call:
                return
            del self._under_way[call.conversation]
        cancel(call.inner)


class _Shared:
    """A call that `waiting` ask for."""

    def __init__(self, backend: RememberingBackend, conversation: Conversation, inner: Handle) -> None:
        self.backend, self.conversation, self.inner = backend, conversation, inner
        self.waiting = 0
        self._lock = Lock()
        self._outcome: Completion | BackendError | None = None

    def one_more(self) -> _Waiting:
        """A handle for one more who asks."""
        self.waiting += 1
        return _Waiting(self)

    def result(self) -> Completion:
        """The answer or the failure all of them get, collected by the first who wants it."""
        with self._lock:
            outcome = self._outcome
            if outcome is None:
                try:
                    outcome = self.inner.result()
                except BackendError as error:
                    outcome = error
                self._outcome = outcome
                self.backend.ended(self, outcome)
        if isinstance(outcome, BackendError):
            raise outcome
        return outcome


class _Waiting:
    """One of those who asked for a call."""

    def __init__(self, call: _Shared) -> None:
        self._call, self._left = call, False

    def result(self) -> Completion:
        """The answer."""
        return self._call.result()

    def cancel(self) -> None:
        """Wait for it no more."""
        if not self._left:
            self._left = True
            self._call.backend.left(self._call)
