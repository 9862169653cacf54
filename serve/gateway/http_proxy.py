"""Ray Serve's HTTP proxy for the gateway: started on the head node with the settings wanted, awaited, and stopped again.

Serve keeps the settings it was started with, and there is one Serve on a cluster. Where they do not fit it is stopped first, but
only if nobody can miss it.
"""

from __future__ import annotations

import logging
import socket
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from workloads.errors import InputError

_ANSWERS_S = 120.0
_PORT_FREE_S = 10.0
_GCS_S = 10.0
_RAYS_OWN = "_ray_internal_"
"""How the namespaces of drivers begin that Ray starts for itself, such as its dashboard's."""
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


def start_http(host: str, port: int) -> None:
    """Start Serve with its HTTP proxy on the head node; one that has other settings keeps them, so it is stopped first.

    Raises InputError for a port of this machine that is taken, if the head node is here, and where Serve cannot be stopped
    because somebody uses it.
    """
    import ray
    from ray import serve
    from ray.exceptions import RayActorError

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    found = _http_settings()
    if found == (host, port):
        return
    if found is not None and not stop_serve():
        told = f"{found[0]}:{found[1]}" if found[0] else "without HTTP"
        problem = f"Ray Serve runs on this cluster already, {told}, and others use it"
        remedy = "Wait until they have ended, give the port it has, or use another cluster"
        raise InputError(f"--host {host} --port {port}", problem, remedy)
    if _head() == ray.util.get_node_ip_address():  # type: ignore[no-untyped-call]
        _await_port(host, port)
    patience = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30"}
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config=quiet(),
            controller_options={
                "runtime_env": {"env_vars": patience}
            },  # on a busy machine 5 s are too short to start in
        )
    except (TimeoutError, RayActorError):
        return  # its controller goes on starting proxies; whether one comes up is seen when the gateway is asked


def stop_serve() -> bool:
    """Stop Serve if nobody can miss it: who has an application on it does, and another driver may be about to deploy one."""
    from ray import serve

    if serve.status().applications or _other_drivers():
        return False
    serve.shutdown()  # type: ignore[no-untyped-call]
    return True


def serves_http() -> bool:
    """Whether Serve runs with an HTTP proxy."""
    found = _http_settings()
    return found is not None and found[0] != ""


def _other_drivers() -> bool:
    """Whether other programs are connected to the cluster."""
    import ray
    from ray._private.worker import global_worker

    mine = ray.get_runtime_context().get_job_id()
    gcs: Any = getattr(global_worker, "gcs_client")  # noqa: B009 - the types do not know it
    jobs = gcs.get_all_job_info(skip_submission_job_info_field=True, skip_is_running_tasks_field=True, timeout=_GCS_S)
    others = [job for job in jobs.values() if not job.is_dead and job.job_id.hex() != mine]
    return any(not job.config.ray_namespace.startswith(_RAYS_OWN) for job in others)


def _http_settings() -> tuple[str, int] | None:
    """Where Serve's proxy listens, the host empty if there is no proxy; None where Serve does not run."""
    import ray
    from ray.serve.config import ProxyLocation
    from ray.serve.context import _check_cached_client_alive, _get_global_client

    client, _ = _check_cached_client_alive()  # somebody may have stopped the Serve this process knows
    client = client or _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    location = ray.get(client._controller.get_proxy_location.remote(), timeout=_ANSWERS_S)
    config = client.http_config
    return ("", 0) if location == ProxyLocation.Disabled or not config.host else (str(config.host), int(config.port))


def quiet() -> dict[str, Any]:
    """Serve's logging without a line for every request."""
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


def reachable(host: str) -> str:
    """Where to ask for a gateway that listens on `host` of the head node."""
    if host in _ANYWHERE:
        return _head()
    return f"[{host}]" if ":" in host else host


def await_answer(url: str) -> None:
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
