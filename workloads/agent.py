"""Agents, sans-IO: a generator yields the next ModelCall and receives its Completion.

The generator does no waiting and knows no tier, so the same agent runs in the simulator, while recording and behind a live
gateway. Whoever drives it decides which model answers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from workloads.task import Completion, Message, ModelCall, Outcome, Task

AgentRun = Generator[ModelCall, Completion, Outcome]
Agent = Callable[[Task], AgentRun]
Grader = Callable[[Task, str], float]

FRAMING_BYTES = 300
"""Bytes of HTTP headers and JSON around one call or answer."""


def payload_bytes(messages: tuple[Message, ...]) -> int:
    """Bytes a conversation takes on the wire, as UTF-8 plus about 30 bytes of JSON a message."""
    return FRAMING_BYTES + sum(len(m.content.encode()) + 30 for m in messages)


def recorded_score(task: Task, completion: Completion) -> float:
    """The grade that came with a recorded answer; NaN-safe: an answer nobody graded counts as wrong."""
    del task
    return completion.score if completion.score == completion.score else 0.0


def conversation_agent(bytes_per_token: float = 4.0, max_subtasks: int = 50) -> Agent:
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
