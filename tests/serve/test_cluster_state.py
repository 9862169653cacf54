"""Cluster commands around a state file: what they end, what they leave alone, what they refuse. No Ray is started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from serve.nodes.local_cluster import cluster_down, cluster_status, cluster_up, default_state_dir, started_cluster
from serve.nodes.processes import leads, spawn_session
from serve.nodes.start import new_cluster_folder
from serve.nodes.state import ClusterState, NodeState, write_state
from tests.serve.processes import SLEEP, ended, python, running, somebody_else, until
from workloads.errors import InputError


def sleeping(state_dir: Path, name: str = "cloud-0") -> ClusterState:
    """The kept state of a cluster whose one node is only a sleeping process: what a start that broke off leaves."""
    folder = new_cluster_folder()
    session = spawn_session([sys.executable, "-c", SLEEP], os.environ, folder / "log", folder)
    state = ClusterState("", str(folder), 2, 0, (NodeState(name, name.partition("-")[0], session),))
    state_dir.mkdir(parents=True, exist_ok=True)
    write_state(state, state_dir)
    return state


def test_nothing_was_started(tmp_path):
    """Where no cluster was started there is nothing to show and nothing to take down, and no folder appears."""
    assert cluster_status(tmp_path / "none") is None
    assert cluster_down(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
    assert default_state_dir().parts[-2:] == ("isthmus", "cluster")


@pytest.mark.parametrize(
    ("shape", "named"),
    [({"edge": -1}, "--edge -1"), ({"cloud": 0}, "--cloud 0"), ({"cpus_per_node": 0}, "--cpus 0")],
)
def test_impossible_counts(tmp_path, shape, named):
    """A count below what a cluster needs is one message and starts nothing."""
    with pytest.raises(InputError, match=named):
        cluster_up(**{"edge": 1, "cloud": 1, "state_dir": tmp_path, **shape})
    assert cluster_status(tmp_path) is None


def test_a_taken_port_and_the_rest_of_a_broken_start(tmp_path):
    """A port somebody listens on is one message; what a start that broke off had left is ended before that."""
    broken = sleeping(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {port}: the port is taken"):
            cluster_up(1, 1, tmp_path, port)
    assert not running(broken.nodes[0].session.pid)
    assert not Path(broken.folder).exists()
    assert cluster_status(tmp_path) is None
    with pytest.raises(InputError, match="--port 99999: not a port"):
        cluster_up(1, 1, tmp_path, 99999)


def test_down_ends_what_the_file_names_and_nothing_with_a_reused_number(tmp_path):
    """A node whose recorded pid belongs to another process by now is left alone; the others are ended; a second down is no error."""
    state = sleeping(tmp_path)
    ours = state.nodes[0].session
    with somebody_else() as innocent:
        # Two processes can start in the same clock tick, but then not with the same number.
        reused = NodeState("edge-0", "edge", replace(ours, pid=innocent.pid, start_ticks=ours.start_ticks - 1))
        write_state(replace(state, nodes=(*state.nodes, reused)), tmp_path)
        status = cluster_status(tmp_path)
        assert status is not None
        assert [(node.alive, node.processes) for node in status.nodes] == [(False, 1), (False, 0)]
        assert cluster_down(tmp_path) is not None
        assert innocent.poll() is None
    assert not leads(ours)
    assert not Path(state.folder).exists()
    assert cluster_down(tmp_path) is None


def test_a_state_from_before_a_restart_of_the_machine(tmp_path):
    """After a restart the recorded numbers mean nothing: nothing is ended, the file goes."""
    state = sleeping(tmp_path)
    session = state.nodes[0].session
    old = replace(state.nodes[0], session=replace(session, boot_id="the boot before"))
    write_state(replace(state, nodes=(old,)), tmp_path)
    cluster_down(tmp_path)
    assert cluster_status(tmp_path) is None
    assert leads(session)
    os.kill(session.pid, signal.SIGKILL)
    until(lambda: not leads(session))


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: "no JSON {",
        lambda fields: [fields],
        lambda fields: {**fields, "nodes": 3},
        lambda fields: {**fields, "surprise": 1},
        lambda fields: {**fields, "nodes": [{**fields["nodes"][0], "name": "../edge-0"}]},
        lambda fields: {**fields, "nodes": [{**fields["nodes"][0], "session": {"pid": "1"}}]},
        lambda fields: {**fields, "address": None},
        lambda fields: {**fields, "ready": True},
    ],
)
def test_a_file_that_is_no_state(tmp_path, change):
    """A damaged state file is one message from every command, and no signal is sent by what it says."""
    state = sleeping(tmp_path)
    path = tmp_path / "cluster.json"
    wrong = change(json.loads(path.read_text()))
    path.write_text(wrong if isinstance(wrong, str) else json.dumps(wrong))
    for command in (cluster_status, cluster_down, lambda folder: cluster_up(1, 1, folder)):
        with pytest.raises(InputError, match="is not the state of a cluster"):
            command(tmp_path)
    assert leads(state.nodes[0].session)
    write_state(state, tmp_path)
    cluster_down(tmp_path)


def test_two_commands_at_a_time(tmp_path):
    """While one command works on a folder the next is told so, in place of both ending half of each other's work."""
    code = "from pathlib import Path; from serve.nodes.state import locked\nwith locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(python(code, str(tmp_path)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with ended(holder):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another cluster command"):
            cluster_down(tmp_path)
        holder.communicate()
    assert cluster_down(tmp_path) is None


def test_a_folder_that_cannot_be_written(tmp_path):
    """A state folder below a file is one message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        cluster_up(1, 1, tmp_path / "file" / "state")


def test_an_address_that_is_not_this_clusters(tmp_path):
    """Without a living cluster in the folder, every --address stays what it is and the environment is not touched."""
    sleeping(tmp_path)
    before = dict(os.environ)
    for address in (None, "auto", "127.0.0.1:6379", "ray://127.0.0.1:10001"):
        assert started_cluster(address, tmp_path) == address
        assert started_cluster(address, tmp_path / "none") == address
    assert dict(os.environ) == before
    cluster_down(tmp_path)
