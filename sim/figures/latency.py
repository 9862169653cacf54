"""How long requests take: the distribution of latencies, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sim.figures.families import Families, representatives
from sim.figures.phases import PHASES, REST, REST_COLOUR
from sim.figures.style import (
    SOFT,
    FloatArray,
    Summary,
    is_wide,
    legend_below,
    legend_label,
    log_x,
    new_figure,
    shorten,
    stacked_bars,
    styled,
    under,
)
from sim.run_tables import RunTables

MOST_BARS = 20
_MOST_CURVES = 8
_MOST_STEPS = 800


@styled
def draw_latency_distribution(tables: RunTables, summary: Summary, families: Families, variant: str) -> Figure:
    """Share of requests answered within a time, one curve for each of at most eight policies."""
    figure = new_figure(f"Latency: share of requests answered within a given time{under(variant, summary)}", 4.6)
    axes = figure.subplots()
    seen: list[FloatArray] = []
    for row in representatives(summary, families, variant, most=_MOST_CURVES):
        seconds, share = answered_within(tables.of_policy(variant, str(row["policy"])))
        seen.append(seconds)
        style = families.style[str(row["family"])]
        axes.plot(
            seconds, share * 100, color=style.colour, linestyle=style.line, drawstyle="steps-post", linewidth=1.8,
            markevery=_marks(share), label=legend_label(str(row["policy"]), 60), **style.marker_look(7),
        )  # fmt: skip
    values = np.concatenate([np.zeros(0), *seen])
    for percent in (50, 95):
        axes.axhline(percent, color=SOFT, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(
            f"p{percent}", (1.0, percent), (3, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center", fontsize=8, color=SOFT,
        )  # fmt: skip
    if is_wide(values, 30):
        log_x(axes)
    elif values.size:
        axes.set_xlim(0, float(values.max()) * 1.03)
    axes.set_ylim(0, 102)
    axes.set_xlabel("latency of a request (s)" + (", logarithmic" if axes.get_xscale() == "log" else ""))
    axes.set_ylabel("requests answered within it (%)")
    legend_below(figure, axes.get_legend_handles_labels()[0], most_columns=2)
    return figure


def answered_within(requests: Mapping[str, Any]) -> tuple[FloatArray, FloatArray]:
    """Latencies in rising order, s, and the share of all requests completed within each.

    A request that was given up is never answered, so the curve may end below 1. Long tables are thinned to 800 steps.
    """
    latency = np.sort(np.asarray(requests["latency_s"], dtype=np.float64)[requests["status"] == "completed"])
    share = np.arange(1, latency.size + 1) / max(1, len(requests["latency_s"]))
    if latency.size > _MOST_STEPS:
        kept = np.unique(np.linspace(0, latency.size - 1, _MOST_STEPS).round().astype(np.intp))
        latency, share = latency[kept], share[kept]
    return latency, share


def _marks(share: FloatArray) -> list[int]:
    """Where a curve carries its marker: at its median and at 95 %, as far as it gets there."""
    return [int(np.searchsorted(share, level)) for level in (0.5, 0.95) if share.size and share[-1] >= level]


@styled
def draw_latency_breakdown(tables: RunTables, summary: Summary, families: Families, variant: str) -> Figure:
    """Mean seconds per request by phase, summed over all attempts, one bar for each of at most twenty families."""
    rows = representatives(summary, families, variant, most=MOST_BARS)
    policies = [str(row["policy"]) for row in rows]
    means = [mean_phases(tables, variant, policy) for policy in policies]
    names = [name for name in means[0] if any(mean[name] > 0 for mean in means)] if means else []
    figure = new_figure(
        f"Where the time of a request goes: mean seconds by phase{under(variant, summary)}", 1.9 + 0.42 * len(rows)
    )
    axes = figure.subplots()
    colours = {phase.name: phase.colour for phase in PHASES} | {REST: REST_COLOUR}
    if names:
        lengths = {name: np.array([mean[name] for mean in means]) for name in names}
        legend_below(figure, stacked_bars(axes, lengths, colours), most_columns=5)
    axes.set_yticks(range(len(policies)), [shorten(policy, 42) for policy in policies])
    beside = any(
        sum(mean.values()) > 1.001 * float(row["latency_mean_s"]) for mean, row in zip(means, rows, strict=True)
    )
    added = ", parallel branches added up" if beside else ""
    axes.set_xlabel(f"mean time per request (s), failed attempts and requests given up included{added}")
    return figure


def mean_phases(tables: RunTables, variant: str, policy: str) -> dict[str, float]:
    """Mean seconds of each phase per request of a policy, all seeds; they add up to the mean latency, to more where branches run in parallel."""
    totals = np.zeros(len(PHASES))
    requests, latency_s = 0, 0.0
    for seed in tables.seeds(variant, policy):
        cell, subtasks = tables.of_cell(variant, policy, seed), tables.subtasks(variant, policy, seed)
        counted = np.isin(subtasks["request"], cell["request"])  # warm-up requests are no results
        totals += [float(np.sum(subtasks[phase.column][counted])) for phase in PHASES]
        requests += len(cell["latency_s"])
        latency_s += float(np.sum(cell["latency_s"]))
    rest = latency_s - float(totals.sum())
    parts = dict(zip([phase.name for phase in PHASES], totals.tolist(), strict=True))
    parts[REST] = rest if rest > 1e-9 * latency_s else 0.0
    return {name: value / max(1, requests) for name, value in parts.items()}
