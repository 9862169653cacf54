"""Sentence embeddings on disk, so that the next run need not compute them again: on a CPU they are most of a router's preparation.

One SQLite file per encoder and version of the libraries, shared by all processes of a user. The folder is $ISTHMUS_CACHE_DIR, else
isthmus under $XDG_CACHE_HOME or ~/.cache; an empty $ISTHMUS_CACHE_DIR switches the store off. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

_Array = npt.NDArray[np.float64]

VARIABLE = "ISTHMUS_CACHE_DIR"
_WAIT_S = 10.0
_MOST_BYTES = 2 << 30
"""A store that has grown beyond this is begun anew: 1.4 million embeddings."""


def cache_folder() -> Path | None:
    """Where computed things are kept between runs; None where that is switched off."""
    told = os.environ.get(VARIABLE)
    if told is not None:
        return Path(told) if told else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isthmus"


class EmbeddingStore:
    """Embeddings by text; any trouble with the file means that nothing is remembered, never that a run fails.

    `name` identifies the numbers: the encoder, the versions that computed them, and whether each text was encoded by itself.
    """

    def __init__(self, name: str) -> None:
        folder = cache_folder()
        self._path = folder / f"embeddings-{hashlib.sha256(name.encode()).hexdigest()[:16]}.sqlite" if folder else None

    def find(self, texts: Sequence[str]) -> dict[str, _Array]:
        """Those of the texts that are known, as arrays of shape (width,)."""
        keys = {_key(text): text for text in texts}
        found = dict[str, _Array]()
        if self._path is None or not self._path.exists():
            return found
        with suppress(sqlite3.Error, OSError), closing(self._connection(self._path)) as connection:
            for key, text in keys.items():
                row = connection.execute("SELECT embedding FROM embeddings WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[text] = np.frombuffer(row[0], np.float32).astype(np.float64)
        return found

    def keep(self, embeddings: Mapping[str, _Array]) -> None:
        """Remember them, to the 32 bits in which they were computed."""
        if self._path is None or not embeddings:
            return
        rows = ((_key(text), row.astype(np.float32).tobytes()) for text, row in embeddings.items())
        with suppress(sqlite3.Error, OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > _MOST_BYTES:
                self._path.unlink()
            self._write(self._path, rows)

    def _write(self, path: Path, rows: Iterable[tuple[bytes, bytes]]) -> None:
        with closing(self._connection(path)) as connection, connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, embedding BLOB) WITHOUT ROWID"
            )
            connection.executemany("INSERT OR IGNORE INTO embeddings VALUES (?, ?)", rows)

    def _connection(self, path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=_WAIT_S)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
