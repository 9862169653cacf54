"""Tables for the terminal: a run's summary, and the names a scenario can use."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from sim.policies import POLICIES
from sim.profiles import KINDS, named_profiles
from workloads.errors import InputError, suggest

READERS = (
    "azure_llm", "burstgpt", "mooncake", "routellm", "intercode", "m4a1", "pensieve", "mahimahi", "bandwidth_csv", "llmperf",
    "rtt_matrix", "engine_latency",
)  # fmt: skip
_SOURCE_CHARACTERS = 110
_HEADINGS = ("knob", "accuracy %", "SLM %", "m$/req.", "p50 s", "p95 s", "done %")


def summary_table(summary: Sequence[Mapping[str, Any]]) -> Table:
    """One line per policy, under its variant where there are several. Accuracy with the half width of its interval.

    With an oracle in the run, also the share of subtasks placed otherwise than by it. All other intervals are in summary.json.
    """
    table = Table(box=box.SIMPLE, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False, caption=_caption(summary))
    several = len({row["variant"] for row in summary}) > 1
    shown = None
    table.add_column("policy", overflow="fold")
    against = next((row["wrong_against"] for row in summary if row.get("wrong_against")), None)
    for heading in (*_HEADINGS, *(("wrong %",) if against else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary:
        if several and row["variant"] != shown:
            shown = row["variant"]
            table.add_section()
            table.add_row(Text(str(shown), style="bold"))
        cells = [
            str(row["family"]), "" if row["knob"] is None else f"{row['knob']:g}", _accuracy(row),
            _number(row["slm_usage"], 1, 100), _number(row["cost_usd"], 3, 1000),
            _number(row["latency_p50_s"], 2), _number(row["latency_p95_s"], 2),
            _number(row["completion_rate"], 1, 100), *([_number(row["wrong"], 1, 100)] if against else []),
        ]  # fmt: skip
        add_plain_row(table, *cells)
    return table


def add_plain_row(table: Table, *cells: object) -> None:
    """A row of text as it is: rich would take `[red]` and `:100:` in a user's own names for its markup."""
    table.add_row(*(Text(str(cell)) for cell in cells))


def _accuracy(row: Mapping[str, Any]) -> str:
    value, lo, hi = row["accuracy"], row["accuracy_lo"], row["accuracy_hi"]
    half = "" if value is None or lo is None or hi is None else f" ±{100 * (hi - lo) / 2:4.1f}"
    return _number(value, 1, 100) + half


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


def _caption(summary: Sequence[Mapping[str, Any]]) -> str:
    """Where the answers come from, and which oracle placements are compared with."""
    oracles = dict.fromkeys(str(row["wrong_against"]) for row in summary if row.get("wrong_against"))
    wrong = f"\nwrong: placed otherwise than by {', '.join(oracles)}" if oracles else ""
    return _provenance(summary) + wrong


def _provenance(summary: Sequence[Mapping[str, Any]]) -> str:
    """Which answers are recorded, live or modelled, over all policies."""
    requests = sum(row["n"] for row in summary) or 1
    shares = {
        name: sum(row[f"{name}_share"] * row["n"] for row in summary) / requests
        for name in ("exact", "live", "modelled")
    }
    return "answers: " + ", ".join(f"{share:.0%} {name}" for name, share in shares.items() if share > 0)


def name_tables(kind: str | None) -> Iterator[Table]:
    """Tables of policies, profiles by kind, and readers; or only of `kind`."""
    kinds = ("policies", *KINDS, "readers")
    if kind is not None and kind not in kinds:
        raise InputError(f"list {kind}", "nothing of this kind", suggest(kind, kinds))
    for wanted in (kind,) if kind else kinds:
        if wanted == "policies":
            yield _policies()
        elif wanted == "readers":
            yield _readers()
        else:
            yield _profiles(wanted)


def _policies() -> Table:
    table = Table(
        "policy", "what it does", "options (default)", title="policies", title_justify="left", show_lines=True
    )
    for name, policy in POLICIES.items():
        fields = policy.Options.model_fields
        options = "\n".join(f"{field} ({info.get_default()})" for field, info in fields.items())
        add_plain_row(table, name, _first_paragraph(policy), options)
    return table


def _profiles(kind: str) -> Table:
    table = Table("name", "source", title=kind, title_justify="left")
    for name, fields in named_profiles()[kind].items():
        source = " ".join(str(fields.get("source", "")).split())
        add_plain_row(
            table, name, source if len(source) <= _SOURCE_CHARACTERS else source[:_SOURCE_CHARACTERS] + " ..."
        )
    return table


def _readers() -> Table:
    table = Table("reader", "format", title="readers", title_justify="left")
    for name in READERS:
        add_plain_row(table, name, importlib.import_module(f"workloads.readers.{name}").FORMAT)
    return table


def _first_paragraph(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
