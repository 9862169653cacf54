"""What a learned policy sees of a turn, as numbers: chosen parts, each scaled into a known range.

One `Observer` serves the learning environment and the trained policy, so both see the same. It keeps the request's own history: the
actions the policy itself took, what they cost, what is left of the budgets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sim.cost import LEDGER_ITEMS
from sim.policies.base import Observation, Signals
from sim.policies.features import text_encoder
from sim.records import SubtaskRow
from sim.tmo.actions import Action
from workloads.dialogue import Turn, turn_of
from workloads.errors import InputError, suggest

Vector = npt.NDArray[np.float32]

PARTS = {
    "kind": "one bit per task category",
    "history": "the last turns' tiers, modalities and categories, and each tier's and modality's share of all turns so far",
    "position": "the turn's number over the most turns, up to 1",
    "prompt": "tokens of the conversation",
    "associations": "how much the question needs each modality",
    "sizes": "each attachment's bytes",
    "network": "per tier: seconds to send the text and get an answer, and further seconds for all attachments",
    "queues": "per tier: seconds of waiting in its queue",
    "question": "sentence embedding of the question",
    "remaining": "what is left of each budget, as a share of it",
    "budget": "where each budget lies between the lowest and the highest it was trained for, on a logarithmic scale",
}
"""Parts of an observation, in their order."""
DEFAULT_PARTS = tuple(name for name in PARTS if name != "question")
"""All but the embedding, which costs 12 ms of a CPU thread for every new question."""
COST_ITEMS = ("latency_s", "total_usd", *LEDGER_ITEMS, "energy_j", "carbon_g")
"""What can have a budget: a request's seconds and the items of its bill. SLA penalties are not known before the end and not in."""

_WINDOW = 5
_EMBEDDING_WIDTH = 384
_TOKENS, _MBYTES, _NETWORK_S, _QUEUE_S = 500.0, 1.0, 1.0, 5.0
"""Values that come out as 0.5."""


class Budget(NamedTuple):
    """The most a request may spend of an item; a policy for many budgets was trained on those from `low` to `high`."""

    item: str
    low: float
    high: float

    def place_of(self, value: float) -> float:
        """0 at `low`, 1 at `high`, logarithmic between; 0 for a single budget."""
        return math.log(value / self.low) / math.log(self.high / self.low) if self.low < self.high else 0.0


@dataclass(frozen=True)
class View:
    """What the numbers of an observation and of an action mean: goes into a trained policy's card."""

    actions: tuple[Action, ...]
    kinds: tuple[str, ...]
    parts: tuple[str, ...] = DEFAULT_PARTS
    budgets: tuple[Budget, ...] = ()
    most_turns: int = 12

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise InputError("observation parts", f"there is no part {part!r}", suggest(part, PARTS))
        if len({budget.item for budget in self.budgets}) < len(self.budgets):
            raise InputError("budgets", "an item occurs twice", "Give one budget, or one range, per item")
        for item, low, high in self.budgets:
            if item not in COST_ITEMS:
                raise InputError("budgets", f"there is no cost {item!r}", suggest(item, COST_ITEMS))
            if not 0.0 < low <= high < math.inf:
                raise InputError(
                    f"budget {item}", f"found {low:g} to {high:g}", "Give positive numbers, the lower first"
                )

    @cached_property
    def tiers(self) -> tuple[str, ...]:
        """Tiers in the order of the actions."""
        return tuple(dict.fromkeys(action.tier for action in self.actions))

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Modalities in the order of the actions."""
        return tuple(dict.fromkeys(name for action in self.actions for name in action.modalities))

    @cached_property
    def _widths(self) -> dict[str, int]:
        tiers, modalities, kinds = len(self.tiers), len(self.modalities), len(self.kinds)
        turn = tiers + modalities
        return {
            "kind": kinds, "history": _WINDOW * (turn + kinds) + turn, "position": 1, "prompt": 1, "associations": modalities,
            "sizes": modalities, "network": 2 * tiers, "queues": tiers, "question": _EMBEDDING_WIDTH,
            "remaining": len(self.budgets), "budget": len(self.budgets),
        }  # fmt: skip

    @cached_property
    def bounds(self) -> tuple[Vector, Vector]:
        """(low, high), each of the observation's shape (width,)."""
        lows = {"question": -1.0, "remaining": -1.0}
        chosen = [part for part in PARTS if part in self.parts]
        low = [lows.get(part, 0.0) for part in chosen for _ in range(self._widths[part])]
        return np.array(low, np.float32), np.ones(len(low), np.float32)


class Dialogue:
    """One request under way, as its policy remembers it. `spent` is by item of the observer."""

    __slots__ = ("budgets", "charged", "kind", "past", "spent", "totals", "turn")

    def __init__(self, budgets: Sequence[float], items: int, totals: int) -> None:
        self.budgets = budgets
        self.charged = 0
        self.spent = [0.0] * items
        self.past: list[list[float]] = []
        self.totals = [0.0] * totals
        self.turn = Turn("", "")
        self.kind: list[float] = []


class Observer:
    """Turns what a policy sees into a vector. `items` are the costs it keeps account of; the budgets' come first."""

    def __init__(self, view: View, items: Sequence[str] = ()) -> None:
        self.view = view
        self.items = tuple(dict.fromkeys([*(budget.item for budget in view.budgets), *items]))
        kinds = range(len(view.kinds))
        self._kinds = {kind: [float(i == j) for j in kinds] for i, kind in enumerate(view.kinds)}
        self._no_kind = [0.0 for _ in kinds]
        self._bits = [
            [*(float(tier == action.tier) for tier in view.tiers), *(float(name in action.modalities) for name in view.modalities)]
            for action in view.actions
        ]  # fmt: skip
        self._empty_turn = [0.0] * (len(self._bits[0]) + len(view.kinds))
        self._sees = {action.tier for action in view.actions if action.modalities}
        self._encoders = [getattr(self, f"_{part}") for part in PARTS if part in view.parts]

    def begin(self, budgets: Sequence[float]) -> Dialogue:
        """A new request with these budgets, in the order of the view's."""
        return Dialogue(budgets, len(self.items), len(self._bits[0]))

    def see(self, dialogue: Dialogue, seen: Observation) -> Vector:
        """The vector of this turn, shape (width,); every number lies within the view's bounds."""
        self.settle(dialogue, seen.attempts, seen.signals)
        dialogue.turn = turn = turn_of(seen.call)
        dialogue.kind = self._kinds.get(turn.kind, self._no_kind)
        numbers: list[float] = []
        for encode in self._encoders:
            numbers += encode(dialogue, seen)
        return np.array(numbers, np.float32)

    def act(self, dialogue: Dialogue, action: int) -> None:
        """Remember what was done with the turn seen last."""
        bits = self._bits[action]
        dialogue.past.append(bits + dialogue.kind)
        dialogue.totals = [total + bit for total, bit in zip(dialogue.totals, bits, strict=True)]

    def settle(self, dialogue: Dialogue, attempts: Sequence[SubtaskRow], signals: Signals) -> list[float]:
        """Charge the attempts that are new; returns what they cost, by item."""
        cost = [0.0] * len(self.items)
        for row in attempts[dialogue.charged :]:
            bill = signals.charges(row)
            for index, item in enumerate(self.items):
                cost[index] += row.end_s - row.start_s if item == "latency_s" else getattr(bill, item)
        dialogue.charged = len(attempts)
        dialogue.spent = [spent + new for spent, new in zip(dialogue.spent, cost, strict=True)]
        return cost

    # ------------------------------------------------------------------------------------------------- one method per part

    def _kind(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        return dialogue.kind

    def _history(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        past, turns = dialogue.past[-_WINDOW:], max(1, len(dialogue.past))
        numbers = self._empty_turn * (_WINDOW - len(past))
        for turn in past:
            numbers += turn
        return numbers + [total / turns for total in dialogue.totals]

    def _position(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        return [min(1.0, seen.call.position / self.view.most_turns)]

    def _prompt(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        return [_squashed(seen.call.prompt_tokens, _TOKENS)]

    def _associations(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        names = [attachment.name for attachment in seen.call.task.attachments]
        scores = dict(zip(names, dialogue.turn.associations, strict=False))
        return [min(1.0, max(0.0, scores.get(name, 0.0))) for name in self.view.modalities]

    def _sizes(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        sizes = {attachment.name: attachment.size_bytes / 1e6 for attachment in seen.call.task.attachments}
        return [_squashed(sizes.get(name, 0.0), _MBYTES) for name in self.view.modalities]

    def _network(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        call, transfer_s, home = seen.call, seen.signals.transfer_s, seen.home
        text_bytes, numbers = call.upload_bytes, []
        attached_bytes = sum(attachment.size_bytes for attachment in call.task.attachments)
        for tier in self.view.tiers:
            text_s = transfer_s(tier, text_bytes, 0.0, home)
            numbers.append(_squashed(text_s, _NETWORK_S))
            further_s = 0.0
            if attached_bytes and tier in self._sees:
                further_s = transfer_s(tier, text_bytes + attached_bytes, 0.0, home) - text_s
            numbers.append(_squashed(further_s if further_s == further_s else math.inf, _NETWORK_S))
        return numbers

    def _queues(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        return [_squashed(seen.signals.wait_s(tier), _QUEUE_S) for tier in self.view.tiers]

    def _question(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        numbers: list[float] = text_encoder().encode([dialogue.turn.question])[0].clip(-1.0, 1.0).tolist()
        return numbers

    def _remaining(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        numbers = []
        for budget, spec, spent in zip(dialogue.budgets, self.view.budgets, dialogue.spent, strict=False):
            used = seen.now_s - seen.arrival_s if spec.item == "latency_s" else spent
            numbers.append(max(-1.0, 1.0 - used / budget))
        return numbers

    def _budget(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        return [
            min(1.0, max(0.0, spec.place_of(budget)))
            for spec, budget in zip(self.view.budgets, dialogue.budgets, strict=True)
        ]


def _squashed(value: float, half: float) -> float:
    """0 for 0 or less, 0.5 for `half`, towards 1 for much; 1 for infinity."""
    return value / (value + half) if 0.0 < value < math.inf else float(value > 0.0)
