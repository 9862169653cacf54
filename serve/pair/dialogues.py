"""Training data of the pair: conversations made on the fly, in which both models' styles and useless steps mix.

A conversation teaches one model: only the turns in its own style are targets. The others are history it must be able to go
on from: steps of the other model, steps that do not help, steps that failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from serve.pair.tokenizer import encode, encode_message
from workloads.task import Message, Task
from workloads.tasks.pair import TOOLS, draw_problem
from workloads.tasks.problem import MAX_DISTRACTORS, MAX_LENGTH, STYLES, Problem, Style

IGNORED = -100
"""Target of a position that teaches nothing, as torch's cross entropy has it."""

_PURE = 0.4
"""Share of conversations that the model has all to itself."""
_OTHER = 0.4
"""In the rest, how often a turn is the other model's."""
_STRAY = 0.15
"""And how often one that does not help is put in before it."""
_MAX_STRAYS = 3
_SHUFFLED = 0.6
"""Share of the coarse model's problems whose facts come in any order: where order helps, it is learned in place of looking up."""
_TURNS: dict[Style, tuple[str, ...]] = {"fine": ("hops", "sums"), "coarse": ("hops", "hops", "sums")}
"""Families in turns: the coarse model learns sums in no time, and long to look relations up."""
_MOST_DISTRACTORS: dict[Style, int] = {"fine": MAX_DISTRACTORS, "coarse": MAX_DISTRACTORS + 2}
"""More than any task has: where a fact is looked for by its place and not by its name, that shows sooner."""
_NO_TASK = Task("training")


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids and, shifted by one, what to learn at each position."""

    ids: list[int]
    targets: list[int]


def conversation(problem: Problem, style: Style, random: Random) -> Example:
    """One whole conversation about `problem` that teaches `style`."""
    ids = encode_message(Message("user", problem.prompt))
    targets = [IGNORED] * len(ids)
    pure, strays, done, ended = random.random() < _PURE, 0, 0, False
    while not ended:
        stray = not pure and strays < _MAX_STRAYS and random.random() < _STRAY
        if stray:
            strays += 1
            text, after = problem.stray(done, random), done
            if text in {problem.step(done, each)[0] for each in STYLES}:
                continue
        else:
            other = not pure and random.random() < _OTHER
            turn: Style = "coarse" if (style == "fine") == other else "fine"
            text, after = problem.step(done, turn)
            if other and text.startswith("answer"):
                turn = style
            stray = turn != style
        verb, argument = text.split(" ", 1)
        mark, turn_ids = encode("<assistant>"), encode(f"{text} <end>")
        ids += mark + turn_ids
        targets += [IGNORED] + ([IGNORED] * len(turn_ids) if stray else turn_ids)
        ended, done = verb == "answer", after
        if not ended:
            seen_ids = encode_message(Message("tool", TOOLS[verb](_NO_TASK, argument)))
            ids += seen_ids
            targets += [IGNORED] * len(seen_ids)
    return Example(ids[:-1], targets[1:])


def examples(style: Style, count: int, seed: str, hardest: float) -> list[Example]:
    """`count` training conversations, the same for the same seed; `hardest` in [0, 1] is how far the curriculum is."""
    random = Random(seed)
    longest = max(2, round(1 + hardest * (MAX_LENGTH - 1)))
    families, most = _TURNS[style], _MOST_DISTRACTORS[style]
    found = []
    for number in range(count):
        length = 1 + min(longest - 1, int(longest * random.random() ** 0.8))
        shuffled = style == "coarse" and random.random() < _SHUFFLED
        family, distractors = families[number % len(families)], random.randint(0, most)
        problem = draw_problem(family, "train", length, distractors, random, shuffled)
        found.append(conversation(problem, style, random))
    return found
