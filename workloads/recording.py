"""Recordings: what models answered, kept for replay.

A recording is JSON lines, usually gzipped. The first line is the header, then one line a task or an answer:

    {"isthmus_recording": 1, "models": ["slm", "llm"], "sampling": "greedy", "tasks": 1, "answers": 2}
    {"task": {"id": "t1", "prompt": "...", "answer": "42", "family": "chains"}}
    {"key": "9f..", "model": "slm", "task_id": "t1", "messages": [["user", "..."]], "text": "...", "prompt_tokens": 12, ...}

An answer's key is a hash of (model, sampling, conversation so far), never a step's number: an answer given at the edge changes
every later call. A conversation that nobody recorded raises RecordingMiss and names the nearest one that was. Only the fields of
Task and Completion named here are written: nothing else a backend knows can reach a recording.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from workloads.backend import Handle, InferenceBackend
from workloads.errors import InputError, RecordingError, RecordingMiss
from workloads.readers._rows import json_lines
from workloads.recording_fields import answer_fields, read_answer, read_task, task_fields
from workloads.task import Completion, Message, ModelCall, Task

VERSION = 1
_AGAIN = "Record again; the file was changed or damaged"


def conversation_key(model: str, messages: tuple[Message, ...], sampling: str = "greedy") -> str:
    """The key of an answer: 128 bits of SHA-256 over model, sampling settings and the conversation so far."""
    text = json.dumps([model, sampling, messages], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]  # models do emit halves of characters


class Recording:
    """A recording in memory: its tasks and its answers by key."""

    def __init__(self, models: Iterable[str], sampling: str = "greedy", source: str = "recording") -> None:
        self.models, self.sampling, self.source = tuple(models), sampling, source
        self.tasks: list[Task] = []
        self.answers: dict[str, Completion] = {}
        self._known: dict[str, set[tuple[str, tuple[Message, ...]]]] = {}

    def add(self, task_id: str, messages: tuple[Message, ...], completion: Completion) -> str:
        """Keep an answer and return its key; the last one wins, as a re-recorded conversation replaces the old."""
        key = conversation_key(completion.model, messages, self.sampling)
        self.answers[key] = completion
        self._known.setdefault(task_id, set()).add((completion.model, messages))
        return key

    def conversations(self) -> list[tuple[str, str, tuple[Message, ...]]]:
        """(task, model, conversation so far) of every answer, in an order that does not depend on when it was recorded."""
        return sorted((task, *entry) for task, entries in self._known.items() for entry in entries)

    def near_misses(self, call: ModelCall, model: str) -> str:
        """The recorded conversation of this task that agrees longest with the one asked for."""
        known = self._known.get(call.task.id)
        if not known:
            return f"nothing is recorded of task {call.task.id!r}"

        def agreement(entry: tuple[str, tuple[Message, ...]]) -> tuple[int, bool]:
            return _common_prefix(entry[1], call.messages), entry[0] == model

        near_model, near = max(sorted(known), key=agreement)
        return (
            f"the nearest recorded conversation is {near_model!r} after {len(near)} messages, of which the first "
            f"{_common_prefix(near, call.messages)} agree"
        )


def _common_prefix(first: tuple[Message, ...], second: tuple[Message, ...]) -> int:
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


class ReplayBackend:
    """Answers from a recording; a conversation nobody recorded goes to `on_miss` or raises RecordingMiss."""

    def __init__(self, recording: Recording, on_miss: Callable[[ModelCall, str], Completion] | None = None) -> None:
        self._recording, self._on_miss = recording, on_miss

    def submit(self, call: ModelCall, model: str) -> Completion:
        """The recorded answer, at once."""
        recording = self._recording
        key = conversation_key(model, call.messages, recording.sampling)
        answer = recording.answers.get(key)
        if answer is not None:
            return answer
        if self._on_miss is not None:
            return self._on_miss(call, model)
        raise RecordingMiss(
            f"{recording.source}: no answer of {model!r} to subtask {call.position} of task {call.task.id!r} "
            f"(key {key}); {recording.near_misses(call, model)}. Record this placement, use a policy that places whole "
            "requests, or set inference.on_miss: modelled"
        )


class RecordingBackend:
    """Passes calls on to another backend and keeps every answer."""

    def __init__(self, inner: InferenceBackend, recording: Recording) -> None:
        self._inner, self._recording = inner, recording

    def submit(self, call: ModelCall, model: str) -> _KeptHandle:
        """Submit to the inner backend; the answer is kept when it is collected."""
        models = self._recording.models
        if model not in models:  # found out now, not when hours of answers are read back
            raise InputError(f"model {model!r}", "is not to be recorded", f"Recorded models: {', '.join(models)}")
        return _KeptHandle(self._inner.submit(call, model), call, model, self._recording)


class _KeptHandle:
    def __init__(self, handle: Handle, call: ModelCall, model: str, recording: Recording) -> None:
        self._handle, self._call, self._model, self._recording = handle, call, model, recording

    def result(self) -> Completion:
        """The answer under the name it was asked for: a server's own name for its model is not what replay asks for."""
        completion = self._handle.result()._replace(model=self._model)
        self._recording.add(self._call.task.id, self._call.messages, completion)
        return completion


def write_recording(recording: Recording, path: Path) -> None:
    """Write atomically; `.gz` compresses, without name and time in its head, so equal recordings are equal files.

    Of a task everything is kept but `features` and `latent`, of an answer everything; what was live is exact when replayed.
    Raises InputError where the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _writer(partial, compressed=path.suffix == ".gz") as out:
            _write(recording, out)
        os.replace(partial, path)
    except OSError as error:
        raise InputError(str(path), f"cannot be written ({error.strerror})", "Name another file") from None
    finally:
        if partial.is_file():
            partial.unlink()


@contextmanager
def _writer(path: Path, *, compressed: bool) -> Iterator[TextIO]:
    with path.open("wb") as file:
        packed = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if compressed else file
        with packed, io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as out:
            yield out


def _write(recording: Recording, out: TextIO) -> None:
    conversations = recording.conversations()
    counts = {"tasks": len(recording.tasks), "answers": len(conversations)}
    _line(
        out,
        {"isthmus_recording": VERSION, "models": list(recording.models), "sampling": recording.sampling, **counts},
    )
    for task in recording.tasks:
        _line(out, {"task": task_fields(task)})
    for task_id, model, messages in conversations:
        key = conversation_key(model, messages, recording.sampling)
        answer = answer_fields(recording.answers[key])
        _line(out, {"key": key, "task_id": task_id, "messages": [list(m) for m in messages], **answer})


def _line(out: TextIO, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a character pair has no UTF-8, but a JSON escape
        text = json.dumps(value, separators=(",", ":"))
    out.write(text + "\n")


def read_recording(path: Path) -> Recording:
    """Read a recording line by line; raises InputError with the line for anything that is not one."""
    lines = json_lines(path)
    recording, header = _read_header(path, lines)
    names: set[str] = set()
    answers = 0
    for row, fields in lines:
        try:
            if "task" in fields:
                task = read_task(fields["task"])
                if task.id in names:
                    raise ValueError(f"the task {task.id!r} occurs twice")
                names.add(task.id)
                recording.tasks.append(task)
            else:
                _keep(recording, *read_answer(fields))
                answers += 1
        except (KeyError, TypeError, ValueError) as error:
            problem = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
            raise RecordingError(f"{path}: row {row}", f"not a task or an answer: {problem}", _AGAIN) from None
    if not recording.tasks:
        raise RecordingError(str(path), "holds no task", "Record again; the recording broke off before its first task")
    for name, found in (("tasks", len(names)), ("answers", answers)):
        if header.get(name, found) != found:
            raise RecordingError(str(path), f"holds {found} of {header[name]} {name}", _AGAIN)
    return recording


def _keep(recording: Recording, key: str, task_id: str, messages: tuple[Message, ...], answer: Completion) -> None:
    if answer.model not in recording.models:
        raise ValueError(f"the model {answer.model!r} is none of {', '.join(recording.models)}")
    if recording.add(task_id, messages, answer) != key:
        raise ValueError("its key does not belong to its conversation")


def _read_header(path: Path, lines: Iterator[tuple[int, dict[str, Any]]]) -> tuple[Recording, dict[str, Any]]:
    row, header = next(lines, (1, {}))
    place, version = f"{path}: row {row}", header.get("isthmus_recording")
    if version is None:
        raise RecordingError(place, "not an Isthmus recording", "Its first line names isthmus_recording")
    if version is True or version != VERSION:
        raise RecordingError(place, f"is of version {version!r}", f"This Isthmus reads version {VERSION}; record again")
    models, sampling = header.get("models"), header.get("sampling", "greedy")
    if not isinstance(models, list) or not models or not all(isinstance(m, str) for m in models):
        raise RecordingError(f"{place}, field 'models'", f"found {models!r}", "Give a list of model names")
    if not isinstance(sampling, str):
        raise RecordingError(f"{place}, field 'sampling'", f"found {sampling!r}", "Give the sampling settings as text")
    return Recording(models, sampling, str(path)), header
