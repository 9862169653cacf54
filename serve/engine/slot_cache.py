"""A key-value cache whose rows come and go while the batch is decoded: the memory behind continuous batching.

All rows write their next token at the same column, the clock. A prompt of n tokens that joins at clock t fills the columns
t - n to t - 1 of its row, so every row is contiguous and ends at the clock; what lies left of its start is masked. This keeps a
decoding step free of index arithmetic (one slice per layer) and its mask is a view of one buffer, written only when a row joins.
The width that attention sees is that of the longest row present, as in any padded batch, and at most a layer's sliding window.

Per layer: keys and values [rows, heads, columns, head size]. Columns and rows grow as needed; when the clock reaches the
last column, the rows move left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_ALIGNED_COLUMNS = 16
"""The window starts at a multiple of this: masked attention kernels on GPUs want aligned masks."""


class _Clock:
    """What all layers share: the rows in use, the window of columns and whether prompts or single tokens are written."""

    def __init__(self, rows: int, columns: int) -> None:
        self.row_capacity, self.columns = rows, columns
        self.rows = self.first = self.now = 0
        self.joining = False

    def seen_from(self, window: int | None) -> int:
        """The first column that the token at the clock sees."""
        return self.first if window is None else max(self.first, self.now + 1 - window)


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not analysed
    """One layer's keys and values. With a `window` a token sees itself and the window - 1 before it; all are kept."""

    def __init__(self, clock: _Clock, window: int | None) -> None:
        super().__init__()
        self.clock, self.window, self.is_sliding = clock, window, window is not None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate; zeros, as what is masked is still multiplied by 0 and must be a number."""
        self.keys, self.values = self._storage(key_states), self._storage(value_states)
        self.is_initialized = True

    def _storage(self, states: torch.Tensor) -> torch.Tensor:
        heads, size = states.shape[1], states.shape[3]
        return states.new_zeros(self.clock.row_capacity, heads, self.clock.columns, size)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new states; returns everything the queries may attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        clock = self.clock
        if clock.joining:  # prompts have no past: they attend to themselves
            joined, start = slice(clock.rows, clock.rows + len(key_states)), clock.now - key_states.shape[2]
            self.keys[joined, :, start : clock.now] = key_states
            self.values[joined, :, start : clock.now] = value_states
            return key_states, value_states
        keys, values = self.keys.narrow(0, 0, clock.rows), self.values.narrow(0, 0, clock.rows)
        keys.narrow(2, clock.now, 1).copy_(key_states)
        values.narrow(2, clock.now, 1).copy_(value_states)
        first = clock.seen_from(self.window)
        width = clock.now + 1 - first
        return keys.narrow(2, first, width), values.narrow(2, first, width)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys for a mask that the model itself makes."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Columns before the new ones."""
        return 0 if self.clock.joining else self.clock.now - self.clock.first

    def get_max_length(self) -> int:
        """No limit: the storage grows."""
        return -1

    def move(self, source: slice, target: slice, rows: int, columns: int) -> None:
        """Copy the window `source` to `target`, into storage of this many rows and columns."""
        if not self.is_initialized:
            return
        used = self.clock.rows
        for name in ("keys", "values"):
            old = getattr(self, name)
            fits = rows == old.shape[0] and columns == old.shape[2]
            window = old[:used, :, source]
            if not fits:
                setattr(self, name, old.new_zeros(rows, old.shape[1], columns, old.shape[3]))
            elif source.start < target.stop and target.start < source.stop:
                window = window.clone()
            getattr(self, name)[:used, :, target] = window


class SlotCache(Cache):  # type: ignore[misc]
    """The cache of up to `row_capacity` conversations. Rows are numbered 0 .. rows - 1 without holes.

    windows: the sliding window of each layer, None for full attention.
    """

    def __init__(
        self, windows: Sequence[int | None], row_capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._clock = _Clock(min(row_capacity, 4), 128)
        super().__init__(layers=[_SlotLayer(self._clock, window) for window in windows])
        self._most_rows, self._dtype, self._device = row_capacity, dtype, device
        self._starts: list[int] = []
        self._positions = torch.zeros(row_capacity, 1, dtype=torch.long, device=device)
        self._mask = self._new_mask()

    @property
    def rows(self) -> int:
        """Conversations present."""
        return len(self._starts)

    def join(self, lengths: list[int], width: int) -> None:
        """Make room for prompts, left-padded to `width`; the next forward pass writes them. Call `joined` after it."""
        clock = self._clock
        span = clock.now - clock.first
        rows, now = self.rows + len(lengths), max(width, clock.now)
        row_capacity = clock.row_capacity
        while row_capacity < rows:
            row_capacity = min(2 * row_capacity, self._most_rows)
        if now > clock.now or now >= clock.columns or row_capacity > clock.row_capacity:
            self._move(max(width, span), row_capacity)
        clock.joining = True

    def joined(self, lengths: list[int]) -> None:
        """The prompts are written: their rows take part from now on."""
        clock = self._clock
        clock.joining = False
        first = self.rows
        self._starts += [clock.now - length for length in lengths]
        self._positions[first : self.rows, 0] = torch.tensor(lengths, device=self._device)
        self._mask_rows(first)
        self._fit_window()

    def abandon(self) -> None:
        """The forward pass of a `join` failed: as if it had not been asked for."""
        self._clock.joining = False

    def before_step(self) -> torch.Tensor:
        """Position ids [rows, 1] of one new token a row."""
        clock = self._clock
        if clock.now >= clock.columns:
            self._move(clock.now - clock.first, clock.row_capacity)
        return self._positions.narrow(0, 0, clock.rows)

    def mask(self, window: int | None) -> torch.Tensor:
        """Additive mask [rows, 1, 1, width] of the step for layers of this window."""
        clock = self._clock
        first = clock.seen_from(window)
        mask = self._mask.narrow(0, 0, clock.rows).narrow(3, first, clock.now + 1 - first)
        return mask if window is None else mask.contiguous()  # a window starts anywhere, see _ALIGNED_COLUMNS

    def after_step(self) -> None:
        """The step's tokens are written."""
        self._clock.now += 1
        self._positions.add_(1)  # of unused rows too, which is less work than leaving them out

    def remove(self, gone: list[int], *, scrub: bool = False) -> list[int]:
        """Drop rows; the last ones move into their places. Returns the old numbers of the rows in their new order.

        `scrub` clears the memory of the dropped rows, which must not be left behind with infinities in it.
        """
        order = list(range(self.rows))
        for row in sorted(gone, reverse=True):
            last = len(order) - 1
            if scrub:
                for layer in self._layers():
                    layer.keys[row], layer.values[row] = 0, 0
            if row != last:
                self._copy_row(last, row)
            order[row] = order[last]
            order.pop()
        if order:
            self._starts = [self._starts[row] for row in order]
            self._clock.rows = len(order)
            self._fit_window()
        else:
            self.clear()
        return order

    def clear(self) -> None:
        """Drop all rows."""
        self._starts = []
        self._clock.rows = self._clock.first = self._clock.now = 0
        self._clock.joining = False

    def _copy_row(self, source: int, target: int) -> None:
        window = slice(self._clock.first, self._clock.now)
        for layer in self._layers():
            layer.keys[target, :, window] = layer.keys[source, :, window]
            layer.values[target, :, window] = layer.values[source, :, window]
        self._mask[target] = self._mask[source]
        self._positions[target] = self._positions[source]

    def _layers(self) -> list[_SlotLayer]:
        return [layer for layer in self.layers if layer.is_initialized]

    def _fit_window(self) -> None:
        self._clock.rows = self.rows
        first = min(self._starts)
        self._clock.first = first - first % _ALIGNED_COLUMNS

    def _move(self, now: int, row_capacity: int) -> None:
        """Let the window end at column `now`, with room to go on."""
        clock = self._clock
        span, columns = clock.now - clock.first, clock.columns
        if columns < now + max(64, now // 4):  # at least this many steps until the next move, whose cost then vanishes
            columns = -(-(now + max(64, now // 2)) // 64) * 64
        target = slice(now - span, now)
        for layer in self.layers:
            layer.move(slice(clock.first, clock.now), target, row_capacity, columns)
        shift = now - clock.now
        self._starts = [start + shift for start in self._starts]
        clock.now, clock.columns, clock.row_capacity = now, columns, row_capacity
        self._mask = self._new_mask()
        if self._starts:
            self._mask_rows(0)
            self._fit_window()
        else:
            clock.first = clock.now

    def _new_mask(self) -> torch.Tensor:
        shape = self._clock.row_capacity, 1, 1, self._clock.columns
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _mask_rows(self, first: int) -> None:
        """Masks of the rows from `first`: what lies left of a row's start is the lowest number, the rest 0."""
        starts = torch.tensor(self._starts[first:], device=self._device)[:, None]
        left = torch.arange(self._clock.columns, device=self._device) < starts
        self._mask[first : self.rows, 0, 0] = left.to(self._dtype) * torch.finfo(self._dtype).min
