from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from run_sim import app
from sim.figures.judge import draw_judged
from sim.statistics import Interval
from sim.tmo.authors import Evaluated
from sim.tmo.logged import read_m4a1
from sim.tmo.m4a1_experiment import Row, experiment, means
from sim.tmo.m4a1_tables import PUBLISHED, judgement_rows, write_rows
from sim.tmo.off_policy import Judged

Find = Callable[[str], Path]
QUICK = ("--steps", "1000", "--learner", "DQN")


def run(*arguments: str) -> str:
    """The command's output; it must succeed."""
    found = CliRunner().invoke(app, ["tmo", *arguments])
    assert found.exit_code == 0, found.output
    return found.output


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a JSON result; those of the CSV are the same but for their text."""
    rows: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    with (folder / f"{name}.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [list(line) for line in lines] == [list(row) for row in rows]
    return rows


def kept(folder: Path) -> dict[str, int]:
    """Trained policies and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "policies").iterdir()}


@pytest.mark.slow
def test_the_authors_command_reproduces_and_goes_on(shared_data: Find, tmp_path: Path) -> None:
    """Local's reward is that of the authors' code on their splits; a second run with another seed more trains only that one."""
    data = str(shared_data("m4a1/M4A1.json"))
    output = run("authors", "--data", data, "--out", str(tmp_path), "--seeds", "1", *QUICK)
    (folder,) = (tmp_path / "m4a1").iterdir()
    assert str(folder) in output.replace("\n", "")
    first = kept(folder)
    assert [name.partition("-seed")[0] for name in first] == ["DQN"]
    run("authors", "--data", data, "--out", str(tmp_path), "--seeds", "3", *QUICK)
    again = kept(folder)
    assert len(again) == 3
    assert {name: again[name] for name in first} == first
    summary = {row["policy"]: row for row in table(folder, "authors_summary")}
    assert summary["local"]["reward"] == pytest.approx(0.8686, abs=5e-5)
    assert summary["random"]["reward"] == pytest.approx(0.793, abs=0.03)
    assert summary["cloud"]["reward"] == pytest.approx(0.843, abs=0.03)
    assert summary["greedy"]["their_reward"] == 1.279
    assert summary["cloud 0"]["their_reward"] is None
    assert {row["split"] for row in table(folder, "authors")} == {"seed1", "seed2", "seed3"}


@pytest.mark.slow
def test_the_judge_command_says_what_is_not_known(shared_data: Find, tmp_path: Path) -> None:
    """Values with intervals for every policy on all 352 turns, the figure, and a warning for what the log cannot tell."""
    data = str(shared_data("m4a1/M4A1.json"))
    output = run("judge", "--data", data, "--out", str(tmp_path), "--resamples", "20", *QUICK)
    (folder,) = (tmp_path / "m4a1").iterdir()
    rows = {(row["policy"], row["grade"]): row for row in table(folder, "judge")}
    local, greedy = rows["local", "sorry is 0"], rows["greedy", "sorry is 0"]
    assert local["turns"] == 352
    assert local["advantage"] == 0.0
    assert local["warning"] == ""
    assert local["doubly_robust"] == pytest.approx(0.66, abs=0.03)
    assert rows["local", "as graded"]["doubly_robust"] > local["doubly_robust"] + 0.1
    assert "no support" in greedy["warning"]
    assert "effective turns" in greedy["warning"]
    assert "The log cannot tell what these are worth" in output
    assert greedy["doubly_robust_lo"] < greedy["doubly_robust"] < greedy["doubly_robust_hi"]
    assert {row["model"] for row in table(folder, "models")} >= {"neighbours", "means", "bayesian"}
    assert (folder / "judge.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--data", "nowhere.json"), "there is no such file"),
        (("--network", "3g"), "'3g' is not among the authors'"),
        (("--device", "TX2"), "Jetson TX2"),
        (("--steps", "10"), "10 train nothing"),
        (("--learner", "SAC"), "there is no 'SAC'"),
    ],
)
def test_wrong_arguments_are_one_message(
    arguments: tuple[str, ...], problem: str, shared_data: Find, tmp_path: Path
) -> None:
    """Exit code 2, one message, nothing written."""
    data = ("--data", str(shared_data("m4a1/M4A1.json"))) if arguments[0] != "--data" else ()
    for command in ("authors", "judge"):
        found = CliRunner().invoke(app, ["tmo", command, *data, *arguments, "--out", str(tmp_path)])
        assert found.exit_code == 2
        assert problem in found.output
        assert "Traceback" not in found.output
    assert not list(tmp_path.iterdir())


def test_the_published_figures_are_those_of_the_paper_notes() -> None:
    """Nine policies of the authors' table and two more yardsticks."""
    assert len(PUBLISHED) == 11
    assert PUBLISHED["RC-A2C"] == (1.123, 8.0, 11.6, 1.006)


def test_splits_of_the_experiment(shared_data: Find, tmp_path: Path) -> None:
    """The authors' splits are seeds from 1; folds hold every dialogue out once; "sorry" counts 0 in both."""
    trial = experiment(shared_data("m4a1/M4A1.json"), tmp_path, "Jetson TX2", "wired", 30_000)
    assert [split.name for split in trial.splits(2, authors=True)] == ["seed1", "seed2"]
    folds = trial.splits(5, authors=False)
    assert np.concatenate([split.test.dialogues for split in folds]).size == 100
    assert all((split.test.response[split.test.refused] == 0).all() for split in folds)
    assert (trial.turns.response[trial.turns.refused] > 0).any()
    assert len(read_m4a1(shared_data("m4a1/M4A1.json"))) == sum(len(split.test) for split in folds)


def test_what_is_undefined_is_empty(tmp_path: Path) -> None:
    """NaN becomes null in JSON and an empty field in CSV; the figure is drawn without it."""
    nothing, one = Interval(float("nan"), float("nan"), float("nan"), 3), Interval(0.5, 0.4, 0.6, 3)
    rows = judgement_rows({"local": Judged(one, nothing, one, one, 40.0, 60, 0.0)}, "sorry is 0")
    write_rows(tmp_path, "judge", rows)
    (row,) = table(tmp_path, "judge")
    assert row["weighted"] is None
    assert row["direct_hi"] == 0.6
    assert draw_judged(rows, {"local": 0.9}).axes[0].get_yticklabels()[0].get_text() == "local"


def test_means_over_splits() -> None:
    """Means by policy and judge, and the spread of the reward; one split has no spread."""
    rows = [Row("a", str(i), judge, Evaluated(*[float(i)] * 7)) for i in (1, 3) for judge in ("own", "held_out")]
    mean, spread = means(rows, "own")["a"]
    assert mean == Evaluated(*[2.0] * 7)
    assert spread == pytest.approx(2**0.5)
    assert np.isnan(means(rows[:1], "own")["a"][1])
