"""What models computed, on disk, so that the next run need not compute it again: on a CPU it is most of a router's preparation.

Sentence embeddings and predicted steps are functions of a text and fixed weights. There is one SQLite file per model and version of
the libraries, shared by all processes of a user. The folder is $ISTHMUS_CACHE_DIR, else isthmus under $XDG_CACHE_HOME or ~/.cache; an
empty $ISTHMUS_CACHE_DIR switches the store off. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

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


class ComputedStore:
    """Bytes by text; any trouble with the file means that nothing is remembered, never that a run fails.

    `name` identifies the numbers: the weights, and whatever else they depend on; the version of torch is added.
    """

    def __init__(self, name: str) -> None:
        folder = cache_folder()
        key = hashlib.sha256(f"{name}; torch {version('torch')}".encode()).hexdigest()[:16]
        self._path = folder / f"computed-{key}.sqlite" if folder else None

    def find(self, texts: Iterable[str]) -> dict[str, bytes]:
        """Those of the texts that are known."""
        found = dict[str, bytes]()
        if self._path is None or not self._path.exists():
            return found
        with suppress(sqlite3.Error, OSError), closing(self._connection(self._path)) as connection:
            for text in texts:
                row = connection.execute("SELECT value FROM computed WHERE key = ?", (_key(text),)).fetchone()
                if row is not None:
                    found[text] = row[0]
        return found

    def keep(self, computed: Mapping[str, bytes]) -> None:
        """Remember them."""
        if self._path is None or not computed:
            return
        with suppress(sqlite3.Error, OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > _MOST_BYTES:
                self._path.unlink()
            with closing(self._connection(self._path)) as connection, connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS computed (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"
                )
                rows = ((_key(text), value) for text, value in computed.items())
                connection.executemany("INSERT OR IGNORE INTO computed VALUES (?, ?)", rows)

    def _connection(self, path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=_WAIT_S)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
