"""The file of a recording, and writing it.

JSON lines, usually gzipped. A task's line is followed by its conversations in a fixed order, each written as what it adds to the
one before it, and by what each model answered to it:

    {"isthmus_recording":2,"models":["slm","llm"],"sampling":"greedy","made":{...}}
    {"task":{"id":"t1","prompt":"...","answer":"42","family":"sums"}}
    {"add":[["user","..."]],"answers":[{"model":"slm","text":"compute 6 * 7","prompt_tokens":12,...},{"model":"llm",...}]}
    {"keep":1,"add":[["assistant","compute 6 * 7"],["tool","42"]],"answers":[...]}
    {"end":{"tasks":1,"answers":4,"sha256":"9f.."}}

The last line counts tasks and answers and holds the hash of all lines before it, so that no damage goes unnoticed. Version 1,
which can still be read, wrote every conversation in full, with its key.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, cast

from workloads.errors import InputError
from workloads.recording_fields import answer_fields, task_fields
from workloads.task import Completion, Message, Task

VERSION = 2


class Header(NamedTuple):
    """What a recording is of. `made` says how it was made, in JSON values; it is for people, nothing depends on it."""

    models: tuple[str, ...]
    sampling: str = "greedy"
    made: Mapping[str, Any] = {}


def conversation_key(model: str, messages: tuple[Message, ...], sampling: str = "greedy") -> str:
    """The key of an answer: 128 bits of SHA-256 over model, sampling settings and the conversation so far."""
    text = json.dumps([model, sampling, messages], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]  # models do emit halves of characters


def common_prefix(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many leading messages agree."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def json_line(value: Mapping[str, Any]) -> str:
    """A value as one line. Text stays readable, but half of a character pair has no UTF-8 and becomes an escape."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, separators=(",", ":"))
    return text + "\n"


class RecordingWriter:
    """Writes a recording task by task; the file is there, whole, once `finish` was called, else nothing of it is.

    `.gz` compresses, without name and time in its head, so that equal recordings are equal files. Raises InputError where the
    file cannot be written. `partial` is the name of the file until it is finished.
    """

    def __init__(self, path: Path, header: Header, partial: Path | None = None) -> None:
        self.path, self.tasks, self.answers = path, 0, 0
        self._partial = partial or path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._hash = hashlib.sha256()
        self._before: tuple[Message, ...] = ()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
        except OSError as error:
            raise self._unwritable(error) from None
        self._out: BinaryIO = self._file
        if path.suffix == ".gz":
            self._out = cast("BinaryIO", gzip.GzipFile("", "wb", fileobj=self._file, mtime=0))
        made = {"made": header.made} if header.made else {}
        self._put({"isthmus_recording": VERSION, "models": list(header.models), "sampling": header.sampling, **made})

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full disk has been told by then
            self._out.close()
        with suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def task(self, task: Task | str) -> None:
        """Begin a task's conversations; an id alone stands for a task that the recording does not hold."""
        self._before = ()
        if isinstance(task, Task):
            self.tasks += 1
            self._put({"task": task_fields(task)})
        else:
            self._put({"task_id": task})

    def conversation(self, messages: tuple[Message, ...], answers: Sequence[Completion]) -> None:
        """What the models answered to a conversation of the task begun last."""
        kept = common_prefix(self._before, messages)
        self._before = messages
        self.answers += len(answers)
        added = {"add": [list(m) for m in messages[kept:]], "answers": [answer_fields(a) for a in answers]}
        self._put({"keep": kept, **added} if kept else added)

    def finish(self) -> int:
        """Put the file in its place; returns its size in bytes."""
        try:
            self._out.write(end_line(self.tasks, self.answers, self._hash.hexdigest()).encode())
            if self._out is not self._file:
                self._out.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            os.replace(self._partial, self.path)
            return self.path.stat().st_size
        except OSError as error:
            raise self._unwritable(error) from None

    def _put(self, value: Mapping[str, Any]) -> None:
        line = json_line(value).encode()
        self._hash.update(line)
        try:
            self._out.write(line)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(str(self.path), f"cannot be written ({error.strerror})", "Name another file")


def end_line(tasks: int, answers: int, sha256: str) -> str:
    """The line that vouches for all lines before it."""
    return json_line({"end": {"tasks": tasks, "answers": answers, "sha256": sha256}})
