"""The report's tables as text: rows of numbers with their intervals, a few digits each, one unit per column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sim.figures.cost import item_name, items_present
from sim.figures.families import Families
from sim.figures.style import Summary, Unit, number, numbers, of_variant

MISSING = "–"
_MOST_DECIMALS = 4
_PERCENT = Unit(100.0, "%")
_JOULES = (Unit(1e-3, "kJ"), Unit(1.0, "J"), Unit(1e3, "mJ"))


class Cell(NamedTuple):
    """One number as text, and its 95 % interval where one is known."""

    text: str
    interval: str = ""


class Row(NamedTuple):
    """A row: whose it is, a remark about it, its cells."""

    name: str
    note: str
    cells: list[Cell]


class Table(NamedTuple):
    """A table: the name of its first column, then (name, unit) of the others, then rows."""

    first: str
    head: list[tuple[str, str]]
    rows: list[Row]


class Column(NamedTuple):
    """A column of numbers: the key in the rows, its heading and its unit."""

    key: str
    name: str
    unit: Unit


NOT_DEPLOYABLE = "not deployable"
_NOT_ALWAYS = ("energy_j", "carbon_g")


def summary_columns(summary: Summary, money: Unit) -> list[Column]:
    """The columns of the summary table, each in a unit that suits all variants."""
    seconds = Unit(1.0, "s")
    energy = _readable(summary, "energy_j", _JOULES)
    carbon = _readable(summary, "carbon_g", (Unit(1e-3, "kg"), Unit(1.0, "g"), Unit(1e3, "mg"), Unit(1e6, "µg")))
    return [
        Column("accuracy", "Accuracy", _PERCENT),
        Column("slm_usage", "SLM usage", _PERCENT),
        Column("cost_usd", "Cost", money),
        Column("latency_p50_s", "Latency p50", seconds),
        Column("latency_p95_s", "Latency p95", seconds),
        Column("ttft_p50_s", "First token p50", seconds),
        Column("completion_rate", "Completed", _PERCENT),
        Column("energy_j", "Energy", energy),
        Column("carbon_g", "Carbon", carbon),
    ]


def _readable(summary: Summary, key: str, units: Sequence[Unit]) -> Unit:
    """The first of these units, the largest one first, in which the largest number is at least 1."""
    largest = max((abs(value) for value in numbers(summary, key).tolist() if math.isfinite(value)), default=0.0)
    return next((unit for unit in units if largest * unit.factor >= 1), units[-1])


def frontier_columns() -> list[Column]:
    """The columns of the table of frontier metrics."""
    plain = Unit(1.0, "")
    return [
        Column("apgr", "APGR", plain),
        Column("cpt50", "CPT(50)", _PERCENT),
        Column("cpt80", "CPT(80)", _PERCENT),
        Column("aiq", "AIQ", _PERCENT),
        Column("hypervolume", "Hypervolume", _PERCENT),
        Column("oracle_gap_closed", "Oracle gap closed", _PERCENT),
    ]


METRICS_EXPLAINED = (
    (
        "APGR",
        "Average performance gap recovered: how much of the accuracy gap between the small and the large model a family closes, "
        "averaged over all shares of calls sent to the large model. Tossing a coin per request has 0.5.",
    ),
    (
        "CPT(50), CPT(80)",
        "Call-performance threshold: the smallest share of calls to the large model that recovers 50 % (80 %) of the gap. Lower is "
        "better; a dash means that the family never gets there.",
    ),
    (
        "AIQ",
        "Mean accuracy along the non-decreasing hull of a family and the two models alone, over costs from 0 to the dearest policy "
        "(RouterBench's average improvement in quality).",
    ),
    (
        "Hypervolume",
        "Share of the plane between no cost and the dearest policy, and accuracy 0 and 100 %, that is dominated by a family and the two "
        "models alone, without mixing. Only families of one variant are comparable.",
    ),
    (
        "Oracle gap closed",
        "Share of the area between a coin per request and the oracle that the family gains: 0 % is the coin, 100 % the oracle, "
        "below 0 % worse than the coin.",
    ),
)
"""Name and one sentence or two for each metric of the frontier table; definitions and sources are in sim/frontier.py."""


def summary_table(summary: Summary, families: Families, variant: str, money: Unit) -> Table:
    """One row per policy of a variant; energy and carbon only where a scenario counts them."""
    rows = of_variant(summary, variant)
    columns = [
        column
        for column in summary_columns(summary, money)
        if column.key not in _NOT_ALWAYS or np.nan_to_num(numbers(summary, column.key)).any()
    ]
    notes = [NOT_DEPLOYABLE if families.is_oracle(str(row["family"])) else "" for row in rows]
    return _table("Policy", columns, rows, [str(row["policy"]) for row in rows], notes)


def frontier_table(metrics: Mapping[str, Mapping[str, Any]], families: Families) -> Table:
    """One row per family of a variant that has any metric, in the order of the summary; families unknown there come last."""
    names = [name for name in families.names if name in metrics] + [
        name for name in metrics if name not in families.names
    ]
    names = [name for name in names if any(math.isfinite(number(metrics[name], c.key)) for c in frontier_columns())]
    notes = [NOT_DEPLOYABLE if name in families.names and families.is_oracle(name) else "" for name in names]
    return _table("Family", frontier_columns(), [metrics[name] for name in names], names, notes)


def decision_table(summary: Summary, families: Families, variant: str) -> Table:
    """What deciding takes, a row for each policy of a variant whose decisions take any time; none where all are free."""
    rows = [row for row in of_variant(summary, variant) if number(row, "decision_share") > 0]
    columns = [
        Column("decision_share", "Share of a request's latency", _PERCENT),
        Column("decision_j", "Energy on the user's device", _readable(summary, "decision_j", _JOULES)),
        Column("energy_j", "Energy in all", _readable(summary, "energy_j", _JOULES)),
    ]
    notes = [NOT_DEPLOYABLE if families.is_oracle(str(row["family"])) else "" for row in rows]
    return _table("Policy", columns, rows, [str(row["policy"]) for row in rows], notes)


def assignment_table(wrong: Sequence[Mapping[str, Any]], families: Families, summary: Summary, variant: str) -> Table:
    """How often each policy of a variant places a subtask elsewhere than the oracles do; the split is against the first of them."""
    entries = [row for row in wrong if row["variant"] == variant]
    main = next((str(row["wrong_against"]) for row in of_variant(summary, variant) if row.get("wrong_against")), "")
    others = [oracle for oracle in dict.fromkeys(str(row["oracle"]) for row in entries) if oracle != main]
    columns = [
        Column("wrong", f"Other than {main}", _PERCENT),
        Column("wrong_small", "wrongly small", _PERCENT),
        Column("wrong_large", "wrongly large", _PERCENT),
        Column("wrong_of_large", "small, of its large ones", _PERCENT),
        Column("wrong_of_small", "large, of its small ones", _PERCENT),
        Column("compared", "Subtasks compared", Unit(1.0, "")),
        *(Column(f"wrong {oracle}", f"Other than {oracle}", _PERCENT) for oracle in others),
    ]
    rows = [row for row in of_variant(summary, variant) if any(entry["policy"] == row["policy"] for entry in entries)]
    cells: dict[str, dict[str, Any]] = {str(row["policy"]): {} for row in rows}
    for entry in entries:
        own = cells[str(entry["policy"])]
        if entry["oracle"] == main:
            own.update(entry)
        else:
            own.update({f"wrong {entry['oracle']}{end}": entry[f"wrong{end}"] for end in ("", "_lo", "_hi")})
    notes = [NOT_DEPLOYABLE if families.is_oracle(str(row["family"])) else "" for row in rows]
    return _table("Policy", columns, list(cells.values()), list(cells), notes)


def ledger_table(summary: Summary, families: Families, variant: str, money: Unit) -> Table:
    """Mean cost per request of every policy of a variant, by item, and its total."""
    rows = of_variant(summary, variant)
    columns = [Column(item, _capital(item_name(item)), money) for item in items_present(rows)]
    notes = [NOT_DEPLOYABLE if families.is_oracle(str(row["family"])) else "" for row in rows]
    bare = [{c.key: row.get(c.key) for c in columns} | {"cost_usd": row.get("cost_usd")} for row in rows]
    columns.append(Column("cost_usd", "Total", money))
    return _table("Policy", columns, bare, [str(row["policy"]) for row in rows], notes)


def _table(
    first: str, columns: list[Column], rows: Sequence[Mapping[str, Any]], names: list[str], notes: list[str]
) -> Table:
    decimals = {c.key: column_decimals(numbers(rows, c.key) * c.unit.factor, c.unit) for c in columns}
    cells = [[_cell(row, c, decimals[c.key]) for c in columns] for row in rows]
    table_rows = [Row(name, note, own) for name, note, own in zip(names, notes, cells, strict=True)]
    return Table(first, [(c.name, c.unit.symbol) for c in columns], table_rows)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def column_decimals(values: Any, unit: Unit) -> int:
    """Decimals for a column: three digits of its largest number, four where that shows two of its smallest; 1 for percentages."""
    if unit is _PERCENT:
        return 1
    sizes = [abs(float(value)) for value in values if math.isfinite(value) and value != 0]
    if not sizes:
        return 0
    leading, trailing = math.floor(math.log10(max(sizes))), math.floor(math.log10(min(sizes)))
    wanted = max(2 - leading, min(1 - trailing, 3 - leading))
    return min(max(wanted, 0), _MOST_DECIMALS)


def _cell(row: Mapping[str, Any], column: Column, decimals: int) -> Cell:
    factor = column.unit.factor
    estimate, low, high = (number(row, f"{column.key}{end}") * factor for end in ("", "_lo", "_hi"))
    if not math.isfinite(estimate):
        return Cell(MISSING)
    if not (math.isfinite(low) or math.isfinite(high)):
        return Cell(fixed(estimate, decimals))
    ends = [fixed(end, decimals) if math.isfinite(end) else "?" for end in (low, high)]
    return Cell(fixed(estimate, decimals), f"{ends[0]} to {ends[1]}")


def fixed(value: float, decimals: int) -> str:
    """A number with this many decimals; 0 is "0", and what is not 0 is never shown as if it were."""
    if value == 0:
        return "0"
    text = f"{value:,.{decimals}f}"
    if not any(digit in text for digit in "123456789"):
        return f"{'<' if value > 0 else '>−'}{10**-decimals:.{decimals}f}"
    return text


def share_text(share: float) -> str:
    """A share as a percentage that is 0 % or 100 % only when it exactly is."""
    percent = 100 * share
    if 0 < percent < 0.1:
        return "<0.1 %"
    return ">99.9 %" if 99.9 < percent < 100 else f"{percent:.4g} %" if percent in (0, 100) else f"{percent:.1f} %"


def provenance_shares(summary: Summary) -> dict[str, float]:
    """Shares of requests with exact, live and modelled answers over all cells, weighted by their requests; empty where unknown."""
    kinds = ("exact", "live", "modelled")
    weights = numbers(summary, "n")
    shares = np.stack([numbers(summary, f"{kind}_share") for kind in kinds]) if len(summary) else np.zeros((3, 0))
    known = np.isfinite(shares).all(axis=0) & (weights > 0)
    if not known.any():
        return {}
    means = (shares[:, known] * weights[known]).sum(axis=1) / weights[known].sum()
    return dict(zip(kinds, means.tolist(), strict=True))


def provenance_badge(summary: Summary) -> dict[str, Any]:
    """Where the answers came from, loudly where a model of outcomes stood in for a language model."""
    shares = provenance_shares(summary)
    if not shares:
        return {"warn": True, "headline": "It is unknown where the answers come from.", "detail": ""}
    detail = "; ".join(
        (
            f"exact {share_text(shares['exact'])} (replayed from recordings of real models)",
            f"live {share_text(shares['live'])} (asked of a real model during this run)",
            f"modelled {share_text(shares['modelled'])} (drawn from a statistical model of outcomes)",
        )
    )
    if shares["modelled"] > 0:
        headline = (
            f"{share_text(shares['modelled'])} of the requests rest on modelled answers, which no language model gave."
        )
    else:
        headline = "Every answer was given by a real language model."
    return {
        "warn": shares["modelled"] > 0,
        "headline": headline,
        "detail": f"Provenance of requests by their least certain answer: {detail}.",
    }
