"""Multi-hop questions over an invented knowledge base, with a `find` tool.

    Q is Blue Harbor . T is Q 's director . S is Q 's setting . R is T 's boss . who is R ?

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
    """Looks up names and relations: `Blue Harbor 's director` or `mother of director of Blue Harbor`; else `nothing found`.

    `Q = Blue Harbor ; R = Q 's director` -> `Q = Blue Harbor ; R = Nia Voss`: a label may be used after it.
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
    return current or NOTHING


def _given(letter: str, kind: str, random: Random) -> Fact:
    name = random.choice(entities(kind))
    return Fact(letter, name, f"{letter} is {name} .", before=name)


def _derived(letter: str, base: Fact, kind: str, random: Random, taken: str = "") -> tuple[Fact, str]:
    """A fact about a relation of `base`, which is of this kind, and the kind of what it leads to.

    Never the relation `taken`, where another fact that hangs on `base` has it: a wrong way would give the right name.
    """
    relation = random.choice([r for r in _FROM[kind] if r != taken])
    sentence = f"{letter} is {base.name} 's {relation} ."
    fact = Fact(letter, facts()[relation, base.value], sentence, base.name, after=f" 's {relation}")
    return fact, RELATIONS[relation][1]


def draw(random: Random, length: int, distractors: int, shuffled: bool = False) -> Problem:
    """A random question of this difficulty: one name given, `length` relations to follow, `distractors` sentences for nothing."""
    letters = iter(random.sample(LETTERS, length + 1 + distractors))
    kinds = [random.choice(tuple(_NAME_PARTS))]
    chain = [_given(next(letters), kinds[0], random)]
    for _ in range(length):
        fact, kind = _derived(next(letters), chain[-1], kinds[-1], random)
        chain.append(fact)
        kinds.append(kind)
    others = []
    for _ in range(distractors):
        if random.random() < HANGING:
            place = random.randrange(length)
            taken = chain[place + 1].after.removeprefix(" 's ")
            others.append(_derived(next(letters), chain[place], kinds[place], random, taken)[0])
        else:
            others.append(_given(next(letters), random.choice(tuple(_NAME_PARTS)), random))
    question = f"{'who' if kinds[-1] == 'person' else 'what'} is {chain[-1].name} ?"
    return Problem("find", tell(chain, others, question, random, shuffled), tuple(chain), tuple(others), length)
