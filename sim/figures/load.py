"""How busy the tiers are over time: the share of slots in use and the requests waiting, exactly, from the attempts."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from sim.figures.phases import DOWNLINK, PREFILL, QUEUE, boundaries_s
from sim.figures.style import (
    BLUE,
    ORANGE,
    VERMILION,
    FloatArray,
    Unit,
    legend_below,
    new_figure,
    shorten,
    styled,
    time_unit,
)
from sim.records import Columns
from sim.run_tables import RunTables

MOST_BINS = 150


class Binned(NamedTuple):
    """A count over time in bins: its time average and its maximum in each; `edges_s` has one more entry."""

    edges_s: FloatArray
    mean: FloatArray
    highest: FloatArray


def count_over_time(start_s: FloatArray, end_s: FloatArray, edges_s: FloatArray) -> Binned:
    """How many of the half-open intervals [start, end) cover each moment, in bins between `edges_s`.

    The count is a step function; the averages are its exact integral over each bin, not samples of it. Every interval must
    lie between the first and the last edge.
    """
    length = end_s > start_s  # what takes no time is never there
    starts, ends = np.sort(start_s[length]), np.sort(end_s[length])
    area = _area_after(starts, edges_s) - _area_after(ends, edges_s)
    mean = np.diff(area) / np.diff(edges_s)
    moments = np.unique(np.concatenate((starts, ends, edges_s[:-1])))
    count = np.searchsorted(starts, moments, side="right") - np.searchsorted(ends, moments, side="right")
    moments, count = moments[moments < edges_s[-1]], count[moments < edges_s[-1]]
    highest = np.maximum.reduceat(count, np.searchsorted(moments, edges_s[:-1])).astype(np.float64)
    return Binned(edges_s, np.maximum(mean, 0.0), highest)


def _area_after(moments: FloatArray, until: FloatArray) -> FloatArray:
    """The sum over sorted `moments` m of max(0, u - m), for each u of `until`."""
    passed = np.searchsorted(moments, until, side="right")
    sums = np.concatenate(([0.0], np.cumsum(moments)))
    area: FloatArray = passed * until - sums[passed]
    return area


def load_of_tier(subtasks: Columns, tier: int, edges_s: FloatArray) -> tuple[Binned, Binned]:
    """Attempts in service and attempts waiting at a tier over time."""
    marks = boundaries_s(subtasks)[np.asarray(subtasks["tier"]) == tier]
    serving = count_over_time(marks[:, PREFILL], marks[:, DOWNLINK], edges_s)
    return serving, count_over_time(marks[:, QUEUE], marks[:, PREFILL], edges_s)


def time_edges(subtasks: Columns) -> FloatArray:
    """Edges of at most 150 equal bins from time 0 to the end of the last attempt, s."""
    end_s = float(np.max(subtasks["end_s"], initial=0.0)) or 1.0
    bins = int(min(MOST_BINS, max(20, 4 * len(subtasks["end_s"]))))
    edges = np.linspace(0.0, end_s, bins + 1)
    edges[-1] = np.nextafter(end_s, math.inf)  # summed phases may overshoot by a rounding error
    return edges


@styled
def draw_load(tables: RunTables, variant: str, policy: str, seed: int) -> Figure:
    """Utilisation and queue length of every tier over the run of one cell."""
    subtasks = tables.subtasks(variant, policy, seed)
    edges = time_edges(subtasks)
    unit = time_unit([float(edges[-1])])
    count = len(tables.tiers)
    figure = new_figure(
        f"Load of each tier over time: {tables.title_of_cell(variant, policy, seed)}", 1.3 + 1.75 * count
    )
    grid = figure.subplots(count, 2, sharex=True, squeeze=False)
    for tier, (left, right) in enumerate(grid):
        serving, waiting = load_of_tier(subtasks, tier, edges)
        name = f"{shorten(tables.tiers[tier], 20)} ({tables.roles[tier].upper()})"
        _utilisation(left, serving, tables.slots[tier], name, unit)
        _steps(right, waiting, 1.0, ORANGE, unit)
        right.set_title(f"{name}: waiting", loc="left")
        right.set_ylabel("requests")
        _whole_numbers(right, waiting)
    for axes in grid[-1]:
        axes.set_xlabel(f"virtual time ({unit.symbol})")
    handles = [
        Patch(color=BLUE, alpha=0.75, label="in service, mean of a bin"),
        Patch(color=ORANGE, alpha=0.75, label="waiting, mean of a bin"),
    ]
    handles.append(Patch(facecolor="none", edgecolor=VERMILION, label="highest in a bin"))
    legend_below(figure, handles)
    return figure


def _utilisation(axes: Axes, serving: Binned, slots: float, name: str, unit: Unit) -> None:
    """The share of slots busy; where slots are without limit, or unknown, the number of requests in service."""
    limited = math.isfinite(slots) and slots > 0
    _steps(axes, serving, 100 / slots if limited else 1.0, BLUE, unit)
    if limited:
        axes.set_title(f"{name}: share of {slots:g} slots busy", loc="left")
        axes.set_ylabel("busy (%)")
        axes.set_ylim(0, max(105.0, 100 / slots * float(serving.highest.max()) * 1.05))
    else:
        axes.set_title(f"{name}: in service (no limit)", loc="left")
        axes.set_ylabel("requests")
        _whole_numbers(axes, serving)


def _whole_numbers(axes: Axes, binned: Binned) -> None:
    axes.set_ylim(0, max(1.0, float(binned.highest.max()) * 1.08))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))


def _steps(axes: Axes, binned: Binned, factor: float, colour: str, unit: Unit) -> None:
    edges = binned.edges_s * unit.factor
    axes.stairs(binned.mean * factor, edges, fill=True, color=colour, alpha=0.75)
    axes.stairs(binned.highest * factor, edges, color=VERMILION, linewidth=0.7)
    axes.set_xlim(float(edges[0]), float(edges[-1]))
