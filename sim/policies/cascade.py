"""Cascades: the small model answers first, and the large one does the subtask again where the answer does not convince.

What the small model did in vain has been paid for: time, money and energy stay in the records, with status `escalated`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy, Study
from sim.policies.baselines import Placements
from sim.policies.features import PACKAGED_ENCODER, FloatArray, text_encoder
from sim.policies.trained import Predictor, sampled, soft_logistic_regression
from sim.policies.trees import both_answered, grow_trees, subtask_text, training_of, two_models, worth
from sim.profiles import NonNegative, Share
from workloads.errors import InputError
from workloads.task import Completion


class Cascade(RoutingPolicy):
    """Base: every subtask starts small; `convinces` takes the answer or not."""

    name: ClassVar[str]

    def __init__(self, options: PolicyOptions) -> None:
        super().__init__(options)
        self._first = Placements(f"{self.name} first", decided=False)
        self._again = Placements(f"{self.name} again")

    def convinces(self, seen: Observation, answer: Completion) -> bool:
        """Whether the small model's answer stands."""
        raise NotImplementedError

    def place(self, seen: Observation) -> Placement:
        """Small first."""
        return self._first[seen.small]

    def review(self, seen: Observation, placement: Placement, answer: Completion) -> Placement | None:
        """Large where the small answer does not convince."""
        if placement.tier == seen.large or self.convinces(seen, answer):
            return None
        return self._again[seen.large]


class MinionsOptions(PolicyOptions):
    """Options of `minions`."""

    min_logprob: float = -0.1
    """Least mean log-probability of the answer's tokens that convinces."""


class Minions(Cascade):
    """Escalate where the small model is unsure of its own words, as AIMS adapts Minions (Narayan et al., 2025)."""

    Options: ClassVar[type[PolicyOptions]] = MinionsOptions
    knob: ClassVar[str | None] = "min_logprob"
    name: ClassVar[str] = "minions"

    def convinces(self, seen: Observation, answer: Completion) -> bool:
        """Compare the mean log-probability. Raises InputError for an answer that has none."""
        del seen
        if answer.mean_logprob != answer.mean_logprob:
            raise InputError(
                "policy 'minions'", f"{answer.model!r} gave no log-probabilities", "Use a model or a recording that has them"
            )  # fmt: skip
        return bool(answer.mean_logprob >= self.options.min_logprob)


class FrugalOptions(PolicyOptions):
    """Options of `frugal-cascade`."""

    threshold: Share = 0.5
    """The small answer stands where it is predicted to be good enough with at least this probability."""
    decision_s: NonNegative = 0.012
    """Time to judge one answer, s (about 82 texts/s on one CPU thread, measured)."""
    encoder: str = PACKAGED_ENCODER
    """Sentence encoder: `all-MiniLM-L6-v2` is installed; else a model's folder or its name on the Hugging Face hub."""


class FrugalCascade(Cascade):
    """Judge each answer by a learned scorer of question and answer together, as FrugalGPT (Chen et al., 2023) does per request.

    The scorer is logistic regression on the embedding of the subtask with the answer, and the answer's mean log-probability where
    there is one, learned from the training requests: 1 where the small model's answer is worth as much as the large one's.
    """

    Options: ClassVar[type[PolicyOptions]] = FrugalOptions
    knob: ClassVar[str | None] = "threshold"
    name: ClassVar[str] = "frugal-cascade"

    def __init__(self, options: FrugalOptions) -> None:
        super().__init__(options)
        self._predict: Predictor = lambda asked: np.zeros(len(asked))

    def prepare(self, study: Study) -> None:
        """Learn from the training requests. Raises InputError where there are none."""
        training = training_of(study, self.name)
        models = two_models(training)
        rows = list[tuple[str, Completion, float]]()
        for tree in grow_trees(training, training.tasks):
            values = worth(tree, models, 1.0)
            for node in both_answered(tree, models):
                value = values[node.call.messages]
                good = float(value.small >= value.large)
                rows.append((subtask_text(node.call.messages), node.answers[models[0]], good))
        texts, answers, targets = (list(column) for column in zip(*sampled(rows), strict=True))
        self._predict = soft_logistic_regression(self._features(texts, answers), np.array(targets))

    def _features(self, texts: list[str], answers: list[Completion]) -> FloatArray:
        judged = [f"{text}\n{answer.text}" for text, answer in zip(texts, answers, strict=True)]
        logprobs = [0.0 if a.mean_logprob != a.mean_logprob else max(-5.0, a.mean_logprob) for a in answers]
        return np.hstack([text_encoder(self.options.encoder).encode(judged), np.array(logprobs)[:, None]])

    def convinces(self, seen: Observation, answer: Completion) -> bool:
        """Compare the predicted probability."""
        features = self._features([subtask_text(seen.call.messages)], [answer])
        return bool(round(float(self._predict(features)[0]), 6) >= self.options.threshold)
