"""The report of a run: figures as PNG and SVG, and one HTML file that needs nothing else.

Everything comes from result files; nothing is simulated or measured again here. Names and descriptions are a user's text:
the template escapes every value, and the page's own policy forbids scripts and anything from outside.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure

from sim.figures.cost import draw_ledger
from sim.figures.families import Families, mixing_row
from sim.figures.frontier import draw_cost_frontier, draw_usage_frontier
from sim.figures.latency import draw_latency_breakdown, draw_latency_distribution
from sim.figures.load import draw_load
from sim.figures.network import draw_variants
from sim.figures.style import (
    Summary,
    Unit,
    money_unit,
    number,
    numbers,
    of_variant,
    save_figure,
    three_digits,
    variants_of,
)
from sim.figures.timeline import draw_timeline
from sim.loading import dump_yaml
from sim.report_tables import (
    METRICS_EXPLAINED,
    NOT_DEPLOYABLE,
    assignment_table,
    decision_table,
    frontier_table,
    ledger_table,
    provenance_badge,
    summary_table,
)
from sim.run_tables import RunTables
from sim.scenario import Scenario

_PERCENT, _MEDIAN, _TAIL = Unit(100.0, "% accuracy"), Unit(1.0, "s median"), Unit(1.0, "s 95th percentile")


class Picture(NamedTuple):
    """A figure of the report: its file name, heading, how to read it, what it shows in words, and how to draw it."""

    key: str
    heading: str
    caption: str
    alt: str
    draw: Callable[[], Figure]


def write_report(
    out_dir: Path,
    tables: RunTables,
    summary: list[dict[str, Any]],
    frontier: Mapping[str, Mapping[str, Mapping[str, Any]]],
    scenario: Scenario,
    manifest: Mapping[str, Any],
    wrong: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write `figures/*.png`, `figures/*.svg` and `report.html` into `out_dir`, each atomically; returns the report's path.

    `summary` has one row per variant and policy, `frontier` metrics by variant and family. Of `manifest` the entries
    `run_id`, `created`, `isthmus`, `python`, `packages` and `wall_s` stand at the top where they exist; all of it at the end.
    `wrong` are the wrong assignments of a run with an oracle (sim/assignments.py).
    """
    if not summary:
        raise ValueError("a report needs at least one row of summary")
    families = Families(summary, family_policies(scenario))
    shown = [_embedded(picture, out_dir) for picture in pictures(tables, summary, families)]
    page = _page(summary, frontier, wrong, scenario, manifest, families, shown)
    path = out_dir / "report.html"
    partial = out_dir / f".report.{os.getpid()}.html"
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def family_policies(scenario: Scenario) -> dict[str, str]:
    """The policy behind each family; a family is called by its label, or by its policy's name without the file.

    A policy with perfect estimators knows what nobody can: it counts among the oracles, as `oracle <policy>`.
    """
    return {
        spec.label or spec.policy.rpartition(":")[2]: f"oracle {spec.policy}" if spec.options.get("estimators") == "perfect" else spec.policy
        for spec in scenario.policies
    }  # fmt: skip


def pictures(tables: RunTables, summary: Summary, families: Families) -> list[Picture]:
    """The figures of a run in the order of the report. Those of one variant show the first."""
    variants = variants_of(summary)
    first = variants[0]
    chosen = mixing_row(tables, summary, families, first)
    policy = str(chosen["policy"])
    seed = tables.seeds(first, policy)[0]
    cell = tables.title_of_cell(first, policy, seed)
    several = len(variants) > 1
    here = f" of the variant {first}" if several else ""
    # fmt: off
    found = [
        Picture(
            "frontier-cost", "Accuracy against cost",
            "Each point is a policy, each curve a family swept through its knob; bars are 95 % intervals in both directions; "
            "small numbers say what is swept. Up and to the left is better. The broad line is the non-decreasing hull: what the deployable policies reach, mixed at random if "
            "need be. A policy is worth having where it lies above the dotted line, which needs no router but a coin per request. "
            "The oracle, dashed, knows each task's result and bounds what routing can gain.",
            f"Points of accuracy against mean cost per request. {_ends_in_words(summary, families, first)}",
            lambda: draw_cost_frontier(summary, families),
        ),
        Picture(
            "frontier-usage", "Accuracy against SLM usage",
            "The same policies by the share of subtasks that the small model answered, whatever that costs. Up and to the right is "
            "better: as accurate with less of the large model.",
            f"Points of accuracy against the share of subtasks on the small model. {_ends_in_words(summary, families, first)}",
            lambda: draw_usage_frontier(summary, families),
        ),
        Picture(
            "latency", "Latency",
            f"For each time on the horizontal axis, the share of requests{here} that had been answered by then, all seeds together; further "
            "left is faster. Markers stand at the median and the 95th percentile. A curve that ends below 100 % leaves requests "
            "unanswered. Of each family the policy in the middle of its range is shown, eight at most.",
            f"Cumulative distributions of request latency. {_latencies_in_words(summary, families, first)}",
            lambda: draw_latency_distribution(tables, summary, families, first),
        ),
        Picture(
            "latency-breakdown", "Where the time goes",
            f"Mean seconds per request{here} in each phase, summed over all attempts, so that a bar is as long as the mean latency "
            "(longer where branches of a request run side by side). Last tool is the time of the agent's tool after the last answer.",
            f"Stacked bars of mean seconds per request by phase. {_latencies_in_words(summary, families, first)}",
            lambda: draw_latency_breakdown(tables, summary, families, first),
        ),
        Picture(
            "ledger", "What a request costs",
            f"Mean cost per request{here} by item of the ledger; the number is the total. The table below has the same numbers.",
            f"Stacked bars of mean cost per request by item. {_ends_in_words(summary, families, first)}",
            lambda: draw_ledger(summary, families, first),
        ),
        Picture(
            "variants", "The variants of the scenario",
            "The same policies, one lane for each variant; bars are 95 % intervals. All variants and policies saw the same tasks and "
            "random draws, so differences between lanes are smaller than the intervals suggest.",
            f"Dots with intervals for accuracy, cost and latency under {len(variants)} variants; the numbers are in the summary.",
            lambda: draw_variants(summary, families),
        ),
        Picture(
            "timeline", "Requests step by step",
            f"A few requests of one run ({cell}), chosen to show different things. Time runs to the right from the request's "
            "arrival to the black line at its end. The agent's lane holds its tools, decisions and waits before retries; each tier's "
            "lane holds the network, the queue and the model; branches side by side have lanes of their own. A short black line begins each attempt; hatched ones failed, dotted ones were given up for another tier's answer. Small words are the policy's reason.",
            f"Timelines of up to five requests, phase by phase, under {cell}.",
            lambda: draw_timeline(tables, first, policy, seed),
        ),
        Picture(
            "load", "Load over time",
            f"How busy each tier was in one run ({cell}): left the share of its slots in use, right how many requests waited. "
            "Filled: the exact mean of a short span of time; outlined: the highest moment in it. A share above 100 % means that "
            "requests were admitted beyond the nominal number of slots.",
            f"Utilisation and queue length of {len(tables.tiers)} tiers over time under {cell}.",
            lambda: draw_load(tables, first, policy, seed),
        ),
    ]
    # fmt: on
    return [picture for picture in found if several or picture.key != "variants"]


def _ends_in_words(summary: Summary, families: Families, variant: str) -> str:
    """Where the two models alone stand, for those who cannot see the figure."""
    money = money_unit(numbers(summary, "cost_usd").tolist())
    return _models_in_words(summary, families, variant, {"accuracy": _PERCENT, "cost_usd": money})


def _latencies_in_words(summary: Summary, families: Families, variant: str) -> str:
    return _models_in_words(summary, families, variant, {"latency_p50_s": _MEDIAN, "latency_p95_s": _TAIL})


def _models_in_words(summary: Summary, families: Families, variant: str, fields: Mapping[str, Unit]) -> str:
    models = families.behind("all-slm") + families.behind("all-llm")
    words = [
        f"{row['policy']}: {three_digits(number(row, field) * unit.factor)} {unit.symbol}"
        for row in of_variant(summary, variant)
        for field, unit in fields.items()
        if row["family"] in models and math.isfinite(number(row, field))
    ]
    return "; ".join([*words, "all numbers are in the summary"]) + "."


def _embedded(picture: Picture, out_dir: Path) -> dict[str, Any]:
    figure = picture.draw()
    png = save_figure(figure, out_dir / "figures", picture.key)
    width, height = (round(100 * inches) for inches in figure.get_size_inches())
    encoded = base64.b64encode(png).decode("ascii")
    words = {"key": picture.key, "heading": picture.heading, "caption": picture.caption, "alt": picture.alt}
    return {**words, "png": encoded, "width": width, "height": height}


def _page(
    summary: list[dict[str, Any]],
    frontier: Mapping[str, Mapping[str, Mapping[str, Any]]],
    wrong: Sequence[Mapping[str, Any]],
    scenario: Scenario,
    manifest: Mapping[str, Any],
    families: Families,
    figures: list[dict[str, Any]],
) -> str:
    variants = variants_of(summary)
    money = money_unit(numbers(summary, "cost_usd").tolist())
    decisions = [(v, decision_table(summary, families, v)) for v in variants]
    frontier_tables = [(v, frontier_table(frontier.get(v, {}), families)) for v in variants]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report_template.html.j2").render(
        name=scenario.name,
        description=scenario.description.strip(),
        facts=_facts(summary, scenario, manifest),
        badge=provenance_badge(summary),
        figures=figures,
        summary_tables=[(v, summary_table(summary, families, v, money)) for v in variants],
        frontier_tables=[(v, table) for v, table in frontier_tables if table.rows],
        assignment_tables=[
            (v, assignment_table(wrong, families, summary, v))
            for v in variants
            if any(row["variant"] == v for row in wrong)
        ],
        ledger_tables=[(v, ledger_table(summary, families, v, money)) for v in variants],
        decision_tables=[(v, table) for v, table in decisions if table.rows],
        decision_caption=_captions("What deciding takes", variants, None),
        summary_caption=_captions("Results per policy", variants, money),
        frontier_caption=_captions("Metrics per family of policies", variants, None),
        assignment_caption=_captions("Subtasks placed elsewhere than by an oracle", variants, None),
        ledger_caption=_captions("Mean cost per request by item", variants, money),
        terms=METRICS_EXPLAINED,
        NOT_DEPLOYABLE=NOT_DEPLOYABLE,
        scenario_yaml=dump_yaml(scenario.model_dump()),
        manifest_json=json.dumps(manifest, indent=2, ensure_ascii=False, default=str),
    )


def _captions(text: str, variants: list[str], money: Unit | None) -> Callable[[str], str]:
    """What a table's caption says of each variant, and the unit of money where it is a rare one."""
    unit = f"; {money.label}" if money is not None and money.meaning else ""
    return lambda variant: text + (f", variant {variant}" if len(variants) > 1 else "") + unit


def _facts(summary: Summary, scenario: Scenario, manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of the run, as terms and values."""
    requests = sorted({int(row["n"]) for row in summary})
    versions = {
        "Isthmus": manifest.get("isthmus"),
        "Python": manifest.get("python"),
        **(manifest.get("packages") or {}),
    }
    variants, policies = len(variants_of(summary)), len({row["policy"] for row in summary})
    per_policy = f"{requests[0]:,}" if len(requests) == 1 else f"{requests[0]:,} to {requests[-1]:,}"
    facts = [
        ("Run", manifest.get("run_id")),
        ("Date", manifest.get("created")),
        ("Requests", f"{per_policy} per policy{' and variant' if variants > 1 else ''}, all seeds together"),
        ("Seeds", ", ".join(map(str, scenario.seeds))),
        ("Compared", f"{policies} policies" + (f" under {variants} variants of the scenario" if variants > 1 else "")),
        (
            "Versions",
            ", ".join(f"{name} {version}" for name, version in versions.items() if version not in (None, "unknown")),
        ),
        ("Wall time", f"{float(manifest['wall_s']):.1f} s" if manifest.get("wall_s") is not None else None),
    ]
    return [(term, str(value)) for term, value in facts if value]
