"""What a request can become, as a tree: every conversation that some placement leads to, and where a request forks, every join."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from workloads.agent import Run
from workloads.task import Completion, Message, ModelCall, Outcome, Task

Result: TypeAlias = Outcome | Completion
"""How a request or a branch ends; a branch of a single call ends with its answer."""
Item: TypeAlias = "Completion | tuple[Result, ...] | int"
"""One thing on the way to a place: an answer, the results that joined a fork, or which of its branches was entered."""
Next: TypeAlias = "Node | Fork | Result"


class Within(NamedTuple):
    """The branch that something is in."""

    fork: Fork
    number: int


class Place(NamedTuple):
    """One way to a point of the tree, how many answers or joins deep it is, and the innermost branch it is in."""

    path: tuple[Item, ...]
    level: int
    within: Within | None

    def then(self, item: Completion | tuple[Result, ...]) -> Place:
        """The place after an answer or a join."""
        return Place((*self.path, item), self.level + 1, self.within)


class Node:
    """A conversation that some placement leads to.

    `answers[m]` is what model m said to it and `after[m]` what came of that: the next node or fork, or the end of the request or the
    branch. `run` is an agent that waits here for an answer.
    """

    __slots__ = ("after", "answers", "asked", "call", "place", "run")

    def __init__(self, call: ModelCall, place: Place, run: Run) -> None:
        self.call, self.place = call, place
        self.run: Run | None = run
        self.asked: set[str] = set()
        self.answers: dict[str, Completion] = {}
        self.after: dict[str, Next] = {}


class Fork:
    """Branches that run side by side.

    `branches` are their beginnings, `ends[i]` the results that branch i can have, `after` what follows each combination of results.
    """

    __slots__ = ("after", "branches", "ends", "models", "number", "place", "run")

    def __init__(self, number: int, count: int, place: Place, run: Run, models: Sequence[str]) -> None:
        self.number, self.place, self.models = number, place, models
        self.run: Run | None = run
        self.branches: list[Next] = []
        self.ends: list[list[Result]] = [[] for _ in range(count)]
        self.after: dict[tuple[Result, ...], Next] = {}


class TaskTree:
    """All that was expanded of one task."""

    def __init__(self, task: Task, models: Sequence[str], number: int) -> None:
        self.task, self.number, self._models = task, number, models
        self.nodes: dict[tuple[Any, ...], Node] = {}
        self.root: Next = Outcome(0.0)
        self.forks = self.open = 0
        """Forks found, and calls not answered yet."""

    def conversations(self) -> list[tuple[tuple[Message, ...], list[Completion]]]:
        """Each conversation once with the answers to it, conversations in order, models as given."""
        merged: dict[tuple[Message, ...], dict[str, Completion]] = {}
        for node in self.nodes.values():
            merged.setdefault(node.call.messages, {}).update(node.answers)
        return [(m, [merged[m][name] for name in self._models if name in merged[m]]) for m in sorted(merged)]

    def answer_count(self) -> int:
        """Different answers in the tree."""
        return len({(model, node.call.messages) for node in self.nodes.values() for model in node.answers})

    def path(self, model: str) -> list[Node]:
        """The nodes the request passes when one model answers throughout, branch after branch."""
        passed = list[Node]()
        _followed(self.root, model, passed)
        return passed

    def alone(self, model: str) -> Outcome:
        """How the request ends when one model answers throughout."""
        outcome = _followed(self.root, model, [])
        assert isinstance(outcome, Outcome)
        return outcome


def _followed(step: Next, model: str, passed: list[Node]) -> Result:
    while isinstance(step, Node | Fork):
        if isinstance(step, Node):
            passed.append(step)
            step = step.after[model]
        else:
            step = step.after[tuple(_followed(branch, model, passed) for branch in step.branches)]
    return step
