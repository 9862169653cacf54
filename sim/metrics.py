"""Metrics: functions of records only.

`summarise` gives one row per (variant, policy), every mean with its 95 % interval; `frontiers` one entry per (variant, family).
Requests before the warm-up mark are left out of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.bootstrap import bootstrap_metric
from sim.cost import LEDGER_ITEMS
from sim.frontier import RouterCurve, aiq, apgr, cpt, hypervolume, oracle_gap_closed
from sim.records import Columns
from sim.statistics import Interval, cluster_interval, proportion_interval, quantile_interval
from workloads.task import PROVENANCES

MEANS = {
    "accuracy": "score",
    "slm_usage": "slm_usage",
    "llm_share": "llm_share",
    "cost_usd": "total_usd",
    "latency_mean_s": "latency_s",
    "completion_rate": "completed",
    "energy_j": "energy_j",
    "carbon_g": "carbon_g",
    "subtasks": "subtasks",
    "decision_share": "decision_share",
    "decision_j": "decision_j",
}
"""Summary field -> column whose mean it is."""
QUANTILES = {
    "latency_p50_s": ("latency_s", 0.5),
    "latency_p95_s": ("latency_s", 0.95),
    "ttft_p50_s": ("ttft_s", 0.5),
    "cost_p95_usd": ("total_usd", 0.95),
}
FRONTIER_METRICS = ("apgr", "cpt50", "cpt80", "aiq", "hypervolume", "oracle_gap_closed")
_SHARES = ("accuracy", "slm_usage", "llm_share", "completion_rate", "decision_share")
_RESAMPLES = 300
_PURE = ("all-slm", "all-llm")
"""The two ends of every frontier; a single point has no curve of its own."""


def with_shares(requests: Columns, warmup_requests: int = 0) -> dict[str, npt.NDArray[Any]]:
    """The request table without its warm-up, with the derived columns the metrics need."""
    columns = {name: column[requests["request"] >= warmup_requests] for name, column in requests.items()}
    steps = columns["subtasks"].astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        columns["slm_usage"] = columns["slm_subtasks"] / steps  # NaN where no subtask was ever served
        # Of a request's own latency; branches that decide at the same time count each.
        columns["decision_share"] = columns["decision_s"] / columns["latency_s"]
    columns["llm_share"] = 1.0 - columns["slm_usage"]
    columns["completed"] = (columns["status"] == "completed").astype(float)
    return columns


def summarise(requests: Columns) -> list[dict[str, Any]]:
    """One row per variant and policy, in the order of the cells; see MEANS and QUANTILES for its fields."""
    return [_summary_row(rows) for rows in _groups(requests, ("variant", "policy"))]


def _summary_row(rows: Columns) -> dict[str, Any]:
    knob = float(rows["knob"][0])
    row: dict[str, Any] = {
        "variant": rows["variant"][0], "policy": rows["policy"][0], "family": rows["family"][0],
        "knob": None if math.isnan(knob) else knob, "n": len(rows["request"]), "seeds": len(np.unique(rows["seed"])),
    }  # fmt: skip
    for field, column in MEANS.items():
        known = ~np.isnan(rows[column].astype(float))
        interval = cluster_interval(rows[column][known].astype(float), rows["task_id"][known], rows["seed"][known])
        bounded = field in _SHARES
        if field == "completion_rate" and interval.lo == interval.hi:
            # None (or all) of n requests failed: that no more than a few in n do is all one can say.
            interval = proportion_interval(int(rows[column].sum()), len(rows[column]))
        _put(row, field, interval, 1.0 if bounded else math.inf)
    for field, (column, q) in QUANTILES.items():
        values = rows[column][~np.isnan(rows[column])]
        _put(row, field, quantile_interval(values, q) if len(values) else Interval(math.nan, math.nan, math.nan, 0))
    for item in (*LEDGER_ITEMS, "sla_usd"):
        row[item] = float(rows[item].mean())
    for provenance in PROVENANCES:
        answered = max(1, int((rows["provenance"] != "").sum()))
        row[f"{provenance}_share"] = float((rows["provenance"] == provenance).sum()) / answered
    return row


def _put(row: dict[str, Any], field: str, interval: Interval, highest: float = math.inf) -> None:
    """All our quantities are at least 0, shares at most 1: an interval does not leave that range, and stays NaN if it is."""
    row[field], row[f"{field}_lo"], row[f"{field}_hi"] = (
        _finite(interval.estimate), _finite(max(interval.lo, 0.0)), _finite(min(interval.hi, highest))
    )  # fmt: skip


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _groups(columns: Columns, keys: tuple[str, ...]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The rows of each combination of keys, combinations in order of first appearance."""
    labels = np.array(["\x1f".join(parts) for parts in zip(*(columns[key].astype(str) for key in keys), strict=True)])
    names, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    for name in np.argsort(first, kind="stable"):
        rows = order[ends[name - 1] if name else 0 : ends[name]]
        yield {column: values[rows] for column, values in columns.items()}


class _Points:
    """Per-policy means of one variant as functions of which rows are drawn, for the bootstrap."""

    def __init__(self, rows: Columns) -> None:
        self.policies, self._policy = np.unique(rows["policy"].astype(str), return_inverse=True)
        first = [int(np.argmax(self._policy == i)) for i in range(len(self.policies))]
        self.families = rows["family"].astype(str)[first]
        share = rows["llm_share"].astype(float)
        self._columns = [rows["score"].astype(float), rows["total_usd"].astype(float), np.nan_to_num(share)]
        self._known = (~np.isnan(share)).astype(float)

    def means(self, drawn: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """(accuracy, cost, LLM share) of every policy, shape (3, policies)."""
        policy, size = self._policy[drawn], len(self.policies)
        counts = np.bincount(policy, minlength=size)
        known = np.bincount(policy, self._known[drawn], minlength=size)
        sums = [np.bincount(policy, column[drawn], minlength=size) for column in self._columns]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack([sums[0] / counts, sums[1] / counts, sums[2] / known])


def frontiers(requests: Columns, rng: np.random.Generator) -> dict[str, dict[str, dict[str, float | None]]]:
    """{variant: {family: {metric, metric_lo, metric_hi}}}; NaN (no pure policies to compare with, say) becomes null.

    A family's curve is completed by the All-SLM and All-LLM points where the run has them. AIQ and hypervolume are in units of
    accuracy: both are divided by the cost of the dearest policy of the variant. Intervals: bootstrap over tasks.
    """
    return {str(rows["variant"][0]): _variant_frontiers(rows, rng) for rows in _groups(requests, ("variant",))}


def _variant_frontiers(rows: Columns, rng: np.random.Generator) -> dict[str, dict[str, float | None]]:
    points = _Points(rows)
    families = [name for name in dict.fromkeys(rows["family"].astype(str).tolist()) if name not in _PURE]
    if not families:
        return {}

    def metrics(drawn: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        accuracy, cost, share = points.means(drawn)
        return np.concatenate([_family_metrics(points.families, family, accuracy, cost, share) for family in families])

    intervals = bootstrap_metric(metrics, rows["task_id"], rng, resamples=_RESAMPLES)
    table: dict[str, dict[str, float | None]] = {}
    for number, family in enumerate(families):
        entry = table[family] = {}
        for offset, name in enumerate(FRONTIER_METRICS):
            interval = intervals[number * len(FRONTIER_METRICS) + offset]
            entry[name] = _finite(interval.estimate)
            entry[f"{name}_lo"], entry[f"{name}_hi"] = _finite(interval.lo), _finite(interval.hi)
    return table


def _family_metrics(
    families: npt.NDArray[Any], family: str, accuracy: npt.NDArray[np.float64], cost: npt.NDArray[np.float64],
    share: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:  # fmt: skip
    own = families == family
    pure = np.isin(families, _PURE)
    if np.isnan(accuracy[own | pure]).any() or np.isnan(share[own | pure]).any():
        return np.full(len(FRONTIER_METRICS), math.nan)
    dearest = float(np.nanmax(cost))
    with_pure = own | pure
    area = aiq(cost[with_pure], accuracy[with_pure], dearest) if dearest > 0 else math.nan
    volume = hypervolume(cost[with_pure], accuracy[with_pure], (dearest, 0.0)) / dearest if dearest > 0 else math.nan
    if not set(_PURE) <= set(families):
        return np.array([math.nan] * 3 + [area, volume, math.nan])
    weak, strong = float(accuracy[families == "all-slm"][0]), float(accuracy[families == "all-llm"][0])
    curve = (share[own], accuracy[own])
    oracle = np.char.startswith(families.astype(str), "oracle")
    gap = math.nan
    if oracle.any() and not (np.isnan(accuracy[oracle]).any() or np.isnan(share[oracle]).any()):
        gap = oracle_gap_closed(
            *curve, RouterCurve(share[oracle], accuracy[oracle], np.full(oracle.sum(), math.nan)), weak, strong
        )
    return np.array(
        [apgr(*curve, weak, strong), cpt(0.5, *curve, weak, strong), cpt(0.8, *curve, weak, strong), area, volume, gap]
    )
