"""HERA/AIMS: which subtasks the small model does as well as the large one, looked up step by step.

Algorithm 1 of AIMS (EuroSys 2026; HERA is its 2025 preprint), its words: URC the user request classifier, SSE single subtask
evaluation, SLE subtask lookahead evaluation, CD convergence detection, SD subtask decomposition. Where the two texts differ, or
leave something open, the choice is an option or said beside the code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field

from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy, Study
from sim.policies.features import PACKAGED_ENCODER
from sim.policies.hera.budget import Budgets, Forecast, RunningMean, Worth, extra_usd, within
from sim.policies.hera.estimators import Estimators, Perfect, Retrieval
from sim.policies.hera.outlook import Outlook, Role, roll
from sim.policies.hera.similarity import EmbeddingSimilarity
from sim.profiles import NonNegative, Positive
from sim.records import RequestRow
from workloads.task import ModelCall, Task

COMPONENTS = ("urc", "sse", "sle", "cd", "sd")
_ONE = f"({'|'.join(COMPONENTS)})"
Cosine = Annotated[float, Field(ge=-1.0, le=1.0)]


class HeraOptions(PolicyOptions):
    """Options of `hera`."""

    estimators: str = "retrieval"
    """Who predicts: `retrieval` takes the nearest profiled subtask, `perfect` looks into the recording (a bound, not a router), else a
    folder of trained estimators (`run_sim.py estimators`)."""
    any_family: bool = False
    """Use trained estimators also on families of tasks that they do not know."""
    components: Annotated[str, Field(pattern=rf"^{_ONE}(\+{_ONE})*$")] = "+".join(COMPONENTS)
    """Parts of Algorithm 1 that take part, joined by +."""
    tau_request: Annotated[float, Field(ge=0.0, le=1.01)] = 0.7
    """The whole request runs small where the final outputs are predicted to be more alike than this."""
    kappa: Cosine = 0.6
    """Subtasks count as similar above this cosine, at position 0."""
    kappa_step: NonNegative = 0.02
    """What each later position adds to kappa."""
    kappa_positions: Annotated[int, Field(ge=0)] = 5
    """Positions after which kappa rises no more."""
    sle_index: Literal["d+1", "d"] = "d+1"
    """Which predicted small subtask is compared at S-L distance d: the (d+1)-th (2025) or the d-th (2026)."""
    horizon: Annotated[int, Field(ge=1)] = 5
    """Steps that convergence detection looks ahead."""
    decomposition: Literal["all", "prefix"] = "all"
    """SD runs a subtask's simpler parts small if `all` of them pass, or the leading ones that pass (`prefix`); the large model takes over there."""
    encoder: str = PACKAGED_ENCODER
    """Sentence encoder: `all-MiniLM-L6-v2` is installed; else a model's folder or its name on the Hugging Face hub."""
    neighbours: Annotated[int, Field(ge=1)] = 10
    """Profiled requests that have a say in a request's similarity (retrieval)."""
    profiled_requests: Annotated[int, Field(ge=2)] = 300
    """Training requests that are profiled (retrieval): about a dozen subtasks each."""
    profile_threshold: Cosine = 0.7
    """From which cosine on two outputs are similar in the profile."""
    usd_budget: Positive | None = None
    """What a request may cost, $; the large model only runs where the rest still fits."""
    latency_budget_s: Positive | None = None
    """How long a request may take, s; each subtask goes where the rest fits best."""
    dear_weight: NonNegative = 0.0
    """How far kappa falls while the large tier is dearer than usual: by this much at twice the usual difference in cost."""
    time_usd_per_s: NonNegative = 0.0
    """What a second of waiting counts for in that difference, $."""
    late_usd: NonNegative = 0.0
    """What missing the request's deadline counts for in that difference, $: the risk of it is estimated for either tier."""
    embedding_s: NonNegative = 0.012
    """Time to embed one text, s (about 82 texts/s on one CPU thread, measured)."""
    prediction_s: NonNegative | None = None
    """Time to predict one subtask's text, s; as measured for trained estimators, else none, unless told."""


@dataclass(slots=True)
class _Branch:
    """What is decided of a chain of subtasks: so many more go small, and whether the one after them goes large."""

    committed: int = 0
    then_large: bool = False
    reason: str = ""


@dataclass(slots=True)
class _Request:
    """What is decided of a request: small throughout, or branch by branch; a request that is a chain has one."""

    embedded: set[str] = field(default_factory=set)
    small: bool = False
    reason: str = ""
    branches: dict[int, _Branch] = field(default_factory=dict)


class _Verdict(NamedTuple):
    """How many subtasks from this one on go to the small model (0: this one goes to the large one), and why.

    `then_large`: the one after them is decided as well, for the large model.
    """

    small_subtasks: int
    reason: str
    then_large: bool = False


class _Effort:
    """What a decision takes: texts embedded, each once a request, and subtasks predicted."""

    def __init__(self, request: _Request, similarity: EmbeddingSimilarity) -> None:
        self._embedded, self._similarity = request.embedded, similarity
        self.kappa = math.inf
        self.embeddings = self.predictions = 0

    def similar(self, first: str, second: str) -> bool:
        """Whether two texts are alike; equal ones are without a look at them."""
        if first != second:
            fresh = {first, second} - self._embedded
            self.embeddings += len(fresh)
            self._embedded |= fresh
        return self.alike(first, second)

    def alike(self, first: str, second: str) -> bool:
        """The same for estimators that look into recordings, which takes no time: nothing is counted."""
        return self._similarity(first, second) > self.kappa


class Hera(RoutingPolicy):
    """Algorithm 1, with every component removable."""

    Options: ClassVar[type[PolicyOptions]] = HeraOptions
    knob: ClassVar[str | None] = "kappa"

    def __init__(self, options: HeraOptions) -> None:
        super().__init__(options)
        self._similarity = EmbeddingSimilarity(options.encoder)
        self._estimators = self._chosen(options)
        self._budgets = Budgets(options.usd_budget, options.latency_budget_s)
        self._forecast: Forecast | None = None
        self._usual = RunningMean()
        self._components = frozenset(options.components.split("+"))
        self._requests: dict[int, _Request] = {}

    def _chosen(self, options: HeraOptions) -> Estimators:
        if options.estimators == "perfect":
            return Perfect(self._similarity)
        if options.estimators == "retrieval":
            return Retrieval(self._similarity, options.neighbours, options.profile_threshold, options.profiled_requests)
        from sim.policies.hera.trained import Trained

        return Trained(options.estimators, self._similarity, any_family=options.any_family, horizon=options.horizon)

    def prepare(self, study: Study) -> None:
        """Let the estimators learn."""
        self._estimators.prepare(study)
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
        role = within(self._budgets, seen, self._forecast, wanted)
        if role == wanted:
            return placement
        tier = seen.small if role == "small" else seen.large
        return placement._replace(tier=tier, reason=f"budget, not {placement.reason}")

    def _placed(self, seen: Observation) -> Placement:
        request = self._requests.setdefault(seen.request, _Request())
        effort = _Effort(request, self._similarity)
        if seen.call.position == 0 and "urc" in self._components:
            self._classify(request, seen.call.task, effort)
        if request.small:
            return self._placement(seen.small, request.reason, effort)
        branch = request.branches.setdefault(seen.call.branch, _Branch())
        if branch.committed:
            branch.committed -= 1
            return self._placement(seen.small, branch.reason, effort)
        if branch.then_large:
            branch.then_large = False
            return self._placement(seen.large, f"rest of {branch.reason}", effort)
        verdict = self._decide(seen, effort)
        if not verdict.small_subtasks:
            return self._placement(seen.large, verdict.reason, effort)
        branch.committed, branch.then_large = verdict.small_subtasks - 1, verdict.then_large
        branch.reason = verdict.reason
        return self._placement(seen.small, verdict.reason, effort)

    def learn(self, row: RequestRow) -> None:
        """Forget a request that has ended."""
        self._requests.pop(row.request, None)

    def _placement(self, tier: str, reason: str, effort: _Effort) -> Placement:
        options = self.options
        prediction_s = self._estimators.prediction_s if options.prediction_s is None else options.prediction_s
        took_s = effort.embeddings * options.embedding_s + effort.predictions * prediction_s
        return Placement(tier, reason, decided=took_s > 0.0, decision_s=options.decision_s + took_s)

    def _classify(self, request: _Request, task: Task, effort: _Effort) -> None:
        """Step 1: where the final outputs will be alike, all of the request runs small."""
        likeness = self._estimators.request_similarity(task)
        effort.embeddings += 1
        request.small = likeness > self.options.tau_request
        request.reason = f"urc {likeness:.2f}"

    def _threshold(self, seen: Observation) -> float:
        """kappa, lower while the large tier is dearer than it was on average, higher while it is cheaper."""
        kappa, forecast, options = self.kappa(_steps_before(seen.call)), self._forecast, self.options
        if forecast is None or not options.dear_weight:
            return kappa
        more_usd = extra_usd(seen, forecast, Worth(options.time_usd_per_s, options.late_usd))
        usual_usd = self._usual.add(more_usd)
        return kappa - float(options.dear_weight) * (more_usd / usual_usd - 1.0) if usual_usd > 0 else kappa

    def _decide(self, seen: Observation, effort: _Effort) -> _Verdict:
        """Step 2: the first component that finds the small model good enough decides; if none does, the large one runs."""
        call = seen.call
        here = self._estimators.outlook(call)
        effort.kappa = self._threshold(seen)
        if here is None:
            return _Verdict(0, "no outlook")
        tests = {"sse": self._single, "sle": self._lookahead, "cd": self._convergence, "sd": self._decomposition}
        effort.predictions += 2
        for component, test in tests.items():
            if component in self._components:
                verdict = test(call, here, effort)
                if verdict is not None:
                    return verdict
        return _Verdict(0, f"large {self._similarity(here.output('small'), here.output('large')):.2f}")

    def _single(self, call: ModelCall, here: Outlook, effort: _Effort) -> _Verdict | None:
        """SSE: both models would go on alike."""
        del call
        small, large = here.output("small"), here.output("large")
        return _Verdict(1, f"sse {self._similarity(small, large):.2f}") if effort.similar(small, large) else None

    def _lookahead(self, call: ModelCall, here: Outlook, effort: _Effort) -> _Verdict | None:
        """SLE: after d more subtasks the small model will be where the large one's next step leads."""
        distance = self._estimators.distance(call, here, effort.alike)
        effort.embeddings += 1
        if math.isinf(distance):
            return None
        wanted = round(distance) + (self.options.sle_index == "d+1")
        path = list(roll(here, "small", max(1, wanted)))
        if len(path) < wanted:
            return None
        effort.predictions += max(0, wanted - 1)
        if not effort.similar(path[-1].output("small"), here.output("large")):
            return None
        return _Verdict(round(distance) + 1, f"sle d={distance:.0f}")

    def _convergence(self, call: ModelCall, here: Outlook, effort: _Effort) -> _Verdict | None:
        """CD: both roll forward; up to the last step at which they agree everything can run small."""
        del call
        horizon = self.options.horizon
        pairs = list(zip(roll(here, "small", horizon), roll(here, "large", horizon), strict=False))
        effort.predictions += 2 * (len(pairs) - 1)
        agree = [
            k for k, pair in enumerate(pairs) if k and effort.similar(pair[0].output("small"), pair[1].output("large"))
        ]
        return _Verdict(agree[-1] + 1, f"cd k={agree[-1]}") if agree else None

    def _decomposition(self, call: ModelCall, here: Outlook, effort: _Effort) -> _Verdict | None:
        """SD: every simpler part passes the single test, so the small model runs all of them; or the leading ones that do.

        Running this subtask small is what brings the first part, so `m` leading parts that pass are `m + 1` small subtasks. The
        large model goes on from there its own way, which the remaining parts are not: what follows it is decided anew.
        """
        del call
        parts = self._estimators.parts(here, effort.alike)
        passed = len(list(takewhile(lambda part: effort.similar(part.output("small"), part.output("large")), parts)))
        one_by_one = self.options.decomposition == "prefix"
        effort.predictions += 2 * min(passed + 1, len(parts))
        if parts and passed == len(parts):
            return _Verdict(len(parts), f"sd {len(parts)} parts")
        if one_by_one and passed:
            return _Verdict(passed + 1, f"sd {passed} of {len(parts)} parts", then_large=True)
        return None


def _steps_before(call: ModelCall) -> int:
    """How many subtasks come before this one: its position in a chain, those of its own conversation in a branch."""
    return sum(message.role == "assistant" for message in call.messages) if call.branch else call.position
