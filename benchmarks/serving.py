"""What Ray Serve costs: tokens a second through it over the same model called directly, `python benchmarks/serving.py [--json]`.

Every repeat answers the same calls in three ways, one after the other, so that a slow spell of the machine hits all: `direct`, an
engine in this process; `bulk`, the deployed model through `submit_many`; `single`, one Serve request a call. All calls are under
way from the start, so the batch is full until the last ones. Same engine, batch, prompts, limits, priority and one thread on all
sides. A ratio is the median of the ratios within the repeats.

Ratios of wall time need a core for the model and one for the caller, both idle. On a machine with other work look at the CPU ratio:
tokens a CPU second of the replica's process over tokens a CPU second of this one, which is what the wall ratio comes to when the
replica has a core of its own and never waits for work.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import typer  # noqa: E402 - after the path, like all of the project's own
from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.side_by_side import ratio  # noqa: E402
from serve.app import deployed  # noqa: E402
from serve.backend import RayServeBackend  # noqa: E402
from serve.deployments import TierDeployment  # noqa: E402
from serve.generation import ModelSpec  # noqa: E402
from serve.live import connected  # noqa: E402
from sim.progress import step_progress  # noqa: E402
from workloads.task import Message, ModelCall, Task  # noqa: E402

WAYS = ("direct", "bulk", "single")
_WORDS = {"direct": "direct", "bulk": "Serve, in bulk", "single": "Serve, one by one"}


Answers = list[tuple[str, int]]
"""(text, tokens) of every call."""


class Way(NamedTuple):
    """`answer` answers all calls; `cpu_s` are the CPU seconds so far of the process the model is in."""

    answer: Callable[[], Answers]
    cpu_s: Callable[[], float]


class Timed(NamedTuple):
    """One repeat of a way: its answers, wall seconds, and CPU seconds of the process the model is in."""

    answers: Answers
    wall_s: float
    cpu_s: float

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(tokens for _, tokens in self.answers)


def main(
    models: Annotated[
        str,
        typer.Option(
            help="Which, with commas: slm and llm of the shipped pair, random, or the folder of a pair's model."
        ),
    ] = "slm,llm,random",
    calls: Annotated[int, typer.Option(min=1, help="Calls in a repeat.")] = 256,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Conversations an engine decodes together.")] = 16,
    width: Annotated[int, typer.Option(min=8, help="Of the random model, with 6 layers.")] = 384,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of the random model's answers.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Measure and print."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    results, names = {}, models.split(",")
    with (
        step_progress(Console(stderr=True)) as progress,
        tempfile.TemporaryDirectory() as folder,
        connected(None, (1, 1)),
    ):
        done = {name: progress(f"{Path(name).name}: {calls:,} calls", (repeats + 1) * len(WAYS)) for name in names}
        for name in names:
            spec, asked = the_model(name, Path(folder), calls, width, max_tokens)
            with ways(spec, asked, batch) as prepared:
                results[name] = summarise(measure(prepared, repeats, done[name]), spec)
    print(json.dumps(as_object(results, calls, batch), indent=1) if as_json else "", end="")
    if not as_json:
        Console().print(as_table(results))


def the_model(name: str, folder: Path, calls: int, width: int, max_tokens: int) -> tuple[ModelSpec, list[ModelCall]]:
    """The model's spec and what it is asked: first steps of test tasks, plain text for the random one."""
    if name == "random":
        spec = ModelSpec(str(random_model(folder / name, width)), threads=1, max_tokens=max_tokens)
        texts = [f"Question {i}: what is the grandmother of number {i * i} called?" for i in range(calls)]
        return spec, [
            ModelCall(Task(text), 0, (Message("user", text),), 60, 400, max_tokens=max_tokens) for text in texts
        ]
    from serve.pair import MODELS as PAIR
    from serve.pair import pair_path
    from workloads.tasks.pair import pair_agent, pair_tasks

    agent, source = pair_agent(), pair_path(name) if name in PAIR else Path(name)
    return ModelSpec(str(source), threads=1), [next(agent(task)) for task in pair_tasks("test", calls, 0)]


def random_model(folder: Path, width: int) -> Path:
    """A Llama with random weights and a byte tokenizer."""
    from tests.serve.tiny_models import tiny_model

    return tiny_model(folder, width=width, layers=6, end_share=0.0, context_tokens=512)


@contextmanager
def ways(spec: ModelSpec, asked: Sequence[ModelCall], batch: int) -> Iterator[dict[str, Way]]:
    """The three ways, ready to be timed."""
    from serve.engine.engine import Engine
    from serve.slm import CausalLM

    tier = TierDeployment(
        "bench", "cloud", spec, max_batch=batch, max_queued=None, num_cpus=1.0, request_timeout_s=600.0
    )
    with (
        Engine(CausalLM(spec), batch) as engine,
        deployed({"bench": tier}, app_name=f"bench-{os.getpid()}") as clients,
        RayServeBackend(clients) as backend,
    ):

        def direct() -> Answers:
            limits = [min(call.max_tokens, spec.max_tokens) for call in asked]
            return collected([engine.submit(call.messages, limit) for call, limit in zip(asked, limits, strict=True)])

        def bulk() -> Answers:
            return collected(backend.submit_many([(call, "bench") for call in asked]))

        def single() -> Answers:
            return collected([backend.submit(call, "bench") for call in asked])

        (replica,) = backend.stats()["bench"]
        there = partial(cpu_seconds, replica.pid)
        yield {"direct": Way(direct, time.process_time), "bulk": Way(bulk, there), "single": Way(single, there)}


def collected(handles: Iterable[Any]) -> Answers:
    """What a model answered, when all of it is there."""
    return [(answer.text, answer.completion_tokens) for answer in [handle.result() for handle in handles]]


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process of this machine so far, to 1/100 s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    prepared: Mapping[str, Way], repeats: int, on_answered: Callable[[], None] = lambda: None
) -> dict[str, list[Timed]]:
    """Every way in every repeat; a first one is thrown away. `on_answered` is told whenever a way is through its calls."""
    runs: dict[str, list[Timed]] = {name: [] for name in prepared}
    for repeat in range(repeats + 1):
        for name, way in prepared.items():
            began_s, cpu_s = time.perf_counter(), way.cpu_s()
            answers = way.answer()
            timed = Timed(answers, time.perf_counter() - began_s, way.cpu_s() - cpu_s)
            if repeat:
                runs[name].append(timed)
            on_answered()
    return runs


def summarise(runs: Mapping[str, Sequence[Timed]], spec: ModelSpec) -> dict[str, Any]:
    """Tokens a second each way, and the ratios to `direct`."""
    rates = {name: [run.tokens / run.wall_s for run in each] for name, each in runs.items()}
    cpu_rates = {name: [run.tokens / run.cpu_s for run in each] for name, each in runs.items()}
    (first, *others) = [run for each in runs.values() for run in each]
    ratios = {f"ratio_{name}": ratio(rates, name, WAYS[0]) for name in WAYS[1:]}
    return {
        "tokens_per_s": {name: statistics.median(each) for name, each in rates.items()},
        **ratios,
        **{f"cpu_ratio_{name}": ratio(cpu_rates, name, WAYS[0]) for name in WAYS[1:]},
        "same_answers": all(run.answers == first.answers for run in others),
        "tokens": first.tokens,
        "parameters": parameters(spec),
        "repeats_tokens_per_s": rates,
        "repeats_tokens_per_cpu_s": cpu_rates,
    }


def parameters(spec: ModelSpec) -> int:
    """Numbers in the model's weights."""
    from safetensors import safe_open

    with safe_open(Path(spec.source) / "model.safetensors", framework="pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 - no dictionary


def as_object(results: Mapping[str, Any], calls: int, batch: int) -> dict[str, Any]:
    """The result as one JSON object."""
    versions = {name: importlib.metadata.version(name) for name in ("ray", "torch", "transformers")}
    context = {"calls": calls, "batch": batch, "threads": 1, "python": platform.python_version(), "versions": versions}
    return {"models": dict(results), "context": context | {"platform": platform.platform(), "cores": os.cpu_count()}}


def as_table(results: Mapping[str, Any]) -> Table:
    """The result for people: a row for each model and way, ratios to `direct`."""
    table = Table(box=box.SIMPLE, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("way", no_wrap=True)
    for head in ("tokens", "tokens/s", "ratio", "CPU ratio"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, result in results.items():
        whose = [Path(name).name, f"{result['parameters']:,}"]
        for way in WAYS:
            ratios = [f"{result[f'{kind}_{way}']:.2f}" if way != WAYS[0] else "" for kind in ("ratio", "cpu_ratio")]
            table.add_row(*whose, _WORDS[way], f"{result['tokens']:,}", f"{result['tokens_per_s'][way]:,.0f}", *ratios)
            whose = ["", ""]
        table.add_section()
    return table


if __name__ == "__main__":
    typer.run(main)
