"""How alike two subtasks are: the cosine of their sentence embeddings, as HERA/AIMS compares them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from sim.policies.features import FloatArray, text_encoder

Similarity = Callable[[str, str], float]
_DIGITS = 5
"""An embedding's last digits depend on the texts it is computed beside; no threshold test may."""


class EmbeddingSimilarity:
    """Cosine of two texts' embeddings, -1..1, rounded to 5 digits; equal texts are 1 without a look at them."""

    def __init__(self, encoder: str) -> None:
        self._encoder = encoder

    def know(self, texts: Iterable[str]) -> None:
        """Embed many texts at once, which is several times as fast as one by one."""
        text_encoder(self._encoder).encode_together(list(dict.fromkeys(texts)))

    def embedding(self, text: str) -> FloatArray:
        """Of unit length, shape (width,)."""
        row: FloatArray = text_encoder(self._encoder).encode_together([text])[0]
        return row

    def __call__(self, first: str, second: str) -> float:
        """The cosine."""
        if first == second:
            return 1.0
        return round(float(self.embedding(first) @ self.embedding(second)), _DIGITS)


def nearest(known: FloatArray, asked: FloatArray, count: int) -> list[tuple[int, float]]:
    """(row, cosine) of the `count` rows of `known`, shape (rows, width), closest to `asked`, shape (width,); closest first.

    All are of unit length. Among equally close ones the first row wins.
    """
    cosines = np.round(known @ asked, _DIGITS)
    order = np.argsort(-cosines, kind="stable")[:count]
    return [(int(row), float(cosines[row])) for row in order]
