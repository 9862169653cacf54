"""The progress bar of a sweep: how far, how fast, how much at the edge, how much spent so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sim.records import Records


@contextmanager
def step_progress(console: Console) -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Bars for work in named parts: (name, steps) -> what to call after each step."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as bars:

        def part(name: str, steps: int) -> Callable[[], None]:
            bar = bars.add_task(name, total=steps)
            return lambda: bars.advance(bar)

        yield part


class SweepProgress:
    """A bar over requests (all cells together) with subtasks/s, the SLM's share of subtasks, and simulated dollars."""

    def __init__(self, console: Console, cells: int, requests: int) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("requests"),
            TextColumn("{task.fields[facts]}"), TimeRemainingColumn(), console=console, transient=False,
        )  # fmt: skip
        self._task = self._progress.add_task(f"{cells} cells", total=requests, facts="")
        self._started_s = time.monotonic()
        self._subtasks = self._small = 0
        self._usd = 0.0

    def __enter__(self) -> SweepProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, records: Records) -> None:
        """A cell is done."""
        requests = records.requests
        self._subtasks += int(requests["subtasks"].sum())
        self._small += int(requests["slm_subtasks"].sum())
        self._usd += float(np.sum(requests["total_usd"]))
        rate = self._subtasks / max(1e-9, time.monotonic() - self._started_s)
        share = self._small / max(1, self._subtasks)
        facts = f"{rate:,.0f} subtasks/s · {share:.0%} on the SLM · ${self._usd:,.2f} simulated"
        self._progress.update(self._task, advance=len(requests["request"]), facts=facts)
