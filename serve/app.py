"""Tiers as Ray Serve applications: deployed together or not at all, and taken down again.

One application per tier, named `<app_name>.<tier>`, so that a tier that fails leaves the others alone and several runs share a
cluster.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from serve.deployments import TierDeployment
from serve.replicas.placement import live_nodes, place_tiers
from serve.replicas.tier_client import TierClient, running_replicas
from serve.upstream.spending import SpendingBook
from workloads.errors import InputError, ModelUnavailable

_LOG = logging.getLogger(__name__)
_POLL_S = 0.1
_DELETE_S = 60.0
"""For what Serve does itself, beside the time that replicas have for the calls they have begun."""
_ROUTER_BACKOFF: dict[str, Any] = {"initial_backoff_s": 0.01, "backoff_multiplier": 1.5, "max_backoff_s": 0.05}
"""How often Serve's router looks again for room at a replica that was full. Its own pauses grow from 25 to 500 ms, which is longer
than a small model takes for an answer: near capacity, calls would wait beside an idle place."""
_STARTS = 3  # of a replica before its tier counts as failed; what is no InputError may pass


def deploy(tiers: Mapping[str, TierDeployment], *, app_name: str, timeout_s: float = 600.0) -> dict[str, TierClient]:
    """Deploy tiers, given by the name of their model, and wait until all replicas are up; returns a client for each.

    The process must be connected to a cluster. Raises InputError, with nothing left behind: at once where no node fits (see
    `place_tiers`), and when a replica cannot start (its own InputError, or what it raised) or is not up within `timeout_s`.
    """
    placed = place_tiers(list(tiers.values()), live_nodes())
    apps = {model: f"{app_name}.{tier.name}" for model, tier in tiers.items()}
    start_serve()
    try:
        handles = _run(tiers, apps, app_name, placed)
        clients = {model: TierClient(tier, model, apps[model], handles[model]) for model, tier in tiers.items()}
        deadline_s = time.monotonic() + timeout_s
        _await_running({apps[model]: tier for model, tier in tiers.items()}, timeout_s)
        _await_known(clients.values(), deadline_s)
    except BaseException:  # also an interrupt: nothing half-deployed stays behind
        _undeploy_after_error(tiers, app_name)
        raise
    return clients


def undeploy(tiers: Mapping[str, TierDeployment], *, app_name: str) -> None:
    """Take the tiers of `app_name` down, gracefully: calls in flight may end. Other applications stay."""
    from ray import serve

    apps = [f"{app_name}.{tier.name}" for tier in tiers.values()]
    for app in apps:
        serve.delete(app, _blocking=False)
    deadline_s = time.monotonic() + _DELETE_S + max((tier.graceful_shutdown_s for tier in tiers.values()), default=0.0)
    while time.monotonic() < deadline_s and not serve.status().applications.keys().isdisjoint(apps):
        time.sleep(_POLL_S)


@contextmanager
def deployed(
    tiers: Mapping[str, TierDeployment], *, app_name: str, timeout_s: float = 600.0, book: SpendingBook | None = None
) -> Iterator[dict[str, TierClient]]:
    """`deploy` for the length of a block. What `book` says was spent before counts against limits on dollars."""
    from serve.replicas.budget import kept_budgets

    with kept_budgets(tiers.values(), app_name, book or SpendingBook()):
        clients = deploy(tiers, app_name=app_name, timeout_s=timeout_s)
        try:
            yield clients
        except BaseException:
            _undeploy_after_error(tiers, app_name)
            raise
        undeploy(tiers, app_name=app_name)


def _undeploy_after_error(tiers: Mapping[str, TierDeployment], app_name: str) -> None:
    """What else goes wrong must not hide the error that led here: often it is the same, such as a cluster that is gone."""
    try:
        undeploy(tiers, app_name=app_name)
    except Exception as error:
        _LOG.warning("%s could not be taken down (%s: %s)", app_name, type(error).__name__, error)


def start_serve() -> None:
    """Start Serve on the cluster if it does not run there yet, without HTTP proxies: callers use handles."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config=_quiet())


def _run(
    tiers: Mapping[str, TierDeployment], apps: Mapping[str, str], app_name: str, placed: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Hand the applications to Serve; returns their handles without waiting for replicas."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from serve.replicas.replica import CloudProxy, EdgeSLM

    targets = []
    for model, tier in tiers.items():
        replica: Any = serve.deployment(EdgeSLM if tier.where == "edge" else CloudProxy)
        deployment = replica.options(
            ray_actor_options=placed[tier.name],
            max_constructor_retry_count=_STARTS,
            logging_config=_quiet(),
            request_router_config=RequestRouterConfig(**_ROUTER_BACKOFF),
            **tier.serve_options(),
        )
        targets.append(serve.RunTarget(deployment.bind(tier, app_name), name=apps[model], route_prefix=None))
    handles = serve.run_many(targets, wait_for_ingress_deployment_creation=True, wait_for_applications_running=False)
    return dict(zip(tiers, handles, strict=True))


def _quiet() -> dict[str, Any]:
    return {"log_level": "WARNING", "enable_access_log": False}


def _await_running(tiers: Mapping[str, TierDeployment], timeout_s: float) -> None:
    from ray import serve

    deadline_s = time.monotonic() + timeout_s
    while True:
        seen = serve.status().applications
        waiting = [app for app in tiers if app not in seen or seen[app].status != "RUNNING"]
        if not waiting:
            return
        for app in waiting:
            if app in seen:
                _raise_failure(tiers[app], seen[app])
        if time.monotonic() > deadline_s:
            _raise_late(tiers, waiting, timeout_s)
        time.sleep(_POLL_S)


def _await_known(clients: Iterable[TierClient], deadline_s: float) -> None:
    """Wait until the clients have heard of their replicas: of a burst of calls before that Serve refuses all that may not wait."""
    for client in clients:
        while True:
            try:
                if len(client.stats()) >= client.tier.first_replicas:
                    break
            except ModelUnavailable as failure:
                problem = f"its replicas do not answer ({failure})"
            else:
                problem = "not all of its replicas answer"
            if time.monotonic() > deadline_s:
                raise InputError(client.tier.place, problem, "See the replica's log below Ray's folder")
            time.sleep(_POLL_S)


def _raise_failure(tier: TierDeployment, status: Any) -> None:
    """Raise InputError if Serve says that a replica's constructor failed for good."""
    from serve.replicas.replica import start_error

    message = "\n".join(deployment.message for deployment in status.deployments.values())
    error = start_error(message)  # such an error stays, so no further start is waited for
    if error is not None:
        raise error
    if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        problem = f"its replica does not start ({lines[-1][:300] if lines else status.message})"
        raise InputError(
            tier.place, problem, "Try the model in one process, or see the replica's log below Ray's folder"
        )


def _raise_late(tiers: Mapping[str, TierDeployment], waiting: Collection[str], timeout_s: float) -> None:
    late = [
        f"{running_replicas(app)[0]} of {tiers[app].first_replicas} replicas of {tiers[app].place}" for app in waiting
    ]
    raise InputError(
        tiers[next(iter(waiting))].place,
        f"not up within {timeout_s:g} s: {', '.join(late)}; what else runs on the cluster may hold its CPUs or GPUs",
        "See `ray status`; free or add nodes, or ask for fewer replicas",
    )
