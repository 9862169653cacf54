"""Profiling: tables from trees worked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from sim.loading import load_scenario
from sim.policies.hera.profile import profile_of, s_l_distance
from sim.policies.trees import grow_trees, two_models
from sim.profiling import position_rows, profile_tables, profile_training, switched_one, write_profile
from sim.report import family_policies
from tests.conftest import ROOT
from tests.policies.test_hera import Equality, full, text_study
from tests.policies.test_oracle import tree_study


class Said(Equality):
    """Equal but for the first letter, which tells who speaks."""

    def __call__(self, first: str, second: str) -> float:
        return float(first[2:] == second[2:])


def study() -> Any:
    """The small model needs two steps for the large one's first; then both say the same."""
    return text_study({"q": full(3, {"h": "goal", "tt": "goal", "hh": "next", "ht": "next"})})


def test_every_subtask_is_a_row_with_its_targets() -> None:
    """7 nodes of a tree of depth 3; distance 1 at the root, 0 after the large model's first step."""
    profile = profile_of(study(), Said(), 0.5)  # type: ignore[arg-type]
    assert len(profile.subtasks) == 7
    root, *_ = [row for row in profile.subtasks if row.position == 0]
    assert (root.text, root.small_output, root.large_output, root.similarity, root.distance) == (
        "q",
        "t ?t",
        "h goal",
        0.0,
        1.0,
    )
    (after,) = [row for row in profile.subtasks if row.position == 1 and row.on_large_path]
    assert (after.small_output, after.large_output, after.distance) == ("t next", "h next", 0.0)
    assert sum(row.on_large_path for row in profile.subtasks) == 3
    (last,) = [row for row in profile.subtasks if row.position == 2 and row.on_large_path]
    assert math.isinf(last.distance)
    assert s_l_distance(root.outlook, lambda a, b: a[2:] == b[2:], most=0) == math.inf


def test_what_moving_one_subtask_costs() -> None:
    """All-LLM takes three subtasks; the second one small loses 60 points, the others nothing."""
    leaves = {"hhh": 1.0, "thh": 1.0, "hth": 0.4, "hht": 1.0, "tt": 0.0, "tht": 0.0, "htt": 0.0}
    trees = tree_study({"q": {path: (score, 1) for path, score in leaves.items()}})
    found = switched_one(grow_trees(trees, trees.tasks), two_models(trees))
    assert [(row.third, row.subtasks) for row in found] == [("early", 1), ("middle", 1), ("late", 1)]
    assert [row.lost for row in found] == pytest.approx([0.0, 60.0, 0.0])


def test_tables_on_file_and_for_the_terminal(tmp_path: Path) -> None:
    """Two Parquet files with a row for each request and subtask; three tables to read."""
    profiled = profile_training(study(), Said(), 0.5)  # type: ignore[arg-type]
    write_profile(profiled, tmp_path)
    requests, subtasks = (
        parquet.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("requests", "subtasks")
    )
    assert [row["prompt"] for row in requests] == ["q"]
    assert len(subtasks) == 7
    assert {"text", "small_output", "large_output", "similarity", "distance", "on_large_path"} <= subtasks[0].keys()
    assert [table.row_count for table in profile_tables(profiled, 0.5)] == [5, 3, 3]
    assert position_rows(profiled.profile, 0.5)[0] == ("1", "0.0%", "1.00", "0.0%")


def test_perfect_estimators_count_among_the_oracles() -> None:
    """In reports and figures: nobody can deploy what looks into the recording."""
    loaded = load_scenario(ROOT / "scenarios/hera.yaml", [])
    policies = family_policies(loaded.scenario)
    assert (policies["hera-perfect"], policies["hera-retrieval"], policies["random"]) == (
        "oracle hera",
        "hera",
        "random",
    )
