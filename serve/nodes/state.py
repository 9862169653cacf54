"""What is kept about a local cluster, one JSON file in a folder, and how the cluster is now."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from serve.nodes.processes import Session, leads, members, program
from workloads.errors import InputError

TIERS = ("cloud", "edge")
STATE_FILE = "cluster.json"
_LOCK_FILE = "cluster.lock"
_NAME = re.compile(rf"({'|'.join(TIERS)})-\d+")


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node that was started: its name such as `edge-1`, its tier and the session of its processes."""

    name: str
    tier: str
    session: Session


@dataclass(frozen=True, slots=True)
class ClusterState:
    """A cluster that was started: the head's address (empty until it has one), its folder and its nodes, the head first.

    `ready` says that all nodes asked for had joined, `already_up` that `cluster_up` found them all running.
    """

    address: str
    folder: str
    cpus_per_node: int
    edge_gpus: int
    nodes: tuple[NodeState, ...]
    ready: bool = False
    already_up: bool = False

    @property
    def token_path(self) -> Path:
        """The file with the token that every process of this cluster, and every driver, must present."""
        return Path(self.folder) / "token"

    @property
    def environment(self) -> dict[str, str]:
        """What a driver needs in its environment besides the address."""
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_path)}
        return {**token, "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node as it is now: `pid` is its raylet's, 0 once that is gone; `cpus` are the logical CPUs Ray may give away."""

    name: str
    tier: str
    alive: bool
    pid: int
    cpus: int
    processes: int
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """A cluster and its nodes as they are now, the head first."""

    state: ClusterState
    nodes: tuple[NodeStatus, ...]

    @property
    def alive(self) -> bool:
        """Whether the cluster can be used: it came up, and its head runs."""
        return self.state.ready and self.nodes[0].alive

    @property
    def connect(self) -> str:
        """The variables to put before a command and the option to put behind it."""
        variables = " ".join(f"{name}={value}" for name, value in self.state.environment.items())
        return f"{variables} COMMAND --address {self.state.address}"


def default_state_dir() -> Path:
    """Where `cluster up` keeps its state unless told otherwise: the user's folder for what programs remember."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "isthmus/cluster"


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Hold the folder for one command; raises InputError while another one holds it, or if it cannot be written."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (state_dir / _LOCK_FILE).open("w")
    except OSError as error:
        raise InputError(str(state_dir), f"cannot be written ({error.strerror})", "Name another folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            problem = "another cluster command is at work here"
            raise InputError(str(state_dir), problem, "Wait until it has finished, or name another folder") from None
        yield


def read_state(state_dir: Path) -> ClusterState | None:
    """The cluster kept in a folder, None if there is none; raises InputError if the file is something else."""
    path = state_dir / STATE_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        nodes = tuple(NodeState(n["name"], n["tier"], Session(**n["session"])) for n in fields.pop("nodes"))
        state = ClusterState(**fields, nodes=nodes)
        _check_types(state)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = f"End its `ray start` processes by hand if there are any, then delete {path}"
        raise InputError(str(path), f"is not the state of a cluster ({error})", remedy) from None
    return state


def _check_types(state: ClusterState) -> None:
    """Raise ValueError if a field holds something else than what was written: signals are sent by what stands here."""
    texts: list[object] = [state.address, state.folder]
    numbers: list[object] = [state.cpus_per_node, state.edge_gpus]
    for node in state.nodes:
        texts += [node.name, node.session.boot_id, node.session.folder]
        numbers += [node.session.pid, node.session.start_ticks]
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise ValueError("a field of another type")
    if state.ready and not (state.address and state.nodes):
        raise ValueError("ready without an address or nodes")
    if any(not _NAME.fullmatch(node.name) or node.tier != node.name.partition("-")[0] for node in state.nodes):
        raise ValueError("a node's name is not such as edge-0")


def write_state(state: ClusterState, state_dir: Path) -> None:
    """Keep the state; the file is replaced as a whole."""
    fields = asdict(state)
    del fields["already_up"]
    partial = state_dir / f".{STATE_FILE}.{os.getpid()}"
    partial.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, state_dir / STATE_FILE)


def forget_state(state_dir: Path) -> None:
    """Remove the file; the folder stays."""
    (state_dir / STATE_FILE).unlink(missing_ok=True)


def cluster_status(state_dir: Path) -> ClusterStatus | None:
    """How the cluster of this folder is now; None if none was started, or it was taken down."""
    state = read_state(state_dir)
    if state is None:
        return None
    return ClusterStatus(state, tuple(node_status(node, state.cpus_per_node) for node in state.nodes))


def node_status(node: NodeState, cpus: int) -> NodeStatus:
    """How a node is now; it is alive if its raylet is, below the process that was started."""
    processes = members([node.session])
    raylet = next((process.pid for process in processes if program(process.pid) == "raylet"), 0)
    alive = raylet > 0 and leads(node.session)
    return NodeStatus(node.name, node.tier, alive, raylet, cpus, len(processes), sum(p.rss_bytes for p in processes))
