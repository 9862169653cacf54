"""What the embedded task families share: a problem, how far a solution is, and the two styles of solving it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal, Protocol

Style = Literal["fine", "coarse"]
"""`fine` does one thing a step, as the small model is taught; `coarse` plans, then does two, as the large one is."""
STYLES: tuple[Style, ...] = ("fine", "coarse")

MAX_LENGTH = 6
"""Most dependent operations of a problem."""
MAX_DISTRACTORS = 3


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a conversation is: operations done on the way to the answer, first fact noted, plan written."""

    done: int = 0
    noted: bool = False
    planned: bool = False


class Problem(Protocol):
    """A question with its solution, which no policy and no tool sees."""

    @property
    def prompt(self) -> str:
        """The question as the user asks it."""
        ...

    @property
    def answer(self) -> str:
        """The right answer, exactly."""
        ...

    @property
    def length(self) -> int:
        """Dependent operations, 1 to MAX_LENGTH."""
        ...

    @property
    def distractors(self) -> int:
        """Clauses that have nothing to do with the answer."""
        ...

    def step(self, progress: Progress, style: Style) -> tuple[str, Progress]:
        """The right next step in this style, and the progress once its observation is in."""
        ...

    def recite(self, random: Random) -> tuple[str, str]:
        """Another question about the same text, and its plan: an exercise in looking things up."""
        ...

    def stray(self, progress: Progress, random: Random, seen: str) -> str:
        """A step that does not help: irrelevant, wrong or malformed; `seen` is the last observation. It never ends the request."""
        ...
