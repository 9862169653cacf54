"""From a scenario's tiers, as plain values, to what Ray Serve deploys."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.cloud import UpstreamSpec
from serve.deployments import Autoscaling, TierDeployment
from serve.generation import ModelSpec
from workloads.errors import InputError, suggest

_PAIR = ("pair/slm", "pair/llm")
_HOSTED_TIMEOUT_S = 60.0
_SLOW_TRIES = 3
"""Tries at an upstream that a call has time for, each as long as one may take: one that is slow once must not fail."""
Prices = tuple[float, float, float]
"""$ per token of prompt, cached prompt and answer."""


def deployments_of(
    tiers: Mapping[str, Mapping[str, Any]], folder: Path, prices: Mapping[str, Prices]
) -> dict[str, TierDeployment]:
    """Model name -> its tier's deployment, for tiers given as a resolved scenario's plain values.

    Relative paths are looked for in `folder`, the scenario's own, and then in the working directory. Raises InputError for a
    tier without a served model and for a shipped model that does not exist.
    """
    return {tier["model_name"] or name: _deployment(name, tier, folder, prices[name]) for name, tier in tiers.items()}


def _deployment(name: str, tier: Mapping[str, Any], folder: Path, prices: Prices) -> TierDeployment:
    place, served = f"tiers.{name}.serve", tier["serve"]
    if served is None:
        raise InputError(place, "is missing", "Say which model is behind the tier, e.g. serve: {source: pair/slm}")
    replicas: int | Autoscaling = tier["replicas"]
    if served["max_replicas"] is not None:
        replicas = Autoscaling(tier["replicas"], max(tier["replicas"], served["max_replicas"]))
    upstream = served["upstream"]
    if upstream is None:
        model: ModelSpec | UpstreamSpec = _model(place, served, folder)
        max_batch, timeout_s = tier["max_batch"], _HOSTED_TIMEOUT_S
    else:
        model = _upstream(place, upstream, served["max_tokens"], prices)
        max_batch, timeout_s = model.concurrency, _SLOW_TRIES * model.timeout_s
    return TierDeployment(
        name,
        served["where"] or ("edge" if tier["role"] == "slm" else "cloud"),
        model,
        replicas=replicas,
        max_batch=max_batch,
        num_cpus=served["num_cpus"],
        num_gpus=served["num_gpus"],
        request_timeout_s=served["request_timeout_s"] or timeout_s,
    )


def _model(place: str, served: Mapping[str, Any], folder: Path) -> ModelSpec:
    source = served["source"]
    # What ships with the project is found by the replica, on its own machine; what is in a file of this one is sent along.
    if not source.startswith("pair/"):
        source = _local(source, folder)
    elif source not in _PAIR:
        raise InputError(f"{place}.source", f"found {source!r}", suggest(source, _PAIR))
    template = served["chat_template"]
    return ModelSpec(
        source,
        dtype=served["dtype"],
        device=_device(place, served["device"], served["num_gpus"]),
        quantisation=served["quantisation"],
        chat_template=None if template is None else _text(f"{place}.chat_template", _local(template, folder)),
        max_tokens=served["max_tokens"],
        threads=max(1, int(served["num_cpus"])),  # one replica must not take the cores of the others
    )


def _device(place: str, device: str, num_gpus: float) -> str:
    """What `auto` is: Ray does not hide a node's GPUs from a replica that asked for none, and others may have reserved them."""
    if device == "auto":
        return "cuda" if num_gpus > 0 else "cpu"
    if device.startswith("cuda") and not num_gpus > 0:
        remedy = "Say how many a replica takes, e.g. num_gpus: 1, or device: cpu"
        raise InputError(f"{place}.device", f"found {device!r}, but num_gpus is 0", remedy)
    return device


def _local(name: str, folder: Path) -> str:
    """A path of this machine where there is one, else the name as it is: a model of the hub."""
    expanded = os.path.expandvars(os.path.expanduser(name))
    for path in (folder / expanded, Path(expanded)):
        if path.exists():
            return str(path.resolve())
    return expanded


def _text(place: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(place, f"{path!r} cannot be read ({reason})", "Give a Jinja file") from None


def _upstream(place: str, upstream: Mapping[str, Any], max_tokens: int, prices: Prices) -> UpstreamSpec:
    fields = dict(upstream)
    if fields["input_usd_per_mtok"] is None:
        names = ("input_usd_per_mtok", "cached_input_usd_per_mtok", "output_usd_per_mtok")
        fields |= zip(names, (price * 1e6 for price in prices), strict=True)
    try:
        return UpstreamSpec(**fields, max_tokens=max_tokens)
    except InputError as error:
        raise InputError(f"{place}.{error.place.replace(' ', '.')}", error.problem, error.remedy) from None
