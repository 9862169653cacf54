"""Measures a served model: calls at several levels of concurrency and lengths of prompt and answer, as plain samples.

What the samples mean for a device profile is worked out elsewhere; nothing here knows the simulator. The model may stand behind
Ray Serve or run in this process (`EngineBackend`): whatever answers calls can be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import numpy as np

from serve.backend import completion_of
from serve.generation import Generation, Sampling
from workloads.agent import Agent
from workloads.call_mix import CallMix, full_callers, single_call
from workloads.task import Completion, Message, ModelCall, Task
from workloads.timed_calls import Measurement, TimedRequest

_CALLS_PER_CALLER = 64
"""Different calls drawn for a cell and caller; a faster system asks them again."""


class Cell(NamedTuple):
    """One point of the grid: how many ask at once, how long answers are, as shares of the longest one, and prompts."""

    callers: int
    shortest: float
    longest: float
    most_prompts: int = 1


class ClosedLoop(Protocol):
    """A system under callers who ask again as soon as they are answered."""

    def closed_loop(self, requests: Sequence[Task], agent: Agent, callers: int, seconds: float) -> list[TimedRequest]:
        """All requests begun within `seconds`."""
        ...


def grid(max_batch: int) -> tuple[Cell, ...]:
    """Callers 1, 2, 4 ... and more than a full batch, each with long answers, and with short ones to prompts of many sizes."""
    levels, callers = list[int](), 1
    while callers < max_batch:
        levels.append(callers)
        callers *= 2
    levels += [max_batch, full_callers(max_batch)]
    return tuple(Cell(callers, *share) for callers in levels for share in ((0.5, 1.0), (0.1, 0.3, 3)))


def measure(
    system: ClosedLoop,
    mix: CallMix,
    cells: Sequence[Cell],
    *,
    seconds: float,
    rng: np.random.Generator,
    warm_up: bool = True,
    on_cell: Callable[[int, int], None] | None = None,
) -> list[Measurement]:
    """Every cell once, `seconds` each, in random order, so that a machine that drifts spoils no corner of the grid alone.

    For repeats call it again. `warm_up` first lets the system answer unmeasured calls at the highest concurrency.
    `on_cell(done, all)` is told of progress.
    """
    if warm_up:
        most = max(cells, key=lambda cell: cell.callers)
        system.closed_loop(_calls(mix, most, rng), single_call, most.callers, min(2.0, seconds))
    measured = []
    for done, index in enumerate(rng.permutation(len(cells)), 1):
        cell = cells[index]
        requests = system.closed_loop(_calls(mix, cell, rng), single_call, cell.callers, seconds)
        measured.append(Measurement(cell.callers, seconds, tuple(requests)))
        if on_cell is not None:
            on_cell(done, len(cells))
    return measured


def _calls(mix: CallMix, cell: Cell, rng: np.random.Generator) -> list[Task]:
    return mix.draw(_CALLS_PER_CALLER * cell.callers, rng, cell.shortest, cell.longest, cell.most_prompts)


class Submits(Protocol):
    """A continuous-batching engine in this process."""

    def submit(self, messages: tuple[Message, ...], max_tokens: int, sampling: Any = None) -> Future[Generation]:
        """Start answering."""
        ...


class EngineBackend:
    """An engine in this process as an InferenceBackend, without anything in between: for calibrating a model alone."""

    def __init__(self, engine: Submits, sampling: Sampling | None = None) -> None:
        self._engine, self._sampling = engine, sampling

    def submit(self, call: ModelCall, model: str) -> _EngineHandle:
        """Hand the call to the engine."""
        return _EngineHandle(self._engine.submit(call.messages, call.max_tokens, self._sampling), model)


class _EngineHandle:
    def __init__(self, future: Future[Generation], model: str) -> None:
        self._future, self._model = future, model

    def result(self) -> Completion:
        """Wait for the answer."""
        return completion_of(self._future.result(), self._model)
