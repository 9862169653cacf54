"""The load generator keeps its schedule whatever the answers do, and notes what happened."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from serve.load import LoadGenerator
from workloads.agent import AgentRun
from workloads.errors import ModelUnavailable
from workloads.task import Completion, ModelCall, Outcome, Task

PATIENCE_S = 60.0
"""A wait this long means that nobody will come."""


class Answers:
    """A live backend whose answers take as long as `wait` says; it counts the calls in flight."""

    def __init__(self, wait: Callable[[ModelCall], None] = lambda call: None) -> None:
        self._wait, self._lock = wait, threading.Lock()
        self.submitted, self.in_flight, self.most_in_flight = 0, 0, 0

    def submit(self, call: ModelCall, model: str) -> Answer:
        """Count the call and give its handle."""
        with self._lock:
            self.submitted += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return Answer(self, call, model)

    def done(self) -> None:
        """One call is answered."""
        with self._lock:
            self.in_flight -= 1


class Answer:
    """One call under way."""

    def __init__(self, answers: Answers, call: ModelCall, model: str) -> None:
        self._answers, self._call, self._model = answers, call, model

    def result(self) -> Completion:
        """Wait as told, then answer."""
        try:
            self._answers._wait(self._call)
        finally:
            self._answers.done()
        return Completion(self._model, "yes", 10, 2, 300, prefill_s=0.1, decode_s=0.2)


def meeting(parties: int, who: Callable[[ModelCall], bool] = lambda call: True) -> Callable[[ModelCall], None]:
    """Calls wait until so many of them are in flight; others take a moment."""
    barrier = threading.Barrier(parties, timeout=PATIENCE_S)

    def wait(call: ModelCall) -> None:
        if who(call):
            barrier.wait()
        else:
            time.sleep(0.002)

    return wait


def one_call(task: Task) -> AgentRun:
    """A request of one call."""
    completion = yield ModelCall(task, 0, (), 10, 500)
    return Outcome(1.0, completion.text)


def two_calls(task: Task) -> AgentRun:
    """A request of two calls with a tool between them and one after them."""
    yield ModelCall(task, 0, (), 10, 500)
    yield ModelCall(task, 1, (), 20, 700, tool_s=0.05)
    return Outcome(1.0, "", 0.04)


def tasks(count: int) -> list[Task]:
    """Tasks named by their number."""
    return [Task(f"t{number}") for number in range(count)]


def test_requests_start_when_due_although_nobody_is_answered():
    """The answers wait for the last request to be sent: a generator that waited for any of them would never get there."""
    due_s = [0.005 * number for number in range(20)]
    answers = Answers(meeting(20))
    requests = LoadGenerator(answers, "m").open_loop(tasks(20), one_call, due_s)
    assert answers.most_in_flight == 20
    assert [request.due_s for request in requests] == due_s
    assert [request.task_id for request in requests] == [f"t{number}" for number in range(20)]
    assert all(request.begun_s >= request.due_s for request in requests)
    assert all(call.answered_s >= requests[-1].due_s for request in requests for call in request.calls)


def test_links_and_tools_take_real_time_and_are_noted():
    """Uplink, downlink and tools are slept through, each call's own; the answer comes back after its way down."""

    def delay_s(up: bool, request: int, position: int, size_bytes: float) -> float:
        assert size_bytes == ((500, 700)[position] if up else 300)
        return (0.03 if up else 0.02) + 0.01 * position

    (request,) = LoadGenerator(Answers(), "m").open_loop(tasks(1), two_calls, [0.01], delay_s)
    first, second = request.calls
    assert first.sent_s >= 0.01 + 0.03
    assert second.sent_s >= first.answered_s + 0.02 + 0.05 + 0.04
    assert request.ended_s >= second.answered_s + 0.03 + 0.04
    assert request.latency_s == request.ended_s - 0.01
    assert [(call.upload_bytes, call.tool_s) for call in request.calls] == [(500, 0.0), (700, 0.05)]
    assert request.last_tool_s == 0.04
    assert first.around_s == pytest.approx(first.answered_s - first.sent_s - 0.3)


def test_callers_in_a_closed_loop_wait_for_their_answers():
    """Three callers have three calls in flight, never more, and ask again until the time is over."""
    answers = Answers(meeting(3, lambda call: call.task.id in ("t0", "t1", "t2")))
    requests = LoadGenerator(answers, "m").closed_loop(tasks(1000), one_call, 3, 0.2)
    assert answers.most_in_flight == 3
    assert len(requests) == answers.submitted > 3
    assert all(request.begun_s < 0.2 for request in requests)
    assert [request.task_id for request in requests] == [f"t{number % 1000}" for number in range(len(requests))]


def test_a_call_that_fails_ends_its_request_with_the_reason():
    """The other requests are not touched."""

    def refuse(call: ModelCall) -> None:
        if call.task.id == "t1":
            raise ModelUnavailable("overloaded", "too many")

    requests = LoadGenerator(Answers(refuse), "m").open_loop(tasks(3), one_call, [0.0, 0.0, 0.0])
    assert [request.failure for request in requests] == ["", "overloaded: too many", ""]
    assert [len(request.calls) for request in requests] == [1, 0, 1]


def test_a_mistake_of_the_caller_is_raised_and_ends_the_load():
    """An exception that no live model can cause is nobody's latency."""
    failed = threading.Event()

    def break_down(call: ModelCall) -> None:
        failed.set()
        raise KeyError(call.task.id)

    answers = Answers(break_down)
    with pytest.raises(KeyError):
        LoadGenerator(answers, "m").open_loop(tasks(3), one_call, [0.0, PATIENCE_S / 30, PATIENCE_S / 10])
    assert failed.is_set()
    assert answers.submitted < 3
    with pytest.raises(KeyError):
        LoadGenerator(answers, "m").closed_loop(tasks(3), one_call, 2, PATIENCE_S)
