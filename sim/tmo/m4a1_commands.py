"""`run_sim.py tmo ...`: the experiments on an M4A1 file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

tmo = typer.Typer(help="TMO on an M4A1 file: the authors' evaluation, and judges that are fair.", no_args_is_help=True)

Data = Annotated[str, typer.Option("--data", metavar="FILE", help="M4A1 dialogues (JSON).")]
DATA = "$ISTHMUS_DATA/m4a1/M4A1.json"
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for results.")]
Device = Annotated[str, typer.Option(help="The authors' local device.")]
Network = Annotated[str, typer.Option(help="The authors' network: wired, wifi, 5g or 4g.")]
Steps = Annotated[int, typer.Option(min=1, help="Training steps of each learner.")]
Learner = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="PPO, A2C, DQN, RC-PPO ...; repeatable; default: all six.")
]


def _found(data: str) -> Path:
    """The file, relative to the working directory or under $ISTHMUS_DATA."""
    from sim.loading import data_path

    return data_path(data, Path("scenario.yaml"))


@tmo.command()
def authors(
    data: Data = DATA,
    out: Out = Path("results"),
    device: Device = "Jetson TX2",
    network: Network = "wired",
    seeds: Annotated[int, typer.Option(min=1, help="Splits and trainings: seeds 1 to this.")] = 3,
    steps: Steps = 30_000,
    learner: Learner = None,
) -> None:
    """Reproduce the authors' evaluation: policies trained and graded by one and the same table, on their own splits.

    An interrupted command goes on where it was: repeat it.
    """
    from sim.progress import step_progress
    from sim.tmo.m4a1_experiment import LEARNED, experiment
    from sim.tmo.m4a1_tables import authors_table, evaluation_rows, summary_rows, write_rows

    trial = experiment(_found(data), out, device, network, steps, learner or LEARNED)
    with step_progress(Console(stderr=True)) as progress:
        rows = trial.evaluations(trial.splits(seeds, authors=True), progress)
    write_rows(trial.folder, "authors", evaluation_rows(rows))
    write_rows(trial.folder, "authors_summary", summary_rows(rows))
    Console().print(authors_table(rows))
    typer.echo(f"results: {trial.folder}")


@tmo.command()
def judge(
    data: Data = DATA,
    out: Out = Path("results"),
    device: Device = "Jetson TX2",
    network: Network = "wired",
    folds: Annotated[int, typer.Option(min=2, help="Parts that are held out in turn.")] = 5,
    steps: Steps = 30_000,
    learner: Learner = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="The authors' splits of seeds 1 to this, in place of folds.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=20, help="Of the dialogues, for intervals.")] = 500,
) -> None:
    """Judge the authors' policies by dialogues they were not trained on: response models, off-policy values, what is not known.

    An interrupted command goes on where it was: repeat it.
    """
    from sim.figures.judge import draw_judged
    from sim.figures.style import save_figure
    from sim.progress import step_progress
    from sim.tmo.m4a1_experiment import LEARNED, experiment, means
    from sim.tmo.m4a1_tables import (
        evaluation_rows,
        judge_table,
        judgement_rows,
        model_rows,
        models_table,
        write_rows,
    )  # fmt: skip
    from sim.tmo.responses import judged_models

    trial = experiment(_found(data), out, device, network, steps, learner or LEARNED)
    splits = trial.splits(seeds or folds, authors=seeds is not None)
    models = judged_models(trial.turns.zeroed())
    with step_progress(Console(stderr=True)) as progress:
        rows = trial.evaluations(splits, progress)
        found = trial.judgements(splits, progress, resamples=resamples)
        graded = trial.judgements(splits, progress, graded=True, resamples=resamples)
    values = judgement_rows(found, "sorry is 0")
    name = "judge" if seeds is None else "judge_authors_splits"
    write_rows(trial.folder, "models", model_rows(models))
    write_rows(trial.folder, f"{name}_evaluations", evaluation_rows(rows))
    write_rows(trial.folder, name, [*values, *judgement_rows(graded, "as graded")])
    save_figure(
        draw_judged(values, {name: of.reward for name, (of, _) in means(rows, "own").items()}), trial.folder, name
    )
    console = Console()
    console.print(models_table(models))
    console.print(judge_table(rows, found, graded))
    warned = [f"{name}: {one.warning}" for name, one in found.items() if one.warning]
    if warned:
        Console(stderr=True).print(
            "The log cannot tell what these are worth:\n  " + "\n  ".join(warned), style="red", highlight=False
        )
    typer.echo(f"results: {trial.folder}")
