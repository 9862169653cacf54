"""Clusters of several Ray nodes on this machine: what is started, what is seen, and that only that is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serve.app import deployed
from serve.cloud import UpstreamSpec
from serve.deployments import Autoscaling, TierDeployment
from serve.nodes.local_cluster import LocalCluster, cluster_down, cluster_status, cluster_up
from serve.nodes.processes import leads, members
from serve.nodes.start import TIER_LABEL, free_port
from serve.nodes.state import ClusterState, node_status, read_state
from tests.serve.processes import PATIENCE_S, ended, python, running, until
from workloads.errors import InputError

JOIN = """
from pathlib import Path
from serve.cluster import check_address, run_parallel
from serve.nodes.local_cluster import started_cluster
address = started_cluster("auto", Path(sys.argv[1]))
check_address(address)
def double(number): return 2 * number
print(sorted(run_parallel(double, [1, 2], None, address)))
"""

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]


def pids(state: ClusterState) -> set[int]:
    """All processes of a cluster."""
    return {process.pid for process in members([node.session for node in state.nodes])}


@pytest.fixture
def state_dir(tmp_path) -> Iterator[Path]:
    """A folder for the state of a detached cluster, which is taken down whatever the test found."""
    yield tmp_path
    cluster_down(tmp_path)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One cluster for all tests that do not end it: two edge nodes, two cloud nodes."""
    with LocalCluster(edge=2, cloud=2, cpus_per_node=3) as running_cluster:
        yield running_cluster


def test_nodes_carry_their_tier(cluster):
    """Every node has its label, its custom resource and the logical CPUs asked for, as Ray itself sees them."""
    import ray

    with cluster.connect():
        seen = [
            (
                row["Labels"][TIER_LABEL],
                row["Resources"]["CPU"],
                {n for n in row["Resources"] if n.startswith("isthmus")},
            )
            for row in ray.nodes()
            if row["Alive"]
        ]
    edge, cloud = ("edge", 3.0, {"isthmus_edge"}), ("cloud", 3.0, {"isthmus_cloud"})
    assert sorted(seen, key=str) == [cloud, cloud, edge, edge]
    assert [node.name for node in cluster.nodes] == ["cloud-0", "cloud-1", "edge-0", "edge-1"]
    assert all(node.alive and node.cpus == 3 and node.rss_bytes > 0 for node in cluster.nodes)


def test_label_and_resource_place_a_task(cluster):
    """What asks for the edge, by label or by resource, runs in a process of an edge node, and finds the checkout's modules."""
    import ray

    @ray.remote(max_retries=0)
    def where() -> int:
        from workloads.task import PROVENANCES  # by the checkout's path, which every node has

        return os.getsid(0) if len(PROVENANCES) else 0

    edge = {node.session.pid for node in cluster.state.nodes if node.tier == "edge"}
    with cluster.connect():
        by_label = [where.options(label_selector={TIER_LABEL: "edge"}).remote() for _ in range(6)]
        by_resource = [where.options(resources={"isthmus_edge": 1}).remote() for _ in range(6)]
        elsewhere = [where.options(label_selector={TIER_LABEL: "!edge"}).remote() for _ in range(6)]
        assert set(ray.get(by_label, timeout=PATIENCE_S)) <= edge
        assert set(ray.get(by_resource, timeout=PATIENCE_S)) <= edge
        assert not set(ray.get(elsewhere, timeout=PATIENCE_S)) & edge


def test_the_token_is_asked_for(cluster, tmp_path):
    """A driver with another token is refused; this process has its own environment back after a connection."""
    before = dict(os.environ)
    with cluster.connect():
        pass
    assert dict(os.environ) == before
    assert oct(Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o777) == "0o600"
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    code = "import ray; ray.init(address=sys.argv[1], log_to_driver=False)"
    environment = {**os.environ, **cluster.environment, "RAY_AUTH_TOKEN_PATH": str(wrong)}
    refused = subprocess.run(
        python(code, cluster.address), env=environment, capture_output=True, text=True, timeout=3 * PATIENCE_S
    )
    assert refused.returncode != 0
    assert "token" in refused.stderr.lower()


def test_nothing_of_a_cluster_is_left_in_the_process():
    """A process that used Serve on one cluster is really gone from it, and finds the next one's Serve, as its first job again."""
    import ray
    from ray import serve

    upstream = UpstreamSpec("http://127.0.0.1:9/v1", "m", None)  # nobody asks it
    tier = TierDeployment("api", "cloud", upstream, replicas=Autoscaling(1, 2), num_cpus=0.1)
    for _ in range(2):
        with LocalCluster(edge=0, cloud=1) as fresh, fresh.connect():
            assert not serve.status().applications
            with deployed({"m": tier}, app_name="first", timeout_s=3 * PATIENCE_S):
                pass
    time.sleep(11.0)  # by when a handle left behind would have reported its load, and Ray started a cluster for that
    assert not ray.is_initialized()


def test_a_killed_node_shows_and_comes_back(cluster):
    """A killed edge raylet is seen, its remaining processes go, the others stay, and the node can be started again."""
    others = {node.name: node.pid for node in cluster.nodes if node.name != "edge-1"}
    session = next(node.session for node in cluster.state.nodes if node.name == "edge-1")
    cluster.kill_node("edge-1")
    until(lambda: not next(node for node in cluster.nodes if node.name == "edge-1").alive)
    until(lambda: not members([session]))
    assert {node.name: node.pid for node in cluster.nodes if node.name != "edge-1"} == others
    cluster.start_node("edge-1")
    assert all(node.alive for node in cluster.nodes)


def test_up_status_down_beside_another_cluster(cluster, state_dir):
    """A detached cluster outlives the command that started it, is described, completed, and taken down without a trace.

    The other cluster on the machine keeps every process it had.
    """
    other = {node.name: node.pid for node in cluster.nodes}
    code = "from pathlib import Path; from serve.nodes.local_cluster import cluster_up; cluster_up(1, 1, Path(sys.argv[1]))"
    subprocess.run(python(code, str(state_dir)), check=True, timeout=3 * PATIENCE_S)
    status = cluster_status(state_dir)
    assert status is not None
    state = status.state
    assert status.alive
    assert [(node.name, node.tier, node.alive, node.cpus) for node in status.nodes] == [
        ("cloud-0", "cloud", True, 4),
        ("edge-0", "edge", True, 4),
    ]
    assert state.address != cluster.address
    assert status.connect.endswith(f"--address {state.address}")
    assert f"RAY_AUTH_TOKEN_PATH={state.token_path} " in status.connect
    assert cluster_up(1, 1, state_dir) == replace(state, already_up=True)
    with pytest.raises(InputError, match="1 edge and 1 cloud nodes is already up"):
        cluster_up(2, 1, state_dir)
    joined = subprocess.run(python(JOIN, str(state_dir)), capture_output=True, text=True, timeout=3 * PATIENCE_S)
    assert joined.stdout == "[(1, 2), (2, 4)]\n", joined.stderr

    edge = state.nodes[1].session
    os.kill(edge.pid, signal.SIGKILL)  # the `ray start` above the raylet: nobody is left to tidy up
    until(lambda: not leads(edge))
    completed = cluster_up(1, 1, state_dir)
    assert not completed.already_up
    assert completed.nodes[1].session.pid != edge.pid
    assert not members([edge])

    all_of_it = pids(completed)
    assert len(all_of_it) > 8  # two raylets with their agents, the head's own services, and what started them
    assert cluster_down(state_dir) == completed
    assert not [pid for pid in all_of_it if running(pid)]
    assert not Path(completed.folder).exists()
    assert cluster_status(state_dir) is None
    assert {node.name: node.pid for node in cluster.nodes} == other


def test_a_killed_driver_leaves_no_cluster(tmp_path):
    """A cluster made for a block ends even if its process is killed in the middle of it."""
    code = "from serve.nodes.local_cluster import LocalCluster\nwith LocalCluster(0) as c: print(c.state.folder, flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        python(code),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with ended(holder):
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().strip())
        kept = next(tmp_path.glob("isthmus-state-*"))
        state = read_state(kept)
        assert state is not None
        started = pids(state)
        assert len(started) > 4
        holder.kill()
    until(lambda: not [pid for pid in started if running(pid)])
    until(lambda: not folder.exists())


@pytest.mark.parametrize("ending", ["an interrupt", "a node that does not start"])
def test_a_start_that_fails_leaves_nothing(state_dir, ending):
    """Ctrl-C while nodes start, or a node Ray refuses, leaves no process, no folder and no state."""
    code = (
        "from pathlib import Path; from serve.nodes.local_cluster import cluster_up\n"
        "cluster_up(1, 1, Path(sys.argv[1]), cpus_per_node=int(sys.argv[2]))"
    )
    cpus = "4" if ending == "an interrupt" else str(10**30)
    with ended(subprocess.Popen(python(code, str(state_dir), cpus), stderr=subprocess.PIPE, text=True)) as starting:
        until(lambda: (state := read_state(state_dir)) is not None and state.nodes)
        state = read_state(state_dir)
        assert state is not None
        if ending == "an interrupt":
            starting.send_signal(signal.SIGINT)
        assert starting.stderr is not None
        last = starting.stderr.read().strip().splitlines()[-1]
    wanted = (
        "KeyboardInterrupt"
        if ending == "an interrupt"
        else "node cloud-0: Ray stopped: ValueError: Resource quantities"
    )
    assert wanted in last
    assert not members([node.session for node in state.nodes])
    assert not Path(state.folder).exists()
    assert cluster_status(state_dir) is None


def test_a_node_that_is_too_slow_is_started_again(state_dir):
    """Ray gives a node 30 seconds; a raylet held up for longer is ended and started anew, on the port that was asked for."""
    code = (
        "from pathlib import Path; from serve.nodes.local_cluster import cluster_up\n"
        "cluster_up(0, 1, Path(sys.argv[1]), int(sys.argv[2]))"
    )
    port = free_port()
    with ended(
        subprocess.Popen(python(code, str(state_dir), str(port)), stderr=subprocess.PIPE, text=True)
    ) as starting:
        until(lambda: (state := read_state(state_dir)) is not None and state.nodes)
        state = read_state(state_dir)
        assert state is not None
        first = state.nodes[0].session
        until(lambda: node_status(state.nodes[0], 1).pid)
        os.kill(node_status(state.nodes[0], 1).pid, signal.SIGSTOP)
        assert starting.wait(timeout=4 * PATIENCE_S) == 0
    status = cluster_status(state_dir)
    assert status is not None
    assert status.alive
    assert status.state.nodes[0].session.pid != first.pid
    assert not members([first])
    assert status.state.address.endswith(f":{port}")
