"""Which nodes a tier may run on, and whether the cluster has them: decided from facts about the nodes, before Serve is asked.

An edge tier runs on edge-tagged nodes only, everything else never on one. The tag is the Ray node label `isthmus-tier` ("edge" or
"cloud"); where no node carries the edge label, a node with the custom resource `isthmus_edge` counts as one, as long as it was there
when the tiers came up: one that joins later needs the label to be kept free of cloud tiers. Serve itself would wait for a fitting
node without an end and without an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.deployments import TierDeployment
from workloads.errors import InputError

TIER_LABEL = "isthmus-tier"
EDGE_RESOURCE = "isthmus_edge"
_NODE_ID_LABEL = "ray.io/node-id"  # Ray gives it to every node
_RESOURCE_SHARE = 0.001  # a token amount: the resource says where, not how many
_UP = "Start edge nodes with `python run_sim.py cluster up --edge N`"


@dataclass(frozen=True, slots=True)
class Node:
    """One live node: its tags and what it has in all."""

    node_id: str
    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_edge(self) -> bool:
        """Whether it is tagged as an edge node, by label or resource."""
        return self.labels.get(TIER_LABEL) == "edge" or self.resources.get(EDGE_RESOURCE, 0.0) > 0.0

    def __str__(self) -> str:
        tag = self.labels.get(TIER_LABEL)
        tags = [f"{TIER_LABEL}: {tag}"] if tag is not None else []
        if self.resources.get(EDGE_RESOURCE, 0.0) > 0.0:
            tags.append(f"resource {EDGE_RESOURCE}")
        has = f"{self.resources.get('CPU', 0.0):g} CPU, {self.resources.get('GPU', 0.0):g} GPU"
        return f"{self.node_id[:6]} ({', '.join(tags) or 'no tag'}; {has})"


def live_nodes() -> list[Node]:
    """The nodes that are alive in the cluster this process is connected to."""
    import ray

    rows: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        Node(row["NodeID"], row["NodeManagerAddress"], dict(row.get("Labels") or {}), dict(row["Resources"]))
        for row in rows
        if row["Alive"]
    ]


def place_tiers(tiers: Sequence[TierDeployment], nodes: Sequence[Node]) -> dict[str, dict[str, Any]]:
    """Tier name -> `ray_actor_options` of its replicas.

    Raises InputError, naming the tier, the tag, the nodes there are and the remedy, where no node has the tag or the nodes
    with the tag cannot hold the replicas of all tiers at once.
    """
    options: dict[str, dict[str, Any]] = {}
    free = {node.node_id: dict(node.resources) for node in nodes}
    # Largest first, so that what fits one way or another is not refused for the order in which it was written.
    for tier in sorted(tiers, key=lambda t: (t.num_gpus, t.num_cpus), reverse=True):
        if tier.name in options:
            raise InputError(tier.place, "occurs twice", "Give every tier a name of its own")
        fitting, tag = _edge_nodes(tier, nodes) if tier.where == "edge" else _other_nodes(tier, nodes)
        for placed in range(tier.first_replicas):
            if not _take(tier, fitting, free):
                raise InputError(tier.place, _shortage(tier, placed, fitting), _remedy(tier))
        options[tier.name] = {"num_cpus": tier.num_cpus, "num_gpus": tier.num_gpus, **tag}
    return options


def off_edge(place: str, nodes: Sequence[Node]) -> dict[str, Any]:
    """The actor options that keep a tier, a gateway or a budget off edge nodes: on nodes labelled as cloud if there are any.

    Raises InputError, about `place`, where there are edge nodes only.
    """
    others = [node for node in nodes if not node.is_edge]
    if not others:
        problem = f"needs a node that is not an edge node; {_listed(nodes)}"
        raise InputError(place, problem, f"Add a node with the label {TIER_LABEL}: cloud, or without one")
    labelled = any(node.labels.get(TIER_LABEL) == "cloud" for node in others)
    # By label, so that edge nodes which join later are kept out too; those without one are known now or never.
    selector = {TIER_LABEL: "cloud" if labelled else "!edge"}
    unlabelled = [node.node_id for node in nodes if node.is_edge and node.labels.get(TIER_LABEL) != "edge"]
    if unlabelled:
        selector[_NODE_ID_LABEL] = f"!in({','.join(unlabelled)})"
    return {"label_selector": selector}


def _edge_nodes(tier: TierDeployment, nodes: Sequence[Node]) -> tuple[list[Node], dict[str, Any]]:
    """The nodes an edge tier may use, and the actor options that say so."""
    labelled = [node for node in nodes if node.labels.get(TIER_LABEL) == "edge"]
    if labelled:
        return labelled, {"label_selector": {TIER_LABEL: "edge"}}
    tagged = [node for node in nodes if node.is_edge]
    if tagged:
        return tagged, {"resources": {EDGE_RESOURCE: _RESOURCE_SHARE}}
    problem = f"needs a node with the label {TIER_LABEL}: edge, or with the resource {EDGE_RESOURCE}; {_listed(nodes)}"
    raise InputError(tier.place, problem, _UP)


def _other_nodes(tier: TierDeployment, nodes: Sequence[Node]) -> tuple[list[Node], dict[str, Any]]:
    """The nodes a cloud tier may use, those labelled as cloud if there are any, and the actor options that say so."""
    others = [node for node in nodes if not node.is_edge]
    labelled = [node for node in others if node.labels.get(TIER_LABEL) == "cloud"]
    return labelled or others, off_edge(tier.place, nodes)


def _take(tier: TierDeployment, nodes: Iterable[Node], free: dict[str, dict[str, float]]) -> bool:
    need = {"CPU": tier.num_cpus, "GPU": tier.num_gpus}
    for node in nodes:
        has = free[node.node_id]
        if all(has.get(name, 0.0) >= amount for name, amount in need.items()):
            for name, amount in need.items():
                has[name] = has.get(name, 0.0) - amount
            return True
    return False


def _shortage(tier: TierDeployment, placed: int, fitting: Sequence[Node]) -> str:
    each = f"{tier.num_cpus:g} CPU and {tier.num_gpus:g} GPU"
    kind = "edge nodes" if tier.where == "edge" else "nodes other than edge nodes"
    return (
        f"needs {tier.first_replicas} replicas of {each} each on {kind}, where there is room for {placed} beside other tiers; "
        f"{_listed(fitting)}"
    )


def _remedy(tier: TierDeployment) -> str:
    less = "ask for fewer replicas or less CPU or GPU each"
    return f"{_UP}, or {less}" if tier.where == "edge" else f"Add a node, or {less}"


def _listed(nodes: Sequence[Node]) -> str:
    return f"nodes found: {'; '.join(map(str, nodes)) or 'none'}"
