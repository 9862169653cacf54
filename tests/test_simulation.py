"""Whole simulations: books that balance in random scenarios, decisions, users, signals and caches."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simpy import Environment, Event

from sim.policies.base import Observation, Placement
from sim.records import Records
from sim.scenario import Scenario
from sim.simulation import collect, prepare, simulate
from sim.workload import BuiltWorkload
from tests.helpers import (
    PHASES,
    Chosen,
    Step,
    always,
    api,
    attempts_of,
    device,
    link,
    phases,
    rows,
    run,
    run_built,
    scenario,
    scripted_agent,
    scripted_answer,
    slots,
    task,
)
from workloads.backend import ScriptedBackend
from workloads.errors import InputError
from workloads.task import Completion, ModelCall

FREE = {"prices": {"electricity_usd_per_kwh": 0.0}}


# ------------------------------------------------------------------------------------------------- books that balance


def check_books(world: Scenario, records: Records) -> None:
    """Everything that must hold of any records: phases, contiguity, sums, statuses and counts."""
    subtasks, requests = records.subtasks, records.requests
    count = world.workload.requests
    assert requests["request"].tolist() == list(range(count)), "every request ends exactly once"
    spans = subtasks["end_s"] - subtasks["start_s"]
    lengths = np.stack([subtasks[phase] for phase in PHASES])
    assert (lengths >= -1e-9).all()
    np.testing.assert_allclose(lengths.sum(axis=0), spans, atol=1e-7)
    by_request = np.bincount(subtasks["request"], spans, minlength=count)
    np.testing.assert_allclose(by_request, requests["latency_s"], atol=1e-6)
    assert (requests["latency_s"] <= world.client.timeout_s + 1e-6).all()
    table = rows(subtasks)
    for request in rows(requests):
        check_request(world, request, [row for row in table if row["request"] == request["request"]])


def check_request(world: Scenario, request: dict[str, Any], attempts: list[dict[str, Any]]) -> None:
    """One request's attempts follow one another from its arrival to its end, and its counts are theirs."""
    attempts.sort(key=lambda row: (row["position"], row["attempt"]))
    ends = [request["arrival_s"], *(row["end_s"] for row in attempts)]
    assert [row["start_s"] for row in attempts] == pytest.approx(ends[:-1], abs=1e-7)
    assert ends[-1] == pytest.approx(request["end_s"], abs=1e-7)
    served = [row for row in attempts if row["status"] == "ok" and row["tier"] >= 0]
    roles = [tier.role for tier in world.tiers.values()]
    assert request["subtasks"] == len(served)
    assert request["slm_subtasks"] == sum(roles[row["tier"]] == "slm" for row in served)
    assert [row["position"] for row in served] == list(range(len(served))), "one answer a subtask, in order"
    for before, after in itertools.pairwise(attempts):
        expected = (
            (before["position"] + 1, 0) if before["status"] == "ok" else (before["position"], before["attempt"] + 1)
        )
        assert (after["position"], after["attempt"]) == expected
        assert before["status"] != "timeout", "nothing follows a timeout"
    if request["status"] == "completed":
        assert not attempts or attempts[-1]["status"] == "ok"
    else:
        assert request["score"] == 0.0
        assert request["reason"]
        assert (request["status"] == "timeout") == (attempts[-1]["status"] == "timeout")
    assert np.isnan(request["ttft_s"]) == (not served)
    if served:
        first = request["arrival_s"] + request["ttft_s"]
        assert first <= served[0]["end_s"] + 1e-7
        assert first == pytest.approx(served[0]["start_s"] + served[0]["ttft_s"], abs=1e-7)


@st.composite
def worlds(draw: st.DrawFn) -> Scenario:
    """A random small world in which things go wrong."""
    kinds = {
        "slots": slots(mean_s=draw(st.sampled_from([0.05, 0.5, 3.0])), slots=draw(st.integers(1, 3))),
        "api": api("slm", concurrency=draw(st.sampled_from([None, 1, 4])), rpm=draw(st.sampled_from([None, 20.0])),
                   tpm=draw(st.sampled_from([None, 800.0, 20_000.0])), ttft_sigma=0.5),
        "device": device(max_batch=draw(st.integers(1, 4)), replicas=draw(st.integers(1, 2)),
                         balancer=draw(st.sampled_from(["least-loaded", "affinity", "random"]))),
    }  # fmt: skip
    edge = kinds[draw(st.sampled_from(sorted(kinds)))]
    cloud = {**kinds[draw(st.sampled_from(sorted(kinds)))], "role": "llm"}
    hop = link("home", "edge", up_mbps=draw(st.sampled_from([0.1, 5.0])), jitter_s=draw(st.sampled_from([0.0, 0.3])),
               loss=draw(st.sampled_from([0.0, 0.2])), per_home=draw(st.booleans()))  # fmt: skip
    places = {"home-edge": "outage", "edge-cloud": "outage", "edge": "outage", "cloud": "crash"}
    faults = []
    for target in draw(st.lists(st.sampled_from(sorted(places)), max_size=3)):
        times: list[dict[str, Any]] = [{"at_s": (1.0, 4.0)}, {"mean_time_between_s": 8.0}]
        when = draw(st.sampled_from(times))
        faults.append(
            {"target": target, "kind": places[target], "duration_s": draw(st.sampled_from([0.5, 6.0])), **when}
        )
    arrivals = draw(st.sampled_from([
        {"kind": "poisson", "rate_per_s": 2.0}, {"kind": "constant", "rate_per_s": 50.0},
        {"kind": "closed", "users": 3, "think_s": 0.5}, {"kind": "closed", "users": 2, "think_s": 0.0},
    ]))  # fmt: skip
    client = {
        "timeout_s": draw(st.sampled_from([1.5, 20.0, 300.0])), "attempt_timeout_s": draw(st.sampled_from([None, 0.7, 5.0])),
        "retries": draw(st.integers(0, 3)), "backoff_s": draw(st.sampled_from([0.0, 0.3])), "fail_over": draw(st.booleans()),
        "stream": draw(st.booleans()), "signal_age_s": draw(st.sampled_from([0.0, 1.0])),
    }  # fmt: skip
    tasks = {"kind": "modelled", "tool_s": draw(st.sampled_from([0.0, 0.4]))}
    return scenario(
        {"edge": edge, "cloud": cloud}, links=(hop, link("edge", "cloud", bandwidth_cv=0.5)), faults=tuple(faults), client=client,
        workload={"tasks": tasks, "requests": 12, "arrivals": arrivals, "homes": draw(st.integers(1, 2))},
    )  # fmt: skip


def balanced_choice(seen: Observation) -> str:
    """The tier that looks quicker now, from all that a policy may see."""
    waits = {
        tier.name: seen.signals.wait_s(tier.name) + seen.signals.transfer_s(tier.name, seen.call.upload_bytes, 1000.0)
        for tier in seen.tiers
    }
    assert not any(np.isnan(wait) for wait in waits.values())
    assert seen.spent_usd >= 0.0
    return min(waits, key=lambda name: (waits[name], name))


@settings(max_examples=60, deadline=None)
@given(world=worlds(), seed=st.integers(0, 5))
def test_books_balance_in_any_world(world: Scenario, seed: int) -> None:
    """Under faults, timeouts, retries and refusals the phases add up, attempts are contiguous and every request ends once."""
    check_books(world, run_built(world, Chosen(balanced_choice, decision_s=0.02), seed))


@settings(max_examples=40, deadline=None)
@given(world=worlds(), last_tool_s=st.sampled_from([0.0, 0.5, 30.0]))
def test_books_balance_with_last_tools_and_coins(world: Scenario, last_tool_s: float) -> None:
    """The same with a tool call at the end of every request and placements that change from step to step."""
    steps = [Step(tool_s=0.2 * i, upload_bytes=20_000, output_tokens=i * 7) for i in range(4)]
    records = run(
        world, [task(*steps, last_tool_s=last_tool_s)] * 12, Chosen(lambda seen: ("edge", "cloud")[seen.call.position % 2]),
        [0.1 * i for i in range(12)],
    )  # fmt: skip
    check_books(world, records)


# ------------------------------------------------------------------------------------------------------------ decisions

TWO_TIERS = {"edge": slots(), "cloud": slots("llm", 0.5)}


def turns(seen: Observation) -> str:
    """Edge and cloud in turn."""
    return ("edge", "cloud")[seen.call.position % 2]


def test_a_pending_decision_gives_the_same_records() -> None:
    """A policy that answers with an event which somebody outside brings about makes the very same rows."""
    world = scenario(TWO_TIERS, links=(link("home", "edge"), link("edge", "cloud")))
    tasks = [task(Step(), Step(tool_s=0.1), Step())] * 4
    pending: list[tuple[Event, Observation]] = []

    def ask(seen: Observation) -> Event:
        event = simulation.env.event()
        pending.append((event, seen))
        return event

    workload = BuiltWorkload(
        tasks, tasks, scripted_agent, ScriptedBackend(scripted_answer), np.array([0.0, 0.5, 1.0, 9.0])
    )
    simulation = prepare(world, workload, Chosen(ask), 1, lambda file: None)  # type: ignore[arg-type,return-value]
    steps = 0
    while not simulation.done.processed:
        while pending:  # the outside: decides without letting time pass
            event, seen = pending.pop(0)
            event.succeed(Placement(turns(seen)))
            steps += 1
        simulation.env.step()
    outside = collect(world, simulation)
    inside = run(world, tasks, Chosen(turns), [0.0, 0.5, 1.0, 9.0])
    assert steps == 12
    for table in ("subtasks", "requests"):
        mine, theirs = getattr(outside, table), getattr(inside, table)
        for name, column in mine.items():
            np.testing.assert_array_equal(column, theirs[name], err_msg=name)


def clock(seen: Observation) -> Environment:
    """The simulation's environment, which a policy that decides in virtual time needs."""
    environment: Environment = seen.signals._tiers["edge"].fleet.servers[0].env  # type: ignore[attr-defined]
    return environment


def test_a_decision_that_takes_time_is_booked_as_one() -> None:
    """Seconds until a pending decision comes are decision time, on top of decision_s, and nobody is paid twice for a retry."""
    fault = {"target": "edge", "at_s": (1.5,), "duration_s": 0.1}
    world = scenario({"edge": slots()}, faults=(fault,), client={"retries": 3, "backoff_s": 1.0})

    def slowly(seen: Observation) -> Event:
        return clock(seen).timeout(0.5, Placement("edge"))

    records = run(world, [task(Step(tool_s=0.25))], Chosen(slowly, decision_s=0.125))
    first, second = rows(records.subtasks)
    assert phases(first) == [("tool_s", 0.25), ("decision_s", 0.625), ("decode_s", 0.625)]
    assert [name for name, _ in phases(second)] == ["backoff_s", "decode_s"]
    assert (first["start_s"], second["start_s"]) == (0.0, 1.5)


def test_a_timeout_in_a_pending_decision() -> None:
    """A decision that never comes does not hold a request for ever."""
    world = scenario({"edge": slots()}, client={"timeout_s": 3.0})
    records = run(world, [task(Step(tool_s=1.0))], Chosen(lambda seen: clock(seen).event()))
    (row,) = rows(records.subtasks)
    assert (row["tier"], row["status"], phases(row)) == (-1, "timeout", [("tool_s", 1.0), ("decision_s", 2.0)])
    assert rows(records.requests)[0]["status"] == "timeout"


@pytest.mark.parametrize("answer", ["egde", None, 3, Placement("cluod")])
def test_a_policy_that_names_no_tier_is_told_so(answer: object) -> None:
    """A wrong placement is an input error that names the tiers, never a traceback of a dictionary."""
    with pytest.raises(InputError, match=r"edge|Placement"):
        run(scenario(TWO_TIERS), [task()], Chosen(lambda seen: answer))


# ---------------------------------------------------------------------------------------------------------- closed loop


def test_closed_loop_users_wait_for_their_answers() -> None:
    """Two users without thinking time keep a server of one slot busy, and the next request comes when an answer has."""
    arrivals = {"kind": "closed", "users": 2, "think_s": 0.0}
    world = scenario({"edge": slots()}, workload={"tasks": {"kind": "modelled"}, "requests": 6, "arrivals": arrivals})
    records = run(world, [task()] * 6, always("edge"))
    assert records.requests["arrival_s"].tolist() == [0.0, 0.0, 2.0, 4.0, 6.0, 8.0]
    assert records.requests["end_s"].tolist() == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]


def test_closed_loop_users_think() -> None:
    """N users, R s of service and Z s of thinking: throughput N / (R + Z) while the server is no bottleneck."""
    arrivals = {"kind": "closed", "users": 5, "think_s": 8.0}
    world = scenario(
        {"edge": slots(slots=50)},
        workload={"tasks": {"kind": "modelled"}, "requests": 3000, "arrivals": arrivals, "homes": 5},
    )
    records = run(world, [task()] * 3000, always("edge"))
    throughput = 3000 / records.requests["end_s"].max()
    assert throughput == pytest.approx(5 / 10.0, rel=0.06)
    assert sorted(set(records.requests["home"].tolist())) == [0, 1, 2, 3, 4]
    assert (records.requests["latency_s"] == pytest.approx(2.0)) is True


# -------------------------------------------------------------------------------------------------------------- signals


def seen_waits(world: Scenario, arrival_s: list[float]) -> list[tuple[float, float]]:
    """(age, wait at the edge) as each request's policy saw it."""
    noted: list[tuple[float, float]] = []

    def note(seen: Observation) -> str:
        noted.append((seen.signals.age_s, seen.signals.wait_s("edge")))
        return "edge"

    run(world, [task()] * len(arrival_s), Chosen(note), arrival_s)
    return noted


def test_fresh_signals_show_the_queue_as_it_is() -> None:
    """Jobs of 2 s on one slot: with one in service and k waiting the next waits about 2 (k + 1) s, once one was served."""
    waits = seen_waits(scenario({"edge": slots()}), [0.0, 3.0, 3.0, 3.0])
    assert waits == [(0.0, 0.0), (0.0, 0.0), (0.0, 2.0), (0.0, 4.0)]


def test_stale_signals_show_the_past() -> None:
    """Measured every 10 s, the queue of 3 s is not seen before 10 s, and what is left of it then is still seen at 19 s, when it is gone."""
    world = scenario({"edge": slots()}, client={"signal_age_s": 10.0})
    waits = seen_waits(world, [0.0, 3.0, 3.0, 3.0, 3.0, 3.0, 19.0, 20.5])
    assert [age for age, _ in waits] == [0.0, 3.0, 3.0, 3.0, 3.0, 3.0, 9.0, 0.5]
    assert [wait for _, wait in waits] == [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 2.0]


def test_stale_signals_interpolate_transfer_times() -> None:
    """0.1 s and 1 MB/s each way are measured as they are; during an outage the estimate is infinite, never NaN."""
    noted: list[float] = []

    def note(seen: Observation) -> str:
        noted.append(seen.signals.transfer_s("edge", 500_000.0, 100_000.0))
        return "edge"

    fault = {"target": "home-edge", "at_s": (15.0,), "duration_s": 10.0}
    world = scenario({"edge": slots()}, links=(link("home", "edge"),), faults=(fault,), client={"signal_age_s": 10.0})
    run(world, [task()] * 4, Chosen(note), [5.0, 16.0, 22.0, 31.0])
    assert noted == pytest.approx([0.8, 0.8, float("inf"), 0.8])


def test_what_a_request_has_spent_is_what_the_ledger_says() -> None:
    """A policy sees the cost and energy of earlier steps to the last cent, decisions on the user's device included."""
    spent: list[tuple[float, float]] = []

    def note(seen: Observation) -> str:
        spent.append((seen.spent_usd, seen.spent_j))
        return turns(seen)

    world = scenario(
        {"edge": device(), "cloud": api()}, links=(link("home", "cloud", energy_up_j_per_mbyte=2.0, transfer_usd_per_gbyte=5.0),),
        client={"home_power_w": 4.0}, pricing={
            "tokens": {"cloud": {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 15.0}},
            "other": {"carbon_g_per_kwh": 400.0, "carbon_usd_per_tonne": 100.0},
        },
    )  # fmt: skip
    records = run(world, [task(Step(), Step(), Step())], Chosen(note, decision_s=0.5))
    usd, joules = records.subtasks["total_usd"], records.subtasks["energy_j"]
    assert [cost for cost, _ in spent] == pytest.approx([0.0, usd[0], usd[0] + usd[1]], rel=1e-12)
    assert [energy for _, energy in spent] == pytest.approx([0.0, joules[0], joules[0] + joules[1]], rel=1e-12)
    assert joules[0] == pytest.approx(1.1 * 60.0 + 0.5 * 4.0)


def test_estimated_service_is_what_an_idle_server_takes() -> None:
    """`service_s` of a device and of an endpoint without spread equals the simulated prefill and decoding time."""
    estimates: dict[str, float] = {}
    heavy = device()
    heavy["model"] = {**heavy["model"], "kv_bytes_per_token": 1e6}  # reading it takes 1 ms a token
    for tier in (device(), heavy, api()):

        def note(seen: Observation) -> str:
            estimates["edge"] = seen.signals.service_s("edge", 100, 21)
            return "edge"

        row = rows(run(scenario({"edge": tier}), [task()], Chosen(note)).subtasks)[0]
        assert row["prefill_s"] + row["decode_s"] == pytest.approx(estimates["edge"], rel=1e-9)


# --------------------------------------------------------------------------------------------------------- prompt caches


def growing(count: int) -> list[Step]:
    """Steps whose prompt is the one before with its answer and 40 more tokens."""
    return [Step(prompt_tokens=2000 + 61 * i) for i in range(count)]


def cached(tiers: dict[str, Any], placements: str, tools_s: dict[int, float] | None = None) -> list[int]:
    """Cached tokens of each step; `placements` names a tier per step by its first letter."""
    steps = [step._replace(tool_s=(tools_s or {}).get(i, 0.0)) for i, step in enumerate(growing(len(placements)))]
    names = {"e": "edge", "c": "cloud"}
    records = run(scenario(tiers), [task(*steps)], Chosen(lambda seen: names[placements[seen.call.position]]))
    return [row["cached_tokens"] for row in attempts_of(records, 0)]


def test_the_second_step_reads_the_cache() -> None:
    """A device holds the prompt and answer of the step before, in whole blocks of 16 tokens."""
    assert cached({"edge": device()}, "eee") == [0, 2021 // 16 * 16, 2082 // 16 * 16]
    assert cached({"edge": device(prefix_cache=False)}, "eee") == [0, 0, 0]


def test_switching_tiers_starts_cold_and_comes_back_to_what_is_left() -> None:
    """The other tier has never seen the conversation; back in time, the first still has the part it processed itself."""
    tiers = {"edge": device(cache_lifetime_s=100.0), "cloud": api(cache_lifetime_s=50.0)}
    assert cached(tiers, "ecec") == [0, 0, 2021 // 16 * 16, (2061 + 21) // 128 * 128]


def test_a_cache_is_lost_beyond_its_lifetime() -> None:
    """After a tool call longer than the lifetime the whole prompt is processed again."""
    tiers = {"edge": device(cache_lifetime_s=100.0), "cloud": api(cache_lifetime_s=50.0)}
    assert cached(tiers, "ee", {1: 99.0})[1] > 0
    assert cached(tiers, "ee", {1: 101.0})[1] == 0
    assert cached(tiers, "cc", {1: 49.0})[1] > 0
    assert cached(tiers, "cc", {1: 51.0})[1] == 0
    assert cached(tiers, "ece", {2: 101.0})[2] == 0


def test_short_prompts_are_not_cached_by_an_api() -> None:
    """Below 1024 tokens a hosted API gives no discount."""
    records = run(scenario({"cloud": api()}), [task(Step(prompt_tokens=500), Step(prompt_tokens=600))], always("cloud"))
    assert records.subtasks["cached_tokens"].tolist() == [0, 0]


def test_affinity_keeps_a_conversation_where_its_cache_is() -> None:
    """With three replicas, affinity serves every later step from the cache; taking turns never does."""
    tasks = [task(*growing(4)) for _ in range(3)]
    sticky = run(scenario({"edge": device(replicas=3, balancer="affinity")}), tasks, always("edge"))
    for request in range(3):
        steps = attempts_of(sticky, request)
        assert len({row["replica"] for row in steps}) == 1
        assert all(row["cached_tokens"] > 0 for row in steps[1:])
    turning = run(scenario({"edge": device(replicas=5, balancer="round-robin")}), tasks[:1], always("edge"))
    assert turning.subtasks["replica"].tolist() == [0, 1, 2, 3]
    assert not turning.subtasks["cached_tokens"].any()


def test_cached_tokens_are_billed_at_their_own_price() -> None:
    """3 $ a million fresh, 0.3 $ a million cached: what the cache held costs a tenth."""
    price = {"input_usd_per_mtok": 3.0, "cached_input_usd_per_mtok": 0.3, "output_usd_per_mtok": 15.0}
    records = run(
        scenario({"cloud": api()}, pricing={"tokens": {"cloud": price}}), [task(*growing(2))], always("cloud")
    )
    second = rows(records.subtasks)[1]
    assert second["cached_tokens"] == 2021 // 128 * 128
    assert second["api_input_usd"] == pytest.approx((2061 - 1920) * 3e-6)
    assert second["api_cached_usd"] == pytest.approx(1920 * 0.3e-6)


# --------------------------------------------------------------------------------------------------------------- errors


def test_a_backend_that_fails_stops_the_simulation_with_its_own_error() -> None:
    """What a model could not answer is raised as it is."""

    def refuse(call: ModelCall, model: str) -> Completion:
        raise InputError("here", "nothing recorded", "Record it")

    for arrivals in ({"kind": "poisson"}, {"kind": "closed", "users": 2, "think_s": 0.0}):
        world = scenario(
            {"edge": slots()}, workload={"tasks": {"kind": "modelled"}, "requests": 2, "arrivals": arrivals}
        )
        with pytest.raises(InputError, match="nothing recorded"):
            run(world, [task()] * 2, always("edge"), backend=ScriptedBackend(refuse))


def test_finished_requests_are_reported_one_by_one() -> None:
    """`on_end` and the policy's `learn` get every request's row when it ends, in order of ending."""
    ended: list[int] = []
    learned: list[int] = []
    policy = always("edge")
    policy.learn = lambda row: learned.append(row.request)  # type: ignore[method-assign]
    world = scenario({"edge": slots(slots=2)})
    tasks = [task(Step(), Step()), task()]
    workload = BuiltWorkload(tasks, tasks, scripted_agent, ScriptedBackend(scripted_answer), np.zeros(2))
    simulate(world, workload, policy, 1, lambda file: None, lambda row: ended.append(row.request))  # type: ignore[arg-type,return-value]
    assert ended == learned == [1, 0]
