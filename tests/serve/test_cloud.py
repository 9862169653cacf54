"""What an upstream is asked and what its answers become, over real HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from serve.cloud import Upstream
from serve.generation import Generation, Sampling
from tests.serve.upstream import Upstream as Server
from tests.serve.upstream import start_upstream
from tests.serve.upstream_calls import PRICED, QUESTION, failed, use, wait_until
from workloads.task import Message


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


def test_an_answer_carries_text_usage_and_log_probability(server: Server) -> None:
    """The text, the upstream's own token counts, the mean log-probability and the time arrive in one Generation."""
    server.script({"kind": "ok", "cached_tokens": 3, "logprob": -0.5})
    answer = use(server, lambda client: client.complete(QUESTION, 50), logprobs=True)
    assert (answer.text, answer.finish_reason) == ("You said: one two three four five six", "stop")
    assert (answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens) == (7, 3, 8)
    assert answer.mean_logprob == -0.5
    assert math.isnan(answer.prefill_s)
    assert answer.decode_s > 0
    assert answer.queue_s >= 0


def test_the_call_says_what_was_asked_for(server: Server) -> None:
    """Model, messages, limit and sampling reach the upstream; observations go as the user's and broken characters as '?'."""
    messages = (Message("user", "go"), Message("assistant", "find x"), Message("tool", "half \ud83d"))

    async def ask(client: Upstream) -> None:
        await client.complete(messages, 5, Sampling(0.7, 0.9, seed=11))
        await client.complete(messages, 5, Sampling())
        await client.complete(messages, 5)

    use(server, ask, limit_field="max_completion_tokens")
    drawn, greedy, free = (call["body"] for call in server.calls())
    assert [message["role"] for message in drawn["messages"]] == ["user", "assistant", "user"]
    assert drawn["messages"][2]["content"] == "half ?"
    assert (drawn["model"], drawn["max_completion_tokens"]) == ("large", 5)
    assert (drawn["temperature"], drawn["top_p"], drawn["seed"]) == (0.7, 0.9, 11)
    assert greedy["temperature"] == 0.0
    assert "temperature" not in free


def test_an_answer_cut_at_the_limit_says_so(server: Server) -> None:
    """`max_tokens` is the upstream's limit, and its finish_reason comes back."""
    answer = use(server, lambda client: client.complete(QUESTION, 3))
    assert (answer.text, answer.completion_tokens, answer.finish_reason) == ("You said: one", 3, "length")


def test_a_stream_gives_the_text_as_it_comes(server: Server) -> None:
    """The pieces are the answer's text, and the last item is the whole with the time to the first piece."""
    server.script({"kind": "ok", "delay_s": 0.1, "token_s": 0.05})

    async def listen(client: Upstream) -> list[str | Generation]:
        return [item async for item in client.stream(QUESTION, 50)]

    *pieces, whole = use(server, listen, logprobs=True)
    assert isinstance(whole, Generation)
    assert len(pieces) == 8
    assert "".join(map(str, pieces)) == whole.text == "You said: one two three four five six"
    assert (whole.prompt_tokens, whole.completion_tokens, whole.finish_reason) == (7, 8, "stop")
    assert whole.mean_logprob == -0.25
    assert whole.prefill_s >= 0.1
    assert whole.prefill_s + whole.decode_s >= 0.1 + 8 * 0.05
    assert whole.decode_s > 0


def test_a_whole_answer_can_be_streamed_underneath(server: Server) -> None:
    """With `stream` in the spec, `complete` measures the time to the first token, and tries again after a broken stream."""
    server.script({"kind": "drop", "after": 3}, {"kind": "ok", "delay_s": 0.1})
    answer = use(server, lambda client: client.complete(QUESTION, 50), stream=True)
    assert answer.text == "You said: one two three four five six"
    assert answer.prefill_s >= 0.1
    assert len(server.calls()) == 2


def test_a_stream_that_breaks_after_its_first_piece_is_not_repeated(server: Server) -> None:
    """What the caller has seen cannot be taken back, so the error ends the stream."""
    server.script({"kind": "drop", "after": 3})
    pieces: list[str | Generation] = []

    async def listen(client: Upstream) -> None:
        async for item in client.stream(QUESTION, 50):
            pieces.append(item)  # noqa: PERF401 - what came before the error must stay

    error = use(server, lambda client: failed(listen(client)))
    assert (error.reason, "".join(map(str, pieces))) == ("unreachable", "You said: one")
    assert len(server.calls()) == 1


def test_an_answer_without_usage_is_estimated_and_said_to_be(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Token counts come from the text, the counts and the log say so, and the cost counts as the worst case."""
    server.script(default={"kind": "ok", "usage": False})

    async def ask(client: Upstream) -> None:
        for _ in range(2):
            answer = await client.complete(QUESTION, 50)
            assert (answer.prompt_tokens, answer.completion_tokens) == (9, 10)  # 7 + 27 bytes and 37 bytes, by four
        spending = await client.budget.spending()
        assert (client.stats().answered, client.stats().estimated) == (2, 2)
        assert spending.confirmed_usd == 0.0
        assert spending.unconfirmed_usd > 2 * client.spec.usd(7, 50)

    with caplog.at_level(logging.WARNING, "serve.cloud"):
        use(server, ask, **PRICED)
    assert sum("reports no usage" in record.message for record in caplog.records) == 1


def test_calls_in_flight_never_pass_the_concurrency(server: Server) -> None:
    """The upstream sees as many calls at once as the spec allows, and no more."""
    server.script(default={"kind": "ok", "delay_s": 0.2})

    async def ask(client: Upstream) -> None:
        answers = await asyncio.gather(*(client.complete(QUESTION, 5) for _ in range(16)))
        assert max(answer.queue_s for answer in answers) >= 0.6  # the last four waited for three rounds

    use(server, ask, concurrency=4)
    assert server.max_in_flight() == 4


def test_connections_are_used_again(server: Server) -> None:
    """Calls one after another share one connection, calls side by side need no more than there are slots."""

    async def ask(client: Upstream) -> None:
        for _ in range(10):
            await client.complete(QUESTION, 5)
            async with aclosing(client.stream(QUESTION, 5)) as items:
                assert [item async for item in items]

    use(server, ask)
    assert len({call["connection"] for call in server.calls()}) == 1
    server.reset()

    async def ask_together(client: Upstream) -> None:
        await asyncio.gather(*(client.complete(QUESTION, 5) for _ in range(40)))

    use(server, ask_together, concurrency=5)
    assert len(server.calls()) == 40
    assert len({call["connection"] for call in server.calls()}) <= 5


def test_a_cancelled_call_frees_its_slot(server: Server) -> None:
    """After a cancellation the only slot is free, the upstream is hung up on, and what it may bill stays counted."""
    server.script({"kind": "hang"})

    async def ask(client: Upstream) -> None:
        hanging = asyncio.create_task(client.complete(QUESTION, 50))
        await asyncio.to_thread(wait_until, lambda: server.in_flight() == 1)
        waiting = asyncio.create_task(client.complete(QUESTION, 50))
        await asyncio.sleep(0.05)
        waiting.cancel()
        hanging.cancel()
        assert [type(end) for end in await asyncio.gather(waiting, hanging, return_exceptions=True)] == [
            asyncio.CancelledError,
            asyncio.CancelledError,
        ]
        spending = await client.budget.spending()
        assert spending.reserved_usd == 0.0
        assert (
            client.spec.usd(7, 50) < spending.unconfirmed_usd < 2 * client.spec.usd(7, 50)
        )  # of the one that was sent
        assert (await client.complete(QUESTION, 50)).text

    use(server, ask, concurrency=1, **PRICED)
    wait_until(lambda: server.in_flight() == 0)
    assert [call["outcome"] for call in server.calls()] == ["hung up", "answered"]


def test_closing_a_stream_early_hangs_up(server: Server) -> None:
    """A listener that goes away frees the slot at once and the upstream stops."""
    server.script({"kind": "ok", "token_s": 0.2, "text": "word " * 50})

    async def listen(client: Upstream) -> None:
        async with aclosing(client.stream(QUESTION, 100)) as items:
            assert await anext(items) == "word"
        assert (await client.complete(QUESTION, 5)).finish_reason == "length"

    use(server, listen, concurrency=1)
    wait_until(lambda: server.in_flight() == 0)
    assert [call["outcome"] for call in server.calls()] == ["hung up", "answered"]


def test_calls_above_the_rate_wait(server: Server) -> None:
    """With three requests a minute the fourth is not sent within its time, and ends with that reason."""

    async def ask(client: Upstream) -> None:
        for _ in range(3):
            await client.complete(QUESTION, 5)
        error = await failed(client.complete(QUESTION, 5, timeout_s=0.2))
        assert error.reason == "own_limit"
        assert error.retry_after_s is not None
        assert 30.0 < error.retry_after_s < 60.0

    use(server, ask, requests_per_min=3)
    assert len(server.calls()) == 3


def test_tokens_above_the_rate_wait(server: Server) -> None:
    """A call's tokens are taken by estimate and corrected by its usage: six calls of 15 tokens fit 100 a minute, not seven."""

    async def ask(client: Upstream) -> None:
        for _ in range(5):
            await client.complete(QUESTION, 20)
        assert (
            await failed(client.complete(QUESTION, 20, timeout_s=0.2))
        ).reason == "own_limit"  # 75 and 29 by estimate
        await client.complete(QUESTION, 10, timeout_s=20.0)  # 75 and 19

    use(server, ask, tokens_per_min=100)
    assert len(server.calls()) == 6


def test_a_call_without_time_for_an_answer_is_not_sent(server: Server) -> None:
    """What waits for a slot until half of its time is over is not sent, as its answer would be paid for and come too late."""
    server.script({"kind": "ok", "delay_s": 1.5})

    async def ask(client: Upstream) -> None:
        first = asyncio.create_task(client.complete(QUESTION, 5))
        await asyncio.to_thread(wait_until, lambda: server.in_flight() == 1)
        assert (await failed(client.complete(QUESTION, 5, timeout_s=2.0))).reason == "own_limit"
        assert not first.done()  # it gave up before the slot came free
        await first

    use(server, ask, concurrency=1)
    assert len(server.calls()) == 1


def test_a_failed_attempt_says_more_than_the_wait_for_another(server: Server) -> None:
    """A call that was sent and failed ends with that reason, even where its next attempt finds no place in time."""
    server.script({"kind": "status", "status": 503}, {"kind": "ok"})

    async def ask(client: Upstream) -> None:
        assert (await failed(client.complete(QUESTION, 5, timeout_s=1.0))).reason == "server_error"

    use(server, ask, requests_per_min=1)
    assert len(server.calls()) == 1


def test_importing_the_proxy_loads_no_client_library() -> None:
    """The client library, which takes a second to import, waits for the first Upstream."""
    code = "import sys, serve.cloud; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
