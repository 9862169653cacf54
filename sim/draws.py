"""Common random numbers: draws that belong to (component, request, position), not to the order of events.

Changing the policy changes which calls are made and when; a draw taken from one running stream would then land on
another call and add noise to every comparison. Here each component has its own key (spawned from the scenario seed) and
each (request, position) its own slot, so the same subtask meets the same jitter and the same coin whatever else happens.
"""

from __future__ import annotations

from array import array

import numpy as np
from scipy.special import ndtri

POSITIONS = 16
"""Slots per request; later positions wrap around to the first slots."""
_BLOCK_SLOTS = 1024 * POSITIONS
_CACHED_BLOCKS = 64


def component_rng(seed: int, component: str) -> np.random.Generator:
    """A Generator that only `component` uses, the same for every policy under one scenario seed."""
    return np.random.Generator(np.random.Philox(_sequence(seed, component)))


def _sequence(seed: int, component: str) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, *component.encode()])


class CommonDraws:
    """Uniform draws in (0, 1) indexed by (request, position), made in blocks and cached."""

    def __init__(self, seed: int, component: str) -> None:
        self._key = _sequence(seed, component).generate_state(2, np.uint64)
        self._blocks: dict[int, array[float]] = {}
        self._normal_blocks: dict[int, array[float]] = {}

    def uniform(self, request: int, position: int) -> float:
        """The uniform draw of this slot."""
        slot = request * POSITIONS + position % POSITIONS
        try:
            return self._blocks[slot // _BLOCK_SLOTS][slot % _BLOCK_SLOTS]
        except KeyError:
            return self._make(self._blocks, slot // _BLOCK_SLOTS, normal=False)[slot % _BLOCK_SLOTS]

    def normal(self, request: int, position: int) -> float:
        """The standard normal draw of this slot: the normal quantile of the same uniform."""
        slot = request * POSITIONS + position % POSITIONS
        try:
            return self._normal_blocks[slot // _BLOCK_SLOTS][slot % _BLOCK_SLOTS]
        except KeyError:
            return self._make(self._normal_blocks, slot // _BLOCK_SLOTS, normal=True)[slot % _BLOCK_SLOTS]

    def _make(self, blocks: dict[int, array[float]], index: int, *, normal: bool) -> array[float]:
        rng = np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, 0, index]))
        # Multiples of 2^-52 moved by half a step: neither 0 nor 1 can come out, so that quantile functions stay finite.
        values = (rng.integers(0, 1 << 52, _BLOCK_SLOTS) + 0.5) / (1 << 52)
        block = array("d", (ndtri(values) if normal else values).tobytes())
        if len(blocks) >= _CACHED_BLOCKS:
            blocks.pop(next(iter(blocks)))
        blocks[index] = block
        return block
