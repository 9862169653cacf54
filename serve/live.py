"""Live models for the length of a run: on the cluster at an address, or on a local one that is started for it."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve.app import deployed
from serve.backend import GREEDY, RayServeBackend
from serve.cluster import check_address
from serve.deployments import TierDeployment
from serve.gateway.http_proxy import serves_http, stop_serve
from serve.generation import Sampling
from serve.nodes.driver import leave, started_cluster
from serve.nodes.local_cluster import LocalCluster
from serve.upstream.spending import SpendingBook
from workloads.errors import InputError

_LOG = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[1]
_NOT_SHIPPED = [".venv", ".git", "results", "tests", "docs", "recordings", "**/__pycache__"]


@contextmanager
def open_backend(
    tiers: Mapping[str, TierDeployment],
    address: str | None = None,
    local_nodes: tuple[int, int] = (2, 1),
    *,
    sampling: Sampling | None = GREEDY,
    retries: int = 0,
    timeout_s: float = 600.0,
    book: SpendingBook | None = None,
) -> Iterator[RayServeBackend]:
    """A backend that answers for the models of `tiers` (model name -> deployment) until the block ends.

    Without an address a local cluster of `local_nodes` = (edge nodes, cloud nodes) is started and ended with the block; on the
    cluster at an address only the run's own applications are, so that several runs can share it, and the last of them stops the
    Serve that they started. Raises InputError for an address where no cluster answers and for whatever `deploy` finds wrong.
    `sampling` is every call's; `timeout_s` is for all replicas to be up; `book` keeps what upstreams cost, beyond the block.
    """
    app_name = f"isthmus-{secrets.token_hex(4)}"
    with (
        connected(address, local_nodes),
        _serve_stopped_after(address),
        deployed(tiers, app_name=app_name, timeout_s=timeout_s, book=book) as clients,
        RayServeBackend(clients, sampling=sampling, retries=retries) as backend,
    ):
        yield backend


@contextmanager
def _serve_stopped_after(address: str | None) -> Iterator[None]:
    """On a cluster that goes on without us no Serve is left that only such runs have used: it serves no HTTP."""
    try:
        yield
    finally:
        if address is not None:
            try:
                if not serves_http():
                    stop_serve()
            except Exception as error:  # the run has its own end, good or bad
                _LOG.warning("Ray Serve could not be stopped (%s: %s)", type(error).__name__, error)


@contextmanager
def connected(address: str | None, local_nodes: tuple[int, int] = (2, 1)) -> Iterator[None]:
    """This process as a driver of the cluster at `address`, or of a local one; a connection it already has is used.

    Raises InputError for an address where no cluster answers, also if this process is connected to another one.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = started_cluster(address)  # sets the token of a cluster of ours, which must come before Ray is imported
    check_address(address)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
    elif address is None:
        edge, cloud = local_nodes
        with LocalCluster(edge=edge, cloud=cloud) as cluster, cluster.connect():
            yield
    else:
        _connect(address)
        try:
            yield
        finally:
            leave()


def _connect(address: str) -> None:
    import ray

    shipped: dict[str, Any] = {"working_dir": str(ROOT), "excludes": _NOT_SHIPPED}
    try:
        ray.init(address=address, runtime_env=shipped, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        remedy = (
            "Check it with `ray status`; a cluster that asks for a token needs the same RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH here "
            "as there"
        )
        raise InputError(f"--address {address}", f"no Ray cluster answers ({reason})", remedy) from None
