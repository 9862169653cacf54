"""Tables for the terminal: a run's summary, and the names a scenario can use."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from sim.policies import POLICIES
from sim.profiles import KINDS, named_profiles
from workloads.errors import InputError, suggest

READERS = (
    "azure_llm", "burstgpt", "mooncake", "routellm", "intercode", "m4a1", "pensieve", "mahimahi", "bandwidth_csv", "llmperf",
    "rtt_matrix", "engine_latency",
)  # fmt: skip
_SOURCE_CHARACTERS = 110


def summary_table(summary: Sequence[Mapping[str, Any]]) -> Table:
    """One line per variant and policy; intervals as +- half width."""
    table = Table(title=None, header_style="bold")
    several = len({row["variant"] for row in summary}) > 1
    if several:
        table.add_column("variant")
    table.add_column("policy")
    for heading in ("accuracy %", "SLM usage %", "$ / 1000 requests", "p50 s", "p95 s", "J / request", "completed %", "provenance"):
        table.add_column(heading, justify="right")
    for row in summary:
        cells = [
            str(row["policy"]), _plus_minus(row, "accuracy", 100, 1), _plus_minus(row, "slm_usage", 100, 1),
            _plus_minus(row, "cost_usd", 1000, 3), _number(row["latency_p50_s"], 2), _number(row["latency_p95_s"], 2),
            _number(row["energy_j"], 1), _number(100 * (row["completion_rate"] or 0.0), 1), _provenance(row),
        ]  # fmt: skip
        table.add_row(*([str(row["variant"])] if several else []), *cells)
    return table


def _plus_minus(row: Mapping[str, Any], field: str, factor: float, digits: int) -> str:
    value, lo, hi = row[field], row[f"{field}_lo"], row[f"{field}_hi"]
    if value is None:
        return "-"
    shown = f"{value * factor:.{digits}f}"
    return shown if lo is None or hi is None else f"{shown} ±{(hi - lo) / 2 * factor:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _provenance(row: Mapping[str, Any]) -> str:
    shares = {name: row[f"{name}_share"] for name in ("exact", "live", "modelled")}
    present = [name if share > 0.9995 else f"{share:.0%} {name}" for name, share in shares.items() if share > 0]
    return ", ".join(present)


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
    table = Table("policy", "what it does", "options (default)", title="policies", title_justify="left", show_lines=True)
    for name, policy in POLICIES.items():
        fields = policy.Options.model_fields
        options = "\n".join(f"{field} ({info.get_default()})" for field, info in fields.items())
        table.add_row(name, _first_paragraph(policy), options)
    return table


def _profiles(kind: str) -> Table:
    table = Table("name", "source", title=kind, title_justify="left")
    for name, fields in named_profiles()[kind].items():
        source = " ".join(str(fields.get("source", "")).split())
        table.add_row(name, source if len(source) <= _SOURCE_CHARACTERS else source[:_SOURCE_CHARACTERS] + " ...")
    return table


def _readers() -> Table:
    table = Table("reader", "format", title="readers", title_justify="left")
    for name in READERS:
        table.add_row(name, importlib.import_module(f"workloads.readers.{name}").FORMAT)
    return table


def _first_paragraph(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
