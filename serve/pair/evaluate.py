"""How good the embedded pair is: `python -m serve.pair.evaluate --requests 1000`.

Every request is answered whole, through the agent of workloads/tasks/pair.py, by each model alone and by routes that mix them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from serve.pair import MODELS, WEIGHTS
from serve.pair.card import route_table, score_table, write_card
from serve.pair.decode import GreedyDecoder
from serve.pair.scores import Answered
from workloads.agent import AgentRun
from workloads.errors import InputError
from workloads.task import Completion, ModelCall, Outcome, Task
from workloads.tasks.pair import pair_agent, pair_tasks

Route = Callable[[ModelCall], str]
"""Which model answers a call."""


def routes() -> dict[str, Route]:
    """The routes of the evaluation by name: one model alone, taking turns, and a coin thrown per subtask."""

    def coin(call: ModelCall) -> str:
        return Random(f"{call.task.id} {call.position}").choice(("slm", "llm"))

    return {
        "slm": lambda call: "slm",
        "llm": lambda call: "llm",
        "slm first, in turns": lambda call: ("slm", "llm")[call.position % 2],
        "llm first, in turns": lambda call: ("llm", "slm")[call.position % 2],
        "llm once, then slm": lambda call: "slm" if call.position else "llm",
        "random 0.5": coin,
    }


def answer_all(models: Mapping[str, GreedyDecoder], tasks: Sequence[Task], route: Route) -> list[Answered]:
    """Answer all tasks side by side; a model gets the calls routed to it as one batch."""
    runs: list[AgentRun] = [pair_agent()(task) for task in tasks]
    waiting = {number: next(run) for number, run in enumerate(runs)}
    counts: list[dict[str, int]] = [dict.fromkeys(models, 0) for _ in tasks]
    outcomes: dict[int, Outcome] = {}
    while waiting:
        chosen = {number: route(call) for number, call in waiting.items()}
        for name, model in models.items():
            mine = [number for number in waiting if chosen[number] == name]
            calls = [waiting[number] for number in mine]
            texts = model.complete([call.messages for call in calls], calls[0].max_tokens) if calls else []
            for number, call, text in zip(mine, calls, texts, strict=True):
                counts[number][name] += 1
                try:
                    waiting[number] = runs[number].send(Completion(name, text, call.prompt_tokens, 0, 0))
                except StopIteration as finished:
                    outcomes[number] = finished.value
                    del waiting[number], chosen[number]
    return [Answered(task, outcomes[n].score, counts[n], outcomes[n].answer) for n, task in enumerate(tasks)]


def main(arguments: list[str] | None = None) -> None:
    """The command line: prints the scores; with --cards writes them into the models' README.md."""
    import torch
    from rich.console import Console
    from rich.markdown import Markdown

    parser = argparse.ArgumentParser(prog="python -m serve.pair.evaluate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="which test requests are drawn")
    parser.add_argument("--split", default="test")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder with slm/ and llm/")
    parser.add_argument("--cards", action="store_true", help="write README.md into both folders")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console()
    try:
        models = {name: GreedyDecoder(chosen.weights / name) for name in MODELS}
        tasks = pair_tasks(chosen.split, chosen.requests, chosen.seed)
    except InputError as error:
        raise SystemExit(str(error)) from None
    results = {}
    for name, route in routes().items():
        with console.status(name):
            results[name] = answer_all(models, tasks, route)
    for name in MODELS:
        console.print(Markdown(f"# {name}\n\n{score_table(results[name])}"))
        if chosen.cards:
            write_card(chosen.weights / name, name, results, chosen.seed)
    console.print(Markdown(route_table(results)))


if __name__ == "__main__":
    main()
