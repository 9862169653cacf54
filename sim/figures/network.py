"""The same policies under every variant of the scenario: another network, load, fleet or price list."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sim.figures.families import Families, representatives
from sim.figures.style import (
    GRID,
    Summary,
    Unit,
    interval_arms,
    is_wide,
    legend_below,
    legend_label,
    log_x,
    money_unit,
    new_figure,
    numbers,
    shorten,
    styled,
    variants_of,
)

MOST_VARIANTS = 12


class _Metric(NamedTuple):
    key: str
    title: str
    unit: Unit


@styled
def draw_variants(summary: Summary, families: Families) -> Figure:
    """Accuracy, cost and latency of at most six policies under each variant (the first twelve), with 95 % intervals."""
    variants = variants_of(summary)
    shown = variants[:MOST_VARIANTS]
    policies = [(str(r["policy"]), str(r["family"])) for r in representatives(summary, families, variants[0])]
    rows = {(row["variant"], row["policy"]): row for row in summary}
    money = money_unit(numbers(summary, "cost_usd").tolist())
    metrics = (
        _Metric("accuracy", "accuracy (%)", Unit(100, "%")),
        _Metric("cost_usd", f"mean cost per request ({money.symbol})", money),
        _Metric("latency_p50_s", "median latency (s)", Unit(1, "s")),
        _Metric("latency_p95_s", "95th percentile of latency (s)", Unit(1, "s")),
    )
    title = "The same policies under every variant of the scenario"
    if len(variants) > len(shown):
        title += f" (first {len(shown)} of {len(variants)})"
    lane_in = max(0.13 * len(policies) + 0.1, 0.5)
    figure = new_figure(title, 2 * (0.7 + lane_in * len(shown)) + 1.1)
    grid = figure.subplots(2, 2, sharey=True)
    for axes, metric in zip(grid.flat, metrics, strict=True):
        values = (
            np.concatenate([numbers(summary, f"{metric.key}{end}") for end in ("", "_lo", "_hi")]) * metric.unit.factor
        )
        for place, (policy, family) in enumerate(policies):
            cells = [rows.get((variant, policy), {}) for variant in shown]
            heights = np.arange(len(shown)) + 0.76 * ((place + 0.5) / len(policies) - 0.5)
            style = families.style[family]
            x = numbers(cells, metric.key) * metric.unit.factor
            arms = interval_arms(cells, metric.key) * metric.unit.factor
            axes.errorbar(x, heights, xerr=arms, fmt="none", ecolor=style.colour, elinewidth=1.4)
            axes.plot(
                x,
                heights,
                color=style.colour,
                linestyle="none",
                label=legend_label(policy, 60),
                **style.marker_look(6.5),
            )
        _dress(axes, metric, shown, wide=metric.key != "accuracy" and is_wide(values, 30))
    legend_below(figure, [line for line in grid.flat[0].get_lines() if not str(line.get_label()).startswith("_")])
    return figure


def _dress(axes: Axes, metric: _Metric, variants: list[str], *, wide: bool) -> None:
    if wide:
        log_x(axes)
    elif metric.key != "accuracy":
        axes.set_xlim(left=0)
    axes.set_xlabel(metric.title + (", logarithmic" if wide else ""))
    axes.set_yticks(range(len(variants)), [textwrap.fill(shorten(variant, 66), 22) for variant in variants])
    axes.set_ylim(len(variants) - 0.45, -0.55)
    axes.grid(visible=False, axis="y")
    for edge in range(1, len(variants)):
        axes.axhline(edge - 0.5, color=GRID, linewidth=0.8)
