"""HERA's offline profile: what both models do with every subtask of the profiled requests, as tables to learn from.

Each profiled request is a tree: every node is a subtask (a conversation), its two branches what the small and the large model make
of it. HERA/AIMS (EuroSys 2026, section 4) profiles so, to a depth of 15.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from sim.policies.base import Study
from sim.policies.hera.outlook import Outlook, RecordedOutlook, roll
from sim.policies.hera.similarity import EmbeddingSimilarity, Similarity
from sim.policies.trees import both_answered, grow_trees, subtask_text, two_models
from workloads.expansion import TaskTree
from workloads.task import Message, Task

MOST_EXTRA = 5
"""Extra small subtasks after which a large one counts as never matched."""


class ProfiledRequest(NamedTuple):
    """A request run by either model throughout; `similarity` is that of the two final outputs, URC's target."""

    task: Task
    small_answer: str
    large_answer: str
    small_score: float
    large_score: float
    similarity: float


class ProfiledSubtask(NamedTuple):
    """One node of a request's tree.

    `small_output` and `large_output` are the next subtask by who runs this one (the targets of SP_SLM and SP_LLM), `similarity`
    theirs, `distance` the S-L distance of the large one's (DP's target; infinite: never matched). `on_large_path` tells whether
    the large model alone would get here.
    """

    task: Task
    position: int
    text: str
    small_output: str
    large_output: str
    similarity: float
    distance: float
    on_large_path: bool
    outlook: RecordedOutlook


class Profile(NamedTuple):
    """The tables of one profiling, and the trees they are taken from by conversation."""

    models: tuple[str, str]
    requests: tuple[ProfiledRequest, ...]
    subtasks: tuple[ProfiledSubtask, ...]


def outlooks(trees: Iterable[TaskTree], models: tuple[str, str]) -> dict[tuple[Message, ...], RecordedOutlook]:
    """The nodes of the trees by their conversations."""
    return {node.call.messages: RecordedOutlook(node, models) for tree in trees for node in tree.nodes.values()}


def said_in(tree: TaskTree, models: tuple[str, str]) -> list[str]:
    """Every text of a task's tree that is ever compared."""
    said = [answer.text for node in tree.nodes.values() for answer in node.answers.values()]
    return [*said, *(tree.alone(model).answer for model in models)]


def s_l_distance(start: Outlook, similar: Callable[[str, str], bool], most: int = MOST_EXTRA) -> float:
    """How many extra subtasks the small model needs until one is similar to what the large one makes of `start`; else infinity."""
    target = start.output("large")
    for extra, here in enumerate(roll(start, "small", most + 1)):
        if similar(here.output("small"), target):
            return float(extra)
    return math.inf


def profile_of(study: Study, similarity: EmbeddingSimilarity, threshold: float) -> Profile:
    """Profile all tasks of a study; texts are similar from `threshold` on. Raises InputError for a recording without counterfactuals."""
    models, trees = two_models(study), grow_trees(study, study.tasks)
    similarity.know(text for tree in trees for text in said_in(tree, models))
    requests = tuple(_request(tree, models, similarity) for tree in trees)
    subtasks = tuple(row for tree in trees for row in _subtasks(tree, models, similarity, threshold))
    return Profile(models, requests, subtasks)


def _request(tree: TaskTree, models: tuple[str, str], similarity: Similarity) -> ProfiledRequest:
    small, large = (tree.alone(model) for model in models)
    return ProfiledRequest(
        tree.task, small.answer, large.answer, small.score, large.score, similarity(small.answer, large.answer)
    )


def _subtasks(
    tree: TaskTree, models: tuple[str, str], similarity: Similarity, threshold: float
) -> Iterable[ProfiledSubtask]:
    large_path = {id(node) for node in tree.path(models[1])}

    def similar(first: str, second: str) -> bool:
        return similarity(first, second) > threshold

    for node in both_answered(tree, models):
        here = RecordedOutlook(node, models)
        small, large = here.output("small"), here.output("large")
        yield ProfiledSubtask(
            tree.task,
            node.call.position,
            subtask_text(node.call.messages),
            small,
            large,
            similarity(small, large),
            s_l_distance(here, similar),
            id(node) in large_path,
            here,
        )
