"""M4A1 dialogues as a scenario's workload: those of its split, and those of the other that policies may learn from."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from sim.answers import Posed, TrainingSet
from sim.loading import data_path
from sim.scenario import Scenario
from sim.scenario_workload import M4a1
from sim.tmo.m4a1_backend import ALL, TEST, TRAIN, M4a1Backend, M4a1World, m4a1_split
from sim.tmo.responses import MODELS, ResponseModel
from workloads.dialogue import dialogue_agent
from workloads.task import Task


def m4a1_workload(scenario: Scenario, scenario_path: Path) -> Posed:
    """The dialogues of a scenario of that kind. Raises InputError for a malformed file."""
    spec = scenario.workload.tasks
    assert isinstance(spec, M4a1)
    own, backend = _split(scenario, spec, spec.split, scenario_path)
    training = None
    if spec.split != ALL:
        others, answering = _split(scenario, spec, TRAIN if spec.split == TEST else TEST, scenario_path)
        training = TrainingSet(others, answering)
    return Posed(own, dialogue_agent(), backend, training)


def _split(scenario: Scenario, spec: M4a1, split: str, scenario_path: Path) -> tuple[list[Task], M4a1Backend]:
    world, model = _fitted(data_path(spec.path, scenario_path), spec, split)
    tiers = {tier.model_name or name: tier for name, tier in scenario.tiers.items()}
    cloud = {name: tier.role == "llm" for name, tier in tiers.items()}
    multimodal = frozenset(name for name, tier in tiers.items() if tier.sees_modalities)
    return world.tasks, M4a1Backend(world.turns.layout, model, cloud, multimodal, spec.noise)


@lru_cache(maxsize=8)
def _fitted(path: Path, spec: M4a1, split: str) -> tuple[M4a1World, ResponseModel]:
    world = m4a1_split(
        path, split, folds=spec.folds, score_scale=spec.score_scale, sorry_is_zero=spec.sorry_is_zero,
        image_bytes=spec.image_bytes, image_tokens=spec.image_tokens,
    )  # fmt: skip
    return world, MODELS[spec.responses]().fit(world.turns)
