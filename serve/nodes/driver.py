"""Connecting this process to a cluster that asks for a token, and leaving it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve.nodes.state import ClusterState, cluster_status, default_state_dir


def started_cluster(address: str | None, state_dir: Path | None = None) -> str | None:
    """The address to connect to for an `--address`, with the token in this process's environment if it is our cluster's.

    `auto`, or the very address, means the cluster that `cluster up` started from this folder (None: the usual one) as long as
    it is alive; any other address, and an environment that names a token already, stay as they are. Call before Ray is imported.
    """
    if address is None or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return address
    status = cluster_status(state_dir or default_state_dir())
    if status is None or not status.alive or address not in ("auto", status.state.address):
        return address
    os.environ.update(status.state.environment)
    return status.state.address


@contextmanager
def driver(state: ClusterState, **options: Any) -> Iterator[None]:
    """Connect this process to a cluster with its token for as long as the block lasts; `options` go to `ray.init`.

    Ray reads the mode and the token once a process and keeps them: both are read again here, at the start and at the end.
    """
    import ray

    before = {name: os.environ.get(name) for name in (*state.environment, "RAY_AUTH_TOKEN")}
    _set_environment({**state.environment, "RAY_AUTH_TOKEN": None})
    try:
        ray.init(address=state.address, **{"log_to_driver": False, "logging_level": "ERROR", **options})
        yield
    finally:
        leave()
        _set_environment(before)


def leave() -> None:
    """Disconnect this process from its cluster, if it is connected, and have Serve forget it.

    Left alone, a handle of an autoscaled application goes on reporting its load, for which Ray starts a cluster of its own if it
    has none. And Serve keeps a client of the cluster it last spoke to; it tells by the job's number whether that still holds, but
    every cluster counts its jobs from 1, so that the next cluster is asked for the last one's controller.
    """
    import ray

    context: Any = sys.modules.get("ray.serve.context")  # absent where Serve was never used
    if context is not None and context._global_client is not None:
        context._global_client.shutdown_cached_handles()
    ray.shutdown()
    if context is not None:
        context._set_global_client(None)


def _set_environment(values: Mapping[str, str | None]) -> None:
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # a compiled module

    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
