"""The actions of TMO: a tier, and which modalities go along.

The order is that of the paper (arXiv 2502.11007): the small tier without modalities first, then the large tier with none, with
each one alone, with each pair, ... up to all of them. With three modalities: 0 small; 1 large, text only; 2, 3, 4 one of them;
5 = {0, 1}, 6 = {0, 2}, 7 = {1, 2}; 8 all three.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from sim.policies.base import Placement, TierView
from workloads.errors import InputError

MOST_ACTIONS = 4096
"""Actions beyond which a set is refused: n modalities have 2^n subsets."""


class Action(NamedTuple):
    """A tier and the modalities that go along, in the order of the task's attachments."""

    tier: str
    modalities: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.tier if not self.modalities else f"{self.tier}+{'+'.join(self.modalities)}"


def action_set(
    tiers: Sequence[TierView], modalities: Sequence[str], most: int | None = None
) -> tuple[Action, ...]:  # fmt: skip
    """All actions: tiers of role slm before those of role llm, each with every subset of at most `most` modalities.

    Subsets come by size, then in the order of `modalities`; a tier whose model sees no modalities has the empty one only. Raises
    InputError for no tiers, a modality named twice, or more than MOST_ACTIONS actions.
    """
    names = tuple(modalities)
    if not tiers:
        raise InputError("actions", "there is no tier to choose", "Give at least one")
    if len(set(names)) < len(names):
        raise InputError("actions", f"a modality occurs twice in {', '.join(names)}", "Name each once")
    if most is not None and most < 0:
        raise InputError("actions", f"at most {most} modalities", "Give 0 or more, or leave it out")
    largest = len(names) if most is None else min(most, len(names))
    subsets = sum(math.comb(len(names), size) for size in range(largest + 1))
    count = sum(subsets if tier.sees_modalities else 1 for tier in tiers)
    if count > MOST_ACTIONS:
        remedy = f"At most {MOST_ACTIONS} are allowed: give `most`, the most modalities that go along at a time"
        raise InputError("actions", f"{len(names)} modalities make {count} actions", remedy)
    ordered = sorted(tiers, key=lambda tier: tier.role != "slm")  # stable: tiers of a role keep their order
    return tuple(action for tier in ordered for action in _of_tier(tier, names, largest))


def _of_tier(tier: TierView, names: tuple[str, ...], largest: int) -> Iterator[Action]:
    for size in range((largest if tier.sees_modalities else 0) + 1):
        for chosen in combinations(names, size):
            yield Action(tier.name, chosen)


def placement(action: Action, reason: str = "") -> Placement:
    """The placement an action stands for."""
    return Placement(action.tier, reason, action.modalities)
