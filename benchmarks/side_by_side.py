"""Candidates timed side by side in one process.

Every repeat runs all of them one after the other, and a ratio is the median of the ratios within the repeats, so a slow spell of the
machine hits all sides.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Candidate = Callable[[], int]
"""Does some work and returns how much: subtasks, requests, steps."""
Rates = Mapping[str, Sequence[float]]
"""Work per CPU second of each candidate, one number a repeat."""


def measure(runs: Mapping[str, Candidate], repeats: int) -> dict[str, list[float]]:
    """Work per CPU second, all candidates in turn in every repeat."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            gc.collect()
            began_s = time.process_time()
            count = run()
            rates[name].append(count / (time.process_time() - began_s))
    return rates


def ratio(rates: Rates, ours: str, theirs: str) -> float:
    """Median over the repeats of one rate over another."""
    return statistics.median(a / b for a, b in zip(rates[ours], rates[theirs], strict=True))
