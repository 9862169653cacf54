"""HERA's estimators behind one interface, so that the policy and what it believes can be told apart.

`perfect` reads the recorded tree of the very request: no router can know it, it shows what the policy's design reaches. `retrieval`
takes the most similar profiled request or subtask for the one at hand. Trained ones are in trained.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sim.policies.base import Study
from sim.policies.features import FloatArray
from sim.policies.hera.outlook import Outlook, RecordedOutlook, roll
from sim.policies.hera.profile import MOST_EXTRA, outlooks, profile_of, s_l_distance, said_in
from sim.policies.hera.similarity import EmbeddingSimilarity, nearest
from sim.policies.trained import sampled
from sim.policies.trees import grow_trees, subtask_text, training_of, two_models
from workloads.task import Message, ModelCall, Task

Similar = Callable[[str, str], bool]


class Estimators(Protocol):
    """What HERA believes of a request and its subtasks."""

    @property
    def prediction_s(self) -> float:
        """Time to predict one subtask, s."""
        ...

    def prepare(self, study: Study) -> None:
        """Learn, or look up."""
        ...

    def request_similarity(self, task: Task) -> float:
        """URC: how alike the two models' final outputs will be, in [0, 1]."""
        ...

    def outlook(self, call: ModelCall) -> Outlook | None:
        """SP_SLM and SP_LLM: this subtask and its future; None where nothing is believed."""
        ...

    def distance(self, call: ModelCall, here: Outlook, similar: Similar) -> float:
        """DP: the S-L distance of this subtask; infinite where the small model never gets there."""
        ...

    def parts(self, here: Outlook, similar: Similar) -> Sequence[Outlook]:
        """SD: simpler subtasks of which the last one leads where the large model's step does; empty where there are none."""
        ...


def small_steps(here: Outlook, similar: Similar) -> list[Outlook]:
    """The subtasks after `here` on the small model, up to the one whose text is like the large model's next subtask.

    Empty if none is within reach. This is how a recording knows decompositions: the small model's own finer steps.
    """
    target, parts = here.output("large"), list[Outlook]()
    for before in roll(here, "small", MOST_EXTRA + 1):
        after = before.after("small")
        if after is None:
            return []
        parts.append(after)
        if similar(before.output("small"), target):
            return parts
    return []


class _FromTrees:
    """What follows from an outlook that is a recorded tree, the request's own or another's."""

    prediction_s = 0.0

    def distance(self, call: ModelCall, here: Outlook, similar: Similar) -> float:
        """Counted in the tree."""
        return s_l_distance(here, similar)

    def parts(self, here: Outlook, similar: Similar) -> list[Outlook]:
        """The small model's own steps in the tree."""
        return small_steps(here, similar)


class Perfect(_FromTrees):
    """Reads the trees of the study's own requests; `among` are the models that may answer, where they are more than two."""

    def __init__(self, similarity: EmbeddingSimilarity, among: tuple[str, ...] = ()) -> None:
        self._similarity, self._among = similarity, among
        self._outlooks: dict[tuple[Message, ...], RecordedOutlook] = {}
        self._requests: dict[str, float] = {}

    def prepare(self, study: Study) -> None:
        """Grow the tree of every task."""
        models, trees = two_models(study), grow_trees(study, study.tasks, self._among)
        self._outlooks = outlooks(trees, models)
        self._similarity.know(said for tree in trees for said in said_in(tree, models))
        for tree in trees:
            small, large = (tree.alone(model).answer for model in models)
            self._requests[tree.task.prompt] = max(0.0, self._similarity(small, large))

    def request_similarity(self, task: Task) -> float:
        """As recorded; a request nobody recorded counts as unlike."""
        return self._requests.get(task.prompt, 0.0)

    def outlook(self, call: ModelCall) -> RecordedOutlook | None:
        """The node of the conversation."""
        return self._outlooks.get(call.messages)


class _Table(NamedTuple):
    """Embeddings of unit length, shape (rows, width), and what each row stands for."""

    embeddings: FloatArray
    values: Sequence[Any]


class Retrieval(_FromTrees):
    """Believes of a request or subtask what the most similar ones of the profile turned out to be."""

    def __init__(self, similarity: EmbeddingSimilarity, neighbours: int, threshold: float, requests: int) -> None:
        self._similarity, self._neighbours, self._threshold, self._count = similarity, neighbours, threshold, requests
        self._requests = self._subtasks = _Table(np.empty((0, 0)), ())

    def prepare(self, study: Study) -> None:
        """Embed the profile of the study's training requests. Raises InputError where the scenario names none."""
        training = training_of(study, "hera")
        training = training._replace(tasks=training.tasks[: self._count])
        profile = profile_of(training, self._similarity, self._threshold)
        self._requests = self._table([(row.task.prompt, row.similarity) for row in profile.requests])
        self._subtasks = self._table(sampled([(row.text, row.outlook) for row in profile.subtasks]))

    def _table(self, rows: Sequence[tuple[str, Any]]) -> _Table:
        self._similarity.know(text for text, _ in rows)
        return _Table(np.array([self._similarity.embedding(text) for text, _ in rows]), [value for _, value in rows])

    def request_similarity(self, task: Task) -> float:
        """Mean of the nearest requests, weighted by closeness."""
        found = nearest(self._requests.embeddings, self._similarity.embedding(task.prompt), self._neighbours)
        weights = [max(1e-6, closeness) for _, closeness in found]
        values = [self._requests.values[row] for row, _ in found]
        return float(np.average(values, weights=weights))

    def outlook(self, call: ModelCall) -> RecordedOutlook:
        """The tree of the nearest subtask."""
        asked = self._similarity.embedding(subtask_text(call.messages))
        ((row, _),) = nearest(self._subtasks.embeddings, asked, 1)
        outlook: RecordedOutlook = self._subtasks.values[row]
        return outlook
