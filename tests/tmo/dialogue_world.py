"""A small scenario of generated dialogues, and networks for it that nobody trained."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sim.loading import LoadedScenario
from sim.tmo.card import Card, Network, write_policy
from sim.tmo.environment import PlacementEnv, view_of
from sim.tmo.observing import DEFAULT_PARTS, Budget, View
from sim.tmo.reward import Reward
from tests.helpers import load_text

WORLD = """
name: dialogues
workload:
  tasks: {kind: dialogues, modalities: 2, kinds: 3, turns: [2, 3, 4]}
  requests: 60
  arrivals: {kind: poisson, rate_per_s: 0.05}
tiers:
  local: {role: slm, model: llama-3.2-3b-int4, device: jetson-orin-nx}
  cloud: {role: llm, model: gpt-4o, endpoint: gpt-4o-class, prefix_cache: false}
links:
  - {between: [home, cloud], link: wifi}
sla: {deadline_s: 60.0, penalty_usd: 0.0}
policies: [all-slm]
seeds: [1]
"""


def dialogues(folder: Path, *settings: str) -> LoadedScenario:
    """The scenario above, changed by settings."""
    return load_text(folder, WORLD, settings)


def environment(
    loaded: LoadedScenario, budgets: Sequence[Budget] = (), parts: Sequence[str] = DEFAULT_PARTS, **options: Any
) -> PlacementEnv:
    """The environment of a scenario."""
    view = options.pop("view", None) or view_of(loaded.scenario, loaded.path, parts, budgets)
    return PlacementEnv(loaded.scenario, loaded.path, view, options.pop("reward", Reward()), **options)


def random_network(view: View, seed: int = 0, scale: float = 2.0) -> Network:
    """Two layers of random weights, large enough that actions differ from turn to turn."""
    rng = np.random.default_rng(seed)
    sizes = [len(view.bounds[0]), 16, len(view.actions)]
    layers = [
        (rng.normal(0, scale / before**0.5, (after, before)).astype(np.float32), np.zeros(after, np.float32))
        for before, after in pairwise(sizes)
    ]
    return Network(tuple(layers), "tanh")


def untrained(view: View, reward: Reward | None = None, decide: str = "greedy") -> Card:
    """A card for such a network."""
    return Card(view, reward or Reward(), "ppo", decide, "dialogues", 0, 1, "tanh")


def written(folder: Path, view: View, **changes: Any) -> Path:
    """A policy of random weights in a folder."""
    write_policy(folder, untrained(view, **changes), random_network(view))
    return folder
