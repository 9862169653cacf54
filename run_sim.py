"""Isthmus: which step of an agent runs where, and what does that do to accuracy, dollars, latency and energy?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from serve.nodes.commands import cluster
from sim.commands import ScenarioFile, Settings, commands
from sim.tmo.commands import tmo
from workloads.errors import IsthmusError

if TYPE_CHECKING:
    from serve.deployments import TierDeployment
    from serve.upstream.spending import SpendingBook
    from sim.experiment import OpenLive
    from sim.fidelity_run import LiveTier, OnCell, OpenTier
    from sim.fidelity_subject import Subject
    from sim.loading import LoadedScenario
    from sim.scenario import Scenario
    from workloads.backend import InferenceBackend

console = Console(stderr=True)
RESULTS = Path("results")

ClusterAddress = Annotated[
    str | None, typer.Option("--address", metavar="ADDR", help="Ray cluster to use: auto, or host:port.")
]
MeasuredTier = Annotated[
    str | None, typer.Option("--tier", metavar="NAME", help="Tier to measure, if several are live.")
]
CellSeconds = Annotated[float, typer.Option(help="Seconds for each combination of callers, prompts and answers.")]
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
            kept = ": what is finished is kept; the same command goes on from here"
            console.print(f"interrupted{kept if ctx.invoked_subcommand in ('run', 'record', 'train', 'tmo') else ''}")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help=__doc__,
)
app.add_typer(commands)
app.add_typer(cluster, name="cluster")
app.add_typer(tmo, name="tmo")


def live_models(
    loaded: LoadedScenario, address: str | None, book: SpendingBook | None = None, *, ignore_end: bool = False
) -> OpenLive:
    """What brings up a scenario's live models on Ray Serve, on the cluster at an address or a local one.

    What they cost goes into `book`, and counts together, as often as they are brought up. With `ignore_end` every answer is as
    long as it may be.
    """

    def open_live(scenario: Scenario) -> AbstractContextManager[InferenceBackend]:
        from serve.generation import Sampling
        from serve.live import open_backend

        nodes, sampling = scenario.inference.local_cluster, Sampling(ignore_end=ignore_end)
        tiers, local_nodes = deployments(scenario, loaded.path), (nodes.edge, nodes.cloud)
        return open_backend(tiers, address, local_nodes, sampling=sampling, book=book)

    return open_live


def measured_tier(loaded: LoadedScenario, address: str | None) -> OpenTier:
    """What brings up the tier that is measured, alone, with a load generator and the grid of the calibration."""

    @contextmanager
    def open_tier(subject: Subject, cell_s: float, on_cell: OnCell) -> Iterator[LiveTier]:
        from serve.calibration import grid, measure
        from serve.load import LoadGenerator
        from sim.fidelity_run import LiveTier

        cells, rng = grid(subject.spec.max_batch), subject.rng("calibration")
        # Single calls ask for answers of drawn lengths, which a model that ends its turn would cut short.
        with live_models(loaded, address, ignore_end=not subject.whole_runs)(subject.alone) as backend:
            system = LoadGenerator(backend, subject.model_name)
            asked = partial(measure, system, subject.calibration, cells, seconds=cell_s, rng=rng, on_cell=on_cell)
            yield LiveTier(system, lambda first: asked(warm_up=first), len(cells))

    return open_tier


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
    from serve.upstream.spending import spending
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
    if loaded.scenario.inference.backend == "serve":
        for variant in loaded.variants:  # what cannot be served is said before anything is written
            deployments(variant.scenario, loaded.path)
    with spending(store.folder / "spending.jsonl", print) as book:
        live = live_models(loaded, address, book)
        elsewhere = address is not None
        finished = run_experiment(loaded, store, parallel, workers, console, elsewhere=elsewhere, open_live=live)
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
    from serve.fingerprint import fingerprints
    from serve.upstream.spending import spending, spending_path
    from sim.loading import load_scenario
    from sim.recording_plan import plan_recording
    from sim.recording_run import record as record_answers

    loaded = load_scenario(scenario, [*(settings or []), "inference.backend=serve"])
    plan_recording(loaded, out, counterfactual, tasks, timings, "greedy", {})  # bad arguments, before any model starts
    weights = fingerprints(deployments(loaded.scenario, loaded.path))
    with spending(spending_path(out), print) as book:
        with live_models(loaded, address, book)(loaded.scenario) as backend:
            made = record_answers(
                loaded, backend, out, counterfactual, tasks, timings, console, max_answers=max_answers, fingerprints=weights
            )  # fmt: skip
        book.discard()  # the recording is complete
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
    from serve.gateway.calls import GatewayOptions
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
    client = loaded.scenario.client
    options = GatewayOptions(client.timeout_s, client.attempt_timeout_s)
    run_gateway(placer, tiers, host, port, address=address, local_nodes=local_nodes, options=options, on_ready=announce)


@app.command()
def calibrate(
    scenario: ScenarioFile,
    settings: Settings = None,
    tier: MeasuredTier = None,
    passes: Annotated[int, typer.Option(min=1, help="Times every combination is measured.")] = 2,
    cell_seconds: CellSeconds = 3.0,
    address: ClusterAddress = None,
) -> None:
    """Measure a tier's live model over batch and prompt sizes, and print its step times as lines for a scenario.

    How well they fit is in the comments above the lines.
    """
    from sim.fidelity import Plan
    from sim.fidelity_report import calibration_text
    from sim.fidelity_run import calibrate as calibrate_tier
    from sim.loading import load_scenario

    loaded = load_scenario(scenario, settings or [])
    plan = Plan(runs=passes, cell_s=cell_seconds)
    subject, found = calibrate_tier(loaded, tier, plan, measured_tier(loaded, address), console)
    print(calibration_text(subject, found), end="")


@app.command()
def fidelity(
    scenario: ScenarioFile,
    settings: Settings = None,
    tier: MeasuredTier = None,
    load: Annotated[
        list[float] | None,
        typer.Option(metavar="SHARE", help="Of capacity; repeatable; default: 0.3, 0.6 and 0.85."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs at each load.")] = 3,
    seconds: Annotated[float, typer.Option(help="Seconds that requests arrive in a run.")] = 20.0,
    cell_seconds: CellSeconds = 3.0,
    whole_runs: Annotated[bool, typer.Option("--whole-runs", help="Requests are the agent's whole runs.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, run by run, as JSON.")] = False,
    address: ClusterAddress = None,
) -> None:
    """Compare simulated with measured times: a tier's live model and its simulation under the same requests.

    The model is calibrated and its capacity measured; then requests arrive at shares of that, over the links' real delays.
    """
    from sim.fidelity import LOADS, Plan
    from sim.fidelity_report import fidelity_json, fidelity_table, fidelity_text
    from sim.fidelity_run import compare
    from sim.loading import load_scenario

    loaded = load_scenario(scenario, settings or [])
    plan = Plan(tuple(load or LOADS), runs, seconds, cell_seconds)
    found = compare(loaded, tier, plan, measured_tier(loaded, address), console, whole_runs=whole_runs)
    if as_json:
        print(json.dumps(fidelity_json(found), indent=1, allow_nan=False))
        return
    title, notes = fidelity_text(found)
    print(title)
    Console().print(fidelity_table(found))
    print("\n".join(notes))


if __name__ == "__main__":
    app(prog_name="run_sim.py")
