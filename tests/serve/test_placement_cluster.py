"""Placement on a real cluster whose edge node is tagged by its resource only: tiers, the gateway, budgets, and what finds no place."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from serve.app import deployed, start_serve
from serve.cloud import UpstreamSpec
from serve.deployments import TierDeployment
from serve.gateway.http_proxy import start_http, stop_serve
from serve.gateway.run import started_gateway
from serve.nodes.driver import leave
from serve.nodes.start import free_port
from serve.replicas.placement import EDGE_RESOURCE, TIER_LABEL, live_nodes, off_edge, place_tiers
from tests.serve.gateway_server import WordPlacer
from tests.serve.processes import ended, python
from tests.serve.ray_cluster import PATIENCE_S, hosting
from tests.serve.tiny_models import tiny_model
from tests.serve.upstream import start_upstream
from workloads.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

PROMISED_S = 30.0
"""How soon a tier that fits nowhere is refused."""


def patiently(make: Callable[[], Any], attempts: int = 4) -> Any:
    """What `make` returns. Ray gives a node 30 s to start in, which a machine with other work to do may exceed."""
    for _ in range(attempts - 1):
        try:
            return make()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return make()


class Nodes(NamedTuple):
    """A cluster without labels: a plain head, and after `add_edge` a node with the custom resource."""

    cluster: Any

    def add_edge(self) -> str:
        """Add the edge node, if it is not there; returns its id."""
        if len(live_nodes()) == 1:
            tagged = {"num_cpus": 2, "resources": {EDGE_RESOURCE: 1000}, "object_store_memory": 100_000_000}
            patiently(lambda: self.cluster.add_node(**tagged))
        (found,) = [node.node_id for node in live_nodes() if EDGE_RESOURCE in node.resources]
        return found


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """The cluster, with this process connected to it."""
    import ray
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100_000_000}
    cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=options))
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield Nodes(cluster)
    finally:
        leave()
        cluster.shutdown()


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TierDeployment]:
    """A small model at the edge and in the cloud."""
    folder = tiny_model(tmp_path_factory.mktemp("models") / "small")
    return {"small": hosting("edge", "edge", folder), "large": hosting("cloud", "cloud", folder)}


def test_a_tag_that_no_node_has_is_refused_in_time(nodes: Nodes, tiers: dict[str, TierDeployment]) -> None:
    """Without an edge node an edge tier is one message with the tag and the nodes there are, and nothing is deployed."""
    from ray import serve

    begun_s = time.monotonic()
    with pytest.raises(InputError) as failure, deployed(tiers, app_name="nowhere"):
        pass
    assert time.monotonic() - begun_s < PROMISED_S
    assert str(failure.value).startswith(f"tier 'edge': needs a node with the label {TIER_LABEL}: edge")
    assert live_nodes()[0].node_id[:6] in str(failure.value)
    assert not serve.status().applications


def test_the_resource_takes_the_place_of_the_label(nodes: Nodes, tiers: dict[str, TierDeployment]) -> None:
    """Ray Serve puts the edge tier on the node with the resource and the cloud tier on the one without a tag."""
    edge = nodes.add_edge()
    placed = place_tiers(list(tiers.values()), live_nodes())
    assert placed["edge"].keys() == {"num_cpus", "num_gpus", "resources"}
    assert placed["cloud"]["label_selector"] == {TIER_LABEL: "!edge", "ray.io/node-id": f"!in({edge})"}
    many = {**tiers, "large": replace(tiers["large"], replicas=2)}
    with deployed(many, app_name="by-resource", timeout_s=PATIENCE_S) as clients:
        assert {replica.node_id for replica in clients["small"].stats()} == {edge}
        assert len(clients["large"].stats()) == 2
        assert edge not in {replica.node_id for replica in clients["large"].stats()}
    with pytest.raises(InputError, match="8 CPU and 0 GPU each on edge nodes"):
        place_tiers([replace(tiers["small"], num_cpus=8.0)], live_nodes())


def test_each_part_of_the_selector_counts(nodes: Nodes) -> None:
    """`!edge` takes nodes without the label too, so that only the ids keep a node out that is tagged by resource."""
    import ray

    edge = nodes.add_edge()
    (head,) = [node.node_id for node in live_nodes() if node.node_id != edge]

    @ray.remote(num_cpus=0)
    def where() -> str:
        return str(ray.get_runtime_context().get_node_id())

    def seen(selector: dict[str, str]) -> set[str]:
        return set(ray.get([where.options(label_selector=selector).remote() for _ in range(4)], timeout=PATIENCE_S))

    assert seen(off_edge("a test", live_nodes())["label_selector"]) == {head}
    assert seen({TIER_LABEL: "!edge", "ray.io/node-id": f"!in({head})"}) == {edge}


@pytest.fixture
def proxied() -> Iterator[dict[str, TierDeployment]]:
    """Two cloud tiers before an upstream, one with a budget."""
    with start_upstream() as upstream:
        prices = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}
        specs = {
            "edge": UpstreamSpec(upstream.url, "m", None),
            "cloud": UpstreamSpec(upstream.url, "m", None, max_usd=1.0, **prices),  # type: ignore[arg-type]
        }
        yield {name: TierDeployment(name, "cloud", spec, num_cpus=0.25) for name, spec in specs.items()}


def living(name: str) -> tuple[str, dict[str, str]]:
    """The node of the living actor with this in its name, and the labels it asks for."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import ActorTableData  # type: ignore[attr-defined]  # made from the protocol

    table: Any = state._connect_and_get_accessor()
    actors = [ActorTableData.FromString(row) for row in table.get_actor_table(None, "ALIVE")]
    (actor,) = [actor for actor in actors if name in actor.name]
    return actor.address.node_id.hex(), dict(actor.label_selector)


def test_gateway_and_budget_keep_off_a_node_that_is_edge_by_resource(
    nodes: Nodes, proxied: dict[str, TierDeployment]
) -> None:
    """They run on the other node, and ask for it as a cloud tier does: not by luck."""
    from ray import serve

    edge = nodes.add_edge()
    wanted = {TIER_LABEL: "!edge", "ray.io/node-id": f"!{edge}"}  # as Ray writes a list of one
    with started_gateway(WordPlacer(), proxied, "127.0.0.1", free_port(), start_timeout_s=PATIENCE_S):
        (gateway,) = [name for name in serve.status().applications if name.endswith("-gateway")]
        for name in (f"SERVE_REPLICA::{gateway}#", f"budget-{gateway.removesuffix('-gateway')}-cloud"):
            node, selector = living(name)
            assert node != edge
            assert selector == wanted, name
    assert stop_serve()


# --------------------------------------------------------------------------------------------- other users of the cluster

NEIGHBOUR = """
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
from serve.app import start_serve
start_serve()
print("started", flush=True)
sys.stdin.readline()
from ray import serve
print(serve.status().proxies, flush=True)
sys.stdin.readline()
"""


@contextmanager
def neighbour(address: str) -> Iterator[subprocess.Popen[str]]:
    """Another program on the cluster, which has started Serve and will deploy on it when it is told to go on."""
    pipe = subprocess.PIPE
    with ended(subprocess.Popen(python(NEIGHBOUR, address), stdin=pipe, stdout=pipe, text=True)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process


def test_a_serve_that_somebody_else_may_be_about_to_use_stays(nodes: Nodes) -> None:
    """The gateway needs HTTP, and Serve runs without: it is stopped for that only while no other program is connected."""
    from ray import serve

    stop_serve()
    port = free_port()
    with neighbour(nodes.cluster.address) as other:
        with pytest.raises(InputError, match="runs on this cluster already, without HTTP, and others use it"):
            start_http("127.0.0.1", port)
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write("go on\n")
        other.stdin.flush()
        assert other.stdout.readline() == "{}\n"  # its Serve is there, as it started it
        assert not stop_serve()
    deadline_s = time.monotonic() + PATIENCE_S
    while not stop_serve():  # until the cluster has noticed that the other program is gone
        assert time.monotonic() < deadline_s
        time.sleep(0.2)
    start_http("127.0.0.1", port)
    assert len(serve.status().proxies) == 1
    start_http("127.0.0.1", port)  # with these settings it can stay
    start_serve()
    assert len(serve.status().proxies) == 1
    assert stop_serve()
