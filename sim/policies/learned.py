"""Routers that learn, from a task's text and size, whether the small model is good enough for the whole request.

Both are trained and calibrated out of fold: the tasks are divided into folds, and what decides about a fold (the learner and the
threshold) has seen the outcomes of the other folds only. The threshold is set for a target share of large requests, as RouteLLM
(Ong et al., 2024) calibrates its routers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sim.draws import component_rng
from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy, Study
from sim.policies.baselines import Placements
from sim.policies.features import PACKAGED_ENCODER, FloatArray, TaskFeatures, whole_request_scores
from sim.profiles import NonNegative, Share
from workloads.errors import InputError
from workloads.task import Task

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Predictor = Callable[[FloatArray], FloatArray]
"""Features, shape (tasks, columns) -> P(the small model is good enough), shape (tasks,)."""
Learner = Callable[[FloatArray, BoolArray], Predictor]
"""Training features and whether the small model was good enough -> a Predictor."""


def logistic_regression(features: FloatArray, good: BoolArray) -> Predictor:
    """Logistic regression with scikit-learn's default penalty (C = 1)."""
    if good.all() or not good.any():  # one outcome only: nothing to fit
        return lambda asked: np.full(len(asked), float(good[0]))
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):  # one thread always adds in the same order
        model = LogisticRegression(max_iter=1000).fit(features, good)

    def predict(asked: FloatArray) -> FloatArray:
        odds: FloatArray = asked @ model.coef_[0] + model.intercept_[0]
        return 1 / (1 + np.exp(-odds))

    return predict


def nearest_neighbours(count: int) -> Learner:
    """A Learner: the share of good ones among the `count` nearest training tasks, weighted by (1 + cosine) / 2."""

    def learn(features: FloatArray, good: BoolArray) -> Predictor:
        known = _unit(features)
        is_good = good.astype(float)

        def predict(asked: FloatArray) -> FloatArray:
            closeness = (1 + _unit(asked) @ known.T) / 2
            near = np.argsort(-closeness, axis=1, kind="stable")[:, :count]
            weights = np.take_along_axis(closeness, near, axis=1) + 1e-12
            share: FloatArray = (weights * is_good[near]).sum(axis=1) / weights.sum(axis=1)
            return share

        return predict

    return learn


def _unit(features: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1.0)


def fold_numbers(groups: Sequence[str], good: BoolArray, folds: int, rng: np.random.Generator) -> IntArray:
    """A fold for each task, shape (tasks,): tasks of one group (the same prompt) together, outcomes spread evenly."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    shuffled = [list(members.values())[i] for i in rng.permutation(len(members))]
    shuffled.sort(key=lambda indices: float(good[indices].mean()))  # stable: random within equal outcomes
    numbers = np.empty(len(groups), np.int64)
    for place, indices in enumerate(shuffled):
        numbers[indices] = place % folds
    return numbers


def out_of_fold_scores(features: FloatArray, good: BoolArray, folds: IntArray, learner: Learner) -> FloatArray:
    """P(the small model is good enough) of each task, shape (tasks,), from a learner that saw the other folds only.

    `features` has shape (tasks, columns), `good` and `folds` (tasks,). With one fold there are no others: the learner then
    predicts what it was trained on.
    """
    numbers = np.unique(folds)
    if len(numbers) < 2:
        return learner(features, good)(features)
    scores = np.empty(len(good))
    for number in numbers:
        held_out = folds == number
        scores[held_out] = learner(features[~held_out], good[~held_out])(features[held_out])
    return scores


def calibrated_thresholds(
    features: FloatArray, good: BoolArray, folds: IntArray, learner: Learner, large_share: float, ties: FloatArray
) -> dict[int, float]:
    """For each fold the score below which its tasks go to the large model.

    It is the `large_share` quantile of scores among the other folds, which are themselves predicted out of fold there: the
    fold's own outcomes and scores play no part. `ties` are tiny numbers added to the scores.
    """
    thresholds = {}
    for number in np.unique(folds).tolist():
        others = folds != number
        scores = out_of_fold_scores(features[others], good[others], folds[others], learner) + ties[others]
        thresholds[int(number)] = _quantile(scores, large_share)
    return thresholds


def _quantile(scores: FloatArray, share: float) -> float:
    if share <= 0 or share >= 1:
        return -np.inf if share <= 0 else np.inf
    return float(np.quantile(scores, share))


def tie_breaker(task: Task) -> float:
    """A tiny number in [0, 1e-9) drawn from the task's text, so that a share of equal scores can go either way."""
    digest = hashlib.sha256((task.prompt or task.id).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48 * 1e-9


class LearnedOptions(PolicyOptions):
    """Options of the learned routers."""

    decision_s: NonNegative = 0.012
    """Time one decision takes, s; the default is one short text on one CPU thread (about 82 texts/s, measured)."""
    large_share: Share = 0.5
    """Share of requests meant to go to the large model; the threshold is calibrated for it."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Parts the tasks are divided into; each is placed by what was learned on the others."""
    encoder: str = PACKAGED_ENCODER
    """Sentence encoder: `all-MiniLM-L6-v2` is installed; else a model's folder or its name on the Hugging Face hub."""


class LearnedRouter(RoutingPolicy):
    """Base of the learned routers: a whole request goes to one model, chosen from the task's text and size.

    After `prepare`, `scores` holds the out-of-fold P(the small model is good enough) by task id. A task that was not in the
    study is judged by a learner trained on all of it.
    """

    Options: ClassVar[type[PolicyOptions]] = LearnedOptions
    knob: ClassVar[str | None] = "large_share"
    name: ClassVar[str]

    def __init__(self, options: LearnedOptions) -> None:
        super().__init__(options)
        self.scores: dict[str, float] = {}
        self._large: dict[str, bool] = {}
        self._placements = Placements(self.name)
        self._repeated = Placements(self.name, decided=False)  # later steps go where the first went
        self._judge: Callable[[Task], bool] | None = None

    def learner(self) -> Learner:
        """How this router learns."""
        raise NotImplementedError

    def prepare(self, study: Study) -> None:
        """Run every task on either model off line, learn fold by fold, and decide for every task.

        Raises InputError when there are fewer than two different tasks, or nothing to tell them apart by.
        """
        tasks = list({task.id: task for task in study.tasks}.values())
        groups = [task.prompt or task.id for task in tasks]
        if len(set(groups)) < 2:
            raise self._nothing_to_learn(f"the study holds {len(set(groups))} different task(s)")
        features_of = TaskFeatures(self.options.encoder, text=any(task.prompt for task in tasks))
        features = features_of(tasks)
        if (features == features[0]).all():
            raise self._nothing_to_learn(f"the {len(tasks)} tasks have no text and are all of one size")
        small, large = whole_request_scores(study, tasks)
        good = small >= large
        count = min(self.options.folds, len(set(groups)))
        folds = fold_numbers(groups, good, count, component_rng(study.seed, "policy/folds"))
        self._decide(tasks, features, good, folds)
        self._judge = self._new_task_judge(features_of, features, good)

    def _decide(self, tasks: Sequence[Task], features: FloatArray, good: BoolArray, folds: IntArray) -> None:
        learner, share = self.learner(), self.options.large_share
        ties = np.array([tie_breaker(task) for task in tasks])
        scores = out_of_fold_scores(features, good, folds, learner) + ties
        thresholds = calibrated_thresholds(features, good, folds, learner, share, ties)
        self.scores = {task.id: float(score) for task, score in zip(tasks, scores, strict=True)}
        self._large = {task.id: self.scores[task.id] < thresholds[int(f)] for task, f in zip(tasks, folds, strict=True)}

    def _new_task_judge(
        self, features_of: TaskFeatures, features: FloatArray, good: BoolArray
    ) -> Callable[[Task], bool]:
        """Decides for a task that was not studied; trained on all of the study when it is first needed."""
        threshold = _quantile(np.array(list(self.scores.values())), self.options.large_share)
        predictors: list[Predictor] = []

        def judge(task: Task) -> bool:
            if not predictors:
                predictors.append(self.learner()(features, good))
            return bool(predictors[0](features_of([task]))[0] + tie_breaker(task) < threshold)

        return judge

    def place(self, seen: Observation) -> Placement:
        """Look up what was decided for the request's task."""
        task = seen.call.task
        large = self._large.get(task.id)
        if large is None:
            if self._judge is None:
                raise InputError(f"policy {self.name!r}", "was asked before it had learned", "Call `prepare` first.")
            large = self._large[task.id] = self._judge(task)
        placements = self._repeated if seen.call.position else self._placements
        return placements[seen.large if large else seen.small]

    def _nothing_to_learn(self, problem: str) -> InputError:
        remedy = "Give it two or more tasks that differ in their text or length, or use `random` or `fixed`."
        return InputError(f"policy {self.name!r}", problem, remedy)


class EmbeddingRouter(LearnedRouter):
    """Logistic regression on the prompt's sentence embedding and size."""

    name: ClassVar[str] = "embedding-router"

    def learner(self) -> Learner:
        """Logistic regression."""
        return logistic_regression


class NearestNeighboursOptions(LearnedOptions):
    """Options of `nearest-neighbours`."""

    neighbours: Annotated[int, Field(ge=1)] = 40
    """Training tasks that have a say."""


class NearestNeighbours(LearnedRouter):
    """Ask the most similar tasks whether the small model was good enough for them."""

    Options: ClassVar[type[PolicyOptions]] = NearestNeighboursOptions
    name: ClassVar[str] = "nearest-neighbours"

    def learner(self) -> Learner:
        """A vote of the nearest tasks."""
        return nearest_neighbours(self.options.neighbours)
