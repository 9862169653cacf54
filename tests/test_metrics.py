"""Summaries and frontiers of tables written by hand: what is counted, what is left out, what is unknown."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from sim.cost import LEDGER_ITEMS
from sim.metrics import FRONTIER_METRICS, MEANS, QUANTILES, frontiers, summarise, with_shares
from sim.statistics import cluster_interval

BLANK: dict[str, Any] = {
    "variant": "base", "policy": "all-slm", "family": "all-slm", "knob": math.nan, "seed": 1, "request": 0, "task_id": "t0",
    "status": "completed", "score": 1.0, "latency_s": 1.0, "ttft_s": 0.5, "subtasks": 4, "slm_subtasks": 4, "total_usd": 0.01,
    "sla_usd": 0.0, "energy_j": 2.0, "carbon_g": 0.1, "decision_s": 0.05, "decision_j": 0.2, "provenance": "exact", **dict.fromkeys(LEDGER_ITEMS, 0.001),
}  # fmt: skip


def table(*requests: dict[str, Any]) -> dict[str, Any]:
    """A request table: each row is BLANK with changes."""
    filled = [{**BLANK, **row} for row in requests]
    columns = {name: np.array([row[name] for row in filled]) for name in BLANK}
    for name in ("variant", "policy", "family", "task_id", "status", "provenance"):
        columns[name] = columns[name].astype(object)
    return columns


def summary_of(*requests: dict[str, Any], warmup: int = 0) -> list[dict[str, Any]]:
    """The summary of a hand-made table."""
    return summarise(with_shares(table(*requests), warmup))


def test_means_by_hand() -> None:
    """Three requests: accuracy 2/3, small share (1 + 0.5 + 0)/3, mean cost and latency, one of three not completed."""
    (row,) = summary_of(
        {"request": 0, "task_id": "a", "score": 1.0, "total_usd": 0.01, "latency_s": 1.0},
        {"request": 1, "task_id": "b", "score": 1.0, "slm_subtasks": 2, "total_usd": 0.04, "latency_s": 3.0},
        {
            "request": 2,
            "task_id": "c",
            "score": 0.0,
            "slm_subtasks": 0,
            "total_usd": 0.10,
            "latency_s": 8.0,
            "status": "timeout",
        },
    )
    assert row["accuracy"] == pytest.approx(2 / 3)
    assert (row["slm_usage"], row["llm_share"]) == pytest.approx((0.5, 0.5))
    assert row["cost_usd"] == pytest.approx(0.05)
    assert row["latency_mean_s"] == pytest.approx(4.0)
    assert row["completion_rate"] == pytest.approx(2 / 3)
    assert (row["latency_p50_s"], row["ttft_p50_s"]) == (3.0, 0.5)
    assert (row["n"], row["seeds"], row["knob"], row["exact_share"]) == (3, 1, None, 1.0)
    assert row["energy_usd"] == pytest.approx(0.001)


def test_intervals_are_those_of_the_clusters() -> None:
    """Means carry the cluster interval over tasks and seeds; shares stay within 0 and 1, money above 0."""
    rng = np.random.default_rng(1)
    rows = [
        {
            "request": i,
            "seed": seed,
            "task_id": f"t{i}",
            "score": float(rng.random() < 0.98),
            "total_usd": float(rng.exponential()),
        }
        for seed in (1, 2, 3)
        for i in range(40)
    ]
    (row,) = summary_of(*rows)
    columns = table(*rows)
    expected = cluster_interval(columns["total_usd"], columns["task_id"], columns["seed"])
    assert (row["cost_usd"], row["cost_usd_lo"], row["cost_usd_hi"]) == pytest.approx(
        (expected.estimate, max(0.0, expected.lo), expected.hi)
    )
    for field in ("accuracy", "slm_usage", "completion_rate"):
        assert 0.0 <= row[f"{field}_lo"] <= row[field] <= row[f"{field}_hi"] <= 1.0


def test_the_warm_up_is_left_out() -> None:
    """Requests before the mark count nowhere, per seed and not per table."""
    cold = [{"request": i, "seed": seed, "latency_s": 100.0, "task_id": f"t{i}"} for seed in (1, 2) for i in range(2)]
    warm = [{"request": i, "seed": seed, "latency_s": 1.0, "task_id": f"t{i}"} for seed in (1, 2) for i in range(2, 5)]
    (row,) = summary_of(*cold, *warm, warmup=2)
    assert (row["n"], row["latency_mean_s"], row["latency_p95_s"]) == (6, 1.0, 1.0)


def test_requests_that_never_got_an_answer() -> None:
    """Without a subtask there is no share and no first token: they are left out of those means and of no other."""
    lost = {"subtasks": 0, "slm_subtasks": 0, "ttft_s": math.nan, "status": "failed", "score": 0.0}
    (row,) = summary_of({"request": 0, "task_id": "a"}, {"request": 1, "task_id": "b", **lost})
    assert (row["slm_usage"], row["accuracy"], row["completion_rate"], row["ttft_p50_s"]) == (1.0, 0.5, 0.5, 0.5)


def test_a_policy_whose_requests_all_failed() -> None:
    """Unknown shares and first tokens are null, not zero and not a crash; what is known is still there."""
    lost = {"subtasks": 0, "slm_subtasks": 0, "ttft_s": math.nan, "status": "failed", "score": 0.0}
    (row,) = summary_of(*({"request": i, "task_id": f"t{i}", **lost} for i in range(3)))
    for field in ("slm_usage", "llm_share", "ttft_p50_s"):
        assert row[field] is row[f"{field}_lo"] is row[f"{field}_hi"] is None
    assert (row["accuracy"], row["completion_rate"], row["cost_usd"]) == (0.0, 0.0, pytest.approx(0.01))


def test_what_deciding_takes() -> None:
    """0.1 of 1 s, none of 2 s, 1 of 4 s: a ninth of a request's latency on average, with an interval, and the mean of the joules."""
    seconds = ((0.1, 1.0), (0.0, 2.0), (1.0, 4.0))
    (row,) = summary_of(
        *(
            {"request": i, "task_id": f"t{i}", "decision_s": took, "latency_s": of, "decision_j": 3.0 * took}
            for i, (took, of) in enumerate(seconds)
        )
    )
    assert row["decision_share"] == pytest.approx((0.1 + 0.0 + 0.25) / 3)
    assert row["decision_share_lo"] == 0.0 < row["decision_share"] < row["decision_share_hi"]
    assert row["decision_j"] == pytest.approx(1.1)


def test_one_request_has_no_interval() -> None:
    """A single observation says nothing about its spread: the bounds are null."""
    (row,) = summary_of({})
    assert row["accuracy"] == 1.0
    for field in MEANS:
        assert row[f"{field}_lo"] is row[f"{field}_hi"] is None, field


def test_variants_and_policies_keep_their_order() -> None:
    """One row per variant and policy in the order of the run, each of its own requests."""
    rows = [
        {
            "variant": variant,
            "policy": policy,
            "family": policy,
            "score": score,
            "knob": knob,
            "task_id": f"t{i}",
            "request": i,
        }
        for variant, score in (("b", 1.0), ("a", 0.0))
        for policy, knob in (("zeta", 0.5), ("alpha", math.nan))
        for i in range(2)
    ]
    found = summary_of(*rows)
    assert [(row["variant"], row["policy"], row["accuracy"], row["knob"]) for row in found] == [
        ("b", "zeta", 1.0, 0.5), ("b", "alpha", 1.0, None), ("a", "zeta", 0.0, 0.5), ("a", "alpha", 0.0, None)
    ]  # fmt: skip


def test_provenance_is_shown_as_shares() -> None:
    """How much is exact, live and modelled adds up to everything."""
    (row,) = summary_of(
        *({"request": i, "provenance": name} for i, name in enumerate(("exact", "modelled", "modelled", "live")))
    )
    assert (row["exact_share"], row["live_share"], row["modelled_share"]) == (0.25, 0.25, 0.5)


# ------------------------------------------------------------------------------------------------------------- frontiers


def family(
    name: str, policy: str, share: float, right: int, cost: float, variant: str = "base"
) -> list[dict[str, Any]]:
    """Ten tasks of ten subtasks each under one policy: `right` of them end right, `share` of the subtasks run large."""
    return [
        {"variant": variant, "family": name, "policy": policy, "request": i, "task_id": f"t{i}", "score": float(i < right),
         "subtasks": 10, "slm_subtasks": round(10 * (1 - share)), "total_usd": cost}
        for i in range(10)
    ]  # fmt: skip


PURE = [*family("all-slm", "all-slm", 0.0, 4, 1.0), *family("all-llm", "all-llm", 1.0, 9, 11.0)]


def frontier_of(*requests: dict[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """The frontier metrics of a hand-made table."""
    return frontiers(with_shares(table(*requests)), np.random.default_rng(1))


def test_a_family_of_known_area() -> None:
    """All-SLM 0.4, All-LLM 0.9, one policy right on 8 of 10 at a share of 0.3: areas and thresholds by hand."""
    router = frontier_of(*PURE, *family("router", "router", 0.3, 8, 4.0))["base"]["router"]
    # PGR is 0, 0.8, 1 at shares 0, 0.3, 1: 0.5 x 0.8 x 0.3 + 0.9 x 0.7.
    assert router["apgr"] == pytest.approx(0.12 + 0.63)
    assert router["cpt50"] == pytest.approx(0.3 * 0.5 / 0.8)
    assert router["cpt80"] == pytest.approx(0.3)
    # Hull in dollars from nothing: (0, 0), (1, 0.4), (4, 0.8), (11, 0.9), over 11 dollars.
    assert router["aiq"] == pytest.approx((0.2 + 3 * 0.6 + 7 * 0.85) / 11)
    assert router["hypervolume"] == pytest.approx((3 * 0.4 + 7 * 0.8) / 11)
    assert router["oracle_gap_closed"] is None, "there is no oracle to compare with"


def test_random_mixes_have_an_apgr_of_one_half() -> None:
    """Policies on the line between the pure ones recover half of the gap on average."""
    mixes = [
        row
        for share, right in ((0.2, 5), (0.6, 7))
        for row in family("random", f"random({share})", share, right, 1 + 10 * share)
    ]
    assert frontier_of(*PURE, *mixes)["base"]["random"]["apgr"] == pytest.approx(0.5)


def test_the_oracle_closes_its_own_gap() -> None:
    """The oracle's share of its own gap is 1, and a family half-way up closes half of it."""
    found = frontier_of(
        *PURE, *family("oracle-cost", "oracle-cost", 0.4, 10, 3.0), *family("router", "router", 0.4, 8, 4.0),
    )["base"]  # fmt: skip
    assert found["oracle-cost"]["oracle_gap_closed"] == pytest.approx(1.0)
    assert found["router"]["oracle_gap_closed"] == pytest.approx(0.5)


def test_variants_have_frontiers_of_their_own() -> None:
    """Each variant is measured against its own pure policies; one without them has no recovered gap."""
    other = [{**row, "variant": "far"} for row in family("router", "router", 0.3, 8, 4.0)]
    found = frontier_of(*PURE, *family("router", "router", 0.3, 8, 4.0), *other)
    assert found["base"]["router"]["apgr"] is not None
    assert found["far"]["router"]["apgr"] is None
    assert found["far"]["router"]["hypervolume"] is not None


def test_an_oracle_that_was_never_served_hides_no_other_metric() -> None:
    """Its share is unknown, so the gap to it is; everything else of the family is measured."""
    lost = [
        {**row, "subtasks": 0, "slm_subtasks": 0, "score": 0.0}
        for row in family("oracle-cost", "oracle-cost", 0.4, 0, 0.0)
    ]
    router = frontier_of(*PURE, *lost, *family("router", "router", 0.3, 8, 4.0))["base"]["router"]
    assert router["apgr"] == pytest.approx(0.75)
    assert router["oracle_gap_closed"] is None


def test_intervals_of_the_frontier_hold_their_estimates() -> None:
    """With differing tasks the bootstrap gives every metric bounds on both sides of the estimate."""
    rng = np.random.default_rng(3)
    rows = []
    for name, share, chance in (("all-slm", 0.0, 0.4), ("all-llm", 1.0, 0.9), ("router", 0.3, 0.7)):
        rows += [
            {"family": name, "policy": name, "request": i, "task_id": f"t{i}", "score": float(rng.random() < chance),
             "subtasks": 10, "slm_subtasks": round(10 * (1 - share)), "total_usd": 1 + 10 * share}
            for i in range(300)
        ]  # fmt: skip
    router = frontier_of(*rows)["base"]["router"]
    for name in ("apgr", "cpt50", "aiq", "hypervolume"):
        lo, estimate, hi = router[f"{name}_lo"], router[name], router[f"{name}_hi"]
        assert lo is not None
        assert estimate is not None
        assert hi is not None
        assert lo < estimate < hi, name


def test_a_run_of_pure_policies_has_no_families() -> None:
    """Two points are no curve of anybody's own."""
    assert frontier_of(*PURE) == {"base": {}}


def test_everything_is_plain_json() -> None:
    """Summaries and frontiers hold strings, numbers and nulls, never NaN, whatever is unknown."""
    lost = {"subtasks": 0, "slm_subtasks": 0, "ttft_s": math.nan, "status": "failed", "score": 0.0, "total_usd": 0.0}
    rows = [
        *PURE,
        *family("router", "router", 0.3, 8, 4.0),
        *({"policy": "x", "family": "x", "request": i, **lost} for i in range(2)),
    ]
    text = json.dumps([summary_of(*rows), frontier_of(*rows)], allow_nan=False)
    summary, frontier = json.loads(text)
    assert {f"{name}{bound}" for name in (*MEANS, *QUANTILES) for bound in ("", "_lo", "_hi")} <= set(summary[0])
    assert {f"{name}{bound}" for name in FRONTIER_METRICS for bound in ("", "_lo", "_hi")} == set(
        frontier["base"]["router"]
    )
