"""What a subtask would take on either tier now, and what a request's budgets leave room for.

HERA/AIMS takes the small model for free and knows no budget. Here dollars, seconds and joules a request may take are inputs of every
decision, and what the tiers cost at this moment (queue, link, prices) can move the similarity threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from sim.policies.base import Observation, Study
from sim.policies.hera.outlook import ROLES, Role
from sim.policies.trees import grow_trees, two_models
from workloads.agent import FRAMING_BYTES
from workloads.expansion import TaskTree
from workloads.task import ModelCall

_BYTES_PER_TOKEN = 4.0
_MOST_SUBTASKS = 15
_SPREAD = 0.3
"""Standard deviation over mean of what is left of a request: answers and numbers of steps vary by about that."""


class Budgets(NamedTuple):
    """What a request may take; None: as much as it likes."""

    usd: float | None = None
    latency_s: float | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self.usd is not None or self.latency_s is not None


class Needs(NamedTuple):
    """Expected dollars and seconds of something."""

    usd: float
    latency_s: float


class Forecast:
    """Expected needs of a subtask on either tier, and of the rest of the request after it on the small one.

    Answer lengths (a generous one: nine in ten are shorter) and how many subtasks follow are those of the training requests: the mean
    for dollars, which are few on the small tier, and again what nine in ten stay below for seconds.
    """

    def __init__(self, study: Study) -> None:
        training = study.training or study
        models, trees = two_models(training), grow_trees(training, training.tasks)
        self._cost_usd = study.expected_cost_usd
        tokens = expected_tokens(trees, models)
        self._tokens = {role: tokens[model] for role, model in zip(ROLES, models, strict=True)}
        self._left = [_left(trees, models[0], position) for position in range(_MOST_SUBTASKS)]

    def subtask(self, seen: Observation, role: Role) -> Needs:
        """One subtask on the tier in this role, as the network and the queues are now."""
        tier = seen.small if role == "small" else seen.large
        return needs_on(seen, tier, self._tokens[role], self._cost_usd)

    def rest(self, seen: Observation) -> Needs:
        """What follows this subtask, all of it on the small tier."""
        mean, many = self._left[min(seen.call.position, _MOST_SUBTASKS - 1)]
        one = self.subtask(seen, "small")
        return Needs(mean * one.usd, many * one.latency_s)


def needs_on(seen: Observation, tier: str, tokens: int, cost_usd: Callable[[ModelCall, str, int], float]) -> Needs:
    """The subtask on a tier, with an answer of so many tokens, as the network and the queues are now."""
    call, signals = seen.call, seen.signals
    down_bytes = FRAMING_BYTES + _BYTES_PER_TOKEN * tokens
    latency_s = (
        signals.wait_s(tier)
        + signals.transfer_s(tier, call.upload_bytes, down_bytes, seen.home)
        + signals.service_s(tier, call.prompt_tokens, tokens)
    )
    return Needs(cost_usd(call, tier, tokens), latency_s)


def expected_tokens(trees: Sequence[TaskTree], models: Sequence[str]) -> dict[str, int]:
    """A generous length of each model's answers: nine in ten are shorter."""
    return {model: _high(_lengths(trees, model)) for model in models}


def _lengths(trees: Sequence[TaskTree], model: str) -> list[int]:
    return [
        node.answers[model].completion_tokens for tree in trees for node in tree.nodes.values() if model in node.answers
    ]


def _high(values: Sequence[int]) -> int:
    return sorted(values)[int(0.9 * (len(values) - 1))] if values else 64


def _left(trees: Sequence[TaskTree], model: str, position: int) -> tuple[float, int]:
    """Subtasks that follow one at this position when a model runs on: the mean, and what nine in ten do not exceed."""
    lengths = [len(tree.path(model)) for tree in trees]
    counts = [length - position - 1 for length in lengths if length > position]
    return (fmean(counts), _high(counts)) if counts else (0.0, 0)


def within(budgets: Budgets, seen: Observation, forecast: Forecast, wanted: Role, deciding_s: float = 0.0) -> Role:
    """The role wanted, if the request then still fits its budgets with all that follows on the small tier; else the one that fits better.

    Spent so far, this subtask after a decision of `deciding_s` and the rest are compared with the budget; where neither tier fits,
    the one whose worst share of a budget is lower is taken.
    """
    rest = forecast.rest(seen)

    def share(role: Role) -> float:
        now = forecast.subtask(seen, role)
        shares = [0.0]
        if budgets.usd is not None:
            shares.append((seen.spent_usd + now.usd + rest.usd) / budgets.usd)
        if budgets.latency_s is not None:
            elapsed_s = seen.now_s - seen.arrival_s + deciding_s
            shares.append((elapsed_s + now.latency_s + rest.latency_s) / budgets.latency_s)
        return max(shares)

    other: Role = "small" if wanted == "large" else "large"
    return wanted if share(wanted) <= 1.0 or share(wanted) <= share(other) else other


class Worth(NamedTuple):
    """What time counts for: a second of waiting, and missing the request's deadline, $."""

    second_usd: float = 0.0
    late_usd: float = 0.0


def extra_usd(seen: Observation, forecast: Forecast, worth: Worth) -> float:
    """How much more the large tier costs than the small one for this subtask now: prices, waiting, and the risk of being late.

    Behind a link that is down nothing is expected to arrive ever; that counts as all the time the request has.
    """
    small, large = (forecast.subtask(seen, role) for role in ROLES)
    waits = [min(now.latency_s, seen.deadline_s) for now in (small, large)]
    extra = large.usd - small.usd + worth.second_usd * (waits[1] - waits[0])
    if worth.late_usd:
        rest_s = forecast.rest(seen).latency_s
        risks = [late_risk(now.latency_s + rest_s, seen.remaining_s) for now in (small, large)]
        extra += worth.late_usd * (risks[1] - risks[0])
    return extra


def late_risk(expected_s: float, remaining_s: float) -> float:
    """P(something that takes `expected_s` in the mean takes longer than `remaining_s`), for a normal with a spread of 30 %."""
    if math.isinf(expected_s):
        return 1.0
    return 0.5 * math.erfc((remaining_s - expected_s) / (_SPREAD * math.sqrt(2.0) * max(expected_s, 1e-9)))


class RunningMean:
    """Mean of all values so far."""

    def __init__(self) -> None:
        self._count, self._total = 0, 0.0

    def add(self, value: float) -> float:
        """Take a value in; returns the mean with it."""
        self._count, self._total = self._count + 1, self._total + value
        return self._total / self._count
