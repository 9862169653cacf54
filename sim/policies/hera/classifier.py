"""An encoder with a head, fine-tuned by a low-rank adapter: HERA's URC and DP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sim.policies.computed_store import Remembered
from sim.policies.features import FloatArray
from sim.policies.hera.adapters import (
    OnStep,
    load_base,
    minimise,
    save_adapter,
    weights_store,
    with_adapter,
)
from sim.policies.threads import one_thread

BATCH = 32
_ASKED_AT_ONCE = 64


class ScoredText(NamedTuple):
    """A text with a number beside it that matters too (a position), and the target: class weights that add up to 1."""

    text: str
    position: int
    target: tuple[float, ...]


class TextClassifier:
    """An encoder, mean pooling and a linear head that sees position and length too: P(class | text, position). `folder` is where a trained one lies."""

    def __init__(self, encoder: str, classes: int, folder: Path | None = None, seed: int = 0) -> None:
        import torch

        torch.manual_seed(seed)
        self._base = encoder
        base, self._tokenizer = load_base("AutoModel", encoder)
        self.model = with_adapter(base, folder)
        self.head = torch.nn.Linear(base.config.hidden_size + 2, classes)
        if folder is not None:
            from safetensors.torch import load_file

            self.head.load_state_dict(load_file(folder / "head.safetensors"))
        self._known = Remembered[tuple[str, int], FloatArray](
            weights_store(encoder, folder), np.ndarray.tobytes, np.frombuffer
        )

    def fit(self, rows: Sequence[ScoredText], epochs: int, rate: float, seed: int, on_step: OnStep) -> list[float]:
        """Minimise the cross-entropy with AdamW; returns the mean loss of each epoch."""
        import torch

        def loss_of(batch: Sequence[ScoredText]) -> Any:
            odds = self._odds([(row.text, row.position) for row in batch])
            return torch.nn.functional.cross_entropy(odds, torch.tensor([row.target for row in batch]))

        parameters = [*self.model.parameters(), *self.head.parameters()]
        self.model.train()
        losses = minimise(parameters, rows, lambda row: len(row.text), BATCH, loss_of, epochs, rate, seed, on_step)
        self.model.eval()
        self._known.forget()
        return losses

    def _odds(self, asked: Sequence[tuple[str, int]]) -> Any:
        import torch

        tokens = self._tokenizer(
            [text for text, _ in asked], padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        hidden = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].float()
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        sizes = [
            [position / 10.0, math.log(count / 30.0)]
            for (_, position), count in zip(asked, mask.sum((1, 2)).tolist(), strict=True)
        ]
        return self.head(torch.cat([pooled, torch.tensor(sizes)], 1))

    def know(self, asked: Sequence[tuple[str, int]]) -> None:
        """Work many out at once, which is several times as fast as one by one."""
        texts = {one: f"{one[1]} {one[0]}" for one in asked}
        self._known.know(texts, self._shares, _ASKED_AT_ONCE, order=lambda one: (len(one[0]), one))

    def _shares(self, asked: Sequence[tuple[str, int]]) -> list[FloatArray]:
        import torch

        self.model.eval()
        with one_thread(), torch.inference_mode():
            shares = torch.softmax(self._odds(asked), 1).numpy().astype(float)
        return list(np.round(shares, 5))

    def __call__(self, text: str, position: int = 0) -> FloatArray:
        """P(class), shape (classes,), to 5 digits: the last ones depend on the texts it is computed beside."""
        self.know([(text, position)])
        return self._known[text, position]

    def save(self, folder: Path) -> None:
        """Adapter and head."""
        from safetensors.torch import save_file

        save_adapter(self.model, self._base, folder)
        save_file(self.head.state_dict(), folder / "head.safetensors")
