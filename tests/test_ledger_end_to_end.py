"""The ledger of whole simulations, recomputed from the Parquet files in decimal arithmetic that shares no code with it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sim.records import Records, to_arrow, write_parquet
from sim.scenario import Scenario
from sim.study import study_of
from sim.workload import build_workload
from tests.helpers import NOWHERE, Chosen, Step, always, api, device, link, rows, run, run_built, scenario, task
from workloads.agent import in_turn

ITEMS = (
    "api_input_usd",
    "api_cached_usd",
    "api_output_usd",
    "transfer_usd",
    "energy_usd",
    "hardware_usd",
    "carbon_usd",
)
MIXED = Chosen(lambda seen: ("edge", "cloud")[(seen.request + seen.call.position) % 2], decision_s=0.03)


def priced_world(**fields: Any) -> Scenario:
    """A device and an API with a price on everything, in a world with refusals, crashes, timeouts and retries."""
    document: dict[str, Any] = {
        "workload": {"tasks": {"kind": "modelled", "prompt_tokens": 1500.0}, "requests": 60,
                     "arrivals": {"kind": "gamma", "rate_per_s": 0.2, "cv": 2.0}},
        "links": (
            link("home", "edge", energy_up_j_per_mbyte=6.0, energy_down_j_per_mbyte=3.5, jitter_s=0.02),
            link("edge", "cloud", transfer_usd_per_gbyte=0.09, energy_up_j_per_mbyte=1.0),
        ),
        "faults": ({"target": "edge", "kind": "crash", "mean_time_between_s": 40.0, "duration_s": 5.0},),
        "client": {"timeout_s": 120.0, "retries": 2, "backoff_s": 0.2, "home_power_w": 7.0, "attempt_timeout_s": 15.0},
        "sla": {"deadline_s": 60.0, "penalty_usd": 0.01},
        "pricing": {
            "tokens": {"cloud": {"input_usd_per_mtok": 2.5, "cached_input_usd_per_mtok": 1.25, "output_usd_per_mtok": 10.0}},
            "other": {"electricity_usd_per_kwh": 0.31, "carbon_g_per_kwh": 380.0, "carbon_usd_per_tonne": 90.0,
                      "hardware_utilisation": 0.4},
        },
    }  # fmt: skip
    cloud = api(tokens_per_s_median=40.0, concurrency=2, rpm=90, ttft_sigma=0.5, prefill_s_per_token=0.0005)
    return scenario({"edge": device(max_batch=4), "cloud": cloud}, **{**document, **fields})


def written(records: Records, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of both tables as they come back from their files."""
    tables = []
    for name in ("subtasks", "requests"):
        path = folder / f"{name}.parquet"
        write_parquet(to_arrow(getattr(records, name)), path)
        tables.append(pq.read_table(path).to_pylist())
    return tables[0], tables[1]


def exact(value: float) -> Decimal:
    """The decimal number that a float prints as."""
    return Decimal(repr(float(value)))


def bill(row: dict[str, Any]) -> dict[str, Decimal]:
    """One row's money by the price list of `priced_world`, written out."""
    cloud, edge = row["tier"] == 1, row["tier"] == 0
    began = row["status"] == "ok" or row["prefill_s"] > 0
    tokens = Decimal(1) if cloud and began else Decimal(0)
    moved_up, moved_down = exact(row["upload_bytes"]), exact(row["download_bytes"])
    joules = (Decimal(20) + Decimal(40)) * exact(row["device_s"]) if edge else Decimal(0)
    up_j, down_j = (Decimal(6), Decimal("3.5")) if edge else (Decimal(7), Decimal("3.5"))
    joules += (up_j * moved_up + down_j * moved_down) / 1_000_000
    joules += 7 * exact(row["decision_s"])
    kwh = joules / 3_600_000
    busy_seconds = Decimal("365.25") * 86400 * Decimal("0.4")
    return {
        "api_input_usd": tokens * Decimal("2.5") * (row["prompt_tokens"] - row["cached_tokens"]) / 1_000_000,
        "api_cached_usd": tokens * Decimal("1.25") * row["cached_tokens"] / 1_000_000,
        "api_output_usd": tokens * 10 * row["completion_tokens"] / 1_000_000,
        "transfer_usd": Decimal("0.09") * (moved_up + moved_down) / 1_000_000_000 if cloud else Decimal(0),
        "energy_usd": kwh * Decimal("0.31"),
        "hardware_usd": Decimal(13149) / busy_seconds * exact(row["device_s"]) if edge else Decimal(0),
        "carbon_usd": kwh * 380 * 90 / 1_000_000,
    }


def test_the_ledger_recomputed_in_decimals(tmp_path: Path) -> None:
    """Every item of every attempt agrees to 1e-9 with decimal arithmetic, and the sums to far less than a cent."""
    subtasks, requests = written(run_built(priced_world(), MIXED), tmp_path)
    statuses = {row["status"] for row in subtasks}
    assert statuses >= {"ok", "rejected", "crashed"}, f"the world must show what it is meant to test, found {statuses}"
    assert any(row["cached_tokens"] > 0 and row["tier"] == 1 for row in subtasks)
    total = Decimal(0)
    for row in subtasks:
        items = bill(row)
        for name, expected in items.items():
            assert row[name] == pytest.approx(float(expected), rel=1e-9, abs=1e-18), (
                row["request"],
                row["position"],
                name,
            )
        assert row["total_usd"] == pytest.approx(float(sum(items.values())), rel=1e-9)
        total += sum(items.values())
    for row in requests:
        late = row["status"] != "completed" or row["latency_s"] > 60.0
        assert row["sla_usd"] == (0.01 if late else 0.0)
        total += Decimal("0.01") if late else Decimal(0)
    assert 0 < sum(row["sla_usd"] > 0 for row in requests) < len(requests)
    assert sum(row["total_usd"] for row in requests) == pytest.approx(float(total), rel=1e-9)
    assert abs(exact(sum(row["total_usd"] for row in requests)) - total) < Decimal("0.005")


def test_items_add_up_and_requests_are_sums_of_their_subtasks(tmp_path: Path) -> None:
    """Item by item, a request's money, energy and carbon are those of its attempts; its total adds the SLA penalty."""
    subtasks, requests = written(run_built(priced_world(), MIXED), tmp_path)
    for row in subtasks:
        assert row["total_usd"] == pytest.approx(sum(row[name] for name in ITEMS), rel=1e-9)
        assert row["decision_j"] == pytest.approx(7 * row["decision_s"])
    for row in requests:
        own = [attempt for attempt in subtasks if attempt["request"] == row["request"]]
        for name in (*ITEMS, "energy_j", "carbon_g", "decision_s", "decision_j"):
            assert row[name] == pytest.approx(sum(attempt[name] for attempt in own), rel=1e-9)
        assert row["total_usd"] == pytest.approx(sum(row[name] for name in ITEMS) + row["sla_usd"], rel=1e-9)


def test_a_refused_call_pays_no_tokens(tmp_path: Path) -> None:
    """A 429 costs the bytes that were sent and nothing else of the API."""
    subtasks, _ = written(run_built(priced_world(), always("cloud")), tmp_path)
    refused = [row for row in subtasks if row["status"] == "rejected"]
    assert len(refused) > 20
    for row in refused:
        assert row["api_input_usd"] == row["api_cached_usd"] == row["api_output_usd"] == 0.0
        assert row["prompt_tokens"] > 0
        assert row["transfer_usd"] == pytest.approx(0.09 * row["upload_bytes"] / 1e9)


def test_a_call_cut_short_in_prefill_pays_its_tokens() -> None:
    """The API had begun: the client that hangs up pays for the prompt, one that was still in the queue does not."""
    price = {"tokens": {"cloud": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}}}
    world = scenario({"cloud": api(ttft_median_s=2.0)}, client={"timeout_s": 1.0}, pricing=price)
    (row,) = rows(run(world, [task()], always("cloud")).subtasks)
    assert (row["status"], row["prefill_s"]) == ("timeout", 1.0)
    assert row["api_input_usd"] == pytest.approx(100e-6)


def test_the_price_library_is_what_is_charged() -> None:
    """GPT-4o at 2.50 $ in and 10 $ out per million tokens, as published, on the bill of a simulated call."""
    cloud = {**api(), "model": "gpt-4o"}
    (row,) = rows(
        run(scenario({"cloud": cloud}), [task(Step(prompt_tokens=1000, output_tokens=500))], always("cloud")).subtasks
    )
    assert row["total_usd"] == pytest.approx(1000 * 2.5e-6 + 500 * 10e-6)


def test_device_time_is_shared_not_counted_twice() -> None:
    """Eight requests decoded together pay for the device's busy time once."""
    records = run(scenario({"edge": device()}), [task()] * 8, always("edge"))
    busy_s = 8 * 0.1 + 20 * 0.05
    assert records.subtasks["device_s"].sum() == pytest.approx(busy_s)
    assert records.subtasks["energy_j"].sum() == pytest.approx(busy_s * 60.0)
    np.testing.assert_allclose(records.subtasks["hardware_usd"].sum(), busy_s * 13149 / (365.25 * 86400 * 0.5))


def test_an_expected_cost_is_what_an_undisturbed_call_costs() -> None:
    """What policies may study beforehand is the bill of a call that meets no queue, no cache and no failure."""
    world = priced_world(
        faults=(), client={"stream": False}, sla={}, workload={"tasks": {"kind": "modelled"}, "requests": 1}, links=()
    )
    study = study_of(world, build_workload(world, 1, NOWHERE), 1)
    for tier in ("edge", "cloud"):
        records = run_built(world, always(tier))
        first = rows(records.subtasks)[0]
        call = next(in_turn(study.agent(study.tasks[0])))
        expected = study.expected_cost_usd(call, tier, first["completion_tokens"])
        assert first["total_usd"] == pytest.approx(expected, rel=1e-9)
