"""Tasks and answers as the JSON objects of a recording's lines, and back again, every field checked."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, get_type_hints

from workloads.task import PROVENANCES, Attachment, Completion, Message, Task

_LARGEST_COUNT = 2**31 - 1  # results keep counts in 32 bits
_ANSWER_FIELDS = get_type_hints(Completion)


def task_fields(task: Task) -> dict[str, Any]:
    """A task as an object, without its `features` and `latent`."""
    fields: dict[str, Any] = {"id": task.id, "prompt": task.prompt, "family": task.family}
    if task.answer is not None:
        fields["answer"] = task.answer
    if task.prompt_tokens:
        fields["prompt_tokens"] = task.prompt_tokens
    if task.attachments:
        fields["attachments"] = [list(a) for a in task.attachments]
    return fields


def answer_fields(answer: Completion) -> dict[str, Any]:
    """An answer as an object, without what was not measured; a live answer is exact when it is replayed."""
    fields = answer._asdict()
    for name, default in Completion._field_defaults.items():
        value = fields[name]
        if value == default or (isinstance(value, float) and not math.isfinite(value)):
            del fields[name]
    if fields.get("provenance") != "modelled":
        fields.pop("provenance", None)
    return fields


def read_task(fields: Any) -> Task:
    """The task an object holds. Raises KeyError for a missing field and ValueError for a wrong one."""
    if not isinstance(fields, dict):
        _refuse("task", fields, "an object of fields")
    attachments = tuple(_read_attachment(entry) for entry in _list(fields, "attachments"))
    answer = None if fields.get("answer") is None else _text(fields, "answer")
    return Task(
        _text(fields, "id"), _text(fields, "prompt"), answer, _text({"family": "default", **fields}, "family"),
        _count(fields, "prompt_tokens") if "prompt_tokens" in fields else 0, attachments,
    )  # fmt: skip


def _read_attachment(entry: Any) -> Attachment:
    if not isinstance(entry, list) or len(entry) != len(Attachment._fields):
        _refuse("attachments", entry, "lists of name, size_bytes, tokens and association")
    fields = dict(zip(Attachment._fields, entry, strict=True))
    return Attachment(
        _text(fields, "name"), _count(fields, "size_bytes"), _count(fields, "tokens"), _number(fields, "association")
    )


def read_answer(fields: Mapping[str, Any]) -> tuple[str, str, tuple[Message, ...], Completion]:
    """(key, task, conversation so far, answer) of an object. Raises KeyError for a missing field, ValueError for a wrong one."""
    key, task_id = _text(fields, "key"), _text(fields, "task_id")
    if "messages" not in fields:
        raise KeyError("messages")
    messages = tuple(_read_message(entry) for entry in _list(fields, "messages"))
    values: dict[str, Any] = {}
    for name, kind in _ANSWER_FIELDS.items():
        if name in fields:
            values[name] = _CHECKS[kind](fields, name)
        elif name not in Completion._field_defaults:
            raise KeyError(name)
    unknown = fields.keys() - values.keys() - {"key", "task_id", "messages"}
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}")
    answer = Completion(**values)
    if answer.provenance not in PROVENANCES:
        _refuse("provenance", answer.provenance, " or ".join(PROVENANCES))
    return key, task_id, messages, answer


def _read_message(entry: Any) -> Message:
    if not isinstance(entry, list) or len(entry) != 2:
        _refuse("messages", entry, "lists of role and content")
    fields = dict(zip(Message._fields, entry, strict=True))
    return Message(_text(fields, "role"), _text(fields, "content"))


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name, [])
    return value if isinstance(value, list) else _refuse(name, value, "a list")


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    return value if isinstance(value, str) else _refuse(name, value, "text")


def _optional_text(fields: Mapping[str, Any], name: str) -> str | None:
    return None if fields[name] is None else _text(fields, name)


def _count(fields: Mapping[str, Any], name: str) -> int:
    value = fields[name]
    if type(value) is not int or not 0 <= value <= _LARGEST_COUNT:
        _refuse(name, value, f"a whole number from 0 to {_LARGEST_COUNT}")
    return value


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        _refuse(name, value, "a finite number")
    if value < 0 and name != "mean_logprob":
        _refuse(name, value, "at least 0")
    return float(value)


_CHECKS: dict[Any, Callable[[Mapping[str, Any], str], Any]] = {
    str: _text, int: _count, float: _number, str | None: _optional_text
}  # fmt: skip


def _refuse(name: str, found: Any, wanted: str) -> NoReturn:
    shown = json.dumps(found)
    raise ValueError(f"the field {name!r} holds {shown if len(shown) <= 40 else shown[:37] + '...'}, not {wanted}")
