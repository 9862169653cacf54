"""What an experiment makes once and finds again: policies and numbers under a name that says all they depend on; one simulation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sim.policies.base import RoutingPolicy
from sim.records import Records
from sim.run_store import write_text
from sim.scenario import Scenario
from sim.simulation import simulate
from sim.tmo.card import CARD
from sim.tmo.observing import View
from sim.tmo.reward import Reward
from sim.workload import build_workload, load_trace

if TYPE_CHECKING:
    from sim.tmo.learning.training import Plan


def kept_policy(
    folder: Path, scenarios: Sequence[Scenario], path: Path, view: View, reward: Reward, plan: Plan,
    on_rollout: Callable[..., None] | None = None,
) -> str:  # fmt: skip
    """The folder of a policy trained so, trained now unless it is there. `path` is the scenarios' file."""
    from sim.tmo.learning.training import identity_of, train

    key = identity_of(scenarios, view, reward, plan)[:12]
    out = folder / "policies" / f"{plan.learner}-{plan.rule.keep}-{key}"
    if not (out / CARD).exists():
        train(scenarios, path, view, reward, plan, out, on_rollout)
    return str(out)


def simulated(scenario: Scenario, path: Path, policy: RoutingPolicy, seed: int) -> Records:
    """The records of a scenario, whose file is `path`, under a policy and a seed."""
    workload = build_workload(scenario, seed, path)
    return simulate(scenario, workload, policy, seed, lambda file: load_trace(file, path))


def save_json(path: Path, found: Any) -> None:
    """Keep a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=1) + "\n")


def save_array(path: Path, found: npt.ArrayLike) -> None:
    """Keep numbers, as .npy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.npy")
    np.save(partial, found, allow_pickle=False)
    os.replace(partial, path)
