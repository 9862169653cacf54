"""`run_sim.py estimators`: train HERA's estimators on a scenario's training requests, and judge them on its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from sim.policies.base import Study
from sim.policies.features import PACKAGED_ENCODER
from sim.policies.hera.evaluation import Accuracies, accuracies
from sim.policies.hera.profile import Profile, profile_of
from sim.policies.hera.similarity import EmbeddingSimilarity
from sim.policies.hera.trained import Card, Loaded, load_models, read_card, read_models
from sim.policies.hera.training import Plan, Progress, fine_tune, train_estimators
from sim.policies.trees import training_of
from workloads.errors import InputError, suggest
from workloads.task import Task


def train_on(
    study: Study, threshold: float, plan: Plan, requests: int | None, families: list[str] | None, out: Path, progress: Progress
) -> Card:  # fmt: skip
    """Train on the first `requests` training requests (None: on all) of these families (None: of all); writes them into `out`.

    Raises InputError where the study has no training requests, or none of a family.
    """
    training = training_of(study, "hera")
    known = sorted({task.family for task in training.tasks})
    for family in families or ():
        if family not in known:
            raise InputError(f"family {family!r}", "no training request is of it", suggest(family, known))
    training = _only(training, lambda task: families is None or task.family in families)
    profile = profile_of(
        training._replace(tasks=training.tasks[:requests]), EmbeddingSimilarity(PACKAGED_ENCODER), threshold
    )
    return train_estimators(profile, PACKAGED_ENCODER, threshold, plan, out, progress)


class Judged(NamedTuple):
    """Accuracies on so many requests of a kind."""

    requests: str
    of_them: int
    accuracies: Accuracies


def evaluate_on(study: Study, folder: Path, fine_tune_every: int, progress: Progress) -> Iterator[Judged]:
    """Judge trained estimators on what they learned, on the study's own requests, and on families they do not know.

    Then with fine-tuning: before each block of `fine_tune_every` own requests but the first, on the block before; beside it the same
    blocks without. Raises InputError where `folder` holds no estimators.
    """
    card = read_card(folder)
    similarity = EmbeddingSimilarity(card.similarity_encoder)

    def right(estimators: Loaded, profile: Profile) -> Accuracies:
        return accuracies(estimators, profile, similarity, card.threshold)

    def profiled(study: Study, wanted: Callable[[Task], bool]) -> Profile:
        return profile_of(_only(study, wanted), similarity, card.threshold)

    def known(task: Task) -> bool:
        return task.family in card.families

    training, own = _only(training_of(study, "hera"), known), each_once(study)
    models = load_models(folder)
    kinds = {
        "trained on": profiled(training._replace(tasks=training.tasks[: card.requests]), known),
        "unseen": profiled(own, known),
        "unseen family": profiled(own, lambda task: not known(task)),
    }
    for kind, profile in kinds.items():
        if profile.requests:
            yield Judged(kind, len(profile.requests), right(models, profile))
    tasks = [task for task in own.tasks if known(task)]
    blocks = [tasks[start : start + fine_tune_every] for start in range(0, len(tasks), fine_tune_every)]
    plan = Plan(card.encoder, card.decoder, seed=card.seed)
    tuned = read_models(folder)
    for before, block in itertools.pairwise(blocks):
        fine_tune(tuned, profiled(own._replace(tasks=before), known), card.threshold, plan, progress)
        later = profiled(own._replace(tasks=block), known)
        yield Judged("later ones", len(block), right(models, later))
        yield Judged("later ones, fine-tuned", len(block), right(tuned, later))


def each_once(study: Study) -> Study:
    """The study with every task once."""
    return study._replace(tasks=list({task.id: task for task in study.tasks}.values()))


def _only(study: Study, wanted: Callable[[Task], bool]) -> Study:
    return study._replace(tasks=[task for task in study.tasks if wanted(task)])


def accuracy_table(card: Card, judged: list[Judged]) -> Table:
    """One row a kind of requests."""
    names = {"urc": "URC", "dp": "DP", "sp_small": "SP_SLM", "sp_large": "SP_LLM", "sse": "SSE", "sd": "SD"}
    title = f"Right, % (trained on {card.requests:,} requests of {', '.join(card.families)})"
    table = Table("requests", "of them", *names.values(), title=title)
    for row in judged:
        table.add_row(
            row.requests, f"{row.of_them:,}", *(f"{100 * getattr(row.accuracies, name):.1f}" for name in names)
        )
    return table
