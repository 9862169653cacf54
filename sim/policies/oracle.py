"""Oracles: the best placement there is, found by looking at every task's result under every placement.

They bound what any router on the same two models can do and must never be mistaken for one. HERA/AIMS (EuroSys 2026) defines its
oracle per request: the most SLM subtasks with at least 90 % of All-LLM's accuracy, by enumeration. Here the accuracy is that of
the whole set, so one request may be given up for another, and the solution is exact: each task's placements are enumerated, the
undominated ones kept, and one is chosen for each task by a multiple-choice knapsack (sim/policies/knapsack.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy, Study, TierView
from sim.policies.baselines import Placements
from sim.policies.features import small_and_large
from sim.policies.knapsack import Choice, cheapest_plan, undominated
from sim.profiles import NonNegative
from workloads.backend import InferenceBackend
from workloads.errors import InputError
from workloads.expansion import ask_ahead
from workloads.task import Completion, ModelCall, Task
from workloads.trial import Trial, enumerate_trials, pure_trial

_KNOWN: WeakKeyDictionary[InferenceBackend, dict[tuple[Any, ...], list[Trial]]] = WeakKeyDictionary()
"""Trials by backend: walking every path through a thousand tasks takes as long as many simulations, so cells share them."""


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
        models = [tier.model for tier in small_and_large(study.tiers)]
        ask_ahead(study.agent, [tasks[task_id] for task_id in order], study.backend, models)
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
    known = _KNOWN.setdefault(study.backend, {})
    key = (study.agent, models, task.id)
    if key not in known:
        known[key] = list(enumerate_trials(study.agent, task, study.backend, models, skip_missing=True))
    for trial in known[key]:
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
