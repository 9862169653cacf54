"""What an action is worth: what a policy sees of a turn and an action as numbers, the reward it got, and play to learn from.

Numbers of (turn, action), for one linear model per task category and tier; all are about 0 to 1:

    1; associations of what goes along; of what was seen earlier and does not go along; of what was never seen; by their sum or 1,
    whichever is larger; the unneeded share of what goes along; the position / 5; whether another tier answered the turn before;
    expected latency and cost, by the reward's ranges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.policies.base import Observation, PolicyOptions, Study, TierView
from sim.policies.tmo.baselines import ActionOptions, ActionPolicy
from sim.profiles import NonNegative, Positive
from sim.records import SubtaskRow
from sim.tmo.actions import Action
from sim.tmo.reward import Reward, association_norm
from workloads.backend import Handle
from workloads.dialogue import Turn, turn_of
from workloads.errors import InputError
from workloads.task import Attachment, ModelCall, with_attachments
from workloads.trial import Trial, run_trial

Vector = npt.NDArray[np.float64]
FEATURES = 9
_TYPICAL_TOKENS = 100.0
"""Answer length where nobody has answered yet."""
_SMOOTHING = 0.02


class RewardOptions(ActionOptions):
    """Options of policies that learn what an action is worth (sim/tmo/reward.py); the defaults are TMO's."""

    association: NonNegative = 1 / 3
    """Weight of the association of what goes along."""
    latency: NonNegative = 1 / 3
    """Weight of a turn's seconds."""
    usage: NonNegative = 1 / 3
    """Weight of a turn's dollars."""
    latency_full_s: Positive = 20.0
    """Seconds that count as 1."""
    usage_full_usd: Positive = 0.0137
    """Dollars that count as 1; TMO's cloud call with three images."""


def reward_of(options: PolicyOptions) -> Reward:
    """The reward that RewardOptions ask for."""
    assert isinstance(options, RewardOptions)
    return Reward(
        options.association, options.latency, options.usage, (0.0, options.latency_full_s), (0.0, options.usage_full_usd)
    )  # fmt: skip


class Past(NamedTuple):
    """What a dialogue's earlier turns leave behind: the tier of the last one ('' before the first), and modalities that were seen."""

    tier: str = ""
    seen: frozenset[str] = frozenset()

    def after(self, action: Action) -> Past:
        """One turn later."""
        return Past(action.tier, self.seen | frozenset(action.modalities))


class Expected(NamedTuple):
    """What an action is expected to take: seconds and dollars."""

    latency_s: float
    usage_usd: float


def numbers(
    turn: Turn, attached: Sequence[Attachment], position: int, past: Past, action: Action, expected: Expected, reward: Reward
) -> Vector:  # fmt: skip
    """The features of the module's docstring, shape (FEATURES,)."""
    now = earlier = never = unneeded = 0.0
    for attachment, need in zip(attached, turn.associations, strict=True):
        if attachment.name in action.modalities:
            now, unneeded = now + need, unneeded + 1.0 - need
        elif attachment.name in past.seen:
            earlier += need
        else:
            never += need
    whole = max(1.0, now + earlier + never)
    switched = past.tier not in ("", action.tier)
    late = _finite(expected.latency_s / reward.latency_range_s[1])
    return np.array([
        1.0, now / whole, earlier / whole, never / whole, unneeded / max(1, len(attached)), position / 5.0, float(switched), late,
        expected.usage_usd / reward.usage_range[1],
    ])  # fmt: skip


def _finite(share: float) -> float:
    """A link that is down makes an action as bad as 10 times the full latency."""
    return min(share, 10.0)


def sent_along(call: ModelCall, action: Action) -> ModelCall:
    """The call as the action's tier gets it."""
    return with_attachments(call, tuple([a for a in call.task.attachments if a.name in action.modalities]))


class Sample(NamedTuple):
    """One turn that was played: its category, the action, its features and the reward it got."""

    kind: str
    action: Action
    features: Vector
    reward: float


def play(policy: ActionPolicy, study: Study, reward: Reward, passes: int) -> Iterator[Sample]:
    """Walk the training dialogues with actions by chance, `passes` times, and see what each turn gets.

    Responses are the backend's; seconds and dollars are those without queues. Raises InputError where there is nothing to learn from.
    """
    if study.training is None or not study.training.tasks:
        remedy = "Set workload.tasks.training_dialogues, or name a recording in inference.training"
        raise InputError("policy", "there are no training dialogues to learn from", remedy)
    rng = np.random.default_rng([study.seed, *b"tmo/play"])
    for _ in range(passes):
        for task in study.training.tasks:
            played = _ByChance(policy.actions(study.tiers, task), study, rng)
            trial = run_trial(study.training.agent, task, played, played.choose)
            yield from _samples(trial, played.chosen, study, reward)


class _ByChance:
    """Answers calls of one dialogue, each with the attachments of an action drawn for it."""

    def __init__(self, actions: Sequence[Action], study: Study, rng: np.random.Generator) -> None:
        assert study.training is not None
        self._actions, self._rng, self._backend = actions, rng, study.training.backend
        self._models = {tier.name: tier.model for tier in study.tiers}
        self.chosen: list[Action] = []

    def choose(self, call: ModelCall) -> str:
        """Draw an action; its model answers the call."""
        del call
        self.chosen.append(self._actions[int(self._rng.integers(len(self._actions)))])
        return self._models[self.chosen[-1].tier]

    def submit(self, call: ModelCall, model: str) -> Handle:
        """Ask with what goes along."""
        return self._backend.submit(sent_along(call, self.chosen[-1]), model)


def _samples(trial: Trial, chosen: Sequence[Action], study: Study, reward: Reward) -> Iterator[Sample]:
    past = Past()
    for call, done, action in zip(trial.calls, trial.completions, chosen, strict=True):
        sent, turn = sent_along(call, action), turn_of(call)
        tokens, attached = done.completion_tokens, call.task.attachments
        took_s = study.expected_latency_s(sent, action.tier, tokens) if study.expected_latency_s else 0.0
        cost = Expected(took_s, study.expected_cost_usd(sent, action.tier, tokens))
        fit = association_norm(turn.associations, uploaded(attached, action))
        features = numbers(turn, attached, call.position, past, action, cost, reward)
        yield Sample(turn.kind, action, features, reward.of(done.score, fit, *cost))
        past = past.after(action)


def uploaded(attached: Sequence[Attachment], action: Action) -> list[int]:
    """The indices of the attachments that an action sends along."""
    return [index for index, attachment in enumerate(attached) if attachment.name in action.modalities]


class Open(NamedTuple):
    """A turn that was placed, until its reward is known."""

    turn: Turn
    action: Action
    features: Vector
    fit: float


class Dialogues:
    """The dialogues under way of one policy: their past, what was chosen, and what that turned out to be worth."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self._past: dict[int, Past] = {}
        self._open: dict[int, dict[int, Open]] = {}
        self._seen: dict[int, Observation] = {}
        self._tokens: dict[str, float] = {}

    def options(self, seen: Observation, actions: Sequence[Action]) -> list[Vector]:
        """The features of each action now."""
        call, past = seen.call, self._past.get(seen.request, Past())
        turn, views = turn_of(call), {tier.name: tier for tier in seen.tiers}
        waits_s = {name: seen.signals.wait_s(name) for name in views}
        return [
            numbers(
                turn, call.task.attachments, call.position, past, action,
                self._expected(seen, views[action.tier], waits_s[action.tier], sent_along(call, action)), self._reward,
            )
            for action in actions
        ]  # fmt: skip

    def _expected(self, seen: Observation, tier: TierView, wait_s: float, sent: ModelCall) -> Expected:
        tokens = round(self._tokens.get(turn_of(sent).kind, _TYPICAL_TOKENS))
        network_s = seen.signals.transfer_s(tier.name, sent.sent_bytes, 4.0 * tokens, seen.home)
        latency_s = wait_s + network_s + seen.signals.service_s(tier.name, sent.prompt_tokens, tokens)
        return Expected(latency_s, tier.input_usd * sent.prompt_tokens + tier.output_usd * tokens)

    def chose(self, seen: Observation, action: Action, features: Vector) -> None:
        """Remember a choice."""
        turn, request = turn_of(seen.call), seen.request
        fit = association_norm(turn.associations, uploaded(seen.call.task.attachments, action))
        self._open.setdefault(request, {})[seen.call.position] = Open(turn, action, features, fit)
        self._past[request] = self._past.get(request, Past()).after(action)
        self._seen[request] = seen  # its attempts go on being written until the request ends

    def ended(self, request: int) -> list[tuple[Open, float]]:
        """The turns of a request that has ended, with their rewards; it is forgotten then."""
        self._past.pop(request, None)
        turns, seen = self._open.pop(request, {}), self._seen.pop(request, None)
        if seen is None:
            return []
        found = []
        for position, rows in _by_position(seen.attempts).items():
            if position in turns:
                turn = turns[position]
                found.append((turn, self._worth(turn, rows, seen)))
        return found

    def _worth(self, turn: Open, rows: Sequence[SubtaskRow], seen: Observation) -> float:
        answered = [row for row in rows if row.status == "ok" and row.tier >= 0]
        if answered:
            kind = turn.turn.kind
            before = self._tokens.get(kind, _TYPICAL_TOKENS)
            self._tokens[kind] = before + _SMOOTHING * (answered[-1].completion_tokens - before)
        latency_s = math.fsum(row.end_s - row.start_s for row in rows)
        usage_usd = math.fsum(seen.signals.cost_usd(row) for row in rows if row.tier >= 0)
        return self._reward.of(answered[-1].score if answered else math.nan, turn.fit, latency_s, usage_usd)


def _by_position(rows: Sequence[SubtaskRow]) -> Mapping[int, list[SubtaskRow]]:
    """The attempts of each turn. What belongs to no turn (a last tool call) goes to the turn before."""
    found: dict[int, list[SubtaskRow]] = {}
    for row in rows:
        last = max(found, default=row.position)
        found.setdefault(row.position if row.tier >= 0 or row.status != "ok" else last, []).append(row)
    return found


class Linear:
    """Ridge regression that learns one row at a time: its mean and, by A^-1, its uncertainty at a point."""

    def __init__(self, size: int, ridge: float) -> None:
        self.inverse = np.eye(size) / ridge
        self._moment = np.zeros(size)
        self.weights = np.zeros(size)

    def learn(self, features: Vector, value: float) -> None:
        """One more row (Sherman and Morrison's update of the inverse)."""
        gain = self.inverse @ features
        self.inverse -= np.outer(gain, gain) / (1.0 + features @ gain)
        self._moment += value * features
        self.weights = self.inverse @ self._moment

    def mean(self, features: Vector) -> float:
        """The value expected at a point."""
        return float(features @ self.weights)

    def width(self, features: Vector) -> float:
        """sqrt(x' A^-1 x): how little is known there, in units of the noise."""
        return math.sqrt(max(0.0, float(features @ self.inverse @ features)))
