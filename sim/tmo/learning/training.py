"""Trains a placement policy on a scenario: one thread, the same weights for the same seed, resumed after an interruption."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import set_random_seed

from sim.cells import resolved
from sim.policies.base import PolicyOptions
from sim.policies.threads import one_thread
from sim.policies.tmo.learned import DECISION_S, NetworkPolicy, check_actions, chosen_budgets
from sim.run_store import key_of
from sim.scenario import Scenario
from sim.study import rates_of, tier_views
from sim.tmo.card import Card, write_policy
from sim.tmo.constraint import Multipliers, Rule
from sim.tmo.environment import PlacementEnv
from sim.tmo.evaluation import EVALUATION_SEED, Played, check_budgets, play
from sim.tmo.learning import checkpoint
from sim.tmo.learning.learners import ENTROPY, ON_POLICY, build, network_of
from sim.tmo.learning.vector import PlacementVecEnv
from sim.tmo.observing import View
from sim.tmo.pool import DIALOGUES, Pool
from sim.tmo.reward import Reward
from workloads.errors import InputError

OnRollout = Callable[[int, "PlacementVecEnv"], None]
"""(steps so far, the environments): called after every rollout."""
MEASURED = 4
"""Episodes to measure what a policy spends at each of a range of budgets, as a multiple of those of the evaluation."""


@dataclass(frozen=True)
class Plan:
    """How a policy is trained. `envs` simulations run side by side; multipliers move after `dual_episodes` or more.

    Of generated dialogues so many are drawn to learn from.
    """

    learner: str = "ppo"
    steps: int = 100_000
    seed: int = 1
    rule: Rule = field(default_factory=Rule)
    envs: int = 16
    dual_episodes: int = 64
    checkpoint_steps: int = 20_000
    evaluation_episodes: int = 1000
    dialogues: int = DIALOGUES


class Course(BaseCallback):
    """Checkpoints, the multipliers' ascent, and the load that follows the learner."""

    def __init__(self, plan: Plan, env: PlacementVecEnv, folder: Path, identity: str, on_rollout: OnRollout) -> None:
        super().__init__()
        self._plan, self._env, self._folder, self._identity, self._on_rollout = plan, env, folder, identity, on_rollout
        self._part = -1

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        part = self.num_timesteps // self._plan.checkpoint_steps
        if part == self._part:
            return
        if self._part >= 0:
            checkpoint.save(self._folder, self.model, self._env.multipliers, self._identity)
        self._part = part
        begin_anew(self.model, self._env, self._plan.seed, part)

    def _on_rollout_end(self) -> None:
        multipliers, remaining = self._env.multipliers, max(0.0, 1.0 - self.num_timesteps / self._plan.steps)
        if isinstance(self.model, OnPolicyAlgorithm):
            self.model.ent_coef = ENTROPY * remaining  # the policy that is written takes the preferred actions
        if multipliers.episodes >= self._plan.dual_episodes:
            multipliers.update(remaining)
        share_network(self.model, self._env)
        self._on_rollout(self.num_timesteps, self._env)


def share_network(model: Any, env: PlacementVecEnv) -> None:
    """The load is placed by the learner as it is now."""
    network = network_of(model)
    for one in env.envs:
        one.focus.background.network = network  # type: ignore[attr-defined]


def begin_anew(model: Any, env: PlacementVecEnv, seed: int, part: int) -> None:
    """Seed every generator and simulation for this part of a training, and have the load placed by what a checkpoint holds."""
    share_network(model, env)
    drawn = int(np.random.SeedSequence([seed, part]).generate_state(1)[0])
    set_random_seed(drawn)
    model.action_space.seed(drawn)
    env.seed(drawn)
    env.multipliers.forget()
    model._last_obs = env.reset()
    model._last_episode_starts = np.ones(env.num_envs, bool)


def train(
    scenarios: Sequence[Scenario], path: Path, view: View, reward: Reward, plan: Plan, out: Path, on_rollout: OnRollout | None = None
) -> Card:  # fmt: skip
    """Train on these scenarios side by side and write the policy into `out`.

    Raises InputError for budgets that cannot be kept and for a checkpoint that is not this training's.
    """
    if plan.steps < 1 or plan.envs < 1:
        raise InputError("training", f"{plan.steps} steps in {plan.envs} environments", "Give at least 1 of either")
    with one_thread(), unchecked_distributions():
        return _train(scenarios, path, view, reward, plan, out, on_rollout or (lambda steps, env: None))


@contextmanager
def unchecked_distributions() -> Iterator[None]:
    """Without torch's checks of every distribution's parameters, a tenth of a training's time."""
    from torch.distributions import Distribution

    checked = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checked)


def _train(
    scenarios: Sequence[Scenario], path: Path, view: View, reward: Reward, plan: Plan, out: Path, on_rollout: OnRollout
) -> Card:
    begun_s = time.perf_counter()
    worlds = [World(scenario, path, view, reward, plan.dialogues) for scenario in scenarios]
    for world in worlds:
        check_budgets(world.to_learn(), plan.seed)
    for scenario in scenarios:
        check_actions(view, tier_views(scenario, rates_of(scenario)), view.modalities, "training on a sweep")
    multipliers = Multipliers(plan.rule, [low < high for _, low, high in view.budgets])
    untrained = Card(
        view, reward, plan.learner, "greedy", scenarios[0].name, plan.steps, plan.seed, "tanh", asdict(plan.rule)
    )
    budgets, each = chosen_budgets(untrained, None, {}), -(-plan.envs // len(worlds))
    envs = [world.to_learn() for _ in range(each) for world in worlds]
    vector = PlacementVecEnv(envs, multipliers, priced=plan.learner in ON_POLICY)
    model = build(plan.learner, vector, multipliers, plan.seed, plan.steps)
    for env in envs:
        env.focus.background = NetworkPolicy(untrained, network_of(model), budgets, env.focus.options)
    identity = identity_of(scenarios, view, reward, plan)
    resumed = checkpoint.restore(out, model, multipliers, identity)
    course = Course(plan, vector, out, identity, on_rollout)
    model.learn(plan.steps - model.num_timesteps, course, reset_num_timesteps=not resumed, log_interval=10**9)
    network = network_of(model)
    trained_s = time.perf_counter() - begun_s
    policy = NetworkPolicy(untrained, network, budgets, PolicyOptions(decision_s=DECISION_S))
    measured = unseen(worlds, policy, plan.evaluation_episodes, plan.seed + EVALUATION_SEED).summary()
    spends = spending(worlds, policy, plan, multipliers)
    card = Card(
        view, reward, plan.learner, "greedy", scenarios[0].name, model.num_timesteps, plan.seed, network.activation, asdict(plan.rule),
        [knots.round(6).tolist() for knots in multipliers.integrals], spends, {**measured, "training_s": round(trained_s, 1)},
    )  # fmt: skip
    write_policy(out, card, network)
    (out / checkpoint.NAME).unlink(missing_ok=True)
    return card


class World:
    """A scenario to learn in, and to be judged in on requests that nobody learned from."""

    def __init__(self, scenario: Scenario, path: Path, view: View, reward: Reward, dialogues: int) -> None:
        self._pool = Pool(scenario, path, dialogues)
        self._make = partial(PlacementEnv, scenario, path, view, reward, decision_s=DECISION_S)

    def to_learn(self) -> PlacementEnv:
        """An environment on the pool's requests."""
        return self._make(build=self._pool)

    def to_measure(self, policy: NetworkPolicy) -> PlacementEnv:
        """An environment on the pool's requests, where the load is the policy's."""
        return self._make(background=policy, build=self._pool)

    def to_judge(self, policy: NetworkPolicy) -> PlacementEnv:
        """An environment on the scenario's own requests, under seeds that no scenario names; the load is the policy's, too."""
        return self._make(background=policy)


def spending(worlds: Sequence[World], policy: NetworkPolicy, plan: Plan, multipliers: Multipliers) -> list[list[float]]:
    """The mean cost of a request at budgets from the lowest to the highest, on requests that were learned from.

    The multipliers priced a policy that tried actions by chance; the one that is written takes the preferred ones, and spends something else.
    A line between every two of the multipliers' knots, by least squares. Nothing where it is not one range of budgets kept in the mean.
    """
    budgets = policy.card.view.budgets
    if plan.rule.keep != "mean" or len(budgets) != 1 or budgets[0].low == budgets[0].high:
        return []
    budget, knots = budgets[0], plan.rule.knots
    episodes, seed = MEASURED * plan.evaluation_episodes, plan.seed + EVALUATION_SEED + 1
    played = [play(world.to_measure(policy), policy.choose, -(-episodes // len(worlds)), seed) for world in worlds]
    places = np.array([budget.place_of(value) for part in played for value in part.budgets[:, 0]])
    costs = np.concatenate([part.costs[:, 0] for part in played])
    spent = np.linalg.lstsq(multipliers.hats(0, places), costs)[0]
    shown = budget.low * (budget.high / budget.low) ** np.linspace(0.0, 1.0, knots)
    return [[float(f"{value:.5g}") for value in pair] for pair in zip(shown, spent, strict=True)]


def unseen(worlds: Sequence[World], policy: NetworkPolicy, episodes: int, seed: int) -> Played:
    """Episodes that the policy was not trained on, evenly from all worlds."""
    played = [play(world.to_judge(policy), policy.choose, -(-episodes // len(worlds)), seed) for world in worlds]
    return Played(
        played[0].items, *(np.concatenate(columns) for columns in zip(*(part[1:] for part in played), strict=True))
    )


def identity_of(scenarios: Sequence[Scenario], view: View, reward: Reward, plan: Plan) -> str:
    """A hash of everything that a training's result depends on."""
    return key_of(*map(resolved, scenarios), asdict(view), asdict(reward), asdict(plan))
