"""Multi-hop questions over an invented knowledge base, with a `find` tool.

    Q is Blue Harbor 's director . T is Q 's rival . R is Q 's boss . who is R ?

Every relation leads from each entity of one kind to one entity of another, so a chain of them has exactly one answer. All
names and facts come from a fixed seed; letters stand for what is to be found.
"""

from __future__ import annotations

import re
from functools import cache
from random import Random

from workloads.task import Task
from workloads.tasks.problem import HANGING, Fact, Problem, tell
from workloads.tools import statements

_NAME_PARTS = {
    "person": (
        "Nia Ben Kim Ivo Ada Tom Zoe Leo Mia Sam Eva Max Uma Rex Ina Jon Lea Ned Pia Gus",
        "Voss Dask Brand Calder Ferro Gray Holm Iden Jarvis Keller Lund Moreau Norden Orso Petrov Quill Rask Sato Thorne Ueda",
    ),
    "film": (
        "Blue Red Silent Golden Broken Hidden Frozen Burning Distant Hollow Velvet Crimson",
        "Harbor Tide Garden Mirror River Crown Bridge Winter Signal Orchard Lantern Empire",
    ),
    "book": (
        "Paper Iron Glass Wooden Copper Silver Amber Stone Linen Marble",
        "Letters Shadows Islands Voices Maps Secrets Doors Wings Rooms Seasons",
    ),
    "city": ("North South East West Upper Lower Old New", "Lindel Marrow Tessen Ardon Velka Corby Hadley Ostra"),
    "company": ("Orvex Talon Nimbus Quanta Zephyr Helix Vertex Solace", "Labs Motors Foods Works Trading Steel Media Energy"),
}  # fmt: skip

RELATIONS = {
    "mother": ("person", "person"), "father": ("person", "person"), "spouse": ("person", "person"),
    "friend": ("person", "person"), "teacher": ("person", "person"), "boss": ("person", "person"),
    "rival": ("person", "person"), "doctor": ("person", "person"), "neighbor": ("person", "person"),
    "hometown": ("person", "city"), "employer": ("person", "company"), "favorite": ("person", "film"),
    "memoir": ("person", "book"), "mayor": ("city", "person"), "sheriff": ("city", "person"),
    "director": ("film", "person"), "star": ("film", "person"), "source": ("film", "book"), "setting": ("film", "city"),
    "author": ("book", "person"), "editor": ("book", "person"), "publisher": ("book", "company"),
    "founder": ("company", "person"), "chairman": ("company", "person"), "seat": ("company", "city"),
}  # fmt: skip
"""Relation -> (kind it is asked of, kind it leads to)."""

NOTHING = "nothing found"
LETTERS = tuple("FGHJKPQRSTVW")
"""Names for what is to be found."""
_FROM = {kind: tuple(r for r, (source, _) in RELATIONS.items() if source == kind) for kind in _NAME_PARTS}
_SEED = "knowledge base 1"

_OTHER_WORDS = "find needs answer nothing found who what is 's the of : = . ? ;"
WORDS = (
    *LETTERS, *(word for parts in _NAME_PARTS.values() for part in parts for word in part.split()), *RELATIONS, *_OTHER_WORDS.split(),
)  # fmt: skip
"""Every word a question, a step or an observation of this family is made of."""


@cache
def entities(kind: str) -> tuple[str, ...]:
    """All names of this kind."""
    first, last = _NAME_PARTS[kind]
    return tuple(f"{a} {b}" for a in first.split() for b in last.split())


@cache
def facts() -> dict[tuple[str, str], str]:
    """(relation, entity) -> entity, the same in every process."""
    random, table = Random(_SEED), {}
    for relation, (source, target) in RELATIONS.items():
        for name in entities(source):
            choice = random.choice(entities(target))
            while choice == name:
                choice = random.choice(entities(target))
            table[relation, name] = choice
    return table


@cache
def _spelling() -> dict[str, str]:
    return {name.lower(): name for kind in _NAME_PARTS for name in entities(kind)}


def find(task: Task, argument: str) -> str:
    """Looks up relations: `Blue Harbor 's director 's mother` or `mother of director of Blue Harbor`; else `nothing found`.

    `Q = Blue Harbor 's director ; R = Q 's boss` -> `Q = Nia Voss ; R = Ivo Dask`: a label may be used after it.
    """
    del task
    return statements(argument, _follow)


def _follow(expression: str, known: dict[str, str]) -> str:
    first, *possessed = re.split(r"\s*['’]s\b\s*", expression.rstrip("?. "))
    links = " ".join(word for word in first.split() if word != "the").split(" of ")
    name, relations = links[-1].strip(), [*reversed(links[:-1]), *possessed]
    current = _spelling().get(known.get(name, name).lower())
    for relation in relations:
        current = facts().get((relation.strip().lower(), current)) if current else None
    return current if current and relations else NOTHING


def _fact(letter: str, base: Fact | None, kind: str, random: Random, taken: Fact | None = None) -> tuple[Fact, str]:
    """What a random relation of `base`, of this kind, leads to, and its kind; of a random entity without a base.

    Never the relation of `taken`, which hangs on the same base: a wrong way would give the right name.
    """
    relation = random.choice([r for r in _FROM[kind] if taken is None or taken.after != f" 's {r}"])
    start = base.value if base else random.choice(entities(kind))
    after = f" 's {relation}"
    sentence = f"{letter} is {base.name if base else start}{after} ."
    value = facts()[relation, start]
    fact = (
        Fact(letter, value, sentence, base.name, "", after)
        if base
        else Fact(letter, value, sentence, "", start + after)
    )
    return fact, RELATIONS[relation][1]


def draw(random: Random, length: int, distractors: int, shuffled: bool = False) -> Problem:
    """A random question of this difficulty: `length` relations to follow, `distractors` sentences for nothing."""
    letters = iter(random.sample(LETTERS, length + distractors))
    chain: list[Fact] = []
    kinds = [random.choice(tuple(_NAME_PARTS))]
    for _ in range(length):
        fact, kind = _fact(next(letters), chain[-1] if chain else None, kinds[-1], random)
        chain.append(fact)
        kinds.append(kind)
    others = []
    for _ in range(distractors):
        place = random.randrange(1, length) if length > 1 and random.random() < HANGING else 0
        kind = kinds[place] if place else random.choice(tuple(_NAME_PARTS))
        base, taken = (chain[place - 1], chain[place]) if place else (None, None)
        others.append(_fact(next(letters), base, kind, random, taken)[0])
    word = "who" if kinds[-1] == "person" else "what"
    return Problem(
        "find",
        tell(chain, others, f"{word} is {chain[-1].name} ?", random, shuffled),
        tuple(chain),
        tuple(others),
        length,
    )
