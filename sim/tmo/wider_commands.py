"""`run_sim.py tmo costs` and `tmo scaling`: learned policies under whole bills, and on larger dialogues."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sim.commands import ScenarioFile, Settings
from sim.tmo.learning_commands import Out, Steps, noted, trial_of

wider = typer.Typer()
_RESULTS = Path("results/tmo")
_BUDGETS = (0.004, 0.006, 0.008, 0.011, 0.015)


@wider.command()
def costs(
    scenario: ScenarioFile = Path("scenarios/tmo_costs.yaml"),
    settings: Settings = None,
    out: Out = _RESULTS,
    score: Annotated[float, typer.Option(min=0.0, max=1.0, help="Mean score of a turn that is bought.")] = 0.75,
    budget: Annotated[
        list[float] | None,
        typer.Option("--budget", help="Mean $ of a dialogue between which policies are mixed; repeatable."),
    ] = None,
    steps: Steps = 20_000,
) -> None:
    """What the same answers cost, and who gives them, as energy, transfer, device and late answers join the bill."""
    from sim.figures.bills import draw_bills
    from sim.figures.style import save_figure
    from sim.tmo.costs import Bills
    from sim.tmo.kept import save_json

    bills = Bills(scenario, settings or [], out, budget or _BUDGETS, steps)
    rows = noted(
        "training and billing", bills.rows(score),
        lambda row: f"{row['ledger']}, {row['policy']}: {1000 * row['total_usd']:.3g} m$",
    )  # fmt: skip
    save_json(out / "costs.json", rows)
    if rows:
        save_figure(draw_bills(rows, score), out, "costs")
    names = list(dict.fromkeys(name for row in rows for name in row["actions"]))
    table = Table("ledger", "policy", "m$", *names, title=f"A mean score of {score:g}")
    for row in rows:
        shares = (f"{row['actions'].get(name, 0.0):.0%}" for name in names)
        table.add_row(row["ledger"], row["policy"], f"{1000 * row['total_usd']:.2f}", *shares)
    Console().print(table)
    typer.echo(f"results: {out}")


@wider.command()
def scaling(
    scenario: ScenarioFile = Path("scenarios/tmo_scaling.yaml"),
    settings: Settings = None,
    out: Out = _RESULTS,
    usage: Annotated[float, typer.Option(min=0.0, help="What 13.7 m$ take off the reward.")] = 2.0,
    steps: Steps = 20_000,
) -> None:
    """What learners reach with more modalities, task categories and turns, with training steps fixed."""
    from sim.figures.learning import draw_scaling
    from sim.figures.style import save_figure
    from sim.tmo.scaling import scaling as rows_of

    trial = trial_of(scenario, settings, out, "total_usd", steps, seeds=(101,))
    rows = noted(
        "training and judging", rows_of(trial, usage),
        lambda row: f"{row['point']}, {row['policy']}: {row['reward']:.3f}",
    )  # fmt: skip
    trial.save("scaling", rows)
    save_figure(draw_scaling(rows), out, "scaling")
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    table = Table(
        "dialogues",
        *policies,
        "PPO less greedy",
        title="Reward of a turn (share of the way from chance to the optimum)",
    )
    for point in dict.fromkeys(row["point"] for row in rows):
        own = {row["policy"]: row for row in rows if row["point"] == point}
        cells = [
            f"{own[name]['reward']:.3f}" + (f" ({own[name]['share']:.0%})" if "share" in own[name] else "")
            if name in own else "–"
            for name in policies
        ]  # fmt: skip
        gap, half = own["PPO"]["over_greedy"]
        table.add_row(point, *cells, f"{gap:+.3f} ± {half:.3f}")
    Console().print(table)
    typer.echo(f"results: {out}")
