"""HERA's trained estimators: trained for real on a few requests of the shipped recording, saved, loaded, refused where they do not fit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sim.loading import load_scenario
from sim.policies.base import Study
from sim.policies.features import PACKAGED_ENCODER
from sim.policies.hera.outlook import ROLES
from sim.policies.hera.policy import Hera, HeraOptions
from sim.policies.hera.predictions import as_steps, with_goal
from sim.policies.hera.profile import Profile, profile_of
from sim.policies.hera.similarity import EmbeddingSimilarity
from sim.policies.hera.trained import CARD, Card, PredictedOutlook, load_models, read_card
from sim.policies.hera.training import (
    Plan,
    Progress,
    distance_rows,
    part_rows,
    prediction,
    request_rows,
    train_estimators,
)
from sim.study import study_of
from sim.workload import build_workload
from tests.conftest import ROOT
from tests.policies import decisions
from tests.serve.tiny_models import tiny_encoder
from workloads.agent import in_turn
from workloads.errors import InputError

pytestmark = pytest.mark.slow

SIMILARITY = EmbeddingSimilarity(PACKAGED_ENCODER)


@pytest.fixture(scope="module")
def study() -> Study:
    """Eight requests to place and twenty to learn from, of the shipped recordings."""
    loaded = load_scenario(ROOT / "scenarios/hera.yaml", [])
    whole = study_of(loaded.scenario, build_workload(loaded.scenario, 1, loaded.path), 1)
    assert whole.training is not None
    return whole._replace(tasks=whole.tasks[:8], training=whole.training._replace(tasks=whole.training.tasks[:20]))


@pytest.fixture(scope="module")
def profile(study: Study) -> Profile:
    """Of the twenty."""
    assert study.training is not None
    return profile_of(study.training, SIMILARITY, 0.7)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A tiny encoder of our own: the packaged one is six layers, and the shipped estimators are made from it."""
    encoder = tiny_encoder(tmp_path_factory.mktemp("encoder"))
    return Plan(str(encoder), "pair/slm", request_epochs=1, distance_epochs=1, decoder_epochs=2, most_distances=100)


@pytest.fixture(scope="module")
def folder(profile: Profile, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained estimators."""
    out = tmp_path_factory.mktemp("estimators") / "pair"
    train_estimators(profile, PACKAGED_ENCODER, 0.7, plan, out, lambda name, steps: lambda: None)
    return out


def test_targets_are_what_the_trees_say(profile: Profile) -> None:
    """URC's target is the similarity as a probability, DP's one class, SP's the recorded step with the tool's reply."""
    for row, learned in zip(request_rows(profile, 0.7), profile.requests, strict=True):
        assert row.target == ((1.0, 0.0) if learned.similarity > 0.7 else (0.0, 1.0))
    assert all(sum(row.target) == 1.0 for row in distance_rows(profile.subtasks))
    first = profile.subtasks[0]
    step, reply = prediction(first.outlook.node, profile.models[1])
    assert step == first.large_output
    after = first.outlook.after("large")
    assert reply == (after.node.call.messages[-1].content if after else "")


def test_decompositions_are_the_small_models_way_to_the_large_ones_step(profile: Profile) -> None:
    """Each row asks for the large model's step; what is to be written leads there by the small model's own steps, or is nothing."""

    def similar(first: str, second: str) -> bool:
        return SIMILARITY(first, second) > 0.7

    by_asked = {with_goal(row.outlook.node.call.messages, row.large_output): row for row in profile.subtasks}
    rows = part_rows(profile.subtasks, profile.models[0])
    ways = 0
    for asked, text in rows:
        row, steps = by_asked[asked], as_steps(text)
        assert not similar(row.small_output, row.large_output)
        assert len(steps) == (0 if row.distance == math.inf else row.distance + 1)
        if steps:
            ways += 1
            assert steps[0].step == row.small_output
            assert similar(steps[-1].step, row.large_output)
    assert 0 < ways < len(rows)


def test_an_interrupted_training_goes_on(profile: Profile, plan: Plan, tmp_path: Path) -> None:
    """What was trained before is not trained again; another plan begins anew."""
    begun = list[str]()

    def interrupted(name: str, steps: int) -> Callable[[], None]:
        begun.append(name)
        if name == "request":
            raise KeyboardInterrupt
        return lambda: None

    def train(plan: Plan, progress: Progress = interrupted) -> None:
        train_estimators(profile, PACKAGED_ENCODER, 0.7, plan, tmp_path / "out", progress)

    with pytest.raises(KeyboardInterrupt):
        train(plan)
    assert begun == ["small", "large", "parts", "request"]
    assert not (tmp_path / "out").exists()
    with pytest.raises(KeyboardInterrupt):
        train(plan)
    assert begun[4:] == ["request"]
    with pytest.raises(KeyboardInterrupt):
        train(plan._replace(seed=2))
    assert begun[5:] == ["small", "large", "parts", "request"]


def test_training_lowers_the_loss_and_leaves_a_card(folder: Path, profile: Profile) -> None:
    """Five estimators in safetensors, small, with a card."""
    card = read_card(folder)
    assert (card.models, card.families, card.requests) == (profile.models, ("hops", "sums"), 20)
    for role in ROLES:
        assert card.losses[role][-1] < card.losses[role][0]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    configuration = json.loads((folder / "small" / "adapter_config.json").read_text())
    assert configuration["base_model_name_or_path"] == "pair/slm"  # and no path of this machine
    assert sum(path.stat().st_size for path in files) < 10e6


def test_the_same_training_gives_the_same_weights(folder: Path, profile: Profile, plan: Plan, tmp_path: Path) -> None:
    """To the bit."""
    train_estimators(profile, PACKAGED_ENCODER, 0.7, plan, tmp_path / "again", lambda name, steps: lambda: None)
    for path in folder.rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes(), path.name


def test_the_small_models_next_step_is_learned_first(folder: Path, study: Study) -> None:
    """SP_SLM starts from the small model itself: most of its first steps are the recorded ones."""
    predictors = load_models(folder).steps
    calls = [next(in_turn(study.agent(task))) for task in study.tasks]
    said = [study.backend.submit(call, study.tiers[0].model).result().text for call in calls]
    predicted = [PredictedOutlook(predictors, call.messages).output("small") for call in calls]
    assert sum(a == b for a, b in zip(said, predicted, strict=True)) >= 4


def test_the_policy_decides_by_them(folder: Path, study: Study) -> None:
    """The same placements every time, whatever was predicted ahead."""
    made = []
    for _ in range(2):
        policy = Hera(HeraOptions(estimators=str(folder), tau_request=0.95, kappa=0.9))
        policy.prepare(study)
        made.append(decisions(policy, study))
        load_models.cache_clear()
    assert made[0] == made[1]
    assert {step.reason.split()[0] for step in made[0].values()} <= {"urc", "sse", "sle", "cd", "sd", "large"}


def test_estimators_that_do_not_fit_are_refused(
    folder: Path, profile: Profile, plan: Plan, study: Study, tmp_path: Path
) -> None:
    """Another pair, another family, missing weights, no card, a card that is none, an empty profile: one message each."""

    def refused(where: Path, words: str, of: Study = study) -> None:
        with pytest.raises(InputError, match=words):
            Hera(HeraOptions(estimators=str(where))).prepare(of)

    other = tuple(tier._replace(model=f"other-{tier.role}") for tier in study.tiers)
    refused(folder, "trained for the models isthmus-slm and isthmus-llm, not other-slm", study._replace(tiers=other))
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    card = read_card(changed)
    Card(**{**card.__dict__, "families": ("sums",)}).write(changed)
    refused(changed, "trained on tasks of sums, not hops")
    Card(**card.__dict__).write(changed)
    shutil.rmtree(changed / "small")
    load_models.cache_clear()
    refused(changed, "'small' is missing")
    (changed / CARD).write_text(json.dumps({"models": 3}))
    refused(changed, "cannot be read")
    refused(tmp_path / "nowhere", "no trained estimators")
    with pytest.raises(InputError, match="holds nothing to learn from"):
        train_estimators(
            profile._replace(requests=()), PACKAGED_ENCODER, 0.7, plan, tmp_path / "x", lambda name, steps: lambda: None
        )
