"""What `calibrate` and `fidelity` print: lines of a scenario with the fit's errors, and the table of measured and simulated times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from sim.fidelity import Calibration, Check, Comparison, Fidelity, Figures, medians
from sim.fidelity_subject import Subject
from sim.loading import dump_yaml
from sim.profiles import StepTimesProfile
from sim.step_fit import StepFit, TermError
from sim.tables import add_plain_row

DIGITS = 4
"""Significant digits of printed step times: more than any measurement holds."""

_FIGURES = {"throughput_per_s": ("done/s", 1.0, 2), "p50_s": ("p50 ms", 1e3, 0), "p95_s": ("p95 ms", 1e3, 0)}
"""Field of `Figures` -> name in the table, factor, digits."""


def step_times_fields(fit: StepFit) -> dict[str, float]:
    """The fitted times under the names a scenario's `device.step_times` has."""
    return {name: float(f"{getattr(fit.times, name):.{DIGITS}g}") for name in StepTimesProfile.model_fields}


def calibration_text(subject: Subject, calibration: Calibration) -> str:
    """YAML that a scenario takes as it is, with what to know of the fit as comments."""
    title = f"tier {subject.tier}: {subject.source}, up to {subject.spec.max_batch} calls in a batch"
    notes = [title, *calibration_notes(calibration)]
    fields = {"tiers": {subject.tier: {"device": {"step_times": step_times_fields(calibration.fit)}}}}
    return "".join(f"# {note}\n" for note in notes) + dump_yaml(fields)


def calibration_notes(calibration: Calibration) -> list[str]:
    """What to know of a fit, one line each."""
    fit = calibration.fit
    notes = [
        f"fitted to {calibration.answered:,} calls; {calibration.failed:,} more failed",
        _term("prefill", fit.prefill),
        _term("decoding", fit.decode),
        f"overhead of a call alone: median {fit.times.call_overhead_s * 1e3:.1f} ms, "
        f"p95 {fit.overhead_p95_s * 1e3:.1f} ms ({fit.overhead_samples:,} calls)",
        f"prefill_s_per_prompt holds {fit.join_s * 1e3:.2f} ms that a call costs the engine besides its iterations",
        "the measured runs simulated on these times:",
    ]
    return notes + [f"  {check.callers:>3} callers: {check_text(check)}" for check in calibration.checks]


def check_text(check: Check) -> str:
    """Measured and simulated rate of a closed loop."""
    error = _ratio(check.simulated_per_s, check.measured_per_s)
    return f"{check.measured_per_s:.2f}/s measured, {check.simulated_per_s:.2f}/s simulated ({error:+.1%})"


def calibration_json(calibration: Calibration) -> dict[str, Any]:
    """The same as plain values; NaN and infinity as null."""
    fit = calibration.fit
    values: dict[str, Any] = _finite({
        "step_times": step_times_fields(fit),
        "errors": {"prefill": fit.prefill._asdict(), "decode": fit.decode._asdict()},
        "overhead": {"median_s": fit.times.call_overhead_s, "p95_s": fit.overhead_p95_s, "samples": fit.overhead_samples},
        "join_s": fit.join_s,
        "calls": {"answered": calibration.answered, "failed": calibration.failed},
        "checks": [check._asdict() for check in calibration.checks],
    })  # fmt: skip
    return values


def fidelity_json(found: Fidelity) -> dict[str, Any]:
    """Everything of a comparison as plain values: medians by load, and every run."""
    values: dict[str, Any] = _finite({
        "scenario": found.subject.scenario.name,
        "tier": found.subject.tier,
        "model": found.subject.source,
        "max_batch": found.subject.spec.max_batch,
        "seed": found.subject.seed,
        "requests": "whole runs of the agent" if found.subject.whole_runs else "single calls",
        "plan": found.plan._asdict(),
        "capacity": found.capacity._asdict(),
        "calibration": calibration_json(found.calibration),
        "loads": [_load_json(load, runs) for load, runs in by_load(found.comparisons)],
    })  # fmt: skip
    return values


def fidelity_table(found: Fidelity) -> Table:
    """Three lines per load, one for each figure: medians over the runs, the median of their errors, and the worst one."""
    table = Table(box=box.SIMPLE, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("load", "offered/s", "sent", "failed"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for heading in ("measured", "simulated", "error %", "worst %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for load, runs in by_load(found.comparisons):
        measured, simulated = _of(runs, "measured"), _of(runs, "simulated")
        first = (
            f"{load:.0%}",
            f"{runs[0].offered_per_s:.2f}",
            sum(r.requests for r in runs),
            sum(r.failed for r in runs),
        )
        for name, (figure, scale, digits) in _FIGURES.items():
            values = [f"{getattr(figures, name) * scale:,.{digits}f}" for figures in (measured, simulated)]
            errors = np.array([getattr(run.errors, name) for run in runs])
            worst = errors[np.argmax(np.abs(errors))]
            cells = first if name == "throughput_per_s" else ("",) * 4
            add_plain_row(table, *cells, figure, *values, f"{100 * np.median(errors):+.1f}", f"{100 * worst:+.1f}")
        table.add_section()
    return table


def fidelity_text(found: Fidelity) -> tuple[str, list[str]]:
    """What the table is about, and what to know when reading it, one line each."""
    subject, fit, plan = found.subject, found.calibration.fit, found.plan
    asked = "runs of the agent" if subject.whole_runs else "single calls"
    links = " and ".join("-".join(link.between) for link in subject.scenario.route(subject.tier)) or "no link"
    several = f"Medians of {plan.runs} runs" if plan.runs > 1 else "One run"
    late_s = max(run.lateness_p99_s for run in found.comparisons)
    title = f"tier {subject.tier}: {subject.source} on Ray Serve, asked {asked} in open loop over {links}"
    return title, [
        f"{several} with {plan.seconds:g} s of arrivals each. error: simulated over measured,",
        "less 1, median of the runs; worst: that of the worst run. done/s: answered, from",
        "the first arrival to the last answer. p50, p95: end to end, links included.",
        f"capacity ({found.capacity.callers} callers, closed loop): {check_text(found.capacity)}",
        f"load generator: late by at most {late_s * 1e3:.1f} ms (p99)",
        f"calibration: {_term('prefill', fit.prefill)}",
        f"             {_term('decoding', fit.decode)}",
        f"             {fit.times.call_overhead_s * 1e3:.1f} ms of overhead a call",
    ]


def by_load(comparisons: Sequence[Comparison]) -> list[tuple[float, list[Comparison]]]:
    """Runs grouped by their load, in rising order."""
    ordered = sorted(comparisons, key=lambda comparison: comparison.load)
    return [(load, list(runs)) for load, runs in groupby(ordered, key=lambda comparison: comparison.load)]


def _load_json(load: float, runs: Sequence[Comparison]) -> dict[str, Any]:
    return {
        "load": load,
        "offered_per_s": runs[0].offered_per_s,
        "measured": _of(runs, "measured")._asdict(),
        "simulated": _of(runs, "simulated")._asdict(),
        "errors": _of(runs, "errors")._asdict(),
        "runs": [
            {
                "requests": run.requests, "failed": run.failed, "lateness_p99_s": run.lateness_p99_s,
                "measured": run.measured._asdict(), "simulated": run.simulated._asdict(), "errors": run.errors._asdict(),
            }
            for run in runs
        ],
    }  # fmt: skip


def _of(runs: Sequence[Comparison], name: str) -> Figures:
    return medians(getattr(run, name) for run in runs)


def _term(name: str, error: TermError) -> str:
    return (
        f"{name} error: median {error.median:.1%}, p95 {error.p95:.1%}, in sum {error.bias:+.1%} of {error.samples:,}"
    )


def _ratio(simulated: float, measured: float) -> float:
    return simulated / measured - 1.0 if measured else math.nan


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
