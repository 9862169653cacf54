"""What a request costs, item by item of the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sim.cost import LEDGER_ITEMS
from sim.figures.families import Families, representatives
from sim.figures.style import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    Summary,
    legend_below,
    money_unit,
    new_figure,
    number,
    numbers,
    of_variant,
    shorten,
    stacked_bars,
    styled,
    under,
)

MOST_BARS = 20

ITEM_NAMES = {
    "api_input_usd": "API input",
    "api_cached_usd": "API cached input",
    "api_output_usd": "API output",
    "transfer_usd": "transfer",
    "energy_usd": "electricity",
    "hardware_usd": "hardware",
    "carbon_usd": "carbon",
    "sla_usd": "SLA penalty",
}
_COLOURS = (BLUE, SKY, PURPLE, ORANGE, GREEN, "#8C8C8C", YELLOW, VERMILION)
_SPARE_COLOURS = ("#444444", "#A05A2C", "#C0C0C0")


def item_name(item: str) -> str:
    """A ledger item in words; one that is new here says its own name."""
    return ITEM_NAMES.get(item, item.removesuffix("_usd").replace("_", " "))


def items_present(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ledger's items, then SLA penalties, that anybody paid."""
    return [item for item in (*LEDGER_ITEMS, "sla_usd") if any(number(row, item) > 0 for row in rows)]


@styled
def draw_ledger(summary: Summary, families: Families, variant: str) -> Figure:
    """Mean cost per request as stacked bars, one per policy; with more than 20 policies, one per family."""
    rows = of_variant(summary, variant)
    if len(rows) > MOST_BARS:
        rows = representatives(summary, families, variant, most=MOST_BARS)
    items = items_present(rows)
    unit = money_unit(numbers(rows, "cost_usd").tolist())
    figure = new_figure(f"What a request costs, by item of the ledger{under(variant, summary)}", 2.0 + 0.34 * len(rows))
    axes = figure.subplots()
    palette = dict(zip(ITEM_NAMES.values(), _COLOURS, strict=True))
    palette |= dict(zip([name for name in map(item_name, items) if name not in palette], _SPARE_COLOURS, strict=False))
    if items:
        amounts = {item_name(item): np.nan_to_num(numbers(rows, item)) * unit.factor for item in items}
        legend_below(figure, stacked_bars(axes, amounts, palette), most_columns=5)
    else:
        axes.annotate("nothing costs anything in this scenario", (0.5, 0.5), xycoords="axes fraction", ha="center")
    axes.set_yticks(range(len(rows)), [shorten(str(row["policy"]), 42) for row in rows])
    axes.set_xlabel(f"mean cost per request ({unit.label})")
    return figure
