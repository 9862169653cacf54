"""Reading finished runs again: one against the other, and any summary field against any other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from sim.frontier import pareto
from sim.metrics import with_shares
from sim.records import Columns, read_columns
from sim.statistics import PairedDifference, pair_by_key, paired_difference
from workloads.errors import InputError, suggest

COMPARED = {
    "accuracy": "score", "SLM usage": "slm_usage", "cost, $": "total_usd", "latency, s": "latency_s", "energy, J": "energy_j",
    "completion": "completed",
}  # fmt: skip


def compare_runs(a: str, b: str) -> Table:
    """Paired differences A - B per policy both runs have, or of the two policies named as folder:policy."""
    (left, left_policy), (right, right_policy) = _run_and_policy(a), _run_and_policy(b)
    pairs = _policy_pairs(left, right, left_policy, right_policy)
    table = Table("variant", "A - B", "measure", "difference", "95 % interval", "p", "pairs", header_style="bold")
    for variant, first, second in pairs:
        rows_a, rows_b = _select(left, variant, first), _select(right, variant, second)
        pairing = pair_by_key((rows_a["seed"], rows_a["task_id"], rows_a["request"]), (rows_b["seed"], rows_b["task_id"], rows_b["request"]))
        name = first if first == second else f"{first} - {second}"
        for measure, column in COMPARED.items():
            values = rows_a[column][pairing.a].astype(float), rows_b[column][pairing.b].astype(float)
            known = ~np.isnan(values[0] + values[1])
            if not known.any():
                continue
            tasks, seeds = rows_a["task_id"][pairing.a][known], rows_a["seed"][pairing.a][known]
            table.add_row(variant, name, measure, *_shown(paired_difference(values[0][known], values[1][known], tasks, seeds)))
    return table


def _shown(found: PairedDifference) -> tuple[str, str, str, str]:
    gap = found.difference
    return f"{gap.estimate:+.4g}", f"[{gap.lo:+.4g}, {gap.hi:+.4g}]", f"{found.p_value:.2g}", str(gap.n)


def _run_and_policy(name: str) -> tuple[Columns, str | None]:
    folder, policy = name, None
    if not Path(name).exists() and ":" in name:
        folder, _, policy = name.partition(":")
    return _requests(Path(folder)), policy


def _requests(folder: Path) -> Columns:
    files = sorted((folder / "requests").glob("*.parquet"))
    if not files or not (folder / "manifest.json").exists():
        raise InputError(str(folder), "no finished run", "Give a result folder such as results/quickstart/latest")
    return with_shares(read_columns(files))


def _policy_pairs(a: Columns, b: Columns, first: str | None, second: str | None) -> list[tuple[str, str, str]]:
    variants = [v for v in dict.fromkeys(a["variant"].tolist()) if v in set(b["variant"].tolist())]
    if not variants:
        raise InputError("variants", "the two runs have none in common", "Compare runs of the same sweep")
    known_a, known_b = list(dict.fromkeys(a["policy"].tolist())), list(dict.fromkeys(b["policy"].tolist()))
    for policy, known in ((first, known_a), (second, known_b)):
        if policy is not None and policy not in known:
            raise InputError(f"policy {policy!r}", "not in this run", suggest(policy, known))
    if first is None and second is None:
        both = [(policy, policy) for policy in known_a if policy in known_b]
    else:
        both = [(first or str(second), second or str(first))]
    if not both:
        raise InputError("policies", "the two runs have none in common", "Name them: A:policy B:policy")
    return [(variant, x, y) for variant in variants for x, y in both]


def _select(columns: Columns, variant: str, policy: str) -> dict[str, Any]:
    rows = (columns["variant"] == variant) & (columns["policy"] == policy)
    if not rows.any():
        raise InputError(f"policy {policy!r}", f"not in the run under variant {variant!r}", "Name a policy both runs have")
    return {name: column[rows] for name, column in columns.items()}


def draw_frontier(folders: Sequence[Path], x: str, y: str, out: Path) -> Table:
    """Draw two summary fields of several runs against each other; returns the table of non-dominated points."""
    from sim.figures.pair import draw_pair  # matplotlib only when a figure is wanted

    rows = [{"run": run, **row} for folder in folders for run, row in _summary(folder)]
    for field in (x, y):
        numeric = sorted(k for k, v in rows[0].items() if isinstance(v, int | float) and not k.endswith(("_lo", "_hi")))
        if field not in numeric:
            raise InputError(f"field {field!r}", "not a number in summary.json", suggest(field, numeric))
    points = [row for row in rows if row[x] is not None and row[y] is not None]
    if not points:
        raise InputError(f"{x} and {y}", "no row has both", "Choose other fields")
    best = pareto([row[x] for row in points], [row[y] for row in points])
    draw_pair(points, best, x, y, out)
    table = Table("run", "variant", "policy", x, y, title=f"non-dominated: least {x}, most {y}", title_justify="left")
    for row in sorted((r for r, keep in zip(points, best, strict=True) if keep), key=lambda r: r[x]):
        table.add_row(row["run"], row["variant"], row["policy"], f"{row[x]:.6g}", f"{row[y]:.6g}")
    return table


def _summary(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    path = folder / "summary.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [(folder.resolve().parent.name, row) for row in rows]
    except OSError:
        raise InputError(str(folder), "no finished run", "Give a result folder such as results/quickstart/latest") from None
    except ValueError:
        raise InputError(str(path), "not a summary", "Run the scenario again") from None
