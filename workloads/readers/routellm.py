"""RouteLLM's evaluation files: for each prompt, which models answered correctly and, in some files, what they said.

Source: github.com/lm-sys/RouteLLM (Apache-2.0); Ong et al., "RouteLLM: Learning to Route LLMs with Preference Data",
ICLR 2025. The GSM8K file has answers; the MMLU files have correctness only.

CSV with the column `prompt`, one column of True/False per model, named after it, and optionally `<model>_response`.
Traps:
- Prompts and answers run over many lines inside quotes; their line breaks and blanks are kept exactly.
- Model names hold slashes and dots, and so do the column names made of them.
- The two models of a file saw the same prompts, so their outcomes are paired: compare them row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from workloads.errors import InputError
from workloads.readers._rows import StrPath, csv_header, csv_rows, place

FORMAT = "RouteLLM outcomes: CSV with prompt, a True/False column per model and optional <model>_response columns"

PROMPT, RESPONSE = "prompt", "_response"
TRUTH = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """One prompt: `correct` for every model, `response` for those whose answers the file keeps."""

    prompt: str
    correct: Mapping[str, bool]
    response: Mapping[str, str]


def models(path: StrPath) -> tuple[str, ...]:
    """The models a file holds outcomes of, in column order; raises InputError if there is none."""
    columns = [name for name in csv_header(path, (PROMPT,)) if name != PROMPT]
    names = tuple(name for name in columns if not _model_of_response(name, columns))
    if not names:
        raise InputError(place(path, 1), "no model has a column", "Give each model a column of True/False")
    for name in names:
        if not name:
            raise InputError(place(path, 1), "a column has no name", "Leave out the index column, or name it")
        if name.endswith(RESPONSE):
            problem, model = "answers of a model without outcomes", name.removesuffix(RESPONSE)
            raise InputError(place(path, 1, name), problem, f"Add the True/False column '{model}'")
    return names


def read(path: StrPath) -> Iterator[OutcomeRow]:
    """Yield the outcomes in file order; raises InputError at a malformed row."""
    names = models(path)
    for row, values in csv_rows(path, (PROMPT,)):
        if not values[PROMPT].strip():
            raise InputError(place(path, row, PROMPT), "the prompt is empty", "Give the text the models were asked")
        correct = {name: _truth(values[name], path, row, name) for name in names}
        yield OutcomeRow(values[PROMPT], correct, _responses(values, names))


def _model_of_response(column: str, columns: Sequence[str]) -> str:
    model = column.removesuffix(RESPONSE)
    return model if column != model and model in columns else ""


def _responses(values: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    return {name: values[name + RESPONSE] for name in names if name + RESPONSE in values}


def _truth(text: str, path: StrPath, row: int, column: str) -> bool:
    truth = TRUTH.get(text.strip().lower())
    if truth is None:
        raise InputError(place(path, row, column), f"{text[:40]!r} is not an outcome", "Write True, False, 1 or 0")
    return truth
