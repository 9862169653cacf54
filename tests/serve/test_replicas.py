"""What a replica does with calls, without Ray around it: a real engine with a real (tiny) model, a real upstream."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from serve.cloud import UpstreamSpec
from serve.deployments import TierDeployment
from serve.generation import Generation, ModelSpec
from serve.replicas.asking import Ask
from serve.replicas.replica import START_MARK, CloudProxy, EdgeSLM, start_error
from serve.slm import CausalLM
from tests.serve.ray_cluster import endless_model
from tests.serve.tiny_models import tiny_model
from tests.serve.upstream import start_upstream
from workloads.errors import InputError, ModelUnavailable
from workloads.task import Message

pytestmark = pytest.mark.slow  # loading a model library takes seconds

PATIENCE_S = 240.0  # for what must happen: machines are shared and slow, so this says nothing about speed
ENDLESS = 1500  # tokens: seconds of work for a model that hardly ever ends its turn


def ask(text, max_tokens=12, timeout_s=PATIENCE_S):
    """One call as a client would send it."""
    return Ask((Message("user", text),), max_tokens, None, timeout_s)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose answers mostly go on until their limit, so that calls last as long as a test wants."""
    return tiny_model(tmp_path_factory.mktemp("models") / "endless", end_share=0.0, context_tokens=2048)


@pytest.fixture
def spec(folder):
    """The model, on one thread."""
    return ModelSpec(str(folder), threads=1)


async def ended(replica) -> tuple[int, int]:
    """(waiting, active) calls once the engine had a step to let go of cancelled ones."""
    until_s = asyncio.get_running_loop().time() + PATIENCE_S
    while replica._model.load() != (0, 0) and asyncio.get_running_loop().time() < until_s:
        await asyncio.sleep(0.05)
    return replica._model.load()


def on_edge(spec, work, **fields):
    """Run `work(replica)` on a fresh edge replica and stop it as Serve would."""

    async def run():
        replica = EdgeSLM(TierDeployment("edge", "edge", spec, **fields), "app")
        try:
            return await work(replica)
        finally:
            replica.__del__()

    return asyncio.run(run())


def test_answers_are_those_of_the_model(spec) -> None:
    """One call, many calls and a stream give what the model gives alone, and the totals count each once."""
    asks = [ask(f"question {i}") for i in range(5)]
    direct = CausalLM(spec).generate([a.messages for a in asks], 12)

    async def work(replica):
        one = await replica.complete(asks[0])
        many = await replica.complete_many(asks)
        pieces = [item async for item in replica.stream(asks[0])]
        return one, many, pieces, replica._meter.totals

    one, many, pieces, totals = on_edge(spec, work, max_batch=3)
    assert [answer.text for answer in many] == [answer.text for answer in direct]
    assert one.text == direct[0].text
    assert one.completion_tokens == direct[0].completion_tokens
    assert one.mean_logprob == pytest.approx(direct[0].mean_logprob, abs=1e-4)
    assert "".join(pieces[:-1]) == pieces[-1].text == one.text
    assert len(pieces) > 2
    answers = [one, *many, pieces[-1]]
    assert totals == (7, 0, sum(a.prompt_tokens for a in answers), sum(a.completion_tokens for a in answers))


def test_a_call_that_takes_too_long_ends_with_its_reason_and_frees_its_slot(tmp_path) -> None:
    """Also as a stream, after its first pieces; the next call is answered."""

    async def work(replica):
        late = await replica.complete(ask("slow", ENDLESS, timeout_s=0.2))
        assert await ended(replica) == (0, 0)
        streams: list[list[Any]] = []
        limit_s = 0.2
        while not streams or len(streams[-1]) < 2:  # until the time is enough for a piece, however slow this machine is
            limit_s *= 2
            streams.append([item async for item in replica.stream(ask("slow", ENDLESS, timeout_s=limit_s))])
            assert await ended(replica) == (0, 0)
        return late, streams, await replica.complete(ask("quick")), replica._meter.totals[:2]

    spec = ModelSpec(str(endless_model(tmp_path)), threads=1)
    late, streams, quick, totals = on_edge(spec, work, max_batch=1)
    assert isinstance(late, ModelUnavailable)
    assert late.reason == "timeout"
    assert "edge" in str(late)
    assert isinstance(streams[-1][0], str)
    assert {items[-1].reason for items in streams} == {"timeout"}
    assert isinstance(quick, Generation)
    assert totals == (1, 1 + len(streams))


def test_a_caller_that_goes_away_frees_its_slot(spec) -> None:
    """Cancelling a call, or hanging up on a stream, lets the next one in."""

    async def work(replica):
        task = asyncio.create_task(replica.complete(ask("left alone", ENDLESS)))
        while replica._model.load() != (0, 1):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await ended(replica) == (0, 0)
        async with aclosing(replica.stream(ask("left alone", ENDLESS))) as items:
            await anext(items)
        assert await ended(replica) == (0, 0)
        return await replica.complete(ask("quick"))

    assert isinstance(on_edge(spec, work, max_batch=1), Generation)


def test_what_a_model_cannot_answer_has_its_reason(spec) -> None:
    """A prompt without room in the context fails alone, beside calls that are answered."""

    async def work(replica):
        return await replica.complete_many([ask("x" * 3000), ask("short")])

    too_long, short = on_edge(spec, work)
    assert too_long.reason == "prompt-too-long"
    assert "2048" in too_long.detail
    assert isinstance(short, Generation)


def test_a_stopped_replica_is_unhealthy_and_says_so(spec) -> None:
    """Serve's health check fails, and a call that still comes is told to go elsewhere."""

    async def work(replica):
        replica.check_health()
        replica._model.close()
        with pytest.raises(Exception, match="not healthy"):
            replica.check_health()
        return await replica.complete(ask("too late"))

    assert on_edge(spec, work).reason == "replica-died"


def test_a_model_that_cannot_be_loaded_is_named(tmp_path) -> None:
    """The constructor's InputError survives as text, which is all that Serve passes on, and names the tier."""
    tier = TierDeployment("edge", "edge", ModelSpec(str(tmp_path / "nothing-here")))
    with pytest.raises(RuntimeError) as failure:
        EdgeSLM(tier, "app")
    told = start_error(f"Traceback ...\nRuntimeError: {failure.value}\nRetrying")
    assert isinstance(told, InputError)
    assert told.place.startswith("tier 'edge': ")
    assert "nothing-here" in str(told)
    assert START_MARK not in str(told)
    assert start_error("RuntimeError: something else") is None


# ------------------------------------------------------------------------------------------------------- forwarding


def forwarding(url, work, **fields):
    """Run `work(replica)` on a proxy to the upstream at `url`."""
    spec = UpstreamSpec(url, "m", None, first_backoff_s=0.01, max_backoff_s=0.02, **fields)

    async def run():
        replica = CloudProxy(TierDeployment("cloud", "cloud", spec), "app")
        try:
            return await work(replica)
        finally:
            replica.__del__()
            await getattr(replica._model, "_closing")  # noqa: B009 - closing connections is the proxy's own affair

    return asyncio.run(run())


def test_a_proxy_forwards_calls_and_streams() -> None:
    """Text and usage are the upstream's, and a stream's pieces make up its text."""

    async def work(replica):
        return await replica.complete(ask("hello there")), [i async for i in replica.stream(ask("hello there"))]

    with start_upstream() as upstream:
        answer, items = forwarding(upstream.url, work)
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("You said: hello there", 2, 4)
    assert "".join(items[:-1]) == items[-1].text == answer.text


def test_the_limit_of_a_stream_does_not_strike_its_reader() -> None:
    """A reader busy with a piece when the time is over goes on; the stream then ends with its reason, and the next is whole."""

    async def work(replica):
        items: list[object] = []
        limit_s = 0.5
        while not items or not isinstance(
            items[0], str
        ):  # until the time is enough for a piece, however slow this machine is
            limit_s *= 2
            async with aclosing(replica.stream(ask("word " * 200, 300, limit_s))) as stream:
                items = [await anext(stream)]
                await asyncio.sleep(1.5 * limit_s)  # the limit strikes here
                items += [item async for item in stream]
        upstream.reset()
        return items, [item async for item in replica.stream(ask("hello"))], replica._meter.totals[0]

    with start_upstream() as upstream:
        upstream.script(default={"kind": "ok", "token_s": 0.5})
        items, whole, answered = forwarding(upstream.url, work)
    assert items[-1].reason == "timeout"
    assert all(isinstance(item, str) for item in items[:-1])
    assert whole[-1].text == "You said: hello"
    assert answered == 1


@pytest.mark.parametrize(
    ("behaviour", "reason", "retry_after_s"),
    [
        ({"kind": "status", "status": 429, "retry_after": "7"}, "rate-limited", 7.0),
        ({"kind": "status", "status": 401}, "refused", 0.0),
        ({"kind": "status", "status": 503}, "server-error", 0.0),
        ({"kind": "shape"}, "bad-answer", 0.0),
        ({"kind": "hang"}, "timeout", 0.0),
    ],
    ids=["429", "401", "503", "no completion", "hang"],
)
def test_an_upstreams_failures_have_their_reasons(behaviour, reason, retry_after_s) -> None:
    """Each is a value with the reason in the records' words; Retry-After is passed on."""

    async def work(replica):
        return await replica.complete(ask("hello", timeout_s=2.0)), replica._model.load(), replica._meter.totals[:2]

    with start_upstream() as upstream:
        upstream.script(default=behaviour)
        failure, load, totals = forwarding(upstream.url, work, max_retries=0)
    assert (failure.reason, failure.retry_after_s) == (reason, retry_after_s)
    assert (load, totals) == ((0, 0), (0, 1))


def test_an_upstream_that_is_gone_is_unreachable_and_its_proxy_healthy() -> None:
    """Starting the proxy anew would not bring the upstream back."""

    async def work(replica):
        upstream.kill()
        failure = await replica.complete(ask("hello"))
        replica.check_health()
        upstream.restart()
        return failure, await replica.complete(ask("hello"))

    with start_upstream() as upstream:
        failure, answer = forwarding(upstream.url, work, max_retries=1)
    assert failure.reason == "unreachable"
    assert answer.text == "You said: hello"


def test_every_call_of_a_chunk_has_its_reply(monkeypatch) -> None:
    """One that cannot even be written down, and one that something nobody thought of befalls, leave the others their answers."""

    async def work(replica):
        whole = replica._model._upstream.complete

        async def sometimes(messages, *rest):
            if messages[0].content == "strange":
                raise ZeroDivisionError("sk-secret")
            return await whole(messages, *rest)

        monkeypatch.setattr(replica._model._upstream, "complete", sometimes)
        return await replica.complete_many([ask("hello"), ask("none", max_tokens=0), ask("strange")])

    with start_upstream() as upstream:
        answer, impossible, strange = forwarding(upstream.url, work)
    assert answer.text == "You said: hello"
    assert (impossible.reason, strange.reason) == ("refused", "bad-answer")
    assert "ZeroDivisionError" in str(strange)
    assert "sk-secret" not in str(strange)


def test_what_an_upstream_costs_is_told() -> None:
    """A proxy's counts hold the dollars it knows, the most that the others may be, and its further attempts."""

    async def work(replica):
        upstream.script({"kind": "status", "status": 503}, {"kind": "ok"}, {"kind": "ok", "usage": False})
        await replica.complete(ask("two words"))
        await replica.complete(ask("two words"))
        return replica._model.spent()

    with start_upstream() as upstream:
        retried, confirmed_usd, unconfirmed_usd = forwarding(
            upstream.url, work, input_usd_per_mtok=1e6, output_usd_per_mtok=1e6
        )
    assert (retried, confirmed_usd) == (1, 2 + 4)
    assert unconfirmed_usd >= 12 + 9  # its limit, and a token for every byte of the prompt


def test_an_unset_key_is_said_before_the_first_call(monkeypatch) -> None:
    """The message names the variable."""
    monkeypatch.delenv("ISTHMUS_TEST_UNSET_KEY", raising=False)
    spec = UpstreamSpec("http://127.0.0.1:9/v1", "m", "ISTHMUS_TEST_UNSET_KEY")
    with pytest.raises(RuntimeError) as failure:
        CloudProxy(TierDeployment("cloud", "cloud", spec), "app")
    assert "ISTHMUS_TEST_UNSET_KEY" in str(start_error(str(failure.value)))
