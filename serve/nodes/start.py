"""Starting one Ray node as processes of this machine, and waiting until it has joined its cluster."""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import socket
import sys
import tempfile
import time
from pathlib import Path

from serve.nodes.processes import Session, leads, spawn_session
from serve.nodes.state import ClusterState
from workloads.errors import InputError

TIER_LABEL = "isthmus-tier"
"""Ray node label whose value is `edge` or `cloud`; the custom resource `isthmus_edge` or `isthmus_cloud` says the same."""
TIER_UNITS = 1000
"""Units of that custom resource on a node; what is placed by it asks for a few of them, or a fraction."""
ROOT = Path(__file__).resolve().parents[2]
OBJECT_STORE_BYTES = 200_000_000
START_S = 180.0
_POLL_S = 0.1
_PORTS = range(20_000, 32_768)  # below the kernel's own choices: those may be taken between a look and the use
_LONGEST_TEMP = 24  # characters; Ray adds about 70 to a node's folder, and a socket's path ends at 107
# What says which cluster, session or job a process belongs to; the user's other settings for Ray hold here too.
_OTHER_CLUSTER = re.compile(
    r"RAY_(ADDRESS|NAMESPACE|TMPDIR|START_HOOK|(AUTH|GCS|JOB|NODE|OVERRIDE|RAYLET|REDIS|RUNTIME_ENV|SESSION)\w*)"
)
_OF_A_NODE = {
    # Replicas are what a run waits for: at Ray's 15 whatever else computes on the machine takes 97 % of a core from them.
    "RAY_worker_niceness": "0",
    # The whole cluster ends, so nobody takes over what is drained; Serve's controller would be waited for in vain.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
"""What a node's processes have unless the user's environment says otherwise."""
_COLOUR = re.compile(r"\x1b\[\d+m")


def new_cluster_folder() -> Path:
    """A new private folder with a short path and a new token in it."""
    usual = tempfile.gettempdir()
    parent = usual if len(usual) <= _LONGEST_TEMP else "/tmp"  # noqa: S108 - mkdtemp makes the folder itself private
    folder = Path(tempfile.mkdtemp(prefix="isthmus-", dir=parent))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    return folder


def check_port_free(port: int | None) -> None:
    """Raise InputError if the port asked for is no port or is taken."""
    if port is None:
        return
    if not 1024 <= port < 65536:
        raise InputError(f"cluster up --port {port}", "not a port for a cluster", "Give a number from 1024 to 65535")
    if not _free(port):
        raise InputError(
            f"cluster up --port {port}", "the port is taken", "Give another one, or none to have a free one chosen"
        )


def free_port() -> int:
    """A port nobody listens on and the kernel does not hand out by itself."""
    return next(port for port in random.SystemRandom().sample(_PORTS, len(_PORTS)) if _free(port))


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that just ended do not count
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def node_folder(state: ClusterState, name: str) -> Path:
    """Ray's temporary folder of a node: logs, sockets, and the address it joined."""
    tier, _, number = name.partition("-")
    return Path(state.folder) / f"{tier[0]}{number}"


def spawn_node(state: ClusterState, name: str, port: int | None) -> Session:
    """Start the processes of a node: of the head, on `port` or a free one, while the cluster has no address yet."""
    folder = node_folder(state, name)
    folder.mkdir(mode=0o700)
    # The one folder in all environments and open files is what tells a node's orphans from other people's processes.
    return spawn_session(_command(state, name, port), _environment(state), folder / "start.log", Path(state.folder))


def _command(state: ClusterState, name: str, port: int | None) -> list[str]:
    tier = name.partition("-")[0]
    if state.address:
        role = [f"--address={state.address}", "--include-log-monitor=false"]  # one log monitor a machine is enough
    else:
        role = [
            "--head",
            f"--port={port or 0}",
            "--include-dashboard=false",
            f"--ray-client-server-port={free_port()}",
        ]
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--log-color=false", *role),
        f"--temp-dir={node_folder(state, name)}",
        f"--num-cpus={state.cpus_per_node}",
        f"--num-gpus={state.edge_gpus if tier == 'edge' else 0}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
        f"--labels={TIER_LABEL}={tier}",
        f"--resources={json.dumps({f'isthmus_{tier}': TIER_UNITS})}",
    ]


def _environment(state: ClusterState) -> dict[str, str]:
    """The user's environment without settings for another cluster, with the token; workers find the checkout by PYTHONPATH."""
    kept = {name: value for name, value in os.environ.items() if not _OTHER_CLUSTER.fullmatch(name)}
    paths = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return {**_OF_A_NODE, **kept, **state.environment, "PYTHONPATH": os.pathsep.join(paths)}


class NodeTooSlow(InputError):
    """A node that Ray gave up: it allows 30 seconds for a start, which a machine with other work to do may exceed."""


def await_node(state: ClusterState, name: str, session: Session) -> str:
    """Wait until a node has joined its cluster and return the cluster's address; InputError if it stops or takes too long."""
    place, address_file = f"cluster up: node {name}", node_folder(state, name) / "ray_current_cluster"
    deadline = time.monotonic() + START_S
    while not (address_file.exists() and (address := address_file.read_text().strip())):  # written when it is ready
        if not leads(session):
            words = _last_words(state, name)
            raise (NodeTooSlow if _TOO_SLOW in words else InputError)(place, f"Ray stopped: {words}", _REMEDY)
        if time.monotonic() > deadline:
            problem = f"did not start within {START_S:.0f} s: {_last_words(state, name)}"
            raise NodeTooSlow(place, problem, _REMEDY)
        time.sleep(_POLL_S)
    return address


_TOO_SLOW = "timed out during startup"
_REMEDY = "Look at load, memory and disk, and try again"


def _last_words(state: ClusterState, name: str) -> str:
    """The last line of what `ray start` printed, which names the error."""
    try:
        text = (node_folder(state, name) / "start.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "it said nothing"
    lines = [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]
    return lines[-1][:300].rstrip(".") if lines else "it said nothing"
