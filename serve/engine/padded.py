"""Static batches for models whose state does not fit slots: recurrent layers, attention biases by distance, chunks.

A batch is read and decoded together as transformers itself would do it, on the model's own cache; nobody joins before the last of
them is done. It is slower under load than `SlotDecoder` and works for whatever transformers can generate with.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch
from transformers import DynamicCache

from serve.engine.decoding import left_padded, take_next

_CACHE_NAMES = ("past_key_values", "cache_params")


class PaddedDecoder:
    """Batches that start together. A finished row stays in the batch, unheard, until all are done."""

    can_join = False

    def __init__(self, model: Any) -> None:
        self._model, self._device = model, model.device
        known = inspect.signature(model.forward).parameters
        self._cache_name = next((name for name in _CACHE_NAMES if name in known), "past_key_values")
        self._has_positions = "position_ids" in known
        self._keeps_logits = "logits_to_keep" in known
        self.rows: list[Any] = []
        self._batch: list[Any] = []
        self._cache: Any = None
        self._tokens = self._mask = self._positions = torch.empty(0)

    def groups(self, rows: Sequence[Any]) -> list[list[Any]]:
        """All in one."""
        return [list(rows)] if rows else []

    def add(self, rows: list[Any]) -> None:
        """Start a batch; only where none is running."""
        assert not self._batch, "a static batch takes nobody in while it runs"
        started_s = perf_counter()
        ids, starts = left_padded(rows, self._device)
        columns = torch.arange(ids.shape[1], device=self._device)
        self._mask = (columns >= starts).long()
        self._positions = (columns - starts).clamp_(min=0)
        self._cache = DynamicCache(config=self._model.config)
        try:
            tokens = take_next(rows, self._forward(ids))
        except BaseException:
            self.clear()
            raise
        self._tokens = tokens[:, None].clone()
        self._batch, self.rows = list(rows), list(rows)
        ended_s = perf_counter()
        for row in rows:
            row.started_s, row.prefilled_s, row.decoded_s = started_s, ended_s, ended_s

    def step(self) -> None:
        """One forward pass over the whole batch."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1
        logits = self._forward(self._tokens)
        running = [index for index, row in enumerate(self._batch) if row is not None]
        self._tokens[running, 0] = take_next(self.rows, logits[running])

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        given: dict[str, Any] = {self._cache_name: self._cache, "attention_mask": self._mask, "use_cache": True}
        if self._has_positions:
            given["position_ids"] = self._positions
        if self._keeps_logits:
            given["logits_to_keep"] = 1
        first = not self._batch
        inputs = self._model.prepare_inputs_for_generation(
            ids, is_first_iteration=first, **given
        )  # each model knows best
        logits: torch.Tensor = self._model(**inputs).logits
        return logits[:, -1]

    def take_finished(self) -> list[Any]:
        """Return the rows that have a finish reason; they are no longer in `rows`."""
        now, finished = perf_counter(), [row for row in self.rows if row.finish_reason is not None]
        if not finished:
            return []
        for row in finished:
            row.decoded_s = now
        self._batch = [None if row is None or row.finish_reason is not None else row for row in self._batch]
        self.rows = [row for row in self._batch if row is not None]
        if not self.rows:
            self.clear()
        return finished

    def clear(self) -> None:
        """Drop the batch."""
        self.rows, self._batch, self._cache = [], [], None
