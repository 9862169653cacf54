"""A few requests step by step: what happened where, and for how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sim.figures.phases import PHASES, REST, REST_COLOUR, boundaries_s
from sim.figures.style import INK, SOFT, FloatArray, cut, legend_below, new_figure, shorten, styled
from sim.job import ESCALATED
from sim.records import Columns
from sim.run_tables import RunTables

MOST_REQUESTS = 5
_AGENT = "agent"
_FAILED, _GIVEN_UP = "////", "...."
_HATCHES = {_FAILED: "failed attempt", _GIVEN_UP: "answer given up"}
_INVISIBLE_S = 1e-6
_AWAY = next(number for number, phase in enumerate(PHASES) if not phase.at_home)
"""The first phase that is not spent at the user's device."""
_CHARACTER_SHARE = 0.0074
"""Width of a small character as a share of a panel's width."""


class Story(NamedTuple):
    """A request worth showing: its number and why it was chosen."""

    request: int
    why: str


class Lanes(NamedTuple):
    """Lanes from top to bottom as (tier, slot), tier -1 being the agent; and for each attempt the lanes of its time at home and away."""

    keys: list[tuple[int, int]]
    home: list[int]
    away: list[int]


@styled
def draw_timeline(tables: RunTables, variant: str, policy: str, seed: int) -> Figure:
    """At most five requests of one cell: typical, using both models, retried, done again, unfinished, slowest, fastest."""
    requests, subtasks = tables.of_cell(variant, policy, seed), tables.subtasks(variant, policy, seed)
    stories = choose_stories(requests, subtasks)
    steps = [attempts_of(subtasks, story.request) for story in stories]
    whole = [
        {name: column[requests["request"] == story.request][0] for name, column in requests.items()}
        for story in stories
    ]
    rests = [
        float(request["end_s"]) - float(attempts["end_s"].max()) for request, attempts in zip(whole, steps, strict=True)
    ]
    lanes = [_lanes_of(attempts, rest_s) for attempts, rest_s in zip(steps, rests, strict=True)]
    heights = [0.75 + 0.3 * len(used.keys) for used in lanes]
    figure = new_figure(
        f"Requests step by step: {tables.title_of_cell(variant, policy, seed)}", sum(heights) + 1.6 if stories else 2.0
    )
    if not stories:
        figure.subplots().annotate("no request was placed anywhere", (0.5, 0.5), xycoords="axes fraction", ha="center")
        return figure
    panels = figure.subplots(len(stories), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, story, request, attempts, used in zip(panels, stories, whole, steps, lanes, strict=True):
        _panel(axes, request, attempts, used, tables)
        axes.set_title(_headline(story, request), loc="left", fontsize=9.5)
    panels[-1].set_xlabel("time since the request arrived (s); every request has its own scale")
    met = [phase for phase in PHASES if any(np.any(attempts[phase.column] > 0) for attempts in steps)]
    handles = [Patch(color=phase.colour, label=phase.name) for phase in met]
    if max(rests) > _INVISIBLE_S:
        handles.append(Patch(color=REST_COLOUR, label=REST))
    seen = {str(status) for attempts in steps for status in attempts["status"]}
    for hatch, words in _HATCHES.items():
        if hatch in {_hatch(status) for status in seen}:
            handles.append(Patch(facecolor="white", edgecolor=INK, hatch=hatch, label=words))
    legend_below(figure, handles, most_columns=5)
    return figure


def attempts_of(subtasks: Columns, request: int) -> dict[str, Any]:
    """The attempts of one request in the order of time."""
    rows = np.flatnonzero(subtasks["request"] == request)
    rows = rows[np.argsort(subtasks["start_s"][rows], kind="stable")]
    return {name: column[rows] for name, column in subtasks.items()}


def choose_stories(requests: Columns, subtasks: Columns) -> list[Story]:
    """Requests that show different things, each at most once; none without an attempt."""
    ids, latency, status = requests["request"], requests["latency_s"], requests["status"]
    size = int(max(ids.max(initial=0), subtasks["request"].max(initial=0))) + 1
    attempts = np.bincount(subtasks["request"], minlength=size)[ids]
    given_up, failed = (
        np.bincount(subtasks["request"], [_hatch(str(s)) == hatch for s in subtasks["status"]], minlength=size)[ids]
        for hatch in (_GIVEN_UP, _FAILED)
    )
    completed = (status == "completed") & (attempts > 0)
    if not completed.any():
        completed = attempts > 0
    if not completed.any():
        return []
    several = completed & (attempts > 1) if (completed & (attempts > 1)).any() else completed
    mixed = several & (requests["slm_subtasks"] > 0) & (requests["slm_subtasks"] < requests["subtasks"])
    middle = np.abs(latency - np.median(latency[completed]))
    wishes = (
        ("typical: latency nearest to the median", several, -middle),
        ("both models: nearest to the median of those that use both", mixed, -middle),
        ("most failed attempts", completed & (failed > 0), failed - latency / (1 + latency.max())),
        ("most answers given up", completed & (given_up > 0), given_up - latency / (1 + latency.max())),
        ("not completed", (attempts > 0) & (status != "completed"), attempts),
        ("slowest of those completed", completed, latency),
        ("fastest of those completed", several, -latency),
    )
    stories: list[Story] = []
    for why, allowed, merit in wishes:
        if allowed is mixed and stories and mixed[ids == stories[0].request].any():
            continue  # the typical one shows that already
        free = allowed & ~np.isin(ids, [story.request for story in stories])
        if free.any() and len(stories) < MOST_REQUESTS:
            stories.append(Story(int(ids[np.argmax(np.where(free, merit, -np.inf))]), why))
    return stories


def _headline(story: Story, request: Mapping[str, Any]) -> str:
    outcome = f"{request['latency_s']:.3g} s, score {request['score']:.3g}"
    if request["status"] != "completed":
        outcome = f"{request['status']} after {request['latency_s']:.3g} s"
    return f"Request {story.request} ({story.why}): {outcome}"


def _lanes_of(attempts: Columns, rest_s: float) -> Lanes:
    """The agent's own lane if it spent any time, then those of the tiers that were tried; what runs side by side has lanes of its own."""
    marks, tiers = boundaries_s(attempts), [int(tier) for tier in attempts["tier"]]
    home = [(-1, slot) for slot in _slots([-1] * len(tiers), marks[:, 0], marks[:, _AWAY])]
    away = list(zip(tiers, _slots(tiers, marks[:, _AWAY], marks[:, -1]), strict=True))
    away = [at_home if tier < 0 else lane for tier, lane, at_home in zip(tiers, away, home, strict=True)]
    own = rest_s > _INVISIBLE_S or any(np.any(attempts[phase.column] > 0) for phase in PHASES if phase.at_home)
    keys = sorted({*away, *(home if own else ()), *([(-1, 0)] if own else ())})
    return Lanes(keys, [keys.index(lane) if own else 0 for lane in home], [keys.index(lane) for lane in away])


def _slots(groups: Sequence[int], begins: FloatArray, ends: FloatArray) -> list[int]:
    """For each span of time, in the order of their beginnings, the first slot of its group that is free by then."""
    busy_until: dict[int, list[float]] = {}
    slots = []
    for group, begin, end in zip(groups, begins.tolist(), ends.tolist(), strict=True):
        taken = busy_until.setdefault(group, [])
        slot = next((n for n, until in enumerate(taken) if until <= begin + _INVISIBLE_S), len(taken))
        if end <= begin:
            slot = 0
        elif slot == len(taken):
            taken.append(end)
        else:
            taken[slot] = end
        slots.append(slot)
    return slots


def _panel(axes: Axes, request: Mapping[str, Any], attempts: Columns, lanes: Lanes, tables: RunTables) -> None:
    marks = boundaries_s(attempts) - float(request["arrival_s"])
    end_s = max(float(request["latency_s"]), float(marks.max()))
    for number, row in enumerate(marks):
        hatch = _hatch(str(attempts["status"][number]))
        tier_lane = lanes.away[number]
        axes.vlines(row[_AWAY], tier_lane - 0.36, tier_lane + 0.28, color=INK, linewidth=1.0, zorder=3)
        for phase, begin, end in zip(PHASES, row[:-1], row[1:], strict=True):
            if end > begin:
                lane = lanes.home[number] if phase.at_home else tier_lane
                axes.barh(
                    lane, end - begin, left=begin, height=0.56, color=phase.colour, hatch=hatch,
                    edgecolor=INK if hatch else "white", linewidth=0.4,
                )  # fmt: skip
    rest_s = float(request["latency_s"]) - float(marks.max())
    if rest_s > _INVISIBLE_S:
        axes.barh(0, rest_s, left=float(marks.max()), height=0.56, color=REST_COLOUR, edgecolor="white", linewidth=0.4)
    _reasons(axes, attempts, marks, lanes, end_s)
    axes.axvline(float(request["latency_s"]), color=INK, linewidth=1.2)
    labels = {
        lane: _AGENT if tier < 0 else _tier_label(tables, tier)
        for lane, (tier, slot) in enumerate(lanes.keys)
        if not slot
    }
    axes.set_yticks(list(labels), list(labels.values()))
    axes.set_ylim(len(lanes.keys) - 0.5, -0.5 if lanes.keys[0][0] < 0 else -0.75)
    axes.set_xlim(-0.004 * end_s, end_s * 1.004)
    axes.grid(visible=False, axis="y")


def _hatch(status: str) -> str | None:
    """How an attempt of this status is hatched; not at all if its answer was taken."""
    return None if status == "ok" else _GIVEN_UP if status == ESCALATED else _FAILED


def _tier_label(tables: RunTables, tier: int) -> str:
    return f"{shorten(tables.tiers[tier], 16)} ({tables.roles[tier].upper()})"


def _reasons(axes: Axes, attempts: Columns, marks: FloatArray, lanes: Lanes, end_s: float) -> None:
    """Above each attempt why its tier was chosen, where that changes; words without room are cut or left out."""
    width_s = _CHARACTER_SHARE * end_s
    last: dict[int, str] = {}
    starts = [
        (lane, float(row[_AWAY]), str(reason))
        for lane, row, reason in zip(lanes.away, marks, attempts["reason"], strict=True)
    ]
    for number, (lane, begin, reason) in enumerate(starts):
        if not reason.strip() or last.get(lane) == reason:
            continue
        following = [b for other, b, words in starts[number + 1 :] if other == lane and words != reason]
        room = int(((following[0] if following else end_s) - begin) / width_s) - 1
        if room >= 8:
            last[lane] = reason
            axes.annotate(
                cut(reason, room), (begin, lane - 0.32), va="bottom", fontsize=7, color=SOFT, annotation_clip=True
            )
