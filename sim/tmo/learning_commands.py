"""`run_sim.py tmo regret`, `tmo budgets`, `tmo networks`, `tmo parts`: the experiments with learners on a scenario."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sim.commands import ScenarioFile, Settings

learning = typer.Typer()

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for results and trained policies.")]
Steps = Annotated[int, typer.Option(min=1, help="Turns that each policy learns from.")]
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
    from sim.figures.style import save_figure
    from sim.tmo.experiments import regret as rows_of

    trial = _trial(scenario, settings, out, "total_usd", steps)
    rows = list(_noted(trial, rows_of(trial, budget or (0.006, 0.008, 0.010), learner or (), weights)))
    trial.save("regret", rows)
    save_figure(draw_regret(rows), out, "regret")
    columns = ("policy", "budget", "reward", "interval", "cost", "share", "over_greedy", "over_fixed")
    _show(rows, columns, "Reward within a mean budget")
    typer.echo(f"results: {out}")


@learning.command()
def budgets(
    scenario: ScenarioFile = Path("scenarios/tmo.yaml"),
    settings: Settings = None,
    out: Out = _RESULTS,
    budget: Annotated[
        list[float] | None,
        typer.Option("--budget", help="$ a request may cost; repeatable; default: 0.006, 0.009, 0.013."),
    ] = None,
    learner: Annotated[list[str] | None, typer.Option(help="Besides PPO: a2c or dqn; repeatable.")] = None,
    steps: Steps = 20_000,
) -> None:
    """How often a budget of every request is broken: kept by a multiplier, by the authors' zero reward, and not kept."""
    from sim.figures.learning import draw_budgets
    from sim.figures.style import save_figure
    from sim.tmo.experiments import budgets as rows_of

    trial = _trial(scenario, settings, out, "total_usd", steps)
    asked = budget or (0.006, 0.009, 0.013)
    rows = list(_noted(trial, rows_of(trial, asked, ("chance", "zero", "none"), learner or ())))
    trial.save("budgets", rows)
    save_figure(draw_budgets(rows), out, "budgets")
    columns = ("policy", "keep", "budget", "reward", "interval", "share", "cost", "over", "excess", "multiplier")
    _show(rows, columns, "Budgets that every request should keep")
    typer.echo(f"results: {out}")


@learning.command()
def networks(
    scenario: ScenarioFile = Path("scenarios/tmo_networks.yaml"),
    settings: Settings = None,
    out: Out = _RESULTS,
    budget: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 20.0,
    steps: Steps = 20_000,
) -> None:
    """Trained on one network, tested on another; and what it is worth to see the network."""
    from sim.figures.learning import draw_matrix
    from sim.figures.style import save_figure
    from sim.tmo.experiments import networks as rows_of

    trial = _trial(scenario, settings, out, "latency_s", steps)
    rows = list(_noted(trial, rows_of(trial, budget)))
    trial.save("networks", rows)
    save_figure(draw_matrix(rows), out, "networks")
    _show(
        rows,
        ("trained", "tested", "reward", "interval", "cost", "over", "excess", "over_blind", "kept_over_blind"),
        f"Reward where requests may take {budget:g} s",
    )
    typer.echo(f"results: {out}")


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

    trial = _trial(scenario, settings, out, "total_usd", steps)
    rows = list(_noted(trial, rows_of(trial, budget)))
    trial.save("parts", rows)
    _show(
        rows,
        ("policy", "reward", "interval", "cost", "over_greedy", "difference"),
        f"What is seen, at a mean budget of {budget:g} $",
    )
    typer.echo(f"results: {out}")


def _trial(scenario: Path, settings: list[str] | None, out: Path, item: str, steps: int) -> Any:
    from sim.loading import load_scenario
    from sim.tmo.experiments import Trial

    return Trial(load_scenario(scenario, settings or []), out, item, steps)


def _noted(trial: Any, rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """The rows, each with a line on stderr as it comes: a policy takes a minute or more to train."""
    console = Console(stderr=True)
    with console.status(f"training and judging on {trial.loaded.scenario.name} ..."):
        for row in rows:
            console.print(", ".join(f"{name} {_text(value)}" for name, value in row.items()), highlight=False)
            yield row


def _show(rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...], title: str) -> None:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(_text(row.get(name, "")) for name in columns))
    Console().print(table)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:+.3f} ± {value[1]:.3f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
