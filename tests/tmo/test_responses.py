from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sim.tmo.logged import read_m4a1
from sim.tmo.responses import MODELS, NearestNeighbours, TaskActionMeans, judged_models, out_of_fold
from tests.tmo.made_up_log import LAYOUT, made_up_log, questions, replaced, truth

Find = Callable[[str], Path]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_speaks_the_same_language(name: str) -> None:
    """A finite mean and a positive standard deviation for every turn and action, also for kinds of action nobody took."""
    log = made_up_log(30, np.random.default_rng(0), truth())
    fitted = MODELS[name]().fit(log.rows(log.action != 4))
    mean, std = fitted.predict(log.features, np.full(len(log), 4))
    assert mean.shape == std.shape == (len(log),)
    assert np.isfinite(mean).all()
    assert (std >= 0).all()
    assert std.max() > 0


@pytest.mark.parametrize("name", ["means", "ridge", "bayesian"])
def test_models_find_the_truth_in_a_large_log(name: str) -> None:
    """With 4,000 dialogues predictions stand at what every action is worth, as far as a line can, and their spread is the noise's."""
    rng, mean = np.random.default_rng(1), truth()
    fitted = MODELS[name]().fit(made_up_log(4_000, rng, mean))
    new = made_up_log(200, rng, mean)
    action = rng.integers(0, LAYOUT.actions, len(new))
    predicted, std = fitted.predict(new.features, action)
    assert np.sqrt(np.mean((predicted - mean(new.features, action)) ** 2)) < (0.03 if name == "means" else 0.12)
    assert np.abs(std - 0.4).max() < 0.03


def test_neighbours_are_weighted_by_distance() -> None:
    """Five equal turns at distance 0 outweigh everything; without any, near ones count more than far ones."""
    asked = questions(8, np.random.default_rng(2))
    turns = asked.rows(np.arange(7))
    features = np.zeros((7, LAYOUT.history + 2))
    features[5:, 0], features[5:, 1] = 3.0, [0.0, 4.0]
    log = replaced(turns, features, np.zeros(7, int), np.array([1.0, 1, 1, 1, 1, 7, 9]))
    fitted = NearestNeighbours().fit(log)
    assert fitted.predict(features[:1], np.array([0]))[0] == pytest.approx([1.0])
    two = NearestNeighbours(2).fit(log.rows(np.array([5, 6])))
    assert two.predict(features[:1], np.array([0]))[0] == pytest.approx([(7 / 3 + 9 / 5) / (1 / 3 + 1 / 5)], rel=1e-5)


def test_cells_nobody_tried_stand_at_their_surroundings() -> None:
    """An empty cell is the mean of its kind's cloud turns drawn towards the cloud's; one with many turns is its own mean."""
    log = made_up_log(3_000, np.random.default_rng(3), truth())
    log = log.rows(~((log.kind == 1) & (log.action == 4)))
    model = TaskActionMeans(10.0).fit(log)
    rows = np.flatnonzero(log.kind == 1)[:1]
    around = log.response[(log.kind == 1) & (log.action > 0)].mean()
    assert model.predict(log.features[rows], np.array([4]))[0] == pytest.approx([around], abs=0.02)
    own = log.response[(log.kind == 1) & (log.action == 2)].mean()
    assert model.predict(log.features[rows], np.array([2]))[0] == pytest.approx([own], abs=0.02)


def test_no_turn_is_predicted_from_its_own_dialogue() -> None:
    """Responses that are constant within a dialogue and random between them cannot be predicted out of fold."""
    log = made_up_log(60, np.random.default_rng(4), truth())
    drawn = np.random.default_rng(5).normal(0, 1, 60)[log.dialogue]
    copied = replaced(log, log.features, log.action, drawn)
    mean, _ = out_of_fold(NearestNeighbours, copied, folds=60)
    assert abs(np.corrcoef(mean, drawn)[0, 1]) < 0.3
    table = {found.name: found.r2.estimate for found in judged_models(copied)}
    assert max(table.values()) < 0.05


def test_on_the_real_file_the_authors_table_is_worse_than_a_constant(shared_data: Find) -> None:
    """Held out, their neighbours have a negative R2; shrunk means of kind and action have a positive one."""
    found = {model.name: model for model in judged_models(read_m4a1(shared_data("m4a1/M4A1.json")).zeroed())}
    assert found["constant"].r2.estimate == 0.0
    assert found["neighbours"].r2.hi < 0.0
    for name in ("means", "ridge", "bayesian"):
        assert found[name].r2.lo > 0.0
    assert 0.9 < found["bayesian"].inside < 1.0
