"""Generated dialogues: any number of modalities, task categories and turns in several places of work, with a known truth.

What is drawn, for a dialogue (everything independent unless said otherwise):

- its domain, evenly among those given, and its number of turns, evenly among those given (2 to 5: 3.5 in the mean);
- the size of each modality, log-normal: an image is 1, 2, 4 or 6 tiles of 512 x 512 pixels (with 0.2, 0.3, 0.35, 0.15: 3.1 in the
  mean) of 92 kB each (0.35 bytes per pixel, a JPEG) with a standard deviation of the logarithm of 0.4, and 85 + 170 tokens per tile
  (OpenAI's count for GPT-4o); a sound clip is 2, 5, 10 or 20 s of 16 kB and 10 tokens each; a log is 1, 2, 4 or 8 kB and 0.25 tokens
  per byte;
- for each turn its kind, evenly among the first `kinds` of KINDS; how many modalities its question refers to, with the kind's
  probabilities (`Kind.needs`, cut off at the number of modalities); which ones, evenly; and the question's text, which names them;
  with the chance `persistence` it refers to those of the turn before instead, whatever its kind;
- what the turn needs: 0.6 to 0.95 of each modality it refers to, 0 to 0.1 of each other, evenly;
- the association scores that policies see: the needs plus a normal error of `association_error`, cut off at 0 and 1;
- the answer's length, log-normal with the kind's mean and a coefficient of variation of 0.5, the same whichever model answers.

How good an answer is: workloads/dialogue_truth.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np

from workloads.dialogue import Turn, dialogue_task
from workloads.dialogue_truth import DialogueLatent, Kind
from workloads.errors import InputError, suggest
from workloads.task import Attachment, Task
from workloads.tasks.dialogue_texts import DOMAINS, GENERIC, question

KINDS = (
    Kind("assistive system", 0.70, 0.88, 0.60, (0.40, 0.40, 0.20), 60.0),
    Kind("message editing", 0.80, 0.92, 0.30, (0.75, 0.20, 0.05), 90.0),
    Kind("query", 0.55, 0.90, 0.75, (0.25, 0.50, 0.25), 70.0),
    Kind("recommendation", 0.50, 0.88, 0.65, (0.20, 0.40, 0.40), 120.0),
    Kind("diagnosis", 0.40, 0.85, 0.85, (0.05, 0.45, 0.50), 130.0),
    Kind("instruction", 0.60, 0.90, 0.50, (0.35, 0.40, 0.25), 150.0),
    Kind("inspection", 0.45, 0.86, 0.90, (0.00, 0.60, 0.40), 60.0),
    Kind("summary", 0.65, 0.92, 0.55, (0.30, 0.30, 0.40), 140.0),
)
"""The first four are those of TMO's M4A1; the numbers are chosen, not measured."""
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


class Modality(NamedTuple):
    """What can be sent along: `units` of `unit_bytes` (log-normal, `sigma`), and base + per unit tokens in the prompt."""

    name: str
    unit_bytes: float
    units: tuple[int, ...]
    chances: tuple[float, ...]
    sigma: float
    base_tokens: float
    unit_tokens: float


def _image(name: str) -> Modality:
    return Modality(name, 92_000.0, (1, 2, 4, 6), (0.2, 0.3, 0.35, 0.15), 0.4, 85.0, 170.0)


def _sound(name: str) -> Modality:
    return Modality(name, 16_000.0, (2, 5, 10, 20), (0.25, 0.25, 0.25, 0.25), 0.1, 0.0, 10.0)


def _log(name: str) -> Modality:
    return Modality(name, 1_000.0, (1, 2, 4, 8), (0.25, 0.25, 0.25, 0.25), 0.2, 0.0, 250.0)


MODALITIES = (
    _image("overview"), _image("close-up"), _image("side view"), _sound("sound clip"), _log("sensor log"), _image("earlier photo"),
    _image("thermal image"), _sound("voice memo"), _log("service history"),
)  # fmt: skip
"""Further ones are images called `view 10`, `view 11`, ..."""


@dataclass(frozen=True)
class DialogueSpec:
    """What kind of dialogues to draw; the module's docstring says how each field is used."""

    modalities: int = 3
    """Modalities that each dialogue has."""
    kinds: int = 4
    """Task categories."""
    turns: tuple[int, ...] = (2, 3, 4, 5)
    """Numbers of turns, drawn evenly from these."""
    domains: tuple[str, ...] = tuple(DOMAINS)
    """Places of work, drawn evenly from these."""
    size_scale: float = 1.0
    """Factor on the bytes of all attachments."""
    association_error: float = 0.05
    """Standard deviation of the association scores around the true needs."""
    persistence: float = 0.0
    """Chance that a turn refers to the same modalities as the turn before."""

    def __post_init__(self) -> None:
        for domain in self.domains:
            if domain not in DOMAINS:
                raise InputError("dialogues: domains", f"there is no domain {domain!r}", suggest(domain, DOMAINS))
        wrong = {
            "modalities": self.modalities < 0, "kinds": self.kinds < 1, "domains": not self.domains,
            "turns": not self.turns or min(self.turns, default=0) < 1, "size_scale": not 0.0 < self.size_scale < math.inf,
            "association_error": not 0.0 <= self.association_error < math.inf, "persistence": not 0.0 <= self.persistence <= 1.0,
        }  # fmt: skip
        for name, is_wrong in wrong.items():
            if is_wrong:
                remedy = "Allowed: 1 kind, domain and turn or more, 0 modalities or more, an error from 0, a scale above 0, a chance"
                raise InputError(f"dialogues: {name}", f"found {getattr(self, name)}", remedy)


def kinds_of(count: int) -> tuple[Kind, ...]:
    """The first `count` task categories. Those beyond KINDS ask generic questions, with numbers spread over the range of the named ones."""
    more = []
    for number in range(len(KINDS), count):
        share = math.modf(number * _GOLDEN)[0]  # a low-discrepancy sequence in [0, 1)
        needs = (0.5 * (1.0 - share), 0.4, 0.1 + 0.5 * share)
        name, tokens = f"{GENERIC} {number + 1}", 60.0 + 90.0 * (1.0 - share)
        more.append(Kind(name, 0.8 - 0.4 * share, 0.92 - 0.07 * share, 0.3 + 0.6 * share, needs, tokens))
    return (*KINDS, *more)[:count]


def modalities_of(count: int) -> tuple[Modality, ...]:
    """The first `count` modalities."""
    more = (_image(f"view {number + 1}") for number in range(len(MODALITIES), count))
    return (*MODALITIES, *more)[:count]


def dialogue_tasks(
    count: int, rng: np.random.Generator, spec: DialogueSpec | None = None, name: str = "dialogue"
) -> Iterator[Task]:
    """Draw `count` dialogues with ids `name`-0, `name`-1, ...; a task's `family` is its domain."""
    spec = spec or DialogueSpec()
    kinds, modalities = kinds_of(spec.kinds), modalities_of(spec.modalities)
    for number in range(count):
        yield _dialogue(f"{name}-{number}", rng, spec, kinds, modalities)


def _dialogue(
    name: str, rng: np.random.Generator, spec: DialogueSpec, kinds: Sequence[Kind], modalities: Sequence[Modality]
) -> Task:
    domain = spec.domains[rng.integers(len(spec.domains))]
    key = int(rng.integers(1 << 63))
    random = Random(key)  # words and places: choices that need no array
    attachments = [_attachment(modality, rng, spec.size_scale) for modality in modalities]
    turns, needs, needed = list[Turn](), list[tuple[float, ...]](), list[int]()
    asked = [kinds[index] for index in rng.integers(len(kinds), size=spec.turns[rng.integers(len(spec.turns))])]
    for kind in asked:
        chances = kind.needs[: len(modalities) + 1]
        count = random.choices(range(len(chances)), chances if any(chances) else None)[0]
        drawn = sorted(random.sample(range(len(modalities)), count))
        goes_on = turns and spec.persistence and random.random() < spec.persistence
        needed = needed if goes_on else drawn
        need = rng.uniform(0.0, 0.1, len(modalities))
        need[needed] = rng.uniform(0.6, 0.95, len(needed))
        seen = np.clip(need + rng.normal(0.0, spec.association_error, len(modalities)), 0.0, 1.0)
        text = question(kind.name, DOMAINS[domain], [modalities[index].name for index in needed], random)
        turns.append(Turn(text, kind.name, tuple(seen.tolist())))
        needs.append(tuple(need.tolist()))
    lengths = _lengths([kind.answer_tokens for kind in asked], rng)
    return dialogue_task(name, turns, attachments, domain, DialogueLatent(tuple(asked), tuple(needs), lengths, key))


def _attachment(modality: Modality, rng: np.random.Generator, scale: float) -> Attachment:
    units = modality.units[int(np.searchsorted(np.cumsum(modality.chances), rng.random(), side="right"))]
    size = modality.unit_bytes * units * math.exp(modality.sigma * rng.standard_normal()) * scale
    return Attachment(modality.name, max(1, round(size)), round(modality.base_tokens + modality.unit_tokens * units))


def _lengths(means: Sequence[float], rng: np.random.Generator, cv: float = 0.5) -> tuple[int, ...]:
    """Log-normal numbers of tokens, at least 1."""
    sigma = math.sqrt(math.log1p(cv * cv))
    drawn = np.exp(np.log(means) - sigma * sigma / 2 + sigma * rng.standard_normal(len(means)))
    return tuple(np.maximum(1, np.rint(drawn)).astype(int).tolist())
