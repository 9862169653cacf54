"""What a learned policy sees of a turn, as numbers: chosen parts, each scaled into a known range.

One `Observer` serves the learning environment and the trained policy, so both see the same. It keeps the request's own history: the
actions the policy itself took, what they cost, what is left of the budgets.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
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
from workloads.task import Attachment

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


class _Attached(NamedTuple):
    """What a request could send along, as no turn changes: `places` and `sizes` (squashed) by modality of the view.

    A place is that in the task's attachments, -1 for a modality it does not have.
    """

    attachments: tuple[Attachment, ...]
    places: list[int]
    sizes: list[float]
    size_bytes: int


class Dialogue:
    """One request under way, as its policy remembers it. `spent` is by item of the observer."""

    __slots__ = (
        "attached",
        "budget_places",
        "budgets",
        "charged",
        "kind",
        "recent",
        "spent",
        "totals",
        "turn",
        "turns",
    )

    def __init__(
        self, budgets: Sequence[float], budget_places: list[float], items: int, totals: int, recent: list[float]
    ) -> None:  # fmt: skip
        self.budgets, self.budget_places = budgets, budget_places
        self.attached: _Attached | None = None
        self.charged = 0
        self.spent = [0.0] * items
        self.turns = 0
        self.recent = recent
        """The bits of the last turns, the oldest first."""
        self.totals = [0.0] * totals
        self.turn = Turn("", "")
        self.kind: list[float] = []


class Observer:
    """Turns what a policy sees into a vector. `items` are the costs it keeps account of; the budgets' come first."""

    def __init__(self, view: View, items: Sequence[str] = ()) -> None:
        self.view = view
        self.items = tuple(dict.fromkeys([*(budget.item for budget in view.budgets), *items]))
        self._item_of = [None if item == "latency_s" else attrgetter(item) for item in self.items]
        kinds = range(len(view.kinds))
        self._kinds = {kind: [float(i == j) for j in kinds] for i, kind in enumerate(view.kinds)}
        self._no_kind = [0.0 for _ in kinds]
        self._bits = [
            [*(float(tier == action.tier) for tier in view.tiers), *(float(name in action.modalities) for name in view.modalities)]
            for action in view.actions
        ]  # fmt: skip
        self._turn_width = len(self._bits[0]) + len(view.kinds)
        self._no_turns = [0.0] * (_WINDOW * self._turn_width)
        self._sees = {action.tier for action in view.actions if action.modalities}
        self._encoders = [getattr(self, f"_{part}") for part in PARTS if part in view.parts]
        # NumPy takes twice as long to make an array of a list of so few numbers.
        self._packed = struct.Struct(f"{len(view.bounds[0])}f").pack

    def begin(self, budgets: Sequence[float]) -> Dialogue:
        """A new request with these budgets, in the order of the view's."""
        places = [
            min(1.0, max(0.0, spec.place_of(budget))) for spec, budget in zip(self.view.budgets, budgets, strict=True)
        ]
        return Dialogue(budgets, places, len(self.items), len(self._bits[0]), self._no_turns)

    def see(self, dialogue: Dialogue, seen: Observation) -> Vector:
        """The vector of this turn, shape (width,); every number lies within the view's bounds."""
        self.settle(dialogue, seen.attempts, seen.signals)
        dialogue.turn = turn = turn_of(seen.call)
        dialogue.kind = self._kinds.get(turn.kind, self._no_kind)
        attachments = seen.call.task.attachments
        if dialogue.attached is None or dialogue.attached.attachments is not attachments:
            dialogue.attached = self._look_at(attachments)
        numbers: list[float] = []
        for encode in self._encoders:
            numbers += encode(dialogue, seen)
        return np.frombuffer(bytearray(self._packed(*numbers)), np.float32)

    def act(self, dialogue: Dialogue, action: int) -> None:
        """Remember what was done with the turn seen last."""
        bits = self._bits[action]
        dialogue.turns += 1
        dialogue.recent = dialogue.recent[self._turn_width :] + bits + dialogue.kind
        dialogue.totals = [total + bit for total, bit in zip(dialogue.totals, bits, strict=True)]

    def settle(self, dialogue: Dialogue, attempts: Sequence[SubtaskRow], signals: Signals) -> list[float]:
        """Charge the attempts that are new; returns what they cost, by item."""
        cost = [0.0] * len(self.items)
        if not cost or len(attempts) == dialogue.charged:
            return cost
        for row in attempts[dialogue.charged :]:
            bill = signals.charges(row)
            for index, item_of in enumerate(self._item_of):
                cost[index] += item_of(bill) if item_of else row.end_s - row.start_s
        dialogue.charged = len(attempts)
        dialogue.spent = [spent + new for spent, new in zip(dialogue.spent, cost, strict=True)]
        return cost

    def _look_at(self, attachments: tuple[Attachment, ...]) -> _Attached:
        place_of = {attachment.name: place for place, attachment in enumerate(attachments)}
        size_bytes = [attachment.size_bytes for attachment in attachments]
        places = [place_of.get(name, -1) for name in self.view.modalities]
        sizes = [_squashed(size_bytes[place] / 1e6, _MBYTES) if place >= 0 else 0.0 for place in places]
        return _Attached(attachments, places, sizes, sum(size_bytes))

    # ------------------------------------------------------------------------------------------------- one method per part

    def _kind(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        return dialogue.kind

    def _history(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        turns = dialogue.turns or 1
        return dialogue.recent + [total / turns for total in dialogue.totals]

    def _position(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        return [min(1.0, seen.call.position / self.view.most_turns)]

    def _prompt(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        return [_squashed(seen.call.prompt_tokens, _TOKENS)]

    def _associations(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        assert dialogue.attached is not None
        scores = dialogue.turn.associations
        known = len(scores)
        asked = [scores[place] if 0 <= place < known else 0.0 for place in dialogue.attached.places]
        return [score if 0.0 < score < 1.0 else min(1.0, max(0.0, score)) for score in asked]

    def _sizes(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        assert dialogue.attached is not None
        return dialogue.attached.sizes

    def _network(self, dialogue: Dialogue, seen: Observation) -> list[float]:
        call, transfer_s, home = seen.call, seen.signals.transfer_s, seen.home
        assert dialogue.attached is not None
        text_bytes, attached_bytes, numbers = call.upload_bytes, dialogue.attached.size_bytes, []
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
        return dialogue.budget_places


def _squashed(value: float, half: float) -> float:
    """0 for 0 or less, 0.5 for `half`, towards 1 for much; 1 for infinity."""
    return value / (value + half) if 0.0 < value < math.inf else float(value > 0.0)
