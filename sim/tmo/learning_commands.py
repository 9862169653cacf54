"""`run_sim.py tmo regret`, `tmo budgets`, `tmo networks`, `tmo parts`: the experiments with learners on a scenario."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console
from rich.table import Table

from sim.commands import ScenarioFile, Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sim.tmo.experiments import Trial

Row = Mapping[str, Any]
learning = typer.Typer()

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for results and trained policies.")]
Steps = Annotated[int, typer.Option(min=1, help="Turns that each policy learns from.")]
Seeds = Annotated[
    list[int] | None,
    typer.Option("--seed", min=1, help="Seed of a training; repeatable: one training for each; default: 1."),
]
BUDGETS = Annotated[
    list[float] | None,
    typer.Option("--budget", help="Mean $ a request may cost; repeatable; default: 0.006, 0.008, 0.01."),
]
_RESULTS = Path("results/tmo")


@learning.command()
def regret(
    scenario: ScenarioFile = Path("scenarios/tmo.yaml"),
    settings: Settings = None,
    out: Out = _RESULTS,
    budget: BUDGETS = None,
    weights: Annotated[str, typer.Option(help="A policy for any of these budgets.")] = "default",
    learner: Annotated[
        list[str] | None, typer.Option(help="Train this one for each budget, too: ppo, a2c or dqn; repeatable.")
    ] = None,
    steps: Steps = 60_000,
) -> None:
    """Constrained learners against the optimum, greedy and every fixed action, at budgets kept in the mean."""
    from sim.figures.learning import draw_regret
    from sim.tmo.experiments import regret as rows_of

    trial = trial_of(scenario, settings, out, "total_usd", steps)
    rows = rows_of(trial, budget or (0.006, 0.008, 0.010), learner or (), weights)
    columns = ("policy", "budget", "reward", "interval", "cost", "share", "over_greedy", "over_fixed")
    _report(trial, "regret", rows, columns, "Reward within a mean budget", draw_regret)


@learning.command()
def budgets(
    scenario: ScenarioFile = Path("scenarios/tmo.yaml"),
    settings: Settings = None,
    out: Out = _RESULTS,
    budget: Annotated[
        list[float] | None,
        typer.Option("--budget", help="$ a request may cost; repeatable; default: 0.006, 0.009, 0.013."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="How PPO keeps it; repeatable; default: chance, zero and none.")
    ] = None,
    learner: Annotated[
        list[str] | None, typer.Option(help="Besides PPO: a2c or dqn, kept by chance; repeatable.")
    ] = None,
    steps: Steps = 20_000,
    seed: Seeds = None,
) -> None:
    """How often a budget of every request is broken: kept by a multiplier, by the authors' zero reward, and not kept."""
    from sim.figures.learning import draw_budgets
    from sim.tmo.command import one_of
    from sim.tmo.constraint import Keep
    from sim.tmo.experiments import budgets as rows_of

    keeps: Any = [one_of("--keep", name, get_args(Keep)) for name in keep or ("chance", "zero", "none")]
    trial = trial_of(scenario, settings, out, "total_usd", steps)
    rows = rows_of(trial, budget or (0.006, 0.009, 0.013), keeps, learner or (), seed or (1,))
    columns = (
        "policy", "keep", "seed", "budget", "reward", "interval", "share", "cost", "over", "excess", "multiplier"
    )  # fmt: skip
    _report(trial, "budgets", rows, columns, "Budgets that every request should keep", draw_budgets)


@learning.command()
def networks(
    scenario: ScenarioFile = Path("scenarios/tmo_networks.yaml"),
    settings: Settings = None,
    out: Out = _RESULTS,
    budget: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 20.0,
    unseen: Annotated[
        Path | None,
        typer.Option(metavar="SCENARIO", help="Test on these networks, too; none is trained on them."),
    ] = None,
    steps: Steps = 20_000,
    seed: Seeds = None,
) -> None:
    """Trained on one network, tested on another; and what it is worth to see the network."""
    from sim.figures.learning import draw_matrix
    from sim.tmo.experiments import networks as rows_of

    trial = trial_of(scenario, settings, out, "latency_s", steps)
    further = None if unseen is None else trial_of(unseen, None, out, "latency_s", steps)
    columns = (
        "trained", "seed", "tested", "reward", "interval", "cost", "over", "excess", "over_blind", "kept_over_blind"
    )  # fmt: skip
    title = f"Reward where requests may take {budget:g} s"
    _report(trial, "networks", rows_of(trial, budget, further, seed or (1,)), columns, title, draw_matrix)


@learning.command()
def parts(
    scenario: ScenarioFile = Path("scenarios/tmo.yaml"),
    settings: Settings = None,
    out: Out = _RESULTS,
    budget: Annotated[float, typer.Option(help="Mean $ a request may cost.")] = 0.006,
    steps: Steps = 20_000,
) -> None:
    """Which parts of the observation pay."""
    from sim.tmo.experiments import parts as rows_of

    trial = trial_of(scenario, settings, out, "total_usd", steps)
    columns = ("policy", "reward", "interval", "cost", "over_greedy", "difference")
    _report(trial, "parts", rows_of(trial, budget), columns, f"What is seen, at a mean budget of {budget:g} $")


def trial_of(scenario: Path, settings: list[str] | None, out: Path, item: str, steps: int, **more: Any) -> Trial:
    """The scenario's trial, with results in `out`."""
    from sim.loading import load_scenario
    from sim.tmo.experiments import Trial

    return Trial(load_scenario(scenario, settings or []), out, item, steps, **more)


def noted(doing: str, rows: Iterable[Row], line: Callable[[Row], str]) -> list[Row]:
    """The rows, each with a line on stderr as it comes: a policy takes a minute or more to train."""
    console, found = Console(stderr=True), list[Row]()
    with console.status(f"{doing} ..."):
        for row in rows:
            found.append(row)
            console.print(line(row), highlight=False)
    return found


def _report(
    trial: Trial, name: str, rows: Iterable[Row], columns: tuple[str, ...], title: str,
    draw: Callable[[Sequence[Row]], Figure] | None = None,
) -> None:  # fmt: skip
    """Work the rows out, keep them with their figure, and show a table of these columns."""
    from sim.figures.style import save_figure

    found = noted(f"training and judging on {trial.loaded.scenario.name}", rows, _line)
    trial.save(name, found)
    if draw is not None:
        save_figure(draw(found), trial.folder, name)
    table = Table(*columns, title=title)
    for row in found:
        table.add_row(*(_text(row.get(column, "")) for column in columns))
    Console().print(table)
    typer.echo(f"results: {trial.folder}")


def _line(row: Row) -> str:
    return ", ".join(f"{name} {_text(value)}" for name, value in row.items())


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:+.3f} ± {value[1]:.3f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
