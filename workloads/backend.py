"""The one small interface behind which live, recorded and modelled answers stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from workloads.errors import BackendError
from workloads.task import Completion, ModelCall


class Handle(Protocol):
    """A completion on its way."""

    def result(self) -> Completion:
        """Block until the answer is there; raises BackendError if the model could not answer."""
        ...


@runtime_checkable
class Cancellable(Protocol):
    """A handle whose call can be given up."""

    def cancel(self) -> None:
        """Nobody will ask for the answer."""
        ...


def cancel(handle: Handle) -> None:
    """Give up a call whose answer nobody will ask for, where its backend can."""
    if isinstance(handle, Cancellable):
        handle.cancel()


@runtime_checkable
class Withdrawable(Protocol):
    """A handle whose call may not have been sent yet."""

    def withdraw(self) -> None:
        """Do not send it any more; one that is on its way goes on to its end."""
        ...


def withdraw(handle: Handle) -> None:
    """Take a call back if it has not been sent."""
    if isinstance(handle, Withdrawable):
        handle.withdraw()


class InferenceBackend(Protocol):
    """Answers model calls. Submit before the uplink delay, collect when service starts."""

    def submit(self, call: ModelCall, model: str) -> Handle:
        """Start answering `call` with `model`; must not block on the answer."""
        ...


@runtime_checkable
class BatchBackend(Protocol):
    """A backend that takes many calls at once."""

    def submit_many(self, calls: Sequence[tuple[ModelCall, str]]) -> Sequence[Handle]:
        """Start answering (call, model) pairs; handles in their order."""
        ...


@runtime_checkable
class Closable(Protocol):
    """A backend that can be told to send nothing more."""

    def close(self) -> None:
        """Fail what has no answer yet."""
        ...


class _Failed:
    """A call that could not even be submitted."""

    def __init__(self, error: BackendError) -> None:
        self._error = error

    def result(self) -> Completion:
        """Raises why."""
        raise self._error


def started(backend: InferenceBackend, calls: Sequence[tuple[ModelCall, str]]) -> Sequence[Handle]:
    """Submit calls, many at once where the backend can; one that cannot be submitted fails when it is collected.

    A single call goes by itself: what travels together may wait for company.
    """
    if len(calls) > 1 and isinstance(backend, BatchBackend):
        try:
            return backend.submit_many(calls)
        except BackendError as error:
            return [_Failed(error)] * len(calls)
    return [_started_one(backend, call, model) for call, model in calls]


def _started_one(backend: InferenceBackend, call: ModelCall, model: str) -> Handle:
    try:
        return backend.submit(call, model)
    except BackendError as error:
        return _Failed(error)


class ScriptedBackend:
    """A real backend whose model is a plain function of (call, model): for tests and examples."""

    def __init__(self, answer: Callable[[ModelCall, str], Completion]) -> None:
        self._answer = answer

    def submit(self, call: ModelCall, model: str) -> Handle:
        """Answer at once: a Completion is its own handle."""
        return self._answer(call, model)
