"""Families of policies: which of them are yardsticks, how each is drawn everywhere, and who stands for a family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sim.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    SOFT,
    VERMILION,
    Summary,
    number,
    numbers,
    of_variant,
)
from sim.run_tables import RunTables

MOST_SHOWN = 6
"""Policies in a figure that shows some of them."""


class FamilyStyle(NamedTuple):
    """How one family is drawn: colour, marker, line style (matplotlib's name of one, or its lengths of dashes in points)."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]

    def marker_look(self, size: float) -> dict[str, Any]:
        """Arguments of `plot` for a marker of about this size in points; filled ones have a white rim, so that lines end at it."""
        thin = self.marker == "x"
        return {
            "marker": self.marker,
            "markersize": size * (1.7 if self.marker == "*" else 1.0),
            "markeredgecolor": self.colour if thin else "white",
            "markeredgewidth": 1.6 if thin else 0.6,
        }


_YARDSTICKS = {
    "all-slm": FamilyStyle(SOFT, "o", "-"),
    "all-llm": FamilyStyle(BLACK, "s", "-"),
    "random": FamilyStyle("#8C8C8C", "x", "-"),
}
_ORACLES = (FamilyStyle(BLACK, "*", "--"), FamilyStyle("#777777", "p", "--"), FamilyStyle(PURPLE, "h", "--"))
_OTHERS = tuple(
    FamilyStyle(colour, marker, line)
    for line, markers in (("-", "D^vPX<"), ("-.", ">dHos8"), ((0, (6, 1, 1, 1, 1, 1)), "^sXD>P"))
    for colour, marker in zip((BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE), markers, strict=True)
)


class Families:
    """The families of a run in the order of its summary. `policies` names the policy behind each, which a label may hide."""

    def __init__(self, summary: Summary, policies: Mapping[str, str]) -> None:
        self.names = list(dict.fromkeys(str(row["family"]) for row in summary))
        self._policy = {name: policies.get(name, name) for name in self.names}
        self.style = self._styles()

    def is_oracle(self, family: str) -> bool:
        """Whether the family knows every task's result beforehand, so that nobody can deploy it."""
        return self._policy[family].startswith("oracle")

    def is_yardstick(self, family: str) -> bool:
        """Whether the family is there for comparison: one model throughout, or a coin."""
        return self._policy[family] in _YARDSTICKS

    def is_simple(self, family: str) -> bool:
        """Whether it follows a rule that nobody learned and that looks at nothing but sizes."""
        return self._policy[family] == "prompt-length"

    def behind(self, policy: str) -> list[str]:
        """The families of this policy."""
        return [name for name in self.names if self._policy[name] == policy]

    def deployable(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The summary rows whose policy needs no knowledge of the results."""
        return [row for row in rows if not self.is_oracle(str(row["family"]))]

    def _styles(self) -> dict[str, FamilyStyle]:
        styles: dict[str, FamilyStyle] = {}
        oracles = others = 0
        for name, policy in self._policy.items():
            fixed = _YARDSTICKS.get(policy)
            if fixed is not None and fixed not in styles.values():
                styles[name] = fixed
            elif self.is_oracle(name):
                styles[name] = _ORACLES[oracles % len(_ORACLES)]
                oracles += 1
            else:
                styles[name] = _OTHERS[others % len(_OTHERS)]
                others += 1
        return styles


def swept(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A family's rows by rising knob; those without a knob come last."""
    return sorted(rows, key=lambda row: (math.isnan(number(row, "knob")), number(row, "knob")))


def middle_row(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row that stands for a family: half-way through its range of SLM usage, where it mixes the models."""
    ordered = swept(rows)
    usage = numbers(ordered, "slm_usage")
    if np.isnan(usage).all():
        return ordered[(len(ordered) - 1) // 2]
    distance = np.abs(usage - (np.nanmin(usage) + np.nanmax(usage)) / 2)
    return ordered[int(np.nanargmin(np.round(distance, 12)))]


def representatives(
    summary: Summary, families: Families, variant: str, most: int = MOST_SHOWN
) -> list[Mapping[str, Any]]:
    """The middle row of each family under one variant, in the summary's order.

    Where there are too many families, the two models alone stay, then policies of interest in their order, then an oracle, then simple
    rules, then the rest.
    """
    rows = of_variant(summary, variant)
    names = [name for name in families.names if any(row["family"] == name for row in rows)]

    def importance(name: str) -> int:
        if name in families.behind("all-slm")[:1] + families.behind("all-llm")[:1]:
            return 0
        if families.is_oracle(name):
            return 2
        return 4 if families.is_yardstick(name) else 3 if families.is_simple(name) else 1

    # One oracle goes before the last policies of interest: without it nobody sees what could be had.
    ranked = sorted(names, key=importance)
    oracles = [name for name in ranked if families.is_oracle(name)]
    if oracles and oracles[0] not in ranked[:most]:
        ranked.remove(oracles[0])
        ranked.insert(most - 1, oracles[0])
    chosen = set(ranked[:most])
    return [middle_row([row for row in rows if row["family"] == name]) for name in names if name in chosen]


def mixing_row(tables: RunTables, summary: Summary, families: Families, variant: str) -> Mapping[str, Any]:
    """The policy whose single run is shown: a deployable one whose requests use both models, about evenly, yardsticks last.

    Of those the one that gives most different kinds of reasons for its placements (by their first words) has most to show.
    """
    rows = of_variant(summary, variant)

    def reasons(row: Mapping[str, Any]) -> int:
        policy = str(row["policy"])
        subtasks = tables.subtasks(variant, policy, tables.seeds(variant, policy)[0])
        return len({str(reason).partition(" ")[0] for reason in set(subtasks["reason"].tolist())})

    def rank(row: Mapping[str, Any]) -> tuple[bool, bool, bool, int, float]:
        requests = tables.of_policy(variant, str(row["policy"]))
        mixed = (requests["slm_subtasks"] > 0) & (requests["slm_subtasks"] < requests["subtasks"])
        usage = number(row, "slm_usage")
        from_even = abs(usage - 0.5) if usage == usage else 1.0
        seldom, uneven = not mixed.size or bool(mixed.mean() < 0.05), from_even > 0.35
        yardstick = families.is_yardstick(str(row["family"]))
        worth_a_look = not (seldom or uneven or yardstick)
        return seldom, uneven, yardstick, -reasons(row) if worth_a_look else 0, from_even

    return min(families.deployable(rows) or rows, key=rank)
