"""Multi-hop questions over an invented knowledge base, with a `find` tool.

    Q is the teacher of the director of Blue Harbor . R is the boss of Q . who is the mother of Q ?

Every relation leads from each entity of one kind to one entity of another, so a chain of them has exactly one answer. All
names and facts come from a fixed seed. A question may tell its chain in pieces, each with a letter for where it ends, in order.
Distractors are pieces that lead elsewhere, and clauses about other entities with the same relations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from random import Random

from workloads.task import Task
from workloads.tasks.problem import Progress, Style

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
_FROM = {kind: tuple(r for r, (source, _) in RELATIONS.items() if source == kind) for kind in _NAME_PARTS}
_TOLD = re.compile(r"\b([A-Z]) is ((?:the \w+ of )+)([\w ]+?) \.")
_SEED = "knowledge base 1"
_AGAIN = 0.5
"""How often a relation that was used already comes again where it can: who loses count goes wrong."""
_LURE = 0.75
"""Share of distractors that repeat part of the question's own chain before they leave it."""

LETTERS = tuple("FGHJKPQRSTVW")
"""Names for where a piece of a chain ends."""
_CUT = 0.5
"""How often a chain is cut after a relation."""
_PIECE = 0.6
"""Share of distractors that are pieces with a letter, hung on the question's own chain."""

_OTHER_WORDS = "find plan answer noted nothing found who what is the of met asks wants to know : , . ?"
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
    """Looks up a chain of relations, inner ones first: `mother of director of Blue Harbor` -> a name, or `nothing found`."""
    del task
    links = " ".join(word for word in argument.lower().rstrip("?. ").split() if word != "the").split(" of ")
    current = _spelling().get(links[-1].strip())
    for relation in reversed(links[:-1]):
        current = facts().get((relation.strip(), current)) if current else None
    return current if current and len(links) > 1 else NOTHING


@dataclass(frozen=True, slots=True)
class Hops:
    """A question; `path` holds the relations from the inside out and `stops` the entities passed, the start first.

    `plan` is the chain from the question back to its start, `lures` are the relations of the distractors.
    """

    prompt: str
    path: tuple[str, ...]
    stops: tuple[str, ...]
    distractors: int
    plan: str = ""
    lures: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Relations to follow."""
        return len(self.path)

    @property
    def answer(self) -> str:
        """The entity at the end of the chain."""
        return self.stops[-1]

    def step(self, progress: Progress, style: Style) -> tuple[str, Progress]:
        """Fine: `find` one relation further. Coarse: plan a chain of more than two, then two further. At the end `answer`."""
        done = progress.done
        if done == self.length:
            return f"answer {self.answer}", progress
        if style == "coarse" and self.length > 2 and not progress.planned:
            return f"plan {self.plan}", replace(progress, planned=True)
        stop = min(self.length, done + (1 if style == "fine" else 2))
        return f"find {_chain(self.path[done:stop], self.stops[done])}", replace(progress, done=stop)

    def recite(self, random: Random) -> tuple[str, str]:
        """The plan for a relation of any letter, or of the start."""
        pieces = {found[1]: (found[2].replace("the ", ""), found[3]) for found in _TOLD.finditer(self.prompt)}
        base = random.choice((*pieces, self.stops[0]))
        relation = random.choice(self.path)
        text = f"{relation} of {base}"
        question = f"who is the {text} ?"
        while base in pieces:
            chain, base = pieces[base]
            text = f"{text} is {chain}{base}"
        return question, f"plan {text}"

    def stray(self, progress: Progress, random: Random, seen: str) -> str:
        """A step already done, a relation out of turn, or one more on a wrong way; mostly of the entity just reached."""
        if progress.done and random.random() < 0.2:
            return f"find {_chain(self.path[progress.done - 1 : progress.done], self.stops[progress.done - 1])}"
        name = self.stops[progress.done]
        if seen.lower() in _spelling() and random.random() < 0.5:
            name = seen
        elif random.random() < 0.2:
            name = random.choice(entities(random.choice(tuple(_NAME_PARTS))))
        relations = random.choice((self.path, self.lures or self.path, tuple(RELATIONS)))
        fitting = [relation for relation in relations if (relation, name) in facts()]
        if fitting and random.random() < 0.8:
            relations = tuple(fitting)
        return f"find {_chain(random.sample(relations, min(len(relations), random.choice((1, 1, 2)))), name)}"


def _chain(path: tuple[str, ...] | list[str], name: str, the: str = "") -> str:
    return "".join(f"{the}{relation} of " for relation in reversed(path)) + name


def _walk(random: Random, kind: str, length: int, taken: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Relations that can be followed one after the other; now and then one comes again."""
    path = list(taken)
    while len(path) < length:
        again = [relation for relation in path if RELATIONS[relation][0] == kind]
        choices = again if again and random.random() < _AGAIN else _FROM[kind]
        path.append(random.choice(choices))
        kind = RELATIONS[path[-1]][1]
    return tuple(path)


class _Telling:
    """A question while it is written: its clauses in order, and what letters stand for."""

    def __init__(self, random: Random, path: tuple[str, ...], stops: list[str], kind: str) -> None:
        self._random, self._path, self._stops, self._kind = random, path, stops, kind
        self._letters = iter(random.sample(LETTERS, len(LETTERS)))
        self._anchors = [(stops[0], kind, 0)]
        self.lures: list[str] = []
        self.parts: list[str] = []
        base, start, self.plan = stops[0], 0, stops[0]
        for end in range(1, len(path)):
            if random.random() < _CUT:
                letter = next(self._letters)
                self.parts.append(f"{letter} is {_chain(path[start:end], base, 'the ')} .")
                self._anchors.append((letter, RELATIONS[path[end - 1]][1], len(self.parts)))
                self.plan = f"{letter} is {_chain(path[start:end], self.plan)}"
                base, start = letter, end
        word = "who" if RELATIONS[path[-1]][1] == "person" else "what"
        self._question = f"{word} is {_chain(path[start:], base, 'the ')} ?"
        self.plan = _chain(path[start:], self.plan)
        self.parts.append(self._question)

    def distract(self) -> None:
        """Add one distractor."""
        if self._random.random() < _PIECE:
            self._lead_astray()
        else:
            self._mention()

    def _lead_astray(self) -> None:
        """A piece with a letter of its own, on an entity or a letter of the chain, anywhere after that."""
        random = self._random
        name, kind, earliest = random.choice(self._anchors)
        path = _walk(random, kind, random.choice((1, 1, 2)))
        place = random.randint(earliest, self.parts.index(self._question))
        self._insert(place, f"{next(self._letters)} is {_chain(path, name, 'the ')} .", path)

    def _mention(self) -> None:
        """A clause about another entity, before or after what is there, often with part of the question's own chain."""
        random, path = self._random, self._path
        if random.random() < _LURE:
            start = random.randrange(len(path))
            shared = path[start : start + random.choice((1, 2))]
            kind = RELATIONS[shared[0]][0]
            lure = _walk(random, RELATIONS[shared[-1]][1], len(shared) + 1, shared)
        else:
            kind = random.choice(tuple(_NAME_PARTS))
            lure = _walk(random, kind, random.choice((1, 2)))
        name = random.choice(entities(kind))
        while name in self._stops:
            name = random.choice(entities(kind))
        clause, person = _chain(lure, name, "the "), random.choice(entities("person"))
        place, text = random.choice(
            (
                (0, f"{person} , {clause} , asks :"),
                (0, f"{person} met {clause} ."),
                (len(self.parts), f"{clause} wants to know ."),
            )
        )
        self._insert(place, text, lure)

    def _insert(self, place: int, text: str, path: tuple[str, ...]) -> None:
        self.parts.insert(place, text)
        self._anchors = [(name, kind, after + (after >= place and after > 0)) for name, kind, after in self._anchors]
        self.lures += path


def draw(random: Random, length: int, distractors: int) -> Hops:
    """A random question of this difficulty."""
    kind = random.choice(tuple(_NAME_PARTS))
    path = _walk(random, kind, length)
    stops = [random.choice(entities(kind))]
    for relation in path:
        stops.append(facts()[relation, stops[-1]])
    telling = _Telling(random, path, stops, kind)
    for _ in range(distractors):
        telling.distract()
    return Hops(" ".join(telling.parts), path, tuple(stops), distractors, telling.plan, tuple(telling.lures))
