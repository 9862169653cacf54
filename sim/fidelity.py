"""How true the simulated times are: real deployments and their simulated twin under the same open-loop load, side by side.

A tier's real system is measured first under callers who wait for their answers (calibration: step times and the overhead of a
call, see sim/step_fit.py), then under arrivals that do not wait, at shares of its measured capacity. The simulator then gets the
same arrivals, the same calls with the token counts they had, and the same links; only times are predicted. Nothing is fitted to
the runs that are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sim.fidelity_subject import Subject
from sim.step_fit import StepFit, fit_step_times
from sim.twin import LinkDelays, Twin, TwinTimes
from workloads.agent import Agent
from workloads.call_mix import full_callers
from workloads.errors import InputError
from workloads.task import Task
from workloads.timed_calls import Measurement, TimedRequest, all_calls

Floats = npt.NDArray[np.float64]
Delay = Callable[[bool, int, int, float], float]
Measure = Callable[[bool], Sequence[Measurement]]
"""One pass over the calibration's grid, warming the system up first if told so."""
LOADS = (0.3, 0.6, 0.85)
"""Shares of capacity: mostly alone, half full, and where a line forms."""
_WARM_SHARE = 0.1
"""Requests due in this first share of a run load the system but are left out of the percentiles, measured and simulated."""
_FEWEST_REQUESTS = 20
_TIMES_OVER = 3


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


class Plan(NamedTuple):
    """How much is measured: shares of capacity, runs of each, how long each run's arrivals last, and a cell of the grid."""

    loads: tuple[float, ...] = LOADS
    runs: int = 3
    seconds: float = 20.0
    cell_s: float = 3.0

    def check(self) -> None:
        """Raise InputError for what cannot be measured."""
        for load in self.loads:
            if not 0.0 < load < 1.0:
                remedy = "Allowed: a share of capacity above 0 and below 1; beyond it the line grows for as long as the load lasts"
                raise InputError(f"--load {load:g}", "not a load that a system stands", remedy)
        for option, seconds in (("--seconds", self.seconds), ("--cell-seconds", self.cell_s)):
            if not 0.0 < seconds < math.inf:
                raise InputError(f"{option} {seconds:g}", "not a length of time", "Allowed: seconds above 0")


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
    """Fitted step times, how well they simulate the runs they were fitted to, and the calls of those runs."""

    fit: StepFit
    checks: tuple[Check, ...]
    answered: int
    failed: int


class Fidelity(NamedTuple):
    """Everything `fidelity` found out; comparisons in the order of their loads. Capacity was measured apart from the grid."""

    subject: Subject
    plan: Plan
    capacity: Check
    calibration: Calibration
    comparisons: tuple[Comparison, ...]


def run_calibration(subject: Subject, measure: Measure, repeats: int, say: Callable[[str], None]) -> Calibration:
    """Measure the grid several times and fit the tier's step times."""
    grid: list[Measurement] = []
    for repeat in range(repeats):
        say(f"calibrating, pass {repeat + 1} of {repeats}")
        grid += measure(repeat == 0)
    return _calibration(subject, grid)


def _calibration(subject: Subject, grid: Sequence[Measurement]) -> Calibration:
    fit = fit_grid(grid)
    requests = [request for measurement in grid for request in measurement.requests]
    failed = sum(bool(request.failure) for request in requests)
    return Calibration(fit, tuple(checked(grid, _twin(subject, fit))), len(requests) - failed, failed)


def _twin(subject: Subject, fit: StepFit) -> Twin:
    return Twin(subject.scenario, subject.tier, fit.times, subject.seed, subject.load_trace)


def run_fidelity(
    subject: Subject, system: System, measure: Measure, plan: Plan, say: Callable[[str], None],
    advance: Callable[[float], None] = lambda seconds: None,
) -> Fidelity:  # fmt: skip
    """Measure capacity, calibrate, load the real system, and simulate the same.

    The calibration is repeated after every round of runs, so that a machine whose speed drifts is measured as it was on average.
    `advance` is told of the seconds measured outside the calibration.
    """
    delays = LinkDelays(subject.scenario, subject.tier, subject.seed, subject.load_trace)
    rng = subject.rng("fidelity")
    say("warming up, calibrating")
    grid = list(measure(True))
    say("measuring capacity")
    capacity = _capacity(subject, system, plan.seconds, rng)
    advance(plan.seconds)
    ran = []
    for run in range(plan.runs):
        for load in rng.permutation(plan.loads).tolist():
            say(f"run {run + 1} of {plan.runs}, load {load:.0%}")
            ran.append(_drive(subject, system, delays, load, load * capacity.per_s(), plan.seconds, rng))
            advance(plan.seconds)
        say("calibrating again")
        grid += measure(False)
    say("simulating the same")
    calibration = _calibration(subject, grid)
    twin = _twin(subject, calibration.fit)
    compared = [_compare(load, rate, measured, twin.open_loop(measured)) for load, rate, measured in ran]
    compared.sort(key=lambda comparison: comparison.load)
    return Fidelity(subject, plan, checked([capacity], twin)[0], calibration, tuple(compared))


def fit_grid(grid: Sequence[Measurement]) -> StepFit:
    """Step times from all calibration runs, and the overhead of a call from those with one caller."""
    loads = [list(all_calls(measurement.requests)) for measurement in grid]
    alone = [call for measurement, load in zip(grid, loads, strict=True) if measurement.callers == 1 for call in load]
    return fit_step_times(loads, alone)


def checked(grid: Sequence[Measurement], twin: Twin) -> list[Check]:
    """Completions per second of closed-loop runs, measured and simulated, added up for each number of callers.

    The twin's callers ask the same requests several times over, so that a twin that is too fast does not run out of them.
    """
    sums: dict[int, list[float]] = {}
    for measurement in grid:
        asked = _TIMES_OVER * [request for request in measurement.requests if not request.failure]
        ended_s = twin.closed_loop(asked, measurement.callers).ended_s if asked else np.empty(0)
        simulated = [request._replace(ended_s=end) for request, end in zip(asked, ended_s.tolist(), strict=True)]
        total = sums.setdefault(measurement.callers, [0.0, 0.0, 0.0])
        rates = measurement.per_s(), measurement._replace(requests=tuple(simulated)).per_s(), 1.0
        sums[measurement.callers] = [a + b for a, b in zip(total, rates, strict=True)]
    return [Check(callers, a / n, b / n) for callers, (a, b, n) in sorted(sums.items())]


def _capacity(subject: Subject, system: System, seconds: float, rng: np.random.Generator) -> Measurement:
    """More callers than a full batch holds."""
    callers = full_callers(subject.spec.max_batch)
    requests = subject.requests(subject.calibration, 64 * callers, rng)
    measurement = Measurement(callers, seconds, tuple(system.closed_loop(requests, subject.agent, callers, seconds)))
    if not measurement.per_s() > 0.0:
        reason = next((request.failure for request in measurement.requests if request.failure), "too slow")
        problem = f"no request was completed within {seconds:g} s ({reason})"
        raise InputError(f"tier {subject.tier!r}", problem, "See that the model answers, or measure for longer")
    return measurement


_Ran = tuple[float, float, list[TimedRequest]]


def _drive(
    subject: Subject, system: System, delays: LinkDelays, load: float, rate_per_s: float, seconds: float, rng: np.random.Generator,
) -> _Ran:  # fmt: skip
    count = max(_FEWEST_REQUESTS, round(rate_per_s * seconds))
    requests = subject.requests(subject.comparison, count, rng)
    # Poisson arrivals, given how many there are in the run's time: a short run then has the load it is said to have.
    due_s = np.sort(rng.random(count)) * (count / rate_per_s)
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
