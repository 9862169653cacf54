"""Models of response quality, fitted on logged turns in which only the taken action's answer was graded.

All have the same two methods, `fit(turns)` and `predict(features, action)`. None of them is the truth: they are compared by how well
they predict dialogues they were not fitted on (`judged_models`), never by how well they fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from sim.bootstrap import bootstrap_metric
from sim.statistics import Interval
from sim.tmo.logged import FloatArray, IntArray, Layout, LoggedTurns


class ResponseModel(Protocol):
    """Predicts the response that an action would get in a turn."""

    def fit(self, turns: LoggedTurns) -> Self:
        """Learn from logged turns; returns itself."""
        ...

    def predict(self, features: FloatArray, action: IntArray) -> tuple[FloatArray, FloatArray]:
        """`features` (n, d) as in `LoggedTurns`, `action` (n,) -> mean and standard deviation of one response, each (n,)."""
        ...


class Constant:
    """The mean response whatever is done: what a useful model must beat."""

    def fit(self, turns: LoggedTurns) -> Self:
        """Keep mean and spread."""
        self._mean, self._std = float(turns.response.mean()), float(turns.response.std())
        return self

    def predict(self, features: FloatArray, action: IntArray) -> tuple[FloatArray, FloatArray]:
        """The same for all."""
        del features
        return np.full(len(action), self._mean), np.full(len(action), self._std)


class NearestNeighbours:
    """The authors' table: the k turns nearest in the paper's state and action numbers (Euclidean), weighted 1 / (distance + 1e-6)."""

    def __init__(self, k: int = 5) -> None:
        self._k = k

    def fit(self, turns: LoggedTurns) -> Self:
        """Keep all turns, sorted by state and action: equally near ones are taken as the authors' code takes them."""
        from sklearn.neighbors import NearestNeighbors

        self._layout = turns.layout
        points = self._points(turns.features, turns.action)
        order = np.lexsort(points.T)
        self._responses = turns.response[order]
        self._nearest = NearestNeighbors(n_neighbors=min(self._k, len(turns)), algorithm="kd_tree").fit(points[order])
        return self

    def predict(self, features: FloatArray, action: IntArray) -> tuple[FloatArray, FloatArray]:
        """Weighted mean and spread of the neighbours."""
        distance, index = self._nearest.kneighbors(self._points(features, action))
        weight = 1.0 / (distance + 1e-6)
        weight /= weight.sum(axis=1, keepdims=True)
        found = self._responses[index]
        mean = (weight * found).sum(axis=1)
        return mean, np.sqrt((weight * (found - mean[:, None]) ** 2).sum(axis=1))

    def _points(self, features: FloatArray, action: IntArray) -> FloatArray:
        return np.hstack([features[:, : self._layout.history], self._layout.bits(action)])


class TaskActionMeans:
    """Mean response by task kind and action, shrunk.

    A cell of n turns weighs n against `shrinkage` turns at the mean of its kind and place (local or cloud), and that against as many
    at the place's own mean, which is not shrunk: cells nobody tried stand at what is known around them.
    """

    def __init__(self, shrinkage: float = 3.0) -> None:
        self._shrinkage = shrinkage

    def fit(self, turns: LoggedTurns) -> Self:
        """Means of cells, from coarse to fine."""
        layout = turns.layout
        self._layout, shape = layout, (len(layout.kinds), layout.actions)
        cloud = layout.cloud.astype(int)
        place = _shrunk(cloud[turns.action], turns.response, np.full(2, turns.response.mean()), 1e-9)[0]
        kind_place = _shrunk(
            turns.kind * 2 + cloud[turns.action], turns.response, np.tile(place, shape[0]), self._shrinkage
        )[0]
        prior = kind_place.reshape(-1, 2)[:, cloud].ravel()
        means, counts = _shrunk(turns.kind * shape[1] + turns.action, turns.response, prior, self._shrinkage)
        self._means, self.counts = means.reshape(shape), counts.reshape(shape)
        spread = float(np.std(turns.response - self._means[turns.kind, turns.action]))
        self._std = spread * np.sqrt(1.0 + 1.0 / (self.counts + self._shrinkage))
        return self

    def predict(self, features: FloatArray, action: IntArray) -> tuple[FloatArray, FloatArray]:
        """The cell's mean; the spread around it and how little is known of it."""
        kind = kind_of(self._layout, features)
        return self._means[kind, action], self._std[kind, action]


def _shrunk(cell: IntArray, values: FloatArray, prior: FloatArray, shrinkage: float) -> tuple[FloatArray, FloatArray]:
    """Means of cells drawn towards `prior`, and the turns in each."""
    counts = np.bincount(cell, minlength=len(prior)).astype(float)
    means = (np.bincount(cell, values, len(prior)) + shrinkage * prior) / (counts + shrinkage)
    return means, counts


class Ridge:
    """Ridge regression on `design`, its strength chosen by leave-one-out."""

    def fit(self, turns: LoggedTurns) -> Self:
        """Scale, choose the strength, fit."""
        from sklearn.linear_model import RidgeCV

        self._fit(turns, RidgeCV(alphas=np.logspace(0, 5, 21)))
        residual = turns.response - self._pipeline.predict(design(turns.layout, turns.features, turns.action))
        self._std = float(residual.std())
        return self

    def _fit(self, turns: LoggedTurns, regression: Any) -> None:
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._layout = turns.layout
        self._pipeline = make_pipeline(StandardScaler(), regression)
        self._pipeline.fit(design(turns.layout, turns.features, turns.action), turns.response)

    def predict(self, features: FloatArray, action: IntArray) -> tuple[FloatArray, FloatArray]:
        """The line, and the spread of what it was fitted on."""
        mean = self._pipeline.predict(design(self._layout, features, action))
        return mean, np.full(len(mean), self._std)


class Bayesian(Ridge):
    """Bayesian ridge regression (MacKay, 1992) on `design`: the strengths of noise and prior come from the data.

    The standard deviation is that of one response: noise and what is not known about the weights.
    """

    def fit(self, turns: LoggedTurns) -> Self:
        """Scale and fit."""
        from sklearn.linear_model import BayesianRidge

        self._fit(turns, BayesianRidge())
        return self

    def predict(self, features: FloatArray, action: IntArray) -> tuple[FloatArray, FloatArray]:
        """Posterior predictive mean and standard deviation."""
        mean, std = self._pipeline.predict(design(self._layout, features, action), return_std=True)
        return mean, std


def kind_of(layout: Layout, features: FloatArray) -> IntArray:
    """The task kind of each turn, from its features."""
    kinds: IntArray = features[:, layout.history - 1].astype(np.intp)
    return kinds


def design(layout: Layout, features: FloatArray, action: IntArray) -> FloatArray:
    """(n, columns) of a regression: kind, place, images, what fits the question, what came before, and kind x place."""
    bits, kind = layout.bits(action), np.eye(len(layout.kinds))[kind_of(layout, features)]
    cloud, uploads = bits[:, :1], bits[:, 1:]
    associations = features[:, layout.history :]
    window = features[:, : layout.history].reshape(len(features), -1, layout.images + 2)
    seen = window[:, :, -1] >= 0
    earlier_cloud = np.where(seen, window[:, :, 0] == 1, 0).sum(axis=1, keepdims=True)
    switched = (window[:, -1, :1] >= 0) & (window[:, -1, :1] != cloud)
    earlier_images = np.where(seen[:, :, None], window[:, :, 1:-1], 0).sum(axis=(1, 2), keepdims=True)[:, :, 0]
    return np.hstack([
        kind, cloud, kind * cloud, uploads, uploads.sum(axis=1, keepdims=True), (uploads > 0).any(axis=1, keepdims=True),
        (uploads * associations).sum(axis=1, keepdims=True), associations, seen.sum(axis=1, keepdims=True), earlier_cloud, earlier_images,
        switched,
    ])  # fmt: skip


MODELS: Mapping[str, Callable[[], ResponseModel]] = {
    "constant": Constant,
    "neighbours": NearestNeighbours,
    "means": TaskActionMeans,
    "ridge": Ridge,
    "bayesian": Bayesian,
}


class Judged(NamedTuple):
    """How well a model predicts dialogues it was not fitted on.

    `r2` is 1 - squared error / squared error of the other dialogues' mean: below 0 a constant is better. `inside` is the share of
    responses within 1.96 predicted standard deviations.
    """

    name: str
    r2: Interval
    rmse: Interval
    inside: float


def out_of_fold(
    make: Callable[[], ResponseModel], turns: LoggedTurns, folds: int = 5, seed: int = 0
) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of every turn's response by models fitted on the dialogues of the other folds, each (n,)."""
    mean, std = np.empty(len(turns)), np.empty(len(turns))
    for held_out in dialogue_folds(turns, folds, seed):
        test = np.isin(turns.dialogue, held_out)
        fitted, rest = make().fit(turns.rows(~test)), turns.rows(test)
        mean[test], std[test] = fitted.predict(rest.features, rest.action)
    return mean, std


def dialogue_folds(turns: LoggedTurns, folds: int, seed: int) -> list[IntArray]:
    """The dialogues in about equal parts, drawn by `seed`; no more parts than dialogues."""
    order = np.random.default_rng(seed).permutation(turns.dialogues)
    return np.array_split(order, min(folds, len(order)))


def judged_models(
    turns: LoggedTurns, models: Mapping[str, Callable[[], ResponseModel]] = MODELS, folds: int = 5, seed: int = 0
) -> list[Judged]:
    """Every model judged on dialogues it has not seen; 95 % bootstrap intervals over dialogues."""
    centre = out_of_fold(Constant, turns, folds, seed)[0]
    found = []
    for name, make in models.items():
        mean, std = out_of_fold(make, turns, folds, seed)
        error, spread = (turns.response - mean) ** 2, (turns.response - centre) ** 2

        def quality(rows: IntArray, error: FloatArray = error, spread: FloatArray = spread) -> tuple[float, float]:
            return 1.0 - error[rows].sum() / spread[rows].sum(), math.sqrt(error[rows].mean())

        r2, rmse = bootstrap_metric(quality, turns.dialogue, np.random.default_rng(seed))
        found.append(Judged(name, r2, rmse, float(np.mean(error <= (1.96 * std) ** 2))))
    return found
