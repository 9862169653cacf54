"""What `calibrate` and `fidelity` measure: one served tier of a scenario, and the calls it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from sim.draws import component_rng
from sim.scenario import TEXT_TASKS, Scenario, Tier
from sim.text_tasks import text_tasks
from sim.tier import TraceLoader
from sim.workload import load_trace
from workloads.agent import Agent
from workloads.call_mix import CallMix, single_call, whole_runs
from workloads.errors import InputError, suggest
from workloads.task import Task


class Subject(NamedTuple):
    """What is compared: a tier, and what it is asked. Calibration and comparison draw from different tasks."""

    scenario: Scenario
    tier: str
    calibration: CallMix
    comparison: CallMix
    load_trace: TraceLoader
    whole_runs: bool = False
    """Requests are the agent's whole runs instead of single calls."""

    @property
    def alone(self) -> Scenario:
        """The scenario with this tier only: what is to be deployed."""
        return self.scenario.model_copy(update={"tiers": {self.tier: self.scenario.tiers[self.tier]}})

    @property
    def spec(self) -> Tier:
        """The tier as the scenario describes it."""
        return self.scenario.tiers[self.tier]

    @property
    def source(self) -> str:
        """The model that is served."""
        return (self.spec.serve and self.spec.serve.source) or ""

    @property
    def model_name(self) -> str:
        """The name a backend knows the tier's model by."""
        return self.spec.model_name or self.tier

    @property
    def agent(self) -> Agent:
        """Who runs the comparison's requests."""
        return self.comparison.agent if self.whole_runs else single_call

    @property
    def seed(self) -> int:
        """The scenario's first seed."""
        return self.scenario.seeds[0]

    def rng(self, component: str) -> np.random.Generator:
        """Draws of one part of the measurement, which follow from the scenario's seed."""
        return component_rng(self.seed, component)

    def requests(self, mix: CallMix, count: int, rng: np.random.Generator) -> list[Task]:
        """Requests of the kind that is compared."""
        return whole_runs(mix.tasks, count, rng) if self.whole_runs else mix.draw(count, rng)


def subject_of(
    scenario: Scenario, scenario_path: Path, tier: str | None = None, *, whole_runs: bool = False
) -> Subject:
    """What is measured of a scenario: one tier with a model of its own, asked the scenario's tasks.

    Without `tier` the only one that is served. Raises InputError for a tier that cannot be measured.
    """
    name = tier or _only_served(scenario)
    if name not in scenario.tiers:
        raise InputError("--tier", f"no tier {name!r}", suggest(name, scenario.tiers))
    spec = scenario.tiers[name]
    if spec.serve is None or spec.serve.source is None:
        raise InputError(
            f"field tiers.{name}.serve", "names no model of our own", "Give it a source; APIs are not measured"
        )
    if spec.replicas != 1 or spec.serve.max_replicas not in (None, 1):
        remedy = f"Measure one: --set tiers.{name}.replicas=1 --set tiers.{name}.serve.max_replicas=null"
        raise InputError(f"field tiers.{name}.replicas", "nobody knows which of several replicas answered", remedy)
    if scenario.workload.tasks.kind not in TEXT_TASKS:
        remedy = f"Use tasks of a kind with text: {', '.join(TEXT_TASKS)}"
        raise InputError("field workload.tasks.kind", f"{scenario.workload.tasks.kind!r} asks no text", remedy)
    tasks, agent = text_tasks(scenario, scenario_path)
    if len(tasks) < 2:
        raise InputError(
            "field workload.tasks", "holds one task only", "Calibration and comparison need tasks of their own"
        )
    # In an order of chance: task sets take turns between their families, and both halves must hold all of them.
    order = component_rng(scenario.seeds[0], "fidelity/tasks").permutation(len(tasks))
    mixes = [CallMix([tasks[i] for i in order[half::2]], agent, spec.serve.max_tokens) for half in (0, 1)]
    return Subject(scenario, name, mixes[0], mixes[1], lambda file: load_trace(file, scenario_path), whole_runs)


def _only_served(scenario: Scenario) -> str:
    served = [name for name, spec in scenario.tiers.items() if spec.serve is not None]
    if not served:
        remedy = "Say which model is behind a tier, e.g. serve: {source: pair/llm}"
        raise InputError("field tiers", "no tier has a live model", remedy)
    if len(served) > 1:
        raise InputError("--tier", f"is missing, and {len(served)} tiers have live models", suggest("", served))
    return served[0]
