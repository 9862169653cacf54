"""Where a request may go from a subtask on: what either model would say, and what that leads to.

HERA/AIMS predicts these with two subtask predictors, SP_SLM and SP_LLM. Here the predictor is behind one interface, so that
prediction errors and the policy's own design can be told apart: the same policy looks into the recorded tree (a perfect predictor),
into the tree of the most similar profiled subtask, or into what a trained decoder writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

from workloads.expansion import Node

Role = Literal["small", "large"]
ROLES: tuple[Role, Role] = ("small", "large")


class Outlook(Protocol):
    """A subtask and its future, known or predicted."""

    def output(self, role: Role) -> str:
        """What the model in this role says when it runs the subtask: the text of the next subtask."""
        ...

    def after(self, role: Role) -> Outlook | None:
        """The next subtask when that model runs this one; None where the request ends, or nobody knows."""
        ...


def roll(start: Outlook, role: Role, steps: int) -> Iterator[Outlook]:
    """`start` and what follows it when one model runs on, at most `steps` subtasks in all."""
    here: Outlook | None = start
    for _ in range(steps):
        if here is None:
            return
        yield here
        here = here.after(role)


class RecordedOutlook:
    """A node of a counterfactual tree: nothing is predicted. `models` are the names of the small and the large one."""

    __slots__ = ("models", "node")

    def __init__(self, node: Node, models: tuple[str, str]) -> None:
        self.node, self.models = node, models

    def output(self, role: Role) -> str:
        """What that model said."""
        return self.node.answers[self._model(role)].text if self._model(role) in self.node.answers else ""

    def after(self, role: Role) -> RecordedOutlook | None:
        """What came of it."""
        next_node = self.node.after.get(self._model(role))
        return RecordedOutlook(next_node, self.models) if isinstance(next_node, Node) else None

    def _model(self, role: Role) -> str:
        return self.models[ROLES.index(role)]
