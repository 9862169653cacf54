"""Tasks that fall into independent questions: asked side by side, each in steps of its own, and joined by a last one.

    Nia is 11 . Ben is Nia plus 10 . how much is Ben ?  |  Kim is 4 . Ivo is Kim times 3 . how much is Ivo ?
    Ben is 21 . Ada is Ben plus 12 . how much is Ada ?

Each question is one of the shipped pair's word problems, and so is the join, told from what the branches answered. So the pair's
models know every conversation's kind, and a wrong answer in any branch makes the request's answer wrong.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from workloads.agent import Agent, AgentRun, Run, advance
from workloads.errors import InputError
from workloads.task import Message, ModelCall, Outcome, Task
from workloads.tasks import sums
from workloads.tasks.pair import (
    MAX_SUBTASKS,
    Split,
    check_difficulty,
    count_tokens,
    draw_problem,
    grade,
    pair_agent,
    pair_task,
    split_of,
)
from workloads.tasks.problem import MAX_DISTRACTORS, Problem

MOST_BRANCHES = 4
_TRIES = 2000


class Branching(NamedTuple):
    """What a task is made of: a problem for each branch, and the names under which the join tells and adds their answers."""

    problems: tuple[Problem, ...]
    names: tuple[str, ...]

    def join(self, answers: Sequence[str]) -> str:
        """The last question, told from the answers of the branches."""
        told = [f"{self.names[0]} is {answers[0]} ."]
        told += [
            f"{name} is {before} plus {answer} ."
            for before, name, answer in zip(self.names, self.names[1:], answers[1:], strict=False)
        ]
        return " ".join((*told, f"how much is {self.names[len(answers) - 1]} ?"))

    @property
    def total(self) -> int:
        """The right answer."""
        return sum(int(problem.answer) for problem in self.problems)


def branching_tasks(
    split: Split, count: int, seed: int, branches: Sequence[int] = (2, 3), lengths: Sequence[int] = (1, 2),
    distractors: Sequence[int] = tuple(range(MAX_DISTRACTORS + 1)),
) -> list[Task]:  # fmt: skip
    """`count` different tasks, the same ones for the same seed; every question in them is of the split, rightly answered joins too.

    Numbers of branches, lengths and distractors are drawn evenly from those given. A task's `latent` holds its Branching. Raises
    InputError as `pair_tasks`, for a number of branches out of range too.
    """
    check_difficulty("branching_tasks", split, count, ("sums",), lengths, distractors)
    if not branches or not all(2 <= number <= MOST_BRANCHES for number in branches):
        remedy = f"Give numbers from 2 to {MOST_BRANCHES}"
        raise InputError("branching_tasks: branches", f"found {list(branches)}", remedy)
    random, tasks = Random(f"branching tasks {split} {seed}"), dict[str, Task]()
    while len(tasks) < count:
        task = _task(_drawn(split, random.choice(branches), lengths, distractors, random))
        tasks.setdefault(task.prompt, task)
    return list(tasks.values())


def _drawn(split: Split, width: int, lengths: Sequence[int], distractors: Sequence[int], random: Random) -> Branching:
    """Problems whose sum the join's kind of problem may have, and names with which the right join is of the split."""
    for _ in range(_TRIES):
        problems = tuple(
            draw_problem("sums", split, random.choice(lengths), random.choice(distractors), random)
            for _ in range(width)
        )
        made = Branching(problems, tuple(random.sample(sums.NAMES, width)))
        if made.total <= sums.LARGEST and split_of(made.join([p.answer for p in problems])) == split:
            return made
    raise AssertionError("one draw in a few dozen has a sum small enough")


def _task(made: Branching) -> Task:
    together = " and ".join(problem.chain[-1].name for problem in made.problems)
    prompt = " ".join((*(problem.prompt for problem in made.problems), f"how much are {together} together ?"))
    return Task(
        f"branching-{hashlib.sha256(prompt.encode()).hexdigest()[:12]}", prompt, str(made.total), f"{len(made.problems)} branches",
        count_tokens((Message("user", prompt),)), features={"branches": len(made.problems)}, latent=made,
    )  # fmt: skip


def branching_agent() -> Agent:
    """The agent that works on these tasks: the pair's own agent in every branch and for the join.

    Step s of branch b of k has position s * k + b, a step of the join follows after the longest branch there can be.
    """
    solve = pair_agent()

    def run(task: Task) -> Run:
        made: Branching = task.latent
        width = len(made.problems)
        outcomes: tuple[Outcome, ...] = yield tuple(
            _as_part(solve(pair_task("sums", problem)), task, b + 1, b, width)
            for b, problem in enumerate(made.problems)
        )
        answers = [outcome.answer for outcome in outcomes]
        if not all(re.fullmatch(r"\d{1,4}", answer) for answer in answers):
            return Outcome(0.0, "")  # a branch found no number: there is nothing to join
        join = Task(f"{task.id}-join", made.join(answers))
        last = yield from _as_part(solve(join), task, 0, width * MAX_SUBTASKS, 1)
        return Outcome(grade(task, last.answer), last.answer)

    return run


def _as_part(run: AgentRun, task: Task, branch: int, first: int, stride: int) -> AgentRun:
    """A run whose calls are about the whole task and have their places in it."""
    step = advance(run, None)
    while isinstance(step, ModelCall):
        position = first + stride * step.position
        step = advance(run, (yield step._replace(task=task, position=position, branch=branch)))
    assert isinstance(step, Outcome)
    return step
