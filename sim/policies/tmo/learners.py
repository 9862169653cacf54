"""Simple learners of TMO's actions: a table, the myopic greedy choice, and contextual bandits.

All of them look at one turn at a time; none knows that today's action changes what tomorrow's are worth.
"""

from __future__ import annotations

from collections import defaultdict
from typing import ClassVar

import numpy as np

from sim.draws import component_rng
from sim.policies.base import Observation, PolicyOptions, Study
from sim.policies.tmo.baselines import ActionPolicy
from sim.policies.tmo.experience import FEATURES, Dialogues, Linear, RewardOptions, Vector, play, reward_of
from sim.profiles import Count, NonNegative, Positive
from sim.records import RequestRow
from sim.tmo.actions import Action
from workloads.dialogue import turn_of


class TrainedOptions(RewardOptions):
    """Options of policies that learn on training dialogues before the run."""

    passes: Count = 5
    """How often the training dialogues are played with actions by chance."""


class ActionTable(ActionPolicy):
    """The action with the best mean reward on training dialogues, by task category: TMO's strongest simple rule.

    A category that did not occur there takes the best action of all.
    """

    Options: ClassVar[type[PolicyOptions]] = TrainedOptions
    knob: ClassVar[str | None] = "usage"
    reason = "best for its category"

    def prepare(self, study: Study) -> None:
        """Play the training dialogues and take means."""
        rewards: dict[str, dict[Action, list[float]]] = defaultdict(lambda: defaultdict(list))
        for sample in play(self, study, reward_of(self.options), self.options.passes):
            rewards[sample.kind][sample.action].append(sample.reward)
            rewards[""][sample.action].append(sample.reward)
        self._means = {
            kind: {action: float(np.mean(values)) for action, values in by_action.items()}
            for kind, by_action in rewards.items()
        }

    def choose(self, seen: Observation, actions: tuple[Action, ...]) -> Action:
        """Look it up."""
        means = self._means.get(turn_of(seen.call).kind, self._means[""])
        return max(actions, key=lambda action: means.get(action, -np.inf))


class _LinearPolicy(ActionPolicy):
    """A linear model of the reward for every pair of task category and tier, made when it is first needed."""

    Options: ClassVar[type[PolicyOptions]] = RewardOptions
    knob: ClassVar[str | None] = "usage"
    ridge = 1.0

    def __init__(self, options: RewardOptions) -> None:
        super().__init__(options)
        self._reward = reward_of(options)
        self._forget()

    def _forget(self) -> None:
        self.dialogues = Dialogues(self._reward)
        self._models: dict[tuple[str, str], Linear] = {}

    def model(self, kind: str, tier: str) -> Linear:
        """The model of this category on this tier."""
        found = self._models.get((kind, tier))
        if found is None:
            found = self._models[kind, tier] = Linear(FEATURES, self.ridge)
        return found

    def choose(self, seen: Observation, actions: tuple[Action, ...]) -> Action:
        """The action with the highest value, the first of equals."""
        options = self.dialogues.options(seen, actions)
        values = self.values(seen, actions, options)
        best = max(range(len(actions)), key=values.__getitem__)
        self.dialogues.chose(seen, actions[best], options[best])
        return actions[best]

    def values(self, seen: Observation, actions: tuple[Action, ...], options: list[Vector]) -> list[float]:
        """What each action is worth, by its features."""
        raise NotImplementedError

    def learn(self, row: RequestRow) -> None:
        """Forget a request that has ended."""
        self.dialogues.ended(row.request)


class Greedy(_LinearPolicy):
    """The best predicted immediate reward, by a ridge regression on training dialogues played by chance."""

    Options: ClassVar[type[PolicyOptions]] = TrainedOptions
    reason = "best immediate reward"

    def prepare(self, study: Study) -> None:
        """Play the training dialogues and fit."""
        self._forget()
        for sample in play(self, study, self._reward, self.options.passes):
            self.model(sample.kind, sample.action.tier).learn(sample.features, sample.reward)

    def values(self, seen: Observation, actions: tuple[Action, ...], options: list[Vector]) -> list[float]:
        """Means."""
        kind = turn_of(seen.call).kind
        return [self.model(kind, action.tier).mean(x) for action, x in zip(actions, options, strict=True)]


class _Bandit(_LinearPolicy):
    """Learns from the rewards of requests that have ended, while it runs."""

    def prepare(self, study: Study) -> None:
        """Know nothing."""
        self._forget()
        self._seed = study.seed

    def learn(self, row: RequestRow) -> None:
        """Take in what the request's turns were worth."""
        for turn, reward in self.dialogues.ended(row.request):
            self.model(turn.turn.kind, turn.action.tier).learn(turn.features, reward)


class LinUcbOptions(RewardOptions):
    """Options of `tmo-linucb`."""

    alpha: NonNegative = 0.3
    """Weight of the uncertainty in the upper confidence bound."""


class LinUcb(_Bandit):
    """Optimism in the face of uncertainty (Li et al., A Contextual-Bandit Approach ..., WWW 2010), learning online from nothing."""

    Options: ClassVar[type[PolicyOptions]] = LinUcbOptions
    reason = "highest confidence bound"

    def values(self, seen: Observation, actions: tuple[Action, ...], options: list[Vector]) -> list[float]:
        """Mean plus `alpha` times the width."""
        kind, alpha = turn_of(seen.call).kind, self.options.alpha
        models = [self.model(kind, action.tier) for action in actions]
        return [model.mean(x) + alpha * model.width(x) for model, x in zip(models, options, strict=True)]


class ThompsonOptions(RewardOptions):
    """Options of `tmo-thompson`."""

    noise: Positive = 0.2
    """Standard deviation of a reward around its mean that the sampling assumes."""


class Thompson(_Bandit):
    """Thompson sampling with linear rewards (Agrawal and Goyal, ICML 2013), learning online from nothing.

    The draw belongs to (request, position): the same seed samples alike.
    """

    Options: ClassVar[type[PolicyOptions]] = ThompsonOptions
    reason = "best of one sample"

    def values(self, seen: Observation, actions: tuple[Action, ...], options: list[Vector]) -> list[float]:
        """Rewards under weights drawn from each model's posterior."""
        kind = turn_of(seen.call).kind
        rng = component_rng(self._seed, f"policy/tmo-thompson/{seen.request}/{seen.call.position}")
        weights: dict[str, Vector] = {}
        for tier in seen.tiers:  # every tier's draw is made, so that none depends on the others' actions
            model = self.model(kind, tier.name)
            factor = np.linalg.cholesky(model.inverse)
            weights[tier.name] = model.weights + self.options.noise * factor @ rng.standard_normal(FEATURES)
        return [float(weights[action.tier] @ x) for action, x in zip(actions, options, strict=True)]
