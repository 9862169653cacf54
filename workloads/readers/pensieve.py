"""Bandwidth traces as the Pensieve simulator reads them: two columns, time in seconds and bandwidth in Mbit/s.

Source: Mao, Netravali, Alizadeh, "Neural Adaptive Video Streaming with Pensieve", SIGCOMM 2017, and the many data sets
published in its form (Norway HSDPA, FCC broadband, campus WiFi, ...). No header; columns separated by blanks or tabs.

Traps
- Pensieve's simulator lets value i hold over (t[i-1], t[i]] and starts with the second row, because its files begin at
  time 0: the first value then spans no time and is never used. Where a file begins later, the first value here holds
  over (0, t[0]]. After the last row the trace starts again.
- Some data sets write the *start* of each interval instead (the campus WiFi traces come from iperf lines "0.00-1.00
  sec"). `covers="after"` reads them so: value i holds over [t[i], t[i+1]), the last for the median step.
- Some times repeat (iperf reports several intervals at once after a stall) and a clock may be set back by a little. Such
  rows span no time: they add nothing to the integral and are reported in `non_increasing_rows`.
- Times must count from the start of the recording. Clock readings (seconds since 1970) would make the first value last
  for decades, so they are refused.
"""

from __future__ import annotations

from workloads.errors import InputError
from workloads.readers._rows import StrPath, number, open_text, place
from workloads.readers._samples import Covers, SampledTrace, from_samples

FORMAT = "Pensieve bandwidth trace: two columns without header, time in s and bandwidth in Mbit/s"

LATEST_START_S = 1e6


def read(path: StrPath, covers: Covers = "before") -> SampledTrace:
    """Read one trace; raises InputError naming the row that is wrong.

    `covers` says which interval a row's value holds over: "before" its time, as Pensieve does, or "after" it.
    """
    if covers not in ("before", "after"):
        raise InputError(place(path), f"covers is {covers!r}", "Give 'before' or 'after'")
    rows: list[int] = []
    times_s: list[float] = []
    mbps: list[float] = []
    with open_text(path) as file:
        for row, line in enumerate(file, start=1):
            values = line.split()
            if not values:
                continue
            if len(values) != 2:
                remedy = "Give two columns: the time in s and the bandwidth in Mbit/s"
                raise InputError(place(path, row), f"the number of columns is {len(values)}", remedy)
            rows.append(row)
            times_s.append(number(values[0], path, row, "time_s", minimum=0))
            mbps.append(number(values[1], path, row, "mbps", minimum=0))
    if not rows:
        raise InputError(
            place(path), "holds no rows", "Give at least one row: the time in s and the bandwidth in Mbit/s"
        )
    if covers == "before" and times_s[0] > LATEST_START_S:
        found = f"the first time is {times_s[0]:.15g} s: a clock reading, not the time since the start"
        raise InputError(place(path, rows[0], "time_s"), found, "Subtract the first time from all of them")
    return from_samples(path, rows, times_s, mbps, covers)
