"""What becomes of a request whose live model cannot answer: retried, failed over or failed, with the reason in the records."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers import always, attempts_of, link, rows, run, scenario, scripted_answer, slots, task
from workloads.backend import ScriptedBackend
from workloads.errors import ModelUnavailable
from workloads.remembering import RememberingBackend
from workloads.task import Completion, Message, ModelCall, Task


class Failing:
    """A handle whose answer never comes."""

    def __init__(self, failure: ModelUnavailable) -> None:
        self._failure = failure

    def result(self) -> Completion:
        raise self._failure


class Flaky:
    """A live backend of which `fails(model, n)` says how the n-th call of a model fails, or None."""

    def __init__(self, fails: Callable[[str, int], ModelUnavailable | None]) -> None:
        self._fails = fails
        self.calls: list[str] = []

    def submit(self, call: ModelCall, model: str) -> Completion | Failing:
        failure = self._fails(model, self.calls.count(model))
        self.calls.append(model)
        return Failing(failure) if failure else scripted_answer(call, model)


TIERS = {"edge": slots(), "cloud": slots("llm")}


def test_a_call_that_fails_once_is_tried_again() -> None:
    """The failed attempt has a row of its own with its reason and the server's Retry-After is waited for."""
    backend = Flaky(lambda model, n: ModelUnavailable("rate-limited", "429", 7.0) if n == 0 else None)
    records = run(scenario(TIERS), [task()], always("edge"), backend=backend)
    first, second = attempts_of(records, 0)
    assert (first["status"], first["provenance"], first["end_s"]) == ("live-rate-limited", "", 0.0)
    assert (second["status"], second["backoff_s"], second["attempt"]) == ("ok", 7.0, 1)
    (request,) = rows(records.requests)
    assert (request["status"], request["subtasks"]) == ("completed", 1)


def test_a_model_that_stays_away_is_left_for_the_other_tier() -> None:
    """After its retries the client fails over; the request completes there."""
    backend = Flaky(lambda model, n: ModelUnavailable("replica-died") if model == "edge" else None)
    world = scenario(TIERS, client={"stream": False, "retries": 2, "backoff_s": 0.1})
    records = run(world, [task()], always("edge"), backend=backend)
    assert [(row["tier"], row["status"]) for row in attempts_of(records, 0)] == [
        (0, "live-replica-died"), (0, "live-replica-died"), (0, "live-replica-died"), (1, "ok"),
    ]  # fmt: skip
    assert backend.calls == ["edge"] * 3 + ["cloud"]


def test_a_request_nobody_can_answer_fails_with_its_reason() -> None:
    """It is neither lost nor counted as completed."""
    backend = Flaky(lambda model, n: ModelUnavailable("timeout", "no answer in 60 s"))
    world = scenario(TIERS, client={"stream": False, "retries": 0, "fail_over": False})
    (request,) = rows(run(world, [task()], always("cloud"), backend=backend).requests)
    assert (request["status"], request["score"]) == ("failed", 0.0)
    assert request["reason"] == "live-timeout at cloud after 1 attempts of subtask 0"


def test_a_prompt_that_is_too_long_is_not_tried_again() -> None:
    """As with a simulated model: no retry makes it fit, but the other tier's model may have room."""
    backend = Flaky(lambda model, n: ModelUnavailable("prompt-too-long", "9 tokens") if model == "edge" else None)
    world = scenario(TIERS, client={"stream": False, "retries": 2})
    records = run(world, [task()], always("edge"), backend=backend)
    assert [row["status"] for row in attempts_of(records, 0)] == ["live-prompt-too-long", "ok"]


class OnTheWay:
    """A handle whose answer comes when it is asked for; tells `given_up` if it was cancelled."""

    def __init__(self, call: ModelCall, model: str, given_up: list[str]) -> None:
        self._answer, self._given_up = scripted_answer(call, model), given_up

    def result(self) -> Completion:
        return self._answer

    def cancel(self) -> None:
        self._given_up.append(self._answer.model)


class Counting:
    """A live backend that counts calls, and those given up."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.given_up: list[str] = []

    def submit(self, call: ModelCall, model: str) -> OnTheWay:
        self.calls.append(model)
        return OnTheWay(call, model, self.given_up)


def test_a_live_call_that_a_client_gives_up_is_cancelled() -> None:
    """Attempts that time out on the uplink leave no call running; one that was answered has nothing left to cancel."""
    client = {"stream": False, "attempt_timeout_s": 0.3, "retries": 1, "backoff_s": 0.0}
    tiers = {"edge": slots(), "cloud": slots("llm", mean_s=1.0)}
    backend = Counting()
    far = scenario(tiers, links=(link("home", "edge"),), client=client)  # the upload alone takes 0.6 s
    statuses = [row["status"] for row in attempts_of(run(far, [task()], always("edge"), backend=backend), 0)]
    assert statuses == ["attempt-timeout"] * 4  # the last two while the cloud is serving
    assert backend.calls == ["edge", "edge", "cloud", "cloud"]
    assert backend.given_up == ["edge", "edge"]


def test_a_conversation_is_asked_once_per_run() -> None:
    """The same conversation gets the remembered answer, another one is asked, and a failure is not remembered."""
    asked: list[tuple[str, int]] = []

    def answer(call: ModelCall, model: str) -> Completion:
        asked.append((model, len(call.messages)))
        if len(asked) == 1:
            raise ModelUnavailable("overloaded")
        return Completion(model, "yes", 3, 1, 10, provenance="live")

    backend = RememberingBackend(ScriptedBackend(answer))
    call = ModelCall(Task("t", "?"), 0, (Message("user", "?"),), 3, 10)
    longer = call._replace(messages=(*call.messages, Message("assistant", "yes")))
    with pytest.raises(ModelUnavailable):
        backend.submit(call, "slm").result()
    answers = [backend.submit(call, "slm").result() for _ in range(3)]
    backend.submit(longer, "slm").result()
    backend.submit(call, "llm").result()
    assert asked == [("slm", 1), ("slm", 1), ("slm", 2), ("llm", 1)]
    assert {a.provenance for a in answers} == {"live"}
