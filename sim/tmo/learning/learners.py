"""The learners of Stable-Baselines3 as they are used here, and their networks as plain arrays."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from sim.tmo.card import Network
from sim.tmo.constraint import Multipliers
from sim.tmo.learning.vector import PlacementVecEnv, PricedReplay
from workloads.errors import InputError, suggest

WIDTH = 64
"""Units of each of the two hidden layers."""
ROLLOUT, LONG_ROLLOUT = 512, 2048
"""Turns between two updates of PPO: the first, and in long trainings more, up to the second, as long as 120 updates are left.

Gradients are steadier then, and with a rate that is lower by the root of that the policy ends better and nearer to its budget.
"""
ENTROPY = 0.01
"""Weight of the policy's entropy at the beginning of a training; it falls to 0."""
ON_POLICY: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "a2c": A2C}
LEARNERS = (*ON_POLICY, "dqn")


def build(name: str, env: PlacementVecEnv, multipliers: Multipliers, seed: int, steps: int) -> BaseAlgorithm:
    """A learner on these environments. Episodes are short: nothing is discounted. Raises InputError for an unknown name."""
    common: dict[str, Any] = {
        "gamma": 1.0,
        "seed": seed,
        "device": "cpu",
        "policy_kwargs": {"net_arch": [WIDTH, WIDTH]},
    }
    if name == "ppo":
        turns = min(max(ROLLOUT, steps // 120), LONG_ROLLOUT)
        rollout, rate = max(1, turns // env.num_envs), 2e-3 * math.sqrt(ROLLOUT / turns)
        batch = max(2, rollout * env.num_envs // round(2 * turns / ROLLOUT))
        return PPO(
            "MlpPolicy", env, learning_rate=partial(_falling, rate), n_steps=rollout, batch_size=batch, n_epochs=5, gae_lambda=0.95,
            ent_coef=ENTROPY, **common,
        )  # fmt: skip
    if name == "a2c":
        return A2C(
            "MlpPolicy", env, learning_rate=partial(_falling, 1e-3), n_steps=max(1, 128 // env.num_envs), gae_lambda=0.95, ent_coef=ENTROPY,
            use_rms_prop=False, normalize_advantage=True, **common,
        )  # fmt: skip
    if name == "dqn":
        return DQN(
            "MlpPolicy", env, learning_rate=partial(_falling, 1e-3), buffer_size=50_000, learning_starts=min(1000, steps // 10),
            batch_size=256, train_freq=4, gradient_steps=2, target_update_interval=500, exploration_fraction=0.4,
            exploration_final_eps=0.05, replay_buffer_class=PricedReplay, replay_buffer_kwargs={"multipliers": multipliers}, **common,
        )  # fmt: skip
    raise InputError("learner", f"there is no learner {name!r}", suggest(name, LEARNERS))


def _falling(first: float, remaining: float) -> float:
    """From `first` down to a twentieth of it."""
    return first * (0.05 + 0.95 * remaining)


def network_of(model: BaseAlgorithm) -> Network:
    """The part of a learner that decides."""
    policy: Any = model.policy
    if isinstance(model, DQN):
        modules, activation = list(policy.q_net.q_net), "relu"
    else:
        modules, activation = [*policy.mlp_extractor.policy_net, policy.action_net], "tanh"
    linear = [module for module in modules if isinstance(module, torch.nn.Linear)]
    return Network(tuple((_array(layer.weight), _array(layer.bias)) for layer in linear), activation)


def _array(tensor: torch.Tensor) -> Any:
    return np.array(tensor.detach().numpy(), np.float32)
