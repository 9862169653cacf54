"""Wrong assignments: which placement counts, what is compared, and with which oracle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sim.assignments import FIELDS, add_to_summary, oracles_of, placed, wrong_assignments
from sim.cells import expand_cells, run_cell
from sim.experiment import run_experiment
from sim.run_store import RunStore
from sim.run_tables import RunTables
from sim.statistics import cluster_interval, proportion_interval
from tests.helpers import SWEEP, load_text

ROLES = ("slm", "llm")
POLICIES = {"mine": "hera", "best": "oracle-slm-usage", "cheap": "oracle-cost", "perfect": "oracle hera"}


def subtask_table(*rows: tuple[int, int, int, int, str]) -> dict[str, Any]:
    """Attempts: (request, position, attempt, tier, status)."""
    names = ("request", "position", "attempt", "tier", "status")
    columns = {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}
    return columns | {"status": columns["status"].astype(object)}


def choices(subtasks: dict[str, Any]) -> dict[tuple[int, int], str]:
    """Where each subtask was placed, by request and position."""
    found = placed(subtasks, ROLES)
    keys = zip(found.request.tolist(), found.position.tolist(), strict=True)
    return dict(zip(keys, ["L" if large else "S" for large in found.large.tolist()], strict=True))


def run_of(cells: Mapping[tuple[str, int], Sequence[str]], first_request: int = 0) -> RunTables:
    """A run: for each (policy, seed) its requests as words of S and L, one letter a subtask."""
    parts = [
        {"variant": "base", "policy": policy, "seed": seed, "request": request, "task_id": f"t{request}"}
        for (policy, seed), words in cells.items()
        for request in range(first_request, len(words))
    ]
    requests = {name: np.array([part[name] for part in parts]) for name in parts[0]}
    attempts = {
        key: subtask_table(
            *(
                (request, position, 0, "SL".index(letter), "ok")
                for request, word in enumerate(words)
                for position, letter in enumerate(word)
            )
        )
        for key, words in cells.items()
    }
    return RunTables(requests, lambda _, policy, seed: attempts[policy, seed], ("edge", "cloud"), ROLES, (1.0, 1.0))


def summary_of(*policies: tuple[str, float | None]) -> list[dict[str, Any]]:
    """Summary rows of one variant: policies named `family` or `family knob`."""
    return [
        {"variant": "base", "policy": name, "family": name.partition(" ")[0], "knob": knob} for name, knob in policies
    ]


def test_retries_and_fail_overs_are_no_decisions() -> None:
    """Placed small; retried there, then failed over to the large tier: it counts as small."""
    attempts = [(0, 0, 0, 0, "rejected"), (0, 0, 1, 0, "timeout"), (0, 0, 2, 1, "ok")]
    assert choices(subtask_table(*attempts)) == {(0, 0): "S"}


def test_where_it_was_done_again_counts() -> None:
    """A cascade gives up its small answer: large, even where the next attempt fails; a second review counts as well."""
    table = subtask_table(
        (0, 0, 0, 0, "escalated"), (0, 0, 1, 1, "rejected"), (0, 0, 2, 1, "ok"),
        (0, 1, 0, 0, "ok"),
        (1, 0, 0, 0, "escalated"), (1, 0, 1, 1, "escalated"), (1, 0, 2, 0, "ok"),
    )  # fmt: skip
    assert choices(table) == {(0, 0): "L", (0, 1): "S", (1, 0): "S"}


def test_rows_may_come_in_any_order_and_time_on_no_tier_is_nobodys() -> None:
    """Rows lie in the order of their ends, and the tool call that ends a request is placed nowhere."""
    table = subtask_table(
        (1, 0, 0, 1, "ok"), (0, 1, 0, 0, "ok"), (0, 2, 0, -1, "ok"), (0, 0, 1, 1, "ok"), (0, 0, 0, 0, "escalated")
    )
    assert choices(table) == {(0, 0): "L", (0, 1): "S", (1, 0): "L"}


def test_shares_by_hand() -> None:
    """Of seven subtasks that both have, two are wrongly small and one wrongly large; the eighth only the oracle has."""
    tables = run_of({("mine", 1): ["SSL", "LS", "SS"], ("best", 1): ["LSS", "LSL", "LS"]})
    (row,) = wrong_assignments(tables, summary_of(("mine", None), ("best", 0.9)), POLICIES)
    assert (row["policy"], row["oracle"], row["compared"]) == ("mine", "best", 7)
    assert [row[field] for field in FIELDS] == pytest.approx([3 / 7, 2 / 7, 1 / 7, 2 / 3, 1 / 4])
    indicator = [1, 0, 1, 0, 0, 1, 0]
    expected = cluster_interval(indicator, ["t0", "t0", "t0", "t1", "t1", "t2", "t2"], [1] * 7)
    assert (row["wrong_lo"], row["wrong_hi"]) == pytest.approx((max(0.0, expected.lo), min(1.0, expected.hi)))


def test_seeds_are_compared_with_themselves_and_the_warm_up_is_left_out() -> None:
    """Each seed has its own requests; a seed that the oracle has not, and requests that are not measured, count nowhere."""
    cells = {("mine", 1): ["LL", "SS"], ("mine", 2): ["SS", "LL"], ("mine", 3): ["LL", "LL"]}
    oracle = {("best", 1): ["SS", "SS"], ("best", 2): ["SS", "LS"]}
    summary = summary_of(("mine", None), ("best", 0.9))
    (row,) = wrong_assignments(run_of(cells | oracle), summary, POLICIES)
    assert (row["compared"], row["wrong"], row["wrong_large"]) == (8, pytest.approx(3 / 8), pytest.approx(3 / 8))
    (row,) = wrong_assignments(run_of(cells | oracle, first_request=1), summary, POLICIES)
    assert (row["compared"], row["wrong"]) == (4, pytest.approx(1 / 4))


def test_the_oracle_to_compare_with() -> None:
    """HERA's own before others, the point nearest to 90 %; perfect estimators are a policy like any other."""
    summary = summary_of(("mine", None), ("cheap", 0.9), ("best 0.8", 0.8), ("best 0.95", 0.95), ("perfect", 0.9))
    assert oracles_of(summary, POLICIES, "base") == ["best 0.95", "best 0.8", "cheap"]
    assert oracles_of(summary_of(("mine", None)), POLICIES, "base") == []


def test_the_summary_has_the_share_against_one_oracle() -> None:
    """Every policy's row names it; its own shares are null, another point's are not; without an oracle nothing is added."""
    summary = summary_of(("mine", None), ("best 0.8", 0.8), ("best 0.9", 0.9))
    tables = run_of({("mine", 1): ["SL"], ("best 0.8", 1): ["SS"], ("best 0.9", 1): ["LL"]})
    wrong = wrong_assignments(tables, summary, POLICIES)
    assert len(wrong) == 4
    add_to_summary(summary, POLICIES, wrong)
    assert [(row["wrong_against"], row["wrong"]) for row in summary] == [
        ("best 0.9", 0.5), ("best 0.9", 1.0), ("best 0.9", None)
    ]  # fmt: skip
    assert summary[0]["wrong_lo"] is None, "one task says nothing of the spread"
    bare = summary_of(("mine", None))
    add_to_summary(bare, POLICIES, wrong_assignments(run_of({("mine", 1): ["SL"]}), bare, POLICIES))
    assert "wrong" not in bare[0]


def test_none_wrong_of_few_is_not_certain() -> None:
    """Four subtasks in two requests, none wrong: up to half may be."""
    tables = run_of({("mine", 1): ["SL", "SL"], ("best", 1): ["SL", "SL"]})
    (row,) = wrong_assignments(tables, summary_of(("mine", None), ("best", 0.9)), POLICIES)
    assert (row["wrong"], row["wrong_lo"]) == (0.0, 0.0)
    assert row["wrong_hi"] == proportion_interval(0, 4).hi > 0.4


def test_nothing_in_common_is_unknown() -> None:
    """A policy none of whose subtasks the oracle's run has: null, not 0."""
    tables = run_of({("mine", 1): ["", ""], ("best", 1): ["SS", "S"]})
    (row,) = wrong_assignments(tables, summary_of(("mine", None), ("best", 0.9)), POLICIES)
    assert (row["compared"], row["wrong"], row["wrong_lo"]) == (0, None, None)


def test_a_run_with_an_oracle_says_it_everywhere(tmp_path: Path) -> None:
    """All-LLM is never wrongly small, All-SLM never wrongly large; in the summary, its CSV, a file of their own and the report."""
    loaded = load_text(tmp_path, SWEEP, ["workload.requests=40"])
    store = RunStore(tmp_path / "results", loaded, expand_cells(loaded))
    finished = run_experiment(loaded, store, lambda *_: (), 1, Console(quiet=True))
    by_name = {row["policy"]: row for row in finished.summary}
    small, large = by_name["all-slm"], by_name["all-llm"]
    assert (small["wrong_large"], large["wrong_small"]) == (0.0, 0.0)
    assert small["wrong"] == small["wrong_small"]
    # Requests that are cut short under one policy and not under the other are compared in one of the two only.
    assert small["wrong"] == pytest.approx(1 - large["wrong"], abs=0.02)
    assert "wrong_small_hi" in (finished.folder / "summary.csv").read_text().splitlines()[0]
    assert '"oracle": "oracle-slm-usage(accuracy_share=0.8)"' not in (finished.folder / "assignments.json").read_text()
    assert '"oracle": "oracle-slm-usage"' in (finished.folder / "assignments.json").read_text()
    assert 'id="assignments"' in finished.report.read_text(encoding="utf-8")
    records = run_cell(store.cells[2])  # random
    assert np.allclose(
        records.requests["decision_j"], records.requests["decision_s"] * loaded.scenario.client.home_power_w
    )
    assert not math.isnan(small["decision_share"])
