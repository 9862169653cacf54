"""Faults with real processes under a stream of calls: nothing is lost or answered twice, and the service recovers by itself.

Each test sends about 200 calls at a steady rate, breaks something on the way, and prints how long the service took to recover
(`pytest -rP` shows it).
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from serve.app import deployed
from serve.backend import RayServeBackend
from serve.cloud import UpstreamSpec
from serve.deployments import TierDeployment
from tests.serve.ray_cluster import (
    PATIENCE_S,
    CallStream,
    each_once,
    hosting,
    kill,
    question,
    reasons,
    recovered_s,
    replicas_of,
    until,
)
from tests.serve.tiny_models import tiny_model
from tests.serve.upstream import start_upstream
from workloads.errors import ModelUnavailable

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

COUNT = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model."""
    return tiny_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture
def edge(cluster, folder):
    """Two replicas of the model that fill an edge node each."""
    tiers = {
        "small": hosting(
            "edge", "edge", folder, replicas=2, num_cpus=3.0, request_timeout_s=60.0, health_check_period_s=1.0
        )
    }
    with deployed(tiers, app_name="faults", timeout_s=PATIENCE_S) as clients, RayServeBackend(clients) as backend:
        yield backend


def per_s(backend, model="small") -> float:
    """A rate that this machine, now, keeps up with: half of what a dozen calls show."""
    begun_s = time.monotonic()
    for number in range(12):
        backend.submit(question(f"warm {number}"), model).result()
    return min(20.0, 6.0 / (time.monotonic() - begun_s))


def report(what: str, ended, fault_s: float, capsys) -> None:
    """Print what became of the calls and how long it took, also where output is captured."""
    with capsys.disabled():
        print(f"\n{what}: {dict(reasons(ended))}, recovered in {recovered_s(ended, fault_s):.1f} s")  # noqa: T201


def test_a_killed_replica(edge, capsys) -> None:
    """Only calls in that replica fail, as replica-died; the others are answered, and a new replica takes its place."""
    victim = edge.stats()["small"][0]
    stream = CallStream(edge, "small", COUNT, per_s(edge))
    until(lambda: len(stream.ended) >= COUNT // 4, "a quarter of the calls")
    kill(victim)
    fault_s = stream.now()
    ended = stream.finish()
    report("replica killed", ended, fault_s, capsys)
    assert list(each_once(ended, COUNT)) == []
    assert set(reasons(ended)) <= {"ok", "replica-died"}
    assert reasons(ended)["ok"] >= COUNT - 20
    until(lambda: len(replicas_of(edge, "small")) == 2, "two replicas again")
    assert victim.pid not in {s.pid for s in edge.stats()["small"]}


def test_calls_of_a_killed_replica_are_sent_again_if_wanted(edge, cluster) -> None:
    """With retries, callers see no failure: neither single calls nor those that travel together."""
    backend = RayServeBackend({"small": edge.client("small")}, retries=3)
    handles = [backend.submit(question(f"question {i}", 200), "small") for i in range(16)]
    many = backend.submit_many([(question(f"question {i}", 200), "small") for i in range(64)])
    kill(edge.stats()["small"][0])
    answers = [handle.result() for handle in handles] + [handle.result() for handle in many]
    assert {answer.finish_reason for answer in answers} <= {"stop", "length"}
    assert len(answers) == 80
    until(lambda: len(replicas_of(edge, "small")) == 2, "two replicas again")


def test_a_killed_edge_node(edge, cluster, capsys) -> None:
    """The other node's replica carries on; when the node is back, so is its replica."""
    stream = CallStream(edge, "small", COUNT, per_s(edge))
    until(lambda: len(stream.ended) >= COUNT // 4, "a quarter of the calls")
    cluster.kill_node("edge-0")
    fault_s = stream.now()
    ended = stream.finish()
    report("one of two edge nodes killed", ended, fault_s, capsys)
    assert list(each_once(ended, COUNT)) == []
    assert set(reasons(ended)) <= {"ok", "replica-died", "timeout"}
    assert reasons(ended)["ok"] >= COUNT - 40
    cluster.start_node("edge-0")
    until(lambda: len(replicas_of(edge, "small")) == 2, "two replicas again")


def test_no_edge_node_left(cluster, folder, capsys) -> None:
    """Calls end in time instead of hanging, later ones without waiting; when a node is back the service is."""
    limit_s = 5.0
    tier = hosting(
        "edge", "edge", folder, replicas=2, num_cpus=3.0, request_timeout_s=limit_s, health_check_period_s=1.0
    )
    with (
        deployed({"small": tier}, app_name="none", timeout_s=PATIENCE_S) as clients,
        RayServeBackend(clients) as backend,
    ):

        def ask(number):
            begun_s = time.monotonic()
            try:
                backend.submit(question(f"question {number}"), "small").result()
            except ModelUnavailable as failure:
                return failure.reason, time.monotonic() - begun_s
            return "ok", time.monotonic() - begun_s

        until(lambda: ask(0)[0] == "ok", "an answer")
        for name in ("edge-0", "edge-1"):
            cluster.kill_node(name)
        fault_s = time.monotonic()
        until(lambda: not any(node.processes for node in cluster.nodes if node.tier == "edge"), "no process left there")
        with ThreadPoolExecutor(20) as pool:
            first = list(pool.map(ask, range(20)))
        until(lambda: ask(0)[0] == "unreachable", "calls are refused at once")
        refused = [ask(number) for number in range(20)]
        assert {reason for reason, _ in first} <= {"timeout", "replica-died", "unreachable"}
        assert max(seconds for _, seconds in first) < 60.0
        assert [reason for reason, _ in refused] == ["unreachable"] * 20
        assert sum(seconds for _, seconds in refused) < 20 * limit_s
        for name in ("edge-0", "edge-1"):
            cluster.start_node(name)
        back_s = time.monotonic()
        until(lambda: ask(0)[0] == "ok", "an answer")
        with capsys.disabled():
            print(  # noqa: T201
                f"\nboth edge nodes killed: answers {time.monotonic() - back_s:.1f} s after they were back, "
                f"{time.monotonic() - fault_s:.1f} s after the fault"
            )


# ------------------------------------------------------------------------------------------------------ the upstream


@contextmanager
def proxied(timeout_s: float):
    """(upstream, backend of a proxy that allows it `timeout_s` for an answer): two retries, short waits."""
    with start_upstream() as upstream:
        spec = UpstreamSpec(
            upstream.url, "m", None, timeout_s=timeout_s, max_retries=2, first_backoff_s=0.1, max_backoff_s=0.5
        )
        tier = TierDeployment("cloud", "cloud", spec, max_batch=32, num_cpus=0.25, request_timeout_s=6 * timeout_s)
        with (
            deployed({"api": tier}, app_name="proxied", timeout_s=PATIENCE_S) as clients,
            RayServeBackend(clients) as backend,
        ):
            yield upstream, backend


@pytest.fixture
def patient(cluster):
    """(upstream, backend of a proxy to it) with all the time an answer may need."""
    with proxied(60.0) as both:
        yield both


def test_a_killed_upstream(patient, capsys) -> None:
    """While it is away calls fail as unreachable; the proxy stays, and answers as soon as the upstream is back."""
    upstream, backend = patient
    proxy = backend.stats()["api"][0].pid
    stream = CallStream(backend, "api", COUNT, per_s(backend, "api"))
    until(lambda: len(stream.ended) >= COUNT // 4, "a quarter of the calls")
    upstream.kill()
    fault_s = stream.now()
    until(lambda: reasons(list(stream.ended)).keys() - {"ok"}, "calls that fail")
    upstream.restart()
    back_s = stream.now()
    ended = stream.finish()
    report(f"upstream killed, back after {back_s - fault_s:.1f} s", ended, back_s, capsys)
    assert list(each_once(ended, COUNT)) == []
    assert set(reasons(ended)) == {"ok", "unreachable"}
    assert ended[-1].answer is not None
    assert backend.stats()["api"][0].pid == proxy


def test_a_storm_of_429(patient, capsys) -> None:
    """Short ones are waited out as Retry-After asks; calls that meet them again and again fail as rate-limited, with the time."""
    upstream, backend = patient
    rate = per_s(backend, "api")
    before = len(upstream.calls())
    upstream.script({"kind": "status", "status": 429, "retry_after": "0.3", "times": COUNT})
    stream = CallStream(backend, "api", COUNT, rate)
    ended = stream.finish()
    report("storm of 200 times 429", ended, 0.0, capsys)
    assert list(each_once(ended, COUNT)) == []
    assert set(reasons(ended)) <= {"ok", "rate-limited"}
    assert all(e.failure.retry_after_s == pytest.approx(0.3) for e in ended if e.failure)
    assert ended[-1].answer is not None
    calls = upstream.calls()[before:]
    assert sum(call["kind"] == "ok" for call in calls) == reasons(ended)["ok"]


def test_a_slow_upstream(cluster, capsys) -> None:
    """A spell of answers that come too late: calls wait, are tried again, or fail as timeout; then all is as before."""
    with proxied(5.0) as (upstream, backend):
        rate = per_s(backend, "api")
        before = len(upstream.calls())
        upstream.script({"kind": "ok", "delay_s": 10.0, "times": 60})
        stream = CallStream(backend, "api", COUNT, rate)
        ended = stream.finish()
        report("60 answers after 10 s where 5 s are allowed", ended, 0.0, capsys)
        assert list(each_once(ended, COUNT)) == []
        assert set(reasons(ended)) <= {"ok", "timeout"}
        assert ended[-1].answer is not None
        assert ended[-1].ended_s - ended[-1].sent_s < 60.0
        answered = [call for call in upstream.calls()[before:] if call["outcome"] == "answered"]
        assert len(answered) >= reasons(ended)["ok"]
