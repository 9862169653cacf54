"""Isthmus: which step of an agent runs where, and what does that do to accuracy, dollars, latency and energy?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from workloads.errors import IsthmusError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__
)
console = Console(stderr=True)
RESULTS = Path("results")

ScenarioFile = Annotated[Path, typer.Argument(metavar="SCENARIO", help="Scenario YAML file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a field, e.g. workload.requests=50; repeatable."),
]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for results.")]


@contextmanager
def clear_errors() -> Iterator[None]:
    """Errors Isthmus raises on purpose are one message and exit code 2, never a traceback."""
    try:
        yield
    except IsthmusError as error:
        # emoji=False: rich would print the place `scenario.yaml:100: ...` with a symbol for `:100:`.
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True, emoji=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        console.print("interrupted: finished cells are kept; the same command goes on from here")
        raise typer.Exit(130) from None


@app.command()
def run(
    scenario: ScenarioFile,
    settings: Settings = None,
    out: OutFolder = RESULTS,
    seed: Annotated[int | None, typer.Option(min=0, help="Run this one seed instead of the scenario's.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Simulations at a time; default: one per core.")] = None,
    address: Annotated[
        str | None, typer.Option(metavar="ADDR", help="Ray cluster to run on: auto, or host:port.")
    ] = None,
) -> None:
    """Simulate a scenario under all its policies and seeds, then write metrics, figures and a report.

    Finished cells are kept: the same command goes on where an interrupted one stopped.
    """
    from serve.cluster import check_address, run_parallel
    from sim.cells import expand_cells
    from sim.experiment import run_experiment
    from sim.loading import load_scenario
    from sim.run_store import RunStore
    from sim.tables import summary_table

    with clear_errors():
        check_address(address)
        overrides = [*(settings or []), *([f"seeds=[{seed}]"] if seed is not None else [])]
        loaded = load_scenario(scenario, overrides)
        store = RunStore(out, loaded, expand_cells(loaded))
        parallel = partial(run_parallel, address=address)
        finished = run_experiment(loaded, store, parallel, workers, console, elsewhere=address is not None)
        Console().print(summary_table(finished.summary))
        print(f"results: {finished.folder}")
        print(f"report:  {finished.report}")


@app.command()
def validate(scenario: ScenarioFile, settings: Settings = None) -> None:
    """Check a scenario, everything it names and every point of its sweep, without running it."""
    from sim.cells import expand_cells
    from sim.loading import load_scenario
    from sim.run_store import RunStore

    with clear_errors():
        loaded = load_scenario(scenario, settings or [])
        cells = expand_cells(loaded)
        store = RunStore(RESULTS, loaded, cells)
        requests = sum(cell.scenario.workload.requests for cell in cells)
        print(f"{scenario}: valid. {len(cells)} cells, {requests:,} requests, run id {store.run_id}")


@app.command()
def schema() -> None:
    """Print the scenario's JSON Schema: every field with its type, default and meaning."""
    from sim.scenario import Scenario

    print(json.dumps(Scenario.model_json_schema(), indent=1))


@app.command()
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

    with clear_errors():
        table = draw_frontier(results, x, y, out)
        Console().print(table)
        print(f"figure: {out}")


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Result folder, or folder:policy.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Result folder, or folder:policy.")],
) -> None:
    """Paired differences A - B with 95 % intervals: request by request where task and seed agree."""
    from sim.comparison import compare_runs

    with clear_errors():
        Console().print(compare_runs(a, b))


@app.command()
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

    with clear_errors():
        if measurements.suffix == ".csv":
            print(f"propagation_s: {delay_from_matrix(measurements, source, target):.6g}")
            return
        profile, notes = endpoint_from_calls(measurements)
        for note in notes:
            print(f"# {note}")
        print(dump_yaml({"endpoint": profile.model_dump()}), end="")


@app.command("list")
def list_names(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="policies, readers, or a kind of profile.")
    ] = None,
) -> None:
    """List the names a scenario can use: policies with their options, profiles with their sources, readers."""
    from sim.tables import name_tables

    with clear_errors():
        for table in name_tables(kind):
            Console().print(table)


if __name__ == "__main__":
    app(prog_name="run_sim.py")
