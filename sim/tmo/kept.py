"""Policies that an experiment trains once and finds again, under a name that says all they depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.cells import resolved
from sim.scenario import Scenario
from sim.tmo.card import CARD
from sim.tmo.observing import View
from sim.tmo.reward import Reward

if TYPE_CHECKING:
    from sim.tmo.learning.training import Plan


def key_of(*facts: Any) -> str:
    """A short name for whatever these facts say."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def kept_policy(folder: Path, scenario: Scenario, path: Path, view: View, reward: Reward, plan: Plan) -> str:
    """The folder of a policy trained so, trained now unless it is there. `path` is the scenario's file."""
    from sim.tmo.learning.training import train

    key = key_of(resolved(scenario), asdict(view), asdict(reward), asdict(plan))
    out = folder / "policies" / f"{plan.learner}-{key}"
    if not (out / CARD).exists():
        train([scenario], path, view, reward, plan, out)
    return str(out)


def save_json(path: Path, found: Any) -> None:
    """Keep a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
