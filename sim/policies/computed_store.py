"""What models computed, on disk, so that the next run need not compute it again: on a CPU it is most of a router's preparation.

Sentence embeddings and predicted steps are functions of a text and fixed weights. There is one SQLite file per model and version of
the libraries, shared by all processes of a user. The folder is $ISTHMUS_CACHE_DIR, else isthmus under $XDG_CACHE_HOME or ~/.cache; an
empty $ISTHMUS_CACHE_DIR switches the store off. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

VARIABLE = "ISTHMUS_CACHE_DIR"
_WAIT_S = 10.0
_KEPT_AT_ONCE = 1024
"""A multiple of every batch, so that batches do not depend on it."""
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
        connection = sqlite3.connect(path, timeout=_WAIT_S)
        # What a power cut takes is computed again; waiting for the disk cost more.
        connection.execute("PRAGMA synchronous = OFF")
        return connection


class Remembered(Generic[Key, Value]):
    """What a model made of each key: what this process knows, what is on disk, and what must be computed.

    `pack` and `unpack` turn a value into the bytes of `store` and back; without a store nothing outlives the process.
    """

    def __init__(
        self, store: ComputedStore | None, pack: Callable[[Value], bytes], unpack: Callable[[bytes], Value]
    ) -> None:
        self._store, self._pack, self._unpack = store, pack, unpack
        self._known: dict[Key, Value] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._known

    def __getitem__(self, key: Key) -> Value:
        return self._known[key]

    def forget(self) -> None:
        """The model is another one now: nothing that was known counts any more, here or on disk."""
        self._known.clear()
        self._store = None

    def know(
        self, texts: Mapping[Key, str], compute: Callable[[list[Key]], Iterable[Value]], batch: int, order: Callable[[Key], Any]
    ) -> None:  # fmt: skip
        """Know all of these afterwards; `texts` are the keys with the texts they are kept by.

        What is nowhere yet is computed in batches of keys that `order` puts side by side, and kept every so often: a long computation
        that is interrupted goes on from there.
        """
        asked = {key: text for key, text in texts.items() if key not in self._known}
        if self._store is not None and asked:
            found = self._store.find(asked.values())
            self._known.update((key, self._unpack(found[text])) for key, text in asked.items() if text in found)
        fresh = sorted((key for key in asked if key not in self._known), key=order)
        for start in range(0, len(fresh), _KEPT_AT_ONCE):
            block = fresh[start : start + _KEPT_AT_ONCE]
            for first in range(0, len(block), batch):
                part = block[first : first + batch]
                self._known.update(zip(part, compute(part), strict=True))
            if self._store is not None:
                self._store.keep({asked[key]: self._pack(self._known[key]) for key in block})


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
