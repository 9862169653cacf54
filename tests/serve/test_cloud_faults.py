"""Upstreams that fail, over real HTTP: what is tried again, when, and how a call ends otherwise."""

from __future__ import annotations

import asyncio
import logging
import pickle
import re
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest

from serve.cloud import Upstream
from serve.generation import Generation
from serve.upstream.errors import REASONS, BudgetExceeded, UpstreamError, retry_after_s
from tests.serve.upstream import Upstream as Server
from tests.serve.upstream import start_upstream
from tests.serve.upstream_calls import PRICED, QUESTION, failed, use, wait_until


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    """One upstream process for the tests that leave it alive."""
    with start_upstream() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    """The upstream with nothing scripted and no calls remembered."""
    running.reset()
    return running


async def listen(client: Upstream) -> Generation:
    """A streamed answer, of which only the end matters."""
    last = [item async for item in client.stream(QUESTION, 50)][-1]
    assert isinstance(last, Generation)
    return last


FOR_A_WHILE = [
    {"kind": "status", "status": 408},
    {"kind": "status", "status": 409},
    {"kind": "status", "status": 429},
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 503, "retry_after": "0"},
    {"kind": "drop", "after": 0},
]
FOR_GOOD = [*({"kind": "status", "status": status} for status in (400, 401, 403, 404, 422)), {"kind": "malformed"}]
REASON = {408: "timeout", 409: "server_error", 429: "rate_limited", 500: "server_error", 503: "server_error"}


def _name(behaviour: dict[str, Any]) -> str:
    return str(behaviour.get("status", behaviour["kind"]))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("behaviour", FOR_A_WHILE, ids=_name)
def test_passing_faults_are_tried_again(server: Server, behaviour: dict[str, Any], streamed: bool) -> None:
    """Two faults in a row cost two more attempts, the caller gets its answer, and usage counts once."""
    server.script({**behaviour, "times": 2})

    async def ask(client: Upstream) -> None:
        answer = await (listen(client) if streamed else client.complete(QUESTION, 50))
        assert answer.text == "You said: one two three four five six"
        stats = client.stats()
        assert (stats.answered, stats.retried, stats.failed) == (1, 2, 0)
        assert (stats.prompt_tokens, stats.completion_tokens) == (7, 8)

    use(server, ask)
    assert len(server.calls()) == 3


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("behaviour", FOR_A_WHILE, ids=_name)
def test_faults_that_stay_end_with_their_reason(server: Server, behaviour: dict[str, Any], streamed: bool) -> None:
    """After `max_retries` more attempts the call ends with a reason a program can read."""
    server.script(default=behaviour)

    async def ask(client: Upstream) -> UpstreamError:
        error = await failed(listen(client) if streamed else client.complete(QUESTION, 50))
        assert (client.stats().answered, client.stats().retried, client.stats().failed) == (0, 2, 1)
        return error

    error = use(server, ask, max_retries=2)
    assert error.reason == REASON.get(behaviour.get("status", 0), "unreachable")
    assert len(server.calls()) == 3


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("behaviour", [*FOR_GOOD, {"kind": "shape"}], ids=_name)
def test_lasting_faults_are_not_tried_again(server: Server, behaviour: dict[str, Any], streamed: bool) -> None:
    """A refusal, or an answer that is no completion, ends the call at the first attempt."""
    server.script(default=behaviour)
    error = use(server, lambda client: failed(listen(client) if streamed else client.complete(QUESTION, 50)))
    assert error.reason == ("refused" if "status" in behaviour else "bad_answer")
    assert not error.passing
    assert len(server.calls()) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_an_upstream_that_hangs_times_out(server: Server, streamed: bool) -> None:
    """An attempt ends after timeout_s and is tried again; the upstream sees that the client hung up."""
    server.script({"kind": "hang"})

    async def ask(client: Upstream) -> Generation:
        return await (listen(client) if streamed else client.complete(QUESTION, 50))

    assert use(server, ask, timeout_s=2.0).text
    wait_until(lambda: server.in_flight() == 0)
    outcomes = [call["outcome"] for call in server.calls()]
    assert (outcomes[0], outcomes[-1]) == ("hung up", "answered")


def test_an_upstream_that_trickles_times_out(server: Server) -> None:
    """The time limit is on the whole attempt: tokens that keep coming do not put it off."""
    server.script({"kind": "ok", "token_s": 0.1, "text": "word " * 200})
    error = use(server, lambda client: failed(listen(client)), timeout_s=1.0)
    assert error.reason == "timeout"


@pytest.mark.slow
def test_a_call_keeps_to_its_own_time(server: Server) -> None:
    """The caller's limit covers hanging, waiting for a slot and waiting to try again; what cannot be in time is not begun."""
    server.script({"kind": "hang"})

    async def ask(client: Upstream) -> None:
        hanging = asyncio.create_task(failed(client.complete(QUESTION, 5, timeout_s=4.0)))
        await asyncio.to_thread(wait_until, lambda: server.in_flight() == 1)
        assert (await failed(client.complete(QUESTION, 5, timeout_s=0.1))).reason == "own_limit"  # no slot came free
        assert (await hanging).reason == "timeout"
        server.script({"kind": "status", "status": 429, "retry_after": "30"})
        error = await failed(client.complete(QUESTION, 5, timeout_s=20.0))
        assert (error.reason, error.retry_after_s) == ("rate_limited", 30.0)

    use(server, ask, concurrency=1)
    assert [call["kind"] for call in server.calls()] == ["hang", "status"]


def test_retry_after_is_waited_for(server: Server) -> None:
    """The next attempt comes no earlier than the upstream asked for, in seconds or as a date."""
    server.script({"kind": "status", "status": 429, "retry_after": "0.4"})
    use(server, lambda client: client.complete(QUESTION, 5))
    first, second = (call["at_s"] for call in server.calls())
    assert second - first >= 0.4

    server.reset()
    date_s, to_monotonic_s = int(time.time()) + 3, time.monotonic() - time.time()
    server.script({"kind": "status", "status": 429, "retry_after": formatdate(date_s, usegmt=True)})
    use(server, lambda client: client.complete(QUESTION, 5))
    assert server.calls()[1]["at_s"] >= date_s + to_monotonic_s - 0.05  # the two clocks are not read at one moment


def test_the_longest_retry_after_is_given_up(server: Server) -> None:
    """Nobody waits an hour: the caller learns at once what the upstream asked for."""
    server.script({"kind": "status", "status": 503, "retry_after": "3600"})
    error = use(server, lambda client: failed(client.complete(QUESTION, 5)))
    assert (error.reason, error.retry_after_s) == ("server_error", 3600.0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 90.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds or an HTTP date count; nonsense does not."""
    assert retry_after_s(headers, now_s=10.0) == seconds


def test_backoff_doubles_with_full_jitter(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """The waits are random between 0 and a bound that doubles up to its limit, and each is in the log with its reason."""
    server.script(default={"kind": "status", "status": 500})
    waits: list[list[float]] = []

    async def ask(client: Upstream) -> None:
        for _ in range(12):
            caplog.clear()
            await failed(client.complete(QUESTION, 5))
            lines = [record.getMessage() for record in caplog.records if "retry" in record.getMessage()]
            assert all("server_error: status 500" in line for line in lines)
            waits.append([float(found[1]) for line in lines if (found := re.search(r"in ([\d.]+) s", line))])

    with caplog.at_level(logging.INFO, "serve.cloud"):
        use(server, ask, max_retries=4, first_backoff_s=0.02, max_backoff_s=0.1)
    columns = list(zip(*waits, strict=True))
    for column, bound_s in zip(columns, (0.02, 0.04, 0.08, 0.1), strict=True):
        assert max(column) <= bound_s
        assert max(column) > 0.25 * bound_s
        assert min(column) < 0.75 * bound_s


def test_a_storm_of_429_loses_no_call(server: Server) -> None:
    """Thirty calls into a storm are all answered once it is over, and none is counted twice."""
    server.script({"kind": "status", "status": 429, "retry_after": "0.05", "times": 60})

    async def ask(client: Upstream) -> None:
        answers = await asyncio.gather(*(client.complete(QUESTION, 5) for _ in range(30)))
        assert len(answers) == 30
        stats = client.stats()
        assert (stats.answered, stats.failed, stats.retried, stats.completion_tokens) == (30, 0, 60, 150)

    use(server, ask, max_retries=60, concurrency=8)


@pytest.mark.slow
def test_calls_survive_kill_minus_nine_of_the_upstream() -> None:
    """Calls in flight when the upstream is killed fail over to its successor on the same port; without one they end as unreachable."""
    with start_upstream() as server:
        server.script(default={"kind": "ok", "delay_s": 0.3})

        async def ask(client: Upstream) -> None:
            calls = [asyncio.create_task(client.complete(QUESTION, 5)) for _ in range(12)]
            await asyncio.to_thread(wait_until, lambda: server.in_flight() == 4)
            server.kill()
            error = await failed(client.complete(QUESTION, 5, timeout_s=0.3))
            assert error.reason in ("unreachable", "timeout", "own_limit")  # the others may hold all slots
            await asyncio.to_thread(server.restart)
            answers = await asyncio.gather(*calls)
            assert [answer.text for answer in answers] == ["You said: one two three"] * 12
            assert (client.stats().answered, client.stats().completion_tokens) == (12, 60)

        use(server, ask, concurrency=4, max_retries=100, max_backoff_s=0.5)
        server.kill()
        error = use(server, lambda client: failed(client.complete(QUESTION, 5)), max_retries=1)
        assert error.reason == "unreachable"


def test_money_a_fault_may_have_cost_stays_counted(server: Server) -> None:
    """Refusals cost nothing; an answer that broke off may be billed, so its worst case stays on the account."""

    async def ask(client: Upstream) -> None:
        server.script({"kind": "status", "status": 500}, {"kind": "status", "status": 400})
        await failed(client.complete(QUESTION, 50))
        assert (await client.budget.spending()).total_usd == 0.0
        server.script({"kind": "drop"}, {"kind": "ok"})
        await client.complete(QUESTION, 50)
        spending = await client.budget.spending()
        assert spending.confirmed_usd == pytest.approx(7 * 0.001 + 8 * 0.004)
        assert spending.unconfirmed_usd >= client.spec.usd(7, 50)
        assert spending.reserved_usd == 0.0

    use(server, ask, **PRICED)


def test_errors_survive_the_way_back_from_a_worker() -> None:
    """Every reason keeps its fields through pickling, which is how they leave another process."""
    for error in (*(UpstreamError(reason, "why", 1.5) for reason in REASONS), BudgetExceeded("too much")):
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 - written on this line
        assert type(again) is type(error)
        assert (again.reason, again.problem, again.retry_after_s) == (error.reason, error.problem, error.retry_after_s)
        assert str(again) == f"{error.reason}: {error.problem}"
