"""An agent that works with tools: one line of the model is one step, the verb first.

    find mother of Nia Voss      -> the tool `find` is asked, its observation joins the conversation
    compute ( 11 + 10 ) * 2      -> so is the calculator's
    answer Nia Voss              -> ends the request and is graded

Larger models dress the line up: `Action: find[mother of Nia Voss]`, `**answer:** 42` and code fences are understood as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from workloads.agent import FRAMING_BYTES, AgentRun, ChainAgent, Grader, payload_bytes
from workloads.errors import InputError
from workloads.task import Message, ModelCall, Outcome, Task
from workloads.tools import Tool

ANSWER = "answer"
BYTES_PER_TOKEN = 4.0
"""Assumed where nobody counts tokens exactly."""
MAX_OBSERVATION = 4000
"""Characters of an observation that join the conversation."""

_PREFIX = re.compile(
    r"\A(?:(?:action|next|step|tool)\b(?:\s+\d+)?\s*[:.)]+[\s*]*|final\s+(?=answer)|[-*>#]+\s+|\d+[.)]\s+)+",
    re.IGNORECASE,
)
_VERB = re.compile(r"([A-Za-z_]\w*)\s*(.*)", re.DOTALL)
_NOISE = "`*\"' \t"


def parse_step(text: str, verbs: Mapping[str, object] | frozenset[str]) -> tuple[str, str]:
    """Verb (lower case) and argument of a model's message: of its first line that starts with a known verb.

    Without such a line, of its first line that says anything; ("", "") if there is none.
    """
    known = {*verbs, ANSWER}
    steps = [step for line in text.splitlines() if (step := _parse_line(line))[0]]
    return next((step for step in steps if step[0] in known), steps[0] if steps else ("", ""))


def _parse_line(line: str) -> tuple[str, str]:
    text = _PREFIX.sub("", line.strip(_NOISE)).strip(_NOISE)
    match = _VERB.match(text)
    if match is None:
        return "", ""
    argument = match[2].lstrip("*` ")
    if argument.startswith("[") and argument.endswith("]"):
        argument = argument[1:-1]
    elif argument.startswith((":", "=")):
        argument = argument[1:]
    return match[1].lower(), argument.strip(_NOISE)


def tool_agent(
    tools: Mapping[str, Tool],
    grade: Grader,
    *,
    system: str = "",
    max_subtasks: int = 15,
    max_tokens: int = 64,
    count_tokens: Callable[[tuple[Message, ...]], int] | None = None,
) -> ChainAgent:
    """An agent whose steps call `tools` by verb until one says `answer`; `grade(task, text)` scores that in [0, 1].

    After `max_subtasks` steps without an answer the request ends with score 0. `count_tokens` gives the exact size of a
    conversation in tokens, otherwise four bytes are taken as one. Raises InputError for a tool named `answer` and for limits
    below one.
    """
    if ANSWER in tools:
        raise InputError(
            "tool_agent: tools", f"a tool is named {ANSWER!r}", "That verb ends a request; name the tool otherwise"
        )
    for name, limit in (("max_subtasks", max_subtasks), ("max_tokens", max_tokens)):
        if limit < 1:
            raise InputError(f"tool_agent: {name}", f"found {limit}", "Give at least 1")
    count = count_tokens or _estimated_tokens

    def observe(task: Task, text: str) -> str:
        verb, argument = parse_step(text, tools)
        if verb in tools:
            return tools[verb](task, argument)[:MAX_OBSERVATION]
        return f"unknown step , use {' , '.join([*tools, ANSWER])}"

    def run(task: Task) -> AgentRun:
        opening = (Message("system", system),) if system else ()
        messages: tuple[Message, ...] = (*opening, Message("user", task.prompt))
        for position in range(max_subtasks):
            call = ModelCall(task, position, messages, count(messages), payload_bytes(messages), max_tokens=max_tokens)
            completion = yield call
            verb, argument = parse_step(completion.text, tools)
            if verb == ANSWER:
                return Outcome(grade(task, argument), argument)
            messages += (Message("assistant", completion.text), Message("tool", observe(task, completion.text)))
        return Outcome(0.0, "")

    return run


def _estimated_tokens(messages: tuple[Message, ...]) -> int:
    return max(1, round((payload_bytes(messages) - FRAMING_BYTES) / BYTES_PER_TOKEN))
