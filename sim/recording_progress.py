"""How far a recording is: answers, tasks, answers per second, and how many are expected in all."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence, Sized
from types import TracebackType
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from sim.statistics import mean_interval


class Estimate(NamedTuple):
    """Answers expected in all with their 95 % bounds (NaN where too little is known), and bytes expected for one."""

    answers: float
    low: float
    high: float
    bytes_each: float = math.nan

    def text(self) -> str:
        """In one line for people."""
        line = f"about {self.answers:,.0f} answers"
        if self.low == self.low:
            line += f" (95 % sure: {self.low:,.0f} to {self.high:,.0f})"
        if self.bytes_each == self.bytes_each:
            line += f", {_size(self.answers * self.bytes_each)} compressed"
        return line


def estimate(sizes: Sequence[int], tasks: int, bytes_each: float = math.nan) -> Estimate:
    """What `tasks` tasks need in all, judged by the answers that a random few of them needed."""
    mean = mean_interval(sizes)
    # Of those that were counted nothing is uncertain: the correction for samples from a finite population.
    half = (mean.hi - mean.estimate) * math.sqrt(1 - len(sizes) / tasks)
    low = max(tasks * (mean.estimate - half), float(sum(sizes)))
    return Estimate(tasks * mean.estimate, low, tasks * (mean.estimate + half), bytes_each)


class RecordingProgress:
    """A bar over answers where their number can be told, else over units: tasks to expand, or requests to simulate.

    `journal` is where answers are kept: the rate is that of answers new in it.
    """

    def __init__(
        self, console: Console, units: int, journal: Sized, title: str = "recording", unit: str = "tasks"
    ) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"), console=console
        )
        self._bar = self._progress.add_task(title, total=units, facts="")
        self._units, self._unit, self._journal = units, unit, journal
        self._started_s, self._kept = time.monotonic(), len(journal)
        self._done = self._answers = self._answers_done = 0
        self._expected_each: float | None = None
        self._shown_s = 0.0

    def __enter__(self) -> RecordingProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show()
        self._progress.stop()

    def expect(self, expected: Estimate | None) -> None:
        """How many answers are to come in all."""
        self._expected_each = None if expected is None else expected.answers / self._units

    def answered(self) -> None:
        """One more answer has found its place."""
        self._answers += 1
        self._show_at_times()

    def unit_done(self, answers: int = 0) -> None:
        """A request has ended, or a task is complete with this many answers."""
        self._done += 1
        self._answers_done += answers
        self._show_at_times()

    def _show_at_times(self) -> None:
        if time.monotonic() > self._shown_s + 0.1:
            self._show()

    def _show(self) -> None:
        self._shown_s = now_s = time.monotonic()
        asked = len(self._journal) - self._kept
        per_s = asked / max(1e-9, now_s - self._started_s)
        answers = self._answers or len(self._journal)
        facts = [f"{answers:,} answers", f"{self._done:,} of {self._units:,} {self._unit}"]
        if asked:
            facts.append(f"{per_s:,.0f} answers/s")
        completed, total = float(self._done), float(self._units)
        if self._expected_each is not None:
            completed = float(answers)
            total = max(completed, self._answers_done + self._expected_each * (self._units - self._done))
            if self._done < self._units:
                facts[0] = f"{answers:,} of about {total:,.0f} answers"
                if asked:
                    facts.append(f"{_duration((total - completed) / per_s)} left")
        self._progress.update(self._bar, completed=completed, total=total, facts=" · ".join(facts))


def _size(bytes_: float) -> str:
    return f"{bytes_ / 1e6:,.1f} MB" if bytes_ >= 1e6 else f"{bytes_ / 1e3:,.0f} kB"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
