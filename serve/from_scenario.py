"""From a scenario's tiers, as plain values, to what Ray Serve deploys."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.cloud import UpstreamSpec
from serve.deployments import Autoscaling, TierDeployment
from serve.generation import ModelSpec
from serve.pair import pair_path
from workloads.errors import InputError, suggest

_PAIR = ("pair/slm", "pair/llm")
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
    served = tier["serve"]
    if served is None:
        raise InputError(
            f"tiers.{name}.serve", "is missing", "Say which model is behind the tier, e.g. serve: {source: pair/slm}"
        )
    replicas: int | Autoscaling = tier["replicas"]
    if served["max_replicas"] is not None:
        replicas = Autoscaling(tier["replicas"], max(tier["replicas"], served["max_replicas"]))
    upstream = served["upstream"]
    return TierDeployment(
        name,
        served["where"] or ("edge" if tier["role"] == "slm" else "cloud"),
        _model(name, served, folder) if upstream is None else _upstream(upstream, prices),
        replicas=replicas,
        max_batch=tier["max_batch"] if upstream is None else upstream["concurrency"],
        num_cpus=served["num_cpus"],
        num_gpus=served["num_gpus"],
        request_timeout_s=served["request_timeout_s"],
    )


def _model(name: str, served: Mapping[str, Any], folder: Path) -> ModelSpec:
    source = served["source"]
    if source.startswith("pair/"):
        if source not in _PAIR:
            raise InputError(f"tiers.{name}.serve.source", f"found {source!r}", suggest(source, _PAIR))
        source = str(pair_path(source.removeprefix("pair/")))
    else:
        source = _local(source, folder)
    template = served["chat_template"]
    return ModelSpec(
        source,
        dtype=served["dtype"],
        device=served["device"],
        quantisation=served["quantisation"],
        chat_template=None if template is None else _local(template, folder),
        max_tokens=served["max_tokens"],
        threads=max(1, int(served["num_cpus"])),  # one replica must not take the cores of the others
    )


def _local(name: str, folder: Path) -> str:
    """A path of this machine where there is one, else the name as it is: a model of the hub."""
    expanded = os.path.expandvars(os.path.expanduser(name))
    for path in (folder / expanded, Path(expanded)):
        if path.exists():
            return str(path.resolve())
    return expanded


def _upstream(upstream: Mapping[str, Any], prices: Prices) -> UpstreamSpec:
    per_mtok = [price * 1e6 for price in prices]
    return UpstreamSpec(
        **upstream,
        input_usd_per_mtok=per_mtok[0],
        cached_input_usd_per_mtok=per_mtok[1],
        output_usd_per_mtok=per_mtok[2],
    )
