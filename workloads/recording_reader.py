"""Reading the file of a recording, versions 1 and 2, line by line, with nothing taken on trust."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workloads.errors import RecordingError
from workloads.readers._rows import json_lines, open_text
from workloads.recording_fields import as_count, as_list, as_text, read_answer, read_messages, read_task
from workloads.recording_file import VERSION, Header, conversation_key, end_line
from workloads.task import Completion, Message, Task

_AGAIN = "Record again; the file was changed or damaged"
_CONVERSATION_FIELDS = frozenset(("keep", "add", "answers"))
_V1_FIELDS = frozenset(("key", "task_id", "messages"))


class Answered(NamedTuple):
    """One answer to one conversation of one task."""

    task_id: str
    messages: tuple[Message, ...]
    answer: Completion


def read_file(path: Path) -> tuple[Header, Iterator[Task | Answered]]:
    """A recording's header, and its tasks and answers line by line; both raise InputError for anything that is not one."""
    lines = json_lines(path)
    row, fields = next(lines)
    place, version = f"{path}: row {row}", fields.get("isthmus_recording")
    if version is None:
        raise RecordingError(place, "not an Isthmus recording", "Its first line names isthmus_recording")
    if version is True or version not in (1, VERSION):
        raise RecordingError(
            place, f"is of version {version!r}", f"This Isthmus reads versions 1 and {VERSION}; record again"
        )
    header = _read_header(place, fields)
    if version == 1:
        return header, _Reader(path, header).version_1(lines, fields)
    return header, _Reader(path, header).version_2()


def _read_header(place: str, fields: Mapping[str, Any]) -> Header:
    models, sampling, made = fields.get("models"), fields.get("sampling", "greedy"), fields.get("made", {})
    if not isinstance(models, list) or not models or not all(isinstance(m, str) for m in models):
        raise RecordingError(f"{place}, field 'models'", f"found {models!r}", "Give a list of model names")
    if not isinstance(sampling, str):
        raise RecordingError(f"{place}, field 'sampling'", f"found {sampling!r}", "Give the sampling settings as text")
    if not isinstance(made, dict):
        raise RecordingError(f"{place}, field 'made'", f"found {made!r}", "Give an object of fields")
    return Header(tuple(models), sampling, made)


class _Reader:
    """Turns a file's lines into tasks and answers and counts them."""

    def __init__(self, path: Path, header: Header) -> None:
        self._path, self._header = path, header
        self._names: set[str] = set()
        self._answers = 0
        self._row = 1

    def version_1(
        self, lines: Iterator[tuple[int, dict[str, Any]]], head: Mapping[str, Any]
    ) -> Iterator[Task | Answered]:
        """A line for every answer, its conversation in full. Without counts in the head a cut between lines is not seen."""
        for self._row, fields in lines:
            try:
                yield self._task(fields["task"]) if "task" in fields else self._full(fields)
            except (KeyError, TypeError, ValueError) as error:
                raise self._wrong(error) from None
        self._check_counts(head.get("tasks", len(self._names)), head.get("answers", self._answers))

    def version_2(self) -> Iterator[Task | Answered]:
        """Conversations as what they add to the one before; the last line vouches for all before it."""
        digest, ended = hashlib.sha256(), False
        before: tuple[Message, ...] = ()
        task_id: str | None = None
        with open_text(self._path) as file:
            for self._row, line in enumerate(file, start=1):
                try:
                    fields = json.loads(line)
                    if ended or not isinstance(fields, dict):
                        raise ValueError("more lines after its end" if ended else "a line is no object of fields")
                    if "end" in fields:
                        self._check_end(fields, line, digest.hexdigest())
                        ended = True
                    elif "answers" in fields:
                        if task_id is None:
                            raise ValueError("no task comes before it")
                        before, answers = self._conversation(fields, before)
                        for answer in answers:
                            yield Answered(task_id, before, answer)
                    elif self._row > 1:
                        before, task = (), None
                        if "task" in fields:
                            task = self._task(fields["task"])
                            yield task
                        task_id = task.id if task else as_text(fields, "task_id")
                except (KeyError, TypeError, ValueError, RecursionError) as error:
                    raise self._wrong(error) from None
                digest.update(line.encode())
        if not ended:
            raise RecordingError(str(self._path), "breaks off before its last line", _AGAIN)

    def _task(self, fields: Any) -> Task:
        task = read_task(fields)
        if task.id in self._names:
            raise ValueError(f"the task {task.id!r} occurs twice")
        self._names.add(task.id)
        return task

    def _full(self, fields: Mapping[str, Any]) -> Answered:
        key, task_id, messages = as_text(fields, "key"), as_text(fields, "task_id"), read_messages(fields, "messages")
        answer = self._known(read_answer(fields, _V1_FIELDS))
        if conversation_key(answer.model, messages, self._header.sampling) != key:
            raise ValueError("its key does not belong to its conversation")
        return Answered(task_id, messages, answer)

    def _conversation(
        self, fields: Mapping[str, Any], before: tuple[Message, ...]
    ) -> tuple[tuple[Message, ...], list[Completion]]:
        if not fields.keys() <= _CONVERSATION_FIELDS:
            raise ValueError(f"unknown field {min(fields.keys() - _CONVERSATION_FIELDS)!r}")
        kept = as_count(fields, "keep") if "keep" in fields else 0
        if kept > len(before):
            raise ValueError(f"the field 'keep' holds {kept}, but the conversation before has {len(before)} messages")
        messages = before[:kept] + read_messages(fields, "add")
        return messages, [self._known(read_answer(entry)) for entry in as_list(fields, "answers")]

    def _known(self, answer: Completion) -> Completion:
        if answer.model not in self._header.models:
            raise ValueError(f"the model {answer.model!r} is none of {', '.join(self._header.models)}")
        self._answers += 1
        return answer

    def _check_end(self, fields: Mapping[str, Any], line: str, sha256: str) -> None:
        counts = fields["end"]
        if isinstance(counts, dict):
            self._check_counts(counts["tasks"], counts["answers"])
        if line != end_line(len(self._names), self._answers, sha256):
            raise RecordingError(str(self._path), "its checksum does not belong to its lines", _AGAIN)

    def _check_counts(self, tasks: Any, answers: Any) -> None:
        if not self._names:
            raise RecordingError(str(self._path), "holds no task", "Record again; it broke off before its first task")
        for name, found, wanted in (("tasks", len(self._names), tasks), ("answers", self._answers, answers)):
            if wanted != found:
                raise RecordingError(str(self._path), f"holds {found} of {wanted} {name}", _AGAIN)

    def _wrong(self, error: Exception) -> RecordingError:
        place = f"{self._path}: row {self._row}"
        if isinstance(error, json.JSONDecodeError):
            return RecordingError(place, f"not valid JSON at character {error.colno}: {error.msg}", _AGAIN)
        problem = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
        return RecordingError(place, f"not a task or an answer: {problem}", _AGAIN)
