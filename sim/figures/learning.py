"""What learned policies reach: against the optimum by budget, and from one network to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sim.figures.style import BLUE, ORANGE, VERMILION, legend_below, new_figure, styled, three_digits

_KNOWN = {
    "optimum": ("black", "-"),
    "optimum, no foresight": ("black", ":"),
    "greedy": (ORANGE, "--"),
    "fixed": ("grey", "--"),
}

_KEPT = {"chance": (VERMILION, "-"), "zero": (BLUE, "--"), "none": (ORANGE, ":")}


@styled
def draw_regret(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean reward of a request by the mean budget it keeps, a line per policy; the bars are 95 % intervals.

    `rows` have `policy`, `budget`, `reward` and `interval`.
    """
    figure = new_figure("Reward of a dialogue by the mean budget it keeps", 4.0)
    axes = figure.add_subplot()
    handles: list[Any] = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        colour, line = _KNOWN.get(policy, (VERMILION, "-"))
        handles.append(axes.errorbar(
            [1000 * row["budget"] for row in own], [row["reward"] for row in own], [row["interval"] for row in own], color=colour,
            linestyle=line, marker="o", markersize=4, capsize=2, label=policy,
        ))  # fmt: skip
    axes.set_xlabel("mean budget, m$ a dialogue")
    axes.set_ylabel("sum of a dialogue's scores")
    legend_below(figure, handles)
    return figure


@styled
def draw_budgets(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Share of requests over their budget, and mean reward, by budget: a line per policy and way to keep it.

    `rows` have `policy`, `keep`, `budget`, `over`, `reward` and `interval`.
    """
    figure = new_figure("Budgets of each dialogue: how often they are broken, and what is earned", 4.0)
    left, right = figure.subplots(1, 2)
    handles: list[Any] = []
    for name in dict.fromkeys((row["policy"], row["keep"]) for row in rows):
        own = sorted(
            (row for row in rows if (row["policy"], row["keep"]) == name), key=lambda row: float(row["budget"])
        )
        colour, line = ("black", "-") if name[0] == "optimum" else _KEPT.get(name[1], ("grey", "-"))
        marker = {"a2c": "s", "dqn": "^"}.get(name[0], "o")
        look = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4, "label": ", ".join(name)}
        budgets = [1000 * row["budget"] for row in own]
        handles += left.plot(budgets, [100 * row["over"] for row in own], **look)
        right.errorbar(budgets, [row["reward"] for row in own], [row["interval"] for row in own], capsize=2, **look)
    for axes, label in ((left, "dialogues over budget, %"), (right, "sum of a dialogue's scores")):
        axes.set_xlabel("budget, m$ a dialogue")
        axes.set_ylabel(label)
    left.set_ylim(bottom=0)
    legend_below(figure, handles)
    return figure


@styled
def draw_matrix(rows: Sequence[Mapping[str, Any]], most: float = 0.05) -> Figure:
    """Reward by where a policy was trained (down) and tested (across), with the share of requests over budget below each number.

    `rows` have `trained`, `tested`, `reward` and `over`. Where more than a share `most` is over, the reward is not coloured but grey.
    """
    trained, tested = (list(dict.fromkeys(row[name] for row in rows)) for name in ("trained", "tested"))
    reward = np.full((len(trained), len(tested)), np.nan)
    for row in rows:
        if row["over"] <= most:
            reward[trained.index(row["trained"]), tested.index(row["tested"])] = row["reward"]
    figure = new_figure(
        "Reward where a policy was trained and where not, and dialogues over budget", 1.5 + 0.55 * len(trained)
    )
    axes = figure.add_subplot()
    axes.set_facecolor("lightgrey")
    middle = float(np.nanmean(reward)) if np.isfinite(reward).any() else 0.0
    for row in rows:
        place = trained.index(row["trained"]), tested.index(row["tested"])
        colour = "white" if reward[place] > middle else "black"
        text = f"{three_digits(row['reward'])}\n{row['over']:.1%} over"
        axes.text(place[1], place[0], text, ha="center", va="center", fontsize=8, color=colour)
    axes.imshow(reward, cmap="Blues", vmin=middle - 1.0, vmax=middle + 0.5, aspect="auto")
    axes.set_xticks(range(len(tested)), [name.removeprefix("link=") for name in tested])
    axes.set_yticks(range(len(trained)), [name.removeprefix("link=") for name in trained])
    axes.set_xlabel(f"tested on (grey: more than {most:.0%} over)")
    axes.set_ylabel("trained on")
    axes.grid(visible=False)
    return figure
