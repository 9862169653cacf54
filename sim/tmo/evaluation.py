"""What a placement policy earns and spends on episodes it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.records import Columns
from sim.tmo.environment import Episode, PlacementEnv
from sim.tmo.observing import Budget, Vector, View
from sim.tmo.reward import Reward, association_norm, turns_of_rows
from workloads.dialogue import is_dialogue, turns_of
from workloads.errors import InputError
from workloads.task import Task

Array = npt.NDArray[np.float64]
Choose = Callable[[Vector, int, int], int]
"""(observation, request, position) -> action."""

EVALUATION_SEED = 10_000_000
"""Added to a training's seed: its evaluation meets none of its simulations."""


class Played(NamedTuple):
    """n episodes: rewards and turns, shape (n,); costs (n, items) by `items`; budgets (n, budgets), of the first items."""

    items: tuple[str, ...]
    rewards: Array
    turns: Array
    costs: Array
    budgets: Array

    @property
    def over(self) -> npt.NDArray[np.bool_]:
        """Whether each episode broke each budget, shape (n, budgets)."""
        return self.costs[:, : self.budgets.shape[1]] > self.budgets

    def summary(self) -> dict[str, Any]:
        """Means with 95 % half-widths of the rewards; share and mean size of excesses over all episodes."""
        count = len(self.rewards)
        spent, budgets = self.costs[:, : self.budgets.shape[1]], self.budgets
        shares = spent / budgets
        return {
            "episodes": count,
            "reward": float(self.rewards.mean()),
            "reward_interval": half_width(self.rewards),
            "turns": float(self.turns.mean()),
            **{name: float(mean) for name, mean in zip(self.items, self.costs.mean(axis=0), strict=True)},
            "violation_rate": [float(rate) for rate in self.over.mean(axis=0)],
            "mean_excess_share": [float(excess) for excess in np.maximum(0.0, shares - 1.0).mean(axis=0)],
        }


def half_width(values: Array) -> float:
    """Of the 95 % interval of a mean, for n values by a normal."""
    return 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))


def play(env: PlacementEnv, choose: Choose, episodes: int, seed: int) -> Played:
    """Play so many episodes of the environment's sequence with this seed."""
    observation, info = env.reset(seed=seed)
    found: list[Episode] = []
    budgets: list[list[float]] = []
    while len(found) < episodes:
        seen = env.focus.seen
        assert seen is not None
        observation, _, ended, _, info = env.step(choose(observation, seen.request, seen.call.position))
        if ended:
            found.append(info["episode_end"])
            budgets.append(info["budgets"])
            observation, info = env.reset()
    return Played(
        env.cost_items, np.array([sum(episode.rewards) for episode in found]), np.array([len(episode.rewards) for episode in found], float),
        np.array([episode.costs for episode in found]), np.array(budgets, float).reshape(episodes, -1),
    )  # fmt: skip


def rewards_of_records(
    subtasks: Columns, requests: Sequence[Task], view: View, reward: Reward
) -> dict[str, npt.NDArray[Any]]:
    """The turns of a run of the policy `tmo`, or of another that gives its action as its reason, with a column `reward`.

    `requests[i]` is request i's task. What a learner was given for the same turns, to rounding; only where turns are graded.
    """
    turns = turns_of_rows(subtasks, ("total_usd", reward.usage_item))
    actions = {str(action): action for action in view.actions}
    fits = []
    for request, position, reason in zip(
        turns["request"].tolist(), turns["position"].tolist(), turns["reason"], strict=True
    ):
        names = [attachment.name for attachment in requests[request].attachments]
        uploaded = [names.index(name) for name in actions[reason].modalities if name in names] if reason else []
        asked = turns_of(requests[request]) if is_dialogue(requests[request]) else ()
        fits.append(association_norm(asked[position].associations, uploaded) if position < len(asked) else 0.0)
    turns["reward"] = reward.of(turns["score"], np.array(fits), turns["latency_s"], turns[reward.usage_item])
    return turns


def check_budgets(env: PlacementEnv, seed: int, episodes: int = 64) -> None:
    """Raise InputError for a budget that even the cheapest action, throughout, keeps in fewer than half of the episodes.

    Sending modalities along makes no action cheaper, so those that send none are tried.
    """
    plain = [index for index, action in enumerate(env.view.actions) if not action.modalities]
    tried = [play(env, lambda *_, action=index: action, episodes, seed) for index in plain]
    for number, (item, low, _) in enumerate(env.view.budgets):
        costs = [played.costs[:, number] for played in tried]
        cheapest = int(np.argmin([np.median(spent) for spent in costs]))
        if np.median(costs[cheapest]) > low:
            problem = (
                f"cannot be kept: the cheapest action ({env.view.actions[plain[cheapest]]} throughout) spends "
                f"{np.median(costs[cheapest]):.4g} in half of the episodes"
            )
            remedy = f"Give at least {np.quantile(costs[cheapest], 0.95):.4g}, which it keeps in 95 % of them"
            raise InputError(f"budget {Budget(item, low, low).item} = {low:g}", problem, remedy)
