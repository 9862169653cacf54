"""The one small interface behind which live, recorded and modelled answers stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from workloads.task import Completion, ModelCall


class Handle(Protocol):
    """A completion on its way."""

    def result(self) -> Completion:
        """Block until the answer is there; raises BackendError if the model could not answer."""
        ...


class InferenceBackend(Protocol):
    """Answers model calls. Submit before the uplink delay, collect when service starts."""

    def submit(self, call: ModelCall, model: str) -> Handle:
        """Start answering `call` with `model`; must not block on the answer."""
        ...


class ScriptedBackend:
    """A real backend whose model is a plain function of (call, model): for tests and examples."""

    def __init__(self, answer: Callable[[ModelCall, str], Completion]) -> None:
        self._answer = answer

    def submit(self, call: ModelCall, model: str) -> Handle:
        """Answer at once: a Completion is its own handle."""
        return self._answer(call, model)
