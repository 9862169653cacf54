"""Agents, sans-IO: a generator yields the next ModelCall and receives its Completion.

The generator does no waiting and knows no tier, so the same agent runs in the simulator, while recording and behind a live
gateway. Whoever drives it decides which model answers.

An agent may also fork: it yields a tuple of branches and receives the tuple of their results when the last is done. A branch is a
ModelCall, whose result is its Completion, or a run of its own, whose result is its Outcome. Branches know nothing of each other
until they are joined. Every call of a request has a position of its own, which must not depend on which model answered what, and
calls of different branches have different numbers in `ModelCall.branch`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias

from workloads.errors import InputError
from workloads.task import Completion, Message, ModelCall, Outcome, Task

AgentRun = Generator[ModelCall, Completion, Outcome]
"""A chain: one call after another."""
Run: TypeAlias = "Generator[Step, Any, Outcome]"
"""A chain, or one that forks."""
Branch: TypeAlias = "ModelCall | Run"
Step: TypeAlias = "ModelCall | Sequence[Branch]"
Agent = Callable[[Task], Run]
ChainAgent = Callable[[Task], AgentRun]
"""An agent that never forks."""
Grader = Callable[[Task, str], float]

FRAMING_BYTES = 300
"""Bytes of HTTP headers and JSON around one call or answer."""


def payload_bytes(messages: tuple[Message, ...]) -> int:
    """Bytes a conversation takes on the wire, as UTF-8 plus about 30 bytes of JSON a message."""
    return FRAMING_BYTES + sum(len(m.content.encode()) + 30 for m in messages)


def advance(run: Run, answer: Any) -> Step | Outcome:
    """What a run does next when it gets `answer` (None: when it starts), or how it ended."""
    try:
        return next(run) if answer is None else run.send(answer)
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome


def branches_of(step: Step) -> tuple[Branch, ...]:
    """The branches of a fork. Raises InputError for anything else that is no call."""
    if isinstance(step, list | tuple) and all(isinstance(branch, ModelCall | Generator) for branch in step):
        return tuple(step)
    remedy = "Yield a ModelCall, or a tuple of branches that are ModelCalls or generators of them"
    raise InputError("the agent", f"yielded {type(step).__name__} {str(step)[:60]!r}", remedy)


def in_turn(run: Run) -> AgentRun:
    """The same run with the branches of every fork one after another: for drivers that know no time, and for comparison."""
    answer: Any = None
    while True:
        step = advance(run, answer)
        if isinstance(step, Outcome):
            return step
        if isinstance(step, ModelCall):
            answer = yield step
        else:
            results = list[Completion | Outcome]()
            for branch in branches_of(step):
                results.append((yield branch) if isinstance(branch, ModelCall) else (yield from in_turn(branch)))
            answer = tuple(results)


def recorded_score(task: Task, completion: Completion) -> float:
    """The grade that came with a recorded answer; NaN-safe: an answer nobody graded counts as wrong."""
    del task
    return completion.score if completion.score == completion.score else 0.0


def conversation_agent(bytes_per_token: float = 4.0, max_subtasks: int = 50) -> ChainAgent:
    """An agent that goes on as long as the environment answers.

    Each completion either ends the request (`tool_text` is None: the answer stands as graded) or acts on an environment whose
    answer, `tool_text`, is appended to the conversation for the next call. A question answered in one go is the special case
    of one subtask; a recorded episode of actions and observations is the general one.
    """

    def run(task: Task) -> AgentRun:
        messages: tuple[Message, ...] = (Message("user", task.prompt),)
        tool_s = 0.0
        for position in range(max_subtasks):
            size = payload_bytes(messages)
            tokens = max(1, round((size - FRAMING_BYTES) / bytes_per_token))
            completion = yield ModelCall(task, position, messages, tokens, size, tool_s)
            if completion.tool_text is None:
                return Outcome(recorded_score(task, completion), completion.text, completion.tool_s)
            messages += (Message("assistant", completion.text), Message("tool", completion.tool_text))
            tool_s = completion.tool_s
        return Outcome(0.0, "", tool_s)  # ran out of steps, as an agent framework would stop it

    return run
