"""Estimators trained and judged by the command's own functions, on a handful of requests."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from run_sim import app
from sim.estimator_run import Judged, accuracy_table, each_once, evaluate_on, train_on
from sim.loading import LoadedScenario, load_scenario
from sim.policies.features import PACKAGED_ENCODER
from sim.policies.hera.trained import Card, read_card
from sim.policies.hera.training import Plan
from sim.profiling import scenario_study
from tests.conftest import ROOT
from workloads.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SCENARIO = ROOT / "scenarios/hera.yaml"
PLAN = Plan(PACKAGED_ENCODER, "pair/slm", request_epochs=1, distance_epochs=1, decoder_epochs=1, most_distances=40)


def silent(name: str, steps: int) -> Callable[[], None]:
    """No progress bar."""
    del name, steps
    return lambda: None


@pytest.fixture(scope="module")
def loaded() -> LoadedScenario:
    """Eight own requests; the training ones are the shipped recording's."""
    return load_scenario(SCENARIO, ["workload.requests=8"])


@pytest.fixture(scope="module")
def trained(loaded: LoadedScenario, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Card]:
    """On eight requests of one family."""
    folder = tmp_path_factory.mktemp("estimators") / "hops"
    return folder, train_on(loaded, 0.95, PLAN, 8, ["hops"], folder, silent)


@pytest.fixture(scope="module")
def judged(loaded: LoadedScenario, trained: tuple[Path, Card]) -> list[Judged]:
    """With fine-tuning after every three."""
    return list(evaluate_on(loaded, trained[0], 3, silent))


def test_the_card_tells_what_was_learned(trained: tuple[Path, Card]) -> None:
    """One family, eight requests, and the same card on file."""
    folder, card = trained
    assert (card.families, card.requests, card.threshold) == (("hops",), 8, 0.95)
    assert card.prediction_s > 0
    assert read_card(folder) == card


def test_every_kind_of_requests_is_judged(loaded: LoadedScenario, judged: list[Judged]) -> None:
    """What was learned, unseen requests of the same family, another family, and later ones with and without learning on."""
    families = [task.family for task in each_once(scenario_study(loaded)).tasks]
    counts = {row.requests: row.of_them for row in judged[:3]}
    assert counts == {"trained on": 8, "unseen": families.count("hops"), "unseen family": families.count("sums")}
    later = judged[3:]
    assert later
    assert {row.requests for row in later} == {"later ones", "later ones, fine-tuned"}
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


def test_a_family_nobody_recorded_is_refused(loaded: LoadedScenario, tmp_path: Path) -> None:
    """With the nearest name."""
    with pytest.raises(InputError, match=r"'hop'.*no training request") as refused:
        train_on(loaded, 0.95, PLAN, 8, ["hop"], tmp_path / "x", silent)
    assert "hops" in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_judging_what_is_not_there_is_one_message(tmp_path: Path) -> None:
    """Exit code 2."""
    result = CliRunner().invoke(app, ["estimators", str(SCENARIO), "--judge", "--out", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "no trained estimators" in result.output
