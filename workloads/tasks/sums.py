"""Word problems over quantities that hang on each other, with a calculator.

Nia is 11 . Ben is Nia plus 10 . Kim is Nia times 4 . Ivo is Ben minus 2 . how much is Ivo ?
"""

from __future__ import annotations

from random import Random

from workloads.tasks.problem import HANGING, Fact, Problem, tell

_NAMES = "Nia Ben Kim Ivo Ada Tom Zoe Leo Mia Sam Eva Max Uma Rex Ina Jon Lea Ned Pia Gus"
NAMES = tuple(_NAMES.split())
LARGEST = 99
"""No quantity in a problem exceeds this."""
_MOST = 50
"""No quantity given outright, and none added or taken away, exceeds this."""

_SIGNS = {"plus": "+", "minus": "-", "times": "*"}
_OTHER_WORDS = "is how much compute needs answer error : = ( ) . ? ; /"
WORDS = (*NAMES, *_SIGNS, *_SIGNS.values(), *_OTHER_WORDS.split())
"""Every word a question, a step or an observation of this family is made of, numbers aside."""


def _given(name: str, random: Random) -> Fact:
    value = str(random.randint(2, _MOST))
    return Fact(name, value, f"{name} is {value} .", before=value)


def _derived(name: str, base: Fact, random: Random) -> Fact:
    """A fact about `name` in terms of `base` whose value stays within 1..LARGEST."""
    start, word = int(base.value), random.choice(tuple(_SIGNS))
    if word == "times" and start * 2 <= LARGEST:
        amount = random.randint(2, min(5, LARGEST // start))
        value = start * amount
    elif (word == "minus" and start > 1) or start == LARGEST:
        word, amount = "minus", random.randint(1, min(_MOST, start - 1))
        value = start - amount
    else:
        word, amount = "plus", random.randint(1, min(_MOST, LARGEST - start))
        value = start + amount
    sentence = f"{name} is {base.name} {word} {amount} ."
    return Fact(name, str(value), sentence, base.name, after=f" {_SIGNS[word]} {amount}")


def draw(random: Random, length: int, distractors: int, shuffled: bool = False) -> Problem:
    """A random problem of this difficulty: one quantity given, `length` operations, `distractors` sentences for nothing."""
    names = iter(random.sample(NAMES, length + 1 + distractors))
    chain = [_given(next(names), random)]
    for _ in range(length):
        chain.append(_derived(next(names), chain[-1], random))
    others = []
    for _ in range(distractors):
        hangs = random.random() < HANGING
        others.append(
            _derived(next(names), random.choice(chain[:-1]), random) if hangs else _given(next(names), random)
        )
    prompt = tell(chain, others, f"how much is {chain[-1].name} ?", random, shuffled)
    return Problem("compute", prompt, tuple(chain), tuple(others), length)
