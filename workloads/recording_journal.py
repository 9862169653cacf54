"""The journal beside a recording in the making: answers as they come, so that an interrupted recording goes on.

Append-only JSON lines. The first line says what is recorded, every other one is an answer with the key of its conversation:

    {"isthmus_journal":1,"of":{"models":["slm","llm"],"sampling":"greedy",...},"sha256":"3c.."}
    {"key":"9f..","model":"slm","text":"compute 6 * 7","prompt_tokens":12,...}

A journal is a store of answers, no more: the recording is made from it and from running the agents again, which costs nothing.
So a line cut short by a kill, or damaged, is merely an answer to be asked for once more.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from workloads.errors import InputError
from workloads.recording_fields import answer_fields, as_text, read_answer
from workloads.recording_file import json_line
from workloads.task import Completion

VERSION = 1
SYNC_S = 5.0
"""Answers of at most this time are lost when the machine, not only the program, goes down."""
_KEY = frozenset(("key",))


def journal_path(out: Path) -> Path:
    """Where the journal of a recording lies."""
    return out.with_name(f".{out.name}.journal")


class Journal:
    """Answers by key, on disk; `kept` were there from before, `damaged` lines among them could not be read.

    `of` is what is recorded, in JSON values. Raises InputError for a journal of something else, for one that another process
    is writing, and where it cannot be written.
    """

    def __init__(self, path: Path, of: Mapping[str, Any]) -> None:
        self.path, self.damaged = path, 0
        self._places: dict[bytes, tuple[int, int]] = {}
        self._end = 0
        head = json_line({"isthmus_journal": VERSION, "of": of, "sha256": _digest(of)}).encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            self._lock()
            self._load(head, of)
        except BaseException:
            os.close(self._file)
            raise
        self.kept = len(self._places)
        self._synced_s = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Completion | None:
        """The answer to the conversation with this key."""
        place = self._places.get(bytes.fromhex(key))
        if place is None:
            return None
        os.lseek(self._file, place[0], os.SEEK_SET)  # appending goes to the end all the same
        return read_answer(json.loads(os.read(self._file, place[1])), _KEY)

    def put(self, key: str, answer: Completion) -> None:
        """Keep an answer: safe from a kill of this process at once, from a crash of the machine within SYNC_S."""
        line = json_line({"key": key, **answer_fields(answer)}).encode()
        self._append(line)
        self._places[bytes.fromhex(key)] = self._end - len(line), len(line)
        if time.monotonic() > self._synced_s + SYNC_S:
            os.fsync(self._file)
            self._synced_s = time.monotonic()

    def close(self) -> None:
        """Keep the journal for the next time."""
        if self._file >= 0:
            with suppress(OSError):
                os.fsync(self._file)
            os.close(self._file)
            self._file = -1

    def discard(self) -> None:
        """The recording is complete: the journal goes."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: nothing tells two recordings into one file apart
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                str(self.path), "another process is recording there", "Let it finish, end it, or name another file"
            ) from None
        except OSError:  # a file system without locks
            return

    def _load(self, head: bytes, of: Mapping[str, Any]) -> None:
        """Read what is there; what follows the last line end was cut short by a kill and goes."""
        with os.fdopen(os.dup(self._file), "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if self._end:
                    self._keep(line)
                elif line != head:
                    self._refuse(line, of)
                self._end += len(line)
        os.ftruncate(self._file, self._end)
        if not self._end:
            self._append(head)

    def _keep(self, line: bytes) -> None:
        try:
            fields = json.loads(line)
            key = bytes.fromhex(as_text(fields, "key"))
            read_answer(fields, _KEY)
        except (KeyError, TypeError, ValueError, RecursionError):
            self.damaged += 1
        else:
            self._places[key] = self._end, len(line)

    def _refuse(self, line: bytes, of: Mapping[str, Any]) -> None:
        """Say in what the journal that is there differs."""
        try:
            fields = json.loads(line)
            found = fields["of"]
            if fields["isthmus_journal"] != VERSION or fields["sha256"] != _digest(found):
                raise ValueError
        except (KeyError, TypeError, ValueError, RecursionError):
            raise InputError(
                str(self.path), "is not a journal of this Isthmus", "Remove it, or name another file to record into"
            ) from None
        raise InputError(
            str(self.path),
            f"keeps the answers of another recording: {'; '.join(_differences(found, of))}",
            "Finish that recording, remove its journal, or name another file to record into",
        )

    def _append(self, line: bytes) -> None:
        try:
            written = os.write(self._file, line)
            if written < len(line):
                os.ftruncate(self._file, self._end)
                raise OSError(28, "no space left on the device")
        except OSError as error:
            raise self._unwritable(error) from None
        self._end += len(line)

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(str(self.path), f"cannot be written ({error.strerror})", "Make room, or name another file")


def _digest(of: Any) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Every field that is not the same, down to the innermost: a long one that differs at its end would not show it."""
    for name in sorted({*found, *wanted}):
        one, other, field = found.get(name), wanted.get(name), f"{place}{name}"
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{field}.")
        elif one != other:
            yield _difference(field, one, other)


def _difference(name: str, found: Any, wanted: Any) -> str:
    def shown(value: Any) -> str:
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 80 else text[:77] + "..."

    return f"its {name!r} is {shown(found)}, now it is {shown(wanted)}"
