"""The gateway on a real cluster: Ray Serve's proxy, ingress and engines, the scenario's policies, the official client."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from operator import itemgetter
from typing import Any, NamedTuple

import openai
import pytest

from serve.gateway.calls import GatewayOptions
from serve.gateway.run import check_port, started_gateway
from serve.nodes.local_cluster import LocalCluster
from sim.placing import PolicyPlacer
from tests.conftest import ROOT
from tests.helpers import load_text
from tests.serve.processes import ended
from tests.serve.ray_cluster import PATIENCE_S, endless_model, hosting, kill, until
from tests.serve.upstream import start_upstream
from workloads.errors import InputError
from workloads.placing import call_of
from workloads.task import Message

SCENARIO = """
name: gateway
workload: {tasks: {kind: modelled}, requests: 10}
tiers:
  edge: {role: slm, model: llama-3.2-3b-int4, model_name: small-model, device: jetson-orin-nx}
  cloud: {role: llm, model: gpt-4o, model_name: large-model, endpoint: gpt-4o-class}
links:
  - {between: [home, edge], link: wifi}
  - {between: [edge, cloud], link: wired}
policies: [all-slm, all-llm, {policy: random, p: [0.25, 0.5]}]
seeds: [3]
"""
SHORT: list[Any] = [{"role": "user", "content": "hi"}]


def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def port() -> int:
    """A free port."""
    return free_port()


class Running(NamedTuple):
    """A gateway on a cluster, and its placer on this side."""

    url: str
    placer: PolicyPlacer

    def client(self) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def gateway(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A tiny model at the edge and one in the cloud, and the gateway before them."""
    folder = tmp_path_factory.mktemp("gateway")
    loaded = load_text(folder, SCENARIO)
    placer = PolicyPlacer(loaded.variants[0].scenario, loaded.path)
    model = endless_model(folder / "endless")
    tiers = {"small-model": hosting("edge", "edge", model), "large-model": hosting("cloud", "cloud", model)}
    options = GatewayOptions(timeout_s=PATIENCE_S, max_body_bytes=100_000)
    with started_gateway(placer, tiers, "127.0.0.1", free_port(), options, 2 * PATIENCE_S) as url:
        yield Running(url, placer)


def counted(name: str, **labels: str) -> float:
    """The sum of a Prometheus counter over the nodes of the cluster, for series with these labels."""
    import ray

    total = 0.0
    for node in filter(itemgetter("Alive"), ray.nodes()):
        with urllib.request.urlopen(
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=PATIENCE_S
        ) as page:
            for line in page.read().decode().splitlines():
                if line.startswith(f"ray_{name}{{") and all(
                    f'{key}="{value}"' in line for key, value in labels.items()
                ):
                    total += float(line.rsplit(" ", 1)[1])
    return total


cluster_tests = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]


class TestOnACluster:
    """What runs on the one cluster of this file."""

    pytestmark = cluster_tests

    def test_answers(self, gateway: Running) -> None:
        """Every name is served; plain and streamed answers agree in text and usage and say where they come from."""
        with gateway.client() as client:
            assert [model.id for model in client.models.list()] == list(gateway.placer.names())
            for name, tier in (
                ("isthmus/all-slm", "edge"),
                ("isthmus/all-llm", "cloud"),
                ("small-model", "edge"),
                ("cloud", "cloud"),
            ):
                raw = client.chat.completions.with_raw_response.create(model=name, messages=SHORT, max_tokens=6)
                plain = raw.parse()
                assert raw.headers["x-isthmus-tier"] == tier
                assert len(raw.headers.get_list("x-request-id")) == 1
                assert float(raw.headers["x-isthmus-cost-usd"]) > 0
                options: Any = {"include_usage": True}
                chunks = list(
                    client.chat.completions.create(
                        model=name, messages=SHORT, max_tokens=6, stream=True, stream_options=options
                    )
                )
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
                assert text == plain.choices[0].message.content
                assert chunks[-1].usage is not None
                assert plain.usage is not None
                assert chunks[-1].usage.total_tokens == plain.usage.total_tokens == plain.usage.prompt_tokens + 6
                assert chunks[-1].model_extra is not None
                assert chunks[-1].model_extra["isthmus"]["tier"] == tier

    def test_placements_are_those_of_the_policy(self, gateway: Running) -> None:
        """The policy in the replica decides as the one that was sent there, by the request's number."""
        call = call_of((Message("user", "hi"),))
        with gateway.client() as client:
            seen = [
                client.chat.completions.with_raw_response.create(
                    model="isthmus/random@0.4",
                    messages=SHORT,
                    max_tokens=1,
                    extra_headers={"X-Isthmus-Request": str(number)},
                ).headers["x-isthmus-tier"]
                for number in range(12)
            ]
        assert seen == [gateway.placer.place("isthmus/random@0.4", number, call, {}).tier for number in range(12)]
        assert set(seen) == {"edge", "cloud"}

    def test_200_calls_at_once(self, gateway: Running) -> None:
        """Everyone is answered once, with usage totals that agree with Ray's metrics."""
        name = "isthmus/random@0.5"  # under which no other test calls

        async def all_calls() -> list[tuple[int, int]]:
            async with openai.AsyncOpenAI(
                base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=3 * PATIENCE_S
            ) as client:

                async def call(number: int) -> tuple[int, int]:
                    messages: list[Any] = [{"role": "user", "content": "x" * (1 + number % 9)}]
                    answer = await client.chat.completions.create(model=name, messages=messages, max_tokens=3)
                    assert answer.usage is not None
                    return answer.usage.prompt_tokens, answer.usage.completion_tokens

                return await asyncio.gather(*(call(number) for number in range(200)))

        used = asyncio.run(all_calls())
        assert {completion for _, completion in used} == {3}
        template_tokens = {prompt - number % 9 for number, (prompt, _) in enumerate(used)}
        assert len(template_tokens) == 1  # beside which a letter is a token
        totals = {"prompt": sum(prompt for prompt, _ in used), "completion": 600}

        def in_metrics() -> dict[str, float]:
            return {kind: counted("isthmus_gateway_tokens_total", kind=kind, model=name) for kind in totals}

        until(lambda: in_metrics() == totals, "the totals in the metrics")

    def test_a_client_that_hangs_up(self, gateway: Running) -> None:
        """Closing a stream cancels the generation in the engine, and the next call is served."""
        with gateway.client() as client:
            with client.chat.completions.create(model="edge", messages=SHORT, max_tokens=1900, stream=True) as stream:
                for _, _chunk in zip(range(3), stream, strict=False):
                    pass
            until(
                lambda: counted("isthmus_gateway_requests_total", status="499", tier="edge") == 1, "the gateway's count"
            )
            until(lambda: counted("isthmus_requests_total", status="cancelled", tier="edge") == 1, "the engine's count")
            assert client.chat.completions.create(model="edge", messages=SHORT, max_tokens=2).choices

    def test_bad_requests(self, gateway: Running) -> None:
        """Wrong names, oversized and malformed bodies come back through Serve's proxy as OpenAI's errors."""
        with gateway.client() as client:
            with pytest.raises(openai.NotFoundError, match=r"Did you mean 'isthmus/random@0\.5'"):
                client.chat.completions.create(model="isthmus/randon@0.5", messages=SHORT)
            with pytest.raises(openai.BadRequestError) as error:
                client.chat.completions.create(model="edge", messages=SHORT, n=3)
            assert error.value.param == "n"
            with pytest.raises(openai.APIStatusError) as large:
                client.chat.completions.create(model="edge", messages=[{"role": "user", "content": "x" * 500_000}])
            assert large.value.status_code == 413
            with pytest.raises(openai.APIStatusError) as long:
                client.chat.completions.create(model="edge", messages=[{"role": "user", "content": "x" * 5_000}])
            assert (long.value.status_code, long.value.code) == (400, "context_length_exceeded")

    def test_a_replica_that_dies(self, gateway: Running) -> None:
        """While the edge's only replica is killed and replaced every call is answered, some by the other tier; health recovers."""
        from ray import serve

        (app,) = [name for name in serve.status().applications if name.endswith(".edge")]
        stats = serve.get_app_handle(app).stats
        replica = stats.remote().result(timeout_s=PATIENCE_S)
        with gateway.client() as client:

            def tier() -> str:
                raw = client.chat.completions.with_raw_response.create(
                    model="isthmus/all-slm", messages=SHORT, max_tokens=30
                )
                return raw.headers["x-isthmus-tier"]

            assert [tier() for _ in range(3)] == ["edge"] * 3
            kill(replica)
            until(lambda: tier() == "edge", "answers of the edge")
        assert stats.remote().result(timeout_s=PATIENCE_S).pid != replica.pid

        def healthy() -> bool:
            try:
                with urllib.request.urlopen(f"{gateway.url}/healthz", timeout=PATIENCE_S) as page:  # noqa: S310 - our own gateway
                    return bool(page.status == 200)
            except urllib.error.HTTPError as error:
                error.close()
                return False

        until(healthy, "healthy again")


SERVING = """
import sys
from serve.deployments import TierDeployment
from serve.gateway.run import run_gateway
from serve.upstream.spec import UpstreamSpec
from tests.serve.gateway_server import WordPlacer

if __name__ == "__main__":
    spec = UpstreamSpec(sys.argv[1], "scripted", api_key_env=None)
    tiers = {name: TierDeployment(name, "cloud", spec, num_cpus=0.1) for name in ("edge", "cloud")}
    ready = lambda url: print(f"ready {url}", flush=True)
    run_gateway(WordPlacer(), tiers, port=int(sys.argv[2]), local_nodes=(0, 1), start_timeout_s=600, on_ready=ready)
    print("ended", flush=True)
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_serving_until_stopped(port: int, ending: signal.Signals) -> None:
    """`run_gateway` serves until Ctrl-C or SIGTERM, says nothing itself, and leaves the port free."""
    with start_upstream() as upstream:
        command = [sys.executable, "-c", SERVING, upstream.url, str(port)]
        with ended(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"ready http://127.0.0.1:{port}\n"
            with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=PATIENCE_S) as client:
                assert (
                    client.chat.completions.create(model="edge", messages=SHORT).choices[0].message.content
                    == "You said: hi"
                )
            process.send_signal(ending)
            out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, out, err) == (0, "ended\n", "")
    check_port("127.0.0.1", port)


def test_a_taken_port(port: int) -> None:
    """A port that somebody listens on, and an address that is not ours, are one clear message before anything starts."""
    check_port("127.0.0.1", port)
    check_port("0.0.0.0", port)  # noqa: S104 - looked at, not served on
    with closing(socket.create_server(("127.0.0.1", port))):
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):  # noqa: S104
            with pytest.raises(InputError, match="Address already in use"):
                check_port(host, port)
    for host, problem in (
        ("203.0.113.7", "Cannot assign"),
        ("no such host", "no such host"),
        ("ö.invalid", "no such host"),
    ):
        with pytest.raises(InputError, match=problem):
            check_port(host, port)
    for wrong in (0, -1, 65536):
        with pytest.raises(InputError, match="not a port"):
            check_port("127.0.0.1", wrong)
