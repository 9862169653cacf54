"""Counterfactual expansion: what every model answers in every conversation that any placement can lead to.

At each of a request's first `depth` subtasks all models answer, so that every policy can be replayed exactly. A later subtask
stays on the model of the one before, so that every request still ends; a placement that changes models beyond `depth` is not
recorded. Equal conversations at the same subtask are one node of the tree: an agent's next calls must follow from the
conversation (and the task), as keying recordings by conversation asks anyway.

An agent is a generator and cannot be copied, so a node's first child continues the agent that reached the node, and the others run
a new one from the start with the answers on their path.

Where an agent forks, each branch grows by itself, and what follows is grown for every combination of the results that the branches
can have: not for every combination of placements, which may be thousands of times as many.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from workloads.agent import Agent, Branch, Run, Step, advance, branches_of
from workloads.asking import RETRIES, Answers, AnswersInMemory, CallQueue
from workloads.backend import BatchBackend, InferenceBackend
from workloads.errors import InputError, IsthmusError
from workloads.task import Completion, ModelCall, Outcome, Task
from workloads.task_tree import Fork, Item, Next, Node, Place, Result, TaskTree, Within

__all__ = ["MAX_DEPTH", "Fork", "Node", "TaskTree", "TooManyAnswers", "ask_ahead", "expand"]

MAX_DEPTH = 15
"""2^15 placements of two models: deeper trees are nobody's intention."""
MAX_ANSWERS = 250_000
"""Answers in one expansion beyond which it is stopped, unless told otherwise."""
IN_FLIGHT = 256
"""Calls under way at the same time: a few full batches for every replica."""


class TooManyAnswers(InputError):
    """An expansion grew beyond the answers it was allowed."""


def expand(
    agent: Agent, tasks: Iterable[Task], backend: InferenceBackend, models: Sequence[str], depth: int = MAX_DEPTH, *,
    answers: Answers | None = None, sampling: str = "greedy", in_flight: int = IN_FLIGHT, retries: int = RETRIES,
    timings: bool = False, max_answers: int = MAX_ANSWERS, on_answer: Callable[[], None] = lambda: None,
    on_drain: Callable[[], None] = lambda: None,
) -> Generator[TaskTree]:  # fmt: skip
    """The trees of `tasks`, in their order, whatever the order in which models answer.

    Up to `in_flight` calls are under way, of at most as many tasks. What `answers` already holds is not asked again, and what is
    collected goes there at once. `on_answer` is told of every answer in a tree. An error, an interrupt or closing the generator
    waits for calls that are under way, whose answers are kept; `on_drain` is told before. Raises InputError for a depth out of
    range and for an agent that cannot be recorded, TooManyAnswers, and BackendError for a call that failed `retries` times more.
    """
    if not 1 <= depth <= MAX_DEPTH:
        raise InputError("counterfactual depth", f"found {depth}", f"Allowed: 1 to {MAX_DEPTH}")
    if in_flight < 1:
        raise InputError("calls in flight", f"found {in_flight}", "Give at least 1")
    store = AnswersInMemory() if answers is None else answers
    calls = CallQueue[_Waiter](backend, store, sampling, in_flight=in_flight, retries=retries, timings=timings)
    growth = _Growth(agent, tuple(dict.fromkeys(models)), depth, calls, max_answers, on_answer, on_drain)
    return growth.trees(iter(tasks), window=max(8, in_flight))


def ask_ahead(
    agent: Agent, tasks: Iterable[Task], backend: InferenceBackend, models: Sequence[str], depth: int = MAX_DEPTH
) -> None:
    """Have a backend that remembers answer, many calls at a time, what will be asked of it one call after another.

    With a depth of 1 that is each task with each model alone, with MAX_DEPTH every placement. A backend that takes no batches is
    left alone: its answers are at hand, or are to be asked one by one. Raises what `expand` raises.
    """
    if isinstance(backend, BatchBackend):
        for _ in expand(agent, tasks, backend, models, depth):
            pass


class _Waiter:
    """A node that waits for a model's answer."""

    __slots__ = ("model", "node", "tree")

    def __init__(self, tree: TaskTree, node: Node, model: str) -> None:
        self.tree, self.node, self.model = tree, node, model


class _Growth:
    """Grows trees, a window of tasks at a time."""

    def __init__(
        self, agent: Agent, models: tuple[str, ...], depth: int, calls: CallQueue[_Waiter], max_answers: int,
        on_answer: Callable[[], None], on_drain: Callable[[], None],
    ) -> None:  # fmt: skip
        self._agent, self._models, self._depth, self._calls = agent, models, depth, calls
        self._max_answers, self._on_answer, self._on_drain = max_answers, on_answer, on_drain
        self._started = self._answers = 0
        self._in_hand: list[tuple[_Waiter, Completion]] = []

    def trees(self, tasks: Iterator[Task], window: int) -> Generator[TaskTree]:
        growing: deque[TaskTree] = deque()
        try:
            while True:
                while len(growing) < window and (task := next(tasks, None)) is not None:
                    growing.append(self._start(task))
                if not growing:
                    return
                if not growing[0].open:
                    yield growing.popleft()
                    continue
                answer, waiters = self._calls.collect()
                self._in_hand += [(waiter, answer) for waiter in waiters]
                self._grow()
        except (IsthmusError, KeyboardInterrupt, GeneratorExit):
            if self._calls.under_way:
                self._on_drain()
            self._calls.drain()
            raise

    def _start(self, task: Task) -> TaskTree:
        self._started += 1
        tree = TaskTree(task, self._models, self._started)
        run = self._agent(task)
        tree.root = self._arrive(tree, run, advance(run, None), Place((), 0, None), self._models)
        self._grow()
        return tree

    def _grow(self) -> None:
        """Hand on answers until none is in hand: those asked for by then are under way."""
        while self._in_hand:
            waiter, answer = self._in_hand.pop()
            tree, node, model = waiter.tree, waiter.node, waiter.model
            node.answers[model] = answer
            tree.open -= 1
            self._on_answer()
            run, node.run = node.run, None
            if run is None:
                run = self._replayed(tree.task, node)
            place = node.place.then(answer)
            stays = self._models if place.level < self._depth else (model,)
            node.after[model] = self._arrive(tree, run, advance(run, answer), place, stays)

    def _arrive(self, tree: TaskTree, run: Run, step: Step | Result, place: Place, models: Sequence[str]) -> Next:
        """What a run's next step is in the tree: the node of a call, new or known, with all of `models` asked; a fork; an end."""
        if isinstance(step, Outcome | Completion):
            if place.within is not None:
                self._branch_ended(tree, place.within, step)
            return step
        if not isinstance(step, ModelCall):
            return self._forked(tree, run, branches_of(step), place, models)
        if not step.messages:
            raise InputError(
                f"task {tree.task.id!r}",
                "its agent asks without a conversation",
                "Only agents that talk in text can be recorded",
            )
        key = place.level, place.within, *_identity(step)
        node = tree.nodes.get(key)
        if node is None:
            node = tree.nodes[key] = Node(step, place, run)
        for model in models:
            if model not in node.asked:
                node.asked.add(model)
                self._ask(_Waiter(tree, node, model))
        return node

    def _forked(
        self, tree: TaskTree, run: Run, branches: Sequence[Branch], place: Place, models: Sequence[str]
    ) -> Next:
        """A fork with all its branches begun."""
        tree.forks += 1
        fork = Fork(tree.forks, len(branches), place, run, models)
        for index, branch in enumerate(branches):
            inner = _run_of(branch)
            begin = Place((*place.path, index), place.level, Within(fork, index))
            fork.branches.append(self._arrive(tree, inner, advance(inner, None), begin, models))
        if not branches:
            self._join(tree, fork, ())
        return fork

    def _branch_ended(self, tree: TaskTree, within: Within, result: Result) -> None:
        """A branch can have this result: if that is new, go on with every combination it makes with what others can have."""
        fork, index = within
        if result in fork.ends[index]:
            return
        fork.ends[index].append(result)
        for results in itertools.product(*fork.ends[:index], [result], *fork.ends[index + 1 :]):
            self._join(tree, fork, results)

    def _join(self, tree: TaskTree, fork: Fork, results: tuple[Result, ...]) -> None:
        run, fork.run = fork.run, None
        if run is None:
            run, _ = self._walked(tree.task, fork.place.path)
        place = fork.place.then(results)
        stays = self._models if place.level < self._depth else fork.models
        fork.after[results] = self._arrive(tree, run, advance(run, results), place, stays)

    def _ask(self, waiter: _Waiter) -> None:
        self._answers += 1
        if self._answers > self._max_answers:
            raise TooManyAnswers(
                f"task {waiter.tree.task.id!r}", f"brings the expansion beyond {self._max_answers:,} answers",
                "Expand fewer tasks or to a smaller depth, or allow more answers",
            )  # fmt: skip
        waiter.tree.open += 1
        answer = self._calls.ask(waiter.node.call, waiter.model, waiter, waiter.tree.number)
        if answer is not None:
            self._in_hand.append((waiter, answer))

    def _replayed(self, task: Task, node: Node) -> Run:
        """A new agent, or branch of one, given the answers on the way to a node."""
        run, step = self._walked(task, node.place.path)
        if not isinstance(step, ModelCall) or _identity(step) != _identity(node.call):
            raise _went_on_differently(task)
        return run

    def _walked(self, task: Task, path: Sequence[Item]) -> tuple[Run, Step | Result]:
        """A new agent at the end of a path, and what it does there."""
        run = self._agent(task)
        step: Step | Result = advance(run, None)
        for item in path:
            if isinstance(step, Outcome | Completion) or isinstance(step, ModelCall) != isinstance(item, Completion):
                raise _went_on_differently(task)
            if isinstance(item, int):
                run = _run_of(branches_of(step)[item])
                step = advance(run, None)
            else:
                step = advance(run, item)
        return run, step


def _run_of(branch: Branch) -> Run:
    return _alone(branch) if isinstance(branch, ModelCall) else branch


def _alone(call: ModelCall) -> Generator[Step, Any, Any]:
    """A branch of one call as a run, which ends with the answer itself."""
    return (yield call)


def _identity(call: ModelCall) -> tuple[object, ...]:
    """What makes two calls of a task one node; sizes follow from the messages, and the time a tool took is no matter."""
    return call.position, call.messages, call.max_tokens, call.prefix_blocks


def _went_on_differently(task: Task) -> InputError:
    return InputError(
        f"task {task.id!r}", "its agent went on differently when it was given the same answers again",
        "An agent must be a function of the task and the completions it receives",
    )  # fmt: skip
