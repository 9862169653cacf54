"""Yardsticks of TMO: chance, the small tier, the large tier with any modalities, and every fixed action."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, ClassVar

from pydantic import Field

from sim.draws import CommonDraws
from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy, Study, TierView
from sim.tmo.actions import Action, action_set, placement
from workloads.errors import InputError
from workloads.task import Task


class ActionOptions(PolicyOptions):
    """Options of policies that choose an action: a tier and the modalities that go along."""

    most_modalities: Annotated[int, Field(ge=0)] | None = None
    """Most modalities sent along at a time; default: any number."""


class ActionPolicy(RoutingPolicy):
    """Base of policies that choose from the action set of a task (sim/tmo/actions.py): override `choose`."""

    Options: ClassVar[type[PolicyOptions]] = ActionOptions
    reason = ""

    def place(self, seen: Observation) -> Placement:
        """Place the subtask by the action chosen."""
        return _placement(self.choose(seen, self.actions(seen.tiers, seen.call.task)), self.reason)

    def choose(self, seen: Observation, actions: tuple[Action, ...]) -> Action:
        """One of the task's actions."""
        raise NotImplementedError

    def actions(self, tiers: tuple[TierView, ...], task: Task) -> tuple[Action, ...]:
        """The actions there are for a task."""
        names = tuple([attachment.name for attachment in task.attachments])
        return _actions(tiers, names, self.options.most_modalities)


@cache
def _actions(tiers: tuple[TierView, ...], names: tuple[str, ...], most: int | None) -> tuple[Action, ...]:
    return action_set(tiers, names, most)


@cache
def _placement(action: Action, reason: str) -> Placement:
    return placement(action, reason)


class _ByChance(ActionPolicy):
    """An even chance for each of some actions. The draw belongs to (request, position)."""

    reason = "by chance"

    def __init__(self, options: ActionOptions) -> None:
        super().__init__(options)
        self._draws = CommonDraws(0, "policy/tmo-random")

    def prepare(self, study: Study) -> None:
        """Take the draws of the scenario's seed."""
        self._draws = CommonDraws(study.seed, "policy/tmo-random")

    def drawn(self, seen: Observation, actions: Sequence[Action]) -> Action:
        """One of these."""
        return actions[int(self._draws.uniform(seen.request, seen.call.position) * len(actions))]


class RandomAction(_ByChance):
    """Any action, each as likely."""

    def choose(self, seen: Observation, actions: tuple[Action, ...]) -> Action:
        """Draw one."""
        return self.drawn(seen, actions)


class CloudAction(_ByChance):
    """The large tier with any subset of the modalities, each as likely: the weak baseline that TMO's authors call Cloud."""

    def choose(self, seen: Observation, actions: tuple[Action, ...]) -> Action:
        """Draw one of the large tier's."""
        return self.drawn(seen, [action for action in actions if action.tier == seen.large])


class LocalAction(ActionPolicy):
    """The small tier, without modalities."""

    reason = "always local"

    def choose(self, seen: Observation, actions: tuple[Action, ...]) -> Action:
        """The small tier's first action."""
        return next(action for action in actions if action.tier == seen.small)


class FixedActionOptions(ActionOptions):
    """Options of `tmo-fixed`."""

    action: Annotated[int, Field(ge=0)] = 0
    """Which action, counted as in sim/tmo/actions.py: 0 small tier, 1 large tier with the text alone, then with modalities."""


class FixedAction(ActionPolicy):
    """The same action throughout."""

    Options: ClassVar[type[PolicyOptions]] = FixedActionOptions
    knob: ClassVar[str | None] = "action"
    reason = "fixed action"

    def prepare(self, study: Study) -> None:
        """Raise InputError where the tasks have no action of that number."""
        for task in study.tasks:
            self._check(self.actions(study.tiers, task))

    def choose(self, seen: Observation, actions: tuple[Action, ...]) -> Action:
        """The one asked for."""
        self._check(actions)
        number: int = self.options.action
        return actions[number]

    def _check(self, actions: Sequence[Action]) -> None:
        number = self.options.action
        if number >= len(actions):
            listed = ", ".join(f"{index} {action}" for index, action in enumerate(actions[:12]))
            problem = f"there is no action {number}: tasks with these modalities have {len(actions)}"
            more = ", ..." if len(actions) > 12 else ""
            raise InputError("policy 'tmo-fixed', option 'action'", problem, f"Allowed: {listed}{more}")
