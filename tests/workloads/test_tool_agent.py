from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.agent import payload_bytes
from workloads.errors import InputError
from workloads.task import Completion, Message, ModelCall, Outcome, Task
from workloads.tool_agent import parse_step, tool_agent

TASK = Task("t", "how many ?", "42")
TOOLS = {"shout": lambda task, text: text.upper(), "fail": lambda task, text: "error: always"}


def _right(task: Task, text: str) -> float:
    return float(text == task.answer)


def _drive(agent, *texts: str) -> tuple[list[ModelCall], Outcome | None]:
    """The calls an agent makes when a model says `texts`, and the outcome if it ended."""
    run = agent(TASK)
    calls = [next(run)]
    for text in texts:
        try:
            calls.append(run.send(Completion("m", text, 1, 1, 1)))
        except StopIteration as ended:
            return calls, ended.value
    return calls, None


def test_a_step_runs_its_tool_and_the_observation_joins_the_conversation():
    """Each step adds the model's own words and the tool's answer; `answer` ends the request and is graded."""
    calls, outcome = _drive(tool_agent(TOOLS, _right), "shout hello there", "fail x", "answer 42")
    assert calls[2].messages == (
        Message("user", "how many ?"),
        Message("assistant", "shout hello there"),
        Message("tool", "HELLO THERE"),
        Message("assistant", "fail x"),
        Message("tool", "error: always"),
    )
    assert [call.position for call in calls] == [0, 1, 2]
    assert outcome == Outcome(1.0, "42")


def test_a_wrong_answer_scores_what_the_grader_says():
    """The agent takes the grader's word for the score."""
    _, outcome = _drive(tool_agent(TOOLS, lambda task, text: 0.25), "answer 41")
    assert outcome == Outcome(0.25, "41")


@pytest.mark.parametrize("text", ["dance now", "", "   ", "42", "***", "ANSWERING 42"])
def test_an_unknown_step_is_answered_with_the_verbs_there_are(text):
    """What the agent cannot carry out does not end the request: the observation says what it understands."""
    calls, outcome = _drive(tool_agent(TOOLS, _right), text)
    assert outcome is None
    assert calls[1].messages[-1] == Message("tool", "unknown step , use shout , fail , answer")


def test_a_request_without_an_answer_fails_after_the_last_step():
    """After max_subtasks steps the score is 0, with no call more."""
    calls, outcome = _drive(tool_agent(TOOLS, _right, max_subtasks=3), "shout a", "shout b", "shout c")
    assert len(calls) == 3
    assert outcome == Outcome(0.0, "")


def test_a_system_message_comes_first_and_sizes_are_of_the_whole_conversation():
    """Bytes follow payload_bytes; tokens come from the counter given, else from the bytes."""
    agent = tool_agent(
        TOOLS, _right, system="be brief", max_tokens=7, count_tokens=lambda messages: 100 + len(messages)
    )
    call = _drive(agent)[0][0]
    assert call.messages == (Message("system", "be brief"), Message("user", "how many ?"))
    assert (call.prompt_tokens, call.max_tokens, call.upload_bytes) == (102, 7, payload_bytes(call.messages))
    assert _drive(tool_agent(TOOLS, _right))[0][0].prompt_tokens == round((10 + 30) / 4)


@pytest.mark.parametrize(
    "text",
    [
        "shout mother of Nia Voss",
        "Shout: mother of Nia Voss",
        "shout[mother of Nia Voss]",
        "Action: shout[mother of Nia Voss]",
        "Action 2: shout mother of Nia Voss",
        "**shout**: mother of Nia Voss",
        "**Action:** shout mother of Nia Voss",
        "- `shout mother of Nia Voss`",
        "1. shout mother of Nia Voss",
        "I should look this up first.\n\nshout mother of Nia Voss\nand then go on",
        "```\nshout mother of Nia Voss\n```",
    ],
)
def test_the_dress_of_larger_models_is_taken_off(text):
    """Prefixes, brackets, markdown and text around the step are understood."""
    assert parse_step(text, TOOLS) == ("shout", "mother of Nia Voss")


@pytest.mark.parametrize(
    "text", ["answer 42", "Answer: 42", "**Answer:** 42", "Final answer: 42", "answer[42]", "> ANSWER 42"]
)
def test_an_answer_is_recognised_in_any_dress(text):
    """What ends the request is found as reliably as a tool's verb."""
    assert parse_step(text, TOOLS) == ("answer", "42")


def test_brackets_inside_an_argument_stay():
    """Only a pair of square brackets around the whole argument is dress."""
    assert parse_step("shout ( 11 + 10 ) * 2", TOOLS) == ("shout", "( 11 + 10 ) * 2")
    assert parse_step("shout -5 + 3", TOOLS) == ("shout", "-5 + 3")


@given(st.text(max_size=200))
def test_no_text_breaks_the_agent(text):
    """Whatever a model says, the request goes on or ends with a grade."""
    calls, outcome = _drive(tool_agent(TOOLS, _right), text)
    assert outcome is not None or calls[1].messages[-1].role == "tool"


@pytest.mark.parametrize(
    "settings",
    [{"max_subtasks": 0}, {"max_tokens": 0}, {"tools": {"answer": TOOLS["shout"]}}],
    ids=lambda s: next(iter(s)),
)
def test_impossible_settings_are_refused(settings):
    """Limits below one and a tool in the place of `answer` are bad input."""
    tools = settings.pop("tools", TOOLS)
    with pytest.raises(InputError, match="tool_agent"):
        tool_agent(tools, _right, **settings)
