"""Which models HERA tries, in which order, and on which tier each of them runs now.

The papers know one small and one large model. With more, every model is compared with the best one by the same Algorithm 1, the one
that is cheapest now first; a model that costs more than the best one is not tried. Where several tiers have the same model, the one
that costs least now is taken. What a subtask costs is everything: prices and energy of the ledger, and waiting in queues and on links.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from sim.policies.base import Observation, Study, TierView
from sim.policies.hera.algorithm import Algorithm
from sim.policies.hera.budget import expected_tokens, needs_on
from sim.policies.hera.options import HeraOptions
from sim.policies.trees import grow_trees
from workloads.errors import InputError

_ENOUGH_TASKS = 100
"""Requests that tell how long answers are."""


class Rung(NamedTuple):
    """A model that may do as well as the best one, and Algorithm 1 for the two."""

    model: str
    algorithm: Algorithm


class Ladder(Protocol):
    """Models below the best one."""

    @property
    def prediction_s(self) -> float:
        """Time to predict one subtask, s."""
        ...

    def prepare(self, study: Study) -> None:
        """Let the estimators learn."""
        ...

    def rungs(self, seen: Observation) -> Sequence[Rung]:
        """Those to try for this subtask, in their order."""
        ...

    def tier(self, seen: Observation, rung: Rung | None) -> str:
        """Where a rung's model runs; None: the best one."""
        ...


class TwoTiers:
    """The first small and the first large tier."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._rungs = (Rung("", algorithm),)

    @property
    def prediction_s(self) -> float:
        """As its estimators say."""
        return self._rungs[0].algorithm.estimators.prediction_s

    def prepare(self, study: Study) -> None:
        """Let the estimators learn."""
        self._rungs[0].algorithm.estimators.prepare(study)

    def rungs(self, seen: Observation) -> Sequence[Rung]:
        """The small model."""
        del seen
        return self._rungs

    def tier(self, seen: Observation, rung: Rung | None) -> str:
        """The tier in that role."""
        return seen.large if rung is None else seen.small


class EveryTier:
    """The models of all tiers; `algorithm(models)` makes a rung's, where conversations may hold answers of any of `models`."""

    prediction_s = 0.0

    def __init__(self, algorithm: Callable[[tuple[str, ...]], Algorithm], usd_per_s: float) -> None:
        self._algorithm, self._usd_per_s = algorithm, usd_per_s
        self._rungs: tuple[Rung, ...] = ()
        self._best = ""

    def prepare(self, study: Study) -> None:
        """Let the estimators learn, one pair of models after another. Raises InputError where all tiers have one model."""
        places, best = models_of(study.tiers), best_of(study.tiers)
        models = tuple(places)
        rungs = list[Rung]()
        for model, views in places.items():
            if model != best.model:
                rung = Rung(model, self._algorithm(models))
                rung.algorithm.estimators.prepare(_as_pair(study, views[0], best))
                rungs.append(rung)
        self._rungs, self._best, self._places = tuple(rungs), best.model, places
        self._cost_usd = study.expected_cost_usd
        known = study.training or study
        self._tokens = expected_tokens(grow_trees(known, known.tasks[:_ENOUGH_TASKS], models), models)

    def rungs(self, seen: Observation) -> Sequence[Rung]:
        """Models that are cheaper now than the best one, the cheapest first."""
        most_usd = self._cheapest(seen, self._best)[0]
        costs = [(self._cheapest(seen, rung.model)[0], number) for number, rung in enumerate(self._rungs)]
        return [self._rungs[number] for cost_usd, number in sorted(costs) if cost_usd < most_usd]

    def tier(self, seen: Observation, rung: Rung | None) -> str:
        """The cheapest tier now with that model."""
        return self._cheapest(seen, self._best if rung is None else rung.model)[1]

    def _cheapest(self, seen: Observation, model: str) -> tuple[float, str]:
        """(full expected cost of the subtask, $, tier); of equally cheap tiers the first one listed."""
        costs = [(self._cost(seen, view.name, model), number) for number, view in enumerate(self._places[model])]
        cost_usd, number = min(costs)
        return cost_usd, self._places[model][number].name

    def _cost(self, seen: Observation, tier: str, model: str) -> float:
        needs = needs_on(seen, tier, self._tokens[model], self._cost_usd)
        return needs.usd + self._usd_per_s * needs.latency_s


def models_of(tiers: Sequence[TierView]) -> dict[str, list[TierView]]:
    """Model -> the tiers that have it, in the order of the tiers."""
    found: dict[str, list[TierView]] = {}
    for view in tiers:
        found.setdefault(view.model, []).append(view)
    return found


def best_of(tiers: Sequence[TierView]) -> TierView:
    """The tier with the model of the highest quality; of equal ones a large tier's, then the first."""
    return max(tiers, key=lambda view: (view.quality, view.role == "llm"))


def check_every_tier(options: HeraOptions, tiers: Sequence[TierView]) -> None:
    """Raise InputError for what does not go with more than two tiers, and where there is nothing to choose from."""
    place = "policy 'hera', option 'tiers'"
    if options.estimators not in ("perfect", "retrieval"):
        problem = f"'all' needs estimators for every pair of models, and those in {options.estimators!r} know one pair"
        raise InputError(place, problem, "Set estimators to perfect or retrieval, or tiers: two")
    for name in ("usd_budget", "latency_budget_s", "dear_weight"):
        if getattr(options, name):
            remedy = f"Leave {name} out (what the tiers cost now is weighed anyway), or set tiers: two"
            raise InputError(place, f"'all' does not go with {name}, which weighs two tiers", remedy)
    if len(models_of(tiers)) < 2:
        raise InputError(place, f"'all' finds one model only ({tiers[0].model})", "Give tiers of at least two models")


def _as_pair(study: Study, small: TierView, large: TierView) -> Study:
    """The study as it looks to a policy that knows these two tiers."""
    tiers = small._replace(role="slm"), large._replace(role="llm")
    training = study.training._replace(tiers=tiers) if study.training is not None else None
    return study._replace(tiers=tiers, training=training)
