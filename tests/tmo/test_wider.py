"""Whole bills and larger dialogues: what `run_sim.py tmo costs` and `tmo scaling` are made of."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest

from sim.figures.bills import draw_bills
from sim.figures.style import save_figure
from sim.policies import build_policy
from sim.simulation import simulate
from sim.tmo.costs import PENALTY, Bills, Noted, Point, bill, cheapest_mix
from sim.workload import build_workload, load_trace
from tests.tmo.dialogue_world import WORLD, dialogues
from tests.tmo.test_train_command import command

WHOLE = ("links.0.link.transfer_usd_per_gbyte=6", "pricing.other.carbon_usd_per_tonne=70", "sla.penalty_usd=0.01")


@pytest.mark.parametrize("deadline_s", [5.0, 60.0])
def test_a_bill_is_the_records_own_whatever_ledger_the_run_was_made_under(tmp_path: Path, deadline_s: float) -> None:
    """A price moves no event: the plain world's run, billed under another ledger, costs what that ledger's own run says."""
    plain = dialogues(tmp_path, f"sla.deadline_s={deadline_s}")
    whole = dialogues(tmp_path, f"sla.deadline_s={deadline_s}", *WHOLE)
    found = []
    for world in (plain, whole):
        workload = build_workload(world.scenario, 1, world.path)
        policy = build_policy("tmo-random", {}, tmp_path)
        records = simulate(world.scenario, workload, policy, 1, partial(load_trace, scenario_path=world.path))
        found.append((bill(records, whole.scenario), records))
    own = found[1][1].requests
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-12)
    late = 0.01 * float((own["end_s"] - own["arrival_s"] > deadline_s).mean())
    assert found[0][0][PENALTY] == pytest.approx(late)
    assert math.fsum(found[0][0].values()) == pytest.approx(float(own["total_usd"].mean()), abs=1e-9)
    assert found[0][0]["transfer"] > 0.0 < found[0][0]["energy"]


def test_noted_changes_nothing_and_counts_every_turn(tmp_path: Path) -> None:
    """The records with and without the counting are the same; the counts add up to the turns."""
    world = dialogues(tmp_path)
    workload = build_workload(world.scenario, 1, world.path)
    noted = Noted(build_policy("tmo-random", {}, tmp_path), "local")
    policies = [build_policy("tmo-random", {}, tmp_path), noted]
    plain, counted = (simulate(world.scenario, workload, policy, 1, lambda _: None) for policy in policies)  # type: ignore[arg-type, return-value]
    assert plain.subtasks["end_s"].tolist() == counted.subtasks["end_s"].tolist()
    assert sum(noted.actions.values()) == len(plain.subtasks["end_s"])
    assert noted.actions["on board"] == int((plain.subtasks["tier"] == 0).sum())
    assert set(noted.actions) == {"on board", *(f"cloud, {sent} sent along" for sent in range(3))}


def test_the_cheapest_mix_may_skip_a_policy_that_is_dear() -> None:
    """Half of the first and half of the last is cheaper than the one in the middle; out of reach is None."""
    points = [Point(score, {"API": usd}, {"a": score}) for score, usd in ((0.4, 1.0), (0.6, 5.0), (0.8, 4.0))]
    found = cheapest_mix(points, 0.6)
    assert found is not None
    assert found.total_usd == pytest.approx(2.5)
    assert found.actions["a"] == pytest.approx(0.6)
    assert cheapest_mix(points, 0.81) is None
    assert cheapest_mix(points[:1], 0.4) == Point(0.4, {"API": 1.0}, {"a": 0.4})


def test_bills_of_every_ledger_and_buyer_and_again(tmp_path: Path) -> None:
    """Every ledger and buyer within reach has a row with all shares; a second call runs nothing and says the same."""
    path = tmp_path / "scenario.yaml"
    path.write_text(WORLD.replace("requests: 60", "requests: 12"))
    late = ("sla.penalty_usd=0.01", "sla.deadline_s=6")
    bills = Bills(path, (), tmp_path / "out", (0.0015, 0.009), 64, {"plain": (), "late": late})
    rows = list(bills.rows(0.6))
    told = {(row["ledger"], row["policy"]): row for row in rows}
    assert {("plain", "optimum"), ("late", "optimum"), ("late", "optimum, API bill")} <= set(told)
    assert told["late", "optimum"]["total_usd"] <= told["late", "optimum, API bill"]["total_usd"]
    for row in rows:
        assert sum(row["actions"].values()) == pytest.approx(1.0)
        assert row["total_usd"] == pytest.approx(sum(row["usd"].values()))
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "bills").iterdir()}
    assert list(bills.rows(0.6)) == rows
    assert kept == {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "bills").iterdir()}
    save_figure(draw_bills(rows, 0.6), tmp_path, "costs")
    assert (tmp_path / "costs.png").stat().st_size > 10_000


def test_scaling_measures_from_chance_to_the_optimum(tmp_path: Path) -> None:
    """Chance is 0 %, the optimum 100 %, and no policy that learned is above it by more than its noise."""
    path = tmp_path / "scenario.yaml"
    sweep = "sweep: {workload.tasks: [{label: one, kind: dialogues, modalities: 1}, {label: two, kind: dialogues, modalities: 2}]}\n"
    path.write_text(WORLD + sweep)
    command("tmo", "scaling", path, "--out", tmp_path / "out", "--steps", "64")
    rows = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert [row["point"] for row in rows] == ["one"] * 5 + ["two"] * 5
    shares = {(row["point"], row["policy"]): row["share"] for row in rows}
    for point in ("one", "two"):
        assert shares[point, "random"] == 0.0
        assert shares[point, "optimum"] == 1.0
        assert shares[point, "greedy"] < 1.1
    assert (tmp_path / "out" / "scaling.png").stat().st_size > 10_000
