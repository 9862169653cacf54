"""Who answers a scenario's tasks: the recordings it replays, and those policies may learn from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from sim.loading import data_path
from sim.scenario import Scenario
from sim.text_tasks import check_recorded
from workloads.agent import Agent
from workloads.backend import InferenceBackend
from workloads.errors import InputError
from workloads.recording import Recording, ReplayBackend, read_recording
from workloads.task import Task
from workloads.tasks.modelled_pair import ModelledPair


class TrainingSet(NamedTuple):
    """Requests to learn from, and what answers them."""

    tasks: Sequence[Task]
    backend: InferenceBackend


class Posed(NamedTuple):
    """Tasks that come with who asks and who answers them; `training` is None where there is nothing to learn from."""

    tasks: list[Task]
    agent: Agent
    backend: InferenceBackend
    training: TrainingSet | None


def recorded_answers(scenario: Scenario, tasks: Sequence[Task], scenario_path: Path) -> Recording:
    """The recording that answers tasks without answers of their own."""
    assert scenario.inference.recording is not None
    recording = read_isthmus(data_path(scenario.inference.recording, scenario_path))
    check_recorded(recording, tasks)
    return of_our_models(recording, [tier.model_name or name for name, tier in scenario.tiers.items()])


def answers_of(scenario: Scenario, tasks: Sequence[Task], scenario_path: Path) -> InferenceBackend:
    """Who answers tasks that are only asked, where no live models do."""
    if scenario.inference.backend == "modelled":
        return _made_up(tuple(sorted(qualities(scenario).items())))
    return replaying(recorded_answers(scenario, tasks, scenario_path))


@lru_cache(maxsize=4)
def _made_up(qualities: tuple[tuple[str, float], ...]) -> ModelledPair:
    """One backend for all cells of a run: what policies work out about its answers is worked out once."""
    return ModelledPair(dict(qualities))


def qualities(scenario: Scenario) -> dict[str, float]:
    """Model -> its quality; raises InputError where tiers disagree about a model."""
    found: dict[str, float] = {}
    for name, tier in scenario.tiers.items():
        model, quality = tier.model_name or name, tier.model.quality
        if found.setdefault(model, quality) != quality:
            problem = f"model_name {model!r} has qualities {found[model]:g} and {quality:g}"
            remedy = "Give equal models one quality, or names of their own"
            raise InputError(f"field tiers.{name}.model.quality", problem, remedy)
    return found


def training_set(scenario: Scenario, tasks: Sequence[Task], scenario_path: Path) -> TrainingSet | None:
    """The recording that policies may learn from. Raises InputError if it holds a question that is also asked in the run."""
    if scenario.inference.training is None:
        return None
    recording = read_isthmus(data_path(scenario.inference.training, scenario_path))
    of_our_models(recording, [tier.model_name or name for name, tier in scenario.tiers.items()])
    shared = {task.prompt for task in recording.tasks} & {task.prompt for task in tasks}
    if shared:
        raise InputError(
            recording.source, f"holds {len(shared)} questions of workload.tasks: a policy would be judged on what it learned from",
            "Record tasks of another split",
        )  # fmt: skip
    return TrainingSet(recording.tasks, replaying(recording))


@lru_cache(maxsize=4)
def replaying(recording: Recording) -> ReplayBackend:
    """One backend a recording: what policies work out about its answers is worked out once."""
    return ReplayBackend(recording)


def of_our_models(recording: Recording, models: Iterable[str]) -> Recording:
    """The recording, if it holds answers of all these models; raises InputError otherwise."""
    for model in models:
        if model not in recording.models:
            raise InputError(
                f"{recording.source}: field 'models'", f"no answers of {model!r}",
                f"Name a recorded model in the tier's model_name: {', '.join(recording.models)}",
            )  # fmt: skip
    return recording


@lru_cache(maxsize=4)
def read_isthmus(path: Path) -> Recording:
    """A recording, read once."""
    return read_recording(path)
