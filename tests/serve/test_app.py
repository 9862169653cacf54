"""Tiers on Ray Serve: answers, time limits, cancellation, streams, metrics and errors, on a real cluster of several nodes."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from operator import itemgetter
from threading import Event

import pytest

from serve.app import deployed, undeploy
from serve.backend import RayServeBackend
from serve.deployments import Autoscaling
from serve.generation import ModelSpec
from serve.slm import CausalLM
from tests.serve.ray_cluster import PATIENCE_S, endless_model, hosting, load_of, question, replicas_of, until
from workloads.agent import FRAMING_BYTES
from workloads.errors import InputError, ModelUnavailable

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

LONG = 1500
"""Tokens of an answer that takes seconds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose answers have as many tokens as asked for."""
    return endless_model(tmp_path_factory.mktemp("models") / "endless")


@pytest.fixture(scope="module")
def backend(cluster, folder):
    """Two edge replicas and a cloud replica of the model, under the names small and large."""
    tiers = {
        "small": hosting("edge", "edge", folder, replicas=2, max_batch=4),
        "large": hosting("cloud", "cloud", folder, max_batch=4),
    }
    with deployed(tiers, app_name="app", timeout_s=PATIENCE_S) as clients, RayServeBackend(clients) as made:
        yield made


def test_answers_are_those_of_the_model_and_live(backend, folder) -> None:
    """Every field of a completion is what the model gives in one process; the two tiers agree, one by one or in bulk."""
    calls = [question(f"question {i}") for i in range(20)]
    direct = CausalLM(ModelSpec(str(folder), threads=1)).generate([call.messages for call in calls], 12)
    handles = [backend.submit(call, "small") for call in calls]
    small = [handle.result() for handle in handles]
    large = [handle.result() for handle in backend.submit_many([(call, "large") for call in calls])]
    for own, answer in zip(direct, small, strict=True):
        size = FRAMING_BYTES + len(own.text.encode())
        assert answer[:6] == ("small", own.text, own.prompt_tokens, own.completion_tokens, size, 0)
        assert answer.mean_logprob == pytest.approx(own.mean_logprob, abs=1e-4)
        assert answer.prefill_s > 0
        assert answer.decode_s > 0
        assert (answer.finish_reason, answer.provenance) == ("length", "live")
    assert [answer.text for answer in large] == [answer.text for answer in small]
    assert {answer.model for answer in large} == {"large"}


def test_submitting_does_not_wait_and_an_answer_stays(backend) -> None:
    """Many calls are under way while the first is not answered yet; asked again, a handle gives the same answer."""
    handles = [backend.submit(question(f"long {i}", LONG), "large") for i in range(5)]
    until(lambda: load_of(backend, "large") == (1, 4), "a full batch and a call that waits")
    answers = [handle.result() for handle in handles]
    assert {answer.completion_tokens for answer in answers} == {LONG}
    assert [handle.result() for handle in handles] == answers
    assert load_of(backend, "large") == (0, 0)


def test_many_calls_go_to_the_models_they_name(backend) -> None:
    """Handles come back in the order of the calls, however they travelled; a single failure fails one call."""
    calls = [(question(f"question {i}", 1 + i % 7), ("small", "large")[i % 2]) for i in range(30)]
    calls[11] = (question("x" * 3000), "large")
    handles = backend.submit_many(calls)
    with pytest.raises(ModelUnavailable, match="prompt-too-long"):
        handles[11].result()
    for number, ((call, model), handle) in enumerate(zip(calls, handles, strict=True)):
        if number != 11:
            assert (handle.result().model, handle.result().completion_tokens) == (model, call.max_tokens)


def test_a_model_that_is_not_deployed_is_named(backend) -> None:
    """The message knows what there is."""
    with pytest.raises(InputError, match=r"'smal'.*Did you mean 'small'"):
        backend.submit(question("hello"), "smal")
    with pytest.raises(InputError, match="'medium'"):
        backend.submit_many([(question("hello"), "medium")])


def test_replicas_are_where_their_tier_says(cluster, backend) -> None:
    """Statistics name node and process of each replica, and count calls that were answered."""
    import ray

    tier_of = {row["NodeID"]: row["Labels"].get("isthmus-tier") for row in ray.nodes()}
    stats = backend.stats()
    assert [tier_of[s.node_id] for s in stats["small"]] == ["edge", "edge"]
    assert [tier_of[s.node_id] for s in stats["large"]] == ["cloud"]
    assert len({s.pid for tier in stats.values() for s in tier}) == 3
    before = sum(s.answered for s in stats["small"])
    backend.submit(question("one more"), "small").result()
    assert sum(s.answered for s in backend.stats()["small"]) == before + 1


def test_cancelling_frees_the_slot(backend) -> None:
    """A call given up no longer runs, and says so when asked."""
    handles = [backend.submit(question(f"given up {i}", LONG), "large") for i in range(5)]
    until(lambda: load_of(backend, "large") == (1, 4), "a full batch and a call that waits")
    for handle in handles:
        handle.cancel()
    until(lambda: load_of(backend, "large") == (0, 0), "no call left")
    with pytest.raises(ModelUnavailable, match="cancelled"):
        handles[0].result()


def test_a_call_has_its_time_limit(backend) -> None:
    """However long an answer would be; the slot is freed and the next call is answered."""
    pending = backend.client("large").start(question("slow").messages, LONG, None, timeout_s=0.3)
    assert pending.reply().reason == "timeout"
    until(lambda: load_of(backend, "large") == (0, 0), "no call left")
    assert backend.submit(question("quick"), "large").result().completion_tokens == 12


def test_streams_come_in_pieces_and_end_early(backend) -> None:
    """The pieces make up the text of the plain answer; whoever hangs up frees the slot; cancelling a plain call does too."""
    client, messages = backend.client("large"), question("tell me").messages
    plain = backend.submit(question("tell me", 40), "large").result()

    async def work():
        async with aclosing(client.stream(messages, 40, None, PATIENCE_S)) as items:
            whole = [item async for item in items]
        async with aclosing(client.stream(messages, LONG, None, PATIENCE_S)) as items:
            await anext(items)
        with pytest.raises(ModelUnavailable, match="timeout"):
            async for _ in client.stream(messages, LONG, None, 0.3):
                pass
        task = asyncio.create_task(client.generate(messages, LONG, None, PATIENCE_S))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return whole, await client.generate(messages, 40, None, PATIENCE_S), await client.health()

    whole, answer, health = asyncio.run(work())
    assert "".join(whole[:-1]) == whole[-1].text == answer.text == plain.text
    assert len(whole) > 3
    assert health == ""
    until(lambda: load_of(backend, "large") == (0, 0), "no call left")


def test_metrics_are_exported(backend) -> None:
    """Counters, histograms and gauges of both tiers are on the nodes' metrics ports."""
    import ray

    backend.submit(question("count me"), "small").result()
    backend.submit(question("count me"), "large").result()

    def exported():
        told = ""
        for row in filter(itemgetter("Alive"), ray.nodes()):
            url = f"http://{row['NodeManagerAddress']}:{row['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                told += answer.read().decode()
        return told

    def all_there():
        told = exported()
        return all(
            re.search(rf"^ray_isthmus_{name}{{[^}}]*tier=\"{tier}\"[^}}]*}} [1-9.]", told, re.MULTILINE)
            for tier in ("edge", "cloud")
            for name in (
                "requests_total", "prompt_tokens_total", "completion_tokens_total", "latency_seconds_count",
                "prefill_seconds_count", "decode_seconds_count",
            )
        ) and all(f"ray_isthmus_{name}{{" in told for name in ("queued", "active"))  # fmt: skip

    until(all_there, "metrics of both tiers")


def test_a_full_queue_refuses_at_once(cluster, folder) -> None:
    """Beyond the calls that may wait, a call fails as overloaded; the others are answered."""
    tiers = {"busy": hosting("busy", "cloud", folder, max_batch=1, max_queued=2)}
    with deployed(tiers, app_name="queue", timeout_s=PATIENCE_S) as clients, RayServeBackend(clients) as backend:
        handles = [backend.submit(question(f"long {i}", LONG), "busy") for i in range(2)]
        until(lambda: load_of(backend, "busy") == (1, 1), "a call that is answered and one that waits behind it")
        handles += [backend.submit(question(f"long {i}", LONG), "busy") for i in range(2, 30)]
        ended: list[int | str] = []
        for handle in handles:
            try:
                ended.append(handle.result().completion_tokens)
            except ModelUnavailable as failure:
                ended.append(failure.reason)
        assert ended.count(LONG) + ended.count("overloaded") == 30
        assert ended[:2] == [LONG, LONG]
        assert ended.count(LONG) >= 2 + 2  # Serve keeps the first two of a burst
        assert ended.count("overloaded") >= 30 - 2 - 2 * tiers["busy"].max_ongoing


def test_a_tier_that_is_taken_down_finishes_its_calls(cluster, folder) -> None:
    """Graceful shutdown: what had begun is answered, and the application is gone afterwards."""
    from ray import serve

    tiers = {"leaving": hosting("leaving", "cloud", folder, graceful_shutdown_s=PATIENCE_S)}
    with deployed(tiers, app_name="drain", timeout_s=PATIENCE_S) as clients:
        backend = RayServeBackend(clients)
        handles = [backend.submit(question(f"long {i}", LONG), "leaving") for i in range(6)]
        until(lambda: load_of(backend, "leaving")[1] == 6, "all calls begun")
        undeploy(tiers, app_name="drain")
        assert [handle.result().completion_tokens for handle in handles] == [LONG] * 6
        assert "drain.leaving" not in serve.status().applications
        assert backend.client("leaving").app == "drain.leaving"


def test_load_brings_more_replicas(cluster, folder) -> None:
    """Autoscaling starts a second replica when more calls wait than one is meant for."""
    scaling = Autoscaling(1, 2, target_ongoing=1.0, upscale_delay_s=0.1)
    tiers = {"growing": hosting("growing", "cloud", folder, replicas=scaling, max_batch=4, num_cpus=0.25)}
    with deployed(tiers, app_name="scale", timeout_s=PATIENCE_S) as clients, RayServeBackend(clients) as backend:
        assert len(backend.stats()["growing"]) == 1
        grown = Event()

        def call_after_call(caller: int) -> list[int]:
            lengths = []
            while not grown.is_set():
                answer = backend.submit(question(f"caller {caller}", LONG), "growing").result()
                lengths.append(answer.completion_tokens)
            return lengths

        with ThreadPoolExecutor(4) as pool:
            callers = [pool.submit(call_after_call, caller) for caller in range(4)]
            try:
                until(lambda: len(replicas_of(backend, "growing")) == 2, "a second replica")
            finally:
                grown.set()
            assert {length for caller in callers for length in caller.result()} == {LONG}
