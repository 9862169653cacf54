"""Cells on live models, side by side: many calls under way, and records as if each cell had run alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from sim.cells import Cell, expand_cells, run_cell
from sim.live_cells import run_live_cells
from sim.records import Records
from tests.helpers import load_text, rows
from tests.recording_process import SCENARIO, made_up
from workloads.errors import InputError, ModelUnavailable
from workloads.remembering import RememberingBackend
from workloads.task import Completion, ModelCall

POLICIES = "policies=[all-slm, all-llm, {policy: random, p: [0.3, 0.6]}, prompt-length, oracle-cost]"


def cells(folder: Path, *settings: str) -> list[Cell]:
    """Cells of a scenario with made-up models and sixteen tasks."""
    few = ["workload.tasks.distinct_tasks=16", "workload.requests=16", "seeds=[1]", POLICIES]
    return expand_cells(load_text(folder, SCENARIO, [*few, *settings]))


class Live:
    """Models that take a moment over every answer; tells what was asked, in which batches, and the most under way at once."""

    def __init__(self, pause_s: float = 0.002) -> None:
        self.pause_s, self.lock = pause_s, threading.Lock()
        self.calls, self.under_way, self.most_under_way = 0, 0, 0
        self.batches: list[int] = []

    def submit(self, call: ModelCall, model: str) -> OnTheWay:
        with self.lock:
            self.calls += 1
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        return OnTheWay(self, made_up(call, model))

    def submit_many(self, calls: Sequence[tuple[ModelCall, str]]) -> list[OnTheWay]:
        self.batches.append(len(calls))
        return [self.submit(call, model) for call, model in calls]


class OnTheWay:
    """One call of it."""

    def __init__(self, live: Live, answer: Completion) -> None:
        self._live, self._answer = live, answer

    def result(self) -> Completion:
        time.sleep(self._live.pause_s)
        with self._live.lock:
            self._live.under_way -= 1
        return self._answer


def plain(records: Records) -> list[list[dict[str, str]]]:
    """Both tables in a form in which NaN equals NaN."""
    return [[{k: repr(v) for k, v in row.items()} for row in rows(table)] for table in records]


def test_records_are_those_of_each_cell_alone(tmp_path: Path) -> None:
    """Random policies, routers and an oracle: what runs beside a cell changes nothing in it, and nothing is asked twice."""
    together = Live()
    found = {cell.number: records for cell, records in run_live_cells(cells(tmp_path), RememberingBackend(together))}
    asked = set()
    for cell in cells(tmp_path):
        alone = Live(pause_s=0.0)
        expected = run_cell(cell, live=RememberingBackend(alone))
        assert plain(found[cell.number]) == plain(expected)
        asked.add(alone.calls)
    assert together.calls == max(asked)  # the oracle alone asks everything there is


def test_cells_and_the_oracles_study_keep_many_calls_under_way(tmp_path: Path) -> None:
    """Without an oracle the cells ask side by side; an oracle has every placement answered in large batches."""
    models = Live()
    some = [cell for cell in cells(tmp_path, "seeds=[1, 2, 3]") if "oracle" not in cell.policy.policy]
    assert len(list(run_live_cells(some, RememberingBackend(models)))) == len(some)
    assert models.most_under_way >= 4
    studied = Live()
    oracle = [cell for cell in cells(tmp_path) if "oracle" in cell.policy.policy]
    list(run_live_cells(oracle, RememberingBackend(studied)))
    assert studied.most_under_way >= 16
    assert sum(studied.batches) > 0.9 * studied.calls


def test_measured_seconds_are_taken_one_cell_at_a_time(tmp_path: Path) -> None:
    """Nothing is asked ahead and no cell runs beside another: one call is under way, or a few of one cell's requests."""
    models = Live()
    numbers = [cell.number for cell, _ in run_live_cells(cells(tmp_path), RememberingBackend(models), one_by_one=True)]
    assert numbers == sorted(numbers)
    assert models.batches == []
    assert models.most_under_way <= 3


def test_closing_stops_the_cells_at_their_next_call(tmp_path: Path) -> None:
    """After the first result an interrupt ends all others: no thread is left and nothing more is asked."""
    models = Live(pause_s=0.02)
    before = threading.active_count()
    with closing(run_live_cells(cells(tmp_path, "seeds=[1, 2, 3, 4]"), RememberingBackend(models))) as results:
        next(results)
    assert threading.active_count() == before
    asked = models.calls
    time.sleep(0.1)
    assert models.calls == asked
    whole = Live(pause_s=0.0)
    list(run_live_cells(cells(tmp_path, "seeds=[1, 2, 3, 4]"), RememberingBackend(whole)))
    assert asked < whole.calls


def test_stopping_need_not_wait_for_calls_under_way(tmp_path: Path) -> None:
    """A large model that never answers: what waits for it ends as soon as the run is stopped."""
    given_up = threading.Event()

    class Never(OnTheWay):
        def result(self) -> Completion:
            assert given_up.wait(60.0)
            raise ModelUnavailable("cancelled")

        def cancel(self) -> None:
            given_up.set()

    class Half(Live):
        def submit(self, call: ModelCall, model: str) -> OnTheWay:
            return Never(self, made_up(call, model)) if model == "large" else super().submit(call, model)

    shared = RememberingBackend(Half())
    some = cells(tmp_path, "policies=[all-slm, all-llm]")
    with closing(run_live_cells(some, shared, on_stop=shared.close)) as results:
        assert next(results)[0].policy.name == "all-slm"
        assert not given_up.is_set()
    assert given_up.is_set()


def test_requests_are_told_of_one_at_a_time(tmp_path: Path) -> None:
    """`on_end` hears of every request of every cell, never from two threads at once."""
    inside, told = threading.Lock(), []

    def on_end(row: object) -> None:
        assert inside.acquire(blocking=False)
        time.sleep(0.001)
        told.append(row)
        inside.release()

    some = cells(tmp_path)
    list(run_live_cells(some, RememberingBackend(Live()), on_end))
    assert len(told) == 16 * len(some)


def test_a_cell_that_cannot_go_on_ends_the_run_with_its_error(tmp_path: Path) -> None:
    """What a policy's study or a model raises for good reaches the caller as it is."""

    class Unknown(Live):
        def submit(self, call: ModelCall, model: str) -> OnTheWay:
            raise InputError(f"model {model!r}", "is not deployed", "Deploy it")

    with pytest.raises(InputError, match="is not deployed"):
        list(run_live_cells(cells(tmp_path), RememberingBackend(Unknown())))


def test_a_failure_is_a_cells_own_affair(tmp_path: Path) -> None:
    """A call that fails is an attempt in the records of those who waited for it; the run goes on."""

    class Flaky(Live):
        def submit(self, call: ModelCall, model: str) -> OnTheWay:
            handle = super().submit(call, model)
            if self.calls % 7 == 0:
                raise ModelUnavailable("overloaded")
            return handle

    settings = "client={retries: 3, backoff_s: 0.1, stream: false}", "policies=[all-slm, {policy: random, p: 0.5}]"
    for _, records in run_live_cells(cells(tmp_path, *settings), RememberingBackend(Flaky())):
        statuses = set(records.subtasks["status"])
        assert {"ok", "live-overloaded"} >= statuses
        assert set(records.requests["status"]) == {"completed"}
