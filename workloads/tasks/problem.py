"""What the embedded task families share: a problem told as facts that hang on each other, and two styles of solving it.

    Nia is 11 . Ben is Nia plus 10 . Kim is Nia times 4 . Ivo is Ben minus 2 . how much is Ivo ?

Each sentence says what a name is, outright or from a name told before. A chain of them leads to the name asked for, in order;
distractors hang on the chain or stand alone, and nothing hangs on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

Style = Literal["fine", "coarse"]
"""`fine` works out one name a step, as the small model is taught. `coarse`, as the large one is, thinks back from the name asked
for to what is known, and then works out two: `compute Ivo needs Ben needs Nia : Nia = 11 ; Ben = Nia + 10`."""
STYLES: tuple[Style, ...] = ("fine", "coarse")
_NAMES_A_STEP = {"fine": 1, "coarse": 2}

MAX_LENGTH = 6
"""Most dependent operations of a problem."""
MAX_DISTRACTORS = 2
HANGING = 0.7
"""How often a distractor hangs on the chain; the others stand alone."""
_LURED = 0.7
"""Share of useless steps that work out a distractor."""


@dataclass(frozen=True, slots=True)
class Fact:
    """`name` has `value`. `before` + the value of `base` + `after` is the expression a tool works it out from."""

    name: str
    value: str
    sentence: str
    base: str = ""
    before: str = ""
    after: str = ""

    def statement(self, base: str) -> str:
        """What a tool is asked, with `base` as the name or the value of what this hangs on."""
        return f"{self.name} = {self.before}{base}{self.after}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its solution, which no policy and no tool sees.

    `chain` holds the facts from the first to the one asked for, `others` the distractors, `length` the dependent operations.
    """

    verb: str
    prompt: str
    chain: tuple[Fact, ...]
    others: tuple[Fact, ...]
    length: int

    @property
    def answer(self) -> str:
        """The right answer, exactly."""
        return self.chain[-1].value

    @property
    def distractors(self) -> int:
        """Sentences that the answer does not need."""
        return len(self.others)

    def step(self, done: int, style: Style) -> tuple[str, int]:
        """The right next step when `done` facts of the chain are worked out, and how many are then."""
        if done == len(self.chain):
            return f"answer {self.answer}", done
        now = min(len(self.chain), done + _NAMES_A_STEP[style])
        thought = f"{' needs '.join(fact.name for fact in reversed(self.chain[done:]))} : " if style == "coarse" else ""
        return f"{self.verb} {thought}{' ; '.join(self._statements(done, now))}", now

    def _statements(self, done: int, now: int) -> Iterator[str]:
        """The first from a value that is known, a second from the name of the first."""
        for number in range(done, now):
            fact = self.chain[number]
            yield fact.statement(fact.base if number > done else self._value(fact.base))

    def _value(self, name: str) -> str:
        return next((fact.value for fact in self.chain if fact.name == name), "")

    def stray(self, done: int, random: Random) -> str:
        """A step that does not help: a distractor, what is known already, or nonsense. It never ends the request."""
        known = {fact.name for fact in self.chain[:done]} | {""}
        lures = [fact for fact in self.others if fact.base in known]
        if lures and random.random() < _LURED:
            fact = random.choice(lures)
        elif done and random.random() < 0.5:
            fact = self.chain[done - 1]
        else:
            fact = random.choice((*self.chain, *self.others))
            return f"{self.verb} {fact.name} {random.choice(('=', '= of', '= /'))}"
        return f"{self.verb} {fact.statement(self._value(fact.base))}"


def tell(chain: list[Fact], others: list[Fact], question: str, random: Random, shuffled: bool) -> str:
    """The chain in order, each distractor anywhere after what it hangs on, then the question; or all in any order."""
    told = list(chain)
    for fact in others:
        first = told.index(next(each for each in chain if each.name == fact.base)) + 1 if fact.base else 0
        told.insert(random.randint(first, len(told)), fact)
    if shuffled:
        random.shuffle(told)
    return " ".join((*(fact.sentence for fact in told), question))
