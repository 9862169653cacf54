"""Policies as functions of a logged turn, and the walk in which a policy's own actions make its next state.

A policy maps features (n, d), as in `LoggedTurns`, to probabilities (n, actions): one row sums to 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sim.tmo.logged import SPAN, FloatArray, IntArray, Layout, LoggedTurns
from sim.tmo.responses import ResponseModel, kind_of

TurnPolicy = Callable[[FloatArray], FloatArray]
TurnValues = Callable[[FloatArray], FloatArray]
"""Features (n, d) -> what each action is thought to be worth (n, actions)."""


class Walked(NamedTuple):
    """One walk through n logged turns, in their order: the state the policy came to, what it would do and did there."""

    features: FloatArray
    probabilities: FloatArray
    action: IntArray


def mixed(layout: Layout, local: float) -> TurnPolicy:
    """Local with probability `local`, else any cloud action alike: the authors' Random at 0.5 and Cloud at 0."""
    row = np.where(layout.cloud, (1.0 - local) / layout.cloud.sum(), local)
    return lambda features: np.tile(row, (len(features), 1))


def fixed(layout: Layout, action: int) -> TurnPolicy:
    """Always the same action."""
    row = np.eye(layout.actions)[action]
    return lambda features: np.tile(row, (len(features), 1))


def greedy(values: TurnValues) -> TurnPolicy:
    """The action worth most; the first of equals."""

    def policy(features: FloatArray) -> FloatArray:
        found = values(features)
        chosen: FloatArray = np.eye(found.shape[1])[found.argmax(axis=1)]
        return chosen

    return policy


def by_kind(layout: Layout, actions: IntArray) -> TurnPolicy:
    """A table: the action of each task kind, (kinds,)."""
    rows = np.eye(layout.actions)[actions]
    return lambda features: rows[kind_of(layout, features)]


def best_by_kind(turns: LoggedTurns, values: TurnValues) -> IntArray:
    """(kinds,): for each kind the action worth most on average over its turns."""
    worth = values(turns.features)
    kinds = range(len(turns.layout.kinds))
    return np.array(
        [worth[turns.kind == kind].mean(axis=0).argmax() if (turns.kind == kind).any() else 0 for kind in kinds]
    )


def predicted(model: ResponseModel, layout: Layout, features: FloatArray) -> FloatArray:
    """(n, actions): the mean response of every action in every turn."""
    n, actions = len(features), layout.actions
    mean, _ = model.predict(np.repeat(features, actions, axis=0), np.tile(np.arange(actions), n))
    return mean.reshape(n, actions)


def associations_in(layout: Layout, features: FloatArray) -> FloatArray:
    """(n, images): the turns' association scores, from their features."""
    return features[:, layout.history :]


def walk(turns: LoggedTurns, policy: TurnPolicy, rng: np.random.Generator) -> Walked:
    """Go through the logged dialogues with the policy's own actions in its state; questions and associations stay the log's.

    Draws from `rng` whether or not the policy does, so that policies walk with common random numbers.
    """
    layout = turns.layout
    features = np.empty_like(turns.features)
    probabilities, action = np.empty((len(turns), layout.actions)), np.empty(len(turns), np.intp)
    uniform = rng.random(len(turns))
    states = np.full((len(turns), layout.images + 2), np.nan)
    for position in range(int(turns.position.max()) + 1):
        rows = np.flatnonzero(turns.position == position)
        states[rows] = layout.state(None if position == 0 else action[rows - 1], turns.kind[rows])
        window = [states[rows - back] for back in range(min(position, SPAN - 1), -1, -1)]
        features[rows] = layout.features(window, turns.associations[rows])
        probabilities[rows] = policy(features[rows])
        reached = probabilities[rows].cumsum(axis=1) >= uniform[rows, None] * probabilities[rows].sum(axis=1)[:, None]
        action[rows] = reached.argmax(axis=1)
    return Walked(features, probabilities, action)


def spent(layout: Layout, features: FloatArray, costs: FloatArray) -> FloatArray:
    """(n,): what the actions in the window cost; `costs` (actions,). Turns longer ago than the window are not in it."""
    window = features[:, : layout.history].reshape(len(features), SPAN, layout.images + 2)
    cloud, uploaded = window[:, :, 0], np.maximum(window[:, :, 1:-1], 0).sum(axis=2).astype(int)
    by_images = np.array([costs[layout.cloud & (layout.uploads.sum(axis=1) == k)][0] for k in range(layout.images + 1)])
    total: FloatArray = np.where(cloud == 0, costs[0], np.where(cloud == 1, by_images[uploaded], 0.0)).sum(axis=1)
    return total
