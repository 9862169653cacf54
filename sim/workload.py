"""Builds what a scenario asks: the tasks of every request, the agent, the backend that answers, and the arrival times."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sim.answers import (
    TrainingSet,
    answers_of,
    of_our_models,
    qualities,
    read_isthmus,
    recorded_answers,
    training_set,
)
from sim.dialogue_workload import dialogue_workload
from sim.draws import component_rng
from sim.loading import data_path
from sim.m4a1_workload import m4a1_workload
from sim.scenario import TEXT_TASKS, Arrivals, BandwidthFile, InterCode, Modelled, RecordedTasks, RouteLLM, Scenario
from sim.text_tasks import text_tasks
from workloads import arrivals as processes
from workloads.agent import Agent, conversation_agent
from workloads.arrivals import Times
from workloads.backend import InferenceBackend
from workloads.bandwidth import BandwidthTrace
from workloads.errors import InputError
from workloads.modelled import ModelledWorkload, TokenModel, modelled_tasks, trace_task
from workloads.outcome_model import OutcomeModel
from workloads.readers import azure_llm, bandwidth_csv, burstgpt, mahimahi, mooncake, pensieve
from workloads.readers.trace_request import TraceRequest
from workloads.recording import RECORD_IT, Recording, ReplayBackend
from workloads.task import Task
from workloads.tasks.recorded import intercode_recording, routellm_recording

TRACE_READERS = {"azure_llm": azure_llm.read, "burstgpt": burstgpt.read, "mooncake": mooncake.read}


class BuiltWorkload(NamedTuple):
    """A workload ready to run: `requests[i]` is request i's task; `arrival_s` is None for closed-loop users."""

    tasks: Sequence[Task]
    requests: Sequence[Task]
    agent: Agent
    backend: InferenceBackend
    arrival_s: Times | None
    training: TrainingSet | None = None


def build_workload(
    scenario: Scenario, seed: int, scenario_path: Path, live: InferenceBackend | None = None
) -> BuiltWorkload:
    """Everything drawn here depends on the scenario's workload and the seed only, never on the policy.

    `live` answers where the scenario's `inference.backend` is `serve`.
    """
    spec = scenario.workload
    kind = spec.tasks.kind
    arrival_s = arrival_times(spec.arrivals, spec.requests, seed, scenario_path)
    if kind in ("modelled", "trace"):
        tasks = _modelled(scenario, seed, scenario_path)
        world = ModelledWorkload(qualities(scenario), _token_model(scenario))
        return BuiltWorkload(tasks, in_order(tasks, spec.requests, seed, shuffle=False), world.agent, world, arrival_s)
    if kind in ("dialogues", "m4a1"):
        drawn = kind == "dialogues"
        posed = dialogue_workload(scenario, seed) if drawn else m4a1_workload(scenario, scenario_path)
        requests = in_order(posed.tasks, spec.requests, seed, shuffle=spec.shuffle and not drawn)
        return BuiltWorkload(posed.tasks, requests, posed.agent, posed.backend, arrival_s, posed.training)
    if kind in TEXT_TASKS:
        asked, agent = text_tasks(scenario, scenario_path)
        requests = in_order(asked, spec.requests, seed, shuffle=spec.shuffle)
        answering = live or answers_of(scenario, asked, scenario_path)
        training = training_set(scenario, asked, scenario_path)
        return BuiltWorkload(asked, requests, agent, answering, arrival_s, training)
    recording, outcomes = _recorded(scenario, scenario_path)
    remedy = f"{RECORD_IT}, or set inference.on_miss: modelled" if outcomes else RECORD_IT
    backend = ReplayBackend(recording, outcomes if scenario.inference.on_miss == "modelled" else None, remedy)
    requests = in_order(recording.tasks, spec.requests, seed, shuffle=spec.shuffle)
    return BuiltWorkload(recording.tasks, requests, conversation_agent(), backend, arrival_s)


At = Callable[..., AbstractContextManager[None]]
"""(names and indices of a field) -> a block in which an InputError gets that field's place."""


def no_place(*location: str | int) -> AbstractContextManager[None]:
    """For callers who know no file and line."""
    del location
    return nullcontext()


def check_files(scenario: Scenario, scenario_path: Path, at: At = no_place) -> None:
    """Read every recorded file the scenario names as a run will; raises InputError for what no run could use."""
    for location, name in named_files(scenario):
        path = data_path(name, scenario_path)
        with at(*location):
            if not os.path.exists(path):
                raise InputError(
                    str(path), "no such file", "See docs/data.md for where recorded data comes from and goes"
                )
    spec = scenario.workload
    if spec.arrivals.kind == "trace":
        with at("workload", "arrivals", "path"):
            _trace_rows(spec.arrivals, spec.requests, scenario_path)
    if spec.tasks.kind in TEXT_TASKS:
        with at("workload", "tasks"):
            tasks = text_tasks(scenario, scenario_path).tasks
        if scenario.inference.backend == "replay":
            with at("inference", "recording"):
                recorded_answers(scenario, tasks, scenario_path)
        elif scenario.inference.backend == "modelled":
            qualities(scenario)
        with at("inference", "training"):
            training_set(scenario, tasks, scenario_path)
    elif spec.tasks.kind == "m4a1":
        with at("workload", "tasks"):
            m4a1_workload(scenario, scenario_path)
    elif spec.tasks.kind not in ("modelled", "trace", "dialogues"):
        with at("workload", "tasks"):
            _recorded(scenario, scenario_path)
    for number, link in enumerate(scenario.links):
        for name in ("up_trace", "down_trace"):
            file = getattr(link, name)
            if file is not None:
                with at("links", number, name):
                    load_trace(file, scenario_path)


def named_files(scenario: Scenario) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(field, path as written) of every recorded file."""
    spec = scenario.workload
    if spec.arrivals.kind == "trace" and spec.arrivals.path is not None:
        yield ("workload", "arrivals", "path"), spec.arrivals.path
    for name in ("path", "slm_path", "llm_path"):
        if hasattr(spec.tasks, name):
            yield ("workload", "tasks", name), getattr(spec.tasks, name)
    if scenario.inference.recording is not None and scenario.inference.backend == "replay":
        yield ("inference", "recording"), scenario.inference.recording
    if scenario.inference.training is not None:
        yield ("inference", "training"), scenario.inference.training
    for number, link in enumerate(scenario.links):
        for direction, file in (("up_trace", link.up_trace), ("down_trace", link.down_trace)):
            if file is not None:
                yield ("links", number, direction, "path"), file.path


def load_trace(file: BandwidthFile, scenario_path: Path) -> BandwidthTrace:
    """A recorded bandwidth trace, scaled."""
    trace = _read_trace(data_path(file.path, scenario_path), file.format, file.time_column, file.bandwidth_column)
    return trace if file.scale == 1.0 else trace.scaled(file.scale)


@lru_cache(maxsize=64)
def _read_trace(path: Path, form: str, time_column: str | None, bandwidth_column: str | None) -> BandwidthTrace:
    if form == "csv":
        return bandwidth_csv.read(path, time_column, bandwidth_column)
    return mahimahi.read(path) if form == "mahimahi" else pensieve.read(path)


def _token_model(scenario: Scenario) -> TokenModel:
    tasks = scenario.workload.tasks
    if not isinstance(tasks, Modelled):
        return TokenModel()
    return TokenModel(
        tasks.prompt_tokens, tasks.slm_output_tokens, tasks.llm_output_tokens, tasks.tool_tokens, tasks.tokens_cv,
        tasks.mean_subtasks, tasks.max_subtasks, tool_s=tasks.tool_s,
    )  # fmt: skip


def _modelled(scenario: Scenario, seed: int, scenario_path: Path) -> list[Task]:
    spec, rng = scenario.workload, component_rng(seed, "tasks")
    if isinstance(spec.tasks, Modelled):
        return list(
            modelled_tasks(
                min(spec.requests, spec.tasks.distinct_tasks), rng, tokens=_token_model(scenario), name=f"seed{seed}"
            )
        )
    rows = _trace_rows(spec.arrivals, spec.requests, scenario_path)
    quantiles = rng.random(len(rows))
    return [
        trace_task(i, row.prompt_tokens, row.output_tokens, row.prefix_blocks, float(q))
        for i, (row, q) in enumerate(zip(rows, quantiles, strict=True))
    ]


def _recorded(scenario: Scenario, scenario_path: Path) -> tuple[Recording, OutcomeModel | None]:
    tasks = scenario.workload.tasks
    names = {tier.role: tier.model_name or name for name, tier in reversed(scenario.tiers.items())}
    sizes = {tier.model_name or name: tier.model.bytes_per_token for name, tier in scenario.tiers.items()}
    if isinstance(tasks, RecordedTasks):
        recording = of_our_models(read_isthmus(data_path(tasks.path, scenario_path)), sizes)
        if "tasks" in recording.made:
            raise InputError(
                recording.source, "holds answers that are graded by the agent that asked for them",
                "Use the workload.tasks it was made of, and name it in inference.recording",
            )  # fmt: skip
        return recording, None
    if set(names) != {"slm", "llm"}:
        raise InputError(
            "tiers", "recorded outcomes of two models need a tier of role slm and one of role llm", "Add the other"
        )
    pair = (names["slm"], names["llm"])
    rates = tuple(sizes[name] for name in pair)
    if isinstance(tasks, RouteLLM):
        return _read_routellm(data_path(tasks.path, scenario_path), pair, (tasks.slm, tasks.llm), rates), None
    assert isinstance(tasks, InterCode)
    paths = (data_path(tasks.slm_path, scenario_path), data_path(tasks.llm_path, scenario_path))
    return _read_intercode(paths, pair, rates, tasks.observation_tool_s)


@lru_cache(maxsize=4)
def _read_routellm(
    path: Path, models: tuple[str, ...], columns: tuple[str, ...], sizes: tuple[float, ...]
) -> Recording:
    return routellm_recording(path, dict(zip(models, columns, strict=True)), dict(zip(models, sizes, strict=True)))


@lru_cache(maxsize=2)
def _read_intercode(
    paths: tuple[Path, ...], models: tuple[str, ...], sizes: tuple[float, ...], tool_s: float
) -> tuple[Recording, OutcomeModel]:
    return intercode_recording(dict(zip(models, paths, strict=True)), dict(zip(models, sizes, strict=True)), tool_s)


def in_order(tasks: Sequence[Task], count: int, seed: int, *, shuffle: bool) -> list[Task]:
    """Tasks for `count` requests: a new random order each time all have been used."""
    rng = component_rng(seed, "task order")
    requests: list[Task] = []
    while len(requests) < count:
        order = rng.permutation(len(tasks)) if shuffle or requests else np.arange(len(tasks))
        requests += [tasks[i] for i in order[: count - len(requests)]]
    return requests


def arrival_times(spec: Arrivals, count: int, seed: int, scenario_path: Path) -> Times | None:
    """When `count` requests arrive, s; None for closed-loop users."""
    rng = component_rng(seed, "arrivals")
    if spec.kind == "closed":
        return None
    if spec.kind == "trace":
        rows = _trace_rows(spec, count, scenario_path)
        return np.array([row.time_s for row in rows]) * spec.time_scale
    draw: dict[str, Callable[[], Times]] = {
        "constant": lambda: processes.constant(count, spec.rate_per_s),
        "poisson": lambda: processes.poisson(count, spec.rate_per_s, rng),
        "gamma": lambda: processes.gamma(count, spec.rate_per_s, spec.cv, rng),
        "mmpp": lambda: processes.mmpp(count, spec.rate_per_s, spec.burst_factor, spec.burst_share, spec.burst_s, rng),
        "diurnal": lambda: processes.diurnal(count, spec.rate_per_s, spec.period_s, spec.amplitude, rng),
    }
    return draw[spec.kind]()


def _trace_rows(spec: Arrivals, count: int, scenario_path: Path) -> tuple[TraceRequest, ...]:
    assert spec.path is not None
    assert spec.format is not None
    path = data_path(spec.path, scenario_path)
    rows = _read_rows(path, spec.format, count)
    if len(rows) < count:
        raise InputError(
            str(path),
            f"holds {len(rows)} requests, {count} are asked for",
            f"Set workload.requests to at most {len(rows)}",
        )
    return rows


@lru_cache(maxsize=8)
def _read_rows(path: Path, form: str, count: int) -> tuple[TraceRequest, ...]:
    return tuple(itertools.islice(TRACE_READERS[form](path), count))
