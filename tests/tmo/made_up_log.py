"""Logged dialogues whose truth is known: what every action is worth in every state, and who decided in the log."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sim.tmo.logged import FloatArray, IntArray, Layout, LoggedTurns
from sim.tmo.turn_policies import TurnPolicy, walk

LAYOUT = Layout(2, ("fix", "find", "plan"))
Truth = Callable[[FloatArray, IntArray], FloatArray]


def truth(carried: float = 0.0) -> Truth:
    """Mean response (n,) of (features, action): by kind and action, and `carried` for a cloud turn just before."""
    table = np.array([
        [0.9, 1.0, 1.0, 1.0, 1.0],
        [0.3, 0.8, 1.2, 0.9, 1.4],
        [0.6, 1.1, 1.0, 1.2, 1.3],
    ])  # fmt: skip

    def mean(features: FloatArray, action: IntArray) -> FloatArray:
        before = features[:, LAYOUT.history - LAYOUT.images - 2]
        return table[features[:, LAYOUT.history - 1].astype(int), action] + carried * (before == 1)

    return mean


def logging_policy(features: FloatArray) -> FloatArray:
    """Local half the time; "find" goes to the cloud more often."""
    local = np.where(features[:, LAYOUT.history - 1] == 1, 0.3, 0.5)[:, None]
    cloud = np.array([0.4, 0.2, 0.2, 0.2])
    return np.hstack([local, (1 - local) * cloud])


def questions(dialogues: int, rng: np.random.Generator) -> LoggedTurns:
    """Dialogues of 2 to 4 turns in which nobody has decided yet: every action is 0."""
    length = rng.integers(2, 5, dialogues)
    dialogue = np.repeat(np.arange(dialogues), length)
    position = np.concatenate([np.arange(n) for n in length])
    n = len(dialogue)
    kind, associations = rng.integers(0, 3, n), rng.random((n, 2))
    nothing = np.zeros(n)
    no = np.zeros(n, bool)
    return LoggedTurns(
        LAYOUT, dialogue, position, kind, np.zeros((n, LAYOUT.history + 2)), np.zeros(n, int), associations, nothing,
        no, nothing, nothing,
    )  # fmt: skip


def made_up_log(
    dialogues: int, rng: np.random.Generator, mean: Truth, policy: TurnPolicy = logging_policy
) -> LoggedTurns:
    """A log of `policy` with normal noise of 0.4 on every response."""
    asked = questions(dialogues, rng)
    walked = walk(asked, policy, rng)
    response = mean(walked.features, walked.action) + rng.normal(0, 0.4, len(asked))
    return replaced(asked, walked.features, walked.action, response)


def replaced(turns: LoggedTurns, features: FloatArray, action: IntArray, response: FloatArray) -> LoggedTurns:
    """The same turns, decided."""
    return LoggedTurns(
        turns.layout, turns.dialogue, turns.position, turns.kind, features, action, turns.associations, response,
        turns.refused, turns.latency_s, turns.usage_usd,
    )  # fmt: skip


def true_value(policy: TurnPolicy, mean: Truth, horizon: str, seed: int = 99) -> float:
    """The mean over very many dialogues of the mean turn: in the logging policy's states, or in the policy's own."""
    rng = np.random.default_rng(seed)
    asked = questions(20_000, rng)
    states = walk(asked, policy if horizon == "dialogue" else logging_policy, rng).features
    n, actions = len(asked), LAYOUT.actions
    worth = mean(np.repeat(states, actions, axis=0), np.tile(np.arange(actions), n)).reshape(n, actions)
    per_turn = (policy(states) * worth).sum(axis=1)
    return float((np.bincount(asked.dialogue, per_turn) / np.bincount(asked.dialogue)).mean())
