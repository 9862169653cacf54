"""Cells on live models, side by side: a simulation waits for its answers one after another, many keep the models busy.

Each cell has its own event loop and its own draws, so what runs beside it changes nothing in its records.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event, Lock

from sim.cells import Cell, prepare_cell, run_cell
from sim.records import Records, RequestRow
from sim.simulation import finish
from workloads.backend import Handle, InferenceBackend, started
from workloads.errors import IsthmusError
from workloads.task import ModelCall

AT_A_TIME = 16
"""Cells that run side by side. Each has a call or two under way, so these are enough for a few full batches."""


def run_live_cells(
    cells: Sequence[Cell], backend: InferenceBackend, on_end: Callable[[RequestRow], None] | None = None, *,
    one_by_one: bool = False, on_stop: Callable[[], object] = lambda: None,
) -> Generator[tuple[Cell, Records]]:  # fmt: skip
    """Simulate cells whose answers come from `backend`, and yield each when it is done; `on_end` hears of every request.

    The backend must take calls from many threads and should remember answers, as cells ask much the same. With `one_by_one`
    cells run in their order and nothing is asked ahead: answers whose seconds count must not be slowed down by each other.
    Close the generator to stop the cells at their next call; `on_stop` may end the calls they wait for.
    """
    if one_by_one:
        alone = _Alone(backend)
        yield from ((cell, run_cell(cell, on_end, alone)) for cell in cells)
        return
    beside = _UntilStopped(backend)
    preparing, telling = Lock(), Lock()

    def told(row: RequestRow) -> None:
        if on_end is not None:
            with telling:
                on_end(row)

    def run(cell: Cell) -> tuple[Cell, Records]:
        with preparing:  # policies share what they work out, and libraries they use need not stand several threads
            simulation = prepare_cell(cell, told, beside)
        return cell, finish(cell.scenario, simulation)

    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="cell") as pool:
        try:
            for done in as_completed([pool.submit(run, cell) for cell in cells]):
                yield done.result()
        finally:
            beside.stopped.set()
            on_stop()
            pool.shutdown(wait=False, cancel_futures=True)


class _Alone:
    """Takes one call at a time only."""

    def __init__(self, inner: InferenceBackend) -> None:
        self._inner = inner

    def submit(self, call: ModelCall, model: str) -> Handle:
        """Pass the call on."""
        return self._inner.submit(call, model)


class _UntilStopped:
    """Passes calls on until it is told not to: what asks on ends with an error."""

    def __init__(self, inner: InferenceBackend) -> None:
        self._inner, self.stopped = inner, Event()

    def submit(self, call: ModelCall, model: str) -> Handle:
        """Pass the call on."""
        self._check()
        return self._inner.submit(call, model)

    def submit_many(self, calls: Sequence[tuple[ModelCall, str]]) -> Sequence[Handle]:
        """Pass the calls on together."""
        self._check()
        return started(self._inner, calls)

    def _check(self) -> None:
        if self.stopped.is_set():
            raise IsthmusError("the run was stopped")
