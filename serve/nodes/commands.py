"""The commands of `run_sim.py cluster`: a local Ray cluster of several labelled nodes, up, shown and down."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

cluster = typer.Typer(
    no_args_is_help=True, help="A Ray cluster of several labelled nodes on this machine, for development."
)
StateFolder = Annotated[
    Path | None, typer.Option("--state", metavar="DIR", help="Where it is remembered; one cluster per folder.")
]


@cluster.command("up")
def up(
    edge: Annotated[int, typer.Option(help="Nodes labelled edge.")] = 2,
    cloud: Annotated[int, typer.Option(help="Nodes labelled cloud; the head is one of them.")] = 1,
    cpus: Annotated[int, typer.Option(help="Logical CPUs per node; may exceed the machine's.")] = 4,
    edge_gpus: Annotated[int, typer.Option(help="GPUs each edge node may give away.")] = 0,
    port: Annotated[int | None, typer.Option(help="Port of the head; default: a free one.")] = None,
    state: StateFolder = None,
) -> None:
    """Start the cluster and leave it running."""
    from serve.nodes.local_cluster import cluster_up, default_state_dir

    with Console(stderr=True).status("starting nodes ..."):
        found = cluster_up(edge, cloud, state or default_state_dir(), port, cpus_per_node=cpus, edge_gpus=edge_gpus)
    if found.already_up:
        typer.echo(f"a cluster is already up at {found.address}")
    status(state)


@cluster.command("status")
def status(state: StateFolder = None) -> None:
    """Say which nodes are alive and how to use the cluster."""
    from serve.nodes.local_cluster import cluster_status, default_state_dir

    found = cluster_status(state or default_state_dir())
    if found is None:
        typer.echo("no cluster was started from here; start one with: python run_sim.py cluster up")
        return
    table = Table("node", "label", "state", "pid", "CPUs", "memory, MB", box=box.SIMPLE, pad_edge=False)
    for node in found.nodes:
        state_now = "alive" if node.alive else "gone"
        pid = str(node.pid) if node.pid else "-"
        table.add_row(node.name, node.tier, state_now, pid, str(node.cpus), f"{node.rss_bytes / 1e6:,.0f}")
    Console().print(table)
    if not found.alive:
        typer.echo("the head is gone: `cluster up` starts anew")
        return
    typer.echo("use it:          python run_sim.py run SCENARIO --address auto")
    typer.echo(f"other programs:  {found.connect}")


@cluster.command("down")
def down(state: StateFolder = None) -> None:
    """End the cluster that `cluster up` started, and nothing else."""
    from serve.nodes.local_cluster import cluster_down, default_state_dir

    with Console(stderr=True).status("ending nodes ..."):
        ended = cluster_down(state or default_state_dir())
    typer.echo("no cluster was up" if ended is None else f"ended {len(ended.nodes)} nodes")
