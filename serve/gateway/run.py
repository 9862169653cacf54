"""The gateway on a cluster: an OpenAI-compatible Ray Serve ingress in front of deployed tiers.

One replica serves all calls: it is the one place that knows every call under way, and it remembers the requests that policies
decide on once. It never runs on an edge node.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from serve.app import deployed
from serve.deployments import TierDeployment
from serve.gateway.calls import Calls, GatewayOptions
from serve.gateway.http_proxy import await_answer, check_port, quiet, reachable, start_http, stop_serve
from serve.live import connected
from serve.replicas.placement import live_nodes, off_edge
from serve.replicas.tier_client import TierClient
from workloads.errors import InputError
from workloads.placing import Placer

__all__ = ["KEY_VARIABLE", "check_port", "options_from_environment", "run_gateway", "started_gateway"]

KEY_VARIABLE = "ISTHMUS_GATEWAY_KEY"
"""Environment variable with the key that clients must show; unset or empty: none."""


def options_from_environment(options: GatewayOptions) -> GatewayOptions:
    """The options with the digest of the key in ISTHMUS_GATEWAY_KEY, if there is one."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    return replace(options, key_sha256=hashlib.sha256(key.encode()).digest()) if key else options


def run_gateway(
    placer: Placer, tiers: Mapping[str, TierDeployment], host: str = "127.0.0.1", port: int = 8000, *,
    address: str | None = None, local_nodes: tuple[int, int] = (2, 1), options: GatewayOptions | None = None,
    start_timeout_s: float = 180.0, on_ready: Callable[[str], None] | None = None,
) -> None:  # fmt: skip
    """Deploy `tiers` (model name -> deployment) with a gateway before them, and serve until Ctrl-C or SIGTERM.

    Without an address a local cluster of `local_nodes` = (edge, cloud) nodes is started and ended with it. `on_ready` is called
    with the base URL once the gateway answers; `start_timeout_s` is the time the tiers have to come up. A key in
    ISTHMUS_GATEWAY_KEY is asked of every client. Raises InputError, with nothing left behind, for a taken port and whatever else
    cannot be served.
    """
    if address is None:
        check_port(host, port)
    with (
        connected(address, local_nodes),
        _until_stopped() as stopped,
        _serve_stopped_after(address),
        started_gateway(placer, tiers, host, port, options, start_timeout_s) as url,
    ):
        if on_ready is not None:
            on_ready(url)
        try:
            stopped.wait()
        except KeyboardInterrupt:
            return


@contextmanager
def started_gateway(
    placer: Placer, tiers: Mapping[str, TierDeployment], host: str, port: int, options: GatewayOptions | None = None,
    start_timeout_s: float = 180.0,
) -> Iterator[str]:  # fmt: skip
    """The gateway and its tiers on the cluster this process is connected to, for the length of a block; yields the base URL."""
    from ray import serve

    app_name = f"isthmus-{secrets.token_hex(4)}"
    gateway = f"{app_name}-gateway"
    start_http(host, port)
    with deployed(tiers, app_name=app_name, timeout_s=start_timeout_s) as clients:
        try:
            by_name = {client.tier.name: client for client in clients.values()}
            _run(placer, by_name, options_from_environment(options or GatewayOptions()), gateway)
            url = f"http://{reachable(host)}:{port}"
            await_answer(url)
            yield url
        finally:
            serve.delete(gateway)


class Gateway:
    """The ingress's replica; see `build_app` for what it answers."""

    def __init__(self, placer: Placer, tiers: Mapping[str, TierClient], options: GatewayOptions) -> None:
        from serve.gateway.metrics import GatewayMeter

        self._calls, self._meter = Calls(placer, tiers, options), GatewayMeter()

    def __serve_build_asgi_app__(self) -> Any:
        """The application, made in the replica: what it holds cannot travel."""
        from serve.gateway.web import build_app

        return build_app(self._calls, self._meter, own_request_ids=False)


def _run(placer: Placer, tiers: Mapping[str, TierClient], options: GatewayOptions, name: str) -> None:
    from ray import serve

    ingress: Any = serve.deployment(serve.ingress()(Gateway))
    deployment = ingress.options(
        # The gateway refuses calls beyond its limit itself, with an answer that says so; the rest is room to do that.
        max_ongoing_requests=2 * options.max_in_flight + 100,
        ray_actor_options={"num_cpus": 0, **off_edge("gateway", live_nodes())},
        logging_config=quiet(),
    )
    try:
        serve.run(deployment.bind(placer, dict(tiers), options), name=name, route_prefix="/")
    except Exception as error:
        line = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        remedy = "See the log of its replica below Ray's folder; only one gateway can run on a cluster"
        raise InputError("gateway", f"does not start ({line[:300]})", remedy) from None


@contextmanager
def _serve_stopped_after(address: str | None) -> Iterator[None]:
    """Stop Serve on a cluster that goes on without us, unless others use it: its proxy would keep the port."""
    try:
        yield
    finally:
        if address is not None:
            stop_serve()


@contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that it ends a gateway as orderly as Ctrl-C does. Ray has its own handler until then."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)
