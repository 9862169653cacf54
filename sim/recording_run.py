"""What `record SCENARIO` does: asks live models and writes their answers, resumably, as a recording.

Either the scenario's policies are simulated and what they asked is kept, or every placement of every task is expanded
(workloads/expansion.py), so that any policy can be replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from rich.console import Console

from sim.cells import expand_cells
from sim.live_cells import run_live_cells
from sim.loading import LoadedScenario
from sim.recording_plan import RecordingPlan, plan_recording
from sim.recording_progress import Estimate, RecordingProgress, estimate
from sim.scenario import Scenario
from workloads.asking import KeepingBackend
from workloads.backend import InferenceBackend
from workloads.errors import BackendError, InputError, IsthmusError, RecordingMiss
from workloads.expansion import IN_FLIGHT, MAX_ANSWERS, TaskTree, TooManyAnswers, expand
from workloads.recording import Recording, RecordingBackend, ReplayBackend, write_recording
from workloads.recording_file import Header, RecordingWriter
from workloads.recording_journal import Journal, journal_path
from workloads.remembering import RememberingBackend
from workloads.trial import pure_trial

PILOT_TASKS = 24
"""Tasks spread over all of them that are expanded first, to tell how many answers the whole will take."""
_FEWER = "Give a smaller --counterfactual DEPTH or fewer tasks, or allow more answers; those in hand are kept"
_DRAINING = "keeping the answers that are under way; Ctrl-C ends it at once"
Expanding = Callable[..., Generator[TaskTree]]
"""`expand` but for the tasks, the number of answers allowed and whom to tell of them."""


class RecordingSummary(NamedTuple):
    """What was recorded; `kept` of the answers were there from before. `accuracy` of each model alone, where it can be told."""

    path: Path
    tasks: int
    answers: int
    bytes: int
    accuracy: Mapping[str, float]
    kept: int


def record(
    loaded: LoadedScenario, backend: InferenceBackend, out: Path, counterfactual_depth: int | None = None,
    tasks_limit: int | None = None, timings: bool = False, console: Console | None = None, *, max_answers: int = MAX_ANSWERS,
    in_flight: int = IN_FLIGHT, sampling: str = "greedy", fingerprints: Mapping[str, str] | None = None,
) -> RecordingSummary:  # fmt: skip
    """Ask `backend` for the answers that the scenario needs and write them to `out`.

    With `counterfactual_depth` (1 to 15) every placement of every task is recorded, else what the scenario's policies ask. An
    interrupted recording goes on when called again: answers are kept in a journal beside `out` until it is complete.
    `fingerprints` says, by model name, what the names cannot (such as a hash of the weights); a journal made with others is
    refused. Raises InputError for what cannot be recorded, and IsthmusError when a model keeps failing.
    """
    console = console or Console(quiet=True)
    plan = plan_recording(loaded, out, counterfactual_depth, tasks_limit, timings, sampling, fingerprints or {})
    with Journal(journal_path(out), plan.of) as journal:
        if journal.kept:
            console.print(f"{journal.kept:,} answers are kept from before.", highlight=False)
        if journal.damaged:
            console.print(f"{journal.damaged:,} damaged lines of the journal are asked again.", highlight=False)
        try:
            if counterfactual_depth is None:
                summary = _record_policies(plan, backend, journal, out, console)
            else:
                expanding = partial(
                    expand, plan.agent, backend=backend, models=plan.models, depth=counterfactual_depth, answers=journal,
                    sampling=sampling, in_flight=in_flight, timings=timings, on_drain=partial(console.print, _DRAINING),
                )  # fmt: skip
                summary = _record_trees(plan, expanding, max_answers, journal, out, console)
        except TooManyAnswers as error:
            raise InputError(f"--max-answers {max_answers}", f"{error.place} {error.problem}", _FEWER) from None
        except BackendError as error:
            kept = f"{len(journal):,} answers are kept in {journal.path}"
            raise IsthmusError(f"{error}. {kept}; the same command goes on from there") from error
        journal.discard()
    return summary


# --------------------------------------------------------------------------------------------------------- every placement


def _record_trees(
    plan: RecordingPlan, expanding: Expanding, max_answers: int, journal: Journal, out: Path, console: Console
) -> RecordingSummary:
    expected = _pilot(plan, expanding, max_answers, journal, console)
    scores = dict.fromkeys(plan.models, 0.0)
    with (
        RecordingWriter(out, plan.header, _partial(out)) as writer,
        RecordingProgress(console, len(plan.tasks), journal) as progress,
        closing(expanding(tasks=plan.tasks, max_answers=max_answers, on_answer=progress.answered)) as grown,
    ):
        progress.expect(expected)
        for tree in grown:
            _write_tree(tree, writer)
            for model in plan.models:
                scores[model] += tree.alone(model).score
            progress.unit_done(tree.answer_count())
        size = writer.finish()
    accuracy = {model: score / len(plan.tasks) for model, score in scores.items()}
    return RecordingSummary(out, writer.tasks, writer.answers, size, accuracy, journal.kept)


def _pilot(
    plan: RecordingPlan, expanding: Expanding, max_answers: int, journal: Journal, console: Console
) -> Estimate | None:
    """Expand a few tasks, spread over all, to say how much is to come; their answers serve the recording itself."""
    total = len(plan.tasks)
    if total <= PILOT_TASKS:
        return None
    chosen = [plan.tasks[i] for i in np.linspace(0, total - 1, PILOT_TASKS).round().astype(int)]
    allowed = max(1, max_answers * PILOT_TASKS // total)
    trees: list[TaskTree] = []
    try:
        with (
            RecordingProgress(console, PILOT_TASKS, journal, "estimating") as progress,
            closing(expanding(tasks=chosen, max_answers=allowed, on_answer=progress.answered)) as grown,
        ):
            for tree in grown:
                trees.append(tree)
                progress.unit_done(tree.answer_count())
    except TooManyAnswers:
        raise InputError(
            f"--max-answers {max_answers}",
            f"{PILOT_TASKS} of the {total:,} tasks alone need more than {allowed:,} answers, so that all would need more than allowed",
            _FEWER,
        ) from None
    sizes = [tree.answer_count() for tree in trees]
    expected = estimate(sizes, total, _packed_bytes(plan.header, trees) / max(1, sum(sizes)))
    console.print(f"Expected: {expected.text()}.", highlight=False)
    return expected


def _packed_bytes(header: Header, trees: Sequence[TaskTree]) -> int:
    """How large these trees are as a compressed recording."""
    with TemporaryDirectory() as folder, RecordingWriter(Path(folder) / "sample.gz", header) as writer:
        for tree in trees:
            _write_tree(tree, writer)
        return writer.finish()


def _partial(out: Path) -> Path:
    """One name for all attempts, so that a killed one leaves nothing behind; the journal's lock keeps others away."""
    return out.with_name(f".{out.name}.partial")


def _write_tree(tree: TaskTree, writer: RecordingWriter) -> None:
    writer.task(tree.task)
    for messages, answers in tree.conversations():
        writer.conversation(messages, answers)


# -------------------------------------------------------------------------------------------------- what the policies ask


def _record_policies(
    plan: RecordingPlan, backend: InferenceBackend, journal: Journal, out: Path, console: Console
) -> RecordingSummary:
    recording = Recording(plan.models, plan.header.sampling, str(out), plan.header.made)
    recording.tasks.extend(plan.tasks)
    keeping = KeepingBackend(backend, journal, plan.header.sampling, timings=plan.timings)
    asking = RecordingBackend(RememberingBackend(keeping), recording)
    cells = expand_cells(_live(plan.loaded))
    requests = sum(cell.scenario.workload.requests for cell in cells)
    with (
        RecordingProgress(console, requests, journal, unit="requests") as progress,
        _draining(keeping),
        closing(run_live_cells(cells, asking, lambda row: progress.unit_done(), one_by_one=plan.timings)) as results,
    ):
        for _ in results:
            pass
    write_recording(recording, out, _partial(out))
    accuracy = _accuracy(recording, plan)
    answers = len(recording.conversations())
    return RecordingSummary(out, len(recording.tasks), answers, out.stat().st_size, accuracy, journal.kept)


@contextmanager
def _draining(keeping: KeepingBackend) -> Iterator[None]:
    """When a model fails for good, or somebody interrupts, what others have answered by then is kept."""
    try:
        yield
    except (IsthmusError, KeyboardInterrupt):
        keeping.drain()
        raise


def _live(loaded: LoadedScenario) -> LoadedScenario:
    """The scenario as if its models were asked live: a recording it names need not be there yet."""
    return loaded._replace(variants=tuple(v._replace(scenario=_asking_live(v.scenario)) for v in loaded.variants))


def _asking_live(scenario: Scenario) -> Scenario:
    return scenario.model_copy(
        update={"inference": scenario.inference.model_copy(update={"backend": "serve", "recording": None})}
    )


def _accuracy(recording: Recording, plan: RecordingPlan) -> dict[str, float]:
    """Of each model alone, where all its answers were recorded."""
    replay, found = ReplayBackend(recording), {}
    for model in plan.models:
        try:
            scores = [pure_trial(plan.agent, task, replay, model).score for task in plan.tasks]
        except RecordingMiss:
            continue
        found[model] = float(np.mean(scores))
    return found
