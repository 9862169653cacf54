"""How true the simulated times are: real deployments and their simulated twin under the same open-loop load, side by side.

A tier's real system is measured first under callers who wait for their answers (calibration: step times and the overhead of a
call, see sim/step_fit.py), then under arrivals that do not wait, at shares of its measured capacity. The simulator then gets the
same arrivals, the same calls with the token counts they had, and the same links; only times are predicted. Nothing is fitted to
the runs that are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sim.draws import component_rng
from sim.scenario import TEXT_TASKS, Scenario
from sim.step_fit import StepFit, fit_step_times
from sim.text_tasks import text_tasks
from sim.tier import TraceLoader
from sim.twin import LinkDelays, Twin, TwinTimes
from sim.workload import load_trace
from workloads import arrivals
from workloads.agent import Agent
from workloads.call_mix import CallMix, full_callers, single_call, whole_runs
from workloads.errors import InputError, suggest
from workloads.task import Task
from workloads.timed_calls import Measurement, TimedRequest, all_calls

Floats = npt.NDArray[np.float64]
Delay = Callable[[bool, int, int, float], float]
Measure = Callable[[bool], Sequence[Measurement]]
"""One pass over the calibration's grid, warming the system up first if told so."""
_WARM_SHARE = 0.1
"""Requests due in this first share of a run load the system but are left out of the percentiles, measured and simulated."""
_FEWEST_REQUESTS = 20


class System(Protocol):
    """A model that really runs, and the generator that loads it."""

    def open_loop(
        self, requests: Sequence[Task], agent: Agent, due_s: Sequence[float], delay_s: Delay | None = None
    ) -> list[TimedRequest]:
        """Requests that start when they are due, whatever the answers do."""
        ...

    def closed_loop(self, requests: Sequence[Task], agent: Agent, callers: int, seconds: float) -> list[TimedRequest]:
        """Callers who ask again as soon as they are answered."""
        ...


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
    def model_name(self) -> str:
        """The name a backend knows the tier's model by."""
        return self.scenario.tiers[self.tier].model_name or self.tier

    @property
    def agent(self) -> Agent:
        """Who runs the comparison's requests."""
        return self.comparison.agent if self.whole_runs else single_call

    @property
    def seed(self) -> int:
        """The scenario's first seed."""
        return self.scenario.seeds[0]

    def requests(self, mix: CallMix, count: int, rng: np.random.Generator) -> list[Task]:
        """Requests of the kind that is compared."""
        return whole_runs(mix.tasks, count, rng) if self.whole_runs else mix.draw(count, rng)


def subject_of(
    scenario: Scenario, scenario_path: Path, tier: str | None = None, *, whole_runs: bool = False
) -> Subject:
    """What is measured of a scenario: one tier with a model of its own, asked the scenario's tasks.

    Without `tier` the only one that is served. Raises InputError for a tier that cannot be measured.
    """
    served = [name for name, spec in scenario.tiers.items() if spec.serve is not None]
    name = tier or (served[0] if len(served) == 1 else None)
    if name is None or name not in scenario.tiers:
        problem = f"no tier {tier!r}" if tier else f"{len(served)} tiers are served"
        raise InputError("--tier", problem, suggest(tier or "", served))
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
    mixes = [CallMix(tasks[half::2], agent, spec.serve.max_tokens) for half in (0, 1)]
    return Subject(scenario, name, mixes[0], mixes[1], lambda file: load_trace(file, scenario_path), whole_runs)


class Settings(NamedTuple):
    """How much is measured: shares of capacity, runs of each, and how long each run's arrivals last."""

    loads: tuple[float, ...] = (0.3, 0.6, 0.85)
    runs: int = 3
    seconds: float = 12.0


class Figures(NamedTuple):
    """Requests per second from the first arrival to the last end, and end-to-end latencies."""

    throughput_per_s: float
    p50_s: float
    p95_s: float


class Comparison(NamedTuple):
    """One run at one load."""

    load: float
    offered_per_s: float
    requests: int
    failed: int
    lateness_p99_s: float
    """How late the load generator itself was."""
    measured: Figures
    simulated: Figures

    @property
    def errors(self) -> Figures:
        """Simulated over measured, less 1."""
        return Figures(*(s / m - 1.0 for s, m in zip(self.simulated, self.measured, strict=True)))


class Check(NamedTuple):
    """A calibration run simulated on the step times fitted to it: completions per second."""

    callers: int
    measured_per_s: float
    simulated_per_s: float


class Calibration(NamedTuple):
    """Fitted step times, and how well they simulate the runs they were fitted to."""

    fit: StepFit
    checks: tuple[Check, ...]


class Fidelity(NamedTuple):
    """Everything `fidelity` found out; comparisons in the order of their loads."""

    subject: Subject
    capacity_per_s: float
    calibration: Calibration
    comparisons: tuple[Comparison, ...]


def run_calibration(subject: Subject, measure: Measure, repeats: int, say: Callable[[str], None]) -> Calibration:
    """Measure the grid several times and fit the tier's step times."""
    grid: list[Measurement] = []
    for repeat in range(repeats):
        say(f"measuring the grid, {repeat + 1} of {repeats}")
        grid += measure(repeat == 0)
    return _calibration(subject, grid)


def _calibration(subject: Subject, grid: Sequence[Measurement]) -> Calibration:
    fit = fit_grid(grid)
    return Calibration(fit, tuple(checked(grid, _twin(subject, fit))))


def _twin(subject: Subject, fit: StepFit) -> Twin:
    return Twin(subject.scenario, subject.tier, fit.times, subject.seed, subject.load_trace)


def run_fidelity(
    subject: Subject, system: System, measure: Measure, settings: Settings, say: Callable[[str], None]
) -> Fidelity:
    """Measure capacity, calibrate, load the real system, and simulate the same.

    The calibration is repeated between the rounds of runs, so that a machine whose speed drifts is measured as it was on average.
    """
    rng = component_rng(subject.seed, "fidelity")
    say("warming up, measuring the grid of the calibration")
    grid = list(measure(True))
    capacity_per_s = _capacity_per_s(subject, system, settings.seconds, rng)
    say(f"capacity: {capacity_per_s:.2f} requests/s")
    delays = LinkDelays(subject.scenario, subject.tier, subject.seed, subject.load_trace)
    ran = []
    for run in range(settings.runs):
        for load in rng.permutation(settings.loads).tolist():
            say(f"run {run + 1} of {settings.runs} at {load:.0%}")
            ran.append(_drive(subject, system, delays, load, load * capacity_per_s, settings.seconds, rng))
        if run + 1 < settings.runs:
            say("measuring the grid again")
            grid += measure(False)
    say("simulating the same")
    calibration = _calibration(subject, grid)
    twin = _twin(subject, calibration.fit)
    compared = [_compare(load, rate, measured, twin.open_loop(measured)) for load, rate, measured in ran]
    compared.sort(key=lambda comparison: comparison.load)
    return Fidelity(subject, capacity_per_s, calibration, tuple(compared))


def fit_grid(grid: Sequence[Measurement]) -> StepFit:
    """Step times from all calibration runs, and the overhead of a call from those with one caller."""
    loads = [list(all_calls(measurement.requests)) for measurement in grid]
    alone = [call for measurement, load in zip(grid, loads, strict=True) if measurement.callers == 1 for call in load]
    return fit_step_times(loads, alone)


def checked(grid: Sequence[Measurement], twin: Twin) -> list[Check]:
    """Completions per second of the calibration's runs, measured and simulated, added up for each number of callers."""
    sums: dict[int, list[float]] = {}
    for measurement in grid:
        requests = [request for request in measurement.requests if not request.failure]
        ended_s = twin.closed_loop(requests, measurement.callers).ended_s
        simulated = [request._replace(ended_s=end) for request, end in zip(requests, ended_s.tolist(), strict=True)]
        total = sums.setdefault(measurement.callers, [0.0, 0.0, 0.0])
        rates = measurement.per_s(), measurement._replace(requests=tuple(simulated)).per_s(), 1.0
        sums[measurement.callers] = [a + b for a, b in zip(total, rates, strict=True)]
    return [Check(callers, a / n, b / n) for callers, (a, b, n) in sorted(sums.items())]


def _capacity_per_s(subject: Subject, system: System, seconds: float, rng: np.random.Generator) -> float:
    """Requests per second with more callers than a full batch holds."""
    tier = subject.scenario.tiers[subject.tier]
    callers = full_callers(tier.max_batch)
    requests = subject.requests(subject.calibration, 64 * callers, rng)
    measurement = Measurement(callers, seconds, tuple(system.closed_loop(requests, subject.agent, callers, seconds)))
    if not measurement.per_s() > 0.0:
        reason = next((request.failure for request in measurement.requests if request.failure), "too slow")
        problem = f"no request was completed within {seconds:g} s ({reason})"
        raise InputError(f"tier {subject.tier!r}", problem, "See that the model answers, or measure for longer")
    return measurement.per_s()


_Ran = tuple[float, float, list[TimedRequest]]


def _drive(
    subject: Subject, system: System, delays: LinkDelays, load: float, rate_per_s: float, seconds: float, rng: np.random.Generator,
) -> _Ran:  # fmt: skip
    count = max(_FEWEST_REQUESTS, round(rate_per_s * seconds))
    requests = subject.requests(subject.comparison, count, rng)
    due_s = arrivals.poisson(count, rate_per_s, rng)
    return load, rate_per_s, system.open_loop(requests, subject.agent, due_s.tolist(), delays)


def _compare(load: float, rate_per_s: float, measured: Sequence[TimedRequest], twin: TwinTimes) -> Comparison:
    answered = np.array([not request.failure for request in measured])
    due_s = np.array([request.due_s for request in measured])
    lateness_s = np.array([request.begun_s for request in measured]) - due_s
    if not answered.any():
        raise InputError("fidelity", f"no request was answered ({measured[0].failure})", "See that the model answers")
    real = TwinTimes(np.array([r.ended_s for r in measured]), np.array([r.latency_s for r in measured]))
    return Comparison(
        load, rate_per_s, len(measured), int((~answered).sum()), float(np.quantile(lateness_s, 0.99)),
        _figures(real, due_s, answered), _figures(twin, due_s, answered),
    )  # fmt: skip


def _figures(times: TwinTimes, due_s: Floats, answered: npt.NDArray[np.bool_]) -> Figures:
    counted = answered & (due_s >= _WARM_SHARE * due_s[-1])
    p50_s, p95_s = np.quantile(times.latency_s[counted if counted.any() else answered], [0.5, 0.95])
    span_s = times.ended_s[answered].max() - due_s[0]
    return Figures(float(answered.sum() / span_s), float(p50_s), float(p95_s))


def medians(figures: Iterable[Figures]) -> Figures:
    """The median of each figure."""
    return Figures(*np.median(np.array(list(figures)), axis=0).tolist())
