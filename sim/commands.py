"""The commands of `run_sim.py` that need neither models nor a run: names, schema, results and measurements at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

commands = typer.Typer()

ScenarioFile = Annotated[Path, typer.Argument(metavar="SCENARIO", help="Scenario YAML file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a field, e.g. workload.requests=50; repeatable."),
]


@commands.command()
def validate(scenario: ScenarioFile, settings: Settings = None) -> None:
    """Check a scenario, everything it names and every point of its sweep, without running it."""
    from sim.cells import expand_cells
    from sim.loading import load_scenario
    from sim.run_store import RunStore

    loaded = load_scenario(scenario, settings or [])
    cells = expand_cells(loaded)
    store = RunStore(Path("results"), loaded, cells)
    requests = sum(cell.scenario.workload.requests for cell in cells)
    typer.echo(f"{scenario}: valid. {len(cells)} cells, {requests:,} requests, run id {store.run_id}")


@commands.command()
def schema() -> None:
    """Print the scenario's JSON Schema: every field with its type, default and meaning."""
    from sim.scenario import Scenario

    typer.echo(json.dumps(Scenario.model_json_schema(), indent=1))


@commands.command()
def frontier(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="Result folders, e.g. results/quickstart/latest.")
    ],
    x: Annotated[str, typer.Option(help="Field of summary.json on the x axis.")] = "cost_usd",
    y: Annotated[str, typer.Option(help="Field of summary.json on the y axis.")] = "accuracy",
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Figure to write (.png, .svg or .pdf).")] = Path(
        "frontier.png"
    ),
) -> None:
    """Draw any two summary fields of one or several runs against each other, and print the points nothing else beats."""
    from sim.comparison import draw_frontier

    table = draw_frontier(results, x, y, out)
    Console().print(table)
    typer.echo(f"figure: {out}")


@commands.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Result folder, or folder:policy.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Result folder, or folder:policy.")],
) -> None:
    """Paired differences A - B with 95 % intervals: request by request where task and seed agree."""
    from sim.comparison import compare_runs

    Console().print(compare_runs(a, b))


@commands.command()
def fit(
    measurements: Annotated[
        Path, typer.Argument(metavar="FILE", help="llmperf calls (.json) or a latency matrix (.csv).")
    ],
    source: Annotated[
        str | None, typer.Option("--from", metavar="REGION", help="Latency matrix: where the user is.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--to", metavar="REGION", help="Latency matrix: where the model is.")
    ] = None,
) -> None:
    """Turn measurements into lines for a scenario: an endpoint profile, or the delay between two cloud regions."""
    from sim.fitting import delay_from_matrix, endpoint_from_calls
    from sim.loading import dump_yaml

    if measurements.suffix == ".csv":
        typer.echo(f"propagation_s: {delay_from_matrix(measurements, source, target):.6g}")
        return
    profile, notes = endpoint_from_calls(measurements)
    for note in notes:
        typer.echo(f"# {note}")
    typer.echo(dump_yaml({"endpoint": profile.model_dump()}), nl=False)


@commands.command()
def profile(
    scenario: ScenarioFile,
    settings: Settings = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for profiles.")] = Path("results/profile"),
    threshold: Annotated[float, typer.Option(help="Cosine above which two texts are alike.", min=-1.0, max=1.0)] = 0.7,
    requests: Annotated[int | None, typer.Option(min=1, help="Profile only the first so many.")] = None,
) -> None:
    """Profile a scenario's training requests as HERA does: what either model does with every subtask, and how alike that is.

    Tables, figures and a summary go to DIR/<scenario>/<id>/; the same profile is not made twice.
    """
    from sim.loading import load_scenario
    from sim.profiling_run import profile_scenario, summary_tables

    loaded = load_scenario(scenario, settings or [])
    with Console(stderr=True).status("profiling; the first time every text is embedded, a thousand requests a minute"):
        finished = profile_scenario(loaded, threshold, out, requests=requests)
    for table in summary_tables(finished.tables, threshold):
        Console().print(table)
    if finished.kept:
        typer.echo("made before and kept")
    typer.echo(f"tables:  {finished.folder}\nfigures: {finished.folder / 'figures'}")


@commands.command()
def estimators(
    scenario: ScenarioFile,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the trained estimators; replaced.")],
    settings: Settings = None,
    encoder: Annotated[
        str, typer.Option(help="Base of URC and DP: a folder, or a name on the hub.")
    ] = "all-MiniLM-L6-v2",
    decoder: Annotated[
        str, typer.Option(help="Base of SP_SLM, SP_LLM and SD: pair/slm, a folder, or a name.")
    ] = "pair/slm",
    threshold: Annotated[float, typer.Option(help="Cosine above which two texts are alike.", min=-1.0, max=1.0)] = 0.95,
    requests: Annotated[int | None, typer.Option(min=2, help="Learn from only so many requests.")] = None,
    family: Annotated[
        list[str] | None, typer.Option(help="Learn from this family of tasks only; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the training.")] = 1,
    judge: Annotated[bool, typer.Option("--judge", help="Do not train: judge the estimators in --out.")] = False,
    fine_tune_every: Annotated[
        int, typer.Option(min=1, help="With --judge: requests after which they learn on.")
    ] = 500,
) -> None:
    """Train HERA's estimators on a scenario's training requests, or judge them on its own: minutes with the packaged bases.

    A training that was interrupted goes on where it stopped.
    """
    from sim.estimator_run import accuracy_table, evaluate_on, train_on
    from sim.loading import load_scenario
    from sim.policies.hera.trained import PACKAGED, read_card
    from sim.policies.hera.training import Plan
    from sim.profiling import scenario_study
    from sim.progress import step_progress

    study = scenario_study(load_scenario(scenario, settings or []))
    folder = PACKAGED.get(str(out), out) if judge else out
    with step_progress(Console(stderr=True)) as progress:
        if judge:
            judged = list(evaluate_on(study, folder, fine_tune_every, progress))
        else:
            train_on(study, threshold, Plan(encoder, decoder, seed=seed), requests, family, folder, progress)
    card = read_card(folder)
    if judge:
        Console().print(accuracy_table(card, judged))
    else:
        seconds = sum(card.seconds.values())
        typer.echo(f"estimators: {out} ({card.requests:,} requests of {', '.join(card.families)}, {seconds:.0f} s)")


@commands.command()
def train(
    scenario: ScenarioFile,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the trained policy.")],
    settings: Settings = None,
    learner: Annotated[str, typer.Option(help="ppo, a2c or dqn.")] = "ppo",
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ITEM=VALUE", help="Most a request may spend, e.g. total_usd=0.01; or a range LOW:HIGH; repeatable."
        ),
    ] = None,
    keep: Annotated[
        str, typer.Option(help="chance: P(over budget) <= tolerance; mean; zero (the authors' shaping); none.")
    ] = "chance",
    tolerance: Annotated[float, typer.Option(help="chance: share of requests that may go over.")] = 0.02,
    reward: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A weight or range of the reward, e.g. association=0; repeatable."),
    ] = None,
    parts: Annotated[
        str, typer.Option(help="What the policy sees, with commas.")
    ] = "kind,history,position,prompt,associations,sizes,network,queues,remaining,budget",
    most: Annotated[int | None, typer.Option(min=0, help="Most modalities that go along at a time.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Turns to learn from.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the training.")] = 1,
    episodes: Annotated[int, typer.Option(min=2, help="Unseen requests to judge it on at the end.")] = 1000,
) -> None:
    """Train a policy that places a scenario's turns by reinforcement learning, within budgets; the policy `tmo` runs it.

    A scenario with a sweep is learned at all its points side by side. An interrupted training goes on where it was: repeat the command.
    """
    from sim.loading import load_scenario
    from sim.tmo.command import Wishes, card_table, train_policy

    wishes = Wishes(learner, budget or (), keep, tolerance, reward or (), parts, most, steps, seed, episodes)
    card = train_policy(load_scenario(scenario, settings or []), wishes, out, Console(stderr=True))
    Console().print(card_table(card))
    typer.echo(f"policy: {out} (use it as {{policy: tmo, weights: {out}}})")


@commands.command("list")
def list_names(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="policies, readers, or a kind of profile.")
    ] = None,
) -> None:
    """List the names a scenario can use: policies with their options, profiles with their sources, readers."""
    from sim.tables import name_tables

    for table in name_tables(kind):
        Console().print(table)
