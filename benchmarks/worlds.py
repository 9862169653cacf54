"""What Isthmus runs in the benchmark: three worlds, each simulated to complete record tables with their ledger."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.peers import DYNOSIM_ANSWER_TOKENS, DYNOSIM_PROMPT_TOKENS, DYNOSIM_REQUESTS_PER_S
from sim.loading import load_scenario
from sim.policies import build_policy
from sim.records import Records
from sim.scenario import Scenario
from sim.simulation import prepare, simulate
from sim.workload import BuiltWorkload, build_workload, load_trace
from workloads.arrivals import poisson
from workloads.modelled import ModelledWorkload, trace_task

HERE = Path(__file__).resolve().parent


def run_file(name: str, requests: int, seed: int = 1) -> Records:
    """Simulate benchmarks/`name`.yaml with `requests` requests: draw the tasks, run the events, fill the ledger."""
    scenario, path = _scenario(name, requests)
    spec = scenario.policies[0]
    policy = build_policy(spec.policy, spec.options, HERE)
    workload = build_workload(scenario, seed, path)
    return simulate(scenario, workload, policy, seed, lambda file: load_trace(file, path))


def events_per_subtask(name: str, requests: int = 500, seed: int = 1) -> float:
    """SimPy events that one subtask costs in benchmarks/`name`.yaml."""
    scenario, path = _scenario(name, requests)
    spec = scenario.policies[0]
    policy = build_policy(spec.policy, spec.options, HERE)
    workload = build_workload(scenario, seed, path)
    simulation = prepare(scenario, workload, policy, seed, lambda file: load_trace(file, path))
    events = 0
    while not simulation.done.processed:
        simulation.env.step()
        events += 1
    return events / len(simulation.world.subtask_rows.columns()["request"])


def one_device(requests: int, seed: int = 1) -> Records:
    """What `peers.dynosim_replay` simulates: one replica with continuous batching, requests of one call and one size."""
    scenario = Scenario.model_validate(
        {
            "name": "one-device",
            "workload": {"tasks": {"kind": "modelled"}, "requests": requests},
            "tiers": {"edge": {"role": "slm", "model": "llama-3-8b", "device": "h100-80gb", "max_batch": 256}},
            "policies": ("all-slm",),
        }
    )
    tasks = [trace_task(i, DYNOSIM_PROMPT_TOKENS, DYNOSIM_ANSWER_TOKENS, (), 0.0) for i in range(requests)]
    world = ModelledWorkload({"edge": 0.0})
    arrival_s = poisson(requests, DYNOSIM_REQUESTS_PER_S, np.random.default_rng(seed))
    workload = BuiltWorkload(tasks, tasks, world.agent, world, arrival_s)
    return simulate(scenario, workload, build_policy("all-slm", {}, HERE), seed, lambda file: load_trace(file, HERE))


def _scenario(name: str, requests: int) -> tuple[Scenario, Path]:
    """A scenario of so many requests; the file is read once, as reading it is no part of what is timed."""
    path = HERE / f"{name}.yaml"
    scenario = _loaded(path)
    workload = scenario.workload.model_copy(update={"requests": requests})
    return scenario.model_copy(update={"workload": workload}), path


@cache
def _loaded(path: Path) -> Scenario:
    return load_scenario(path).scenario
