"""Common random numbers: what a policy, a price or the number of requests may not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.cost import LEDGER_ITEMS
from sim.policies.base import Observation
from sim.records import Records
from sim.workload import build_workload
from tests.helpers import NOWHERE, Chosen, always, api, device, link, rows, run_built, scenario

ALTERNATING = Chosen(lambda seen: ("edge", "cloud")[(seen.request + seen.call.position) % 2])
MONEY = {*LEDGER_ITEMS, "total_usd", "sla_usd"}


def world(requests: int = 80, **fields: Any):
    """A home, a device and an endpoint, with everything drawn that can be drawn."""
    jittery = {"jitter_s": 0.05, "loss": 0.1, "bandwidth_cv": 0.4}
    document: dict[str, Any] = {
        "workload": {
            "tasks": {"kind": "modelled"},
            "requests": requests,
            "arrivals": {"kind": "poisson", "rate_per_s": 0.2},
        },
        "links": (link("home", "edge", **jittery), link("edge", "cloud", **jittery)),
        "faults": ({"target": "edge-cloud", "mean_time_between_s": 60.0, "duration_s": 2.0},),
    }
    tiers = {"edge": device(), "cloud": api(ttft_sigma=0.6, tokens_per_s_sigma=0.4)}
    return scenario(tiers, **{**document, **fields})


def test_a_policy_changes_no_arrival_and_no_task() -> None:
    """Arrival times, tasks and homes are the same whatever the policy does."""
    tables = [run_built(world(), policy).requests for policy in (always("edge"), always("cloud"), ALTERNATING)]
    for name in ("request", "arrival_s", "task_id", "task_family", "home"):
        for table in tables[1:]:
            np.testing.assert_array_equal(table[name], tables[0][name])


def test_a_policy_changes_no_draw_of_a_call_that_both_make() -> None:
    """The same (request, position) at the same endpoint meets the same time to first token and tokens per second.

    Without queueing or caches these times are functions of the drawn numbers and the answer's length alone.
    """
    drawn = []
    for policy in (always("cloud"), ALTERNATING):
        table = rows(run_built(world(), policy).subtasks)
        served = [row for row in table if row["tier"] == 1 and row["status"] == "ok"]
        drawn.append({(row["request"], row["position"]): row for row in served})
    both = drawn[0].keys() & drawn[1].keys()
    assert len(both) > 100
    for key in both:
        first, second = drawn[0][key], drawn[1][key]
        assert first["prefill_s"] == pytest.approx(second["prefill_s"], abs=1e-9)
        rates = [
            (row["completion_tokens"] - 1) / row["decode_s"] for row in (first, second) if row["completion_tokens"] > 1
        ]
        assert len(rates) < 2 or rates[0] == pytest.approx(rates[1])


def test_a_policy_changes_no_jitter_and_no_loss() -> None:
    """Over links that do not share and do not vary, an upload of the same size takes the same time to the bit of rounding."""
    links = (
        link("home", "edge", jitter_s=0.2, loss=0.2, shared=False),
        link("edge", "cloud", jitter_s=0.2, shared=False),
    )
    seen = []
    for policy in (always("cloud"), ALTERNATING):
        table = rows(run_built(world(links=links, faults=()), policy).subtasks)
        seen.append(
            {(row["request"], row["position"], row["tier"], row["upload_bytes"]): row["uplink_s"] for row in table}
        )
    both = seen[0].keys() & seen[1].keys()
    assert len(both) > 30
    assert [seen[0][key] for key in both] == pytest.approx([seen[1][key] for key in both], abs=1e-9)


def test_a_policy_changes_no_bandwidth_and_no_fault() -> None:
    """The state of the link at a given time is the same under every policy: a probe sees the same rate at the same time."""
    probes: list[dict[float, float]] = []
    for target in ("edge", "cloud"):
        noted: dict[float, float] = {}

        def note(seen: Observation, target: str = target, noted: dict[float, float] = noted) -> str:
            if seen.call.position == 0:
                links = seen.signals._tiers["cloud"].routes(0)[0].links  # type: ignore[attr-defined]
                noted[seen.now_s] = links[1].rate_mbps
            return target

        run_built(world(), Chosen(note))
        probes.append(noted)
    assert probes[0] == probes[1]
    assert 0.0 in probes[0].values(), "some arrivals meet an outage"
    assert len(set(probes[0].values())) > 50


def test_prices_change_no_time() -> None:
    """Other prices leave every column but those of money as they are, and change those."""

    def priced(**pricing: Any) -> Records:
        return run_built(world(pricing=pricing), ALTERNATING)

    cheap = priced(tokens={"cloud": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}})
    dear = priced(
        tokens={"cloud": {"input_usd_per_mtok": 7.0, "output_usd_per_mtok": 20.0}},
        other={"electricity_usd_per_kwh": 3.0},
    )
    for table in ("subtasks", "requests"):
        first, second = getattr(cheap, table), getattr(dear, table)
        assert first.keys() == second.keys()
        for name in first.keys() - MONEY:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        assert (first["total_usd"] < second["total_usd"]).all()


ARRIVALS = [
    {"kind": "poisson", "rate_per_s": 0.7}, {"kind": "gamma", "rate_per_s": 0.7, "cv": 3.0}, {"kind": "constant", "rate_per_s": 2.0},
    {"kind": "mmpp", "rate_per_s": 5.0}, {"kind": "diurnal", "rate_per_s": 0.5, "period_s": 60.0, "amplitude": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("arrivals", ARRIVALS, ids=lambda arrivals: arrivals["kind"])
def test_more_requests_keep_the_first_ones_arrivals(arrivals: dict[str, Any]) -> None:
    """Asking for more requests appends arrivals and leaves those before where they were."""
    times = []
    for requests in (50, 51, 2000):
        workload = {"tasks": {"kind": "modelled", "distinct_tasks": 10}, "requests": requests, "arrivals": arrivals}
        built = build_workload(world(workload=workload), 3, NOWHERE)
        assert built.arrival_s is not None
        times.append(built.arrival_s)
    assert times[1][:50].tolist() == times[2][:50].tolist() == times[0].tolist()


def test_another_seed_is_another_world() -> None:
    """Seeds change arrivals, tasks and endpoint times."""
    first, second = (run_built(world(), always("cloud"), seed) for seed in (1, 2))
    assert (first.requests["arrival_s"] != second.requests["arrival_s"]).all()
    assert set(first.requests["task_id"]).isdisjoint(second.requests["task_id"])
    assert first.subtasks["prefill_s"][:20].tolist() != second.subtasks["prefill_s"][:20].tolist()


def test_a_change_of_one_link_leaves_the_other_draws() -> None:
    """Draws belong to components by name: a third tier or another first hop changes nothing of the endpoint's."""
    plain = run_built(world(links=(), faults=()), always("cloud"))
    tiers = {"edge": device(), "cloud": api(ttft_sigma=0.6, tokens_per_s_sigma=0.4), "spare": api(ttft_sigma=1.0)}
    extended = run_built(
        scenario(tiers, workload=world().workload.model_dump(), links=(link("home", "spare", jitter_s=0.1),)),
        always("cloud"),
    )
    assert plain.subtasks["prefill_s"].tolist() == extended.subtasks["prefill_s"].tolist()
