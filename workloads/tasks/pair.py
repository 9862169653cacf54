"""The tasks that ship with the project: text, exact answers, several dependent steps and a tool.

Two families, `hops` and `sums`, each with difficulty {"length": 1..6 (1..4 unless asked), "distractors": 0..2}. A hash of the question decides
whether it belongs to the training, validation or test split, so that no question is in two of them however many are drawn.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Literal

from workloads.agent import ChainAgent
from workloads.errors import InputError, suggest
from workloads.task import Message, Task
from workloads.tasks import hops, sums
from workloads.tasks.problem import MAX_DISTRACTORS, MAX_LENGTH, Problem
from workloads.tool_agent import tool_agent
from workloads.tools import compute

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
FAMILIES: dict[str, Callable[[Random, int, int, bool], Problem]] = {"hops": hops.draw, "sums": sums.draw}
TOOLS = {"find": hops.find, "compute": compute}

MAX_SUBTASKS = 10
"""Steps after which a request counts as failed; the longest reference solution takes 8."""
MAX_STEP_TOKENS = 40
"""Tokens a step may take; the longest reference step takes 30."""
_TOOL_ERRORS = (
    "error : an expression of more than characters unexpected division by zero a bracket is not closed the "
    "ends too early cannot read number large brackets nested deep statements -"
)
_TRIES = 2000
_WORD = re.compile(r"'s\b|[^\W\d_]+|(?:\b(?!0\d)\d)?\d|[^\w\s]|_")


def split_of(prompt: str) -> Split:
    """The split a question belongs to: a tenth each for test and validation."""
    digest = hashlib.sha256(prompt.encode()).digest()[0]
    return "test" if digest < 26 else "validation" if digest < 52 else "train"


def draw_problem(
    family: str, split: Split, length: int, distractors: int, random: Random, shuffled: bool = False
) -> Problem:
    """A random problem of this split and difficulty; `shuffled` tells its facts in any order, as no task of `pair_tasks` does."""
    while True:
        problem = FAMILIES[family](random, length, distractors, shuffled)
        if split_of(problem.prompt) == split:
            return problem


def pair_tasks(
    split: str,
    count: int,
    seed: int,
    families: Sequence[str] = ("hops", "sums"),
    lengths: Sequence[int] = (1, 2, 3, 4),
    distractors: Sequence[int] = tuple(range(MAX_DISTRACTORS + 1)),
) -> list[Task]:
    """`count` different questions of a split, the same ones for the same seed; the families take turns.

    Length and distractors are drawn evenly from those given. A task's `latent` holds its Problem with the solution. Raises
    InputError for an unknown split or family, a difficulty out of range, and more questions than there are.
    """
    check_difficulty("pair_tasks", split, count, families, lengths, distractors)
    random, tasks = Random(f"pair tasks {split} {seed}"), dict[str, Task]()
    for number in range(count):
        family = families[number % len(families)]
        for _ in range(_TRIES):
            problem = draw_problem(family, split, random.choice(lengths), random.choice(distractors), random)  # type: ignore[arg-type]
            if problem.prompt not in tasks:
                break
        else:
            raise InputError(
                "pair_tasks: count",
                f"found {count}, but there are hardly more than {number} such questions",
                "Ask for fewer",
            )
        tasks[problem.prompt] = pair_task(family, problem)
    return list(tasks.values())


def pair_task(family: str, problem: Problem) -> Task:
    """The problem as a task; its id is a hash of the question."""
    return Task(
        f"{family}-{hashlib.sha256(problem.prompt.encode()).hexdigest()[:12]}",
        problem.prompt,
        problem.answer,
        family,
        count_tokens((Message("user", problem.prompt),)),
        features={"length": problem.length, "distractors": problem.distractors},
        latent=problem,
    )


def check_difficulty(
    place: str, split: str, count: int, families: Sequence[str], lengths: Sequence[int], distractors: Sequence[int]
) -> None:
    """Raise InputError, at this place, for what `pair_tasks` does not allow."""
    if split not in SPLITS:
        raise InputError(f"{place}: split", f"found {split!r}", suggest(split, SPLITS))
    if count < 0:
        raise InputError(f"{place}: count", f"found {count}", "Give 0 or more")
    for family in families:
        if family not in FAMILIES:
            raise InputError(f"{place}: families", f"found {family!r}", suggest(family, FAMILIES))
    for name, found, low, high in (
        ("lengths", lengths, 1, MAX_LENGTH),
        ("distractors", distractors, 0, MAX_DISTRACTORS),
    ):
        if not found or not all(low <= value <= high for value in found):
            raise InputError(f"{place}: {name}", f"found {list(found)}", f"Give values from {low} to {high}")
    if not families:
        raise InputError(f"{place}: families", "found none", f"Allowed: {', '.join(FAMILIES)}")


def grade(task: Task, text: str) -> float:
    """1 if the answer is the right one, case, full stop and spacing aside, else 0."""
    return float(_plain(text) == _plain(task.answer or ""))


def _plain(text: str) -> str:
    return " ".join(_WORD.findall(text.lower())).removesuffix(" .")


def count_tokens(messages: tuple[Message, ...]) -> int:
    """Tokens of a conversation as the embedded models see it: pieces, two marks a message, one to ask for the answer."""
    return 1 + sum(2 + len(_WORD.findall(message.content)) for message in messages)


def pair_agent() -> ChainAgent:
    """The agent that works on these tasks: `find` and `compute`, then `answer`."""
    return tool_agent(TOOLS, grade, max_subtasks=MAX_SUBTASKS, max_tokens=MAX_STEP_TOKENS, count_tokens=count_tokens)


def vocabulary() -> tuple[str, ...]:
    """Every word of the tasks, the steps and the observations, digits aside, in a fixed order."""
    replies = " ".join(("unknown step , use", *TOOLS, "answer", _TOOL_ERRORS)).split()
    return tuple(dict.fromkeys((*hops.WORDS, *sums.WORDS, *replies)))
