"""Trains HERA's estimators on a profile: minutes on one core with the packaged bases.

URC learns how alike the final outputs of All-SLM and All-LLM are, DP the S-L distance of each subtask, SP_SLM and SP_LLM the next
subtask by who runs this one, with what the environment answers. All are LoRA adapters, as in HERA/AIMS.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

from sim.policies.hera import classifier, writer
from sim.policies.hera.adapters import load_base
from sim.policies.hera.classifier import ScoredText, TextClassifier
from sim.policies.hera.outlook import ROLES, Role
from sim.policies.hera.predictions import Prediction, as_text, with_goal
from sim.policies.hera.profile import Profile, ProfiledSubtask
from sim.policies.hera.trained import DISTANCES, Card, Loaded
from sim.policies.hera.writer import Writer
from workloads.errors import InputError
from workloads.expansion import Node
from workloads.task import Message

Progress = Callable[[str, int], Callable[[], None]]
"""(estimator, steps) -> what to call after each step."""
WrittenRow = tuple[tuple[Message, ...], str]
"""A conversation and what a decoder is to write after it."""
_PLAN_FILE, _DONE_FILE = "plan.txt", "done.json"
"""Files of a training under way: what is trained, and in an estimator's folder that it is done."""


class Plan(NamedTuple):
    """How much to train: epochs and first rates, and the most subtasks that the decoders and DP learn from."""

    encoder: str
    decoder: str
    request_epochs: int = 3
    distance_epochs: int = 2
    decoder_epochs: int = 8
    encoder_rate: float = 5e-4
    decoder_rate: float = 3e-3
    most_subtasks: int = 14000
    most_distances: int = 2000
    seed: int = 1


class Job(NamedTuple):
    """One estimator to train: its folder's name, an encoder's classes (0: a decoder), rows to learn, and epochs."""

    name: str
    classes: int
    rows: Sequence[Any]
    epochs: int
    rate: float

    def steps(self, epochs: int) -> int:
        """Batches of so many epochs."""
        return epochs * math.ceil(len(self.rows) / (classifier.BATCH if self.classes else writer.BATCH))


def train_estimators(
    profile: Profile, similarity_encoder: str, threshold: float, plan: Plan, out: Path, progress: Progress
) -> Card:
    """Train all estimators and write them into `out` at once when all are done; texts are alike from `threshold` on.

    Goes on where an interrupted training with the same plan stopped, estimator by estimator. Raises InputError for an empty profile.
    """
    if not profile.requests or not profile.subtasks:
        raise InputError("profile", "holds nothing to learn from", "Profile some requests")
    for kind, base in (("AutoModel", plan.encoder), ("AutoModelForCausalLM", plan.decoder)):
        load_base(kind, base)  # a wrong name is told before minutes of training, with nothing written
    fresh = _unfinished(out.with_name(out.name + ".partial"), f"{plan} {threshold} {hash_of(profile)}")
    trained = {job.name: _trained(job, plan, fresh / job.name, progress) for job in jobs(profile, threshold, plan)}
    families = tuple(sorted({row.task.family for row in profile.requests}))
    asked = [row.outlook.node.call.messages for row in profile.subtasks]
    prediction_s = _alone_s(Writer(plan.decoder, fresh / ROLES[1]), asked)
    card = Card(
        profile.models, families, plan.encoder, plan.decoder, similarity_encoder, threshold, len(profile.requests), plan.seed, prediction_s,
        {name: seconds for name, (seconds, _) in trained.items()}, {name: losses for name, (_, losses) in trained.items()},
    )  # fmt: skip
    card.write(fresh)
    for path in (fresh / _PLAN_FILE, *(fresh / name / _DONE_FILE for name in trained)):
        path.unlink()
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    return card


def _alone_s(model: Writer, asked: Sequence[tuple[Message, ...]]) -> float:
    """Median time to write one step by itself on one thread, s, over 20 conversations."""
    times = list[float]()
    for messages in asked[:20]:
        begun_s = time.thread_time()  # of this thread alone: machines are shared
        model.write(messages)
        times.append(time.thread_time() - begun_s)
    return round(median(times), 4)


def jobs(profile: Profile, threshold: float, plan: Plan) -> list[Job]:
    """What is to be trained on a profile."""
    subtasks = sample(profile.subtasks, plan.most_subtasks, plan.seed)
    distances = distance_rows(sample(subtasks, plan.most_distances, plan.seed))
    return [
        *(
            Job(role, 0, step_rows(subtasks, role, profile.models), plan.decoder_epochs, plan.decoder_rate)
            for role in ROLES
        ),
        Job("parts", 0, part_rows(subtasks, profile.models[0]), plan.decoder_epochs, plan.decoder_rate),
        Job("request", 2, request_rows(profile, threshold), plan.request_epochs, plan.encoder_rate),
        Job("distance", len(DISTANCES), distances, plan.distance_epochs, plan.encoder_rate),
    ]


def _trained(job: Job, plan: Plan, folder: Path, progress: Progress) -> tuple[float, list[float]]:
    """Train and save one estimator unless that is done; returns the seconds it took and its losses by epoch."""
    done = folder / _DONE_FILE
    if done.exists():
        seconds, losses = json.loads(done.read_text())
        return seconds, losses
    begun_s = time.perf_counter()
    model = (
        TextClassifier(plan.encoder, job.classes, seed=plan.seed)
        if job.classes
        else Writer(plan.decoder, seed=plan.seed)
    )
    losses = model.fit(job.rows, job.epochs, job.rate, plan.seed, progress(job.name, job.steps(job.epochs)))
    model.save(folder)
    seconds = round(time.perf_counter() - begun_s, 1)
    done.write_text(json.dumps([seconds, losses]))
    return seconds, losses


def _unfinished(folder: Path, plan: str) -> Path:
    """The folder of a training under way, emptied unless it is this very one's."""
    told = folder / _PLAN_FILE
    if not (told.exists() and told.read_text() == plan):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        told.write_text(plan)
    return folder


def fine_tune(models: Loaded, profile: Profile, threshold: float, plan: Plan, progress: Progress) -> None:
    """One more epoch, at a third of the rate, on what was seen since."""
    for job in jobs(profile, threshold, plan):
        models.named[job.name].fit(job.rows, 1, job.rate / 3, plan.seed, progress(job.name, job.steps(1)))


def hash_of(profile: Profile) -> str:
    """Identifies what is learned from."""
    seen = hashlib.sha256(repr(profile.models).encode())
    for row in profile.subtasks:
        seen.update(repr((row.text, row.small_output, row.large_output, row.distance)).encode())
    return seen.hexdigest()[:16]


def sample(subtasks: Sequence[ProfiledSubtask], most: int, seed: int) -> list[ProfiledSubtask]:
    """At most so many, drawn evenly."""
    return list(subtasks) if len(subtasks) <= most else random.Random(seed).sample(list(subtasks), most)


def request_rows(profile: Profile, threshold: float) -> list[ScoredText]:
    """URC: whether the final outputs are alike."""
    alike = [float(row.similarity > threshold) for row in profile.requests]
    return [ScoredText(row.task.prompt, 0, (p, 1 - p)) for row, p in zip(profile.requests, alike, strict=True)]


def distance_rows(subtasks: Sequence[ProfiledSubtask]) -> list[ScoredText]:
    """DP: one class per distance."""
    return [
        ScoredText(row.text, row.position, tuple(float(row.distance == distance) for distance in DISTANCES))
        for row in subtasks
    ]


def step_rows(subtasks: Sequence[ProfiledSubtask], role: Role, models: tuple[str, str]) -> list[WrittenRow]:
    """SP: the conversation, what that model said and what the environment answered."""
    model = models[ROLES.index(role)]
    nodes = [row.outlook.node for row in subtasks]
    return [(node.call.messages, as_text([prediction(node, model)])) for node in nodes]


def part_rows(subtasks: Sequence[ProfiledSubtask], small: str) -> list[WrittenRow]:
    """SD: how the small model gets to what the large one says next, where it does not say so at once.

    As many subtasks from which it does not get there are learned too, with nothing to write.
    """
    nowhere, found = list[WrittenRow](), list[WrittenRow]()
    for row in subtasks:
        node, steps = row.outlook.node, list[Prediction]()
        while math.isfinite(row.distance) and len(steps) <= row.distance:
            steps.append(prediction(node, small))
            node = cast(Node, node.after[small])
        if len(steps) != 1:
            asked = with_goal(row.outlook.node.call.messages, row.large_output)
            (found if steps else nowhere).append((asked, as_text(steps)))
    return found + nowhere[: max(1, len(found))]


def prediction(node: Node, model: str) -> Prediction:
    """What a model said at a node, and the environment's answer; empty where the request ended."""
    after: Any = node.after.get(model)
    reply = after.call.messages[-1].content if isinstance(after, Node) else ""
    return Prediction(node.answers[model].text, reply)
