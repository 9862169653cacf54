"""Estimators from a folder of trained adapters, with a card that says what they were trained for."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from sim.policies.base import Study
from sim.policies.hera.classifier import TextClassifier
from sim.policies.hera.estimators import Similar
from sim.policies.hera.outlook import ROLES, Outlook, Role
from sim.policies.hera.predictions import Prediction, after_steps, as_steps, with_goal
from sim.policies.hera.profile import MOST_EXTRA
from sim.policies.hera.similarity import EmbeddingSimilarity
from sim.policies.hera.writer import Writer
from sim.policies.trees import grow_trees, subtask_text, two_models
from workloads.errors import InputError, suggest
from workloads.task import Message, ModelCall, Task

CARD = "hera.json"
FOLDERS = ("request", "distance", "small", "large", "parts")
"""URC, DP, SP_SLM, SP_LLM and SD, as they lie in the folder of estimators."""
PARTS_TOKENS = 160
"""The longest decomposition that is written."""
DISTANCES = (*map(float, range(MOST_EXTRA + 1)), math.inf)
"""DP's classes."""
PACKAGED = {"pair": Path(__file__).parent / "weights" / "pair"}
"""Trained estimators that ship with Isthmus."""


@dataclass(frozen=True)
class Card:
    """What a folder of estimators is for and how it was made.

    Texts were alike from `threshold` on. `prediction_s` is the time to predict one step by itself, as measured where it was trained.
    """

    models: tuple[str, str]
    families: tuple[str, ...]
    encoder: str
    decoder: str
    similarity_encoder: str
    threshold: float
    requests: int
    seed: int
    prediction_s: float
    seconds: dict[str, float]
    losses: dict[str, list[float]]

    def write(self, folder: Path) -> None:
        """Write it into the folder."""
        (folder / CARD).write_text(json.dumps(asdict(self), indent=1) + "\n")


def read_card(folder: Path) -> Card:
    """The card of a folder. Raises InputError where there is none that can be read."""
    try:
        fields = json.loads((folder / CARD).read_text())
        return Card(**{**fields, "models": tuple(fields["models"]), "families": tuple(fields["families"])})
    except OSError:
        problem = f"no trained estimators: there is no {CARD}"
        raise InputError(str(folder), problem, "Train them with `run_sim.py estimators`, or name `pair`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(str(folder / CARD), f"cannot be read ({error})", "Train the estimators again") from None


class PredictedOutlook:
    """A conversation as it may be, with what the two predictors make of it."""

    __slots__ = ("_writers", "messages")

    def __init__(self, writers: tuple[Writer, Writer], messages: tuple[Message, ...]) -> None:
        self._writers, self.messages = writers, messages

    def _next(self, role: Role) -> Prediction:
        return next(iter(as_steps(self._writers[ROLES.index(role)](self.messages))), Prediction("", ""))

    def output(self, role: Role) -> str:
        """The predicted step."""
        return self._next(role).step

    def after(self, role: Role) -> PredictedOutlook | None:
        """The conversation with the predicted step and the environment's predicted answer; None where that ends it."""
        return next(
            (PredictedOutlook(self._writers, said) for said in after_steps(self.messages, [self._next(role)])), None
        )


class Trained:
    """URC, DP, SP_SLM, SP_LLM and SD as trained."""

    def __init__(self, name: str, similarity: EmbeddingSimilarity, *, any_family: bool, horizon: int) -> None:
        self._folder, self._similarity = PACKAGED.get(name, Path(name)), similarity
        self._any_family, self._horizon = any_family, horizon
        self._card = read_card(self._folder)

    @property
    def prediction_s(self) -> float:
        """As measured."""
        return self._card.prediction_s

    def prepare(self, study: Study) -> None:
        """Load, and predict ahead what the study's requests will need. Raises InputError for estimators of other models or tasks."""
        self._check(study)
        self._predict_ahead(study)

    @property
    def _models(self) -> Loaded:
        """Not kept here: a policy travels to the gateway's process, and its models are loaded there."""
        return load_models(self._folder)

    def _check(self, study: Study) -> None:
        asked, card = two_models(study), self._card
        if asked != card.models:
            raise InputError(
                str(self._folder), f"trained for the models {' and '.join(card.models)}, not {' and '.join(asked)}",
                "Train estimators for these models",
            )  # fmt: skip
        families = {task.family for task in study.tasks} - set(card.families)
        if families and not self._any_family:
            raise InputError(
                str(self._folder), f"trained on tasks of {', '.join(card.families)}, not {', '.join(sorted(families))}",
                "Train them on such tasks, or set any_family: true to see what they do on tasks they do not know",
            )  # fmt: skip

    def _predict_ahead(self, study: Study) -> None:
        """Where a recording holds every placement, all conversations are known: many predictions at once, level by level.

        What will be compared is embedded at once, too: one by one it takes five times as long.
        """
        try:
            trees = grow_trees(study, study.tasks)
        except InputError:
            return
        self._models.request.know([(tree.task.prompt, 0) for tree in trees])
        calls = {node.call.messages: node.call for tree in trees for node in tree.nodes.values()}
        writers = self._models.steps
        for writer in writers:
            writer.know(list(calls))
        here = [PredictedOutlook(writers, messages) for messages in calls]
        unlike = [outlook for outlook in here if outlook.output("small") != outlook.output("large")]
        compared = [outlook.output(role) for outlook in unlike for role in ROLES]
        for role, writer in zip(ROLES, writers, strict=True):  # nobody looks further ahead where both say the same
            ahead = unlike
            for _ in range(self._horizon):
                ahead = [after for outlook in ahead if (after := outlook.after(role)) is not None]
                writer.know([outlook.messages for outlook in ahead])
                compared += [outlook.output(role) for outlook in ahead]
        asked = [calls[outlook.messages] for outlook in unlike]
        self._models.distance.know([(subtask_text(call.messages), call.position) for call in asked])
        self._models.decomposer.know([_sd_asks(outlook) for outlook in unlike])
        parts = [part for outlook in unlike for part in self._parts(outlook)]
        for writer in writers:
            writer.know([part.messages for part in parts])
        self._similarity.know([*compared, *(part.output(role) for part in parts for role in ROLES)])

    def request_similarity(self, task: Task) -> float:
        """The first class is 'alike'; its probability stands for the similarity it was trained on."""
        return float(self._models.request(task.prompt)[0])

    def outlook(self, call: ModelCall) -> PredictedOutlook:
        """What the predictors make of the conversation."""
        return PredictedOutlook(self._models.steps, call.messages)

    def distance(self, call: ModelCall, here: Outlook, similar: Similar) -> float:
        """The most probable distance."""
        del here, similar
        return DISTANCES[int(self._models.distance(subtask_text(call.messages), call.position).argmax())]

    def parts(self, here: Outlook, similar: Similar) -> Sequence[Outlook]:
        """The subtasks that SD's smaller steps lead to, on the way to the large model's predicted next one."""
        del similar
        assert isinstance(here, PredictedOutlook)
        return self._parts(here)

    def _parts(self, here: PredictedOutlook) -> list[PredictedOutlook]:
        steps = as_steps(self._models.decomposer(_sd_asks(here)))
        return [PredictedOutlook(self._models.steps, messages) for messages in after_steps(here.messages, steps)]


def _sd_asks(here: PredictedOutlook) -> tuple[Message, ...]:
    """What SD is asked: how to get to the large model's predicted next subtask."""
    return with_goal(here.messages, here.output("large"))


@dataclass(frozen=True)
class Loaded:
    """The models of a folder."""

    request: TextClassifier
    distance: TextClassifier
    steps: tuple[Writer, Writer]
    decomposer: Writer

    @property
    def named(self) -> dict[str, TextClassifier | Writer]:
        """By the names of their folders."""
        return dict(zip(FOLDERS, (self.request, self.distance, *self.steps, self.decomposer), strict=True))


@cache
def load_models(folder: Path) -> Loaded:
    """The models of a folder, once a process: what they have predicted is shared."""
    return read_models(folder)


def read_models(folder: Path) -> Loaded:
    """The models of a folder, for oneself. Raises InputError where one is missing."""
    card = read_card(folder)
    for name in FOLDERS:
        if not (folder / name).is_dir():
            raise InputError(
                str(folder), f"the folder {name!r} is missing", suggest(name, [p.name for p in folder.iterdir()])
            )
    return Loaded(
        TextClassifier(card.encoder, 2, folder / "request"),
        TextClassifier(card.encoder, len(DISTANCES), folder / "distance"),
        (Writer(card.decoder, folder / "small"), Writer(card.decoder, folder / "large")),
        Writer(card.decoder, folder / "parts", max_tokens=PARTS_TOKENS),
    )
