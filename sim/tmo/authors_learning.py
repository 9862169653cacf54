"""Training the authors' learners in the authors' way: Stable-Baselines3 with its defaults, 30,000 steps.

What is kept of a trained policy is the network that chooses its action, as arrays: evaluating needs neither torch nor a pickle.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from sim.tmo.authors import Setting
from sim.tmo.card import Network
from sim.tmo.recorded_walk import RecordedWalk, observed
from sim.tmo.turn_policies import TurnPolicy, greedy
from workloads.errors import InputError

LEARNERS = ("PPO", "A2C", "DQN")
STEPS = 30_000
REPORT_EVERY = 1000
"""Steps between two reports of progress."""


def save_network(network: Network, path: Path) -> None:
    """Write as .npz, atomically."""
    arrays = {
        f"{kind}{number}": tensor
        for number, layer in enumerate(network.layers)
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    }
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.npz")
    np.savez(partial, activation=np.array(network.activation), **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)


def load_network(path: Path) -> Network:
    """Read what `save_network` wrote. Raises InputError for anything else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            count = sum(name.startswith("weight") for name in file.files)
            layers = tuple((file[f"weight{number}"], file[f"bias{number}"]) for number in range(count))
            return Network(layers, str(file["activation"]))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(
            str(path), f"is no saved policy ({error})", "Delete it; the same command trains it again"
        ) from None


def trained(
    learner: str, environment: RecordedWalk, seed: int, steps: int = STEPS, on_steps: Callable[[], None] = lambda: None
) -> Network:
    """A policy trained on a recorded walk; one thread, repeatable. `on_steps` is called once every REPORT_EVERY steps."""
    import stable_baselines3

    from sim.tmo.learning.learners import network_of

    def report(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps % REPORT_EVERY == 0:
            on_steps()
        return True

    with threadpool_limits(1):
        algorithm = getattr(stable_baselines3, learner)("MlpPolicy", environment, seed=seed, device="cpu")
        algorithm.learn(steps, callback=report)
    chosen = network_of(algorithm)
    return Network(
        tuple((weight.astype(float), bias.astype(float)) for weight, bias in chosen.layers), chosen.activation
    )


def training_key(learner: str, environment: RecordedWalk, seed: int, steps: int) -> str:
    """A hash of all that a trained policy depends on: what is walked through, the learner and the programs' versions."""
    digest = hashlib.sha256(environment.fingerprint())
    versions = [importlib.metadata.version(name) for name in ("numpy", "torch", "stable-baselines3", "gymnasium")]
    digest.update(json.dumps([learner, seed, steps, versions]).encode())
    for name in ("authors_learning", "recorded_walk"):
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()[:12]


def policy_of(network: Network, setting: Setting, *, budgets: bool = False) -> TurnPolicy:
    """A trained network as a policy on features, which always takes its best action, as the authors evaluate it."""
    return greedy(lambda features: network(observed(setting, features, budgets=budgets)))
