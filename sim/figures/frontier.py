"""What accuracy costs: every policy as a point, every family as a curve, in dollars and in use of the small model."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sim.figures.families import Families, swept
from sim.figures.style import (
    INK,
    SOFT,
    FloatArray,
    Summary,
    Unit,
    darker,
    interval_arms,
    lay_out,
    legend_below,
    legend_label,
    money_unit,
    new_figure,
    numbers,
    of_variant,
    shorten,
    styled,
    variants_of,
)
from sim.frontier import non_decreasing_hull

MOST_PANELS = 6
_MOST_LABELS = 30
"""Swept points beyond which none carries its value."""
_CROWDED = 6
"""Points of other things beneath a label from which on it is left out."""
_HULL = "best mixes of deployable policies (hull)"
_COIN = "a coin per request: All-SLM or All-LLM"
_PERCENT = Unit(100.0, "%")
_LABEL_PLACES = ((9, -7), (9, 8), (-9, 8), (-9, -7), (9, -20), (9, 20), (-9, 20), (-9, -20))
"""Offsets at which a direct label may stand, in points, best first."""

Rows = Sequence[Mapping[str, Any]]


class _Plane(NamedTuple):
    """The plane of a frontier: its x column and unit, and whether more of x is better, as of SLM usage."""

    key: str
    unit: Unit
    axis: str
    short_axis: str
    more_is_better: bool

    def x(self, rows: Rows) -> FloatArray:
        return numbers(rows, self.key) * self.unit.factor


@styled
def draw_cost_frontier(summary: Summary, families: Families) -> Figure:
    """Accuracy against mean cost per request, one panel per variant (the first six)."""
    unit = money_unit(numbers(summary, "cost_usd").tolist())
    plane = _Plane(
        "cost_usd",
        unit,
        f"mean cost per request ({unit.label})",
        f"cost per request ({unit.symbol})",
        more_is_better=False,
    )
    return _draw(
        "Accuracy against cost per request: one point per policy, one curve per family", plane, summary, families
    )


@styled
def draw_usage_frontier(summary: Summary, families: Families) -> Figure:
    """Accuracy against the share of subtasks on the small model, one panel per variant (the first six)."""
    plane = _Plane(
        "slm_usage", _PERCENT, "SLM usage (% of subtasks on the small model)", "SLM usage (%)", more_is_better=True
    )
    return _draw("Accuracy against SLM usage: one point per policy, one curve per family", plane, summary, families)


def hull_points(plane_x: FloatArray, accuracy: FloatArray, *, more_is_better: bool) -> tuple[FloatArray, FloatArray]:
    """Vertices of the non-decreasing hull by rising cost; where more of x is better, its lack is the cost."""
    vertices = non_decreasing_hull(plane_x.max() - plane_x if more_is_better else plane_x, accuracy)
    return plane_x[vertices], accuracy[vertices]


def _draw(title: str, plane: _Plane, summary: Summary, families: Families) -> Figure:
    variants = variants_of(summary)
    shown = variants[:MOST_PANELS]
    if len(variants) > len(shown):
        title += f" (first {len(shown)} of {len(variants)} variants)"
    columns = min(len(shown), 2 if len(shown) in (2, 4) else 3)
    lines = -(-len(shown) // columns)
    legend_in = 0.4 + 0.2 * -(-(len(families.names) + 2) // 3)
    figure = new_figure(title, (5.0 if lines == 1 and columns == 1 else 3.1 * lines) + 0.5 + legend_in)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    panels: list[Axes] = list(grid.flat)
    for axes, variant in zip(panels, shown, strict=False):
        _panel(axes, of_variant(summary, variant), families, plane)
        if len(shown) > 1:
            axes.set_title(textwrap.fill(shorten(variant, 180 // columns), 96 // columns), loc="left")
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(shown) - columns) : len(shown)]:  # the lowest visible panel of each column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(plane.axis if columns < 3 else plane.short_axis)
    for axes in panels[: len(shown) : columns]:
        axes.set_ylabel("accuracy (%)")
    _limits(panels[0], plane)
    handles: dict[str, Line2D] = {}
    for axes in panels[: len(shown)]:
        handles |= {
            str(line.get_label()): line for line in axes.get_lines() if not str(line.get_label()).startswith("_")
        }
    legend_below(figure, list(handles.values()))
    lay_out(figure)  # positions of points are known only after layout
    for axes, variant in zip(panels, shown, strict=False):
        _label_models(axes, of_variant(summary, variant), families, plane)
        if len(shown) == 1:
            _label_points(axes, of_variant(summary, variant), families, plane)
    return figure


def _panel(axes: Axes, rows: Rows, families: Families, plane: _Plane) -> None:
    measured = [r for r, ok in zip(rows, np.isfinite(plane.x(rows) + numbers(rows, "accuracy")), strict=True) if ok]
    if not measured:
        axes.annotate("no policy was measured", (0.5, 0.5), xycoords="axes fraction", ha="center")
        return
    deployable = families.deployable(measured)
    if deployable:
        x, y = hull_points(plane.x(deployable), numbers(deployable, "accuracy"), more_is_better=plane.more_is_better)
        axes.plot(x, y * 100, color="#F6EE9C", linewidth=7, label=_HULL, zorder=1, solid_capstyle="round")
    _coin(axes, measured, families, plane)
    for name in families.names:
        _family(axes, swept([row for row in measured if row["family"] == name]), name, families, plane)


def _coin(axes: Axes, rows: Rows, families: Families, plane: _Plane) -> None:
    """The straight line between the two models: tossing one coin per request reaches every point of it."""
    ends = [row for policy in ("all-slm", "all-llm") for row in rows if row["family"] in families.behind(policy)[:1]]
    if len(ends) == 2:
        axes.plot(
            plane.x(ends),
            numbers(ends, "accuracy") * 100,
            color=SOFT,
            linestyle=":",
            linewidth=1.4,
            label=_COIN,
            zorder=2,
        )


def _family(axes: Axes, rows: Rows, name: str, families: Families, plane: _Plane) -> None:
    if not rows:
        return
    style, x, y = families.style[name], plane.x(rows), numbers(rows, "accuracy") * 100
    alone = len(rows) == 1
    axes.errorbar(
        x, y, xerr=interval_arms(rows, plane.key) * plane.unit.factor, yerr=interval_arms(rows, "accuracy") * 100, fmt="none",
        ecolor=style.colour, elinewidth=1.0, alpha=0.8 if alone else 0.4, zorder=3,
    )  # fmt: skip
    knobs = numbers(rows, "knob")
    connected = np.isfinite(knobs).all() and len(np.unique(knobs)) == len(knobs)  # else there is no order to follow
    axes.plot(
        x, y, color=style.colour, linestyle=style.line if connected and not alone else "none", linewidth=1.7, zorder=4,
        label=legend_label(name, 44) + (" (not deployable)" if families.is_oracle(name) else ""), **style.marker_look(9 if alone else 6.5),
    )  # fmt: skip


def _limits(axes: Axes, plane: _Plane) -> None:
    """Room for labels; shares and accuracies a little beyond 0 and 100 % at most. Axes are shared: one call for all panels."""
    axes.margins(x=0.09, y=0.09)
    axes.autoscale_view()
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -4.0), min(high, 104.0))
    if plane.more_is_better:
        axes.set_xlim(-8.0, 108.0)
    else:
        axes.set_xlim(min(max(axes.get_xlim()[0], -0.09 * axes.get_xlim()[1]), 0.0))


def _label_models(axes: Axes, rows: Rows, families: Families, plane: _Plane) -> None:
    """Write All-SLM and All-LLM at their points, where the fewest lines and points lie beneath the words."""
    obstacles = _ink(axes)
    for policy, text in (("all-slm", "All-SLM"), ("all-llm", "All-LLM")):
        for row in (r for r in rows if r["family"] in families.behind(policy)[:1]):
            x, y = float(plane.x([row])[0]), float(numbers([row], "accuracy")[0]) * 100
            if np.isfinite(x + y):
                dx, dy = _free_place(axes, (x, y), text, obstacles)
                axes.annotate(
                    text, (x, y), (dx, dy), textcoords="offset points", ha="left" if dx > 0 else "right", va="center",
                    fontsize=9, fontweight="bold", color=INK, zorder=6,
                )  # fmt: skip


def _label_points(axes: Axes, rows: Rows, families: Families, plane: _Plane) -> None:
    """Write what is swept at each point of a family, where there are few points and there is room beside them."""
    members = {name: [row for row in rows if row["family"] == name] for name in families.names}
    swept_rows = [row for own in members.values() if len(own) > 1 for row in swept(own)]
    if len(swept_rows) > _MOST_LABELS:
        return
    obstacles = _ink(axes)
    for row in swept_rows:
        x, y = float(plane.x([row])[0]), float(numbers([row], "accuracy")[0]) * 100
        text = shorten(swept_text(row), 24)
        if not (np.isfinite(x + y) and text):
            continue
        dx, dy = _free_place(axes, (x, y), text, obstacles, size=7.5)
        box = _box(axes, (x, y), (dx, dy), text, size=7.5)
        if _covered(box, obstacles) > _CROWDED:
            continue
        axes.annotate(
            text, (x, y), (dx, dy), textcoords="offset points", ha="left" if dx > 0 else "right", va="center", fontsize=7.5,
            color=darker(families.style[str(row["family"])].colour), zorder=6,
        )  # fmt: skip
        obstacles = np.concatenate((obstacles, _filled(box)))


def swept_text(row: Mapping[str, Any]) -> str:
    """What tells a policy from the others of its family: the values in its name."""
    inside = str(row["policy"]).removeprefix(str(row["family"])).strip("()")
    return ", ".join(part.rpartition("=")[2] for part in inside.split(", "))


class _Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    bottom: float
    width: float
    height: float


def _box(axes: Axes, point: tuple[float, float], place: tuple[int, int], text: str, size: float) -> _Box:
    """Where a text of this size (points) lies that is written at an offset (points) from a point of the panel."""
    scale = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]  # the axes were made by a figure
    width, height = 0.69 * size * len(text) * scale, 1.22 * size * scale
    x, y = axes.transData.transform(point)
    return _Box(x + place[0] * scale - (width if place[0] < 0 else 0), y + place[1] * scale - height / 2, width, height)


def _covered(box: _Box, obstacles: FloatArray) -> int:
    """How many points of what is drawn lie beneath a box."""
    inside = (np.abs(obstacles[:, 0] - box.left - box.width / 2) < box.width / 2) & (
        np.abs(obstacles[:, 1] - box.bottom - box.height / 2) < box.height / 2
    )
    return int(inside.sum())


def _filled(box: _Box) -> FloatArray:
    """Points all over a box, shape (points, 2)."""
    across, up = np.meshgrid(np.linspace(0, box.width, 12), np.linspace(0, box.height, 6))
    return np.stack([box.left + across.ravel(), box.bottom + up.ravel()], axis=1)


def _ink(axes: Axes) -> FloatArray:
    """Points along everything drawn in a panel, in pixels, shape (points, 2)."""
    paths = [line.get_xydata() for line in axes.get_lines()]
    paths += [segment for bars in axes.collections for segment in getattr(bars, "get_segments", list)()]
    dense = [np.zeros((0, 2))]
    for path in paths:
        pixels = axes.transData.transform(np.asarray(path, dtype=np.float64))
        position = np.linspace(0, len(pixels) - 1, 1 + 40 * (len(pixels) - 1))
        dense.append(np.stack([np.interp(position, range(len(pixels)), pixels[:, i]) for i in (0, 1)], axis=1))
    return np.concatenate(dense)


def _free_place(
    axes: Axes, point: tuple[float, float], text: str, obstacles: FloatArray, size: float = 9.0
) -> tuple[int, int]:
    frame = axes.get_window_extent()

    def hidden(place: tuple[int, int]) -> int:
        box = _box(axes, point, place, text, size)
        outside = (
            box.left < frame.x0
            or box.left + box.width > frame.x1
            or box.bottom < frame.y0
            or box.bottom + box.height > frame.y1
        )
        return _covered(box, obstacles) + 1000 * int(outside)

    return min(_LABEL_PLACES, key=hidden)
