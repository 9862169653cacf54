"""How learned policies scale with modalities, task categories and turns: `run_sim.py tmo scaling`.

Every policy is after the same reward, the sum of a dialogue's scores less what it costs at a given price of a dollar, so the optimum needs
no budget and training no multiplier: what is told apart is how well a policy learns, not how well it keeps to a budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sim.scenario import Scenario
from sim.tmo.environment import view_of
from sim.tmo.experiments import Judged, Trial, difference
from sim.tmo.kept import kept_policy
from sim.tmo.reward import Reward
from workloads.errors import InputError

NO_BUDGET_USD = 1e6
YARDSTICKS = {"random": "tmo-random", "table": "tmo-table", "greedy": "tmo-greedy"}


def scaling(trial: Trial, usage: float) -> Iterator[dict[str, Any]]:
    """At each point of the scenario's sweep and for each policy: reward per turn, and its share of the way from chance to the optimum.

    `usage` is the weight of a dollar over sim.tmo.reward's `usage_range`. Where the optimum is too large to plan, `share` is missing.
    """
    reward = Reward(association=0.0, latency=0.0, usage=usage)
    for variant in trial.loaded.variants:
        scenario = variant.scenario
        judged = {
            name: _valued(trial.judged(scenario, policy, **_options(policy, usage)), reward)
            for name, policy in YARDSTICKS.items()
        }
        judged["PPO"] = _valued(trial.judged(scenario, "tmo", weights=_trained(trial, scenario, reward)), reward)
        try:
            optimum = trial.judged(scenario, "oracle-dialogues", usage=usage, budget=NO_BUDGET_USD)
            judged["optimum"] = _valued(optimum, reward)
        except InputError as error:
            if "too many to plan" not in error.problem:
                raise
        turns = _mean_turns(scenario)
        chance = judged["random"].reward.mean()
        for name, found in judged.items():
            row = found.row(name, NO_BUDGET_USD)
            told = {"point": variant.label, "policy": name, "reward": row["reward"] / turns}
            told |= {"interval": row["interval"] / turns, "cost": row["cost"]}
            if "optimum" in judged:
                told["share"] = float((found.reward.mean() - chance) / (judged["optimum"].reward.mean() - chance))
            if name == "PPO":
                gap, half = difference(found, judged["greedy"])
                told["over_greedy"] = (gap / turns, half / turns)
            yield told


def _options(policy: str, usage: float) -> dict[str, Any]:
    return {} if policy == "tmo-random" else {"association": 0.0, "latency": 0.0, "usage": usage}


def _valued(judged: Judged, reward: Reward) -> Judged:
    """The same requests, with their cost taken off the reward."""
    low, high = reward.usage_range
    return judged._replace(reward=judged.reward - reward.usage * (judged.cost - low) / (high - low))


def _trained(trial: Trial, scenario: Scenario, reward: Reward) -> str:
    from sim.tmo.learning.training import Plan

    view = view_of(scenario, trial.loaded.path)
    plan = Plan("ppo", trial.steps, evaluation_episodes=100)
    return kept_policy(trial.folder, [scenario], trial.loaded.path, view, reward, plan)


def _mean_turns(scenario: Scenario) -> float:
    """Turns of a dialogue in the mean, for rewards per turn that compare across lengths."""
    return float(np.mean(scenario.workload.tasks.turns))  # type: ignore[union-attr]
