"""The truth behind generated dialogues: how good an answer is, as a function of the turn, the action and what came before.

For a turn of kind k whose question needs modality m to the degree x[m] in [0, 1], answered by a model of quality q that sees the
modalities S, at position p of its dialogue:

    s[m]     = 1 if m in S, `memory` if a model saw m earlier in the dialogue, else 0
    missed   = sum over m of (1 - s[m]) x[m] / max(1, sum over m of x[m])
    skill    = weak[k] + (strong[k] - weak[k]) q - fade p (1 - q)
    clutter  = distraction x mean over m of ([m in S] (1 - x[m]))
    mean     = max(0, skill (1 - visual[k] missed) - clutter - switch [another model answered the turn before])

What is covered is, as TMO's association of an action, a sum over the modalities; the division keeps any number of them within
[0, 1]. An answer's score is mean + noise x min(mean, 1 - mean) x (u + v - 1) with u, v uniform: within [0, 1] and with
this very mean. The noise belongs to (dialogue, position, model, S) and to nothing else, so every policy meets the same.

What came before is read off the conversation, where every answer says who gave it and what it saw: the truth keeps no state.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workloads.agent import FRAMING_BYTES
from workloads.dialogue import turn_of
from workloads.errors import InputError, suggest
from workloads.task import Completion, Message, ModelCall, Task, fast_constructor, with_attachments

FloatArray = npt.NDArray[np.float64]
_64_BITS = (1 << 64) - 1
_completion = fast_constructor(Completion)
_NOT_MEASURED = tuple((Completion._field_defaults | {"provenance": "modelled"}).values())[:-1]
"""What an answer says between its size and its score."""


class Kind(NamedTuple):
    """A task category: skill of the weakest and the strongest model, and the share of it that needs what the turn refers to.

    `needs[i]` is the chance that a question refers to i modalities; `answer_tokens` the mean length of an answer.
    """

    name: str
    weak: float
    strong: float
    visual: float
    needs: tuple[float, ...]
    answer_tokens: float


class DialogueLatent(NamedTuple):
    """What a generated dialogue knows and no policy sees: per turn its kind, its true needs and its answer's length; its noise."""

    kinds: tuple[Kind, ...]
    needs: tuple[tuple[float, ...], ...]
    answer_tokens: tuple[int, ...]
    key: int


@dataclass(frozen=True)
class Truth:
    """The numbers of the formula above that belong to no kind."""

    memory: float = 0.5
    """What having been seen earlier is worth of being seen now, 0..1."""
    fade: float = 0.03
    """Skill the weakest model loses per position; the strongest loses none."""
    distraction: float = 0.1
    """What sending along everything costs where nothing is needed."""
    switch: float = 0.03
    """What it costs that another model answered the turn before."""
    noise: float = 0.6
    """Largest deviation of a score, as a share of the way to 0 or 1, whichever is nearer."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not 0.0 <= value <= 1.0:
                raise InputError(f"dialogues: {item.name}", f"found {value}", "Give a number from 0 to 1")

    def missed(self, needs: FloatArray, now: npt.NDArray[np.bool_], earlier: npt.NDArray[np.bool_]) -> FloatArray:
        """The share of what is needed that is not seen; arrays (..., modalities) that broadcast."""
        unseen = np.where(now, 0.0, np.where(earlier, 1.0 - self.memory, 1.0))
        missed: FloatArray = np.sum(unseen * needs, axis=-1) / np.maximum(1.0, np.sum(needs, axis=-1))
        return missed

    def clutter(self, needs: FloatArray, now: npt.NDArray[np.bool_]) -> FloatArray:
        """What is lost to modalities that are sent along and not needed."""
        if not needs.shape[-1]:
            return np.zeros(np.broadcast_shapes(needs.shape[:-1], now.shape[:-1]))
        unneeded: FloatArray = np.mean(np.where(now, 1.0 - needs, 0.0), axis=-1)
        return self.distraction * unneeded

    def skill(self, kind: Kind, quality: float, position: int) -> float:
        """What a model of this quality is able to at this position, if it sees all it needs."""
        return kind.weak + (kind.strong - kind.weak) * quality - self.fade * position * (1.0 - quality)

    def mean(
        self, kind: Kind, needs: Sequence[float], quality: float, position: int, now: Sequence[bool],
        earlier: Sequence[bool], *, switched: bool,
    ) -> float:  # fmt: skip
        """The expected score of one answer, in [0, 1]; the formula above in plain floats, as every turn of a simulation asks."""
        unseen = clutter = 0.0
        for need, is_seen, was_seen in zip(needs, now, earlier, strict=True):
            if is_seen:
                clutter += 1.0 - need
            else:
                unseen += need * (1.0 - self.memory if was_seen else 1.0)
        lost = self.distraction * clutter / len(needs) if needs else 0.0
        skill = self.skill(kind, quality, position)
        missed = unseen / max(1.0, sum(needs))
        return max(0.0, skill * (1.0 - kind.visual * missed) - lost - (self.switch if switched else 0.0))

    def score(self, mean: float, key: int, position: int, model: str, now: Sequence[bool]) -> float:
        """A drawn score with this mean."""
        mask = 0
        for place, is_seen in enumerate(now):
            if is_seen:
                mask |= 1 << place
        slot = _mixed(_mixed(_mixed(key ^ zlib.crc32(model.encode())) ^ position) ^ mask)
        u, v = (slot & 0xFFFFFFFF) / 2**32, (slot >> 32) / 2**32
        return mean + self.noise * min(mean, 1.0 - mean) * (u + v - 1.0)


def _mixed(value: int) -> int:
    """Steele, Lea and Flood's SplitMix64 (OOPSLA 2014): a well-mixed 64-bit number for each 64-bit number."""
    value = (value + 0x9E3779B97F4A7C15) & _64_BITS
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _64_BITS
    return value ^ (value >> 31)


class History(NamedTuple):
    """What came before a turn: the model that answered last ('' before the first turn) and the modalities any model has seen."""

    last_model: str
    seen: frozenset[str]


_history = fast_constructor(History)


def history_of(messages: Sequence[Message]) -> History:
    """The history that a conversation with a DialogueBackend tells."""
    last_model, seen = "", set[str]()
    for role, content in messages:
        if role == "assistant":
            last_model, _, names = content.partition(": ")[0].partition(" saw ")
            if names:
                seen.update(names.split(", "))
    return _history((last_model, frozenset(seen)))


def signature(model: str, names: Sequence[str]) -> str:
    """How an answer begins: who gives it and what it saw."""
    return f"{model} saw {', '.join(names)}: " if names else f"{model}: "


class DialogueBackend:
    """Answers generated dialogues by the truth.

    `quality` maps a model's name to how large-model-like it is (0..1); models not in `multimodal` see no attachments. A call that
    nobody placed comes with all its task's attachments, as a placement does that names none. Everything is labelled `modelled`.
    """

    def __init__(
        self, quality: Mapping[str, float], multimodal: frozenset[str], truth: Truth | None = None, bytes_per_token: float = 4.0,
    ) -> None:  # fmt: skip
        for model in quality:
            if ":" in model or " saw " in model:
                raise InputError(
                    "dialogues: model", f"the name {model!r} holds ':' or ' saw '", "Give another model_name"
                )
        self.quality, self.multimodal, self.truth = dict(quality), multimodal, truth or Truth()
        self._bytes_per_token = bytes_per_token

    def submit(self, call: ModelCall, model: str) -> Completion:
        """The answer, of the length drawn for this turn, with the score of the truth."""
        if call.attachments is None:
            call = with_attachments(call, call.task.attachments if model in self.multimodal else ())
        latent, seen = latent_of(call.task), call.attachments or () if model in self.multimodal else ()
        position, tokens = call.position, latent.answer_tokens[call.position]
        names = tuple([attachment.name for attachment in seen])
        text = signature(model, names) + turn_of(call).question
        now = [attachment.name in names for attachment in call.task.attachments]
        score = self.truth.score(self._mean(call, latent, model, now), latent.key, position, model, now)
        size_bytes = FRAMING_BYTES + int(tokens * self._bytes_per_token)
        return _completion((model, text, call.prompt_tokens, tokens, size_bytes, *_NOT_MEASURED, score))

    def mean(self, call: ModelCall, model: str, names: Sequence[str]) -> float:
        """The expected score of `model` with these modalities at hand."""
        now = [attachment.name in names for attachment in call.task.attachments]
        return self._mean(call, latent_of(call.task), model, now)

    def _mean(self, call: ModelCall, latent: DialogueLatent, model: str, now: Sequence[bool]) -> float:
        if model not in self.quality:
            raise InputError("dialogues: model", f"there is no model {model!r}", suggest(model, self.quality))
        position, (last_model, seen) = call.position, history_of(call.messages)
        return self.truth.mean(
            latent.kinds[position], latent.needs[position], self.quality[model], position, now,
            [attachment.name in seen for attachment in call.task.attachments], switched=last_model not in ("", model),
        )  # fmt: skip


def latent_of(task: Task) -> DialogueLatent:
    """What a generated dialogue knows. Raises InputError for a task that is none."""
    if not isinstance(task.latent, DialogueLatent):
        raise InputError(f"task {task.id!r}", "is no generated dialogue", "Use workload.tasks of kind dialogues")
    return task.latent
