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
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from sim.tmo.authors import Setting
from sim.tmo.logged import FloatArray
from sim.tmo.recorded_walk import RecordedWalk, observed
from sim.tmo.turn_policies import TurnPolicy, greedy
from workloads.errors import InputError

LEARNERS = ("PPO", "A2C", "DQN")
STEPS = 30_000
REPORT_EVERY = 1000
"""Steps between two reports of progress."""


class Network(NamedTuple):
    """A multi-layer perceptron: layer i is `weights[i]` (out, in) and `biases[i]` (out,); `activation` between layers."""

    weights: tuple[FloatArray, ...]
    biases: tuple[FloatArray, ...]
    activation: str

    def __call__(self, observations: FloatArray) -> FloatArray:
        """(n, inputs) -> (n, actions): the best action has the largest output."""
        squash = np.tanh if self.activation == "tanh" else lambda x: np.maximum(x, 0.0)
        hidden = observations
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = (squash(hidden) if layer else hidden) @ weight.T + bias
        return hidden

    def save(self, path: Path) -> None:
        """Write as .npz, atomically."""
        arrays = {f"weight{i}": w for i, w in enumerate(self.weights)} | {
            f"bias{i}": b for i, b in enumerate(self.biases)
        }
        partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.npz")
        np.savez(partial, activation=np.array(self.activation), **arrays)  # type: ignore[arg-type]
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Network:
        """Read what `save` wrote. Raises InputError for anything else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                layers = range(sum(name.startswith("weight") for name in file.files))
                weights, biases = (tuple(file[f"{kind}{i}"] for i in layers) for kind in ("weight", "bias"))
                return cls(weights, biases, str(file["activation"]))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(
                str(path), f"is no saved policy ({error})", "Delete it; the same command trains it again"
            ) from None


def trained(
    learner: str, environment: RecordedWalk, seed: int, steps: int = STEPS, on_steps: Callable[[], None] = lambda: None
) -> Network:
    """A policy trained on a recorded walk; one thread, repeatable. `on_steps` is called once every REPORT_EVERY steps."""
    import stable_baselines3

    def report(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["self"].num_timesteps % REPORT_EVERY == 0:
            on_steps()
        return True

    with threadpool_limits(1):
        algorithm = getattr(stable_baselines3, learner)("MlpPolicy", environment, seed=seed, device="cpu")
        algorithm.learn(steps, callback=report)
    return network_of(algorithm)


def training_key(learner: str, environment: RecordedWalk, seed: int, steps: int) -> str:
    """A hash of all that a trained policy depends on: what is walked through, the learner and the programs' versions."""
    digest = hashlib.sha256(environment.fingerprint())
    versions = [importlib.metadata.version(name) for name in ("numpy", "torch", "stable-baselines3", "gymnasium")]
    digest.update(json.dumps([learner, seed, steps, versions]).encode())
    for name in ("authors_learning", "recorded_walk"):
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()[:12]


def network_of(algorithm: Any) -> Network:
    """The layers that choose a Stable-Baselines3 policy's action: the actor of PPO and A2C, the Q network of DQN."""
    parameters = {name: value.cpu().numpy() for name, value in algorithm.policy.state_dict().items()}
    if any(name.startswith("q_net.") for name in parameters):
        names, activation = [name for name in parameters if name.startswith("q_net.q_net.")], "relu"
    else:
        names = [name for name in parameters if name.startswith(("mlp_extractor.policy_net.", "action_net."))]
        activation = "tanh"
    weights, biases = (
        tuple(parameters[name].astype(np.float64) for name in names if name.endswith(kind))
        for kind in (".weight", ".bias")
    )
    return Network(weights, biases, activation)


def policy_of(network: Network, setting: Setting, *, budgets: bool = False) -> TurnPolicy:
    """A trained network as a policy on features, which always takes its best action, as the authors evaluate it."""
    return greedy(lambda features: network(observed(setting, features, budgets=budgets)))
