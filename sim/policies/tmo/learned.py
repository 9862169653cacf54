"""The policy `tmo`: a network trained by reinforcement learning decides the tier and the modalities of every turn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sim.draws import CommonDraws
from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy, Study, TierView
from sim.profiles import NonNegative, Positive
from sim.records import RequestRow
from sim.tmo.actions import Action, action_set, placement
from sim.tmo.card import Card, Network, read_policy
from sim.tmo.observing import Dialogue, Observer, Vector, View
from workloads.errors import InputError, suggest
from workloads.task import Task

_FOLDER = Path(__file__).parent / "weights"
PACKAGED = {path.parent.name: path.parent for path in sorted(_FOLDER.glob("*/policy.json"))}
"""Trained policies that ship with Isthmus."""
DECISION_S = 0.0002
"""Measured on one CPU thread; a question that was not embedded before takes 12 ms more where the policy looks at it."""
_KEPT = 100_000
"""Requests whose history is kept, where nobody says that they ended."""


class TmoOptions(PolicyOptions):
    """Options of `tmo`."""

    weights: str = "default"
    """The trained policy: a name that ships with Isthmus, or a folder written by `run_sim.py train`."""
    budget: Positive | None = None
    """The most a request may spend, in the unit of the policy's one budget (s, $, J, g); default: what it was trained for, the
    geometric middle of a range."""
    budgets: Mapping[str, Positive] = {}
    """The same by item, for a policy with several budgets, e.g. {latency_s: 20, total_usd: 0.01}."""
    decision_s: NonNegative = DECISION_S
    """Time one decision takes on the user's side, s; charged to the request."""


class NetworkPolicy(RoutingPolicy):
    """Places as a network says, each request with a history of its own. The network may be exchanged (`network`)."""

    def __init__(self, card: Card, network: Network, budgets: Sequence[float], options: PolicyOptions) -> None:
        super().__init__(options)
        self.card, self.network, self._budgets = card, network, tuple(budgets)
        self._sample = card.decide == "sample"
        self._observer = Observer(card.view)
        self._placements = [placement(action, str(action)) for action in card.view.actions]
        self._requests: dict[int, Dialogue] = {}
        self._draws = CommonDraws(0, "tmo")

    def prepare(self, study: Study) -> None:
        """A new simulation: draws of its own, no histories."""
        self._requests.clear()
        self._draws = CommonDraws(study.seed, "tmo")

    def start(self, request: int, task: Task) -> None:
        """A request has arrived: no history yet."""
        if len(self._requests) >= _KEPT:
            self._requests.pop(next(iter(self._requests)))
        self._requests[request] = self._observer.begin(self._budgets)

    def place(self, seen: Observation) -> Placement:
        """The network's action."""
        dialogue = self._requests.get(seen.request)
        if dialogue is None:  # it began before this policy was there
            self.start(seen.request, seen.call.task)
            dialogue = self._requests[seen.request]
        action = self.choose(self._observer.see(dialogue, seen), seen.request, seen.call.position)
        self._observer.act(dialogue, action)
        return self._placements[action]

    def choose(self, vector: Vector, request: int, position: int) -> int:
        """The preferred action, the first of equals; or one drawn by the slot's own uniform number."""
        outputs = self.network(vector)
        if not self._sample:
            return int(outputs.argmax())
        weights = np.exp(outputs.astype(np.float64) - float(outputs.max()))
        drawn = self._draws.uniform(request, position) * weights.sum()
        return min(int(np.searchsorted(np.cumsum(weights), drawn, side="right")), len(weights) - 1)

    def learn(self, row: RequestRow) -> None:
        """A request has ended."""
        self._requests.pop(row.request, None)


class Tmo(NetworkPolicy):
    """Local-cloud offloading of multi-modal dialogues (Yuan et al., MobiHoc 2025), with budgets that bind."""

    Options: ClassVar[type[PolicyOptions]] = TmoOptions
    knob: ClassVar[str | None] = "budget"

    def __init__(self, options: TmoOptions) -> None:
        if options.weights == "default" and not PACKAGED:
            raise InputError(
                "policy 'tmo', option 'weights'", "no trained policy ships here", "Name a folder of your own"
            )
        card, network = read_policy(PACKAGED.get(options.weights, Path(options.weights)))
        self._place = f"policy 'tmo', weights {options.weights}"
        asked = chosen_budgets(card, options.budget, options.budgets)
        super().__init__(card, network, shown_budgets(card, asked), options)

    def check(self, tiers: Sequence[TierView]) -> None:
        """The tiers must be those it was trained to choose from."""
        check_actions(self.card.view, tiers, self.card.view.modalities, self._place)

    def prepare(self, study: Study) -> None:
        """Check the tasks' modalities too."""
        names = dict.fromkeys(attachment.name for task in study.tasks for attachment in task.attachments)
        check_actions(self.card.view, study.tiers, tuple(names), self._place)
        super().prepare(study)


def check_actions(view: View, tiers: Sequence[TierView], modalities: Sequence[str], place: str) -> None:
    """Raise InputError where a scenario's actions are not those of the view."""
    trained = view.actions
    most = max(len(action.modalities) for action in trained)
    asked = action_set(tiers, modalities, most or None)
    if set(map(_unordered, asked)) == set(map(_unordered, trained)):
        return
    problem = f"trained for the actions {_listed(trained)}; the scenario's are {_listed(asked)}"
    raise InputError(place, problem, "Train a policy on this scenario with `run_sim.py train`")


def _unordered(action: Action) -> tuple[str, frozenset[str]]:
    return action.tier, frozenset(action.modalities)


def _listed(actions: Sequence[Action], most: int = 12) -> str:
    more = f", ... ({len(actions)} in all)" if len(actions) > most else ""
    return ", ".join(map(str, actions[:most])) + more


def chosen_budgets(card: Card, budget: float | None, budgets: Mapping[str, float]) -> tuple[float, ...]:
    """The budgets to keep, in the card's order. Raises InputError for one the policy was not trained for."""
    place, specs = "policy 'tmo', option 'budgets'", {spec.item: spec for spec in card.view.budgets}
    asked: dict[str, Any] = dict(budgets)
    if budget is not None:
        if len(specs) != 1:
            raise InputError("policy 'tmo', option 'budget'", f"the policy has {len(specs)} budgets", "Use `budgets`")
        asked.setdefault(next(iter(specs)), budget)
    for item, value in asked.items():
        if item not in specs:
            problem = f"the policy was not trained to keep {item!r}"
            raise InputError(place, problem, suggest(item, specs) if specs else "It keeps no budget")
        low, high = specs[item].low, specs[item].high
        if not low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
            trained = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            raise InputError(place, f"{item} = {value:g}: trained for {trained}", "Choose a budget it was trained for")
    return tuple(asked.get(spec.item, math.sqrt(spec.low * spec.high)) for spec in card.view.budgets)


def shown_budgets(card: Card, asked: Sequence[float]) -> tuple[float, ...]:
    """What the policy is to be shown so that its mean request spends what is asked for; the nearest it was measured at."""
    if not card.spends:
        return tuple(asked)
    shown, spent = np.array(card.spends).T
    return (float(np.interp(asked[0], np.maximum.accumulate(spent), shown)),)
