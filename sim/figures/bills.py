"""Who answers, and what is paid for it, as more items join the bill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sim.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    money_unit,
    new_figure,
    stacked_bars,
    styled,
)

_ITEM = {"API": BLUE, "energy": GREEN, "transfer": SKY, "device": ORANGE, "late answers": VERMILION}
_ON_BOARD = "#8C8C8C"
_SENT = ("#F3E3EC", "#E3B7CF", PURPLE, "#9A4F79", "#5E2547", "#2B0F20")
"""More sent along, darker."""
_ROW_IN = 0.26
_LEGEND_IN = 0.5
"""Legends hang so far below their axes, for the numbers and the label in between."""


@styled
def draw_bills(rows: Sequence[Mapping[str, Any]], score: float) -> Figure:
    """Left: shares of turns by action; right: $ of a dialogue by item. A bar per ledger and policy, all of the same mean score.

    `rows` have `ledger`, `policy`, `usd` by item and `actions` by share.
    """
    figure = new_figure(
        f"Who answers, and what a dialogue costs, at a mean score of {score:g}", 1.9 + _ROW_IN * len(rows)
    )
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.25))
    actions = sorted({name for row in rows for name in row["actions"]}, key=lambda name: (name != "on board", name))
    shares = {name: np.array([100 * row["actions"].get(name, 0.0) for row in rows]) for name in actions}
    colours = {
        name: _ON_BOARD if name == "on board" else _SENT[(number - 1) % len(_SENT)]
        for number, name in enumerate(actions)
    }
    unit = money_unit(row["total_usd"] for row in rows)
    usd = {item: unit.factor * np.array([row["usd"].get(item, 0.0) for row in rows]) for item in _ITEM}
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -_LEGEND_IN / (_ROW_IN * len(rows)))}
    left.legend(handles=stacked_bars(left, shares, colours), ncols=2, **below)
    for text in list(left.texts):
        text.remove()  # every bar is 100 % long
    left.set_xlim(0, 100)
    left.set_xlabel("share of turns, %")
    right.legend(handles=stacked_bars(right, usd, _ITEM), ncols=3, **below)
    right.set_xlabel(f"cost of a dialogue, {unit.label}")
    left.set_yticks(range(len(rows)), [f"{row['ledger']}: {row['policy']}" for row in rows])
    if any(row["policy"].endswith("API bill") for row in rows):
        right.set_title("API bill: chosen by the price of the API alone", loc="right")
    for place in range(1, len(rows)):
        if rows[place]["ledger"] != rows[place - 1]["ledger"]:
            for axes in (left, right):
                axes.axhline(place - 0.5, color="#999999", linewidth=0.8)
    return figure
