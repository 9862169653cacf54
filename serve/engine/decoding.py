"""Token by token: rows of a running batch, and the decoder that lets rows join and leave between steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Protocol

import torch

from serve.engine.sampling import choose
from serve.engine.slot_cache import SlotCache
from serve.generation import Sampling

_PREFILL_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Padded prompt tokens of one forward pass. A few hundred already keep a core busy; more only adds padding and memory."""


class Row:
    """One conversation being answered: what was asked, what was produced so far, and when."""

    __slots__ = (
        "decoded_s", "ends", "finish_reason", "limit", "logprob_sum", "prefilled_s", "prompt", "random", "sampling", "started_s",
        "tokens",
    )  # fmt: skip

    def __init__(self, prompt: Sequence[int], limit: int, sampling: Sampling, ends: frozenset[int]) -> None:
        self.prompt, self.limit, self.sampling = prompt, limit, sampling
        self.ends = frozenset[int]() if sampling.ignore_end else ends
        self.started_s = self.prefilled_s = self.decoded_s = 0.0
        self.restart()

    def restart(self) -> None:
        """As if nothing had been produced."""
        self.random = random.Random(self.sampling.seed) if self.sampling.temperature > 0 else None
        self.tokens: list[int] = []
        self.logprob_sum = 0.0
        self.finish_reason: str | None = None

    def take(self, token: int, logprob: float) -> None:
        """Append a token; sets `finish_reason` when it was the last."""
        self.tokens.append(token)
        self.logprob_sum += logprob
        if token in self.ends:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.limit:
            self.finish_reason = "length"
        if logprob != logprob:
            self.finish_reason = "nan"

    def draw(self) -> float:
        """The row's next random number; greedy rows need none."""
        return 0.0 if self.random is None else self.random.random()

    def answer(self) -> list[int]:
        """The tokens of the answer's text: without the one that ended the turn."""
        return self.tokens[:-1] if self.finish_reason == "stop" else self.tokens


class Decoder(Protocol):
    """A batch of rows on one model. Not thread-safe: one thread owns it."""

    rows: list[Any]
    can_join: bool

    def groups(self, rows: Sequence[Any]) -> list[list[Any]]:
        """New rows, parted into what one call of `add` takes."""

    def add(self, rows: list[Any]) -> None:
        """Read the prompts of new rows; each gets its first token. None is added when the model raises."""

    def step(self) -> None:
        """One more token for every row."""

    def take_finished(self) -> list[Any]:
        """Remove and return the rows that have a finish reason."""

    def clear(self) -> None:
        """Drop everything, as after an exception in `step`."""


def prefill_groups(rows: Sequence[Row], most_tokens: int) -> list[list[Row]]:
    """Rows of similar length together, so that little is padding, in groups of at most this many padded tokens."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.prompt), reverse=True):
        if groups and len(groups[-1][0].prompt) * (len(groups[-1]) + 1) <= most_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def left_padded(rows: Sequence[Row], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids, starts): ids [rows, longest prompt], prompts at the right; starts [rows, 1], the first column in use.

    The padding is token 0: what it is does not matter, as nothing attends to it.
    """
    width = max(len(row.prompt) for row in rows)
    ids = [[0] * (width - len(row.prompt)) + list(row.prompt) for row in rows]
    starts = [[width - len(row.prompt)] for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(starts, device=device)


def take_next(rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
    """Choose every row's next token from logits [rows, vocabulary] and hand it over; returns the tokens, [rows]."""
    tokens, logprobs = choose(logits.float(), [row.sampling for row in rows], [row.draw() for row in rows])
    for row, token, logprob in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
        row.take(token, logprob)
    return tokens


class SlotDecoder:
    """Continuous batching on a model of full and sliding attention: rows join and leave between any two steps.

    windows: the sliding window of each layer, None for full attention; all windows are equal.
    """

    can_join = True

    def __init__(self, model: Any, windows: Sequence[int | None], max_rows: int) -> None:
        self._model, self._device, self._dtype = model, model.device, model.dtype
        self._cache = SlotCache(windows, max_rows, model.dtype, model.device)
        self._windows = set(windows)
        self._tokens = torch.zeros(max_rows, 1, dtype=torch.long, device=model.device)
        self._most_tokens = _PREFILL_TOKENS.get(model.device.type, 16384)
        self.rows: list[Any] = []

    def groups(self, rows: Sequence[Any]) -> list[list[Any]]:
        """Prompts of similar length together."""
        return prefill_groups(rows, self._most_tokens)

    def add(self, rows: list[Any]) -> None:
        """One forward pass over the prompts; each row gets its first token. None is added when the model raises."""
        started_s = perf_counter()
        ids, starts = left_padded(rows, self._device)
        lengths, width = [len(row.prompt) for row in rows], ids.shape[1]
        columns = torch.arange(width, device=self._device)
        mask = None  # prompts of one length need none but the model's own
        if min(lengths) < width:
            mask = self._by_kind(lambda window: self._prompt_mask(starts, columns, window))
        self._cache.join(lengths, width)
        try:
            logits = self._model(
                input_ids=ids, attention_mask=mask, position_ids=(columns - starts).clamp_(min=0),
                past_key_values=self._cache, use_cache=True, logits_to_keep=1,
            ).logits[:, -1]  # fmt: skip
            tokens = take_next(rows, logits)
        except BaseException:
            self._cache.abandon()
            raise
        self._cache.joined(lengths)
        self._tokens[len(self.rows) : len(self.rows) + len(rows), 0] = tokens
        self.rows += rows
        ended_s = perf_counter()
        for row in rows:
            row.started_s, row.prefilled_s, row.decoded_s = started_s, ended_s, ended_s

    def _by_kind(self, mask: Callable[[int | None], torch.Tensor]) -> torch.Tensor | dict[str, torch.Tensor]:
        """One mask, or where layers differ one for each kind, under the names transformers uses."""
        if len(self._windows) == 1:
            return mask(next(iter(self._windows)))
        return {("sliding_attention" if window else "full_attention"): mask(window) for window in self._windows}

    def _prompt_mask(self, starts: torch.Tensor, columns: torch.Tensor, window: int | None) -> torch.Tensor:
        """[rows, 1, width, width]: causal, from the row's start on. Padding sees itself, or its softmax would have no term."""
        distance = columns[:, None] - columns[None, :]
        near = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        seen = (near & (columns >= starts)[:, None, :]) | (distance == 0)
        return (~seen[:, None]).to(self._dtype) * torch.finfo(self._dtype).min

    def step(self) -> None:
        """One forward pass over all rows."""
        count = len(self.rows)
        positions = self._cache.before_step()
        mask = self._by_kind(self._cache.mask)
        logits = self._model(
            input_ids=self._tokens.narrow(0, 0, count), attention_mask=mask, position_ids=positions,
            past_key_values=self._cache, use_cache=True,
        ).logits[:, -1]  # fmt: skip
        self._cache.after_step()
        self._tokens[:count, 0] = take_next(self.rows, logits)

    def take_finished(self) -> list[Any]:
        """Remove and return the rows that have a finish reason."""
        gone = [index for index, row in enumerate(self.rows) if row.finish_reason is not None]
        if not gone:
            return []
        now, finished = perf_counter(), [self.rows[index] for index in gone]
        order = self._cache.remove(gone, scrub=any(row.finish_reason == "nan" for row in finished))
        for row in finished:
            row.decoded_s = now
        self.rows = [self.rows[index] for index in order]
        self._tokens[: len(order), 0] = torch.tensor([row.tokens[-1] for row in self.rows], device=self._device)
        return finished

    def clear(self) -> None:
        """Drop all rows."""
        self.rows = []
        self._cache.clear()
