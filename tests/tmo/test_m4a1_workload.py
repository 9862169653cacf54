"""M4A1 dialogues as a scenario's workload: who is asked what, what an answer is worth, and what a wrong file is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.policies import POLICIES
from sim.policies.base import RoutingPolicy
from sim.records import Records
from sim.scenario import Scenario
from sim.tmo.m4a1_backend import m4a1_split
from sim.tmo.responses import MODELS
from sim.tmo.turn_policies import fixed, walk
from sim.workload import build_workload, check_files
from tests.helpers import NOWHERE, run_built, scenario
from tests.tmo.test_logged import dialogue, written
from workloads.dialogue import turns_of
from workloads.errors import InputError

Find = Callable[[str], Path]
TIERS = {
    "local": {"role": "slm", "model": "llama-3.2-3b-int4", "device": "jetson-orin-nx"},
    "cloud": {"role": "llm", "model": "gpt-4o", "endpoint": "gpt-4o-class"},
}


def world(path: Path, requests: int = 20, **tasks: Any) -> Scenario:
    """The dialogues of a file, one after another."""
    arrivals = {"kind": "constant", "rate_per_s": 0.01}
    workload = {
        "tasks": {"kind": "m4a1", "path": str(path), **tasks}, "requests": requests, "arrivals": arrivals, "shuffle": False,
    }  # fmt: skip
    return scenario(TIERS, links=({"between": ("home", "cloud"), "link": "wifi"},), workload=workload)


def policy(name: str, **options: Any) -> RoutingPolicy:
    """A policy of the table."""
    return POLICIES[name](POLICIES[name].Options(**options))


def ran(scenario_: Scenario, name: str, **options: Any) -> Records:
    """A run from a file, under one policy."""
    return run_built(scenario_, policy(name, **options))


@pytest.mark.parametrize("responses", ["means", "ridge", "neighbours"])
@pytest.mark.parametrize("action", [0, 1, 6, 8])
def test_a_turn_is_worth_what_the_model_expects_after_the_policys_own_turns(
    responses: str, action: int, shared_data: Find
) -> None:
    """The simulated score of every turn is the model's for the state that the policy's own earlier actions make."""
    path = shared_data("m4a1/M4A1.json")
    records = ran(world(path, responses=responses), "tmo-fixed", action=action)
    turns = m4a1_split(path, "test").turns
    walked = walk(turns, fixed(turns.layout, action), np.random.default_rng(0))
    expected, _ = MODELS[responses]().fit(turns).predict(walked.features, walked.action)
    order = np.lexsort((records.subtasks["position"], records.subtasks["request"]))
    assert len(np.unique(turns.dialogue)) == 20
    by_dialogue = np.argsort(turns.dialogue, kind="stable")
    assert records.subtasks["score"][order] == pytest.approx(np.clip(expected[by_dialogue], 0, 1), abs=1e-12)
    assert set(records.requests["provenance"]) == {"modelled"}
    assert set(records.requests["task_family"]) == {"m4a1"}


def test_images_travel_and_are_paid_for(shared_data: Find) -> None:
    """Each of the chosen images adds the stated bytes and tokens; none of them belongs to the file."""
    path = shared_data("m4a1/M4A1.json")
    alone = ran(world(path), "tmo-fixed", action=1).subtasks
    two = ran(world(path, image_bytes=1000, image_tokens=10), "tmo-fixed", action=5).subtasks
    default = ran(world(path), "tmo-fixed", action=5).subtasks
    assert (two["upload_bytes"] - alone["upload_bytes"] == 2000).all()
    assert (two["prompt_tokens"] - alone["prompt_tokens"] == 20).all()
    assert (default["upload_bytes"] - alone["upload_bytes"] == 2 * 368_000).all()
    assert (default["prompt_tokens"] - alone["prompt_tokens"] == 2 * 765).all()


def test_nobody_learns_from_the_dialogues_that_are_run(shared_data: Find) -> None:
    """The other split is offered for learning, answered by a model of its own; with all dialogues there is none."""
    path = shared_data("m4a1/M4A1.json")
    built = build_workload(world(path), 1, NOWHERE)
    assert built.training is not None
    assert (len(built.tasks), len(built.training.tasks)) == (20, 80)
    assert {task.id for task in built.tasks}.isdisjoint(task.id for task in built.training.tasks)
    assert {task.prompt for task in built.tasks} == {turns_of(task)[0].question for task in built.tasks}
    assert build_workload(world(path, split="all"), 1, NOWHERE).training is None
    learned = ran(world(path), "tmo-greedy").subtasks["score"]
    assert np.isfinite(learned).all()


def test_policies_that_learn_from_a_split_do_worse_on_the_other(shared_data: Find) -> None:
    """Greedy on the table of the dialogues it is judged by, against greedy on other dialogues' table: what overfitting is worth."""
    path = shared_data("m4a1/M4A1.json")
    scores = {}
    for split in ("test", "train"):
        turns = m4a1_split(path, split).turns
        scores[split] = MODELS["neighbours"]().fit(turns)
    test = m4a1_split(path, "test").turns
    n, actions = len(test), test.layout.actions
    both = {
        split: model.predict(np.repeat(test.features, actions, 0), np.tile(np.arange(actions), n))[0].reshape(
            n, actions
        )
        for split, model in scores.items()
    }
    own, other = (both["test"][np.arange(n), both[split].argmax(axis=1)].mean() for split in ("test", "train"))
    assert own > other + 0.1


def test_scores_are_scaled_and_sorry_counts_as_asked(tmp_path: Path) -> None:
    """Score / score_scale, at most 1; a "sorry" answer is 0 unless told otherwise; noise keeps scores within [0, 1]."""
    turns = [(1, None, "fine"), (0, None, "I'm sorry")]
    path = written(tmp_path / "m.json", *(dialogue(number, *turns) for number in range(10)))
    exact = m4a1_split(path, "all", score_scale=1.0).turns
    assert exact.response.tolist() == [0.5, 0.0] * 10
    assert m4a1_split(path, "all", sorry_is_zero=False).turns.response.tolist() == [0.25, 0.75] * 10
    assert m4a1_split(path, "all", score_scale=1.0, sorry_is_zero=False).turns.response.tolist() == [0.5, 1.0] * 10
    local = ran(world(path, split="all", score_scale=1.0), "all-slm").subtasks
    assert local["score"][local["position"] == 1].max() < 0.1
    quiet, loud = (ran(world(path, 10, split="all", noise=noise), "all-llm").subtasks["score"] for noise in (0.0, 1.0))
    assert quiet.std() < loud.std()
    assert 0.0 <= loud.min() <= loud.max() <= 1.0
    assert loud.mean() == pytest.approx(quiet.mean(), abs=0.1)


@pytest.mark.parametrize("images", [1, 2, 4])
def test_other_numbers_of_images(images: int, tmp_path: Path) -> None:
    """A file with one, two or four images a dialogue runs under every fixed action."""
    turns = [(1, [0], "a"), (0, None, "b"), (1, list(range(images)), "c")]
    path = written(tmp_path / "m.json", *(dialogue(number, *turns, images=images) for number in range(10)))
    for action in range(1 + 2**images):
        records = ran(world(path, 2), "tmo-fixed", action=action)
        assert np.isfinite(records.subtasks["score"]).all()


def broken(**changed: Any) -> list[dict[str, Any]]:
    """A good file of six dialogues whose last one is changed."""
    good = [dialogue(number, (1, [0], "a"), (0, None, "b")) for number in range(6)]
    good[5] = good[5] | changed
    return good


FAULTS = [
    ("an empty dialogue", broken(interactions=[], association_score=[]), "the dialogue is empty"),
    ("a field missing", [{k: v for k, v in broken()[0].items() if k != "association_score"}], "'association_score' is missing"),
    ("scores of the wrong length", broken(association_score=[[0.1, 0.2, 0.3]]), "1 entries"),
    ("one score too few", broken(association_score=[[0.1, 0.2, 0.3], [0.1, 0.2]]), "2 entries"),
    ("a score beyond 1", broken(association_score=[[0.1, 0.2, 0.3], [0.1, 0.2, 1.5]]), "an association score is 1.5"),
    ("other images", broken(image_paths=["a", "b"], association_score=[[0.1, 0.2]] * 2), "has 2 images, dialogue 0 has 3"),
    ("too few dialogues", broken()[:3], "3 cannot be split in 5 parts"),
    ("no dialogues", [], "instead of dialogues"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "problem"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_a_malformed_file_is_one_message(document: list[Any], problem: str, tmp_path: Path) -> None:
    """Validation names the fault before anything runs."""
    path = tmp_path / "m.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(InputError, match=problem) as raised:
        check_files(world(path), NOWHERE)
    assert len(str(raised.value).splitlines()) == 1


def test_not_a_number_is_no_score(tmp_path: Path) -> None:
    """NaN is no JSON number: the message says so and where."""
    text = json.dumps(broken()).replace('"score": 0.5', '"score": NaN', 1)
    path = tmp_path / "m.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="NaN"):
        check_files(world(path), NOWHERE)
