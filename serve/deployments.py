"""What is served where, as frozen values: neither Ray nor a model library is needed to write a deployment down."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from serve.cloud import UpstreamSpec
from serve.generation import ModelSpec
from workloads.errors import InputError, suggest

WHERE = ("edge", "cloud")
_LOOK_BACK_S = 11.0
"""Over which Serve's autoscaler averages the load, at least: more than the 10 s between two reports of it."""
_BATCHES_IN_LINE = 4
_CHUNKS_PER_REPLICA = 3  # one being answered, one whose calls fill its freed slots, one arriving
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """How many replicas there may be, and the load that Serve aims at.

    target_ongoing: calls waiting or being answered per replica; None is the tier's `max_batch`, a full engine.
    upscale_delay_s, downscale_delay_s: how long the load must ask for more or fewer before anything happens.
    """

    min_replicas: int
    max_replicas: int
    target_ongoing: float | None = None
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 60.0

    def __post_init__(self) -> None:
        _whole("autoscaling min_replicas", self.min_replicas, 1)
        _whole("autoscaling max_replicas", self.max_replicas, self.min_replicas)
        if self.target_ongoing is not None:
            _number("autoscaling target_ongoing", self.target_ongoing, 0.0, above=True)
        _number("autoscaling upscale_delay_s", self.upscale_delay_s, 0.0)
        _number("autoscaling downscale_delay_s", self.downscale_delay_s, 0.0)


@dataclass(frozen=True, slots=True)
class TierDeployment:
    """One tier as Ray Serve runs it; InputError for a value that cannot be.

    name: the tier's name; calls, metrics and error messages use it.
    where: "edge" (on edge-tagged nodes only) or "cloud" (never on one).
    model: a ModelSpec to host, or an UpstreamSpec to forward to (in the cloud only).
    replicas: a fixed number, or Autoscaling.
    max_batch: sequences an engine works on at once, or calls a proxy forwards at once.
    max_queued: calls that may wait for a replica in one caller; more are refused ("overloaded"). None: no limit.
    num_cpus, num_gpus: what one replica reserves on its node.
    request_timeout_s: a call that takes longer, from the caller's submission on, ends with "timeout" and frees its slot.
    health_check_period_s, health_check_timeout_s: a replica that does not answer is replaced.
    graceful_shutdown_s: how long a replica that is stopped may finish the calls it has begun.
    """

    name: str
    where: str
    model: ModelSpec | UpstreamSpec
    replicas: int | Autoscaling = 1
    max_batch: int = 8
    max_queued: int | None = 1000
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    request_timeout_s: float = 60.0
    health_check_period_s: float = 5.0
    health_check_timeout_s: float = 30.0
    graceful_shutdown_s: float = 20.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(str(self.name)):
            raise InputError("tier name", f"found {self.name!r}", "Use letters, digits, '.', '_' and '-', at most 63")
        if self.where not in WHERE:
            raise InputError(f"{self.place}, where", f"found {self.where!r}", suggest(str(self.where), WHERE))
        if self.where == "edge" and not isinstance(self.model, ModelSpec):
            raise InputError(
                f"{self.place}, model", "an edge tier hosts its model", "Give a ModelSpec, or place it in the cloud"
            )
        if not isinstance(self.replicas, Autoscaling):
            _whole(f"{self.place}, replicas", self.replicas, 1)
        self._check_limits()
        _whole(f"{self.place}, max_batch", self.max_batch, 1)
        if self.max_queued is not None:
            _whole(f"{self.place}, max_queued", self.max_queued, 1)
        for field in ("num_cpus", "num_gpus", "graceful_shutdown_s"):
            _number(f"{self.place}, {field}", getattr(self, field), 0.0)
        for field in ("request_timeout_s", "health_check_period_s", "health_check_timeout_s"):
            _number(f"{self.place}, {field}", getattr(self, field), 0.0, above=True)

    def _check_limits(self) -> None:
        most = self.replicas.max_replicas if isinstance(self.replicas, Autoscaling) else self.replicas
        for name in ("requests_per_min", "tokens_per_min"):  # max_usd is kept in one place for all replicas
            if most > 1 and getattr(self.model, name, None) is not None:
                problem = f"{most} replicas, each of which would keep {name} for itself"
                raise InputError(
                    f"{self.place}, replicas", problem, "Use one replica: a proxy forwards many calls at once"
                )

    @property
    def place(self) -> str:
        """How messages call this tier."""
        return f"tier {self.name!r}"

    @property
    def first_replicas(self) -> int:
        """Replicas that must be up before the tier counts as deployed."""
        return self.replicas.min_replicas if isinstance(self.replicas, Autoscaling) else self.replicas

    @property
    def max_ongoing(self) -> int:
        """Requests Serve hands to one replica at once: several batches of a model of ours, a batch and a quarter of an upstream's.

        A line in the replica's engine leaves no slot empty. One before Serve's router does: it looks for room only now and then.
        """
        if isinstance(self.model, ModelSpec):
            return _BATCHES_IN_LINE * self.max_batch
        return self.max_batch + max(2, self.max_batch // 4)

    @property
    def bulk_calls(self) -> int:
        """Calls of bulk work that share a Serve request, and are lost together: a batch for an engine, one where each costs money."""
        return 1 if isinstance(self.model, UpstreamSpec) else self.max_batch

    @property
    def bulk_requests(self) -> int:
        """Serve requests of bulk work on their way at once: what keeps all replicas busy, and what an upstream's limits let pass."""
        if not isinstance(self.model, UpstreamSpec):
            return _CHUNKS_PER_REPLICA * self.first_replicas
        per_min = self.model.requests_per_min
        return self.first_replicas * (self.max_batch if per_min is None else max(1, min(self.max_batch, int(per_min))))

    def serve_options(self) -> dict[str, Any]:
        """The keyword arguments of `Deployment.options`, placement aside."""
        options: dict[str, Any] = {
            "max_ongoing_requests": self.max_ongoing,
            "max_queued_requests": -1 if self.max_queued is None else self.max_queued,
            "health_check_period_s": self.health_check_period_s,
            "health_check_timeout_s": self.health_check_timeout_s,
            "graceful_shutdown_timeout_s": self.graceful_shutdown_s,
            "graceful_shutdown_wait_loop_s": min(0.5, max(0.05, self.graceful_shutdown_s)),
        }
        if isinstance(self.replicas, Autoscaling):
            options["autoscaling_config"] = {
                "min_replicas": self.replicas.min_replicas,
                "max_replicas": self.replicas.max_replicas,
                "target_ongoing_requests": self.replicas.target_ongoing or float(self.max_batch),
                "upscale_delay_s": self.replicas.upscale_delay_s,
                "downscale_delay_s": self.replicas.downscale_delay_s,
                "look_back_period_s": max(_LOOK_BACK_S, self.replicas.upscale_delay_s),
            }
        else:
            options["num_replicas"] = self.replicas
        return options


def _number(place: str, value: Any, low: float, *, above: bool = False) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= low
    if not fits or (above and value == low):
        raise InputError(place, f"found {value!r}", f"Allowed: a number {'above' if above else 'from'} {low:g}")


def _whole(place: str, value: Any, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(place, f"found {value!r}", f"Allowed: a whole number from {low}")
