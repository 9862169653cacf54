"""Word problems over quantities that hang on each other, with a calculator.

    Nia is 11 . Ben is 10 above Nia . Kim is 4 times Nia . Ivo is 2 below Ben . how much is Ivo ?

Each sentence names a person once; a chain of sentences leads from the first fact to the question, in order. Distractors are
sentences about people the answer does not need; they hang on people of the chain or on each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from workloads.tasks.problem import Progress, Style

_NAMES = "Nia Ben Kim Ivo Ada Tom Zoe Leo Mia Sam Eva Max Uma Rex Ina Jon Lea Ned Pia Gus"
NAMES = tuple(_NAMES.split())
LARGEST = 99
"""No quantity in a problem exceeds this."""
_MOST = 50
"""No quantity given outright, and none added or taken away, exceeds this."""

_SIGNS = {"above": "+", "below": "-", "times": "*"}
_OTHER_WORDS = "is how much note noted plan compute answer error = ( ) . ? /"
WORDS = (*NAMES, *_SIGNS, *_SIGNS.values(), *_OTHER_WORDS.split())
"""Every word a question, a step or an observation of this family is made of, numbers aside."""


@dataclass(frozen=True, slots=True)
class Fact:
    """`name` has `value`: given outright (`base` empty) or as `amount` above, below or times that of `base`."""

    name: str
    value: int
    base: str = ""
    word: str = ""
    amount: int = 0

    @property
    def sentence(self) -> str:
        """The fact in words, without the full stop."""
        if not self.base:
            return f"{self.name} is {self.value}"
        return f"{self.name} is {self.amount} {self.word} {self.base}"


@dataclass(frozen=True, slots=True)
class Sums:
    """A problem; `chain` holds the facts from the first to the one asked for, `others` the distractors."""

    prompt: str
    chain: tuple[Fact, ...]
    others: tuple[Fact, ...]

    @property
    def length(self) -> int:
        """Operations to compute."""
        return len(self.chain) - 1

    @property
    def distractors(self) -> int:
        """Sentences that the answer does not need."""
        return len(self.others)

    @property
    def answer(self) -> str:
        """The quantity asked for."""
        return str(self.chain[-1].value)

    def step(self, progress: Progress, style: Style) -> tuple[str, Progress]:
        """Fine: note the first fact, then one operation a step. Coarse: plan the chain, then two a step."""
        done = progress.done
        if done == self.length:
            return f"answer {self.answer}", progress
        if style == "coarse" and not progress.planned:
            return self._plan(self.chain[-1]), Progress(done, progress.noted, planned=True)
        if style == "fine" and not done and not progress.noted:
            return f"note {self.chain[0].sentence}", Progress(done, noted=True, planned=progress.planned)
        stop = min(self.length, done + (1 if style == "fine" else 2))
        expression = _expression(str(self.chain[done].value), self.chain[done + 1 : stop + 1])
        return f"compute {self.chain[stop].name} = {expression}", Progress(stop, progress.noted, progress.planned)

    def _plan(self, fact: Fact) -> str:
        """The clauses from this fact back to the one given outright, each beginning where the last one ended."""
        facts, text = {each.name: each for each in (*self.chain, *self.others)}, f"plan {fact.name}"
        while fact.base:
            text, fact = f"{text} is {fact.amount} {fact.word} {fact.base}", facts[fact.base]
        return f"{text} is {fact.value}"

    def recite(self, random: Random) -> tuple[str, str]:
        """The plan of anybody, distractors included."""
        fact = random.choice((*self.chain, *self.others))
        return f"how much is {fact.name} ?", self._plan(fact)

    def stray(self, progress: Progress, random: Random, seen: str) -> str:
        """A distractor's fact or quantity, an operation out of turn or with a wrong sign, or a broken expression."""
        del seen
        kind = random.random()
        known = {fact.name: fact.value for fact in (*self.chain[: progress.done + 1], *self.others)}
        ready = [fact for fact in self.others if fact.base in known]
        if ready and kind < 0.6:
            fact = random.choice(ready)
            return f"compute {fact.name} = {_expression(str(known[fact.base]), (fact,))}"
        if kind < 0.75:
            given = [fact for fact in (*self.chain, *self.others) if not fact.base]
            return f"note {random.choice(given).sentence}"
        # Never a wrong value for what is already done: the latest value of a name is the one that counts.
        fact = random.choice((*self.chain[progress.done + 1 :], *self.others) or (self.chain[0],))
        value = random.choice((*known.values(), random.randint(1, LARGEST)))
        if kind < 0.92 and fact.base:
            sign = random.choice(tuple(_SIGNS.values()))
            return f"compute {fact.name} = {value} {sign} {fact.amount}"
        return f"compute {fact.name} = {value} {random.choice(('+', '* /', ')'))}"


def _expression(start: str, facts: tuple[Fact, ...]) -> str:
    """What was there, then each operation; brackets go around all but the last."""
    text = start
    for number, fact in enumerate(facts):
        text = f"( {text} )" if number else text
        text = f"{text} {_SIGNS[fact.word]} {fact.amount}"
    return text


def _derive(random: Random, name: str, base: Fact) -> Fact:
    """A fact about `name` in terms of `base` whose value stays within 1..LARGEST."""
    word = random.choice(tuple(_SIGNS))
    if word == "times" and base.value * 2 <= LARGEST:
        amount = random.randint(2, min(5, LARGEST // base.value))
        return Fact(name, base.value * amount, base.name, word, amount)
    if (word == "below" and base.value > 1) or base.value == LARGEST:
        amount = random.randint(1, min(_MOST, base.value - 1))
        return Fact(name, base.value - amount, base.name, "below", amount)
    amount = random.randint(1, min(_MOST, LARGEST - base.value))
    return Fact(name, base.value + amount, base.name, "above", amount)


def draw(random: Random, length: int, distractors: int) -> Sums:
    """A random problem of this difficulty."""
    names = random.sample(NAMES, length + 1 + distractors)
    chain = [Fact(names[0], random.randint(2, _MOST))]
    for name in names[1 : length + 1]:
        chain.append(_derive(random, name, chain[-1]))
    told, others = list(chain), []
    for name in names[length + 1 :]:
        place = random.randint(0, len(told))
        fact = _derive(random, name, random.choice(told[:place])) if place else Fact(name, random.randint(2, _MOST))
        told.insert(place, fact)
        others.append(fact)
    sentences = " . ".join(fact.sentence for fact in told)
    return Sums(f"{sentences} . how much is {chain[-1].name} ?", tuple(chain), tuple(others))
