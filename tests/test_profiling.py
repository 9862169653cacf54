"""Profiling: tables from trees worked by hand, what they show, and the command."""

from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from sim.figures.profiling import draw_alike, draw_distance, draw_switched, profile_figures
from sim.figures.style import save_figure
from sim.loading import load_scenario
from sim.policies.hera.profile import profile_of, s_l_distance
from sim.policies.trees import grow_trees, two_models
from sim.profiling import ProfileTables, profile_tables, scores_lost
from sim.profiling_metrics import alike_above, by_position, distances, share, subtask_counts, summary, switched
from sim.records import read_columns
from sim.report import family_policies
from sim.statistics import proportion_interval
from sim.study import study_of
from sim.workload import build_workload
from tests.conftest import ROOT
from tests.policies.test_hera import Equality, full, text_study
from tests.policies.test_oracle import tree_study
from tests.test_cli import command
from workloads.agent import in_turn
from workloads.task import Task


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
    """All-LLM takes three subtasks; the second one small loses 60 points, the others nothing; off its path nothing is known."""
    leaves = {"hhh": 1.0, "thh": 1.0, "hth": 0.4, "hht": 1.0, "tt": 0.0, "tht": 0.0, "htt": 0.0}
    trees = tree_study({"q": {path: (score, 1) for path, score in leaves.items()}})
    tables = profile_tables(trees, Said(), 0.5)  # type: ignore[arg-type]
    on_path = tables.subtasks["on_large_path"]
    assert tables.subtasks["position"][on_path].tolist() == [0, 1, 2]
    assert tables.subtasks["score_lost"][on_path] == pytest.approx([0.0, 0.6, 0.0])
    assert np.isnan(tables.subtasks["score_lost"][~on_path]).all()
    assert (~on_path).any()
    found = switched(tables.subtasks)
    assert [(third, row.n) for third, row in found.items()] == [("early", 1), ("middle", 1), ("late", 1)]
    assert [row.estimate for row in found.values()] == pytest.approx([0.0, 60.0, 0.0])


def test_a_request_that_forks_is_switched_subtask_by_subtask() -> None:
    """Each subtask of All-LLM's path by itself on the small model, replayed call by call: the score that the tree tells."""
    loaded = load_scenario(
        ROOT / "scenarios/branching.yaml", ["workload.tasks.distinct_tasks=6", "workload.requests=6"]
    )
    study = study_of(loaded.scenario, build_workload(loaded.scenario, 1, loaded.path), 1)
    models = two_models(study)

    def replayed(task: Task, small: int) -> tuple[float, int]:
        """The score with the subtask at this position small, and how many subtasks it took."""
        run, calls = in_turn(study.agent(task)), 0
        try:
            call = next(run)
            while True:
                calls += 1
                call = run.send(study.backend.submit(call, models[call.position != small]).result())
        except StopIteration as end:
            return end.value.score, calls

    trees = grow_trees(study, study.tasks)
    assert all(tree.forks for tree in trees)
    for tree in trees:
        found = scores_lost(tree, models)
        alone, length = replayed(tree.task, -1)
        assert len(found) == length > 4
        for node, lost in found:
            assert lost == pytest.approx(alone - replayed(tree.task, node.call.position)[0])
    assert any(lost > 0 for tree in trees for _, lost in scores_lost(tree, models))


def test_tables_hold_what_estimators_learn_from() -> None:
    """A row for each request and subtask, with the counts of the two paths."""
    requests, subtasks = profile_tables(study(), Said(), 0.5)  # type: ignore[arg-type]
    assert requests["prompt"].tolist() == ["q"]
    assert (requests["small_subtasks"][0], requests["large_subtasks"][0]) == (3, 3)
    assert len(subtasks["task"]) == 7
    assert {"text", "small_output", "large_output", "similarity", "distance", "on_large_path"} <= subtasks.keys()
    assert set(subtasks["path_subtasks"].tolist()) == {3}


# --------------------------------------------------------------------------------------------------- what the tables show


def some_tables(requests: int = 60) -> ProfileTables:
    """A made-up profile: requests of three subtasks in two families, the first of them seldom alike, the last always."""
    rng = np.random.default_rng(5)
    tasks = np.array([f"t{i}" for i in range(requests)], object)
    family = np.array(["hops", "sums"], object)[np.arange(requests) % 2]
    score = (rng.random((2, requests)) < [[0.5], [0.9]]).astype(float)
    counts = rng.integers(2, 6, (2, requests))
    whole = {
        "task": tasks, "family": family, "small_score": score[0], "large_score": score[1], "similarity": rng.random(requests),
        "small_subtasks": counts[0], "large_subtasks": counts[1],
    }  # fmt: skip
    position = np.tile(np.arange(3), requests)
    similarity = np.where(position == 0, 0.6 * rng.random(3 * requests), np.where(position == 1, 0.8, 1.0))
    distance = np.where(position == 0, rng.choice([0.0, 1.0, np.inf], 3 * requests), 0.0)
    steps = {
        "task": np.repeat(tasks, 3), "family": np.repeat(family, 3), "position": position, "similarity": similarity,
        "distance": distance, "on_large_path": np.ones(3 * requests, bool), "path_subtasks": np.full(3 * requests, 3), "path_index": position,
        "score_lost": np.where(position == 2, 0.0, rng.choice([0.0, 0.0, 1.0, -1.0], 3 * requests)),
    }  # fmt: skip
    off = {name: column[:3].copy() for name, column in steps.items()} | {"on_large_path": np.zeros(3, bool)}
    off["similarity"] = np.full(3, -1.0)
    return ProfileTables(whole, {name: np.concatenate((steps[name], off[name])) for name in steps})


def test_numbers_are_of_all_llms_path_alone() -> None:
    """Means and shares by hand; each estimate lies within its interval; what lies off the path counts nowhere."""
    requests, subtasks = some_tables()
    first, second, third = by_position(subtasks, 0.7)
    at = {n: subtasks["similarity"][:180][subtasks["position"][:180] == n] for n in range(3)}
    assert [row.subtasks for row in (first, second, third)] == [60, 60, 60]
    assert first.similarity.estimate == pytest.approx(at[0].mean())
    assert first.similarity.lo < first.similarity.estimate < first.similarity.hi
    assert (first.alike.estimate, second.alike.estimate, third.alike.estimate) == (0.0, 1.0, 1.0)
    assert first.alike.hi == proportion_interval(0, 60).hi > 0
    distance = subtasks["distance"][:180][subtasks["position"][:180] == 0]
    assert first.never.estimate == pytest.approx(np.isinf(distance).mean())
    assert first.distance.estimate == pytest.approx(distance[np.isfinite(distance)].mean())
    shares = distances(subtasks)
    assert list(shares) == ["0", "1", "never"]
    assert sum(found.estimate for found in shares.values()) == pytest.approx(1.0)
    counts = subtask_counts(requests)
    for role in ("small", "large"):
        right = requests[f"{role}_subtasks"][requests[f"{role}_score"] == 1]
        assert counts[role].mean.estimate == pytest.approx(right.mean())
        assert sum(found.estimate for found in counts[role].shares.values()) == pytest.approx(1.0)


def test_shares_of_several_subtasks_a_request_are_clustered() -> None:
    """Ten equal subtasks of a request say no more than one."""
    holds, tasks = np.array([True, False, True, False]), np.array(["a", "b", "c", "d"])
    alone, repeated = share(holds, tasks), share(np.repeat(holds, 10), np.repeat(tasks, 10))
    assert alone.estimate == repeated.estimate == 0.5
    assert repeated.hi - repeated.lo >= 0.9 * (alone.hi - alone.lo)
    assert math.isnan(share(holds[:0], tasks[:0]).estimate)


def test_a_loss_nobody_showed_is_not_certain() -> None:
    """Sixty late subtasks that lose nothing: none of so many, so up to a few points either way."""
    late = switched(some_tables().subtasks)["late"]
    assert (late.estimate, late.n) == (0.0, 60)
    assert late.hi == -late.lo == pytest.approx(100 * proportion_interval(0, 60).hi)


def test_thresholds_can_only_take_away() -> None:
    """The share above a threshold falls with it; at the last one only equal outputs are left."""
    similarity = np.array([0.2, 0.5, 1.0, 1.0])
    found = alike_above(similarity, np.array(["a", "b", "c", "d"]), (0.1, 0.3, 0.7, 0.99999))
    assert [row.estimate for row in found] == [1.0, 0.75, 0.5, 0.5]


def test_the_summary_is_plain_json() -> None:
    """Every number with its interval, null where there is none."""
    for tables in (some_tables(), profile_tables(study(), Said(), 0.5)):  # type: ignore[arg-type]
        text = json.dumps(summary(*tables, 0.7), allow_nan=False)
        assert json.loads(text)["by_position"][0]["position"] == 0


# ------------------------------------------------------------------------------------------------------------- figures


def test_figures_show_the_numbers() -> None:
    """Bars and curves stand at the estimates, in points and percent."""
    requests, subtasks = some_tables()
    bars = [bar.get_height() for bar in draw_switched(subtasks).axes[0].patches if isinstance(bar, Rectangle)]
    assert bars == pytest.approx([found.estimate for found in switched(subtasks).values()])
    whole, means, never = draw_distance(subtasks, 0.7).axes
    heights = [bar.get_height() for bar in whole.patches if isinstance(bar, Rectangle)]
    assert heights == pytest.approx([100 * found.estimate for found in distances(subtasks).values()])
    rows = by_position(subtasks, 0.7)
    for axes, expected in ((means, [row.distance for row in rows]), (never, [row.never for row in rows])):
        (dots,) = [line for line in axes.get_lines() if line.get_marker() in ("D", "s")]
        factor = 100 if axes is never else 1
        assert np.asarray(dots.get_ydata()) == pytest.approx([factor * found.estimate for found in expected])
    curves = {str(line.get_label()): line for line in draw_alike(requests, subtasks, 0.7).axes[0].get_lines()}
    assert {"final outputs, family hops", "final outputs, family sums"} < set(curves)
    x, y = curves["final outputs of a request"].get_data()
    assert np.asarray(y)[20] == pytest.approx(100 * (requests["similarity"] > np.asarray(x)[20]).mean())


@pytest.mark.parametrize("requests", [1, 2, 60])
def test_figures_of_any_size_fit_and_do_not_warn(tmp_path: Path, requests: int) -> None:
    """Titles, labels and legends stay inside the figure and clear of each other, also for one request."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, draw in profile_figures(*some_tables(requests), 0.7).items():
            figure = draw()
            assert save_figure(figure, tmp_path, name).startswith(b"\x89PNG"), name
            assert figure.get_suptitle(), name
            boxes = [axes.get_tightbbox() for axes in figure.axes]
            frame = figure.bbox
            for number, box in enumerate(boxes):
                assert box is not None
                assert min(box.x0, box.y0) >= -1, name
                assert box.x1 <= frame.x1 + 1, name
                assert not any(box.overlaps(other) for other in boxes[number + 1 :] if other is not None), name
                for legend in figure.legends:
                    assert box.y0 >= legend.get_window_extent().y1 - 1, name
            for axes in figure.axes:
                assert axes.get_xlabel(), name
                assert re.search(r"\(.*(%|points|1 = equal|subtasks|cosine).*\)", axes.get_ylabel()), axes.get_ylabel()


# ------------------------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a profile of twelve requests, made by the command."""
    out = tmp_path_factory.mktemp("profiles")
    result = command("profile", *few(), "--out", out)
    assert "12 requests profiled" in result.stdout
    assert "made before" not in result.stdout
    return out


def few() -> list[str | Path]:
    """A scenario whose training recording holds a thousand requests, twelve of which are profiled."""
    return [ROOT / "scenarios/hera.yaml", "--requests", "12"]


def test_the_command_writes_tables_figures_and_a_summary(profiled: Path) -> None:
    """Under an id, with `latest` pointing there, nothing half-written, and the manifest naming what it depends on."""
    folder = profiled / "hera" / "latest"
    names = {path.name for path in folder.resolve().iterdir()}
    assert names == {
        "figures",
        "manifest.json",
        "requests.parquet",
        "scenario.yaml",
        "subtasks.parquet",
        "summary.json",
    }
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert {"switched.png", "subtask-counts.svg", "s-l-distance.png", "alike-over-thresholds.svg"} < figures
    manifest = json.loads((folder / "manifest.json").read_text())
    assert folder.resolve().name == manifest["profile_id"]
    assert "recordings/pair_training.jsonl.gz" in manifest["inputs_sha256"]
    table = read_columns([folder / "requests.parquet"])
    assert json.loads((folder / "summary.json").read_text())["requests"] == len(table["task"]) == 12


def test_the_same_profile_is_not_made_twice(profiled: Path) -> None:
    """The same command reads what is there and shows the same; another threshold is another profile."""
    folder = (profiled / "hera" / "latest").resolve()
    before = (folder / "requests.parquet").stat().st_mtime_ns
    again = command("profile", *few(), "--out", profiled)
    assert "made before and kept" in again.stdout
    assert (folder / "requests.parquet").stat().st_mtime_ns == before
    command("profile", *few(), "--out", profiled, "--threshold", "0.9")
    other = (profiled / "hera" / "latest").resolve()
    assert other != folder
    alike = [json.loads((f / "summary.json").read_text())["final_outputs_alike"]["estimate"] for f in (folder, other)]
    assert alike[1] <= alike[0]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """A file where the folder should be: one message, exit code 2."""
    (tmp_path / "taken").write_text("")
    result = command("profile", *few(), "--out", tmp_path / "taken", code=2)
    assert "taken" in result.stderr
    assert "Choose another --out" in result.stderr


def test_perfect_estimators_count_among_the_oracles() -> None:
    """In reports and figures: nobody can deploy what looks into the recording."""
    loaded = load_scenario(ROOT / "scenarios/hera.yaml", [])
    policies = family_policies(loaded.scenario)
    assert (policies["hera-perfect"], policies["hera-retrieval"], policies["random"]) == (
        "oracle hera",
        "hera",
        "random",
    )
