"""The placement trees of a study's tasks, and what a subtask's answer is worth in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from sim.policies.base import Study
from sim.policies.features import small_and_large
from workloads.backend import InferenceBackend
from workloads.errors import InputError, RecordingMiss
from workloads.expansion import MAX_DEPTH, Node, TaskTree, expand
from workloads.task import Message, Outcome, Task
from workloads.task_tree import Next

_GROWN: WeakKeyDictionary[InferenceBackend, dict[tuple[Any, ...], list[TaskTree]]] = WeakKeyDictionary()
"""Trees by backend: walking every path through a thousand tasks takes seconds, so cells share them."""


def two_models(study: Study) -> tuple[str, str]:
    """Names of the small and the large model."""
    small, large = small_and_large(study.tiers)
    return small.model, large.model


def subtask_text(messages: tuple[Message, ...]) -> str:
    """What a subtask is about, as one text: the request, then what was done and found so far."""
    return "\n".join(message.content for message in messages if message.role != "system")


def training_of(study: Study, policy: str) -> Study:
    """The study of the requests a policy may learn from. Raises InputError where the scenario names none, or they are empty."""
    if study.training is None:
        raise InputError(
            f"policy {policy!r}", "has nothing to learn from", "Name a counterfactual recording of other requests under inference.training"
        )  # fmt: skip
    if not study.training.tasks:
        raise InputError("inference.training", "the recording holds no task", "Record some: record --counterfactual 15")
    return study.training


def grow_trees(study: Study, tasks: Iterable[Task], models: tuple[str, ...] = ()) -> list[TaskTree]:
    """Every placement of the tasks on these models (none: the two), answered, each task once.

    Raises InputError where a recording does not hold them.
    """
    models = models or two_models(study)
    different = {task.id: task for task in tasks}
    grown = _GROWN.setdefault(study.backend, {})
    key = study.agent, models, tuple(different)
    try:
        if key not in grown:
            grown[key] = list(expand(study.agent, different.values(), study.backend, models, MAX_DEPTH))
        return grown[key]
    except RecordingMiss as miss:
        raise InputError(
            "the recording", f"does not hold every placement ({miss})", "Record with --counterfactual 15"
        ) from None


def both_answered(tree: TaskTree, models: tuple[str, str]) -> Iterator[Node]:
    """The nodes of a tree at which either model was asked: all but those beyond the recorded depth."""
    return (node for node in tree.nodes.values() if all(model in node.answers for model in models))


class Worth(NamedTuple):
    """Expected final score, in [0, 1], when the small or the large model answers a subtask and others follow."""

    small: float
    large: float


def worth(tree: TaskTree, models: tuple[str, str], large_share: float) -> dict[tuple[Message, ...], Worth]:
    """What either model's answer is worth at each conversation, if each later subtask goes large with probability `large_share`.

    Raises InputError for a tree with forks.
    """
    if tree.forks:
        raise InputError(
            f"task {tree.task.id!r}", "its agent forks: what one branch's answer is worth depends on the others",
            "Use a policy that does not learn this (hera, embedding-router, random), or an agent without branches",
        )  # fmt: skip
    known: dict[int, Worth] = {}

    def expected(step: Next) -> float:
        if isinstance(step, Outcome):
            return step.score
        value = known[id(step)]
        return (1 - large_share) * value.small + large_share * value.large

    for node in sorted(
        tree.nodes.values(), key=lambda node: -len(node.call.messages)
    ):  # what follows is longer: it comes first
        values = [expected(node.after[model]) if model in node.after else None for model in models]
        small, large = (value if value is not None else next(v for v in values if v is not None) for value in values)
        known[id(node)] = Worth(small, large)
    return {node.call.messages: known[id(node)] for node in tree.nodes.values()}
