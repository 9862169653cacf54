"""Opening text files, and saying where in them something is wrong."""

from __future__ import annotations

import codecs
import contextlib
import difflib
import gzip
import io
import os
import zlib
from pathlib import Path
from typing import IO, Any, TextIO, cast

from workloads.errors import InputError

StrPath = str | os.PathLike[str]

GZIP_MAGIC = b"\x1f\x8b"
LFS_MAGIC = b"version https://git-lfs"
CHUNK_BYTES = 1 << 18
UTF8_REMEDY = "Give the file as UTF-8 text, plain or gzip-compressed"
AGAIN_REMEDY = "Fetch or write the file again"


def place(path: StrPath, row: int | str | None = None, column: str | None = None) -> str:
    """Where an error is: `path: row 12, column 'x'`, or `path: dialogue 3, turn 1, field 'x'` inside one JSON value."""
    parts = [f"row {row}" if isinstance(row, int) else row] if row is not None else []
    parts += [f"{'field' if isinstance(row, str) else 'column'} '{column}'"] if column is not None else []
    return f"{os.fspath(path)}: {', '.join(parts)}" if parts else os.fspath(path)


class _Guard(io.RawIOBase):
    """A file's bytes on their way to the decoder; broken gzip, NUL bytes and other encodings end as an InputError.

    Checking whole chunks here costs nothing per row, which matters for traces of tens of millions of rows.
    """

    def __init__(self, file: IO[bytes], path: StrPath) -> None:
        self._file, self._path, self._line = file, path, 1
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            chunk = self._file.read(len(buffer))
        except (EOFError, zlib.error, OSError) as error:
            raise InputError(place(self._path, self._line), f"cannot be read on: {error}", AGAIN_REMEDY) from error
        self._check(chunk)
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def _check(self, chunk: bytes) -> None:
        nul = chunk.find(b"\0")
        if nul >= 0:
            line = self._line + chunk.count(b"\n", 0, nul)
            raise InputError(place(self._path, line), "holds a NUL byte, so it is not text", UTF8_REMEDY)
        try:
            self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line = self._line + error.object.count(b"\n", 0, error.start)
            problem = f"byte 0x{error.object[error.start]:02x} is not valid UTF-8"
            raise InputError(place(self._path, line), problem, UTF8_REMEDY) from error
        self._line += chunk.count(b"\n")

    def close(self) -> None:
        self._file.close()
        super().close()


def open_text(path: StrPath) -> TextIO:
    """Open a plain or gzip-compressed UTF-8 file, with or without a byte order mark; line ends are kept as they are.

    Raises InputError if the file is missing, a directory, unreadable, empty or a Git LFS pointer. Reading on raises
    InputError at a NUL byte, at a byte that is not UTF-8 and where a gzip file breaks off.
    """
    file: IO[bytes] = _open_bytes(path)
    guarded = io.BufferedReader(_Guard(file, path), CHUNK_BYTES)
    try:
        start = guarded.peek(len(LFS_MAGIC))
        if not start:
            raise InputError(place(path), "the file is empty", AGAIN_REMEDY)
        if start.startswith(LFS_MAGIC):
            raise InputError(place(path), "is a Git LFS pointer, not the data", "Fetch the data with 'git lfs pull'")
    except InputError:
        guarded.close()
        raise
    return io.TextIOWrapper(guarded, encoding="utf-8-sig", newline="")


def _open_bytes(path: StrPath) -> IO[bytes]:
    try:
        if Path(path).is_dir():
            raise InputError(place(path), "is a directory", "Name one file in it")
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
        if file.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC):
            file.close()
            return cast("IO[bytes]", gzip.open(path, "rb"))
        return file
    except FileNotFoundError as error:
        raise InputError(place(path), "there is no such file", _nearby(Path(path))) from error
    except (OSError, ValueError) as error:
        raise InputError(place(path), f"cannot be opened: {error}", "Name a file that can be read") from error


def _nearby(path: Path) -> str:
    """Names the files beside the missing one that look most like it."""
    siblings: list[str] = []
    with contextlib.suppress(OSError):  # the folder may be missing or closed to us as well
        siblings = os.listdir(path.parent)
    near = difflib.get_close_matches(path.name, siblings, n=2, cutoff=0.5)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else "Check the path"
