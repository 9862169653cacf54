"""Tasks that are only asked: the shipped pair's, and question files. A recording or live models answer them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sim.loading import data_path
from sim.scenario import BranchingTasks, Gsm8kTasks, HotpotQaTasks, PairTasks, Scenario
from workloads.agent import Agent
from workloads.errors import InputError
from workloads.recording import Recording
from workloads.task import Task
from workloads.tasks.branching import branching_agent, branching_tasks
from workloads.tasks.files import gsm8k_agent, gsm8k_tasks, hotpotqa_agent, hotpotqa_tasks
from workloads.tasks.pair import Split, pair_agent, pair_tasks


class TextTasks(NamedTuple):
    """Tasks and the agent that works on them."""

    tasks: Sequence[Task]
    agent: Agent


@lru_cache(maxsize=8)
def _agent(kind: str, metric: str) -> Agent:
    """One agent object a kind, so that equal workloads share it."""
    if kind == "pair":
        return pair_agent()
    if kind == "branching":
        return branching_agent()
    return gsm8k_agent() if kind == "gsm8k" else hotpotqa_agent(metric=metric)


def text_tasks(scenario: Scenario, scenario_path: Path) -> TextTasks:
    """The scenario's tasks and their agent. Raises InputError for a file that holds none."""
    spec = scenario.workload.tasks
    agent = _agent(spec.kind, getattr(spec, "metric", ""))
    if isinstance(spec, PairTasks):
        return TextTasks(
            _pair(spec.split, spec.distinct_tasks, spec.draw, spec.families, spec.lengths, spec.distractors), agent
        )
    if isinstance(spec, BranchingTasks):
        difficulty = spec.branches, spec.lengths, spec.distractors
        return TextTasks(_branching(spec.split, spec.distinct_tasks, spec.draw, *difficulty), agent)
    if isinstance(spec, Gsm8kTasks):
        return TextTasks(_gsm8k(data_path(spec.path, scenario_path), spec.limit), agent)
    assert isinstance(spec, HotpotQaTasks)
    return TextTasks(_hotpotqa(data_path(spec.path, scenario_path), spec.limit), agent)


@lru_cache(maxsize=4)
def _pair(split: str, count: int, draw: int, *difficulty: tuple[Any, ...]) -> tuple[Task, ...]:
    return tuple(pair_tasks(split, count, draw, *difficulty))


@lru_cache(maxsize=4)
def _branching(split: Split, count: int, draw: int, *difficulty: tuple[Any, ...]) -> tuple[Task, ...]:
    return tuple(branching_tasks(split, count, draw, *difficulty))


@lru_cache(maxsize=4)
def _gsm8k(path: Path, limit: int | None) -> tuple[Task, ...]:
    return tuple(gsm8k_tasks(path, limit))


@lru_cache(maxsize=4)
def _hotpotqa(path: Path, limit: int | None) -> tuple[Task, ...]:
    return tuple(hotpotqa_tasks(path, limit))


def check_recorded(recording: Recording, tasks: Sequence[Task]) -> None:
    """Raise InputError for a task the recording knows nothing of, or knows as another question."""
    known = {task.id: task.prompt for task in recording.tasks}
    for task in tasks:
        if known.get(task.id) != task.prompt:
            raise InputError(
                f"{recording.source}: the tasks", f"hold {'no' if task.id not in known else 'another'} task {task.id!r}",
                "It was recorded of other tasks: use the workload.tasks it was made with, or record again with "
                "`run_sim.py record`",
            )  # fmt: skip
