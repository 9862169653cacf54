"""Measuring a model over a grid: which cells, in which order, and a real engine through to fitted step times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from serve.calibration import Cell, EngineBackend, grid, measure
from serve.load import LoadGenerator
from sim.fidelity import fit_grid
from tests.serve.tiny_models import tiny_model
from workloads.agent import Agent, AgentRun
from workloads.call_mix import CallMix
from workloads.task import Message, ModelCall, Outcome, Task
from workloads.timed_calls import Measurement, TimedCall, TimedRequest


class Noted:
    """A system that only notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float, set[int]]] = []

    def closed_loop(self, requests: Sequence[Task], agent: Agent, callers: int, seconds: float) -> list[TimedRequest]:
        """Answer nothing; keep callers, seconds and the lengths of answers asked for."""
        self.asked.append((callers, seconds, {task.latent.max_tokens for task in requests}))
        return []


def one_question(task: Task) -> AgentRun:
    """An agent that asks once."""
    messages = (Message("user", task.prompt),)
    yield ModelCall(task, 0, messages, task.prompt_tokens, 500)
    return Outcome(1.0)


MIX = CallMix([Task(f"t{size}", "x" * size, prompt_tokens=size) for size in (8, 24, 40)], one_question, 20)


def test_the_grid_goes_from_one_caller_to_more_than_a_full_batch():
    """Powers of two, the batch itself, a quarter more; long and short answers at each."""
    cells = grid(12)
    assert sorted({cell.callers for cell in cells}) == [1, 2, 4, 8, 12, 15]
    assert {(cell.shortest, cell.longest) for cell in cells if cell.callers == 4} == {(0.5, 1.0), (0.1, 0.3)}
    assert sorted({cell.callers for cell in grid(1)}) == [1, 3]


def test_every_cell_is_measured_once_in_an_order_of_chance_after_an_unmeasured_warm_up():
    """The warm-up asks with the most callers; the same generator gives the same order, another one another."""
    orders = []
    for seed in (1, 2, 1):
        system, cells = Noted(), grid(8)
        measured = measure(system, MIX, cells, seconds=0.5, rng=np.random.default_rng(seed))
        assert [callers for callers, _, _ in system.asked[1:]] == [measurement.callers for measurement in measured]
        assert system.asked[0][0] == 10
        assert sorted(measurement.callers for measurement in measured) == sorted(cell.callers for cell in cells)
        orders.append([(callers, min(lengths)) for callers, _, lengths in system.asked[1:]])
    assert orders[0] == orders[2] != orders[1]
    again = Noted()
    measure(again, MIX, grid(8), seconds=0.5, rng=np.random.default_rng(1), warm_up=False)
    assert len(again.asked) == len(grid(8))


def test_answers_are_as_long_as_the_cell_says():
    """Shares of the longest answer, at least one token; progress is told after every cell."""
    system, told = Noted(), []
    cells = (Cell(1, 0.5, 1.0), Cell(2, 0.01, 0.02))
    measure(
        system, MIX, cells, seconds=0.5, rng=np.random.default_rng(0), warm_up=False,
        on_cell=lambda done, of: told.append((done, of)),
    )  # fmt: skip
    lengths = {callers: asked for callers, _, asked in system.asked}
    assert lengths[1] <= set(range(10, 21))
    assert len(lengths[1]) > 5
    assert lengths[2] == {1}
    assert told == [(1, 2), (2, 2)]


@pytest.mark.slow
def test_an_engine_in_this_process_is_measured_and_fitted(tmp_path: Path):
    """A real tiny model under one and four callers: every call answered and timed, and step times that are numbers."""
    from serve.engine.engine import Engine
    from serve.generation import ModelSpec
    from serve.slm import CausalLM

    folder = tiny_model(tmp_path / "m", end_share=0.0)
    with Engine(CausalLM(ModelSpec(str(folder), threads=1)), 4) as engine:
        load = LoadGenerator(EngineBackend(engine), "m")
        cells = (Cell(1, 0.5, 1.0), Cell(4, 0.5, 1.0), Cell(4, 0.1, 0.3))
        measured: list[Measurement] = []
        calls: list[TimedCall] = []
        while len(calls) < 60:  # however slow this machine is just now
            measured += measure(load, MIX, cells, seconds=0.5, rng=np.random.default_rng(0), warm_up=not measured)
            calls = [call for measurement in measured for request in measurement.requests for call in request.calls]
    assert not [request.failure for measurement in measured for request in measurement.requests if request.failure]
    assert all(call.completion.prefill_s > 0.0 and call.around_s > 0.0 for call in calls)
    fit = fit_grid(measured)
    assert fit.decode.samples <= len(calls)
    assert fit.times.decode_step_s(1, 20) > 0.0
    assert fit.times.prefill_s(20) > 0.0
    assert fit.times.call_overhead_s > 0.0
