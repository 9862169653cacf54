"""Trains HERA's estimators on a profile: minutes on one core with the packaged bases.

URC learns how alike the final outputs of All-SLM and All-LLM are, DP the S-L distance of each subtask, SP_SLM and SP_LLM the next
subtask by who runs this one, with what the environment answers. All are LoRA adapters, as in HERA/AIMS.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sim.policies.hera.adapters import Prediction, ScoredText, StepPredictor, TextClassifier, batches, load_base
from sim.policies.hera.outlook import ROLES, Role
from sim.policies.hera.profile import Profile, ProfiledSubtask
from sim.policies.hera.trained import DISTANCES, Card
from workloads.errors import InputError
from workloads.expansion import Node
from workloads.task import Message

Progress = Callable[[str, int], Callable[[], None]]
"""(estimator, steps) -> what to call after each step."""


class Plan(NamedTuple):
    """How much to train: epochs and peak rates of encoders and decoders, and the most subtasks to learn from."""

    encoder: str
    decoder: str
    encoder_epochs: int = 3
    decoder_epochs: int = 6
    encoder_rate: float = 5e-4
    decoder_rate: float = 3e-3
    most_subtasks: int = 6000
    seed: int = 1


def train_estimators(
    profile: Profile, similarity_encoder: str, threshold: float, plan: Plan, out: Path, progress: Progress
) -> Card:
    """Train all estimators and write them into `out` at once when they are done. Raises InputError for an empty profile."""
    if not profile.requests or not profile.subtasks:
        raise InputError("profile", "holds nothing to learn from", "Profile some requests")
    begun_s, losses = time.perf_counter(), dict[str, list[float]]()
    for kind, base in (("AutoModel", plan.encoder), ("AutoModelForCausalLM", plan.decoder)):
        load_base(kind, base)  # a wrong name is told before minutes of training, with nothing written
    fresh = out.with_name(out.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    subtasks = sample(profile.subtasks, plan.most_subtasks, plan.seed)
    for name, rows, classes in (
        ("request", request_rows(profile), 2),
        ("distance", distance_rows(subtasks), len(DISTANCES)),
    ):
        model = TextClassifier(plan.encoder, classes, seed=plan.seed)
        steps = plan.encoder_epochs * len(list(batches(rows, lambda row: 0, random.Random(0), 32)))
        losses[name] = model.fit(rows, plan.encoder_epochs, plan.encoder_rate, plan.seed, progress(name, steps))
        model.save(fresh / name)
    for role in ROLES:
        examples = step_rows(subtasks, role, profile.models)
        predictor = StepPredictor(plan.decoder, seed=plan.seed)
        steps = plan.decoder_epochs * len(list(batches(examples, lambda row: 0, random.Random(0), 64)))
        losses[role] = predictor.fit(examples, plan.decoder_epochs, plan.decoder_rate, plan.seed, progress(role, steps))
        predictor.save(fresh / role)
    families = tuple(sorted({row.task.family for row in profile.requests}))
    card = Card(
        profile.models, families, plan.encoder, plan.decoder, similarity_encoder, threshold, len(profile.requests), plan.seed,
        round(time.perf_counter() - begun_s, 1), losses,
    )  # fmt: skip
    card.write(fresh)
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    return card


def sample(subtasks: Sequence[ProfiledSubtask], most: int, seed: int) -> list[ProfiledSubtask]:
    """At most so many, drawn evenly."""
    return list(subtasks) if len(subtasks) <= most else random.Random(seed).sample(list(subtasks), most)


def request_rows(profile: Profile) -> list[ScoredText]:
    """URC: the similarity of the final outputs as the probability of 'alike'."""
    alike = [min(1.0, max(0.0, row.similarity)) for row in profile.requests]
    return [ScoredText(row.task.prompt, 0, (p, 1 - p)) for row, p in zip(profile.requests, alike, strict=True)]


def distance_rows(subtasks: Sequence[ProfiledSubtask]) -> list[ScoredText]:
    """DP: one class per distance."""
    return [
        ScoredText(row.text, row.position, tuple(float(row.distance == distance) for distance in DISTANCES))
        for row in subtasks
    ]


def step_rows(
    subtasks: Sequence[ProfiledSubtask], role: Role, models: tuple[str, str]
) -> list[tuple[tuple[Message, ...], Prediction]]:
    """SP: the conversation, what that model said and what the environment answered."""
    model = models[ROLES.index(role)]
    return [(row.outlook.node.call.messages, prediction(row.outlook.node, model)) for row in subtasks]


def prediction(node: Node, model: str) -> Prediction:
    """What a model said at a node, and the environment's answer; empty where the request ended."""
    after: Any = node.after.get(model)
    reply = after.call.messages[-1].content if isinstance(after, Node) else ""
    return Prediction(node.answers[model].text, reply)
