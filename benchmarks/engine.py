"""Tokens a second of one model three ways in one process: `python benchmarks/engine.py [--json] [--model PATH]`.

`engine` is continuous batching (serve/engine/engine.py) with all requests submitted at once, `direct` the same model called in batches
(`CausalLM.generate`), `transformers` the library's own `generate` on the same batches, left-padded. All three answer the same
requests greedily, and the texts must agree. CPU time of this process on one torch thread; every repeat runs all of them in turn,
and a ratio is the median of the ratios within the repeats, so a slow spell of the machine hits all sides.
"""

from __future__ import annotations

import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # started as a file, Python looks for imports beside that file only
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - these need the line above
import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.side_by_side import ratio  # noqa: E402
from serve.engine.engine import Engine  # noqa: E402
from serve.generation import ModelSpec  # noqa: E402
from serve.pair import pair_path  # noqa: E402
from serve.slm import CausalLM  # noqa: E402
from workloads.task import Message  # noqa: E402
from workloads.tasks.pair import pair_tasks  # noqa: E402

Conversation = tuple[Message, ...]
Answers = list[tuple[str, int]]
"""(text, tokens) of every request."""
Way = Callable[[CausalLM, Sequence[Conversation], int, int], Answers]
"""(model, conversations, batch, max_tokens) -> answers."""


def by_engine(model: CausalLM, asked: Sequence[Conversation], batch: int, max_tokens: int) -> Answers:
    """All submitted at once; the engine fills its batch as places become free."""
    with Engine(model, batch) as engine:
        futures = [engine.submit(messages, max_tokens) for messages in asked]
        return [(answer.text, answer.completion_tokens) for answer in (future.result() for future in futures)]


def directly(model: CausalLM, asked: Sequence[Conversation], batch: int, max_tokens: int) -> Answers:
    """One batch after the other."""
    answers = [
        answer
        for start in range(0, len(asked), batch)
        for answer in model.generate(asked[start : start + batch], max_tokens)
    ]
    return [(answer.text, answer.completion_tokens) for answer in answers]


def by_transformers(model: CausalLM, asked: Sequence[Conversation], batch: int, max_tokens: int) -> Answers:
    """The library's own loop, batch after batch."""
    answers: Answers = []
    for start in range(0, len(asked), batch):
        prompts = [model.tokens(messages) for messages in asked[start : start + batch]]
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
        mask = torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device
        )
        produced = model.model.generate(
            ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False, eos_token_id=sorted(model.ends), pad_token_id=0
        )  # fmt: skip
        for row in produced[:, width:].tolist():
            ends = [index for index, token in enumerate(row) if token in model.ends]
            text = row[: ends[0]] if ends else row
            answers.append((model.chat.decode(text), ends[0] + 1 if ends else len(row)))
    return answers


WAYS: dict[str, Way] = {"engine": by_engine, "direct": directly, "transformers": by_transformers}


def measure(
    model: CausalLM, asked: Sequence[Conversation], batch: int, max_tokens: int, repeats: int
) -> dict[str, list[float]]:
    """Tokens per CPU second of each way, one number a repeat; the first round warms up and is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    expected: Answers | None = None
    for repeat in range(repeats + 1):
        for name, way in WAYS.items():
            gc.collect()
            began_s = time.process_time()
            answers = way(model, asked, batch, max_tokens)
            spent_s = time.process_time() - began_s
            expected = expected or answers
            if answers != expected:
                different = sum(a != b for a, b in zip(answers, expected, strict=True))
                raise RuntimeError(f"{name} at batch {batch} gave {different} other answers than {next(iter(WAYS))}")
            if repeat:
                rates[name].append(sum(tokens for _, tokens in answers) / spent_s)
    return rates


def summarise(by_batch: Mapping[int, Mapping[str, Sequence[float]]], context: Mapping[str, Any]) -> dict[str, Any]:
    """The result as one JSON object."""
    return {
        "meaning": "completion tokens per CPU second, prompts included; ratios are medians within the repeats",
        "batches": {
            str(batch): {
                **{f"{name}_tokens_per_s": statistics.median(values) for name, values in rates.items()},
                "engine_to_direct": ratio(rates, "engine", "direct"),
                "engine_to_transformers": ratio(rates, "engine", "transformers"),
                "direct_to_transformers": ratio(rates, "direct", "transformers"),
            }
            for batch, rates in by_batch.items()
        },
        **context,
    }


def as_table(result: Mapping[str, Any]) -> Table:
    """The result for people."""
    table = Table(title=f"completion tokens per CPU second, {result['model']}")
    for heading in ("batch", *WAYS, "engine / direct", "engine / transformers"):
        table.add_column(heading, justify="right")
    for batch, row in result["batches"].items():
        rates = [f"{row[f'{name}_tokens_per_s']:,.0f}" for name in WAYS]
        table.add_row(batch, *rates, f"{row['engine_to_direct']:.2f}", f"{row['engine_to_transformers']:.2f}")
    return table


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    source: Annotated[str, typer.Option("--model", help="A model; default: the embedded SLM.")] = "",
    requests: Annotated[int, typer.Option(min=1, help="Requests per timed run.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Limit of an answer.")] = 48,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of every way.")] = 3,
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1,8,32",
) -> None:
    """Measure and print."""
    model = CausalLM(ModelSpec(source or str(pair_path("slm")), device="cpu", threads=1))
    asked = [(Message("user", task.prompt),) for task in pair_tasks("test", requests, 0)]
    by_batch = {}
    for batch in map(int, batches.split(",")):
        few = asked if batch > 1 else asked[: max(1, requests // 8)]
        by_batch[batch] = measure(model, few, batch, max_tokens, repeats)
    context = {
        "model": source or "the embedded SLM", "requests": requests, "repeats": repeats, "torch": torch.__version__,
        "python": platform.python_version(), "platform": platform.platform(),
    }  # fmt: skip
    result = summarise(by_batch, context)
    print(json.dumps(result, indent=2)) if as_json else Console().print(as_table(result))


if __name__ == "__main__":
    typer.run(main)
