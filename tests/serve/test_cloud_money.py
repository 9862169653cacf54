"""The hard limit on dollars, the key that nobody may see, and specs that cannot be."""

from __future__ import annotations

import asyncio
import logging
import pickle
import random
import traceback
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.cloud import Upstream, UpstreamSpec
from serve.upstream.errors import BudgetExceeded, UpstreamError
from serve.upstream.limits import Budget
from tests.serve.upstream import Upstream as Server
from tests.serve.upstream import start_upstream
from tests.serve.upstream_calls import PRICED, QUESTION, failed, use
from workloads.errors import InputError
from workloads.task import Message

KEY = "sk-0123456789abcdefSECRET"


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    """One upstream process for all tests here."""
    with start_upstream() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    """The upstream with nothing scripted and no calls remembered."""
    running.reset()
    return running


def test_a_call_that_could_pass_the_limit_is_not_sent(server: Server) -> None:
    """The worst case counts before the call, the true cost after it, and a refusal names the numbers."""

    async def ask(client: Upstream) -> None:
        await client.complete(QUESTION, 50)
        spent_usd = 7 * 0.001 + 8 * 0.004
        assert (await client.budget.spending()).total_usd == pytest.approx(spent_usd)
        error = await failed(client.complete(QUESTION, 90))
        assert isinstance(error, BudgetExceeded)
        assert error.reason == "budget"
        assert "of 0.4 USD, 0.039000 are spent" in str(error)
        await client.complete(QUESTION, 50)  # a smaller one still fits

    use(server, ask, max_usd=0.4, **PRICED)
    assert len(server.calls()) == 2


def test_a_prompt_of_many_tokens_in_few_bytes_stays_within_the_limit(server: Server) -> None:
    """The worst case of a prompt nobody has counted is a token a byte, not the usual four bytes a token."""
    letters = (Message("user", "a " * 50),)
    error = use(server, lambda client: failed(client.complete(letters, 5)), max_usd=0.06, **PRICED)
    assert error.reason == "budget"  # it would have cost 0.07; by the usual estimate 0.045
    assert server.calls() == []


def test_a_cache_that_costs_more_than_reading_is_the_worst_case(server: Server) -> None:
    """Whichever of its prices a prompt is charged at, the limit holds."""
    prices = PRICED | {"cached_input_usd_per_mtok": 5000.0}
    error = use(server, lambda client: failed(client.complete(QUESTION, 5)), max_usd=0.3, **prices)
    assert error.reason == "budget"  # 82 tokens at most: 0.082 read, 0.41 cached
    assert server.calls() == []


@pytest.mark.parametrize("seed", range(3))
def test_fifty_calls_at_once_never_pass_the_limit(server: Server, seed: int) -> None:
    """Whatever happens to fifty calls at once, all that the upstream may bill stays within the limit."""
    draw = random.Random(seed)
    kinds: list[dict[str, Any]] = [
        {"kind": "ok"}, {"kind": "ok", "delay_s": 0.05}, {"kind": "ok", "usage": False}, {"kind": "drop"},
        {"kind": "status", "status": 500}, {"kind": "status", "status": 429}, {"kind": "malformed"},
    ]  # fmt: skip
    server.script(*draw.choices(kinds, weights=[6, 6, 1, 2, 2, 2, 1], k=200))
    max_usd, seen_usd = 3.0, []

    async def ask(client: Upstream) -> None:
        async def watch() -> None:
            while True:
                seen_usd.append((await client.budget.spending()).total_usd)
                await asyncio.sleep(0.001)

        watching = asyncio.create_task(watch())
        calls = [client.complete(QUESTION, draw.choice((5, 20, 50))) for _ in range(50)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        watching.cancel()
        assert all(isinstance(end, UpstreamError) for end in ends if isinstance(end, BaseException))
        assert sum(isinstance(end, BudgetExceeded) for end in ends) > 0
        assert sum(not isinstance(end, BaseException) for end in ends) > 0
        last = await client.budget.spending()
        assert last.reserved_usd == 0.0
        seen_usd.append(last.total_usd)

    use(server, ask, max_usd=max_usd, concurrency=10, **PRICED)
    assert max(seen_usd) <= max_usd
    billed = [call for call in server.calls() if call["kind"] in ("ok", "drop", "malformed")]
    assert sum(7 * 0.001 + min(8, call["body"]["max_tokens"]) * 0.004 for call in billed) <= max_usd


@given(
    st.lists(st.tuples(st.floats(0.0, 2.0), st.one_of(st.none(), st.floats(0.0, 1.0)), st.integers(0, 5)), max_size=60),
    st.floats(0.1, 5.0),
)
def test_a_budget_holds_for_any_order_of_calls(calls: list[tuple[float, float | None, int]], max_usd: float) -> None:
    """Calls reserve, go on side by side and end at a part of their reservation or without a known cost: the limit holds."""

    async def spend() -> None:
        budget, open_calls = Budget(max_usd), list[tuple[int, float | None]]()
        for usd, part, closes in calls:
            total_usd = (await budget.spending()).total_usd
            try:
                open_calls.append((await budget.reserve(usd), None if part is None else part * usd))
            except BudgetExceeded:
                assert total_usd + usd > max_usd
            assert (await budget.spending()).total_usd <= max_usd * (1 + 1e-12)
            for _ in range(min(closes, len(open_calls))):
                await budget.settle(*open_calls.pop(0))
                assert (await budget.spending()).total_usd <= max_usd * (1 + 1e-12)
        while open_calls:
            await budget.settle(*open_calls.pop())
        assert (await budget.spending()).reserved_usd == 0.0

    asyncio.run(spend())


def test_cached_tokens_have_their_own_price() -> None:
    """Cached input costs what the spec says, and as much as other input where it says nothing."""
    spec = UpstreamSpec("http://localhost/v1", "m", input_usd_per_mtok=10.0, output_usd_per_mtok=40.0)
    assert spec.usd(1000, 100, cached_tokens=600) == pytest.approx(0.014)
    assert replace(spec, cached_input_usd_per_mtok=1.0).usd(1000, 100, 600) == pytest.approx(0.0086)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_key_reaches_the_upstream_and_nobody_else(
    server: Server, streamed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The key travels in its header only: no repr, log line, error, traceback or pickle holds it, even if the upstream echoes it."""
    monkeypatch.setenv("LARGE_KEY", f"  {KEY}\n")  # as a file with the key would have it
    caplog.set_level(logging.DEBUG)  # of every library
    echoes: list[dict[str, Any]] = [
        {"kind": "status", "status": 401, "message": f"Incorrect API key provided: {KEY}."},
        {"kind": "status", "status": 500, "message": f"{'x' * 290} {KEY}"},
        {"kind": "malformed"},
        {"kind": "shape"},
        {"kind": "drop", "after": 0},
        {"kind": "hang"},
    ]
    seen: list[str] = []

    async def ask(client: Upstream) -> None:
        async def one() -> object:
            if streamed:
                return [item async for item in client.stream(QUESTION, 5)][-1]
            return await client.complete(QUESTION, 5)

        seen.extend([repr(await one()), repr(client), str(client), repr(client.spec)])
        seen.append(repr(pickle.dumps(client.spec)))
        with pytest.raises(TypeError, match="send its UpstreamSpec"):
            pickle.dumps(client)
        for echo in echoes:
            server.script(echo)
            error = await failed(one())
            assert error.__cause__ is None
            assert error.__context__ is None  # the client library's error holds the request and its headers
            seen.extend([str(error), repr(error), repr(pickle.dumps(error)), repr(error.__dict__)])
            frames = traceback.TracebackException.from_exception(error, capture_locals=True).stack
            inside = [f"{frame} {frame.locals}" for frame in frames if "/tests/" not in frame.filename]
            assert inside
            seen.extend(inside)

    use(server, ask, api_key_env="LARGE_KEY", max_retries=0, timeout_s=3.0)
    assert {call["authorization"] for call in server.calls()} == {f"Bearer {KEY}"}
    seen.extend(record.getMessage() + repr(record.args) for record in caplog.records)
    assert len(caplog.records) > 20
    assert "[key]" in "".join(seen)
    assert KEY not in "".join(seen)


def test_an_upstream_without_a_key_gets_none_of_ours(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `api_key_env` None the client library must not fall back on the key it finds in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    use(server, lambda client: client.complete(QUESTION, 5), api_key_env=None)
    assert KEY not in str(server.calls())


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_an_unset_key_is_named_at_once(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable's name is in the message, before anything is sent."""
    monkeypatch.delenv("LARGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("LARGE_KEY", value)
    with pytest.raises(InputError, match=r"LARGE_KEY is not set.*Set LARGE_KEY"):
        Upstream(UpstreamSpec("http://localhost/v1", "m", api_key_env="LARGE_KEY"))


@pytest.mark.parametrize("value", [f"{KEY} {KEY}", f"{KEY}\nX-Other: 1", f"{KEY}é"])
def test_a_value_that_is_no_key_is_not_repeated(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key with a line end in it would end up in the HTTP library's error; it is refused first, unseen."""
    monkeypatch.setenv("LARGE_KEY", value)
    with pytest.raises(InputError, match="the value of LARGE_KEY is no key") as caught:
        Upstream(UpstreamSpec("http://localhost/v1", "m", api_key_env="LARGE_KEY"))
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "place", "problem"),
    [
        ({"base_url": "api.openai.com/v1"}, "base_url", "no plain http"),
        ({"base_url": "ftp://host/v1"}, "base_url", "no plain http"),
        ({"base_url": f"https://user:{KEY}@host/v1"}, "base_url", "no plain http"),
        ({"base_url": f"https://host/v1?key={KEY}"}, "base_url", "no plain http"),
        ({"base_url": "http://host:99999/v1"}, "base_url", "no address"),
        ({"base_url": 7}, "base_url", "no address"),
        ({"model": " "}, "model", "found ' '"),
        ({"api_key_env": KEY}, "api_key_env", "no name of a variable"),
        ({"timeout_s": 0}, "timeout_s", "found 0"),
        ({"timeout_s": None}, "timeout_s", "found None"),
        ({"first_backoff_s": float("nan")}, "first_backoff_s", "found nan"),
        ({"max_retries": -1}, "max_retries", "found -1"),
        ({"concurrency": 2.5}, "concurrency", "found 2.5"),
        ({"requests_per_min": "many"}, "requests_per_min", "found 'many'"),
        ({"max_usd": -1.0, **PRICED}, "max_usd", "found -1.0"),
        ({"max_usd": 1.0}, "max_usd", "without prices"),
        ({"max_usd": 1.0, "input_usd_per_mtok": 1.0}, "max_usd", "without prices"),
        ({"max_usd": 1.0, "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 0.0}, "max_usd", "would never be reached"),
        ({"max_usd": 1.0, "input_usd_per_mtok": 0.0, "output_usd_per_mtok": 1.0}, "max_usd", "input 0, output 1 USD"),
        ({"max_tokens": 0}, "max_tokens", "found 0"),
        ({"limit_field": "tokens"}, "limit_field", "found 'tokens'"),
        ({"tool_role": "function"}, "tool_role", "found 'function'"),
    ],
)
def test_a_spec_that_cannot_be_is_one_clear_message(fields: dict[str, Any], place: str, problem: str) -> None:
    """Field, what was found and what is allowed; and a key in the wrong place is not repeated."""
    with pytest.raises(InputError) as caught:
        UpstreamSpec(**({"base_url": "https://host/v1", "model": "m"} | fields))
    assert caught.value.place == f"upstream {place}"
    assert problem in caught.value.problem
    assert caught.value.remedy
    assert KEY not in str(caught.value)


def test_a_limit_below_one_token_is_refused(server: Server) -> None:
    """A negative limit on tokens would be a negative reservation."""

    async def ask(client: Upstream) -> None:
        with pytest.raises(InputError, match="max_tokens: found -5"):
            await client.complete(QUESTION, -5)

    use(server, ask, max_usd=1.0, **PRICED)
