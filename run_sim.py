"""Isthmus: which step of an agent runs where, and what does that do to accuracy, dollars, latency and energy?"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from serve.nodes.commands import cluster
from workloads.errors import IsthmusError

if TYPE_CHECKING:
    from serve.deployments import TierDeployment
    from sim.experiment import OpenLive
    from sim.loading import LoadedScenario
    from sim.scenario import Scenario
    from workloads.backend import InferenceBackend

console = Console(stderr=True)
RESULTS = Path("results")

ScenarioFile = Annotated[Path, typer.Argument(metavar="SCENARIO", help="Scenario YAML file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a field, e.g. workload.requests=50; repeatable."),
]
ClusterAddress = Annotated[
    str | None, typer.Option("--address", metavar="ADDR", help="Ray cluster to use: auto, or host:port.")
]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for results.")]


class Commands(TyperGroup):
    """All commands: an error Isthmus raises on purpose is one message and exit code 2, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except IsthmusError as error:
            # emoji=False: rich would print the place `scenario.yaml:100: ...` with a symbol for `:100:`.
            console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True, emoji=False)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            console.print("interrupted: what is finished is kept; the same command goes on from here")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=__doc__,
)
app.add_typer(cluster, name="cluster")


def live_models(loaded: LoadedScenario, address: str | None) -> OpenLive:
    """What brings up a scenario's live models on Ray Serve, on the cluster at an address or a local one."""

    def open_live(scenario: Scenario) -> AbstractContextManager[InferenceBackend]:
        from serve.live import open_backend

        nodes = scenario.inference.local_cluster
        return open_backend(deployments(scenario, loaded.path), address, (nodes.edge, nodes.cloud))

    return open_live


def deployments(scenario: Scenario, path: Path) -> dict[str, TierDeployment]:
    """What Ray Serve deploys for a scenario's tiers, by model name."""
    from serve.from_scenario import deployments_of
    from sim.cells import resolved
    from sim.study import price_of

    prices = {tier: price_of(scenario, tier) for tier in scenario.tiers}
    return deployments_of(resolved(scenario)["tiers"], path.parent, prices)


@app.command()
def run(
    scenario: ScenarioFile,
    settings: Settings = None,
    out: OutFolder = RESULTS,
    seed: Annotated[int | None, typer.Option(min=0, help="Run this one seed instead of the scenario's.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Simulations at a time; default: one per core.")] = None,
    address: ClusterAddress = None,
) -> None:
    """Simulate a scenario under all its policies and seeds, then write metrics, figures and a report.

    Finished cells are kept: the same command goes on where an interrupted one stopped. A scenario whose inference.backend is
    `serve` asks live models, on the cluster at --address or on a local one started for the run.
    """
    from serve.cluster import check_address, run_parallel
    from sim.cells import expand_cells
    from sim.experiment import run_experiment
    from sim.loading import load_scenario
    from sim.run_store import RunStore
    from sim.tables import summary_table

    check_address(address)
    overrides = [*(settings or []), *([f"seeds=[{seed}]"] if seed is not None else [])]
    loaded = load_scenario(scenario, overrides)
    store = RunStore(out, loaded, expand_cells(loaded))
    parallel = partial(run_parallel, address=address)
    live = live_models(loaded, address)
    finished = run_experiment(loaded, store, parallel, workers, console, elsewhere=address is not None, open_live=live)
    Console().print(summary_table(finished.summary))
    print(f"results: {finished.folder}")
    print(f"report:  {finished.report}")


@app.command()
def record(
    scenario: ScenarioFile,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Recording to write (.jsonl.gz or .jsonl).")],
    settings: Settings = None,
    counterfactual: Annotated[
        int | None,
        typer.Option(metavar="DEPTH", min=1, max=15, help="Record every placement of the first DEPTH subtasks."),
    ] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="Only the first so many tasks.")] = None,
    timings: Annotated[
        bool, typer.Option("--timings", help="Keep measured seconds; two recordings then differ.")
    ] = False,
    max_answers: Annotated[int, typer.Option(min=1, help="Refuse a recording of more answers than this.")] = 250_000,
    address: ClusterAddress = None,
) -> None:
    """Ask a scenario's live models and keep their answers, so that it can be replayed without them.

    Without --counterfactual only what the scenario's policies ask is recorded; with it any policy can be replayed. An
    interrupted recording goes on where it stopped.
    """
    from sim.loading import load_scenario
    from sim.recording_plan import plan_recording
    from sim.recording_run import record as record_answers

    loaded = load_scenario(scenario, [*(settings or []), "inference.backend=serve"])
    plan_recording(loaded, out, counterfactual, tasks, timings, "greedy", {})  # bad arguments, before any model starts
    with live_models(loaded, address)(loaded.scenario) as backend:
        made = record_answers(loaded, backend, out, counterfactual, tasks, timings, console, max_answers=max_answers)
    for model, accuracy in made.accuracy.items():
        print(f"{model} alone: {accuracy:.1%} right")
    print(f"recording: {made.path} ({made.tasks:,} tasks, {made.answers:,} answers, {made.bytes / 1e6:.1f} MB)")


@app.command()
def serve(
    scenario: ScenarioFile,
    settings: Settings = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    address: ClusterAddress = None,
) -> None:
    """Serve a scenario's tiers behind an OpenAI-compatible API whose model names are its policies, until Ctrl-C.

    A name such as isthmus/random@0.5 places each call by that policy. Policies that learn do so from the scenario's recording.
    """
    from serve.gateway.run import check_port, run_gateway
    from sim.loading import load_scenario
    from sim.placing import PolicyPlacer

    loaded = load_scenario(scenario, [*(settings or []), "inference.backend=replay"])
    if address is None:
        check_port(host, port)  # before policies learn and models load
    placer = PolicyPlacer(loaded.scenario, loaded.path)
    nodes = loaded.scenario.inference.local_cluster
    tiers = deployments(loaded.scenario, loaded.path)
    console.print("starting the tiers and the gateway ...")

    def announce(url: str) -> None:
        print(f"serving {url}/v1 (Ctrl-C ends it)\nmodels: {', '.join(placer.names())}", flush=True)

    local_nodes = (nodes.edge, nodes.cloud)
    run_gateway(placer, tiers, host, port, address=address, local_nodes=local_nodes, on_ready=announce)


@app.command()
def validate(scenario: ScenarioFile, settings: Settings = None) -> None:
    """Check a scenario, everything it names and every point of its sweep, without running it."""
    from sim.cells import expand_cells
    from sim.loading import load_scenario
    from sim.run_store import RunStore

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

    for table in name_tables(kind):
        Console().print(table)


if __name__ == "__main__":
    app(prog_name="run_sim.py")
