"""M4A1 dialogues as a workload: the file's questions and images, answered by a model of what its answers were worth.

The file tells what one action was worth in every turn; the others are what a fitted response model expects. So everything from here
is labelled `modelled`, and dialogues are graded by what was learned from dialogues of their own split: what a policy learns from the
other split cannot be an error of the model that judges it.

A turn's answer is the recorded one, whoever gives it, behind the words that say who did and what it saw; its length is the recorded
one's. M4A1 holds no images: all have one stated size.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sim.tmo.logged import Layout, LoggedTurns, fold, logged
from sim.tmo.responses import ResponseModel
from workloads.agent import FRAMING_BYTES
from workloads.dialogue import Turn, dialogue_task, turn_of, turns_of
from workloads.dialogue_truth import Truth, history_of, signature
from workloads.errors import InputError, suggest
from workloads.readers import m4a1
from workloads.task import Attachment, Completion, ModelCall, Task, with_attachments

TRAIN, TEST, ALL = "train", "test", "all"
SCORE_SCALE = 2.0
"""The score that counts as 1 by default; M4A1's go to 9, and 93 % stay within 2."""
IMAGE_BYTES, IMAGE_TOKENS = 368_000, 765
"""Of each image by default: a JPEG of 1024 x 1024 pixels at 0.35 bytes each, and GPT-4o's count for it."""


class M4a1Latent(NamedTuple):
    """What a dialogue from the file knows and no policy sees: the recorded answers, turn by turn."""

    answers: tuple[str, ...]


class M4a1World(NamedTuple):
    """The dialogues of one split as tasks, and their logged turns with responses in [0, 1]."""

    tasks: list[Task]
    turns: LoggedTurns


def m4a1_split(
    path: Path, split: str, *, folds: int = 5, score_scale: float = SCORE_SCALE, sorry_is_zero: bool = True,
    image_bytes: int = IMAGE_BYTES, image_tokens: int = IMAGE_TOKENS,
) -> M4a1World:  # fmt: skip
    """The dialogues of a split: `test` is one part of `folds`, `train` the others, `all` both.

    A response is score / `score_scale`, at most 1, and 0 for an answer with a "sorry" word unless told otherwise. Raises InputError for
    a malformed file.
    """
    dialogues = list(m4a1.read(path))
    turns = logged(dialogues, str(path))
    turns = turns.zeroed() if sorry_is_zero else turns
    turns = replace(turns, response=np.minimum(turns.response / score_scale, 1.0))
    if split != ALL:
        turns = fold(turns, 0, folds=folds)[split == TEST]
    tasks = [_task(dialogues[number], image_bytes, image_tokens) for number in turns.dialogues]
    return M4a1World(tasks, turns)


def _task(dialogue: m4a1.Dialogue, image_bytes: int, image_tokens: int) -> Task:
    images = [Attachment(f"image {i}", image_bytes, image_tokens) for i in range(len(dialogue.image_paths))]
    asked = [Turn(turn.question, turn.task_cat, turn.association_scores) for turn in dialogue.turns]
    latent = M4a1Latent(tuple(turn.answer for turn in dialogue.turns))
    return dialogue_task(f"m4a1-{dialogue.id}", asked, images, family="m4a1", latent=latent)


class M4a1Backend:
    """Answers M4A1 turns with the response that a fitted model expects of the action and what came before it.

    `cloud` maps a model's name to whether it stands for M4A1's cloud model; models not in `multimodal` see no images. Of what a model saw
    the state knows the turn before and up to four more, as the paper's does. `noise` is the largest deviation of a response from its
    mean, as a share of the way to 0 or 1; it belongs to (dialogue, position, model, images).
    """

    def __init__(
        self, layout: Layout, model: ResponseModel, cloud: Mapping[str, bool], multimodal: frozenset[str],
        noise: float = 0.0, bytes_per_token: float = 4.0,
    ) -> None:  # fmt: skip
        self._layout, self._model, self._cloud, self._multimodal = layout, model, dict(cloud), multimodal
        self._truth, self._bytes_per_token = Truth(noise=noise), bytes_per_token
        self._known: dict[tuple[object, ...], float] = {}

    def submit(self, call: ModelCall, model: str) -> Completion:
        """The recorded answer's text and length, with the modelled response as its score."""
        if call.attachments is None:
            call = with_attachments(call, call.task.attachments if model in self._multimodal else ())
        assert call.attachments is not None
        latent = call.task.latent
        if not isinstance(latent, M4a1Latent):
            raise InputError(f"task {call.task.id!r}", "is no M4A1 dialogue", "Use workload.tasks of kind m4a1")
        names = tuple([attachment.name for attachment in call.attachments])
        now = [attachment.name in names for attachment in call.task.attachments]
        key, said = zlib.crc32(call.task.id.encode()), latent.answers[call.position]
        tokens = max(1, round(len(said.encode()) / self._bytes_per_token))
        return Completion(
            model, signature(model, names) + said, call.prompt_tokens, tokens,
            FRAMING_BYTES + int(tokens * self._bytes_per_token), provenance="modelled",
            score=self._truth.score(self.mean(call, model, names), key, call.position, model, now),
        )  # fmt: skip

    def mean(self, call: ModelCall, model: str, names: Sequence[str]) -> float:
        """The expected response of `model`, in [0, 1], with these images at hand."""
        actions = [self._action(call.task, *answer) for answer in answers_so_far(call)]
        action = self._action(call.task, model, names)
        key = (call.task.id, call.position, action, *actions)
        if key not in self._known:
            self._known[key] = self._expected(call, actions, action)
        return self._known[key]

    def _expected(self, call: ModelCall, actions: Sequence[int], action: int) -> float:
        turns = turns_of(call.task)[: call.position + 1]
        kinds = [np.array([self._kind(turn.kind)], np.intp) for turn in turns]
        states = [
            self._layout.state(None if place == 0 else np.array([actions[place - 1]]), kind)
            for place, kind in enumerate(kinds)
        ]
        features = self._layout.features(states, np.array([turn_of(call).associations], float))
        mean, _ = self._model.predict(features, np.array([action]))
        return float(np.clip(mean[0], 0.0, 1.0))

    def _kind(self, name: str) -> int:
        if name not in self._layout.kinds:
            raise InputError(
                f"task kind {name!r}",
                "occurs in no dialogue the responses are modelled on",
                suggest(name, self._layout.kinds),
            )
        return self._layout.kinds.index(name)

    def _action(self, task: Task, model: str, names: Sequence[str]) -> int:
        if model not in self._cloud:
            raise InputError("m4a1: model", f"there is no model {model!r}", suggest(model, self._cloud))
        attached = [attachment.name for attachment in task.attachments]
        # M4A1's local model saw no images, so what one would make of them is not known: it counts as without.
        return self._layout.action_of(self._cloud[model], [attached.index(name) for name in names])


def answers_so_far(call: ModelCall) -> list[tuple[str, tuple[str, ...]]]:
    """(model, names of what it saw) of every earlier turn, read off the conversation."""
    found = [history_of([message]) for message in call.messages if message.role == "assistant"]
    names = [attachment.name for attachment in call.task.attachments]
    return [(history.last_model, tuple(name for name in names if name in history.seen)) for history in found]
