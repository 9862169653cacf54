"""Wrong assignments: how often a policy sends a subtask elsewhere than an oracle does (HERA/AIMS's Table 1). Functions of records only.

A subtask is its request and position, and it is placed where the policy last wanted it: at its first attempt, or where a review had it
done again. Retries and fail-overs are no decisions. Compared are the roles of the two tiers, small or large, over the subtasks that
both runs have, in requests that are no warm-up.

What this does not see: after the first difference the two runs hold different conversations, so the subtasks at later positions share
a number and no text, and those that only one of them needed are not compared at all. A placement as good as the oracle's, of which
there may be many, counts as wrong. The share tells how closely an oracle is followed, not how much is lost by not following it: for
that look at accuracy and cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.records import Columns
from sim.run_tables import RunTables
from sim.statistics import Interval, cluster_interval, proportion_interval

FIELDS = ("wrong", "wrong_small", "wrong_large", "wrong_of_large", "wrong_of_small")
"""Shares of the compared subtasks: placed elsewhere than by the oracle, small where it has large, large where it has small.

The last two are shares of what the oracle places large, and of what it places small. An oracle that needs the large model seldom calls
whoever never asks it seldom wrong; of what it does need the large model for, all is then wrong.
"""
_PREFERRED = "oracle-slm-usage"
_PREFERRED_SHARE = 0.9
"""HERA's own oracle: the most subtasks on the small model at 90 % of All-LLM's accuracy."""

Row = Mapping[str, Any]
IntArray = npt.NDArray[np.intp]


class Placed(NamedTuple):
    """Where subtasks were placed; arrays of one entry per subtask, sorted by request and position."""

    request: IntArray
    position: IntArray
    large: npt.NDArray[np.bool_]


def placed(subtasks: Columns, roles: Sequence[str]) -> Placed:
    """The placement of every subtask of one cell; `roles` are the tiers' (`slm` or `llm`). Time on no tier is left out."""
    on_tier = np.asarray(subtasks["tier"]) >= 0
    request, position, attempt, tier = (
        np.asarray(subtasks[name])[on_tier].astype(np.intp) for name in ("request", "position", "attempt", "tier")
    )
    escalated = np.asarray(subtasks["status"])[on_tier] == "escalated"
    order = np.lexsort((attempt, position, request))
    request, position, tier, escalated = request[order], position[order], tier[order], escalated[order]
    first = np.ones(len(request), dtype=np.bool_)
    first[1:] = (request[1:] != request[:-1]) | (position[1:] != position[:-1])
    # A decision is the first attempt of a subtask, or the one after an answer that was given up; of each subtask the last counts.
    decided = np.flatnonzero(first | np.concatenate(([False], escalated[:-1]))[: len(first)])
    last = np.ones(len(decided), dtype=np.bool_)
    last[:-1] = first[decided[1:]]
    chosen = decided[last]
    is_large = np.array([role == "llm" for role in roles], dtype=np.bool_)
    return Placed(request[chosen], position[chosen], is_large[tier[chosen]])


def oracles_of(summary: Sequence[Row], policies: Mapping[str, str], variant: str) -> list[str]:
    """The oracles of a variant, the one to compare with first: HERA's own, then the nearest to it in kind and accuracy.

    `policies` names the policy behind each family. What looks into the recording without planning, such as HERA with perfect
    estimators, is nobody's measure.
    """
    rows = [row for row in summary if row["variant"] == variant and policies[str(row["family"])].startswith("oracle-")]

    def rank(row: Row) -> tuple[bool, float]:
        knob = row["knob"]
        away = math.inf if knob is None else abs(float(knob) - _PREFERRED_SHARE)
        return policies[str(row["family"])] != _PREFERRED, round(away, 9)

    return [str(row["policy"]) for row in sorted(rows, key=rank)]


def wrong_assignments(tables: RunTables, summary: Sequence[Row], policies: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row per variant, policy and oracle other than itself; none for a variant without an oracle.

    Fields: `variant`, `policy`, `oracle`, `compared` (subtasks) and FIELDS with `_lo` and `_hi`, the 95 % interval over requests and
    seeds of a share of subtasks (`cluster_interval`); null where nothing can be compared.
    """
    found = []
    for variant in dict.fromkeys(str(row["variant"]) for row in summary):
        oracles = oracles_of(summary, policies, variant)
        known = {oracle: _seeds(tables, variant, oracle) for oracle in oracles}
        for policy in [str(row["policy"]) for row in summary if row["variant"] == variant and oracles]:
            own = known.get(policy) or _seeds(tables, variant, policy)
            for oracle in oracles:
                if oracle != policy:
                    head = {"variant": variant, "policy": policy, "oracle": oracle}
                    found.append({**head, **_compared(own, known[oracle])})
    return found


def add_to_summary(summary: Sequence[dict[str, Any]], policies: Mapping[str, str], wrong: Sequence[Row]) -> None:
    """Give every row FIELDS against the first oracle of its variant, named in `wrong_against`; null for that oracle itself.

    Rows stay as they are in a run without an oracle.
    """
    if not wrong:
        return
    against = {variant: oracles_of(summary, policies, variant)[0] for variant in {str(row["variant"]) for row in wrong}}
    known = {(row["variant"], row["policy"]): row for row in wrong if row["oracle"] == against[row["variant"]]}
    names = [f"{field}{end}" for field in FIELDS for end in ("", "_lo", "_hi")]
    for row in summary:
        own = known.get((row["variant"], row["policy"]), {})
        row["wrong_against"] = against.get(row["variant"])
        row.update({name: own.get(name) for name in names})


class _Cell(NamedTuple):
    """The placements of one cell and the task of each of its requests."""

    placed: Placed
    task_of: Mapping[int, str]


def _seeds(tables: RunTables, variant: str, policy: str) -> dict[int, _Cell]:
    """Placements of a policy's measured requests by seed."""
    requests, cells = tables.of_policy(variant, policy), dict[int, _Cell]()
    for seed in np.unique(requests["seed"]).tolist():
        mine = requests["seed"] == seed
        where = placed(tables.subtasks(variant, policy, seed), tables.roles)
        measured = np.isin(where.request, requests["request"][mine])
        task_of = dict(zip(requests["request"][mine].tolist(), requests["task_id"][mine].tolist(), strict=True))
        kept = Placed(where.request[measured], where.position[measured], where.large[measured])
        cells[seed] = _Cell(kept, task_of)
    return cells


def _compared(own: Mapping[int, _Cell], oracle: Mapping[int, _Cell]) -> dict[str, Any]:
    mine: list[npt.NDArray[np.bool_]] = []
    its: list[npt.NDArray[np.bool_]] = []
    tasks: list[str] = []
    seeds: list[int] = []
    for seed in [seed for seed in own if seed in oracle]:
        here, there = own[seed].placed, oracle[seed].placed
        _, left, right = np.intersect1d(_keys(here), _keys(there), assume_unique=True, return_indices=True)
        mine.append(here.large[left])
        its.append(there.large[right])
        tasks += [own[seed].task_of[request] for request in here.request[left].tolist()]
        seeds += [seed] * len(left)
    large, wanted = np.concatenate([np.zeros(0, bool), *mine]), np.concatenate([np.zeros(0, bool), *its])
    everywhere = np.ones(len(large), bool)
    kinds = (
        (large != wanted, everywhere), (~large & wanted, everywhere), (large & ~wanted, everywhere), (~large, wanted), (large, ~wanted),
    )  # fmt: skip
    task, seed_of = np.array(tasks, object), np.array(seeds)
    row: dict[str, Any] = {"compared": len(tasks)}
    for field, (wrong, among) in zip(FIELDS, kinds, strict=True):
        row |= _bounds(field, _share(wrong[among], task[among], seed_of[among]))
    return row


def _share(wrong: npt.NDArray[np.bool_], tasks: npt.NDArray[Any], seeds: npt.NDArray[Any]) -> Interval:
    """Clustered by task and seed; where none or all are wrong, that few or most of so many are is all one can say (Wilson)."""
    found = cluster_interval(wrong.astype(float), tasks, seeds)
    return proportion_interval(int(wrong.sum()), len(wrong)) if found.lo == found.hi else found


def _keys(where: Placed) -> IntArray:
    """A number for each (request, position)."""
    keys: IntArray = where.request * (1 << 20) + where.position
    return keys


def _bounds(field: str, interval: Interval) -> dict[str, float | None]:
    values = {"": interval.estimate, "_lo": max(interval.lo, 0.0), "_hi": min(interval.hi, 1.0)}
    known = {end: float(value) for end, value in values.items() if math.isfinite(value)}
    return {f"{field}{end}": known.get(end) for end in values}
