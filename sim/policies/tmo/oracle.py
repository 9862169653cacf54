"""An oracle for generated dialogues: the most expected reward that a budget on dollars or seconds allows.

It knows the truth behind the answers, what every question needs and how long the answer will be, and foresees the turns to come:
nothing that has to find these out gets more (sim/policies/tmo/optimum.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from sim.policies.base import Observation, PolicyOptions, Study, TierView
from sim.policies.tmo.baselines import ActionPolicy
from sim.policies.tmo.episodes import plan_each, plan_unforeseen
from sim.policies.tmo.experience import RewardOptions, reward_of, sent_along, uploaded
from sim.policies.tmo.optimum import Dialogues, FloatArray, Plan, Step, best_plan
from sim.profiles import NonNegative, Positive, Share
from sim.tmo.actions import Action
from sim.tmo.reward import Reward, association_norm
from workloads.dialogue import turn_of
from workloads.dialogue_truth import DialogueBackend, Truth, latent_of
from workloads.errors import InputError
from workloads.task import ModelCall, Task
from workloads.trial import pure_trial

MOST_STATES = 2**16
"""Histories x actions of one turn beyond which planning is refused: 6 modalities make 12,480, 7 make 49,536, each four times more."""


class OracleOptions(RewardOptions):
    """Options of `oracle-dialogues`; by default the reward is the response alone, and what it costs is the budget's concern."""

    association: NonNegative = 0.0
    """Weight of the association of what goes along."""
    latency: NonNegative = 0.0
    """Weight of a turn's seconds."""
    usage: NonNegative = 0.0
    """Weight of a turn's dollars."""
    budget: Positive = 0.01
    """What a dialogue may cost, in the unit of `item`."""
    item: Literal["total_usd", "latency_s"] = "total_usd"
    """What is limited: dollars or seconds, by their means without queues, failures and cached prompts."""
    keeps: Literal["mean", "each"] = "mean"
    """Whether the mean over all dialogues keeps the budget, or each dialogue does by itself."""
    tolerance: Share = 0.0
    """each: the share of dialogues that may exceed it."""
    foresees: bool = True
    """Whether it knows the turns to come; without, it expects of them what they are worth on average in training dialogues."""


class OracleDialogues(ActionPolicy):
    """Plans every generated dialogue beforehand by the truth, for the most reward within a budget. `plan` says what it expects."""

    Options: ClassVar[type[PolicyOptions]] = OracleOptions
    knob: ClassVar[str | None] = "budget"
    reason = "oracle"
    plan: Plan

    def __init__(self, options: OracleOptions) -> None:
        super().__init__(options)
        self._actions: Mapping[tuple[str, int], Action] = {}

    def prepare(self, study: Study) -> None:
        """Plan. Raises InputError for tasks without a known truth, for a budget that no plan keeps, and where attachments are kept."""
        options = self.options
        if study.keeps_attachments:
            problem = "plans for attachments that every turn sends anew"
            raise InputError("policy 'oracle-dialogues'", problem, "Leave client.keep_attachments out")
        times = Counter(task.id for task in study.tasks)
        tasks = list({task.id: task for task in study.tasks}.values())
        tasks.sort(key=lambda task: task.id)  # the plan must not depend on the order of the tasks
        actions = self.actions(study.tiers, tasks[0])
        weights = np.array([float(times[task.id]) for task in tasks])
        own = dialogues_of(study, tasks, actions, reward_of(options), options.item)
        if not options.foresees:
            training = study.training
            if training is None or not training.tasks:
                raise InputError(
                    "policy 'oracle-dialogues', option 'foresees'", "there are no training dialogues", "Draw some"
                )
            others = dialogues_of(training, training.tasks, actions, reward_of(options), options.item)
            self.plan = plan_unforeseen(own, others, options.budget, weights)
        elif options.keeps == "each":
            self.plan = plan_each(own, options.budget, options.tolerance, weights)
        else:
            self.plan = self._in_the_mean(own, weights)
        self._actions = {
            (task.id, position): actions[number]
            for task, row in zip(tasks, self.plan.actions, strict=True)
            for position, number in enumerate(row)
            if number >= 0
        }

    def _in_the_mean(self, own: Dialogues, weights: FloatArray) -> Plan:
        try:
            return best_plan(own, self.options.budget, weights)
        except ValueError as error:
            place, unit = "policy 'oracle-dialogues', option 'budget'", self.options.item
            problem = f"no plan of these dialogues costs {self.options.budget:g} or less ({unit}) in the mean"
            raise InputError(place, problem, f"The cheapest costs {error}") from None

    def choose(self, seen: Observation, actions: tuple[Action, ...]) -> Action:
        """Follow the plan; a turn it does not know goes to the first action."""
        return self._actions.get((seen.call.task.id, seen.call.position), actions[0])


def dialogues_of(
    study: Study, tasks: Sequence[Task], actions: Sequence[Action], reward: Reward, item: str
) -> Dialogues:  # fmt: skip
    """What the tasks' turns are worth and cost under each action, by the truth."""
    backend, views = study.backend, {tier.name: tier for tier in study.tiers}
    if not isinstance(backend, DialogueBackend):
        remedy = "Use workload.tasks of kind dialogues"
        raise InputError("policy 'oracle-dialogues'", "the truth behind these tasks is not known", remedy)
    names = [attachment.name for attachment in tasks[0].attachments]
    if any([attachment.name for attachment in task.attachments] != names for task in tasks):
        raise InputError(
            "policy 'oracle-dialogues'", "dialogues differ in their modalities", "Give all of them the same"
        )
    tiers = list(views)
    if 2 ** len(names) * len(actions) * (len(tiers) + 1) > MOST_STATES:
        problem = f"{len(names)} modalities make {2 ** len(names)} histories with {len(actions)} actions each, too many to plan for"
        raise InputError("policy 'oracle-dialogues'", problem, "Give 7 modalities at most, or most_modalities: 2")
    shown = np.array([[name in action.modalities for name in names] for action in actions], dtype=bool)
    calls = [pure_trial(study.agent, task, backend, study.tiers[0].model).calls for task in tasks]
    steps, floors = [], []
    for position in range(max(map(len, calls))):
        rows = [row for row, of_task in enumerate(calls) if position < len(of_task)]
        turns = [calls[row][position] for row in rows]
        took_s, cost_usd, fit = _known(study, turns, actions)
        extra = np.asarray(reward.of(np.zeros_like(fit), fit, took_s, cost_usd))
        scores = _scores(backend, [views[action.tier] for action in actions], shown, turns)
        steps.append(Step(np.array(rows), scores + extra[:, np.newaxis], took_s if item == "latency_s" else cost_usd))
        floors.append(extra)
    tier = np.array([tiers.index(action.tier) for action in actions])
    switch = np.zeros((len(tiers) + 1, len(actions)))
    models = [view.model for view in views.values()]
    for last in range(len(tiers)):
        switch[last] = [backend.truth.switch * (models[last] != models[place]) for place in tier]
    mask = shown @ (1 << np.arange(len(names))) if names else np.zeros(len(actions), dtype=int)
    return Dialogues(steps, floors, tier, mask.astype(np.intp), switch, len(tasks))


def _known(
    study: Study, calls: Sequence[ModelCall], actions: Sequence[Action]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(seconds, dollars, association norm) of each call under each action, shape (calls, actions)."""
    found = np.zeros((3, len(calls), len(actions)))
    latency_s = study.expected_latency_s
    for row, call in enumerate(calls):
        tokens, turn = latent_of(call.task).answer_tokens[call.position], turn_of(call)
        for column, action in enumerate(actions):
            sent = sent_along(call, action)
            found[0, row, column] = latency_s(sent, action.tier, tokens) if latency_s else 0.0
            found[1, row, column] = study.expected_cost_usd(sent, action.tier, tokens)
            found[2, row, column] = association_norm(turn.associations, uploaded(call.task.attachments, action))
    return found[0], found[1], found[2]


def _scores(
    backend: DialogueBackend, views: Sequence[TierView], shown: np.ndarray, calls: Sequence[ModelCall]
) -> FloatArray:  # fmt: skip
    """Expected scores by call, set of modalities seen earlier and action, before a change of model; not yet at least 0."""
    truth: Truth = backend.truth
    width = shown.shape[1]
    earlier = (np.arange(2**width)[:, np.newaxis] >> np.arange(width) & 1).astype(bool)
    latents = [latent_of(call.task) for call in calls]
    kinds = [latent.kinds[call.position] for latent, call in zip(latents, calls, strict=True)]
    needs = np.array([latent.needs[call.position] for latent, call in zip(latents, calls, strict=True)])
    needs = needs.reshape(len(calls), 1, 1, width)
    missed = truth.missed(needs, shown, earlier[:, np.newaxis])  # (calls, seen, actions)
    skill = np.array([[truth.skill(kind, backend.quality[view.model], call.position) for view in views] for kind, call in zip(kinds, calls, strict=True)])  # fmt: skip
    visual = np.array([kind.visual for kind in kinds])[:, np.newaxis, np.newaxis]
    scores: FloatArray = skill[:, np.newaxis] * (1.0 - visual * missed) - truth.clutter(needs, shown)
    return scores
