"""Recordings: what models answered, kept for replay.

A recording is JSON lines, usually gzipped. The first line is the header, then one line a task or an answer:

    {"isthmus_recording": 1, "models": ["slm", "llm"], "sampling": "greedy", ...}
    {"task": {"id": "t1", "prompt": "...", "answer": "42", "family": "chains"}}
    {"key": "9f..", "model": "slm", "task_id": "t1", "text": "...", "prompt_tokens": 12, "completion_tokens": 5, ...}

An answer's key is a hash of (model, sampling, conversation so far), never a step's number: an answer given at the edge changes
every later call. A conversation that nobody recorded raises RecordingMiss and names the nearest one that was.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from workloads.errors import RecordingError, RecordingMiss
from workloads.readers._rows import json_lines
from workloads.task import Attachment, Completion, Message, ModelCall, Task

VERSION = 1
_OPTIONAL = ("cached_tokens", "mean_logprob", "prefill_s", "decode_s", "finish_reason", "tool_text", "tool_s", "score")


def conversation_key(model: str, messages: tuple[Message, ...], sampling: str = "greedy") -> str:
    """The key of an answer: 128 bits of SHA-256 over model, sampling settings and the conversation so far."""
    text = json.dumps([model, sampling, messages], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Recording:
    """A recording in memory: its tasks and its answers by key."""

    def __init__(self, models: Iterable[str], sampling: str = "greedy", source: str = "recording") -> None:
        self.models, self.sampling, self.source = tuple(models), sampling, source
        self.tasks: list[Task] = []
        self.answers: dict[str, Completion] = {}
        self._known: dict[str, set[tuple[str, tuple[Message, ...]]]] = {}

    def add(self, task_id: str, messages: tuple[Message, ...], completion: Completion) -> None:
        """Keep an answer; the last one wins, as a re-recorded conversation replaces the old."""
        self.answers[conversation_key(completion.model, messages, self.sampling)] = completion
        self._known.setdefault(task_id, set()).add((completion.model, messages))

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

    def __init__(self, inner: Any, recording: Recording) -> None:
        self._inner, self._recording = inner, recording

    def submit(self, call: ModelCall, model: str) -> _KeptHandle:
        """Submit to the inner backend; the answer is kept when it is collected."""
        return _KeptHandle(self._inner.submit(call, model), call, self._recording)


class _KeptHandle:
    def __init__(self, handle: Any, call: ModelCall, recording: Recording) -> None:
        self._handle, self._call, self._recording = handle, call, recording

    def result(self) -> Completion:
        completion: Completion = self._handle.result()
        self._recording.add(self._call.task.id, self._call.messages, completion)
        return completion


def write_recording(recording: Recording, path: Path) -> None:
    """Write atomically; `.gz` compresses, without a time stamp, so equal recordings are equal files."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _writer(partial, compressed=path.suffix == ".gz") as out:
        header = {"isthmus_recording": VERSION, "models": list(recording.models), "sampling": recording.sampling}
        _line(out, header)
        for task in recording.tasks:
            _line(out, {"task": _task_fields(task)})
        for task_id in sorted(recording._known):
            for model, messages in sorted(recording._known[task_id]):
                key = conversation_key(model, messages, recording.sampling)
                answer = _answer_fields(recording.answers[key])
                _line(out, {"key": key, "task_id": task_id, "messages": [list(m) for m in messages], **answer})
    os.replace(partial, path)


def _writer(path: Path, *, compressed: bool) -> TextIO:
    if not compressed:
        return path.open("w", encoding="utf-8")
    return io.TextIOWrapper(gzip.GzipFile(path, "wb", mtime=0), encoding="utf-8")


def _line(out: TextIO, value: Mapping[str, Any]) -> None:
    out.write(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def _task_fields(task: Task) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": task.id, "prompt": task.prompt, "family": task.family}
    if task.answer is not None:
        fields["answer"] = task.answer
    if task.attachments:
        fields["attachments"] = [list(a) for a in task.attachments]
    return fields


def _answer_fields(answer: Completion) -> dict[str, Any]:
    fields = answer._asdict()
    defaults = Completion._field_defaults
    for name in _OPTIONAL:
        value = fields[name]
        if value == defaults[name] or (isinstance(value, float) and math.isnan(value)):
            del fields[name]
    del fields["provenance"]
    return fields


def read_recording(path: Path) -> Recording:
    """Read a recording line by line; raises RecordingError with the line for anything that is not one."""
    lines = json_lines(path)
    recording = _read_header(path, lines)
    for row, fields in lines:
        try:
            if "task" in fields:
                recording.tasks.append(_read_task(fields["task"]))
            else:
                messages, task_id = tuple(Message(*m) for m in fields.pop("messages")), fields.pop("task_id")
                key = fields.pop("key")
                recording.add(task_id, messages, _read_answer(fields))
                if key not in recording.answers:
                    raise ValueError("its key does not belong to its conversation")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecordingError(
                f"{path}: row {row}", f"not a task or an answer ({error})", "Record again; the file was changed or damaged"
            ) from None
    if not recording.tasks:
        raise RecordingError(str(path), "holds no task", "Record again; the recording broke off before its first task")
    return recording


def _read_header(path: Path, lines: Iterator[tuple[int, dict[str, Any]]]) -> Recording:
    row, header = next(lines, (1, {}))
    version = header.get("isthmus_recording")
    if version is None:
        raise RecordingError(f"{path}: row {row}", "not an Isthmus recording", "Its first line names isthmus_recording")
    if version != VERSION:
        raise RecordingError(
            f"{path}: row {row}", f"is of version {version!r}", f"This Isthmus reads version {VERSION}; record again"
        )
    models = header.get("models")
    if not isinstance(models, list) or not all(isinstance(m, str) for m in models):
        raise RecordingError(f"{path}: row {row}, field 'models'", f"found {models!r}", "Give a list of model names")
    return Recording(models, str(header.get("sampling", "greedy")), str(path))


def _read_task(fields: Mapping[str, Any]) -> Task:
    attachments = tuple(Attachment(*a) for a in fields.get("attachments", ()))
    return Task(
        str(fields["id"]), str(fields["prompt"]), fields.get("answer"), fields.get("family", "default"), attachments=attachments
    )


def _read_answer(fields: dict[str, Any]) -> Completion:
    completion = Completion(**fields)
    numbers = (completion.prompt_tokens, completion.completion_tokens, completion.download_bytes)
    if not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError("token and byte counts must be whole numbers of at least 0")
    return completion
