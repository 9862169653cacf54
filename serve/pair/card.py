"""The model card of an embedded model: what it is, how it was trained, what it scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from serve.pair.scores import Answered, mean_score, mean_subtasks
from workloads.tasks.pair import FAMILIES, MAX_SUBTASKS

_TITLES = {"slm": "Isthmus embedded SLM", "llm": "Isthmus embedded LLM"}
_STYLES = {
    "slm": "one fact worked out a step",
    "llm": "what the name asked for needs, back to what is known, then two facts worked out a step",
}
_HEADER = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [tool-use, multi-step, simulation]
---
"""


def score_table(answered: Sequence[Answered]) -> str:
    """Scores by family, length and distractors as a Markdown table; the right column and last rows are margins."""
    rows = []
    for family in FAMILIES:
        mine = [a for a in answered if a.task.family == family]
        most = sorted({a.task.features["distractors"] for a in mine})
        rows.append(f"| {family}: length | {' | '.join(f'{d} distractors' for d in most)} | all |")
        rows.append("|---" * (len(most) + 2) + "|")
        by_length: dict[int, list[Answered]] = {}
        for answer in mine:
            by_length.setdefault(answer.task.features["length"], []).append(answer)
        rows += [_row(str(length), by_length[length], most) for length in sorted(by_length)]
        rows += [_row("all", mine, most), ""]
    return "\n".join(rows)


def _row(name: str, answered: list[Answered], most: list[int]) -> str:
    cells = [[a for a in answered if a.task.features["distractors"] == d] for d in most]
    return f"| {name} | {' | '.join(_share(cell) for cell in (*cells, answered))} |"


def _share(answered: Sequence[Answered]) -> str:
    return f"{mean_score(answered):.3f}".removeprefix("0") if answered else "-"


def route_table(results: Mapping[str, Sequence[Answered]]) -> str:
    """Scores and subtasks a request of each route as a Markdown table."""
    lines = [f"| route | all | {' | '.join(FAMILIES)} | subtasks | of them LLM |", "|---" * (len(FAMILIES) + 4) + "|"]
    for name, answered in results.items():
        families = [_share([a for a in answered if a.task.family == family]) for family in FAMILIES]
        total, large = mean_subtasks(answered), mean_subtasks(answered, "llm")
        lines.append(f"| {name} | {_share(answered)} | {' | '.join(families)} | {total:.2f} | {large:.2f} |")
    return "\n".join(lines)


def write_card(folder: Path, model: str, results: Mapping[str, Sequence[Answered]], seed: int) -> None:
    """Write README.md into a model's folder from its training.json and the evaluation."""
    facts = json.loads((folder / "training.json").read_text())
    (folder / "README.md").write_text(_card(model, facts, results, seed))


def _card(model: str, facts: Mapping[str, Any], results: Mapping[str, Sequence[Answered]], seed: int) -> str:
    recipe, answered = facts["recipe"], results[model]
    return f"""{_HEADER}
# {_TITLES[model]}

A Qwen3-style decoder of {facts["parameters"]:,} parameters ({recipe["layers"]} layers, width {recipe["width"]}, {recipe["heads"]} heads,
{facts["vocabulary"]} word pieces), trained from scratch on the tasks of `workloads/tasks/pair.py` and nothing else. It writes one
step a turn, verb first: {_STYLES[model]}; `answer` ends the request.

Intended use: a real model that answers in milliseconds on a CPU, so that Isthmus and its tests run off line. It can do nothing
but these two families of questions, in English words of a closed vocabulary, and knows nothing about the world. All names are
invented. It is confidently wrong when it is wrong.

## Training

- Data: {recipe["steps"]:,} batches of {recipe["batch"]} conversations, made on the fly from the training split (a hash of the question decides the
  split), the large model's mostly with their facts in any order, with up to four distractors, and two of three about relations. Steps of the other model and steps that do not help are history in them, never targets.
- Seed {facts["seed"]}, one CPU thread, {facts["seconds"] / 60:.0f} minutes on a shared machine; weights in float32, products in bfloat16 where the CPU multiplies it. Optimiser: Muon (matrices, peak rate
  {recipe["muon_rate"]}) and Adam (the rest, {recipe["rate"]}); length grows over the first part of the steps, up to 6.
- Again: `python -m serve.pair.train --model {model} --seed {facts["seed"]} --out DIR`. Loss at the end: {facts["losses"][-1]}.

## Scores

{len(answered):,} unseen requests of the test split (seed {seed}), answered whole and greedily, at most {MAX_SUBTASKS} steps, on {date.today().isoformat()}:
**{mean_score(answered):.3f} right, {mean_subtasks(answered):.2f} subtasks a request.** Again: `python -m serve.pair.evaluate --requests {len(answered)}`.

{score_table(answered)}
Together with the other model, on the same requests:

{route_table(results)}
"""
