"""Packet delivery traces of the Mahimahi emulator (mm-link): one whole number of milliseconds per line.

Source: Netravali et al., "Mahimahi: Accurate Record-and-Replay for HTTP", USENIX ATC 2015, and the manual page mm-link(1):
each line is a moment at which 1,500 bytes may leave the link, given in ms since the start of the trace.

Traps
- The same millisecond on several lines means several packets.
- The trace repeats after its last line, whose time is the period: a file with the one line "1" is 12 Mbit/s.
- A delivery at t belongs to the bin that ends at or after t, so what was carried up to any bin's end is exactly what
  Mahimahi would have carried; the last bin is shorter where the period is no multiple of the bin. Deliveries at 0 go
  into the first bin. No byte is lost or made.
"""

from __future__ import annotations

import math
import os

import numpy as np
import numpy.typing as npt

from workloads.bandwidth import BandwidthTrace
from workloads.errors import InputError
from workloads.readers._rows import StrPath, number, open_text, place

FORMAT = "Mahimahi delivery trace: one timestamp in ms per line, each worth one 1,500-byte packet"

PACKET_BYTES = 1500
MBPS_OF_ONE_PACKET_PER_MS = PACKET_BYTES * 8 / 1000
DEFAULT_BIN_S = 0.1  # long enough to hold whole packets above 0.12 Mbit/s, short beside any transfer of interest
LATEST_START_MS = 1_000_000_000


def read(path: StrPath, bin_s: float = DEFAULT_BIN_S) -> BandwidthTrace:
    """Read one trace as bandwidth over bins of `bin_s` seconds (a whole number of ms); runs of empty bins are one piece.

    Raises InputError naming the line that is not a whole number, or is earlier than the one before it.
    """
    bin_ms = round(bin_s * 1000) if math.isfinite(bin_s) else 0
    if bin_ms < 1 or not math.isclose(bin_s * 1000, bin_ms):
        raise InputError(place(path), f"bin_s is {bin_s:g}", "Give a whole number of milliseconds, at least 0.001 s")
    times_ms = _times_ms(path)
    period_ms = int(times_ms[-1])
    bin_ms = min(bin_ms, period_ms)
    bins, packets = np.unique(np.maximum(times_ms - 1, 0) // bin_ms, return_counts=True)
    starts_ms = bins * bin_ms
    ends_ms = starts_ms + np.minimum(bin_ms, period_ms - starts_ms)
    edges_ms = np.unique(np.concatenate(([0], starts_ms, ends_ms)))
    durations_ms = np.diff(edges_ms)
    per_piece = np.zeros(len(durations_ms))
    per_piece[np.searchsorted(edges_ms, starts_ms)] = packets
    return BandwidthTrace(
        durations_ms / 1000, per_piece * MBPS_OF_ONE_PACKET_PER_MS / durations_ms, source=os.fspath(path)
    )


def _times_ms(path: StrPath) -> npt.NDArray[np.int64]:
    """All delivery times, in order; the last is above 0."""
    times_ms: list[int] = []
    row = latest_ms = 0
    with open_text(path) as file:
        for row, line in enumerate(file, start=1):
            text = line.strip()
            if not text:
                continue
            time_ms = number(text, path, row, "time_ms", minimum=0, integer=True)
            if time_ms < latest_ms:
                found = f"{time_ms} ms comes after {latest_ms} ms"
                raise InputError(place(path, row, "time_ms"), found, "Sort the lines; one may repeat but not go back")
            if not times_ms and time_ms > LATEST_START_MS:
                found = f"the first time is {time_ms} ms: a clock reading, not the time since the start"
                raise InputError(place(path, row, "time_ms"), found, "Subtract the first time from all of them")
            times_ms.append(time_ms)
            latest_ms = time_ms
    if not times_ms:
        raise InputError(place(path), "holds no rows", "Give one timestamp in ms per line")
    if latest_ms == 0:
        raise InputError(place(path, row, "time_ms"), "the trace ends at 0 ms", "End it at the length of its period")
    return np.array(times_ms, dtype=np.int64)
