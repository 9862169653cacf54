"""simulate(): one scenario, one policy, one seed -> records."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from simpy import Event

from sim.cost import LEDGER_ITEMS, TierRates, decision_charge, ledger, sla_penalties
from sim.draws import CommonDraws, component_rng
from sim.environment import FastEnvironment
from sim.faults import start_faults
from sim.policies.base import RoutingPolicy
from sim.process import RequestProcess
from sim.records import REQUEST_KINDS, SUBTASK_KINDS, Records, RequestRow, RowTable
from sim.scenario import Scenario
from sim.signals import LiveSignals, SampledSignals
from sim.study import rates_of, study_of
from sim.tier import Links, TierRuntime, TraceLoader, build_tiers
from sim.workload import BuiltWorkload
from sim.world import World


class Simulation(NamedTuple):
    """A simulation set up and not yet run; a learning environment steps `env` itself."""

    env: FastEnvironment
    world: World
    tiers: dict[str, TierRuntime]
    done: Event
    rates: tuple[TierRates[float], ...]


def simulate(
    scenario: Scenario, workload: BuiltWorkload, policy: RoutingPolicy, seed: int, load_trace: TraceLoader,
    on_end: Callable[[RequestRow], None] | None = None,
) -> Records:  # fmt: skip
    """Run every request to its end and return both record tables, ledger included.

    Same arguments, same records, to the byte. `on_end` is called with each finished request's row.
    """
    return finish(scenario, prepare(scenario, workload, policy, seed, load_trace, on_end))


def prepare(
    scenario: Scenario, workload: BuiltWorkload, policy: RoutingPolicy, seed: int, load_trace: TraceLoader,
    on_end: Callable[[RequestRow], None] | None = None,
) -> Simulation:  # fmt: skip
    """Build the world, let the policy study, and start sources and faults."""
    env = FastEnvironment()
    links = Links(env, scenario, seed, load_trace)
    tiers = build_tiers(env, scenario, seed, links)
    rates = tuple(rates_of(scenario).values())
    study = study_of(scenario, workload, seed)
    policy.prepare(study)
    age_s, power_w, prices = scenario.client.signal_age_s, scenario.client.home_power_w, scenario.pricing.other
    signals = (
        SampledSignals(env, age_s, tiers, rates, prices, power_w)
        if age_s
        else LiveSignals(tiers, rates, prices, power_w)
    )
    world = World(
        env, tiers=tiers, views=study.tiers, client=scenario.client, sla=scenario.sla, agent=workload.agent, backend=workload.backend,
        policy=policy, signals=signals, backoff_draws=CommonDraws(seed, "backoff"), subtask_rows=RowTable(SUBTASK_KINDS),
        request_rows=RowTable(REQUEST_KINDS), on_end=on_end,
    )  # fmt: skip
    start_faults(env, scenario.faults, seed, tiers, links.by_hop)
    if workload.arrival_s is None:
        done = _start_users(world, scenario, workload, seed)
    else:
        done = env.process(_open_source(world, scenario, workload))
    return Simulation(env, world, tiers, done, rates)


def finish(scenario: Scenario, simulation: Simulation) -> Records:
    """Run a simulation that was set up to its end and return both record tables."""
    with _garbage_collection_paused():
        simulation.env.run(until=simulation.done)
    return collect(scenario, simulation)


def _open_source(world: World, scenario: Scenario, workload: BuiltWorkload) -> Generator[Event, Any, None]:
    """Start each request at its time, then wait until the last has ended."""
    env, homes = world.env, scenario.workload.homes
    assert workload.arrival_s is not None
    for index, (arrival_s, task) in enumerate(zip(workload.arrival_s.tolist(), workload.requests, strict=True)):
        if arrival_s > env.now:
            yield env.timeout(arrival_s - env.now)
        RequestProcess(world, index, task, index % homes)
    if world.under_way:
        world.idle = env.event()
        yield world.idle


def _start_users(world: World, scenario: Scenario, workload: BuiltWorkload, seed: int) -> Event:
    """Closed loop: each user asks, waits for the answer, thinks, asks again, until all requests have been asked."""
    env, spec = world.env, scenario.workload
    rng = component_rng(seed, "think times")
    think_s = rng.exponential(spec.arrivals.think_s, len(workload.requests)) if spec.arrivals.think_s else None
    queue = iter(enumerate(workload.requests))

    def user(home: int) -> Generator[Event, Any, None]:
        for index, task in queue:
            if think_s is not None:
                yield env.timeout(float(think_s[index]))
            yield RequestProcess(world, index, task, home % spec.homes).process

    return env.all_of([env.process(user(number)) for number in range(spec.arrivals.users)])


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Nothing made in the event loop is cyclic for long; scanning the growing records again and again costs a quarter."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def collect(scenario: Scenario, simulation: Simulation) -> Records:
    """The record tables with the ledger's columns, of the requests that have ended."""
    subtasks = simulation.world.subtask_rows.columns()
    requests = simulation.world.request_rows.columns()
    order = np.argsort(requests["request"], kind="stable")
    requests = {name: column[order] for name, column in requests.items()}
    ended = np.isin(subtasks["request"], requests["request"])
    if not ended.all():  # a learning environment looks before the end
        subtasks = {name: column[ended] for name, column in subtasks.items()}
    prices = scenario.pricing.other
    subtasks.update(ledger(subtasks, simulation.rates, prices))
    _charge_decisions(scenario, subtasks)
    row = np.searchsorted(requests["request"], subtasks["request"])
    latency_s = requests["end_s"] - requests["arrival_s"]
    completed = requests["status"] == "completed"
    requests["latency_s"] = latency_s
    for item in (*LEDGER_ITEMS, "energy_j", "carbon_g", "decision_s", "decision_j"):
        requests[item] = np.bincount(row, subtasks[item], minlength=len(latency_s))
    requests["sla_usd"] = sla_penalties(latency_s, completed, scenario.sla.deadline_s, scenario.sla.penalty_usd)
    requests["total_usd"] = sum(requests[item] for item in LEDGER_ITEMS) + requests["sla_usd"]
    return Records(subtasks, requests)


def _charge_decisions(scenario: Scenario, subtasks: dict[str, Any]) -> None:
    """The user's device works while it decides: energy, its price and its carbon go to the decided subtask.

    What of the energy that is, is a column of its own, `decision_j`.
    """
    charges = decision_charge(subtasks["decision_s"], scenario.client.home_power_w, scenario.pricing.other)
    subtasks["decision_j"] = charges.energy_j
    for item in ("energy_j", "carbon_g", "energy_usd", "carbon_usd", "total_usd"):
        subtasks[item] = subtasks[item] + getattr(charges, item)
