"""The authors' training environment: a walk through RECORDED states, whose rewards come from their table of neighbours.

What an action changes is its own reward and nothing else: the next state is the log's, whatever was done. That is one of the faults
this reproduces; `sim/tmo/environment.py` is the environment in which a policy meets its own consequences.
"""

from __future__ import annotations

import hashlib
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from sim.tmo.authors import Setting, values_of
from sim.tmo.logged import NOT_YET, FloatArray, LoggedTurns
from sim.tmo.responses import ResponseModel
from sim.tmo.turn_policies import spent

Seen = npt.NDArray[np.float32]


class RecordedWalk(gymnasium.Env[Seen, np.int64]):
    """Episodes are logged dialogues, drawn with replacement.

    With `budgets` the observation ends with what is left of a dialogue's seconds and dollars, drawn anew for every episode around half
    of what five turns can cost, and a turn beyond either is worth 0 (their RC- policies since the journal version).
    """

    def __init__(self, setting: Setting, model: ResponseModel, turns: LoggedTurns, *, budgets: bool = False) -> None:
        layout = turns.layout
        self._setting, self._budgets = setting, budgets
        self._states = turns.features[:, : layout.history].astype(np.float32)
        self._rewards = values_of(setting, model)(turns.features)
        self._starts = np.flatnonzero(turns.position == 0)
        self._ends = np.append(self._starts[1:], len(turns))
        self._costs = np.column_stack([setting.latency_s, setting.usage_usd])
        row = np.array([1.0] * (layout.images + 1) + [len(layout.kinds) - 1.0])
        low, high = np.full(layout.history, float(NOT_YET)), np.tile(row, layout.history // len(row))
        if budgets:
            most = self._costs.max(axis=0) * (turns.position.max() + 1)
            low, high = np.append(low, -most), np.append(high, 5 * self._costs[-1])
        self.observation_space: gymnasium.spaces.Space[Seen] = gymnasium.spaces.Box(
            low.astype(np.float32), high.astype(np.float32), dtype=np.float32
        )
        self.action_space = gymnasium.spaces.Discrete(layout.actions)
        self._row = self._end = 0
        self._left = np.zeros(2)

    def fingerprint(self) -> bytes:
        """A hash of everything an episode depends on; numbers count to nine digits, as machines differ beyond those."""
        arrays = (self._states, self._rewards, self._starts, self._costs, np.array(float(self._budgets)))
        return hashlib.sha256(b"".join((np.round(array, 9) + 0.0).tobytes() for array in arrays)).digest()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Seen, dict[str, Any]]:
        """Begin a dialogue; `seed` decides which ones come."""
        super().reset(seed=seed, options=options)
        episode = int(self.np_random.integers(len(self._starts)))
        self._row, self._end = int(self._starts[episode]), int(self._ends[episode])
        self._left = drawn_budgets(self._costs, self.np_random)
        return self._observation(), {}

    def step(self, action: np.int64) -> tuple[Seen, float, bool, bool, dict[str, Any]]:
        """Reward of the action in the recorded state; on to the next recorded state."""
        reward = float(self._rewards[self._row, action])
        self._left = self._left - self._costs[action]
        if self._budgets and (self._left < 0).any():
            reward = 0.0
        self._row += 1
        ended = self._row == self._end
        nothing = np.full(self._states.shape[1] + 2 * self._budgets, NOT_YET, np.float32)
        return nothing if ended else self._observation(), reward, ended, False, {}

    def _observation(self) -> Seen:
        state = self._states[self._row]
        return np.append(state, self._left.astype(np.float32)) if self._budgets else state.copy()


def drawn_budgets(costs: FloatArray, rng: np.random.Generator) -> FloatArray:
    """(2,): normal around the middle between the least and the most five turns can cost, a sixth of that range wide, clipped to it.

    `costs` is (actions, 2). The ends are those of local turns and of the cloud with every image.
    """
    low, high = 5 * costs[0], 5 * costs[-1]
    drawn: FloatArray = np.clip(rng.normal((low + high) / 2, (high - low) / 6), low, high)
    return drawn


def observed(setting: Setting, features: FloatArray, *, budgets: bool = False) -> FloatArray:
    """What a policy trained on RecordedWalk sees of these features: the paper's state and, with `budgets`, what is left of them."""
    layout = setting.layout
    state = features[:, : layout.history]
    if not budgets:
        return state
    late = setting.latency_budget_s - spent(layout, features, setting.latency_s)
    dear = setting.usage_budget_usd - spent(layout, features, setting.usage_usd)
    return np.column_stack([state, late, dear])
