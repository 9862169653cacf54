"""What learned policies reach: against the optimum by budget, from one network to another, and on larger dialogues."""

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
    legend_below,
    new_figure,
    styled,
    three_digits,
)

_KNOWN = {
    "optimum": ("black", "-"),
    "optimum, no foresight": ("black", ":"),
    "greedy": (ORANGE, "--"),
    "fixed": ("grey", "--"),
}

_LEARNER = {"optimum": ("black", "-"), "a2c": (GREEN, "-"), "dqn": (PURPLE, "-")}
_POLICY = {"ppo": "PPO", "a2c": "A2C", "dqn": "DQN"}
_SCALED = {"table": (SKY, "s"), "greedy": (ORANGE, "o"), "PPO": (VERMILION, "D")}
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

    `rows` have `policy`, `keep`, `budget`, `over`, `reward` and `interval`, and the training's `seed` where there is one.
    """
    figure = new_figure("Budgets of each dialogue: how often they are broken, and what is earned", 4.0)
    left, right = figure.subplots(1, 2)
    handles: list[Any] = []
    first = next((row["seed"] for row in rows if "seed" in row), None)
    for name in dict.fromkeys((row["policy"], row["keep"], row.get("seed", first)) for row in rows):
        policy, keep, seed = name
        own = sorted(
            (row for row in rows if (row["policy"], row["keep"], row.get("seed", first)) == name),
            key=lambda row: float(row["budget"]),
        )
        colour, line = _LEARNER.get(policy) or _KEPT.get(keep, ("grey", "-"))
        marker = {"a2c": "s", "dqn": "^"}.get(policy, "o")
        label = _with_seed(f"{_POLICY.get(policy, policy)}, {keep}", seed, first)
        look = {
            "color": colour,
            "linestyle": line if seed == first else "-.",
            "marker": marker,
            "markersize": 4,
            "label": label,
        }
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

    `rows` have `trained`, `tested`, `reward` and `over`; `seed` where there are several trainings, and `unseen` where no policy was trained
    on what is tested. Where more than a share `most` is over, the reward is not coloured but grey.
    """
    first = rows[0].get("seed")
    names = [_with_seed(row["trained"], row.get("seed"), first) for row in rows]
    trained, tested = list(dict.fromkeys(names)), list(dict.fromkeys(row["tested"] for row in rows))
    known = len({row["tested"] for row in rows if not row.get("unseen")})
    reward = np.full((len(trained), len(tested)), np.nan)
    for name, row in zip(names, rows, strict=True):
        if row["over"] <= most:
            reward[trained.index(name), tested.index(row["tested"])] = row["reward"]
    figure = new_figure(
        "Reward where a policy was trained and where not, and dialogues over budget", 1.5 + 0.55 * len(trained)
    )
    axes = figure.add_subplot()
    axes.set_facecolor("lightgrey")
    middle = float(np.nanmean(reward)) if np.isfinite(reward).any() else 0.0
    for name, row in zip(names, rows, strict=True):
        place = trained.index(name), tested.index(row["tested"])
        colour = "white" if reward[place] > middle else "black"
        text = f"{three_digits(row['reward'])}\n{row['over']:.1%}"
        axes.text(place[1], place[0], text, ha="center", va="center", fontsize=8, color=colour)
    axes.imshow(reward, cmap="Blues", vmin=middle - 1.0, vmax=middle + 0.5, aspect="auto")
    wrap = "-\n" if len(tested) > 8 else "-"  # names of more columns touch
    axes.set_xticks(range(len(tested)), [name.removeprefix("link=").replace("-", wrap) for name in tested])
    axes.set_yticks(range(len(trained)), [name.removeprefix("link=") for name in trained])
    axes.set_xlabel(f"tested on (reward, and the share of dialogues over budget; grey: more than {most:.0%})")
    if known < len(tested):
        axes.axvline(known - 0.5, color="black", linewidth=1.5)
        axes.set_title("right of the line: links that nobody was trained on", loc="right")
    axes.set_ylabel("trained on")
    axes.grid(visible=False)
    return figure


@styled
def draw_scaling(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """How far each policy gets from chance to the optimum, a line of dots for each kind of dialogue.

    `rows` have `point`, `policy` and `share`; where the optimum is unknown, `share` is missing and nothing is drawn.
    """
    points = list(dict.fromkeys(row["point"] for row in rows))
    figure = new_figure(
        "From chance to the optimum, by kind of dialogue, with training steps fixed", 1.6 + 0.3 * len(points)
    )
    axes = figure.add_subplot()
    axes.axvline(0.0, color="grey", linewidth=1.0)
    axes.axvline(100.0, color="black", linewidth=1.0)
    handles: list[Any] = []
    for policy, (colour, marker) in _SCALED.items():
        own = [row for row in rows if row["policy"] == policy and "share" in row]
        handles += axes.plot(
            [100 * row["share"] for row in own], [points.index(row["point"]) for row in own], marker, color=colour, markersize=7, label=policy
        )  # fmt: skip
    axes.set_yticks(range(len(points)), points)
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.set_xlabel("reward, % of the way from chance (0) to the optimum (100)")
    legend_below(figure, handles)
    return figure


def _with_seed(name: str, seed: int | None, first: int | None) -> str:
    """What was trained under another seed than the first says so."""
    return name if seed == first else f"{name}, seed {seed}"
