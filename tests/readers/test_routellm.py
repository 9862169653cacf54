from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from workloads.errors import InputError
from workloads.readers import routellm

Find = Callable[[str], Path]
MIXTRAL, GPT_4 = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
GSM8K = "outcomes/routellm_gsm8k_responses.csv"


def write(folder: Path, text: str) -> Path:
    """A file of this text."""
    path = folder / "outcomes.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_reads_every_question_of_the_real_file(shared_data: Find) -> None:
    """1,319 GSM8K questions, which Mixtral answers right in 63.8 % and GPT-4 in 85.7 % of cases."""
    path = shared_data(GSM8K)
    rows = list(routellm.read(path))
    assert routellm.models(path) == (MIXTRAL, GPT_4)
    assert len(rows) == 1319
    assert sum(row.correct[MIXTRAL] for row in rows) / len(rows) == pytest.approx(0.638, abs=0.0005)
    assert sum(row.correct[GPT_4] for row in rows) / len(rows) == pytest.approx(0.857, abs=0.0005)


def test_real_answers_keep_their_lines(shared_data: Find) -> None:
    """The first answer is kept to the blank it starts with and the result on its last line."""
    row = next(routellm.read(shared_data(GSM8K)))
    assert row.prompt.startswith("Janet’s ducks lay 16 eggs per day.")
    lines = row.response[MIXTRAL].split("\n")
    assert (lines[0], lines[-1]) == (" Janet starts with 16 eggs per day.", "#### 18")
    assert row.response[GPT_4].endswith("she makes 9 * $2 = $18 every day at the farmers' market.")


def test_reads_a_file_without_answers(tmp_path: Path) -> None:
    """The MMLU files hold a prompt and correctness only; outcomes may be written as 0 and 1 in any case."""
    path = write(tmp_path, 'prompt,small,large\n"Which?\nA. x\nAnswer:",True,FALSE\nWhy?,0,1\n')
    first, second = routellm.read(path)
    assert (first.prompt, first.correct, first.response) == (
        "Which?\nA. x\nAnswer:",
        {"small": True, "large": False},
        {},
    )
    assert second.correct == {"small": False, "large": True}


def test_a_model_may_be_named_like_an_answer(tmp_path: Path) -> None:
    """`x_response` is an answer only where a model `x` has outcomes."""
    path = write(tmp_path, "prompt,x,x_response,y_response\nq,1,True,1\n")
    with pytest.raises(InputError, match="row 1, column 'y_response': answers of a model without outcomes"):
        routellm.models(path)
