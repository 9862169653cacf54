"""A made-up run for the tests of figures and report: realistic in shape, drawn from one generator, no simulation.

Two tiers, agents of several steps, retries after 429, a last tool call, requests given up; every number of the summary is
computed from the very tables that the figures read.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from sim.assignments import add_to_summary, wrong_assignments
from sim.cost import LEDGER_ITEMS
from sim.figures.families import Families
from sim.figures.phases import PHASES
from sim.records import REQUEST_KINDS, SUBTASK_KINDS, RowTable
from sim.report import family_policies
from sim.run_tables import RunTables
from sim.scenario import Scenario
from sim.statistics import cluster_interval, mean_interval, quantile_interval

TIMEOUT_S = 120.0


class Policy(NamedTuple):
    """A made-up policy: the chance that a step goes to the large model, and how well it knows which ones need it."""

    name: str
    family: str
    knob: float
    large_share: float
    skill: float = 0.0


POLICIES = (
    Policy("all-slm", "all-slm", math.nan, 0.0),
    Policy("all-llm", "all-llm", math.nan, 1.0),
    *(Policy(f"random p={p:g}", "random", p, p) for p in (0.2, 0.4, 0.6, 0.8)),
    *(
        Policy(f"prompt-length threshold_tokens={t}", "prompt-length", t, s, 0.05)
        for t, s in ((150, 0.8), (300, 0.5), (600, 0.15))
    ),
    *(Policy(f"embedding-router large_share={p:g}", "embedding-router", p, p, 0.12) for p in (0.1, 0.25, 0.5, 0.75)),
    *(Policy(f"oracle-cost accuracy_share={p:g}", "oracle-cost", p, p - 0.55, 0.30) for p in (0.7, 0.8, 0.9, 1.0)),
)


class Run(NamedTuple):
    """Everything that write_report takes."""

    tables: RunTables
    summary: list[dict[str, Any]]
    frontier: dict[str, Any]
    scenario: Scenario
    manifest: dict[str, Any]
    wrong: list[dict[str, Any]]

    @property
    def policies(self) -> dict[str, str]:
        """The policy behind each family."""
        return family_policies(self.scenario)


def make_run(
    variants: tuple[str, ...] = ("base",), policies: tuple[Policy, ...] = POLICIES, seeds: tuple[int, ...] = (1, 2, 3), requests: int = 120,
    name: str = "made-up", description: str = "A made-up run.", endless_slots: bool = False,
) -> Run:  # fmt: skip
    """A run with these cells; the same arguments give the same run."""
    cells = {
        (variant, policy.name, seed): _cell(policy, seed, requests, 1.0 + 0.7 * place)
        for place, variant in enumerate(variants)
        for policy in policies
        for seed in seeds
    }
    parts = []
    for (variant, policy_name, seed), (own, _) in cells.items():
        policy = next(policy for policy in policies if policy.name == policy_name)
        rows = len(own["request"])
        text = {"variant": np.full(rows, variant, object), "policy": np.full(rows, policy_name, object)}
        parts.append({**text, "knob": np.full(rows, policy.knob), "seed": np.full(rows, seed), **own})
    table = {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}
    slots = (8.0, math.inf if endless_slots else 40.0)
    tables = RunTables(table, lambda v, p, s: cells[v, p, s][1], ("edge", "cloud"), ("slm", "llm"), slots)
    summary = [_summary_row(tables, variant, policy) for variant in variants for policy in policies]
    families = dict.fromkeys(policy.family for policy in policies)
    scenario = Scenario.model_validate({
        "name": "made-up", "description": description, "workload": {"tasks": {"kind": "modelled"}, "requests": requests},
        "tiers": {t: {"role": r, "model": {"quality": 0.5}, "service": {}} for t, r in (("edge", "slm"), ("cloud", "llm"))},
        "policies": (*families,), "seeds": seeds,
    })  # fmt: skip
    manifest = {
        "run_id": "3f2a9c0d1e4b", "created": "2026-01-05T10:15:00+00:00", "isthmus": "0.1.0", "packages": {"numpy": "2.4.1"},
        "wall_s": 12.3, "seeds": list(seeds),
    }  # fmt: skip
    frontier = {variant: {family: _metrics(i) for i, family in enumerate(families)} for variant in variants}
    behind = family_policies(scenario)
    wrong = wrong_assignments(tables, summary, behind)
    add_to_summary(summary, behind, wrong)
    return Run(tables, summary, frontier, scenario.model_copy(update={"name": name}), manifest, wrong)


def _cell(policy: Policy, seed: int, requests: int, slowness: float) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    request_rows, subtask_rows = RowTable(REQUEST_KINDS), RowTable(SUBTASK_KINDS)
    arrivals = np.cumsum(rng.exponential(1.5, requests))
    hard = rng.random(requests)
    for request, arrival_s in enumerate(arrivals.tolist()):
        now, attempts, small, steps = arrival_s, 0, 0, int(rng.integers(1, 8))
        ttft_s, status = math.nan, "completed"
        for position in range(steps):
            tier = int(rng.random() < policy.large_share)
            for attempt in range(3):
                rejected = bool(tier == 1 and attempt < 2 and rng.random() < 0.06)
                row = _attempt(rng, request, position, attempt, tier, now, slowness, rejected=rejected)
                subtask_rows.append(row)
                now, attempts = row[SUBTASK_COLUMNS.index("end_s")], attempts + 1
                if not rejected:
                    break
            small += tier == 0
            ttft_s = now - arrival_s if math.isnan(ttft_s) else ttft_s
            if now - arrival_s > TIMEOUT_S / 4:
                status = "timeout"
                break
        now += float(rng.exponential(0.3))
        chance = (
            0.35
            + 0.4 * policy.large_share
            + policy.skill * 4 * policy.large_share * (1 - policy.large_share)
            + 0.2 * (0.5 - hard[request])
        )
        score = float(rng.random() < chance) if status == "completed" else 0.0
        provenance = "exact" if rng.random() < 0.9 else "modelled"
        request_rows.append((
            request, f"task-{request % 60}", "default", 0, arrival_s, now, ttft_s, position + 1, small, score, status, "", provenance,
        ))  # fmt: skip
    subtasks: dict[str, Any] = dict(subtask_rows.columns())
    own: dict[str, Any] = dict(request_rows.columns())
    _bill(own, subtasks)
    return own, subtasks


SUBTASK_COLUMNS = list(SUBTASK_KINDS)


def _attempt(
    rng: np.random.Generator, request: int, position: int, attempt: int, tier: int, start_s: float, slowness: float, *, rejected: bool
) -> tuple[Any, ...]:  # fmt: skip
    large = tier == 1
    phases = {
        "tool_s": float(rng.exponential(0.4)) if position and not attempt else 0.0,
        "backoff_s": float(rng.exponential(1.0)) if attempt else 0.0,
        "decision_s": 0.02 if not attempt else 0.0,
        "uplink_s": slowness * float(rng.exponential(0.15 if large else 0.02)),
        "queue_s": 0.0 if rejected else float(rng.exponential(0.2 if large else 0.6)) * float(rng.random() < 0.4),
        "prefill_s": 0.0 if rejected else float(rng.gamma(4, 0.1 if large else 0.05)),
        "decode_s": 0.0 if rejected else float(rng.gamma(3, 0.5 if large else 0.7)),
        "downlink_s": 0.0 if rejected else slowness * float(rng.exponential(0.05 if large else 0.01)),
    }
    values = {
        "request": request, "position": position, "attempt": attempt, "tier": tier, "replica": 0, "status": "rejected" if rejected else "ok",
        "provenance": "exact", "start_s": start_s, **phases, "end_s": start_s + sum(phases.values()), "ttft_s": math.nan,
        "device_s": 0.0 if large else phases["decode_s"] / 4, "prompt_tokens": 300 + 150 * position, "cached_tokens": 150 * position,
        "completion_tokens": 0 if rejected else 80, "upload_bytes": 3000.0, "download_bytes": 800.0,
        "reason": f"score {rng.random():.2f} {'above' if large else 'below'} 0.50",
        "score": math.nan,
    }  # fmt: skip
    return tuple(values[column] for column in SUBTASK_COLUMNS)


def _bill(requests: dict[str, Any], subtasks: dict[str, Any]) -> None:
    large, served = subtasks["tier"] == 1, subtasks["status"] == "ok"
    items = dict.fromkeys(LEDGER_ITEMS, 0.0)
    items["api_input_usd"] = large * served * (subtasks["prompt_tokens"] - subtasks["cached_tokens"]) * 2.5e-6
    items["api_cached_usd"] = large * served * subtasks["cached_tokens"] * 1.25e-6
    items["api_output_usd"] = large * subtasks["completion_tokens"] * 1e-5
    items["energy_usd"] = subtasks["device_s"] * 60 / 3.6e6 * 0.25
    items["hardware_usd"] = subtasks["device_s"] * 2e-5
    for item, values in items.items():
        subtasks[item] = values + np.zeros(len(large))
    subtasks["energy_j"] = subtasks["device_s"] * 60
    subtasks["carbon_g"] = subtasks["energy_j"] / 3.6e6 * 400
    subtasks["decision_j"] = subtasks["decision_s"] * 5
    subtasks["total_usd"] = sum(subtasks[item] for item in LEDGER_ITEMS)
    for column in (*LEDGER_ITEMS, "energy_j", "carbon_g", "decision_s", "decision_j"):
        requests[column] = np.bincount(subtasks["request"], subtasks[column], minlength=len(requests["request"]))
    requests["latency_s"] = requests["end_s"] - requests["arrival_s"]
    requests["sla_usd"] = np.where(requests["status"] == "completed", 0.0, 0.005)
    requests["total_usd"] = sum(requests[item] for item in LEDGER_ITEMS) + requests["sla_usd"]


def _summary_row(tables: RunTables, variant: str, policy: Policy) -> dict[str, Any]:
    own = tables.of_policy(variant, policy.name)
    row: dict[str, Any] = {"variant": variant, "policy": policy.name, "family": policy.family, "n": len(own["score"])}
    row |= {"knob": None if math.isnan(policy.knob) else policy.knob, "seeds": len(np.unique(own["seed"]))}
    usage = own["slm_subtasks"] / own["subtasks"]
    means = {
        "accuracy": own["score"], "slm_usage": usage, "cost_usd": own["total_usd"], "latency_mean_s": own["latency_s"], "llm_share": 1 - usage,
        "completion_rate": (own["status"] == "completed") * 1.0, "energy_j": own["energy_j"], "carbon_g": own["carbon_g"],
        "decision_share": own["decision_s"] / own["latency_s"], "decision_j": own["decision_j"],
    }  # fmt: skip
    intervals = {key: cluster_interval(values, own["task_id"], own["seed"]) for key, values in means.items()}
    for key, column, q in (
        ("latency_p50_s", "latency_s", 0.5),
        ("latency_p95_s", "latency_s", 0.95),
        ("ttft_p50_s", "ttft_s", 0.5),
    ):
        intervals[key] = quantile_interval(own[column], q)
    for key, interval in intervals.items():
        bounds = {"": interval.estimate, "_lo": interval.lo, "_hi": interval.hi}
        row |= {key + end: None if math.isnan(value) else value for end, value in bounds.items()}
    row |= {item: mean_interval(own[item]).estimate for item in (*LEDGER_ITEMS, "sla_usd")}
    return row | {f"{kind}_share": float(np.mean(own["provenance"] == kind)) for kind in ("exact", "live", "modelled")}


def _metrics(place: int) -> dict[str, Any]:
    values = {"apgr": 0.5 + 0.07 * place, "cpt50": 0.5 - 0.05 * place, "cpt80": None, "aiq": 0.6 + 0.01 * place}
    values |= {"hypervolume": 2.1e-3 + 1e-4 * place, "oracle_gap_closed": 0.1 * place}
    metrics: dict[str, Any] = dict(values)
    for key, value in values.items():
        metrics |= {
            f"{key}_lo": None if value is None else 0.9 * value,
            f"{key}_hi": None if value is None else 1.1 * value,
        }
    return metrics


def total_of_phases(subtasks: dict[str, Any]) -> float:
    """Seconds of all phases of all attempts."""
    return float(sum(np.sum(subtasks[phase.column]) for phase in PHASES))


def families_of(run: Run) -> Families:
    """The families of a run."""
    return Families(run.summary, run.policies)


def drawn_lines(figure: Figure, panel: int = 0) -> dict[str, np.ndarray]:
    """Points of the labelled lines of a panel by label."""
    lines = figure.axes[panel].get_lines()
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in lines}


def legend_texts(figure: Figure) -> list[str]:
    """The words of a figure's legend."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]
