"""A Ray cluster of several nodes on this machine: edge and cloud nodes with their labels, for live runs and development.

Every node is a `ray start --block` in a session of its own, with ports nobody else uses, a small object store and no dashboard.
A cluster has a folder with a short path and a token of its own, so several clusters and a user's own Ray do not meet. What was
started is kept in a JSON file, and only that is ever ended; `ray stop` would end every Ray process of the machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from serve.nodes.driver import driver, started_cluster
from serve.nodes.processes import Process, end_sessions, leads, members, program, send_signal
from serve.nodes.start import (
    ROOT,
    TIER_LABEL,
    TIER_UNITS,
    NodeTooSlow,
    await_node,
    check_port_free,
    new_cluster_folder,
    node_folder,
    spawn_node,
)
from serve.nodes.state import (
    TIERS,
    ClusterState,
    ClusterStatus,
    NodeState,
    NodeStatus,
    cluster_status,
    default_state_dir,
    forget_state,
    locked,
    node_status,
    read_state,
    write_state,
)
from workloads.errors import InputError

__all__ = [
    "TIER_LABEL",
    "TIER_UNITS",
    "ClusterState",
    "ClusterStatus",
    "LocalCluster",
    "NodeStatus",
    "cluster_down",
    "cluster_status",
    "cluster_up",
    "default_state_dir",
    "driver",
    "started_cluster",
]

_END_S = 15.0
_START_ATTEMPTS = 4


def cluster_up(
    edge: int, cloud: int, state_dir: Path, port: int | None = None, *, cpus_per_node: int = 4, edge_gpus: int = 0
) -> ClusterState:
    """Start a cluster that stays up when this process ends. The same call again keeps it and starts nodes that died.

    The head is `cloud-0`, on `port` or a free one. `cpus_per_node` are logical CPUs, more than the machine has if need be.
    What a broken start left behind is ended first. Raises InputError for impossible counts, a taken port, another cluster
    already up from this folder, and a node that does not start; then nothing is left behind.
    """
    for option, value, least in (("edge", edge, 0), ("cloud", cloud, 1), ("cpus", cpus_per_node, 1)):
        if value < least:
            raise InputError(f"cluster up --{option} {value}", "too few", f"Give at least {least}")
    with locked(state_dir):
        state = read_state(state_dir)
        if state is not None and state.ready and leads(state.nodes[0].session):
            return _complete(state, state_dir, edge, cloud, port)
        if state is not None:
            _end(state, state_dir)
        check_port_free(port)
        state = ClusterState("", str(new_cluster_folder()), cpus_per_node, edge_gpus, ())
        try:
            write_state(state, state_dir)
            state = _with_nodes(state, state_dir, ["cloud-0"], port)
            names = [f"cloud-{i}" for i in range(1, cloud)] + [f"edge-{i}" for i in range(edge)]
            state = replace(_with_nodes(state, state_dir, names), ready=True)
            write_state(state, state_dir)
            return state
        except BaseException:  # an interrupt too: nothing half-started stays behind
            _end(read_state(state_dir) or state, state_dir)
            raise


def cluster_down(state_dir: Path) -> ClusterState | None:
    """End every process of the cluster started from this folder, orphans included; returns what it was, None if none was.

    SIGTERM first, SIGKILL after 15 seconds. Raises InputError if a process will not go; the state is kept then.
    """
    if not state_dir.is_dir():
        return None
    with locked(state_dir):
        state = read_state(state_dir)
        if state is not None:
            _end(state, state_dir)
        return state


def _complete(state: ClusterState, state_dir: Path, edge: int, cloud: int, port: int | None) -> ClusterState:
    """The running cluster, with nodes that died started again; InputError if another one was asked for."""
    found = {tier: sum(node.tier == tier for node in state.nodes) for tier in TIERS}
    if found != {"edge": edge, "cloud": cloud} or (port and not state.address.endswith(f":{port}")):
        problem = f"a cluster of {found['edge']} edge and {found['cloud']} cloud nodes is already up at {state.address}"
        raise InputError(str(state_dir), problem, "Use it as it is, or take it down first with `cluster down`")
    dead = [node for node in state.nodes if not node_status(node, 0).alive]
    end_sessions([node.session for node in dead], _END_S)
    return _with_nodes(state, state_dir, [node.name for node in dead]) if dead else replace(state, already_up=True)


def _with_nodes(state: ClusterState, state_dir: Path, names: Sequence[str], port: int | None = None) -> ClusterState:
    """Start these nodes, as many at a time as there are cores, and wait until all have joined."""
    cores = len(os.sched_getaffinity(0))
    for first in range(0, len(names), cores):
        wave = names[first : first + cores]
        for name in wave:
            state = _spawned(state, state_dir, name, port)
        for name in wave:
            state = _joined(state, state_dir, name, port)
    write_state(state, state_dir)
    return state


def _spawned(state: ClusterState, state_dir: Path, name: str, port: int | None) -> ClusterState:
    """With the processes of a node started and written down."""
    shutil.rmtree(node_folder(state, name), ignore_errors=True)
    started = NodeState(name, name.partition("-")[0], spawn_node(state, name, port))
    others = [node for node in state.nodes if node.name != name]
    state = replace(state, nodes=tuple(sorted([*others, started], key=lambda node: _order(node.name))))
    write_state(state, state_dir)
    return state


def _joined(state: ClusterState, state_dir: Path, name: str, port: int | None) -> ClusterState:
    """With a node that has joined, and the head's address if it is the head; a node that was too slow is tried again."""
    for attempt in range(1, _START_ATTEMPTS + 1):
        session = next(node.session for node in state.nodes if node.name == name)
        try:
            return replace(state, address=await_node(state, name, session))
        except NodeTooSlow:
            if attempt == _START_ATTEMPTS:
                raise
            end_sessions([session], _END_S)
            state = _spawned(state, state_dir, name, port)
    raise AssertionError("the last attempt returns or raises")


def _order(name: str) -> tuple[int, int]:
    tier, _, number = name.partition("-")
    return TIERS.index(tier), int(number)


def _end(state: ClusterState, state_dir: Path) -> None:
    left = end_sessions([node.session for node in state.nodes], _END_S)
    if left:
        pids = ", ".join(map(str, left))
        raise InputError(f"cluster down: {state_dir}", f"processes {pids} do not end", "See what they wait for with ps")
    if Path(state.folder).name.startswith("isthmus-"):  # what new_cluster_folder made; a file says so, so look twice
        shutil.rmtree(state.folder, ignore_errors=True)
    forget_state(state_dir)


class LocalCluster:
    """A cluster for the length of a `with` block. It also ends if this process is killed: a watcher sees to that.

    with LocalCluster(edge=2, cloud=1) as cluster, cluster.connect():
        ...
    """

    def __init__(self, edge: int = 2, cloud: int = 1, cpus_per_node: int = 4, edge_gpus: int = 0) -> None:
        self._shape = (edge, cloud)
        self._sizes = {"cpus_per_node": cpus_per_node, "edge_gpus": edge_gpus}

    def __enter__(self) -> LocalCluster:
        """Start all nodes; raises InputError as `cluster_up` does."""
        self._dir = Path(tempfile.mkdtemp(prefix="isthmus-state-"))
        self._watcher, self._lifeline = _start_watcher(self._dir)
        try:
            self._state = cluster_up(*self._shape, self._dir, **self._sizes)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """End all nodes."""
        try:
            cluster_down(self._dir)
        finally:
            self._close()

    def _close(self) -> None:
        os.close(self._lifeline)
        os.waitpid(self._watcher, 0)
        shutil.rmtree(self._dir, ignore_errors=True)

    @property
    def state(self) -> ClusterState:
        """What was started, and where its files are."""
        return self._state

    @property
    def address(self) -> str:
        """The head's host:port."""
        return self._state.address

    @property
    def environment(self) -> dict[str, str]:
        """What another process needs in its environment to connect to this cluster."""
        return self._state.environment

    @property
    def nodes(self) -> tuple[NodeStatus, ...]:
        """The nodes as they are now, the head first."""
        return tuple(node_status(node, self._state.cpus_per_node) for node in self._state.nodes)

    def connect(self, **options: Any) -> AbstractContextManager[None]:
        """Connect this process for the length of a block; `options` go to `ray.init`."""
        return driver(self._state, **options)

    def kill_node(self, name: str) -> None:
        """SIGKILL to a node's raylet, as a machine that loses power would end; the rest of the node follows by itself."""
        raylet = next(process for process in self._members(name) if program(process.pid) == "raylet")
        send_signal(raylet, signal.SIGKILL)

    def start_node(self, name: str) -> None:
        """Start a node, such as `edge-2`, or one that died under its old name, and wait until it has joined."""
        with locked(self._dir):
            end_sessions([node.session for node in self._state.nodes if node.name == name], _END_S)
            self._state = _with_nodes(self._state, self._dir, [name])

    def _members(self, name: str) -> list[Process]:
        return members([node.session for node in self._state.nodes if node.name == name])


def _start_watcher(state_dir: Path) -> tuple[int, int]:
    """Start a process that takes the cluster down when this one is gone, and returns (its pid, a file that holds it off)."""
    reading, lifeline = os.pipe()
    watcher = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "serve.nodes.local_cluster", str(state_dir)],
        {**os.environ, "PYTHONPATH": str(ROOT)},
        file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0)],
        setsid=True,  # Ctrl-C in the terminal is for the run, which then ends its cluster in order
    )
    os.close(reading)
    return watcher, lifeline


if __name__ == "__main__":
    sys.stdin.buffer.read()  # ends when the last one who holds the other end is gone
    cluster_down(Path(sys.argv[1]))
    shutil.rmtree(sys.argv[1], ignore_errors=True)
