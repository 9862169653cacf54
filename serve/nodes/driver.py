"""Connecting this process to a cluster that asks for a token."""

from __future__ import annotations

import os
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
        ray.shutdown()
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # a compiled module

    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
