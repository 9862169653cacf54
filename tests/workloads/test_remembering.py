"""A conversation is asked once, by however many and whenever, and what nobody waits for is given up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from workloads.backend import ScriptedBackend, cancel
from workloads.errors import IsthmusError, ModelUnavailable
from workloads.remembering import RememberingBackend
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


def test_who_asks_meanwhile_gets_the_same_answer() -> None:
    """Four requests with one conversation are one call; another conversation and another model are calls of their own."""
    model = Model()
    backend = RememberingBackend(model)
    handles = [backend.submit(asking("a"), "slm") for _ in range(4)]
    others = [backend.submit(asking("b"), "slm"), backend.submit(asking("a"), "llm")]
    assert [handle.result().text for handle in (*handles, *others, *handles)] == [*"1111", *"23", *"1111"]
    assert model.calls == ["slm a", "slm b", "llm a"]


def test_a_failure_is_everybodys_and_then_forgotten() -> None:
    """All who wait learn of it, whenever they look; the next one to ask makes a new call."""
    model = Model(failing=1)
    backend = RememberingBackend(model)
    waiting = [backend.submit(asking("a"), "slm") for _ in range(2)]
    with pytest.raises(ModelUnavailable):
        waiting[0].result()
    assert backend.submit(asking("a"), "slm").result().text == "2"
    with pytest.raises(ModelUnavailable):
        waiting[1].result()


def test_only_what_nobody_waits_for_is_given_up() -> None:
    """One of two may go; when the other goes too, or goes twice, the call is cancelled once, and who comes later asks anew."""
    model = Model()
    backend = RememberingBackend(model)
    first, second = (backend.submit(asking("a"), "slm") for _ in range(2))
    cancel(first)
    cancel(first)
    assert model.given_up == []
    cancel(second)
    assert model.given_up == [1]
    third = backend.submit(asking("a"), "slm")
    assert third.result().text == "2"
    cancel(third)
    assert (model.calls, model.given_up) == (["slm a", "slm a"], [1])


class Batching(Model):
    """A live model that also takes many calls at once."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def submit_many(self, calls: Sequence[tuple[ModelCall, str]]) -> list[OnTheWay]:
        self.batches.append(len(calls))
        return [self.submit(call, model) for call, model in calls]


def test_new_calls_travel_together() -> None:
    """Of many calls those that nobody asked before go to the model at once, each once; a single one goes by itself."""
    model = Batching()
    backend = RememberingBackend(model)
    known = backend.submit(asking("a"), "slm")
    handles = backend.submit_many([(asking(text), "slm") for text in ("a", "b", "c", "b")])
    assert [handle.result().text for handle in (known, *handles)] == ["1", "1", "2", "3", "2"]
    assert backend.submit_many([(asking("c"), "slm")])[0].result().text == "3"
    assert (model.calls, model.batches) == (["slm a", "slm b", "slm c"], [2])


def test_many_threads_ask_a_conversation_once() -> None:
    """Thirty-two threads that want the same forty answers cause forty calls and get the same answers."""
    model = ScriptedBackend(slow)
    backend = RememberingBackend(model)

    def ask(_: int) -> list[str]:
        return [backend.submit(asking(str(number)), "slm").result().text for number in range(40)]

    SLOW_CALLS.clear()
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(ask, range(32)))
    assert all(texts == found[0] for texts in found)
    assert sorted(SLOW_CALLS) == sorted(map(str, range(40)))


SLOW_CALLS: list[str] = []


def slow(call: ModelCall, model: str) -> Completion:
    """An answer that differs each time it is made, which lets other threads have a turn."""
    SLOW_CALLS.append(call.messages[-1].content)
    time.sleep(0.001)
    return Completion(model, f"{len(SLOW_CALLS)}", 1, 1, 1)


def test_closing_gives_up_what_is_under_way() -> None:
    """Also the backend behind is closed, where it can be; whoever asks on learns that the run was stopped."""

    class Closing(Model):
        closed = False

        def close(self) -> None:
            self.closed = True

    model = Closing()
    backend = RememberingBackend(model)
    done, _ = (backend.submit(asking(text), "slm") for text in "ab")
    assert done.result().text == "1"
    backend.close()
    assert (model.given_up, model.closed) == ([2], True)
    with pytest.raises(IsthmusError, match="stopped"):
        backend.submit(asking("a"), "slm")
