"""What a HERA profile shows: functions of its two tables only, every number with its 95 % interval.

A table's rows are one request each, or one subtask each at which both models were asked. Intervals are over requests: subtasks of one
request are one cluster. The figures they are for are those of HERA/AIMS (EuroSys 2026), figures 4a to 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.records import Columns
from sim.statistics import FloatArray, Interval, cluster_interval, proportion_interval

THIRDS = ("early", "middle", "late")
ROLES = ("small", "large")
NEVER = "never"
RIGHT = 0.5
"""A score from which on a request counts as right."""

Text = npt.NDArray[Any]


class AtPosition(NamedTuple):
    """The subtasks at one position on the large model's path.

    `similarity` is the mean cosine of the two models' outputs and `quartiles` what half of them lie between, `alike` the share above
    the threshold, `distance` the mean finite S-L distance, `never` the share without one.
    """

    position: int
    subtasks: int
    similarity: Interval
    quartiles: tuple[float, float]
    alike: Interval
    distance: Interval
    never: Interval


class Counts(NamedTuple):
    """Subtasks of the requests that a model gets right alone: their mean, and the share of requests by number of subtasks."""

    mean: Interval
    shares: Mapping[int, Interval]


def share(holds: npt.NDArray[np.bool_], tasks: Text) -> Interval:
    """Share of rows for which something holds, clustered by task; Wilson's interval where all rows agree or all tasks differ."""
    if not len(holds):
        return Interval(math.nan, math.nan, math.nan, 0)
    apart = len(np.unique(tasks)) == len(tasks)
    if apart or holds.all() or not holds.any():
        return proportion_interval(int(holds.sum()), len(holds))
    found = cluster_interval(holds.astype(float), tasks, np.zeros(len(tasks)))
    return Interval(found.estimate, max(found.lo, 0.0), min(found.hi, 1.0), found.n)


def mean(values: FloatArray, tasks: Text) -> Interval:
    """Mean of rows, clustered by task."""
    return cluster_interval(values, tasks, np.zeros(len(tasks)))


def on_large_path(subtasks: Columns) -> dict[str, npt.NDArray[Any]]:
    """The subtasks that the large model alone gets to."""
    return {name: column[subtasks["on_large_path"]] for name, column in subtasks.items()}


def switched(subtasks: Columns) -> dict[str, Interval]:
    """Points (0-100) that All-LLM loses when one subtask runs small, by the third of the request it is in (Fig. 4a)."""
    path = on_large_path(subtasks)
    third = np.minimum(2, 3 * path["path_index"] // np.maximum(1, path["path_subtasks"]))
    known = ~np.isnan(path["score_lost"])
    return {
        name: _mean_score(path["score_lost"][rows], path["task"][rows])
        for number, name in enumerate(THIRDS)
        for rows in (known & (third == number),)
    }


def _mean_score(values: FloatArray, tasks: Text) -> Interval:
    """Mean of differences of scores, in points; where all are equal, as far off as a share that none of so many rows showed."""
    found = mean(100 * values, tasks)
    if found.n > 1 and found.lo == found.hi:
        unseen = 100 * proportion_interval(0, found.n).hi
        return found._replace(lo=found.estimate - unseen, hi=found.estimate + unseen)
    return found


def subtask_counts(requests: Columns) -> dict[str, Counts]:
    """Subtasks of a right request, by the model that runs it alone (Fig. 4b)."""
    found = {}
    for role in ROLES:
        right = requests[f"{role}_score"] >= RIGHT
        counts, tasks = requests[f"{role}_subtasks"][right], requests["task"][right]
        shares = {int(count): share(counts == count, tasks) for count in np.unique(counts)}
        found[role] = Counts(mean(counts.astype(float), tasks), shares)
    return found


def distances(subtasks: Columns) -> dict[str, Interval]:
    """Shares of the large model's subtasks by their S-L distance, from 0 to the largest there is, and never (Fig. 5)."""
    path = on_large_path(subtasks)
    farthest = int(np.max(path["distance"], initial=0.0, where=np.isfinite(path["distance"])))
    labels = {str(extra): path["distance"] == extra for extra in range(farthest + 1)}
    labels[NEVER] = np.isinf(path["distance"])
    return {label: share(holds, path["task"]) for label, holds in labels.items()}


def by_position(subtasks: Columns, threshold: float) -> list[AtPosition]:
    """Likeness and S-L distance along the large model's path (Figs. 5 and 6)."""
    path, found = on_large_path(subtasks), []
    for position in np.unique(path["position"]).tolist():
        here = {name: column[path["position"] == position] for name, column in path.items()}
        tasks, similarity, matched = here["task"], here["similarity"], np.isfinite(here["distance"])
        lower, upper = np.quantile(similarity, (0.25, 0.75)).tolist()
        found.append(
            AtPosition(
                position,
                len(tasks),
                mean(similarity, tasks),
                (lower, upper),
                share(similarity > threshold, tasks),
                mean(here["distance"][matched], tasks[matched]),
                share(~matched, tasks),
            )
        )
    return found


def alike_above(similarity: FloatArray, tasks: Text, thresholds: Sequence[float]) -> list[Interval]:
    """Share of rows more alike than each threshold (Fig. 7)."""
    return [share(similarity > threshold, tasks) for threshold in thresholds]


def summary(requests: Columns, subtasks: Columns, threshold: float) -> dict[str, Any]:
    """All numbers of a profile as plain values: `{estimate, lo, hi, n}` each, bounds null where there are none."""
    counts, tasks = subtask_counts(requests), requests["task"]
    path = on_large_path(subtasks)
    return {
        "requests": len(tasks),
        "threshold": threshold,
        "right": {role: _plain(mean(requests[f"{role}_score"], tasks)) for role in ROLES},
        "subtasks_of_a_right_request": {role: _plain(counts[role].mean) for role in ROLES},
        "requests_by_subtasks": {
            role: {str(count): _plain(found) for count, found in counts[role].shares.items()} for role in ROLES
        },
        "final_outputs_alike": _plain(share(requests["similarity"] > threshold, tasks)),
        "next_subtasks_alike": _plain(share(path["similarity"] > threshold, path["task"])),
        "points_lost_by_one_switched": {third: _plain(found) for third, found in switched(subtasks).items()},
        "s_l_distance": {label: _plain(found) for label, found in distances(subtasks).items()},
        "by_position": [
            {name: _plain(value) if isinstance(value, Interval) else value for name, value in row._asdict().items()}
            for row in by_position(subtasks, threshold)
        ],
    }


def _plain(interval: Interval) -> dict[str, float | int | None]:
    return {
        name: float(value) if math.isfinite(value) else None
        for name, value in zip(("estimate", "lo", "hi"), interval[:3], strict=True)
    } | {"n": interval.n}
