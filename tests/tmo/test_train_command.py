"""`run_sim.py train` and the experiments with learners, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import run_sim
from sim.figures.learning import draw_matrix
from sim.tmo.card import CARD, WEIGHTS
from sim.tmo.experiments import Judged, alike, difference, kept, mixed
from tests.tmo.dialogue_world import WORLD

TINY = ("--steps", "512", "--episodes", "20", "--reward", "association=0")


def command(*arguments: str | Path, code: int = 0) -> Result:
    """Run the command line in this process and expect this exit code."""
    asked = [str(argument) for argument in arguments]
    result = CliRunner(env={"COLUMNS": "120", "TERM": "dumb"}).invoke(run_sim.app, asked, prog_name="run_sim.py")
    assert result.exit_code == code, result.stdout + result.stderr + repr(result.exception)
    return result


@pytest.fixture(name="world")
def fixture_world(tmp_path: Path) -> Path:
    """A scenario file with a sweep over two networks."""
    path = tmp_path / "scenario.yaml"
    path.write_text(WORLD + "sweep: {links.0.link: [wired, 3g]}\n")
    return path


def test_a_training_ends_with_a_policy_that_runs(world: Path, tmp_path: Path) -> None:
    """Trained on both networks side by side, judged on unseen requests of both, and run by name from another scenario."""
    out = tmp_path / "out"
    said = command("train", world, "--out", out, "--budget", "total_usd=0.004:0.01", "--keep", "mean", *TINY)
    assert "20 unseen episodes" in said.stdout
    assert f"policy: {out}" in said.stdout.replace("\n", "")
    assert sorted(path.name for path in out.iterdir()) == [CARD, WEIGHTS]
    card = json.loads((out / CARD).read_text())
    assert card["reward"]["association"] == card["reward"]["latency"] == 0.0
    assert card["view"]["budgets"] == [["total_usd", 0.004, 0.01]]
    runs = tmp_path / "runs.yaml"
    runs.write_text(WORLD.replace("[all-slm]", f"[{{policy: tmo, weights: {out}, budget: [0.005, 0.01]}}]"))
    assert "100% modelled" in command("run", runs, "--out", tmp_path / "results", "--workers", "1").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--learner", "sarsa"), "there is no 'sarsa'"),
        (("--keep", "always"), "there is no 'always'"),
        (("--parts", "kind,weather"), "there is no 'weather'"),
        (("--budget", "speed=3"), "there is no 'speed'"),
        (("--budget", "latency_s=3", "--budget", "latency_s=4"), "an item occurs twice"),
        (("--budget", "latency_s=0.01"), "cannot be kept: the cheapest action"),
        (("--reward", "karma=1"), "there is no 'karma'"),
        (("--tolerance", "2"), "between 0 and 1"),
        (("--most", "3000", "--set", "workload.tasks.modalities=16"), "16 modalities make"),
    ],
)
def test_what_cannot_be_trained_is_one_message(
    world: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Exit code 2, and nothing is written."""
    said = command("train", world, "--out", tmp_path / "out", *arguments, code=2)
    assert message in " ".join(said.stderr.split())
    assert not (tmp_path / "out").exists()


def test_differences_are_paired() -> None:
    """The same requests under two policies: what they share drops out of the interval."""
    shared = np.random.default_rng(0).normal(0, 10, 400)
    first, second = Judged(shared + 1.0, shared), Judged(shared, shared)
    mean, half_width = difference(first, second)
    assert mean == pytest.approx(1.0)
    assert half_width == pytest.approx(0.0, abs=1e-9)


def test_rivals_are_tuned_to_what_is_spent() -> None:
    """The best mix of two for exactly this cost, on the hull of all; beyond the dearest that one, below the cheapest that one."""
    points = ((1.0, 1.0), (1.2, 2.0), (3.0, 3.0), (2.0, 9.0))
    found = [Judged(np.full(3, reward), np.full(3, cost)) for reward, cost in points]
    half = mixed(found, 2.0)
    assert (half.reward.mean(), half.cost.mean()) == (
        pytest.approx(2.0),
        pytest.approx(2.0),
    )  # of the first and the third
    assert mixed(found, 20.0) is found[2]
    assert mixed(found, 0.5) is found[0]


def test_a_row_counts_excess_over_all_requests() -> None:
    """Two of four requests over, by 50 % and 100 % of the budget: a mean excess of 37.5 %."""
    row = Judged(np.ones(4), np.array([1.0, 2.0, 3.0, 4.0])).row("x", 2.0)
    assert (row["over"], row["excess"], row["cost"]) == (0.5, 0.375, 2.5)


def test_policies_are_compared_where_both_break_the_budget_equally_often() -> None:
    """The first breaks it in half of the requests: it does in half of them what breaks it never, so both earn 2 and 1.5 at a quarter."""
    bold = Judged(np.array([3.0, 3.0, 3.0, 3.0]), np.array([9.0, 9.0, 1.0, 1.0]))
    cautious = Judged(np.full(4, 1.5), np.array([9.0, 1.0, 1.0, 1.0]))
    plain = Judged(np.ones(4), np.ones(4))
    first, second = alike(bold, cautious, plain, 5.0, 0.02)
    assert first.cost.mean() == second.cost.mean() == 0.25
    assert (first.reward.mean(), second.reward.mean()) == (2.0, 1.5)
    assert alike(cautious, bold, plain, 5.0, 0.02)[1].reward.mean() == 2.0
    assert alike(bold, cautious, plain, 5.0, 0.5)[0].reward is bold.reward  # both keep it
    assert kept(bold, 5.0).reward.tolist() == [0.0, 0.0, 3.0, 3.0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_policy_is_tried_on_every_network(world: Path, tmp_path: Path) -> None:
    """Those trained on all come first, under each seed, and are compared on each; nobody is trained on what is unseen; table and figure."""
    out, unseen = tmp_path / "out", tmp_path / "unseen.yaml"
    unseen.write_text(WORLD.replace("link: wifi", "link: 5g"))
    options = ("--out", out, "--steps", "512", "--budget", "20", "--seed", "1", "--seed", "2", "--unseen", unseen)
    said = command("tmo", "networks", world, *options)
    rows = json.loads((out / "networks.json").read_text())
    policies = [("all, blind", 1), ("all", 1), ("all, blind", 2), ("all", 2), ("link=wired", 1), ("link=3g", 1)]
    assert [(row["trained"], row["seed"]) for row in rows] == [policy for policy in policies for _ in range(3)]
    assert [(row["tested"], row["unseen"]) for row in rows[:3]] == [
        ("link=wired", False),
        ("link=3g", False),
        ("base", True),
    ]
    assert [len(row["over_blind"]) for row in rows if row["trained"] == "all"] == [2] * 6
    assert "Reward where requests may take 20 s" in said.stdout
    assert (out / "networks.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_way_to_keep_a_budget_is_tried(world: Path, tmp_path: Path) -> None:
    """And the optimum, whose tolerance holds exactly; only what learns a multiplier has one."""
    out = tmp_path / "out"
    asked = ("--out", out, "--steps", "1536", "--budget", "0.006")
    command("tmo", "budgets", world, *asked, "--learner", "dqn")
    rows = json.loads((out / "budgets.json").read_text())
    assert [(row["policy"], row["keep"]) for row in rows[1:]] == [
        ("ppo", "chance"), ("ppo", "zero"), ("ppo", "none"), ("dqn", "chance")
    ]  # fmt: skip
    assert rows[0]["over"] <= 0.02
    assert [row["multiplier"] > 0.0 for row in rows[1:4]] == [True, False, False]
    assert (out / "budgets.png").exists()
    command("tmo", "budgets", world, *asked, "--keep", "chance", "--seed", "1", "--seed", "2")
    again = json.loads((out / "budgets.json").read_text())
    assert again[:2] == rows[:2]
    assert [(row["keep"], row["seed"]) for row in again[1:]] == [("chance", 1), ("chance", 2)]
    assert len(list((out / "policies").glob("ppo-chance-*"))) == 2


def test_an_unknown_way_to_keep_a_budget_is_one_message(tmp_path: Path) -> None:
    """Before anything is trained."""
    said = command("tmo", "budgets", "--out", tmp_path / "out", "--keep", "chanse", code=2)
    assert "there is no 'chanse'" in said.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--weights", "nowhere"), "no trained policy"), (("--budget", "1.0"), "trained for 0.003 to 0.012")],
)
def test_regret_looks_at_the_policy_before_anything_runs(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    """Rivals take minutes."""
    said = command("tmo", "regret", "--out", tmp_path / "out", *arguments, code=2)
    assert message in said.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_matrix_shows_every_training_and_where_unseen_links_begin() -> None:
    """A row for each policy and seed, a column for each network, and a line before those that nobody was trained on."""
    rows = [
        {"trained": name, "seed": seed, "tested": tested, "unseen": tested == "bus", "reward": 2.0, "over": 0.1 * seed}
        for name, seed in (("all", 1), ("all", 2), ("link=3g", 1))
        for tested in ("link=3g", "link=5g", "bus")
    ]
    axes = draw_matrix(rows).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["all", "all, seed 2", "3g"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["3g", "5g", "bus"]
    assert [line.get_xdata()[0] for line in axes.lines] == [1.5]  # type: ignore[index]
