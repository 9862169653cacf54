"""One local cluster for the tests of Ray Serve that need none of their own: starting one takes longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serve.nodes.local_cluster import LocalCluster


@pytest.fixture(scope="package")
def local_nodes() -> Iterator[LocalCluster]:
    """Two edge nodes and a cloud node."""
    with LocalCluster(edge=2, cloud=1) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(local_nodes: LocalCluster) -> Iterator[LocalCluster]:
    """The cluster, all nodes alive, with this process connected to it for the tests of one file."""
    for node in local_nodes.nodes:
        if not node.alive:  # a test of faults failed in the middle of one
            local_nodes.start_node(node.name)
    with local_nodes.connect():
        yield local_nodes
