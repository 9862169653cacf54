"""Tables, files and the figure of the M4A1 experiments."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from sim.run_store import write_text
from sim.statistics import Interval
from sim.tmo.m4a1_experiment import Row, means
from sim.tmo.off_policy import Judged
from sim.tmo.responses import Judged as JudgedModel

PUBLISHED = {
    "random": (0.940, 10.5, 13.7, 0.793),
    "local": (0.869, 0.04, 0.0, 0.869),
    "cloud": (1.131, 21.0, 24.0, 0.843),
    "table": (math.nan, math.nan, math.nan, 1.083),
    "greedy": (math.nan, math.nan, math.nan, 1.279),
    "PPO": (1.391, 16.9, 19.1, 1.149),
    "A2C": (1.280, 16.1, 19.2, 1.051),
    "DQN": (1.420, 19.5, 21.3, 1.147),
    "RC-PPO": (1.309, 13.4, 15.0, 1.116),
    "RC-A2C": (1.123, 8.0, 11.6, 1.006),
    "RC-DQN": (1.249, 15.5, 21.0, 1.026),
}
"""Response, latency (s), usage (m$) and reward that the authors' code gave on their sample: wired, TX2, seeds 1 to 3."""


def authors_table(rows: Sequence[Row]) -> Table:
    """Each policy by the authors' evaluation, their code's figure beside ours, and by the held-out table."""
    table = Table(
        "policy", "response", "latency s", "usage m$", "reward", "sd", "their code", "over budget", "held-out table",
        title="The authors' evaluation: graded by the table that trained the policy; last column: by the held-out dialogues'",
        box=box.SIMPLE_HEAD,
    )  # fmt: skip
    held_out = means(rows, "held_out")
    for name, (found, spread) in means(rows, "own").items():
        theirs = PUBLISHED.get(name, (math.nan,) * 4)[3]
        table.add_row(
            name, f"{found.response:.3f}", f"{found.latency_s:.2f}", f"{1e3 * found.usage_usd:.2f}", f"{found.reward:.3f}",
            _number(spread), _number(theirs), f"{found.over_budget:.0%}", f"{held_out[name][0].reward:.3f}",
        )  # fmt: skip
    return table


def models_table(models: Sequence[JudgedModel]) -> Table:
    """Response models on dialogues they were not fitted on."""
    table = Table(
        "model", "R2", "RMSE", "within 1.96 sd", title="Response models on held-out dialogues", box=box.SIMPLE_HEAD
    )
    for model in models:
        table.add_row(model.name, _interval(model.r2), _interval(model.rmse), f"{model.inside:.1%}")
    return table


def judge_table(rows: Sequence[Row], found: Mapping[str, Judged], graded: Mapping[str, Judged]) -> Table:
    """Each policy's reward by the authors' judge and by those that saw none of its training."""
    table = Table(
        "policy", "own table", "direct", "weighted", "doubly robust", "less Local", "as graded", "turns", "no support", "",
        title="Reward by five judges; 95 % intervals over dialogues",
        box=box.SIMPLE_HEAD,
    )  # fmt: skip
    own = means(rows, "own")
    for name, judged in found.items():
        table.add_row(
            name, f"{own[name][0].reward:.3f}", _interval(judged.direct), _interval(judged.weighted),
            _interval(judged.doubly_robust), _interval(judged.advantage), _interval(graded[name].doubly_robust),
            f"{judged.effective:.0f}", f"{judged.unsupported:.0%}", "[red]cannot tell[/red]" if judged.warning else "",
        )  # fmt: skip
    return table


def evaluation_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One flat row per policy, split and judge."""
    return [{"policy": row.policy, "split": row.split, "judge": row.judge, **row.found._asdict()} for row in rows]


def summary_rows(rows: Sequence[Row], judge: str = "own") -> list[dict[str, Any]]:
    """One flat row per policy: means over splits beside what the authors' code gave."""
    found = []
    for name, (mean, spread) in means(rows, judge).items():
        theirs = dict(zip(("response", "latency_s", "usage_musd", "reward"), PUBLISHED.get(name, ()), strict=False))
        found.append({
            "policy": name, **mean._asdict(), "reward_sd": spread, **{f"their_{key}": theirs.get(key) for key in ("response", "latency_s", "usage_musd", "reward")},
        })  # fmt: skip
    return found


def judgement_rows(found: Mapping[str, Judged], grade: str) -> list[dict[str, Any]]:
    """One flat row per policy."""
    return [
        {
            "policy": name, "grade": grade,
            **{key: value for field in ("direct", "weighted", "doubly_robust", "advantage") for key, value in _flat(field, getattr(judged, field)).items()},
            "effective_turns": judged.effective, "turns": judged.turns, "unsupported": judged.unsupported, "warning": judged.warning,
        }
        for name, judged in found.items()
    ]  # fmt: skip


def model_rows(models: Sequence[JudgedModel]) -> list[dict[str, Any]]:
    """One flat row per response model."""
    return [{"model": m.name, **_flat("r2", m.r2), **_flat("rmse", m.rmse), "inside": m.inside} for m in models]


def write_rows(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """`name`.csv and `name`.json, each atomically; what is undefined is empty in the one and null in the other."""
    plain = [{key: None if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()} for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.json", json.dumps(plain, indent=1, allow_nan=False) + "\n")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(plain[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    write_text(folder / f"{name}.csv", text.getvalue())


def _flat(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.estimate, f"{name}_lo": interval.lo, f"{name}_hi": interval.hi}


def _interval(interval: Interval) -> str:
    if math.isnan(interval.estimate):
        return "–"
    bounds = "–" if math.isnan(interval.lo) else f"{interval.lo:.2f}, {interval.hi:.2f}"
    return f"{interval.estimate:.3f} ({bounds})"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
