"""Where replicas may run, decided from the nodes' tags; test_placement_cluster.py has Ray Serve place them."""

from __future__ import annotations

import pickle

import pytest

from serve.cloud import UpstreamSpec
from serve.deployments import Autoscaling, TierDeployment
from serve.generation import ModelSpec
from serve.replicas.placement import EDGE_RESOURCE, TIER_LABEL, Node, off_edge, place_tiers
from workloads.errors import InputError

SLM = ModelSpec("models/small")


def tier(name="edge", where="edge", **fields):
    """A deployment of a small model."""
    return TierDeployment(name, where, fields.pop("model", SLM), **fields)


def node(name, label=None, resource=False, cpus=4.0, gpus=0.0):
    """A node as Ray would describe it."""
    labels = {"ray.io/node-id": name} | ({TIER_LABEL: label} if label else {})
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {}) | ({EDGE_RESOURCE: 1000.0} if resource else {})
    return Node(name, "127.0.0.1", labels, resources)


EDGE, CLOUD, PLAIN = node("e1", "edge"), node("c1", "cloud"), node("p1")


def test_an_edge_tier_asks_for_the_edge_label() -> None:
    """Its replicas carry a label selector that only edge-tagged nodes satisfy, and the resources they reserve."""
    options = place_tiers([tier(num_cpus=0.5)], [CLOUD, EDGE])["edge"]
    assert options == {"num_cpus": 0.5, "num_gpus": 0.0, "label_selector": {TIER_LABEL: "edge"}}


def test_without_labels_the_custom_resource_marks_an_edge_node() -> None:
    """The fallback asks for a trace of the resource; a labelled edge node wins over it."""
    tagged = node("r1", resource=True)
    resources = place_tiers([tier()], [PLAIN, tagged])["edge"]["resources"]
    assert resources.keys() == {EDGE_RESOURCE}
    assert 0 < resources[EDGE_RESOURCE] < 0.1
    assert "label_selector" in place_tiers([tier()], [tagged, EDGE])["edge"]


@pytest.mark.parametrize(
    ("nodes", "selector"),
    [
        ([CLOUD, EDGE], {TIER_LABEL: "cloud"}),
        ([PLAIN, EDGE], {TIER_LABEL: "!edge"}),
        ([PLAIN], {TIER_LABEL: "!edge"}),
        ([PLAIN, node("r1", resource=True)], {TIER_LABEL: "!edge", "ray.io/node-id": "!in(r1)"}),
    ],
    ids=["cloud label", "not edge", "no tags at all", "edge by resource"],
)
def test_a_cloud_tier_keeps_off_edge_nodes(nodes, selector) -> None:
    """By the cloud label where there is one, else by whatever says edge."""
    assert place_tiers([tier("cloud", "cloud")], nodes)["cloud"]["label_selector"] == selector


def test_what_is_no_tier_keeps_off_edge_nodes_too() -> None:
    """A gateway or a budget goes where a cloud tier would, whichever way the edge nodes are tagged, or nowhere."""
    for nodes in ([CLOUD, EDGE], [PLAIN, EDGE], [PLAIN, node("r1", resource=True)], [CLOUD, node("r1", resource=True)]):
        assert (
            off_edge("gateway", nodes)["label_selector"]
            == place_tiers([tier("cloud", "cloud")], nodes)["cloud"]["label_selector"]
        )
    with pytest.raises(InputError, match="gateway: needs a node that is not an edge node"):
        off_edge("gateway", [EDGE, node("r1", resource=True)])


@pytest.mark.parametrize(
    ("deployment", "nodes", "words"),
    [
        (
            tier(),
            [CLOUD, PLAIN],
            ["tier 'edge'", f"{TIER_LABEL}: edge", EDGE_RESOURCE, "c1", "p1", "cluster up --edge"],
        ),
        (tier(), [], ["nodes found: none"]),
        (tier("cloud", "cloud"), [EDGE], ["tier 'cloud'", "not an edge node", "e1"]),
        (tier(num_cpus=8.0), [EDGE, CLOUD], ["8 CPU", "room for 0", "cluster up --edge"]),
        (tier(num_gpus=1.0), [EDGE, node("g1", "cloud", gpus=2.0)], ["1 GPU", "room for 0"]),
        (tier(replicas=5), [EDGE, CLOUD], ["5 replicas", "room for 4"]),
        (tier(replicas=Autoscaling(5, 9)), [EDGE], ["5 replicas"]),
    ],
    ids=[
        "no edge node",
        "no node",
        "only edge nodes",
        "too many CPUs",
        "GPU elsewhere",
        "too many replicas",
        "scaling",
    ],
)
def test_what_cannot_be_placed_is_said_at_once(deployment, nodes, words) -> None:
    """The message names the tier, the tag, the nodes there are and the remedy."""
    with pytest.raises(InputError) as error:
        place_tiers([deployment], nodes)
    assert [word for word in words if word not in str(error.value)] == []


def test_tiers_share_the_nodes() -> None:
    """What fits alone need not fit together; the largest replicas are placed first, so order does not decide."""
    small, large = tier("small", num_cpus=1.0, replicas=4), tier("large", num_cpus=4.0)
    two = [EDGE, node("e2", "edge")]
    assert set(place_tiers([small, large], two)) == {"small", "large"}
    with pytest.raises(InputError, match=r"tier 'small'.*room for 0 beside other tiers"):
        place_tiers([small, large], [EDGE])
    with pytest.raises(InputError, match="occurs twice"):
        place_tiers([small, small], two)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "a/b"}, "tier name"),
        ({"where": "egde"}, "Did you mean 'edge'"),
        ({"replicas": 0}, "replicas: found 0"),
        ({"max_batch": 1.5}, "max_batch: found 1.5"),
        ({"max_queued": 0}, "max_queued: found 0"),
        ({"num_cpus": -1.0}, "num_cpus: found -1.0"),
        ({"request_timeout_s": 0.0}, "request_timeout_s: found 0.0"),
        ({"request_timeout_s": float("nan")}, "request_timeout_s: found nan"),
        ({"model": UpstreamSpec("http://127.0.0.1:1/v1", "m", None)}, "an edge tier hosts its model"),
    ],
)
def test_a_deployment_that_cannot_be_is_refused(fields, words) -> None:
    """Each impossible value is one message with the tier and the field."""
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        TierDeployment(**{"name": "edge", "where": "edge", "model": SLM} | fields)


def test_limits_of_an_upstream_hold_for_one_proxy() -> None:
    """Rate limits are kept by each proxy for itself, so more than one would exceed them together."""
    limited = UpstreamSpec("http://127.0.0.1:1/v1", "m", None, requests_per_min=60.0)
    assert tier("cloud", "cloud", model=limited).replicas == 1
    with pytest.raises(InputError, match="requests_per_min"):
        tier("cloud", "cloud", model=limited, replicas=2)


def test_autoscaling_must_be_possible() -> None:
    """There is at least one replica, and no fewer at most than at least."""
    with pytest.raises(InputError, match="max_replicas: found 1"):
        Autoscaling(2, 1)
    with pytest.raises(InputError, match="target_ongoing: found 0"):
        Autoscaling(1, 2, target_ongoing=0.0)


def test_a_deployment_survives_the_trip_to_a_replica() -> None:
    """It is a plain value."""
    sent = tier(replicas=Autoscaling(1, 3), max_queued=None)
    assert pickle.loads(pickle.dumps(sent)) == sent  # noqa: S301 - what was just pickled here
