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
from sim.tables import add_plain_row
from sim.yaml_text import read_yaml
from workloads.errors import InputError, suggest

COMPARED = {
    "accuracy": "score", "SLM usage": "slm_usage", "cost, $": "total_usd", "latency, s": "latency_s", "energy, J": "energy_j",
    "completion": "completed",
}  # fmt: skip

_NAMES = {"variant", "policy", "family"}
_MORE_IS_BETTER = {"accuracy", "slm_usage", "completion_rate", "exact_share", "live_share"}
_RUN_AGAIN = "Run the scenario again"


def compare_runs(a: str, b: str) -> Table:
    """Paired differences A - B per policy both runs have, or of the two policies named as folder:policy."""
    (left, left_policy), (right, right_policy) = _run_and_policy(a), _run_and_policy(b)
    pairs = _policy_pairs(left, right, left_policy, right_policy)
    headings = ("variant", "A - B", "measure", "difference", "95 % interval", "p", "pairs")
    table = Table(*headings, header_style="bold")
    for variant, first, second in pairs:
        rows_a, rows_b = _select(left, variant, first), _select(right, variant, second)
        pairing = pair_by_key(
            (rows_a["seed"], rows_a["task_id"], rows_a["request"]),
            (rows_b["seed"], rows_b["task_id"], rows_b["request"]),
        )
        name = first if first == second else f"{first} - {second}"
        for measure, column in COMPARED.items():
            values = rows_a[column][pairing.a].astype(float), rows_b[column][pairing.b].astype(float)
            known = ~np.isnan(values[0] + values[1])
            if not known.any():
                continue
            tasks, seeds = rows_a["task_id"][pairing.a][known], rows_a["seed"][pairing.a][known]
            add_plain_row(
                table,
                variant,
                name,
                measure,
                *_shown(paired_difference(values[0][known], values[1][known], tasks, seeds)),
            )
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
    """The measured requests of a finished run."""
    files = sorted((folder / "requests").glob("*.parquet"))
    if not files or not (folder / "manifest.json").is_file():
        raise _unfinished(folder)
    try:
        return with_shares(read_columns(files), _warmup_requests(folder / "scenario.yaml"))
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        reason = (str(error).splitlines() or ["damaged"])[0]
        raise InputError(str(folder / "requests"), f"cannot be read ({reason})", _RUN_AGAIN) from None
    except (KeyError, TypeError) as error:
        problem = f"the column or field {error} is missing: a run of another version"
        raise InputError(str(folder), problem, _RUN_AGAIN) from None


def _warmup_requests(path: Path) -> int:
    scenario = read_yaml(path.read_text(encoding="utf-8"), str(path)).value
    return int(scenario["workload"]["warmup_requests"])


def _unfinished(folder: Path) -> InputError:
    runs = sorted(str(path.parent) for path in folder.glob("**/manifest.json")) if folder.is_dir() else []
    hint = (
        f"Finished runs in it: {', '.join(runs[:5])}"
        if runs
        else "Give a result folder such as results/quickstart/latest"
    )
    return InputError(str(folder), "no finished run", hint)


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
        raise InputError(
            f"policy {policy!r}", f"not in the run under variant {variant!r}", "Name a policy both runs have"
        )
    return {name: column[rows] for name, column in columns.items()}


def draw_frontier(folders: Sequence[Path], x: str, y: str, out: Path) -> Table:
    """Draw two summary fields of several runs against each other; returns the table of non-dominated points."""
    from sim.figures.pair import draw_pair  # matplotlib only when a figure is wanted

    rows = [
        {"run": run, **row}
        for folder, run in zip(folders, _run_names(folders), strict=True)
        for row in _summary(folder)
    ]
    for field in (x, y):
        numeric = {
            k for row in rows for k, v in row.items() if isinstance(v, int | float) and not k.endswith(("_lo", "_hi"))
        }
        if field not in numeric:
            raise InputError(f"field {field!r}", "not a number in summary.json", suggest(field, numeric))
    points = [row for row in rows if row.get(x) is not None and row.get(y) is not None]
    if not points:
        raise InputError(f"{x} and {y}", "no policy has both", "Choose other fields")
    # `pareto` looks for the least of the first and the most of the second.
    cost = np.array([float(row[x]) for row in points]) * (-1 if x in _MORE_IS_BETTER else 1)
    quality = np.array([float(row[y]) for row in points]) * (1 if y in _MORE_IS_BETTER else -1)
    best = pareto(cost, quality)
    draw_pair(points, best, x, y, out)
    table = Table(
        "run", "variant", "policy", x, y, title=f"non-dominated: {_wanted(x)}, {_wanted(y)}", title_justify="left"
    )
    for row in sorted((r for r, keep in zip(points, best, strict=True) if keep), key=lambda r: float(r[x])):
        add_plain_row(table, row["run"], row["variant"], row["policy"], f"{row[x]:.6g}", f"{row[y]:.6g}")
    return table


def _wanted(field: str) -> str:
    return f"{'most' if field in _MORE_IS_BETTER else 'least'} {field}"


def _run_names(folders: Sequence[Path]) -> list[str]:
    """The scenario's name for each run, with the run's id where one scenario occurs several times."""
    paths = [folder.resolve() for folder in folders]
    names = [path.parent.name for path in paths]
    return [f"{name}/{path.name}" if names.count(name) > 1 else name for name, path in zip(names, paths, strict=True)]


def _summary(folder: Path) -> list[dict[str, Any]]:
    path = folder / "summary.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise _unfinished(folder) from None
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) and r.keys() >= _NAMES for r in rows):
        raise InputError(str(path), "not the summary of a run", _RUN_AGAIN)
    return rows
