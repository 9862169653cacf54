"""Step 2 of Algorithm 1 for one pair of models: does the smaller one do this subtask, and what comes next, as well as the larger one?"""

from __future__ import annotations

import math
from itertools import takewhile
from typing import NamedTuple

from sim.policies.hera.estimators import Estimators
from sim.policies.hera.options import HeraOptions
from sim.policies.hera.outlook import Outlook, roll
from sim.policies.hera.similarity import EmbeddingSimilarity
from workloads.task import ModelCall


class Verdict(NamedTuple):
    """How many subtasks from this one on go to the small model (0: this one goes to the large one), and why.

    `then_large`: the one after them is decided as well, for the large model.
    """

    small_subtasks: int
    reason: str
    then_large: bool = False


class Effort:
    """What a decision takes: texts embedded, each once a request (`embedded` are those by now), and subtasks predicted.

    `embeddings` counts the encoder's passes, `beside` the second texts that go through it beside a first. The predictors of the two
    models are adapters of one decoder and write side by side: both count as one prediction.
    """

    def __init__(self, embedded: set[str], similarity: EmbeddingSimilarity) -> None:
        self._embedded, self._similarity = embedded, similarity
        self.kappa = math.inf
        self.embeddings = self.beside = self.predictions = 0

    def similar(self, first: str, second: str) -> bool:
        """Whether two texts are alike; equal ones are without a look at them."""
        if first != second:
            fresh = {first, second} - self._embedded
            self.embeddings += len(fresh) > 0
            self.beside += len(fresh) > 1
            self._embedded |= fresh
        return self.alike(first, second)

    def alike(self, first: str, second: str) -> bool:
        """The same for estimators that look into recordings, which takes no time: nothing is counted."""
        return self._similarity(first, second) > self.kappa


class Algorithm:
    """The components SSE, SLE, CD and SD, each removable, on what the estimators believe of the two models."""

    def __init__(self, options: HeraOptions, similarity: EmbeddingSimilarity, estimators: Estimators) -> None:
        self._options, self._similarity, self.estimators = options, similarity, estimators
        self._components = frozenset(options.components.split("+"))

    def decide(self, call: ModelCall, effort: Effort) -> Verdict:
        """The first component that finds the small model good enough decides; if none does, the large one runs."""
        here = self.estimators.outlook(call)
        if here is None:
            return Verdict(0, "no outlook")
        tests = {"sse": self._single, "sle": self._lookahead, "cd": self._convergence, "sd": self._decomposition}
        effort.predictions += 1
        for component, test in tests.items():
            if component in self._components:
                verdict = test(call, here, effort)
                if verdict is not None:
                    return verdict
        return Verdict(0, f"large {self._similarity(here.output('small'), here.output('large')):.2f}")

    def _single(self, call: ModelCall, here: Outlook, effort: Effort) -> Verdict | None:
        """SSE: both models would go on alike."""
        del call
        small, large = here.output("small"), here.output("large")
        return Verdict(1, f"sse {self._similarity(small, large):.2f}") if effort.similar(small, large) else None

    def _lookahead(self, call: ModelCall, here: Outlook, effort: Effort) -> Verdict | None:
        """SLE: after d more subtasks the small model will be where the large one's next step leads."""
        distance = self.estimators.distance(call, here, effort.alike)
        effort.embeddings += 1
        if math.isinf(distance):
            return None
        wanted = round(distance) + (self._options.sle_index == "d+1")
        path = list(roll(here, "small", max(1, wanted)))
        if len(path) < wanted:
            return None
        effort.predictions += max(0, wanted - 1)
        if not effort.similar(path[-1].output("small"), here.output("large")):
            return None
        return Verdict(round(distance) + 1, f"sle d={distance:.0f}")

    def _convergence(self, call: ModelCall, here: Outlook, effort: Effort) -> Verdict | None:
        """CD: both roll forward; up to the last step at which they agree everything can run small."""
        del call
        horizon = self._options.horizon
        pairs = list(zip(roll(here, "small", horizon), roll(here, "large", horizon), strict=False))
        effort.predictions += len(pairs) - 1
        agree = [
            k for k, pair in enumerate(pairs) if k and effort.similar(pair[0].output("small"), pair[1].output("large"))
        ]
        return Verdict(agree[-1] + 1, f"cd k={agree[-1]}") if agree else None

    def _decomposition(self, call: ModelCall, here: Outlook, effort: Effort) -> Verdict | None:
        """SD: every simpler part passes the single test, so the small model runs all of them; or the leading ones that do.

        Running this subtask small is what brings the first part, so `m` leading parts that pass are `m + 1` small subtasks. The
        large model goes on from there its own way, which the remaining parts are not: what follows it is decided anew.
        """
        del call
        parts = self.estimators.parts(here, effort.alike)
        passed = len(list(takewhile(lambda part: effort.similar(part.output("small"), part.output("large")), parts)))
        one_by_one = self._options.decomposition == "prefix"
        effort.predictions += min(passed + 1, len(parts))
        if parts and passed == len(parts):
            return Verdict(len(parts), f"sd {len(parts)} parts")
        if one_by_one and passed:
            return Verdict(passed + 1, f"sd {passed} of {len(parts)} parts", then_large=True)
        return None
