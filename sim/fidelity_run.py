"""What `run_sim.py calibrate` and `fidelity` do: check what was asked, open the tier that is measured, show how far it is.

How a tier comes to be running is the caller's business: everything here works on whatever `open_tier` opens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sim.fidelity import Calibration, Fidelity, Measure, Plan, System, run_calibration, run_fidelity
from sim.fidelity_subject import Subject, subject_of
from sim.loading import LoadedScenario
from sim.twin import LinkDelays

OnCell = Callable[[int, int], None]


class LiveTier(NamedTuple):
    """A tier that runs: the generator that loads it, one pass over the calibration's grid, and the cells of that."""

    system: System
    measure: Measure
    cells: int


OpenTier = Callable[[Subject, float, OnCell], AbstractContextManager[LiveTier]]
"""(what is measured, seconds for each cell of the grid, what to tell after a cell) -> the tier, up for the length of a block."""


def calibrate(
    loaded: LoadedScenario, tier: str | None, plan: Plan, open_tier: OpenTier, console: Console
) -> tuple[Subject, Calibration]:
    """Measure the grid `plan.runs` times and fit step times. Raises InputError before anything starts, where it can."""
    plan.check()
    subject = subject_of(loaded.scenario, loaded.path, tier)
    with _opened(open_tier, subject, plan.cell_s, console) as (live, bar):
        bar.start(plan.runs * live.cells * plan.cell_s)
        return subject, run_calibration(subject, live.measure, plan.runs, bar.say)


def compare(
    loaded: LoadedScenario, tier: str | None, plan: Plan, open_tier: OpenTier, console: Console, *, whole_runs: bool = False,
) -> Fidelity:  # fmt: skip
    """Calibrate, then load the tier and simulate the same. Raises InputError before anything starts, where it can."""
    plan.check()
    subject = subject_of(loaded.scenario, loaded.path, tier, whole_runs=whole_runs)
    # Links whose delays cannot be injected are found out now.
    LinkDelays(subject.scenario, subject.tier, subject.seed, subject.load_trace)
    with _opened(open_tier, subject, plan.cell_s, console) as (live, bar):
        driven_s = (1 + plan.runs * len(plan.loads)) * plan.seconds
        bar.start((plan.runs + 1) * live.cells * plan.cell_s + driven_s)
        return run_fidelity(subject, live.system, live.measure, plan, bar.say, bar.advance)


@contextmanager
def _opened(open_tier: OpenTier, subject: Subject, cell_s: float, console: Console) -> Iterator[tuple[LiveTier, _Bar]]:
    """The tier, up, and a bar that its cells advance."""
    bar = _Bar(console)
    with ExitStack() as stack:
        with console.status(f"starting {subject.source} ..."):
            live = stack.enter_context(open_tier(subject, cell_s, lambda done, cells: bar.advance(cell_s)))
        stack.callback(bar.stop)
        yield live, bar


class _Bar:
    """A progress bar over the seconds that measuring takes."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task("measuring")

    def start(self, seconds: float) -> None:
        """Measuring takes so long."""
        self._bar.update(self._task, total=seconds)
        self._bar.start()

    def stop(self) -> None:
        """Leave the line as it is."""
        self._bar.stop()

    def say(self, text: str) -> None:
        """What happens now."""
        self._bar.update(self._task, description=text)

    def advance(self, seconds: float) -> None:
        """So many seconds of measuring are done."""
        self._bar.update(self._task, advance=seconds)
