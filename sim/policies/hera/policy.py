"""HERA/AIMS: which subtasks the small model does as well as the large one, looked up step by step.

Algorithm 1 of AIMS (EuroSys 2026; HERA is its 2025 preprint), its words: URC the user request classifier, SSE single subtask
evaluation, SLE subtask lookahead evaluation, CD convergence detection, SD subtask decomposition. Where the two texts differ, or
leave something open, the choice is an option or said beside the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy, Study, TierView
from sim.policies.hera.algorithm import Algorithm, Effort
from sim.policies.hera.budget import Budgets, Forecast, RunningMean, Worth, extra_usd, within
from sim.policies.hera.estimators import Estimators, Perfect, Retrieval
from sim.policies.hera.ladder import EveryTier, Ladder, Rung, TwoTiers, check_every_tier
from sim.policies.hera.options import HeraOptions
from sim.policies.hera.outlook import Role
from sim.policies.hera.similarity import EmbeddingSimilarity
from sim.records import RequestRow
from workloads.task import ModelCall

__all__ = ["Hera", "HeraOptions"]


@dataclass(slots=True)
class _Branch:
    """What is decided of a chain of subtasks: so many more run on `rung`'s model, and whether the one after them goes large."""

    rung: Rung | None = None
    committed: int = 0
    then_large: bool = False
    reason: str = ""


@dataclass(slots=True)
class _Request:
    """What is decided of a request: small throughout (on `rung`'s model), or branch by branch; one that is a chain has one branch."""

    embedded: set[str] = field(default_factory=set)
    rung: Rung | None = None
    reason: str = ""
    branches: dict[int, _Branch] = field(default_factory=dict)


class Hera(RoutingPolicy):
    """Algorithm 1, with every component removable."""

    Options: ClassVar[type[PolicyOptions]] = HeraOptions
    knob: ClassVar[str | None] = "kappa"

    def __init__(self, options: HeraOptions) -> None:
        super().__init__(options)
        self._similarity = EmbeddingSimilarity(options.encoder)
        self._ladder: Ladder
        if options.tiers == "all":
            self._ladder = EveryTier(self._algorithm, options.time_usd_per_s)
        else:
            self._ladder = TwoTiers(self._algorithm())
        self._budgets = Budgets(options.usd_budget, options.latency_budget_s)
        self._forecast: Forecast | None = None
        self._usual = RunningMean()
        self._classifies = "urc" in options.components.split("+")
        self._requests: dict[int, _Request] = {}

    def _algorithm(self, among: tuple[str, ...] = ()) -> Algorithm:
        return Algorithm(self.options, self._similarity, self._chosen(self.options, among))

    def _chosen(self, options: HeraOptions, among: tuple[str, ...]) -> Estimators:
        if options.estimators == "perfect":
            return Perfect(self._similarity, among)
        if options.estimators == "retrieval":
            return Retrieval(self._similarity, options.neighbours, options.profile_threshold, options.profiled_requests)
        from sim.policies.hera.trained import Trained

        return Trained(options.estimators, self._similarity, any_family=options.any_family, horizon=options.horizon)

    def check(self, tiers: Sequence[TierView]) -> None:
        """Raises InputError for options that do not go with `tiers: all`, and where all tiers have one model."""
        if self.options.tiers == "all":
            check_every_tier(self.options, tiers)

    def prepare(self, study: Study) -> None:
        """Let the estimators learn."""
        self.check(study.tiers)
        self._ladder.prepare(study)
        if self._budgets.any or self.options.dear_weight:
            self._forecast = Forecast(study)

    def kappa(self, position: int) -> float:
        """The similarity threshold at a subtask: 0.6 + 0.02 min(i, 5) unless told otherwise."""
        options = self.options
        return float(options.kappa + options.kappa_step * min(position, options.kappa_positions))

    def place(self, seen: Observation) -> Placement:
        """Follow what is decided already, or decide; then see to the budgets."""
        placement = self._placed(seen)
        if self._forecast is None or not self._budgets.any:
            return placement
        wanted: Role = "small" if placement.tier == seen.small else "large"
        role = within(self._budgets, seen, self._forecast, wanted, placement.decision_s or 0.0)
        if role == wanted:
            return placement
        tier = seen.small if role == "small" else seen.large
        return placement._replace(tier=tier, reason=f"budget, not {placement.reason}")

    def _placed(self, seen: Observation) -> Placement:
        request = self._requests.setdefault(seen.request, _Request())
        effort = Effort(request.embedded, self._similarity)
        if seen.call.position == 0 and self._classifies:
            self._classify(request, seen, effort)
        if request.rung is not None:
            return self._placement(self._ladder.tier(seen, request.rung), request.reason, effort)
        branch = request.branches.setdefault(seen.call.branch, _Branch())
        if not branch.committed and not branch.then_large:
            return self._decide(seen, branch, effort)
        if branch.committed:
            branch.committed -= 1
            return self._placement(self._ladder.tier(seen, branch.rung), branch.reason, effort)
        branch.then_large = False
        return self._placement(self._ladder.tier(seen, None), f"rest of {branch.reason}", effort)

    def _decide(self, seen: Observation, branch: _Branch, effort: Effort) -> Placement:
        """Step 2: the first model that is good enough runs the subtask, and what is committed to with it; if none is, the best one.

        Nothing is looked at where the budgets leave no room for the large model anyway.
        """
        if self._forecast is not None and self._budgets.any:
            shortest_s = self.options.embedding_s + self._beside_s + self._prediction_s
            if within(self._budgets, seen, self._forecast, "large", shortest_s) == "small":
                return self._placement(seen.small, "budget", effort)
        effort.kappa = self._threshold(seen)
        reason = "large, as cheap as any"
        for rung in self._ladder.rungs(seen):
            verdict = rung.algorithm.decide(seen.call, effort)
            reason = verdict.reason
            if verdict.small_subtasks:
                branch.rung, branch.reason = rung, reason
                branch.committed, branch.then_large = verdict.small_subtasks - 1, verdict.then_large
                return self._placement(self._ladder.tier(seen, rung), reason, effort)
        return self._placement(self._ladder.tier(seen, None), reason, effort)

    def learn(self, row: RequestRow) -> None:
        """Forget a request that has ended."""
        self._requests.pop(row.request, None)

    @property
    def _prediction_s(self) -> float:
        told = self.options.prediction_s
        return self._ladder.prediction_s if told is None else float(told)

    @property
    def _beside_s(self) -> float:
        told = self.options.beside_s
        return float(self.options.embedding_s if told is None else told)

    def _placement(self, tier: str, reason: str, effort: Effort) -> Placement:
        options = self.options
        embedding_s = effort.embeddings * options.embedding_s + effort.beside * self._beside_s
        took_s = embedding_s + effort.predictions * self._prediction_s
        return Placement(tier, reason, decided=took_s > 0.0, decision_s=options.decision_s + took_s)

    def _classify(self, request: _Request, seen: Observation, effort: Effort) -> None:
        """Step 1: where the final outputs will be alike, all of the request runs on the smaller model."""
        effort.embeddings += 1
        for rung in self._ladder.rungs(seen):
            likeness = rung.algorithm.estimators.request_similarity(seen.call.task)
            if likeness > self.options.tau_request:
                request.rung, request.reason = rung, f"urc {likeness:.2f}"
                return

    def _threshold(self, seen: Observation) -> float:
        """kappa, lower while the large tier is dearer than it was on average, higher while it is cheaper."""
        kappa, forecast, options = self.kappa(_steps_before(seen.call)), self._forecast, self.options
        if forecast is None or not options.dear_weight:
            return kappa
        more_usd = extra_usd(seen, forecast, Worth(options.time_usd_per_s, options.late_usd))
        usual_usd = self._usual.add(more_usd)
        return kappa - float(options.dear_weight) * (more_usd / usual_usd - 1.0) if usual_usd > 0 else kappa


def _steps_before(call: ModelCall) -> int:
    """How many subtasks come before this one: its position in a chain, those of its own conversation in a branch."""
    return sum(message.role == "assistant" for message in call.messages) if call.branch else call.position
