"""What `calibrate` and `fidelity` print: lines of a scenario with the fit's errors, and the table of measured and simulated times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from sim.fidelity import Calibration, Comparison, Fidelity, Figures, medians
from sim.profiles import StepTimesProfile
from sim.step_fit import StepFit, TermError
from sim.tables import add_plain_row

DIGITS = 4
"""Significant digits of printed step times: more than any measurement holds."""


def step_times_fields(fit: StepFit) -> dict[str, float]:
    """The fitted times under the names a scenario's `device.step_times` has."""
    return {name: float(f"{getattr(fit.times, name):.{DIGITS}g}") for name in StepTimesProfile.model_fields}


def calibration_notes(calibration: Calibration) -> list[str]:
    """What to know of a fit, one line each."""
    fit = calibration.fit
    notes = [
        _term("prefill iterations", fit.prefill),
        _term("decoding of an answer", fit.decode),
        f"overhead of a call alone: median {fit.times.call_overhead_s * 1e3:.1f} ms, p95 {fit.overhead_p95_s * 1e3:.1f} ms "
        f"of {fit.overhead_samples}",
        f"{fit.join_s * 1e3:.2f} ms of prefill_s_per_prompt are what a call costs the engine besides its iterations",
    ]
    return notes + [
        f"{check.callers} callers: {check.measured_per_s:.2f} calls/s measured, {check.simulated_per_s:.2f} simulated "
        f"({_ratio(check.simulated_per_s, check.measured_per_s):+.1%})"
        for check in calibration.checks
    ]


def calibration_json(calibration: Calibration) -> dict[str, Any]:
    """The same as plain values; NaN and infinity as null."""
    fit = calibration.fit
    values: dict[str, Any] = _finite({
        "step_times": step_times_fields(fit),
        "errors": {"prefill": fit.prefill._asdict(), "decode": fit.decode._asdict()},
        "overhead": {"median_s": fit.times.call_overhead_s, "p95_s": fit.overhead_p95_s, "samples": fit.overhead_samples},
        "join_s": fit.join_s,
        "checks": [check._asdict() for check in calibration.checks],
    })  # fmt: skip
    return values


def fidelity_json(found: Fidelity) -> dict[str, Any]:
    """Everything of a comparison as plain values: medians by load, and every run."""
    values: dict[str, Any] = _finite({
        "scenario": found.subject.scenario.name,
        "tier": found.subject.tier,
        "seed": found.subject.seed,
        "requests": "whole runs of the agent" if found.subject.whole_runs else "single calls",
        "capacity_per_s": found.capacity_per_s,
        "calibration": calibration_json(found.calibration),
        "loads": [_load_json(load, runs) for load, runs in by_load(found.comparisons)],
    })  # fmt: skip
    return values


def fidelity_table(found: Fidelity) -> Table:
    """One line per load: medians over its runs, and the errors as the median run has them."""
    runs = max(len(runs) for _, runs in by_load(found.comparisons))
    caption = (
        f"medians of {runs} runs; errors: simulated against measured in the median run (worst run); "
        f"capacity {found.capacity_per_s:.2f} requests/s"
    )
    table = Table(box=box.SIMPLE, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False, caption=caption)
    table.add_column("load", justify="right")
    for heading in ("offered /s", "requests", "failed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("throughput /s", "p50 ms", "p95 ms"):
        table.add_column(heading, justify="right")
        table.add_column("simulated", justify="right")
        table.add_column("error %", justify="right")
    table.add_column("late ms", justify="right")
    for load, runs_at in by_load(found.comparisons):
        measured, simulated = _of(runs_at, "measured"), _of(runs_at, "simulated")
        cells = [f"{load:.0%}", f"{runs_at[0].offered_per_s:.2f}", sum(c.requests for c in runs_at), sum(c.failed for c in runs_at)]  # fmt: skip
        for name, scale, digits in (("throughput_per_s", 1.0, 2), ("p50_s", 1e3, 0), ("p95_s", 1e3, 0)):
            cells += [f"{getattr(figures, name) * scale:.{digits}f}" for figures in (measured, simulated)]
            cells.append(_error(runs_at, name))
        cells.append(f"{max(c.lateness_p99_s for c in runs_at) * 1e3:.1f}")
        add_plain_row(table, *cells)
    return table


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


def _error(runs: Sequence[Comparison], name: str) -> str:
    errors = np.array([getattr(run.errors, name) for run in runs])
    worst = errors[np.argmax(np.abs(errors))]
    return f"{100 * np.median(errors):+.1f} ({100 * worst:+.1f})"


def _term(name: str, error: TermError) -> str:
    return (
        f"{name}: median error {error.median:.1%}, p95 {error.p95:.1%}, in sum {error.bias:+.1%} over {error.samples:,}"
    )


def _ratio(simulated: float, measured: float) -> float:
    return simulated / measured - 1.0 if measured else math.nan


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
