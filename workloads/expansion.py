"""Counterfactual expansion: what every model answers in every conversation that any placement can lead to.

At each of a request's first `depth` subtasks all models answer, so that every policy can be replayed exactly. A later subtask
stays on the model of the one before, so that every request still ends; a placement that changes models beyond `depth` is not
recorded. Equal conversations at the same subtask are one node of the tree: an agent's next calls must follow from the
conversation (and the task), as keying recordings by conversation asks anyway.

An agent is a generator and cannot be copied, so a node's first child continues the agent that reached the node, and the others run
a new one from the start with the answers on their path.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from workloads.agent import Agent, AgentRun
from workloads.asking import RETRIES, Answers, AnswersInMemory, CallQueue
from workloads.backend import BatchBackend, InferenceBackend
from workloads.errors import InputError, IsthmusError
from workloads.task import Completion, Message, ModelCall, Outcome, Task

MAX_DEPTH = 15
"""2^15 placements of two models: deeper trees are nobody's intention."""
MAX_ANSWERS = 250_000
"""Answers in one expansion beyond which it is stopped, unless told otherwise."""
IN_FLIGHT = 256
"""Calls under way at the same time: a few full batches for every replica."""


class TooManyAnswers(InputError):
    """An expansion grew beyond the answers it was allowed."""


class Node:
    """A conversation that some placement leads to.

    `answers[m]` is what model m said to it and `after[m]` what came of that: the next node, or the end of the request. `path`
    holds the completions of one way here, `run` an agent that waits here for an answer.
    """

    __slots__ = ("after", "answers", "asked", "call", "path", "run")

    def __init__(self, call: ModelCall, path: tuple[Completion, ...], run: AgentRun) -> None:
        self.call, self.path = call, path
        self.run: AgentRun | None = run
        self.asked: set[str] = set()
        self.answers: dict[str, Completion] = {}
        self.after: dict[str, Node | Outcome] = {}


class TaskTree:
    """All that was expanded of one task."""

    def __init__(self, task: Task, models: Sequence[str], number: int) -> None:
        self.task, self.number, self._models = task, number, models
        self.nodes: dict[tuple[Any, ...], Node] = {}
        self.root: Node | Outcome = Outcome(0.0)
        self.open = 0
        """Calls not answered yet."""

    def conversations(self) -> list[tuple[tuple[Message, ...], list[Completion]]]:
        """Each conversation once with the answers to it, conversations in order, models as given."""
        merged: dict[tuple[Message, ...], dict[str, Completion]] = {}
        for node in self.nodes.values():
            merged.setdefault(node.call.messages, {}).update(node.answers)
        return [(m, [merged[m][name] for name in self._models if name in merged[m]]) for m in sorted(merged)]

    def answer_count(self) -> int:
        """Different answers in the tree."""
        return len({(model, node.call.messages) for node in self.nodes.values() for model in node.answers})

    def path(self, model: str) -> list[Node]:
        """The nodes the request passes when one model answers throughout."""
        passed, step = list[Node](), self.root
        while isinstance(step, Node):
            passed.append(step)
            step = step.after[model]
        return passed

    def alone(self, model: str) -> Outcome:
        """How the request ends when one model answers throughout."""
        step = self.root
        while isinstance(step, Node):
            step = step.after[model]
        return step


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
        tree.root = self._arrive(tree, run, _advance(run, None), (), self._models)
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
            path = (*node.path, answer)
            run, node.run = node.run, None
            if run is None:
                run = self._replayed(tree.task, node)
            stays = self._models if len(path) < self._depth else (model,)
            node.after[model] = self._arrive(tree, run, _advance(run, answer), path, stays)

    def _arrive(
        self, tree: TaskTree, run: AgentRun, step: ModelCall | Outcome, path: tuple[Completion, ...], models: Sequence[str]
    ) -> Node | Outcome:  # fmt: skip
        """The node of a call, new or known, with all of `models` asked."""
        if isinstance(step, Outcome):
            return step
        if not step.messages:
            raise InputError(
                f"task {tree.task.id!r}",
                "its agent asks without a conversation",
                "Only agents that talk in text can be recorded",
            )
        place = _place(len(path), step)
        node = tree.nodes.get(place)
        if node is None:
            node = tree.nodes[place] = Node(step, path, run)
        for model in models:
            if model not in node.asked:
                node.asked.add(model)
                self._ask(_Waiter(tree, node, model))
        return node

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

    def _replayed(self, task: Task, node: Node) -> AgentRun:
        """A new agent given the answers on the way to a node."""
        run = self._agent(task)
        step = _advance(run, None)
        for completion in node.path:
            if isinstance(step, Outcome):
                break
            step = _advance(run, completion)
        if isinstance(step, Outcome) or _place(0, step) != _place(0, node.call):
            raise InputError(
                f"task {task.id!r}", "its agent went on differently when it was given the same answers again",
                "An agent must be a function of the task and the completions it receives",
            )  # fmt: skip
        return run


def _place(level: int, call: ModelCall) -> tuple[Any, ...]:
    """What makes two calls of a task one node; sizes follow from the messages, and the time a tool took is no matter."""
    return level, call.position, call.messages, call.max_tokens, call.prefix_blocks


def _advance(run: AgentRun, completion: Completion | None) -> ModelCall | Outcome:
    """The agent's next call, or how it ended."""
    try:
        return next(run) if completion is None else run.send(completion)
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome
