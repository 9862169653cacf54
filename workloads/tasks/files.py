"""Questions from files: GSM8K's word problems with a calculator, HotpotQA's questions with search in their own paragraphs.

Formats: github.com/openai/grade-school-math (JSON lines of question and answer, the number after `####`) and hotpotqa.github.io
(a JSON list of questions with context; training set and distractor setting). Either may be JSON lines or one JSON list, plain or
gzip-compressed. Sources: Cobbe et al. 2021; Yang et al., EMNLP 2018. The verbs follow Yao et al., "ReAct", ICLR 2023.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from workloads.agent import ChainAgent
from workloads.errors import InputError, suggest
from workloads.grading import FINAL, GRADERS, last_number, numeric_match
from workloads.readers._fields import list_field, require_fields, text_field
from workloads.readers._rows import StrPath, json_document, json_kind, json_lines, open_text, place
from workloads.task import Message, Task
from workloads.tasks.paragraphs import Paragraph, lookup, search
from workloads.tool_agent import BYTES_PER_TOKEN, tool_agent
from workloads.tools import compute

MAX_SUBTASKS = 15
MAX_STEP_TOKENS = 128
"""Tokens a step may take: one line, and room for a model that explains itself before it."""
QA_METRICS = ("exact_match", "f1")
_CALCULATION = re.compile(r"<<[^<>]*>>")

CountTokens = Callable[[tuple[Message, ...]], int]

GSM8K_SYSTEM = """\
You solve word problems in steps. Each of your messages is exactly one line that starts with one of these words:
compute EXPRESSION
answer NUMBER
compute asks a calculator for numbers with + - * / and brackets; its result comes back in the next message. answer ends the \
problem. Write nothing else.

Example. Problem: Nia buys 3 boxes of 12 pens and gives 5 pens away. How many pens are left?
compute 3 * 12
(result: 36)
compute 36 - 5
(result: 31)
answer 31"""

HOTPOTQA_SYSTEM = """\
You answer questions in steps, with the help of a small collection of texts. Each of your messages is exactly one line that \
starts with one of these words:
search WORDS
lookup WORDS
answer TEXT
search shows the text that fits best, by its title or by its words. lookup shows single sentences with these words, from any of \
the texts. The result comes back in the next message. answer ends the question: a name, a date, a few words, or yes or no. Write \
nothing else.

Example. Question: In which town was the director of Blue Harbor born?
search Blue Harbor
(result: Blue Harbor: Blue Harbor is a 1961 film directed by Ivo Calder.)
search Ivo Calder
(result: Ivo Calder: Ivo Calder was a director. He was born in North Lindel.)
answer North Lindel"""


def gsm8k_tasks(path: StrPath, limit: int | None = None) -> list[Task]:
    """The problems of a GSM8K-style file in order, the first `limit` of them; a task's answer is the number after `####`.

    `features["steps"]` counts the calculations of the solution where it marks them (`<<48/2=24>>`), else it is 0. Raises
    InputError with file, row and field for anything that is no such problem.
    """
    return [_gsm8k_task(fields, path, row, number) for number, (row, fields) in _rows(path, limit)]


def _gsm8k_task(fields: Any, path: StrPath, row: int | str, number: int) -> Task:
    require_fields(fields, ("question", "answer"), path, row)
    question = text_field(fields, "question", path, row, filled=True).strip()
    solution = text_field(fields, "answer", path, row, filled=True)
    _, mark, end = solution.rpartition(FINAL)
    answer = last_number(end) if mark else None
    if answer is None:
        problem = f"ends in {solution.strip()[-40:]!r}, which is no '{FINAL}' with a number behind it"
        raise InputError(place(path, row, "answer"), problem, f"Give the solution and then '{FINAL} 42'")
    steps = len(_CALCULATION.findall(solution))
    return Task(
        f"gsm8k-{number}", question, f"{answer:f}", "gsm8k", _estimated_tokens(question), features={"steps": steps}
    )


def gsm8k_agent(
    max_subtasks: int = MAX_SUBTASKS, max_tokens: int = MAX_STEP_TOKENS, count_tokens: CountTokens | None = None
) -> ChainAgent:
    """An agent with a calculator, `compute`; the last number of its answer counts. Raises InputError as `tool_agent` does."""
    return tool_agent(
        {"compute": compute}, numeric_match, system=GSM8K_SYSTEM, max_subtasks=max_subtasks, max_tokens=max_tokens,
        count_tokens=count_tokens,
    )  # fmt: skip


def hotpotqa_tasks(path: StrPath, limit: int | None = None) -> list[Task]:
    """The questions of a HotpotQA-style file in order, the first `limit` of them, with their paragraphs in `latent`.

    `family` is the question's type (bridge or comparison), `features` holds type and level where the file has them. Supporting
    facts are not read: nothing here grades them. Raises InputError with file, question and field for anything else.
    """
    tasks: dict[str, Task] = {}
    for _, (row, fields) in _rows(path, limit):
        task = _hotpotqa_task(fields, path, row)
        if task.id in tasks:
            problem = f"the question {task.id!r} occurs twice"
            raise InputError(place(path, row, "_id"), problem, "Give every question an id of its own")
        tasks[task.id] = task
    return list(tasks.values())


def _hotpotqa_task(fields: Any, path: StrPath, row: int | str) -> Task:
    require_fields(fields, ("_id", "question", "answer", "context"), path, row)
    name, question, answer = (
        text_field(fields, field, path, row, filled=True).strip() for field in ("_id", "question", "answer")
    )
    features = {
        field: value for field in ("type", "level") if (value := text_field(fields, field, path, row, default=""))
    }
    entries = list_field(fields["context"], "context", path, row)
    if not entries:
        raise InputError(place(path, row, "context"), "holds no paragraph", "Give at least one [title, [sentences]]")
    paragraphs = tuple(_paragraph(entry, path, row, number) for number, entry in enumerate(entries, start=1))
    family = features.get("type", "hotpotqa")
    return Task(name, question, answer, family, _estimated_tokens(question), features=features, latent=paragraphs)


def _paragraph(entry: Any, path: StrPath, row: int | str, number: int) -> Paragraph:
    sound = (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], list)
        and all(isinstance(sentence, str) for sentence in entry[1])
    )
    if not sound:
        problem = f"paragraph {number} holds {json_kind(entry)} other than [title, [sentences]]"
        raise InputError(place(path, row, "context"), problem, 'Give ["title", ["sentence", "sentence"]]')
    return Paragraph(entry[0], tuple(entry[1]))


def hotpotqa_agent(
    metric: str = "exact_match",
    max_subtasks: int = MAX_SUBTASKS,
    max_tokens: int = MAX_STEP_TOKENS,
    count_tokens: CountTokens | None = None,
) -> ChainAgent:
    """An agent that can `search` and `lookup` in the question's own paragraphs, graded by `exact_match` or `f1`.

    Raises InputError for another metric, and as `tool_agent` does.
    """
    if metric not in QA_METRICS:
        raise InputError("hotpotqa_agent: metric", f"found {metric!r}", suggest(metric, QA_METRICS))
    return tool_agent(
        {"search": search, "lookup": lookup}, GRADERS[metric], system=HOTPOTQA_SYSTEM, max_subtasks=max_subtasks,
        max_tokens=max_tokens, count_tokens=count_tokens,
    )  # fmt: skip


def _rows(path: StrPath, limit: int | None) -> Iterator[tuple[int, tuple[int | str, Any]]]:
    """(number from 1, (its line or place in the list, value)) of the first `limit` entries, of JSON lines or of one JSON list."""
    if limit is not None and limit < 1:
        raise InputError(f"{place(path)}: limit", f"found {limit}", "Give at least 1, or leave it out for all")
    with open_text(path) as file:
        start = next((line.lstrip()[0] for line in file if line.strip()), "")
    rows: Iterator[tuple[int | str, Any]]
    if start == "[":
        entries = json_document(path)
        if not isinstance(entries, list) or not entries:
            raise InputError(place(path), f"holds {json_kind(entries)}", "Give a list of at least one question")
        rows = ((f"entry {number}", entry) for number, entry in enumerate(entries, start=1))
    else:
        rows = iter(json_lines(path))
    return enumerate(islice(rows, limit), start=1)


def _estimated_tokens(text: str) -> int:
    return max(1, round(len(text.encode()) / BYTES_PER_TOKEN))
