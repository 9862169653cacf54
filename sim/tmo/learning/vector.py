"""Many placement environments at a time for Stable-Baselines3, with the multipliers' price taken off the rewards.

Unlike `DummyVecEnv` it copies no infos, and the constraint's arithmetic is done for all environments together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecEnv

from sim.tmo.constraint import Array, Multipliers
from sim.tmo.environment import Episode, PlacementEnv

_LATELY = 200


class PlacementVecEnv(VecEnv):
    """Environments side by side in one process, each with its own simulation.

    `priced`: rewards are less multipliers x signals. Learners that replay old steps take them unpriced, with `info["signals"]` and
    `info["places"]`, as the multipliers will have moved (`PricedReplay`).
    """

    def __init__(self, envs: Sequence[PlacementEnv], multipliers: Multipliers, *, priced: bool = True) -> None:
        first = envs[0]
        self.envs, self.multipliers, self.priced = list(envs), multipliers, priced
        super().__init__(len(envs), first.observation_space, first.action_space)
        self.lately: deque[tuple[Episode, Array]] = deque(maxlen=_LATELY)
        """The last episodes with their budgets."""
        budgets = len(first.view.budgets)
        self._observations = np.zeros((len(envs), *first.observation_space.shape), np.float32)  # type: ignore[misc]
        self._spent, self._budgets, self._places, self._totals = (np.zeros((len(envs), budgets)) for _ in range(4))
        self._actions = np.zeros(len(envs), np.int64)

    def reset(self) -> Any:
        """All environments anew, with the seeds given by `seed`."""
        for index, env in enumerate(self.envs):
            self._begin(index, *env.reset(seed=self._seeds[index]))
        self._reset_seeds()
        return self._observations.copy()

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> Any:
        """(observations, rewards, dones, infos); an environment whose episode has ended shows the next one's first turn."""
        count, budgets = self._spent.shape
        rewards, dones, costs = np.zeros(count, np.float32), np.zeros(count, bool), np.zeros((count, budgets))
        infos: list[dict[str, Any]] = []
        for index, (env, action) in enumerate(zip(self.envs, self._actions.tolist(), strict=True)):
            observation, rewards[index], dones[index], _, info = env.step(action)
            costs[index] = info["costs"][:budgets]
            self._observations[index] = observation
            infos.append(info)
        after = self._spent + costs
        rule = self.multipliers.rule
        signals = rule.signals(self._spent, after, self._budgets)
        if rule.keep == "zero":
            rewards[(after > self._budgets).any(axis=1)] = 0.0
        if self.priced:
            rewards -= (self.multipliers.at(self._places) * signals).sum(axis=1).astype(np.float32)
        else:
            for index, info in enumerate(infos):
                info["signals"], info["places"] = signals[index], self._places[index].copy()
        self._spent, self._totals = after, self._totals + signals
        if dones.any():
            self._end(np.flatnonzero(dones), infos)
        return self._observations.copy(), rewards, dones, infos

    def _end(self, ended: np.ndarray, infos: list[dict[str, Any]]) -> None:
        self.multipliers.add(self._places[ended], self._totals[ended])
        for index in ended.tolist():
            self.lately.append((infos[index]["episode_end"], self._budgets[index].copy()))
            infos[index]["terminal_observation"] = self._observations[index].copy()
            self._begin(index, *self.envs[index].reset())

    def _begin(self, index: int, observation: np.ndarray, info: dict[str, Any]) -> None:
        self._observations[index] = observation
        self._spent[index] = self._totals[index] = 0.0
        for number, (spec, budget) in enumerate(zip(self.envs[index].view.budgets, info["budgets"], strict=True)):
            self._budgets[index, number], self._places[index, number] = budget, spec.place_of(budget)

    # ------------------------------------------------------------------------------------------- what VecEnv asks for besides

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the environments."""
        return [getattr(self.envs[index], attr_name, None) for index in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the environments."""
        for index in self._get_indices(indices):
            setattr(self.envs[index], attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the environments."""
        return [
            getattr(self.envs[index], method_name)(*method_args, **method_kwargs)
            for index in self._get_indices(indices)
        ]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """None is."""
        return [isinstance(self.envs[index], wrapper_class) for index in self._get_indices(indices)]

    def get_images(self) -> list[None]:
        """There is nothing to look at."""
        return [None] * self.num_envs


class PricedReplay(ReplayBuffer):
    """A replay buffer that keeps rewards and signals apart and prices a step when it is sampled, with the multipliers of now."""

    def __init__(self, *arguments: Any, multipliers: Multipliers, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.multipliers = multipliers
        shape = (self.buffer_size, self.n_envs, len(multipliers.values))
        self.signals, self.places = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def add(self, obs: Any, next_obs: Any, action: Any, reward: Any, done: Any, infos: list[dict[str, Any]]) -> None:
        """Keep one step of every environment."""
        for index, info in enumerate(infos):
            self.signals[self.pos, index], self.places[self.pos, index] = info["signals"], info["places"]
        super().add(obs, next_obs, action, reward, done, infos)

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> ReplayBufferSamples:
        envs = np.random.randint(0, high=self.n_envs, size=len(batch_inds))  # noqa: NPY002 - what SB3 seeds and draws from
        at = (batch_inds, envs)
        prices = (self.multipliers.at(self.places[at].astype(np.float64)) * self.signals[at]).sum(axis=1)
        columns = (
            self.observations[at], self.actions[at], self.next_observations[at], self.dones[at].reshape(-1, 1),
            (self.rewards[at] - prices).astype(np.float32).reshape(-1, 1),
        )  # fmt: skip
        return ReplayBufferSamples(*(torch.as_tensor(column) for column in columns))
