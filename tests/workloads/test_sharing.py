"""Equal calls at the same time are one call, and what nobody waits for is given up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sim.text_tasks import remembering
from workloads.backend import InferenceBackend
from workloads.errors import ModelUnavailable
from workloads.sharing import SharingBackend
from workloads.task import Completion, Message, ModelCall, Task


class Model:
    """A live model that notes its calls and which of them were given up; its first `failing` calls fail."""

    def __init__(self, failing: int = 0) -> None:
        self.calls: list[str] = []
        self.given_up: list[int] = []
        self._failing = failing

    def submit(self, call: ModelCall, model: str) -> OnTheWay:
        self.calls.append(f"{model} {call.messages[-1].content}")
        return OnTheWay(self, len(self.calls), self.calls[-1], fails=len(self.calls) <= self._failing)


class OnTheWay:
    """One call of it."""

    def __init__(self, model: Model, number: int, said: str, *, fails: bool) -> None:
        self._model, self._number, self._said, self._fails = model, number, said, fails

    def result(self) -> Completion:
        if self._fails:
            raise ModelUnavailable("timeout")
        return Completion(self._said, f"{self._number}", 1, 1, 1, provenance="live")

    def cancel(self) -> None:
        self._model.given_up.append(self._number)


def asking(text: str) -> ModelCall:
    """A call about this text."""
    return ModelCall(Task(text, text), 0, (Message("user", text),), 1, 1)


@pytest.fixture(params=["shared", "remembered"])
def wrap(request: pytest.FixtureRequest) -> Callable[[InferenceBackend], InferenceBackend]:
    """A sharing backend, alone and as live runs use it."""
    return SharingBackend if request.param == "shared" else lambda model: remembering(model, ("slm", "llm"))


def test_who_asks_meanwhile_gets_the_same_answer(wrap) -> None:
    """Four requests with one conversation are one call; another conversation and another model are calls of their own."""
    model = Model()
    backend: InferenceBackend = wrap(model)
    handles = [backend.submit(asking("a"), "slm") for _ in range(4)]
    others = [backend.submit(asking("b"), "slm"), backend.submit(asking("a"), "llm")]
    assert [handle.result().text for handle in (*handles, *others, *handles)] == [*"1111", *"23", *"1111"]
    assert model.calls == ["slm a", "slm b", "llm a"]


def test_a_failure_is_everybodys_and_then_forgotten(wrap) -> None:
    """All who wait learn of it, whenever they look; the next one to ask makes a new call."""
    model = Model(failing=1)
    backend = wrap(model)
    waiting = [backend.submit(asking("a"), "slm") for _ in range(2)]
    with pytest.raises(ModelUnavailable):
        waiting[0].result()
    assert backend.submit(asking("a"), "slm").result().text == "2"
    with pytest.raises(ModelUnavailable):
        waiting[1].result()


def test_only_what_nobody_waits_for_is_given_up(wrap) -> None:
    """One of two may go; when the other goes too, or goes twice, the call is cancelled once, and who comes later asks anew."""
    model = Model()
    backend = wrap(model)
    first, second = (backend.submit(asking("a"), "slm") for _ in range(2))
    first.cancel()
    first.cancel()
    assert model.given_up == []
    second.cancel()
    assert model.given_up == [1]
    third = backend.submit(asking("a"), "slm")
    assert third.result().text == "2"
    third.cancel()
    assert (model.calls, model.given_up) == (["slm a", "slm a"], [1])
