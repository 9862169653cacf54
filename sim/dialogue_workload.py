"""Generated dialogues as a scenario's workload: its own, and those of the other split that policies may learn from."""

from __future__ import annotations

from sim.answers import Posed, TrainingSet
from sim.draws import component_rng
from sim.scenario import Dialogues, Scenario
from workloads.dialogue import dialogue_agent
from workloads.dialogue_truth import DialogueBackend, Truth
from workloads.task import Task
from workloads.tasks.dialogues import DialogueSpec, dialogue_tasks

_OTHER = {"test": "train", "train": "test"}


def dialogue_workload(scenario: Scenario, seed: int) -> Posed:
    """The dialogues of a scenario of that kind under a seed."""
    spec = scenario.workload.tasks
    assert isinstance(spec, Dialogues)
    backend = DialogueBackend(
        {tier.model_name or name: tier.model.quality for name, tier in scenario.tiers.items()},
        frozenset(tier.model_name or name for name, tier in scenario.tiers.items() if tier.sees_modalities),
        Truth(spec.memory, spec.fade, spec.distraction, spec.switch, spec.noise),
    )
    own = _drawn(spec, spec.split, min(scenario.workload.requests, spec.distinct_tasks), seed)
    others = _drawn(spec, _OTHER[spec.split], spec.training_dialogues, seed)
    return Posed(own, dialogue_agent(), backend, TrainingSet(others, backend) if others else None)


def _drawn(spec: Dialogues, split: str, count: int, seed: int) -> list[Task]:
    wanted = DialogueSpec(
        spec.modalities,
        spec.kinds,
        spec.turns,
        spec.domains,
        spec.size_scale,
        spec.association_error,
        spec.persistence,
    )
    return list(dialogue_tasks(count, component_rng(seed, f"dialogues/{split}"), wanted, f"{split}{seed}"))
