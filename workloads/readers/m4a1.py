"""M4A1: multi-modal, multi-task, multi-dialogue data of a home assistant, answered locally or in the cloud.

Source: github.com/liangqiyuan/LCIO (MIT), the data of TMO: Yuan et al., "Local-Cloud Inference Offloading for LLMs in
Multi-Modal, Multi-Task, Multi-Dialogue Settings", 2025.

One JSON list of dialogues. Each has an id, the paths of its images (one per view of the scene), its interactions and, per
interaction, one association score per image: how much the question needs that image. Traps:
- Only the outcome of the action taken is recorded: score, time and cost of the other action are unknown.
- `action` is 0 for the local model, which sees no image, and 1 for the cloud; `image_index` lists the uploaded images in
  any order and is null where none was.
- Scores run from 0 to 9 in the published file, not from 0 to 1.
- Time is the whole interaction in seconds, usage cost in dollars, both as measured by the authors.
- The images themselves are not part of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from workloads.errors import InputError
from workloads.readers._fields import list_field, number_field, other_fields, require_fields, text_field
from workloads.readers._rows import StrPath, json_document, json_kind, place

FORMAT = "M4A1 dialogues: JSON list with image_paths, interactions and association_score"

LOCAL, CLOUD = 0, 1
DIALOGUE = ("id", "image_paths", "interactions", "association_score")
TURN = ("question", "task_cat", "action", "image_index", "answer", "score", "interaction_time", "usage_cost")


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and the outcome of the action taken: LOCAL or CLOUD, uploading the images `image_index` (or None).

    `association_scores` has one entry per image of the dialogue. `extra` holds fields the published file does not have.
    """

    question: str
    task_cat: str
    action: int
    image_index: tuple[int, ...] | None
    answer: str
    score: float
    interaction_time_s: float
    usage_cost_usd: float
    association_scores: tuple[float, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The turns of one user in one scene, whose images are named by `image_paths`."""

    id: int
    image_paths: tuple[str, ...]
    turns: tuple[Turn, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


def read(path: StrPath) -> Iterator[Dialogue]:
    """Yield the dialogues in file order; raises InputError at a malformed one or at an id that occurs twice."""
    document = json_document(path)
    if not isinstance(document, list) or not document:
        raise InputError(place(path), f"holds {json_kind(document)} instead of dialogues", "Give a JSON list [{...}]")
    seen: set[int] = set()
    for position, value in enumerate(document):
        where = f"dialogue {position}"
        dialogue = _dialogue(value, path, where)
        if dialogue.id in seen:
            raise InputError(place(path, where, "id"), f"dialogue {dialogue.id} occurs twice", "Keep one of them")
        seen.add(dialogue.id)
        yield dialogue


def _dialogue(value: Any, path: StrPath, where: str) -> Dialogue:
    require_fields(value, DIALOGUE, path, where)
    images = list_field(value["image_paths"], "image_paths", path, where)
    if not all(isinstance(image, str) and image for image in images):
        problem = f"{json_kind(images)} is not a list of paths"
        raise InputError(place(path, where, "image_paths"), problem, "Give the path of every image as text")
    turns = list_field(value["interactions"], "interactions", path, where)
    if not turns:
        raise InputError(place(path, where, "interactions"), "the dialogue is empty", "Give at least one interaction")
    scores = list_field(value["association_score"], "association_score", path, where, len(turns))
    return Dialogue(
        id=number_field(value["id"], "id", path, where, 0, integer=True),
        image_paths=tuple(images),
        turns=tuple(
            _turn(turn, association, len(images), path, f"{where}, turn {position}")
            for position, (turn, association) in enumerate(zip(turns, scores, strict=True))
        ),
        extra=other_fields(value, DIALOGUE),
    )


def _turn(value: Any, association: Any, images: int, path: StrPath, where: str) -> Turn:
    require_fields(value, TURN, path, where)
    action = number_field(value["action"], "action", path, where, integer=True)
    if action not in (LOCAL, CLOUD):
        raise InputError(place(path, where, "action"), f"there is no action {action}", "Give 0 (local) or 1 (cloud)")
    image_index = _image_index(value["image_index"], images, path, where)
    if action == LOCAL and image_index:
        problem = "images are uploaded in an action that stays local"
        raise InputError(place(path, where, "image_index"), problem, "Give null, or the action 1 (cloud)")
    scores = list_field(association, "association_score", path, where, images)
    return Turn(
        question=text_field(value, "question", path, where, filled=True),
        task_cat=text_field(value, "task_cat", path, where, filled=True),
        action=action,
        image_index=image_index,
        answer=text_field(value, "answer", path, where),
        score=number_field(value["score"], "score", path, where, 0),
        interaction_time_s=number_field(value["interaction_time"], "interaction_time", path, where, 0),
        usage_cost_usd=number_field(value["usage_cost"], "usage_cost", path, where, 0),
        association_scores=tuple(number_field(score, "association_score", path, where) for score in scores),
        extra=other_fields(value, TURN),
    )


def _image_index(value: Any, images: int, path: StrPath, where: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    index = [
        number_field(item, "image_index", path, where, 0, integer=True)
        for item in list_field(value, "image_index", path, where)
    ]
    if len(set(index)) < len(index) or any(item >= images for item in index):
        problem = f"{index} does not name distinct images out of {images}"
        raise InputError(place(path, where, "image_index"), problem, "Count the dialogue's images from 0, each once")
    return tuple(index)
