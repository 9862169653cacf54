"""The figures of a HERA profile: what one switched subtask costs, how many subtasks either model takes, how alike the two are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sim.figures.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    SOFT,
    VERMILION,
    FloatArray,
    legend_below,
    legend_label,
    new_figure,
    styled,
)
from sim.profiling_metrics import (
    NEVER,
    ROLES,
    THIRDS,
    AtPosition,
    alike_above,
    by_position,
    distances,
    on_large_path,
    subtask_counts,
    switched,
)
from sim.records import Columns
from sim.statistics import Interval

_NAMES = {"small": "small model alone", "large": "large model alone"}
_COLOURS = {"small": SKY, "large": BLUE}
_THRESHOLDS = np.append(np.linspace(0.3, 0.99, 70), 0.99999)
"""The last one is passed by equal outputs only."""
_MOST_FAMILIES = 4
_FEW = 10
"""Positions with fewer subtasks than this are left out of figures; the tables have them."""


def profile_figures(requests: Columns, subtasks: Columns, threshold: float) -> dict[str, Callable[[], Figure]]:
    """How to draw each figure, by file name."""
    return {
        "switched": lambda: draw_switched(subtasks),
        "subtask-counts": lambda: draw_counts(requests),
        "s-l-distance": lambda: draw_distance(subtasks, threshold),
        "similarity-by-position": lambda: draw_similarity(subtasks, threshold),
        "alike-over-thresholds": lambda: draw_alike(requests, subtasks, threshold),
    }


@styled
def draw_switched(subtasks: Columns) -> Figure:
    """Points that All-LLM loses when one subtask moves to the small model, early, in the middle or late (their Fig. 4a)."""
    found = switched(subtasks)
    figure = new_figure("What one subtask on the small model costs the large model's accuracy", 3.9)
    axes = figure.subplots()
    _bars(axes, np.arange(3.0), [found[third] for third in THIRDS], 1.0, VERMILION, 0.5, "{:.1f}")
    axes.set_xticks(range(3), [f"{third}\n({found[third].n:,} subtasks)" for third in THIRDS])
    axes.set_xlabel("third of All-LLM's path that the subtask is in")
    axes.set_ylabel("accuracy lost (percentage points)")
    return figure


@styled
def draw_counts(requests: Columns) -> Figure:
    """How many subtasks the requests take that a model gets right alone (their Fig. 4b)."""
    found = subtask_counts(requests)
    figure = new_figure("Subtasks of a request that the model alone gets right", 4.2)
    axes, handles = figure.subplots(), []
    numbers = sorted({count for role in ROLES for count in found[role].shares})
    for place, role in enumerate(ROLES):
        counts = found[role]
        shown = [number for number in numbers if number in counts.shares]
        at = np.array(shown, float) + 0.4 * (place - 0.5)
        _bars(axes, at, [counts.shares[number] for number in shown], 100.0, _COLOURS[role], 0.38)
        handles.append(Patch(color=_COLOURS[role], label=f"{_NAMES[role]}: mean {_with_interval(counts.mean)}"))
    axes.set_xticks(numbers)
    axes.set_xlabel("subtasks of the request (number)")
    axes.set_ylabel("requests it gets right (%)")
    legend_below(figure, handles, most_columns=2)
    return figure


@styled
def draw_distance(subtasks: Columns, threshold: float) -> Figure:
    """S-L distances of the large model's subtasks: all together, then by position (their Fig. 5)."""
    figure = new_figure(
        f"S-L distance: extra small subtasks until one is like the large one's (cosine > {threshold:g})", 3.9
    )
    whole, means, never = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    found = distances(subtasks)
    labels = list(found)
    colours = [SOFT if label == NEVER else BLUE for label in labels]
    for place, label in enumerate(labels):
        _bars(whole, np.array([float(place)]), [found[label]], 100.0, colours[place], 0.7)
    whole.set_xticks(range(len(labels)), labels)
    whole.set_xlabel("S-L distance (subtasks)")
    whole.set_ylabel("large model's subtasks (%)")
    rows = _shown(by_position(subtasks, threshold))
    _dots(means, rows, [row.distance for row in rows], 1.0, BLUE, "D")
    means.set_ylabel("mean distance where matched (subtasks)")
    _dots(never, rows, [row.never for row in rows], 100.0, SOFT, "s")
    never.set_ylabel("never matched (%)")
    return figure


@styled
def draw_similarity(subtasks: Columns, threshold: float) -> Figure:
    """How alike the two models' next steps are along the large model's path (their Fig. 6)."""
    rows = _shown(by_position(subtasks, threshold))
    figure = new_figure("How alike the two models' outputs are, by position on the large model's path", 4.2)
    left, right = figure.subplots(1, 2)
    for row in rows:
        left.vlines(row.position, *row.quartiles, color=SKY, linewidth=9, alpha=0.55, zorder=2)
    _dots(left, rows, [row.similarity for row in rows], 1.0, BLUE, "o")
    left.axhline(threshold, color=SOFT, linestyle=":", linewidth=1.4, zorder=1)
    left.set_ylim(min(0.0, *(row.quartiles[0] for row in rows)) if rows else 0.0, 1.04)
    left.set_ylabel("cosine of the two outputs (1 = equal)")
    _dots(right, rows, [row.alike for row in rows], 100.0, GREEN, "D")
    right.set_ylim(0, 104)
    right.set_ylabel(f"alike, cosine > {threshold:g} (% of subtasks)")
    legend_below(
        figure,
        [
            Line2D(
                [],
                [],
                color=BLUE,
                marker="o",
                markeredgecolor="white",
                linestyle="none",
                label="mean and 95 % interval",
            ),
            Patch(color=SKY, alpha=0.55, label="middle half of the subtasks"),
            Line2D([], [], color=SOFT, linestyle=":", linewidth=1.4, label="threshold"),
            Line2D(
                [],
                [],
                color=GREEN,
                marker="D",
                markeredgecolor="white",
                linestyle="none",
                label="share alike and 95 % interval",
            ),
        ],
        most_columns=2,
    )
    return figure


@styled
def draw_alike(requests: Columns, subtasks: Columns, threshold: float) -> Figure:
    """Share of requests whose final outputs are alike, over the threshold that says so (their Fig. 7), and of next steps."""
    path = on_large_path(subtasks)
    curves: dict[str, tuple[FloatArray, Any, str, Any, float]] = {
        "final outputs of a request": (requests["similarity"], requests["task"], BLUE, "-", 2.4),
        "next subtasks on the large model's path": (path["similarity"], path["task"], VERMILION, "-", 2.4),
    }
    families = list(dict.fromkeys(requests["family"].tolist()))
    if 1 < len(families) <= _MOST_FAMILIES:
        looks = zip((GREEN, ORANGE, PURPLE, SKY), ("--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1))), strict=True)
        for family, (colour, line) in zip(families, looks, strict=False):
            own = requests["family"] == family
            label = f"final outputs, family {legend_label(family, 30).strip()}"
            curves[label] = (requests["similarity"][own], requests["task"][own], colour, line, 1.6)
    figure = new_figure("How many outputs count as alike, by the threshold", 4.8)
    axes = figure.subplots()
    handles = []
    for label, (similarity, tasks, colour, line, width) in curves.items():
        found = alike_above(similarity, tasks, _THRESHOLDS.tolist())
        middle, low, high = (100 * np.array([getattr(row, name) for row in found]) for name in ("estimate", "lo", "hi"))
        axes.fill_between(_THRESHOLDS, low, high, color=colour, alpha=0.18, linewidth=0)
        (curve,) = axes.plot(_THRESHOLDS, middle, color=colour, linestyle=line, linewidth=width, label=label)
        handles.append(curve)
    axes.axvline(threshold, color=SOFT, linestyle=":", linewidth=1.4, zorder=1)
    handles.append(
        Line2D([], [], color=SOFT, linestyle=":", linewidth=1.4, label=f"threshold of this profile ({threshold:g})")
    )
    axes.set_xlim(_THRESHOLDS[0], 1.0)
    axes.set_ylim(0, 102)
    axes.set_xlabel("threshold on the cosine (1 = equal)")
    axes.set_ylabel("more alike than it (%), with 95 % intervals")
    legend_below(figure, handles, most_columns=2)
    return figure


def _bars(
    axes: Axes, at: FloatArray, found: Sequence[Interval], factor: float, colour: str, width: float, words: str = ""
) -> None:
    """Bars with their intervals; `words` formats a number written above each."""
    heights, arms = _arms(found, factor)
    axes.bar(at, heights, width=width, color=colour, edgecolor="white", linewidth=0.5)
    axes.errorbar(at, heights, yerr=arms, fmt="none", ecolor=INK, elinewidth=1.1, capsize=3)
    for x, height, arm in zip(at, heights, arms[1], strict=True):
        if words and np.isfinite(height):
            axes.annotate(
                words.format(height),
                (x, height + arm),
                (0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=9,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            )
    axes.grid(visible=False, axis="x")
    if words:
        axes.margins(y=0.12)


def _dots(
    axes: Axes, rows: Sequence[AtPosition], found: Sequence[Interval], factor: float, colour: str, marker: str
) -> None:
    """One dot with its interval for each position."""
    heights, arms = _arms(found, factor)
    at = np.array([row.position for row in rows], float)
    axes.errorbar(at, heights, yerr=arms, fmt="none", ecolor=colour, elinewidth=1.4, capsize=3, zorder=3)
    axes.plot(at, heights, color=colour, linestyle="none", marker=marker, markersize=5, clip_on=False, zorder=4)
    axes.set_xticks([row.position for row in rows])
    if rows:
        axes.set_xlim(at[0] - 0.5, at[-1] + 0.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("position (0 = first)")


def _shown(rows: Sequence[AtPosition]) -> list[AtPosition]:
    """Those with enough subtasks to say something, or all where none has."""
    return [row for row in rows if row.subtasks >= _FEW] or list(rows)


def _arms(found: Sequence[Interval], factor: float) -> tuple[FloatArray, FloatArray]:
    """Heights, and the lengths of the intervals' arms, shape (2, rows); 0 where a bound is unknown."""
    heights = factor * np.array([row.estimate for row in found], float)
    arms = np.array([[row.estimate - row.lo for row in found], [row.hi - row.estimate for row in found]], float)
    return heights, np.maximum(np.nan_to_num(factor * arms), 0.0)


def _with_interval(found: Interval) -> str:
    return f"{found.estimate:.2f} ({found.lo:.2f} to {found.hi:.2f})"
