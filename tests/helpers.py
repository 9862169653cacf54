"""Small scenarios, scripted agents and policies for tests that run whole simulations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from serve.cluster import run_parallel
from sim.cells import Cell, expand_cells, run_cell
from sim.experiment import _run_cells
from sim.loading import LoadedScenario, load_scenario
from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy
from sim.records import Records
from sim.run_store import RunStore
from sim.scenario import Scenario
from sim.simulation import simulate
from sim.workload import BuiltWorkload, build_workload, load_trace
from workloads.agent import Agent, AgentRun
from workloads.backend import InferenceBackend, ScriptedBackend
from workloads.task import Attachment, Completion, ModelCall, Outcome, Task

PHASES = ("backoff_s", "tool_s", "decision_s", "uplink_s", "queue_s", "prefill_s", "decode_s", "downlink_s")
NOWHERE = Path("nowhere") / "scenario.yaml"
MBYTE_PER_S = {"up_mbps": 8.0, "down_mbps": 8.0, "propagation_s": 0.1}
"""A link of 1e6 bytes/s and 0.1 s in both directions."""


def slots(role: str = "slm", mean_s: float = 2.0, **fields: Any) -> dict[str, Any]:
    """A tier that serves one request at a time for exactly `mean_s`."""
    service = {"distribution": "constant", "mean_s": mean_s, "slots": fields.pop("slots", 1)}
    return {"role": role, "model": {}, "service": service, **fields}


def api(role: str = "llm", **fields: Any) -> dict[str, Any]:
    """An endpoint with 0.4 s to the first token and 10 tokens/s; fields of the endpoint."""
    return {
        "role": role,
        "model": {"quality": 1.0},
        "endpoint": {"ttft_median_s": 0.4, "tokens_per_s_median": 10.0, **fields},
    }


def device(role: str = "slm", **fields: Any) -> dict[str, Any]:
    """A batching device: prefill at 1000 tokens/s, decoding at 0.05 s a step, 60 W busy, 3 $ an hour."""
    hardware = {
        "peak_tflops": 2e-9, "flops_efficiency": 1.0, "memory_bandwidth_gbytes_s": 1.0, "bandwidth_efficiency": 1.0,
        "memory_gbytes": 16.0, "step_overhead_s": 0.0, "static_power_w": 20.0, "dynamic_power_w": 40.0, "price_usd": 13149.0,
        "lifetime_years": 1.0,
    }  # fmt: skip
    model = {"parameters_b": 1e-9, "weight_gbytes": 0.05, "kv_bytes_per_token": 0.0}
    return {"role": role, "model": model, "device": hardware, **fields}


def link(a: str, b: str, **fields: Any) -> dict[str, Any]:
    """A hop of 1e6 bytes/s and 0.1 s; fields of the profile, or `shared`, `per_home` of the hop."""
    hop: dict[str, Any] = {
        name: fields.pop(name) for name in ("shared", "per_home", "up_trace", "down_trace") if name in fields
    }
    return {"between": (a, b), "link": {**MBYTE_PER_S, **fields}, **hop}


def scenario(tiers: Mapping[str, Any], **fields: Any) -> Scenario:
    """A validated scenario; without arrivals of its own the requests come as the test says (see `run`)."""
    document: dict[str, Any] = {
        "name": "test", "workload": {"tasks": {"kind": "modelled"}, "requests": 1}, "tiers": dict(tiers),
        "policies": ("all-slm",), "seeds": (1,), "client": {"stream": False},
    }  # fmt: skip
    return Scenario.model_validate({**document, **fields})


class Step(NamedTuple):
    """One model call of a scripted request and the answer it gets."""

    upload_bytes: int = 500_000
    download_bytes: int = 100_000
    prompt_tokens: int = 100
    output_tokens: int = 21
    tool_s: float = 0.0
    prefill_s: float = float("nan")
    decode_s: float = float("nan")


def task(*steps: Step, last_tool_s: float = 0.0, attachments: Sequence[Attachment] = (), score: float = 1.0) -> Task:
    """A request that makes these calls whatever the answers are."""
    return Task("t", attachments=tuple(attachments), latent=(steps or (Step(),), last_tool_s, score))


def scripted_agent(task: Task) -> AgentRun:
    """Makes the calls of a scripted task."""
    steps, last_tool_s, score = task.latent
    for position, step in enumerate(steps):
        yield ModelCall(task, position, (), step.prompt_tokens, step.upload_bytes, step.tool_s)
    return Outcome(score, "", last_tool_s)


def scripted_answer(call: ModelCall, model: str) -> Completion:
    """The answer of a scripted task to this call."""
    step: Step = call.task.latent[0][call.position]
    return Completion(
        model,
        "",
        call.prompt_tokens,
        step.output_tokens,
        step.download_bytes,
        prefill_s=step.prefill_s,
        decode_s=step.decode_s,
    )


class Chosen(RoutingPolicy):
    """Places as a function of the observation says."""

    def __init__(self, choose: Callable[[Observation], Any], **options: Any) -> None:
        super().__init__(PolicyOptions(**options))
        self._choose = choose

    def place(self, seen: Observation) -> Any:
        """Ask the function; a tier's name stands for its placement."""
        answer = self._choose(seen)
        return Placement(answer) if isinstance(answer, str) else answer


def placing(placement: Placement) -> Chosen:
    """A policy that always answers with this placement."""
    return Chosen(lambda seen: placement)


def always(tier: str, **options: Any) -> Chosen:
    """A policy that knows one tier only."""
    return Chosen(lambda seen: tier, **options)


def run(
    world: Scenario, tasks: Sequence[Task], policy: RoutingPolicy, arrival_s: Sequence[float] | None = None, seed: int = 1,
    backend: InferenceBackend | None = None, agent: Agent = scripted_agent,
) -> Records:  # fmt: skip
    """Simulate scripted requests that arrive at these times (all at 0 unless told; None in a scenario with closed arrivals)."""
    closed = world.workload.arrivals.kind == "closed"
    times = None if closed else np.array([0.0] * len(tasks) if arrival_s is None else arrival_s)
    workload = BuiltWorkload(tasks, tasks, agent, backend or ScriptedBackend(scripted_answer), times)
    return simulate(world, workload, policy, seed, lambda file: load_trace(file, NOWHERE))


def run_built(world: Scenario, policy: RoutingPolicy, seed: int = 1) -> Records:
    """Simulate the scenario's own workload."""
    return simulate(world, build_workload(world, seed, NOWHERE), policy, seed, lambda file: load_trace(file, NOWHERE))


def rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A record table as a list of rows."""
    columns = {name: column.tolist() for name, column in table.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def attempts_of(records: Records, request: int) -> list[dict[str, Any]]:
    """The rows of one request in their order."""
    return [row for row in rows(records.subtasks) if row["request"] == request]


def phases(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(phase, seconds) of an attempt for the phases that took time, to the microsecond."""
    return [(name, round(row[name], 6)) for name in PHASES if round(row[name], 6)]


def load_text(folder: Path, text: str, settings: Sequence[str] = ()) -> LoadedScenario:
    """A scenario file with this text, loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scenario.yaml"
    path.write_text(text, encoding="utf-8")
    return load_scenario(path, settings)


def file_hashes(folder: Path, pattern: str = "*.parquet") -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob(pattern))
    }


def spaced(count: int, gap_s: float) -> Iterator[float]:
    """Evenly spaced arrival times from 0."""
    return (i * gap_s for i in range(count))


SWEEP = """
name: sweep
workload:
  tasks: {kind: modelled, tool_s: 0.1}
  requests: 300
  arrivals: {kind: mmpp, rate_per_s: 0.4}
  homes: 2
tiers:
  edge: {role: slm, model: llama-3.2-3b-int4, device: jetson-orin-nx, replicas: 2, balancer: affinity}
  cloud: {role: llm, model: gpt-4o, endpoint: gpt-4o-class}
links:
  - {between: [home, edge], link: wifi, per_home: true}
  - {between: [edge, cloud], link: {profile: wired, bandwidth_cv: 0.5}}
faults:
  - {target: edge, kind: crash, mean_time_between_s: 200, duration_s: 20}
client: {attempt_timeout_s: 20, signal_age_s: 5}
policies:
  - all-slm
  - all-llm
  - {policy: random, p: 0.5}
  - {policy: prompt-length, threshold_tokens: 300}
  - {policy: oracle-slm-usage, accuracy_share: 0.8}
seeds: [1, 2]
"""
"""Ten cells in which everything random happens, enough requests in all to be worth two workers."""


def sweep(folder: Path, out: Path, workers: int = 1, settings: Sequence[str] = ()) -> Path:
    """Simulate SWEEP without metrics or report; returns the run's folder."""
    loaded = load_text(folder, SWEEP, settings)
    store = RunStore(out, loaded, expand_cells(loaded))
    store.start()
    pending = [cell for cell in store.cells if not store.finished(cell)]
    results: Iterable[tuple[Cell, Records]] = (
        run_parallel(run_cell, pending, workers) if workers > 1 else ((cell, run_cell(cell)) for cell in pending)
    )
    _run_cells(pending, store, results, Console(quiet=True))
    return store.folder
