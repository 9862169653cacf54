"""Estimators trained and judged by the command's own functions, on a handful of requests."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from run_sim import app
from sim.estimator_run import Judged, accuracy_table, each_once, evaluate_on, train_on
from sim.loading import load_scenario
from sim.policies.base import Study
from sim.policies.hera.trained import Card, read_card
from sim.policies.hera.training import Plan
from sim.profiling import scenario_study
from tests.conftest import ROOT
from tests.serve.tiny_models import tiny_encoder
from workloads.errors import InputError

pytestmark = pytest.mark.slow
SCENARIO = ROOT / "scenarios/hera.yaml"


def silent(name: str, steps: int) -> Callable[[], None]:
    """No progress bar."""
    del name, steps
    return lambda: None


@pytest.fixture(scope="module")
def study() -> Study:
    """Forty requests to judge on, twenty of each family, and those to learn from, of the shipped recordings."""
    whole = each_once(scenario_study(load_scenario(SCENARIO, [])))
    of_each = [[task for task in whole.tasks if task.family == name][:20] for name in ("hops", "sums")]
    return whole._replace(tasks=[*of_each[0], *of_each[1]])


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Little, on a tiny encoder."""
    encoder = tiny_encoder(tmp_path_factory.mktemp("encoder"))
    return Plan(str(encoder), "pair/slm", request_epochs=1, distance_epochs=1, decoder_epochs=1, most_distances=40)


@pytest.fixture(scope="module")
def trained(study: Study, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Card]:
    """On eight requests of one family."""
    folder = tmp_path_factory.mktemp("estimators") / "hops"
    return folder, train_on(study, 0.95, plan, 8, ["hops"], folder, silent)


@pytest.fixture(scope="module")
def judged(study: Study, trained: tuple[Path, Card]) -> list[Judged]:
    """With fine-tuning after every ten of the twenty that are of the family."""
    return list(evaluate_on(study, trained[0], 10, silent))


def test_the_card_tells_what_was_learned(trained: tuple[Path, Card]) -> None:
    """One family, eight requests, and the same card on file."""
    folder, card = trained
    assert (card.families, card.requests, card.threshold) == (("hops",), 8, 0.95)
    assert card.prediction_s > 0
    assert read_card(folder) == card


def test_every_kind_of_requests_is_judged(judged: list[Judged]) -> None:
    """What was learned, unseen requests of the same family, another family, and later ones with and without learning on."""
    counts = {row.requests: row.of_them for row in judged[:3]}
    assert counts == {"trained on": 8, "unseen": 20, "unseen family": 20}
    assert [(row.requests, row.of_them) for row in judged[3:]] == [("later ones", 10), ("later ones, fine-tuned", 10)]
    for row in judged:
        assert all(0 <= share <= 1 or math.isnan(share) for share in row.accuracies)


def test_learning_on_changes_what_is_predicted(judged: list[Judged]) -> None:
    """On the same requests, from other weights; judging leaves the folder as it was."""
    later = [row.accuracies for row in judged[3:]]
    assert any(before != after for before, after in zip(later[::2], later[1::2], strict=True))


def test_the_table_has_a_row_for_each(judged: list[Judged], trained: tuple[Path, Card]) -> None:
    """Shares in per cent."""
    table = accuracy_table(trained[1], judged)
    assert table.row_count == len(judged)


def test_a_family_nobody_recorded_is_refused(study: Study, plan: Plan, tmp_path: Path) -> None:
    """With the nearest name."""
    with pytest.raises(InputError, match=r"'hop'.*no training request") as refused:
        train_on(study, 0.95, plan, 8, ["hop"], tmp_path / "x", silent)
    assert "hops" in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_judging_what_is_not_there_is_one_message(tmp_path: Path) -> None:
    """Exit code 2."""
    result = CliRunner().invoke(app, ["estimators", str(SCENARIO), "--judge", "--out", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "no trained estimators" in result.output
