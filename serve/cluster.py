"""Many simulations over a Ray cluster: this machine's cores, or the cluster at an address."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from serve.nodes.driver import leave, started_cluster
from workloads.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")
ROOT = Path(__file__).resolve().parents[1]
_CONNECT_S = 5.0
_ANSWER_S = 10.0
_ASKED = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What drivers ask a cluster's head first."""
_EXCLUDED = [".venv", ".git", "results", "tests", "docs", "**/__pycache__"]


def check_address(address: str | None) -> None:
    """Raise InputError, within some seconds, for a cluster address where no Ray cluster answers: Ray itself would try for minutes.

    This loads no part of Ray, which reads a cluster's token from the environment when it is imported.
    """
    if address in (None, "auto"):
        return
    host, colon, port = str(address).removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"--address {address}", "not an address", "Write auto, host:port or ray://host:port")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        problem = _problem_at(f"{host}:{port}", client=str(address).startswith("ray://"))
    except (OSError, ValueError) as error:
        problem = str(getattr(error, "strerror", None) or error)
    if problem:
        remedy = "Check it with `ray status`"
        raise InputError(f"--address {address}", f"no Ray cluster answers ({problem})", remedy)


def _problem_at(target: str, *, client: bool) -> str:
    """Why what listens there is no Ray cluster (with `client` no Ray client server); empty if it may be one."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return ""  # only Ray knows its certificates
    import grpc  # type: ignore[import-untyped]

    until_s = time.monotonic() + _ANSWER_S
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_ANSWER_S)
            if not client:
                channel.unary_unary(_ASKED)(b"", timeout=max(1.0, until_s - time.monotonic()))
        except grpc.FutureTimeoutError:
            return f"something listens there, but it did not speak gRPC within {_ANSWER_S:g} s"
        except grpc.RpcError as error:  # a cluster with a token says UNAUTHENTICATED
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return "another service listens there"
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return f"something listens there, but it did not answer within {_ANSWER_S:g} s"
    return ""


def run_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None, address: str | None = None
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, function(item)) as they finish, `workers` at a time (None: as many as there are CPUs). All must be picklable.

    Without an address a private Ray instance is started for the duration and only that one is shut down. An exception in a worker
    is raised here as it was there.
    """
    address = started_cluster(address)  # before Ray is imported: its token goes into the environment
    import ray  # heavy: only runs that need several processes pay for it

    with _connected(workers, address):
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        at_a_time = workers or max(1, int(resources.get("CPU", 1)))
        remote = ray.remote(num_cpus=1, max_retries=2)(function)
        waiting = list(reversed(items))
        running: dict[Any, Item] = {}
        # After an error what still runs is left to end with the connection: cancelling by force a task that is just finishing
        # aborts the whole driver (Ray 2.60, a failed check in its task manager).
        while waiting or running:
            while waiting and len(running) < at_a_time:
                item = waiting.pop()
                running[remote.remote(item)] = item
            done, _ = ray.wait(list(running), num_returns=1)
            yield running.pop(done[0]), _result(done[0])


def _result(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, Exception) else error) from None


@contextmanager
def _connected(workers: int | None, address: str | None) -> Iterator[None]:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        local: dict[str, Any] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(address="local", num_cpus=workers, include_dashboard=False, runtime_env=local, **quiet)
    else:
        try:
            shipped: dict[str, Any] = {"working_dir": str(ROOT), "excludes": _EXCLUDED}
            ray.init(address=address, runtime_env=shipped, **quiet)
        except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            remedy = (
                "Check it with `ray status`; a cluster that asks for a token needs the same RAY_AUTH_MODE and "
                "RAY_AUTH_TOKEN_PATH here as there"
            )
            raise InputError(f"--address {address}", f"no Ray cluster answers ({reason})", remedy) from None
    try:
        yield
    finally:
        leave()
