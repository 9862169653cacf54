"""Logged dialogue turns as arrays: what was known, what was done, how good the answer was. From an M4A1 file or made up.

The state of a turn is the paper's (arXiv 2502.11007): one row [where the turn before ran (-1 first, 0 local, 1 cloud), a bit per
image it uploaded, task kind] for each of the last five turns, oldest first, padded with -1. `features` adds the turn's association
scores, which the paper's state leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt

from workloads.errors import InputError
from workloads.readers import m4a1

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]

SPAN = 5
"""Turns in the paper's window."""
NOT_YET = -1
"""Padding of the window, and where the turn before the first one ran."""
SORRY = ("sorry", "I don't have", "can't")
"""An answer with one of these is worth nothing to the authors."""
MOST_IMAGES = 8
"""257 actions; a table of more says nothing."""


@dataclass(frozen=True)
class Layout:
    """How actions and features are numbered for so many images and these task kinds.

    Action 0 stays local; the others go to the cloud with a subset of the images: none first, then by size and number.
    """

    images: int
    kinds: tuple[str, ...]

    @cached_property
    def uploads(self) -> BoolArray:
        """(actions, images): which images an action uploads."""
        subsets = [subset for size in range(self.images + 1) for subset in combinations(range(self.images), size)]
        bits = np.zeros((1 + len(subsets), self.images), bool)
        for action, subset in enumerate(subsets, 1):
            bits[action, list(subset)] = True
        return bits

    @cached_property
    def cloud(self) -> BoolArray:
        """(actions,): whether an action goes to the cloud."""
        return np.arange(len(self.uploads)) > 0

    @property
    def actions(self) -> int:
        """Number of actions."""
        return len(self.uploads)

    @property
    def history(self) -> int:
        """Width of the paper's state: the first columns of `features`."""
        return SPAN * (self.images + 2)

    @property
    def names(self) -> list[str]:
        """Of the actions, for tables."""
        return ["local", "cloud text"] + [
            "cloud " + "+".join(map(str, np.flatnonzero(row))) for row in self.uploads[2:]
        ]

    def bits(self, action: npt.ArrayLike) -> FloatArray:
        """(n, 1 + images): an action as the paper writes it, where it runs and what it uploads."""
        chosen = np.asarray(action, np.intp)
        return np.column_stack([self.cloud[chosen], self.uploads[chosen]]).astype(float)

    def action_of(self, cloud: bool, images: Iterable[int]) -> int:
        """The number of an action."""
        if not cloud:
            return 0
        wanted = np.zeros(self.images, bool)
        wanted[list(images)] = True
        return 1 + int(np.flatnonzero((self.uploads[1:] == wanted).all(axis=1))[0])

    def associations_of(self, associations: FloatArray) -> FloatArray:
        """(n, images) scores -> (n, actions): the sum over what an action uploads."""
        summed: FloatArray = associations @ self.uploads.T.astype(float)
        return summed

    def features(self, states: Sequence[FloatArray], associations: FloatArray) -> FloatArray:
        """(n, history + images): `states` are the rows of the last five turns or fewer, each (n, images + 2), oldest first."""
        missing = np.full((len(associations), (SPAN - len(states[-SPAN:])) * (self.images + 2)), float(NOT_YET))
        return np.hstack([missing, *states[-SPAN:], associations])

    def state(self, previous: npt.ArrayLike | None, kind: IntArray) -> FloatArray:
        """(n, images + 2): a turn's own row; `previous` holds the actions of the turns before, None for first turns."""
        if previous is None:
            bits = np.zeros((len(kind), 1 + self.images))
            bits[:, 0] = NOT_YET
        else:
            bits = self.bits(previous)
        return np.column_stack([bits, kind])


@dataclass(frozen=True)
class LoggedTurns:
    """n turns, those of a dialogue side by side in the order of their positions; every array has n rows.

    `response` is the score of the answer under the action taken, in the file's own scale; `refused` marks answers with the
    authors' "sorry" words. `latency_s` and `usage_usd` are what was measured, NaN where it was not.
    """

    layout: Layout
    dialogue: IntArray
    position: IntArray
    kind: IntArray
    features: FloatArray
    action: IntArray
    associations: FloatArray
    response: FloatArray
    refused: BoolArray
    latency_s: FloatArray
    usage_usd: FloatArray

    def __len__(self) -> int:
        return len(self.dialogue)

    @property
    def dialogues(self) -> IntArray:
        """The numbers of the dialogues, each once, ascending."""
        return np.unique(self.dialogue)

    def of(self, dialogues: Iterable[int]) -> LoggedTurns:
        """The turns of these dialogues, in this order."""
        return self.rows(np.concatenate([np.flatnonzero(self.dialogue == number) for number in dialogues]))

    def rows(self, rows: IntArray | BoolArray) -> LoggedTurns:
        """The turns with these row numbers, or that a mask marks."""
        arrays = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name != "layout"}
        return replace(self, **arrays)

    def zeroed(self) -> LoggedTurns:
        """The authors' reading: an answer with a "sorry" word scores 0."""
        return replace(self, response=np.where(self.refused, 0.0, self.response))


def read_m4a1(path: Path) -> LoggedTurns:
    """The turns of an M4A1 file; task kinds in alphabetical order. Raises InputError for a malformed file."""
    return logged(list(m4a1.read(path)), str(path))


def logged(dialogues: Sequence[m4a1.Dialogue], source: str = "M4A1") -> LoggedTurns:
    """Dialogues as read, as arrays. Raises InputError where they differ in their number of images, or it is too large."""
    images = len(dialogues[0].image_paths)
    for place, dialogue in enumerate(dialogues):
        if len(dialogue.image_paths) != images:
            problem = f"has {len(dialogue.image_paths)} images, dialogue 0 has {images}"
            remedy = "Give all dialogues the same number: they share one set of actions"
            raise InputError(f"{source}, dialogue {place}, field 'image_paths'", problem, remedy)
    if images > MOST_IMAGES:
        problem, remedy = f"{images} images make {1 + 2**images} actions", f"Give at most {MOST_IMAGES}"
        raise InputError(f"{source}, dialogue 0, field 'image_paths'", problem, remedy)
    layout = Layout(images, tuple(sorted({turn.task_cat for dialogue in dialogues for turn in dialogue.turns})))
    turns = [(number, turn) for number, dialogue in enumerate(dialogues) for turn in dialogue.turns]
    of_dialogue = np.array([number for number, _ in turns], np.intp)
    kind = np.array([layout.kinds.index(turn.task_cat) for _, turn in turns], np.intp)
    action = np.array([layout.action_of(turn.action == m4a1.CLOUD, turn.image_index or ()) for _, turn in turns])
    associations = np.array([turn.association_scores for _, turn in turns], float).reshape(len(turns), images)
    return LoggedTurns(
        layout, of_dialogue, _positions(of_dialogue), kind,
        recorded_features(layout, of_dialogue, kind, action, associations), action, associations,
        response=np.array([turn.score for _, turn in turns], float),
        refused=np.array([any(word in turn.answer for word in SORRY) for _, turn in turns]),
        latency_s=np.array([turn.interaction_time_s for _, turn in turns], float),
        usage_usd=np.array([turn.usage_cost_usd for _, turn in turns], float),
    )  # fmt: skip


def recorded_features(
    layout: Layout, dialogue: IntArray, kind: IntArray, action: IntArray, associations: FloatArray
) -> FloatArray:
    """(n, history + images): what the log's own earlier actions make of every turn's state."""
    features = np.empty((len(dialogue), layout.history + layout.images))
    states: list[FloatArray] = []
    for row in range(len(dialogue)):
        first = row == 0 or dialogue[row] != dialogue[row - 1]
        states = [] if first else states
        states.append(layout.state(None if first else action[row - 1 : row], kind[row : row + 1]))
        features[row] = layout.features(states, associations[row : row + 1])
    return features


def _positions(dialogue: IntArray) -> IntArray:
    """0, 1, 2 ... within each dialogue."""
    starts = np.flatnonzero(np.diff(dialogue, prepend=-1))
    return np.arange(len(dialogue)) - np.repeat(starts, np.diff([*starts, len(dialogue)]))


def fold(turns: LoggedTurns, number: int, seed: int = 0, folds: int = 5) -> tuple[LoggedTurns, LoggedTurns]:
    """(train, test): part `number` of the dialogues, drawn by `seed`, is the test set; a fifth of them where there are five folds.

    The folds share no test dialogue and cover them all: policies trained on each are together judged once on every dialogue, none of
    which they had seen. Raises InputError for fewer dialogues than folds.
    """
    dialogues = turns.dialogues
    if len(dialogues) < folds:
        raise InputError(
            "dialogues", f"{len(dialogues)} cannot be split in {folds} parts", "Give a file of more, or fewer folds"
        )
    test = np.array_split(np.random.default_rng(seed).permutation(dialogues), folds)[number]
    return turns.of(np.setdiff1d(dialogues, test)), turns.of(test)


def authors_split(turns: LoggedTurns, seed: int) -> tuple[LoggedTurns, LoggedTurns]:
    """(train, test) as the authors' code splits with this seed, a fifth for testing: the very same dialogues, so results compare."""
    dialogues = [int(number) for number in turns.dialogues]
    Random(seed).shuffle(dialogues)
    held_out = len(dialogues) // 5
    if not held_out:
        raise InputError("dialogues", f"a fifth of {len(dialogues)} is none", "Give a file of five dialogues or more")
    return turns.of(dialogues[held_out:]), turns.of(dialogues[:held_out])
