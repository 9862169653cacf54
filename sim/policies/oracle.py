"""Oracles: the best placement there is, found by looking at every task's result under every placement.

They bound what any router on the same two models can do and must never be mistaken for one. HERA/AIMS (EuroSys 2026) defines its
oracle per request: the most SLM subtasks with at least 90 % of All-LLM's accuracy, by enumeration. Here the accuracy is that of
the whole set, so one request may be given up for another, and the solution is exact: each task's placements are enumerated, the
undominated ones kept, and one is chosen for each task by a multiple-choice knapsack.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy, Study, TierView
from sim.policies.baselines import Placements
from sim.policies.features import small_and_large
from sim.profiles import NonNegative
from workloads.errors import InputError
from workloads.task import Completion, ModelCall, Task
from workloads.trial import Trial, enumerate_trials, pure_trial

_SLACK = 1e-9
"""Score a plan may lack of its target in all: sums of scores are rounded."""


class Choice(NamedTuple):
    """One way to place a task: its score, its price (whatever is minimised) and, per position, whether it runs large."""

    score: float
    price: float
    large: tuple[bool, ...]


def undominated(choices: Iterator[Choice]) -> list[Choice]:
    """The choices that no other beats in score and price at once, by rising score; of equal ones the first."""
    cheapest: dict[float, Choice] = {}
    for choice in choices:
        known = cheapest.get(choice.score)
        if known is None or choice.price < known.price:
            cheapest[choice.score] = choice
    kept: list[Choice] = []
    for score in sorted(cheapest, reverse=True):
        if not kept or cheapest[score].price < kept[-1].price:
            kept.append(cheapest[score])
    return kept[::-1]


def cheapest_plan(choices: Sequence[Sequence[Choice]], counts: Sequence[int], least_score: float) -> list[Choice]:
    """One choice per task such that sum(counts * score) >= least_score and sum(counts * price) is as small as can be.

    A multiple-choice knapsack, solved exactly by HiGHS (integer programming without a gap). Raises ValueError when no plan
    reaches `least_score`.
    """
    best = math.fsum(n * options[-1].score for n, options in zip(counts, choices, strict=True))
    if best < least_score - _SLACK:
        raise ValueError(f"no placement scores more than {best}")
    # The solver keeps constraints to 1e-6 only; should it use that leeway, it is asked again for that much more.
    for extra in (-_SLACK, 2e-6):
        plan = _solve(choices, counts, min(least_score + extra, best))
        if math.fsum(n * chosen.score for n, chosen in zip(counts, plan, strict=True)) >= least_score - _SLACK:
            return plan
    return [options[-1] for options in choices]  # the target lies within 2e-6 of the best there is


def _solve(choices: Sequence[Sequence[Choice]], counts: Sequence[int], least_score: float) -> list[Choice]:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    owner = np.repeat(np.arange(len(choices)), [len(options) for options in choices])
    weights = np.asarray(counts, float)[owner]
    scores = weights * [choice.score for options in choices for choice in options]
    prices = weights * [choice.price for options in choices for choice in options]
    prices /= np.abs(prices).max() or 1.0  # the solver's absolute tolerances expect numbers around 1
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    found = milp(
        prices,
        integrality=np.ones(len(owner)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(scores[np.newaxis], least_score, np.inf)],
        options={"mip_rel_gap": 0.0},
    )
    if found.status != 0:
        raise RuntimeError(f"the solver gave up on the oracle's plan: {found.message}")
    plan, start = [], 0
    for options in choices:
        plan.append(options[int(np.argmax(found.x[start : start + len(options)]))])
        start += len(options)
    return plan


class OracleOptions(PolicyOptions):
    """Options of the oracles."""

    accuracy_share: NonNegative = 0.9
    """Accuracy to reach, as a share of All-LLM's on the same tasks; may exceed 1 as far as mixing models allows."""


class _Oracle(RoutingPolicy):
    """Base of the oracles: plan every task beforehand, follow the plan by task and position.

    A plan belongs to a task, so several requests for one task are placed alike. A position the plan does not know (after a
    fail-over changed the conversation) runs on the small model. Placements that a recording does not hold are left out.
    """

    Options: ClassVar[type[PolicyOptions]] = OracleOptions
    knob: ClassVar[str | None] = "accuracy_share"

    def __init__(self, options: OracleOptions) -> None:
        super().__init__(options)
        self._plan: Mapping[str, tuple[bool, ...]] = {}
        self._placements = Placements("oracle")

    def pricing(self, study: Study) -> Callable[[Trial], float]:
        """A function that says what a trial costs, in the unit this oracle minimises."""
        raise NotImplementedError

    def prepare(self, study: Study) -> None:
        """Enumerate and plan. Raises InputError when `accuracy_share` cannot be reached."""
        tasks = {task.id: task for task in study.tasks}
        times = Counter(task.id for task in study.tasks)
        order = sorted(tasks)  # the plan must not depend on the order of the tasks where several are equally good
        price = self.pricing(study)
        choices = [undominated(_choices(study, tasks[task_id], price)) for task_id in order]
        counts = [times[task_id] for task_id in order]
        _, large = small_and_large(study.tiers)
        all_large = [pure_trial(study.agent, tasks[task_id], study.backend, large.model).score for task_id in order]
        target = self.options.accuracy_share * math.fsum(n * s for n, s in zip(counts, all_large, strict=True))
        try:
            plan = cheapest_plan(choices, counts, target)
        except ValueError:
            raise self._out_of_reach(choices, counts, all_large) from None
        self._plan = {task_id: chosen.large for task_id, chosen in zip(order, plan, strict=True)}

    def place(self, seen: Observation) -> Placement:
        """Follow the plan."""
        call = seen.call
        plan = self._plan.get(call.task.id, ())
        large = call.position < len(plan) and plan[call.position]
        return self._placements[seen.large if large else seen.small]

    def _out_of_reach(
        self, choices: Sequence[Sequence[Choice]], counts: Sequence[int], all_large: Sequence[float]
    ) -> InputError:
        best = math.fsum(n * options[-1].score for n, options in zip(counts, choices, strict=True))
        share = best / math.fsum(n * score for n, score in zip(counts, all_large, strict=True))
        return InputError(
            "policy option 'accuracy_share'",
            f"no placement of these tasks reaches {self.options.accuracy_share:g} of All-LLM's accuracy",
            f"The highest share within reach is {math.floor(share * 1e4) / 1e4:g}.",
        )


def _choices(study: Study, task: Task, price: Callable[[Trial], float]) -> Iterator[Choice]:
    small, large = small_and_large(study.tiers)
    models = (small.model, large.model)
    for trial in enumerate_trials(study.agent, task, study.backend, models, skip_missing=True):
        yield Choice(trial.score, price(trial), tuple(model != small.model for model in trial.models))


class OracleSlmUsage(_Oracle):
    """Most subtasks on the small model (share of a request's, averaged over requests) at an accuracy: HERA's oracle, made exact."""

    def pricing(self, study: Study) -> Callable[[Trial], float]:
        """The share of a trial's subtasks that run large."""
        small = small_and_large(study.tiers)[0].model
        return lambda trial: 1 - trial.models.count(small) / len(trial.models) if trial.models else 0.0


class OracleCost(_Oracle):
    """Least nominal cost (no queueing, no failures) at an accuracy."""

    def pricing(self, study: Study) -> Callable[[Trial], float]:
        """The nominal cost of a trial, $."""
        tiers = {tier.model: tier for tier in small_and_large(study.tiers)[::-1]}
        return _RunningCost(study.expected_cost_usd, tiers)


class _RunningCost:
    """Sums a trial's costs; what it shares with the trial before it, its neighbour in the tree, is not summed again."""

    def __init__(self, cost_usd: Callable[[ModelCall, str, int], float], tiers: Mapping[str, TierView]) -> None:
        self._cost_usd, self._tiers = cost_usd, tiers
        self._last: tuple[tuple[ModelCall, str, Completion], ...] = ()
        self._sums_usd: list[float] = [0.0]

    def __call__(self, trial: Trial) -> float:
        """The cost of `trial`, $."""
        steps = tuple(zip(trial.calls, trial.models, trial.completions, strict=True))
        shared = 0
        for before, now in zip(self._last, steps, strict=False):
            if before[0] is not now[0] or before[1] != now[1] or before[2] is not now[2]:
                break
            shared += 1
        del self._sums_usd[shared + 1 :]
        for call, model, completion in steps[shared:]:
            cost_usd = self._cost_usd(call, self._tiers[model].name, completion.completion_tokens)
            self._sums_usd.append(self._sums_usd[-1] + cost_usd)
        self._last = steps
        return self._sums_usd[-1]
