"""Recordings: what models answered, kept for replay.

An answer belongs to (model, sampling, conversation so far), never to a step's number: an answer given at the edge changes every
later call. A conversation that nobody recorded raises RecordingMiss and names the nearest one that was. Only the fields of
Task and Completion named in recording_fields.py are written: nothing else a backend knows can reach a recording. The file itself
is described in recording_file.py and read by recording_reader.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from workloads.backend import Handle, InferenceBackend, cancel, started
from workloads.errors import InputError, RecordingMiss
from workloads.recording_file import Header, RecordingWriter, common_prefix, conversation_key
from workloads.recording_reader import read_file
from workloads.task import Completion, Message, ModelCall, Task

__all__ = [
    "RECORD_IT", "Recording", "RecordingBackend", "ReplayBackend", "conversation_key", "read_recording", "recordable", "write_recording",
]  # fmt: skip

Conversation = tuple[Message, ...]
RECORD_IT = "Record this placement, or use a policy that places whole requests"
"""What helps against a RecordingMiss."""


class Recording:
    """A recording in memory: its tasks, and its answers by model and conversation."""

    def __init__(
        self, models: Iterable[str], sampling: str = "greedy", source: str = "recording", made: Mapping[str, Any] | None = None
    ) -> None:  # fmt: skip
        self.models, self.sampling, self.source, self.made = tuple(models), sampling, source, made or {}
        self.tasks: list[Task] = []
        self.answers: dict[tuple[str, Conversation], Completion] = {}
        self._known: dict[str, set[tuple[str, Conversation]]] = {}

    def add(self, task_id: str, messages: Conversation, completion: Completion) -> None:
        """Keep an answer of one of the models; the last one wins, as a re-recorded conversation replaces the old."""
        entry = completion.model, messages
        self.answers[entry] = completion
        self._known.setdefault(task_id, set()).add(entry)

    def conversations(self) -> list[tuple[str, str, Conversation]]:
        """(task, model, conversation so far) of every answer, in an order that does not depend on when it was recorded."""
        return sorted((task, *entry) for task, entries in self._known.items() for entry in entries)

    def of_task(self, task_id: str) -> list[tuple[Conversation, list[Completion]]]:
        """What was asked about a task and what the models answered, conversations in order, models as the recording has them."""
        asked = sorted((messages, self.models.index(model), model) for model, messages in self._known.get(task_id, ()))
        return [
            (messages, [self.answers[model, messages] for _, _, model in group])
            for messages, group in itertools.groupby(asked, key=lambda entry: entry[0])
        ]

    def untold_tasks(self) -> list[str]:
        """Tasks that answers belong to but that are not among `tasks`, in order."""
        return sorted(self._known.keys() - {task.id for task in self.tasks})

    def near_misses(self, call: ModelCall, model: str) -> str:
        """The recorded conversation of this task that agrees longest with the one asked for."""
        known = self._known.get(call.task.id)
        if not known:
            return f"nothing is recorded of task {call.task.id!r}"

        def agreement(entry: tuple[str, Conversation]) -> tuple[int, bool]:
            return common_prefix(entry[1], call.messages), entry[0] == model

        near_model, near = max(sorted(known), key=agreement)
        return (
            f"the nearest recorded conversation is {near_model!r} after {len(near)} messages, of which the first "
            f"{common_prefix(near, call.messages)} agree"
        )


def recordable(answer: Completion, model: str, *, timings: bool = False) -> Completion:
    """An answer as a recording keeps it, so that greedy models recorded twice make the same file.

    It bears the name it was asked for: a server's own name for its model is not what replay asks for. Replayed it is exact.
    The log-probability keeps 4 significant digits. What depends on the moment (seconds, tokens found in a cache) is left out
    unless `timings` asks for it; seconds then keep 3 digits.
    """
    return answer._replace(
        model=model,
        mean_logprob=_rounded(answer.mean_logprob, 4),
        prefill_s=_rounded(answer.prefill_s, 3) if timings else float("nan"),
        decode_s=_rounded(answer.decode_s, 3) if timings else float("nan"),
        cached_tokens=answer.cached_tokens if timings else 0,
        provenance="exact" if answer.provenance == "live" else answer.provenance,
    )


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


class ReplayBackend:
    """Answers from a recording; a conversation nobody recorded goes to `on_miss` or raises RecordingMiss when collected.

    `remedy` ends the message of a RecordingMiss.
    """

    def __init__(
        self, recording: Recording, on_miss: Callable[[ModelCall, str], Handle] | None = None, remedy: str = RECORD_IT
    ) -> None:
        self._recording, self._on_miss, self._remedy = recording, on_miss, remedy

    def submit(self, call: ModelCall, model: str) -> Handle:
        """The recorded answer, at once. A miss is raised when it is collected: who gives up before needs no answer."""
        answer = self._recording.answers.get((model, call.messages))
        if answer is not None:
            return answer
        return self._on_miss(call, model) if self._on_miss is not None else _Missing(self, call, model)

    def missing(self, call: ModelCall, model: str) -> RecordingMiss:
        """What to raise for a call that was not recorded."""
        recording = self._recording
        key = conversation_key(model, call.messages, recording.sampling)
        return RecordingMiss(
            f"{recording.source}: no answer of {model!r} to subtask {call.position} of task {call.task.id!r} "
            f"(key {key}); {recording.near_misses(call, model)}. {self._remedy}"
        )


class _Missing:
    """The answer that was not recorded."""

    def __init__(self, backend: ReplayBackend, call: ModelCall, model: str) -> None:
        self._backend, self._call, self._model = backend, call, model

    def result(self) -> NoReturn:
        """Raises RecordingMiss."""
        raise self._backend.missing(self._call, self._model)


class RecordingBackend:
    """Passes calls on to another backend and keeps every answer."""

    def __init__(self, inner: InferenceBackend, recording: Recording) -> None:
        self._inner, self._recording = inner, recording

    def submit(self, call: ModelCall, model: str) -> Handle:
        """Submit to the inner backend; the answer is kept when it is collected."""
        self._check(model)
        return _KeptHandle(self._inner.submit(call, model), call, model, self._recording)

    def submit_many(self, calls: Sequence[tuple[ModelCall, str]]) -> list[Handle]:
        """The same for many calls, passed on together where the inner backend takes that."""
        for _, model in calls:
            self._check(model)
        handles = zip(calls, started(self._inner, calls), strict=True)
        return [_KeptHandle(handle, call, model, self._recording) for (call, model), handle in handles]

    def _check(self, model: str) -> None:
        models = self._recording.models
        if model not in models:  # found out now, not when hours of answers are read back
            raise InputError(f"model {model!r}", "is not to be recorded", f"Recorded models: {', '.join(models)}")


class _KeptHandle:
    def __init__(self, handle: Handle, call: ModelCall, model: str, recording: Recording) -> None:
        self._handle, self._call, self._model, self._recording = handle, call, model, recording

    def result(self) -> Completion:
        """The answer under the name it was asked for: a server's own name for its model is not what replay asks for."""
        completion = self._handle.result()._replace(model=self._model)
        self._recording.add(self._call.task.id, self._call.messages, completion)
        return completion

    def cancel(self) -> None:
        """Give the call up; nothing is kept."""
        cancel(self._handle)


def write_recording(recording: Recording, path: Path, partial: Path | None = None) -> None:
    """Write atomically, by way of the file `partial`; equal recordings are equal files.

    Of a task everything is kept but `features` and `latent`, of an answer everything; what was live is exact when replayed.
    Raises InputError where the file cannot be written.
    """
    with RecordingWriter(path, Header(recording.models, recording.sampling, recording.made), partial) as out:
        told: list[Task | str] = [*recording.tasks, *recording.untold_tasks()]
        for task in told:
            out.task(task)
            for messages, answers in recording.of_task(task.id if isinstance(task, Task) else task):
                out.conversation(messages, answers)
        out.finish()


def read_recording(path: Path) -> Recording:
    """Read a recording line by line; raises InputError with the line for anything that is not one."""
    header, entries = read_file(path)
    recording = Recording(header.models, header.sampling, str(path), header.made)
    add = recording.add
    for entry in entries:
        if isinstance(entry, Task):
            recording.tasks.append(entry)
        else:
            add(entry.task_id, entry.messages, entry.answer)
    return recording
