"""A policy's reward in its own eyes and by judges that saw none of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from sim.figures.style import BLUE, ORANGE, VERMILION, legend_below, new_figure, styled


@styled
def draw_judged(rows: Sequence[Mapping[str, Any]], own: Mapping[str, float]) -> Figure:
    """One line per policy: own judge, direct method and doubly robust value with its interval; pale where the log cannot tell.

    `rows` are those of judgements (`policy`, `direct`, `doubly_robust` with bounds, `warning`), `own` the reward by the table that
    trained the policy.
    """
    figure = new_figure("Reward of TMO's policies on M4A1, by who judges", 1.2 + 0.27 * len(rows))
    axes = figure.add_subplot()
    place = np.arange(len(rows))[::-1]
    robust = np.array([[row["doubly_robust"], row["doubly_robust_lo"], row["doubly_robust_hi"]] for row in rows], float)
    handles: list[Artist] = [
        axes.scatter([own[row["policy"]] for row in rows], place, marker="D", color=ORANGE, label="the table it was trained on"),
        axes.scatter([row["direct"] for row in rows], place, marker="|", color=BLUE, s=80, label="direct, held out"),
    ]  # fmt: skip
    for y, (value, low, high), row in zip(place, robust, rows, strict=True):
        axes.plot([low, high], [y, y], color=VERMILION, alpha=0.35 if row["warning"] else 1.0, linewidth=1.5)
        axes.plot(value, y, "o", color=VERMILION, alpha=0.35 if row["warning"] else 1.0, markersize=5)
    handles += axes.plot([], [], "o-", color=VERMILION, label="doubly robust, 95 % (pale: the log cannot tell)")
    axes.axvline(
        next(row["doubly_robust"] for row in rows if row["policy"] == "local"),
        color="grey",
        linestyle=":",
        linewidth=1.0,
    )
    axes.set_yticks(place, [row["policy"] for row in rows])
    axes.set_xlabel("reward of a turn (dotted: Local, doubly robust)")
    axes.grid(axis="y", visible=False)
    legend_below(figure, handles)
    return figure
