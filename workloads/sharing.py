"""One call to the models for all that ask the same at the same time, and none for what nobody waits for any more."""

from __future__ import annotations

from collections.abc import Callable

from workloads.backend import Handle, InferenceBackend, cancel
from workloads.errors import BackendError
from workloads.task import Completion, Message, ModelCall


class SharingBackend:
    """Whoever asks a conversation that is under way gets the same answer, or the same failure.

    A call is under way until somebody has collected its outcome; it is given up when all who asked for it have given it up.
    Models must answer the same conversation alike.
    """

    def __init__(self, inner: InferenceBackend) -> None:
        self._inner = inner
        self._under_way: dict[tuple[str, tuple[Message, ...]], _Shared] = {}

    def submit(self, call: ModelCall, model: str) -> Handle:
        """The call under way, or a new one."""
        key = model, call.messages
        shared = self._under_way.get(key)
        if shared is None:
            handle = self._inner.submit(call, model)
            shared = self._under_way[key] = _Shared(handle, lambda: self._under_way.pop(key))
        shared.waiting += 1
        return _Waiting(shared)


class _Shared:
    """A call that `waiting` ask for; `ended` is called once, when it is under way no more."""

    def __init__(self, handle: Handle, ended: Callable[[], object]) -> None:
        self._handle, self._ended = handle, ended
        self._outcome: Completion | BackendError | None = None
        self.waiting = 0

    def result(self) -> Completion:
        if self._outcome is None:
            try:
                self._outcome = self._handle.result()
            except BackendError as error:
                self._outcome = error
            self._ended()
        if isinstance(self._outcome, BackendError):
            raise self._outcome
        return self._outcome

    def leave(self) -> None:
        self.waiting -= 1
        if not self.waiting and self._outcome is None:
            self._ended()
            cancel(self._handle)


class _Waiting:
    """One of those who ask for a shared call."""

    def __init__(self, shared: _Shared) -> None:
        self._shared, self._left = shared, False

    def result(self) -> Completion:
        """The answer all of them get."""
        return self._shared.result()

    def cancel(self) -> None:
        """Wait no more."""
        if not self._left:
            self._left = True
            self._shared.leave()
