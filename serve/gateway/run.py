"""The gateway on a cluster: an OpenAI-compatible Ray Serve ingress in front of deployed tiers.

One replica serves all calls: it is the one place that knows every call under way, and it remembers the requests that policies
decide on once. It never runs on an edge node.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPException
from typing import Any

from serve.app import deployed
from serve.deployments import TierDeployment
from serve.gateway.calls import Calls, GatewayOptions
from serve.live import connected
from serve.replicas.placement import TIER_LABEL
from serve.replicas.tier_client import TierClient
from workloads.errors import InputError
from workloads.placing import Placer

KEY_VARIABLE = "ISTHMUS_GATEWAY_KEY"
"""Environment variable with the key that clients must show; unset or empty: none."""
_ANSWERS_S = 120.0
_PORT_FREE_S = 10.0
_ANYWHERE = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, not bound to
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def check_port(host: str, port: int) -> None:
    """Raise InputError for an address of this machine that cannot be listened on: no address of it, or a taken port."""
    place = f"--host {host} --port {port}"
    if not 0 < port < 65536:
        raise InputError(place, "not a port", "Give a number from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise InputError(place, "no such host", "Give an address of this machine, e.g. 127.0.0.1 or 0.0.0.0") from None
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports of connections that have ended are free
        try:
            probe.bind(address)
            probe.listen()
        except OSError as error:
            remedy = "Give another port, or stop what listens there"
            raise InputError(place, f"cannot be listened on ({error.strerror})", remedy) from None


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
            url = f"http://{_reachable(host)}:{port}"
            _await_answer(url)
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
        ray_actor_options={"num_cpus": 0, "label_selector": {TIER_LABEL: "!edge"}},
        logging_config=_quiet(),
    )
    try:
        serve.run(deployment.bind(placer, dict(tiers), options), name=name, route_prefix="/")
    except Exception as error:
        line = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        remedy = "See the log of its replica below Ray's folder; only one gateway can run on a cluster"
        raise InputError("gateway", f"does not start ({line[:300]})", remedy) from None


def start_http(host: str, port: int) -> None:
    """Start Serve with its HTTP proxy on the head node; one without applications is stopped first, as it keeps its settings.

    Raises InputError for a port of this machine that is taken, if the head node is here.
    """
    import ray
    from ray import serve
    from ray.exceptions import RayActorError

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if not serve.status().applications:
        serve.shutdown()  # type: ignore[no-untyped-call]
        if _head() == ray.util.get_node_ip_address():  # type: ignore[no-untyped-call]
            _await_port(host, port)
    patience = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30"}
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config=_quiet(),
            controller_options={
                "runtime_env": {"env_vars": patience}
            },  # on a busy machine 5 s are too short to start in
        )
    except (TimeoutError, RayActorError):
        return  # its controller goes on starting proxies; whether one comes up is seen when the gateway is asked


@contextmanager
def _serve_stopped_after(address: str | None) -> Iterator[None]:
    """Stop Serve on a cluster that goes on without us, unless others use it: its proxy would keep the port."""
    from ray import serve

    try:
        yield
    finally:
        if address is not None and not serve.status().applications:
            serve.shutdown()  # type: ignore[no-untyped-call]


def _quiet() -> dict[str, Any]:
    return {"log_level": "WARNING", "enable_access_log": False}


def _await_port(host: str, port: int) -> None:
    """`check_port`, with time for a proxy that was just stopped to let its port go."""
    deadline_s = time.monotonic() + _PORT_FREE_S
    while True:
        try:
            return check_port(host, port)
        except InputError:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(0.2)


def _head() -> str:
    """The address of the head node."""
    import ray

    return str(ray.get_runtime_context().gcs_address).rpartition(":")[0]


def _reachable(host: str) -> str:
    """Where to ask for a gateway that listens on `host` of the head node."""
    if host in _ANYWHERE:
        return _head()
    return f"[{host}]" if ":" in host else host


def _await_answer(url: str) -> None:
    """Wait until the gateway answers over HTTP, whatever it says of its tiers."""
    deadline_s, problem = time.monotonic() + _ANSWERS_S, ""
    while time.monotonic() < deadline_s:
        problem = _problem(f"{url}/healthz")
        if not problem:
            return
        time.sleep(0.2)
    remedy = "Ray Serve may run on this cluster already with other HTTP settings: use its port, or another cluster"
    raise InputError("gateway", f"does not answer at {url} ({problem})", remedy)


def _problem(page: str) -> str:
    """Why the health page is not ours; empty if it is."""
    try:
        with _DIRECT.open(page, timeout=10) as answer:
            found = answer.read(100_000)
    except urllib.error.HTTPError as error:
        with error:
            found = error.read(100_000)
    except (OSError, HTTPException) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return "" if b'"tiers":{' in found else "something else answers there"


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
