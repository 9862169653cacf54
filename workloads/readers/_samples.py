"""From samples (time, bandwidth) to a trace: which stretch of time each value covers, and clocks that do not advance."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from workloads.bandwidth import BandwidthTrace
from workloads.errors import InputError
from workloads.readers._rows import StrPath, place

Covers = Literal["before", "after"]
Times = npt.NDArray[np.float64]

MOST_NOT_INCREASING = 0.5  # of all rows; the worst of the recordings we know of has 0.15
MOST_STEPS_BACK = 10  # a clock set right moves by a few steps; one that starts again belongs to another recording


@dataclass(frozen=True, eq=False)
class SampledTrace(BandwidthTrace):
    """A trace made from timed samples.

    `non_increasing_rows` are the rows whose time is not after all earlier ones. A sample that spans no time carries no
    bytes, so leaving it out loses none; the rows are kept here so that nothing is left out silently.
    """

    non_increasing_rows: tuple[int, ...] = ()


@np.errstate(over="ignore", invalid="ignore")  # absurd times overflow; the trace refuses what comes of them
def from_samples(
    path: StrPath, rows: Sequence[int], times_s: Sequence[float], mbps: Sequence[float], covers: Covers
) -> SampledTrace:
    """Make a trace of samples; `rows` are their row numbers in the file, all sequences have one length >= 1.

    With covers="before" value i holds over (t[i-1], t[i]], the first over (0, t[0]]. With "after" it holds over
    [t[i], t[i+1]), the last for the median step. The clock is the latest time seen so far: a row whose time repeats or
    falls behind it (a clock set right by a little) does not move it. Raises InputError if most rows do not move it, if
    it falls back far, or if no row spans any time.
    """
    times = np.asarray(times_s, dtype=np.float64)
    clock = np.maximum.accumulate(times)
    stuck = np.flatnonzero(times[1:] <= clock[:-1]) + 1
    found_rows = tuple(rows[i] for i in stuck.tolist())
    steps = np.diff(clock)
    steps = steps[steps > 0]
    if len(stuck) > MOST_NOT_INCREASING * len(times):
        found = f"{len(stuck)} of {len(times)} times do not increase, first here"
        raise InputError(place(path, found_rows[0]), found, "Sort the rows by time, one recording per file")
    if not steps.size and (covers == "after" or times[0] <= 0):
        raise InputError(place(path, rows[-1]), "no time passes between the rows", "Give rows at two different times")
    if steps.size:
        _refuse_restart(path, rows, times, clock, float(np.median(steps)))
    durations_s = np.diff(clock, prepend=0.0)
    if covers == "after":
        durations_s = np.append(np.diff(clock), np.median(steps))
    spans = durations_s > 0
    return SampledTrace(durations_s[spans], np.asarray(mbps, dtype=np.float64)[spans], os.fspath(path), found_rows)


def _refuse_restart(path: StrPath, rows: Sequence[int], times: Times, clock: Times, step_s: float) -> None:
    behind_s = clock - times
    worst = int(np.argmax(behind_s > MOST_STEPS_BACK * step_s))
    if behind_s[worst] > MOST_STEPS_BACK * step_s:
        found = f"the time falls back by {behind_s[worst]:g} s, {behind_s[worst] / step_s:.0f} of the usual steps"
        raise InputError(place(path, rows[worst]), found, "Put each recording into a file of its own")
