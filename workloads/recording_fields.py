"""Tasks and answers as the JSON objects of a recording's lines, and back again, every field checked."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, get_type_hints

from workloads.task import PROVENANCES, Attachment, Completion, Message, Task

_LARGEST_COUNT = 2**31 - 1  # results keep counts in 32 bits
_REQUIRED = tuple(name for name in Completion._fields if name not in Completion._field_defaults)
_ROLES = {role: role for role in ("system", "user", "assistant", "tool")}
"""One text for all messages of a role, where a parser makes a new one each time."""


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
    attachments = tuple(_read_attachment(entry) for entry in as_list(fields, "attachments"))
    answer = None if fields.get("answer") is None else as_text(fields, "answer")
    return Task(
        as_text(fields, "id"), as_text(fields, "prompt"), answer, as_text({"family": "default", **fields}, "family"),
        as_count(fields, "prompt_tokens") if "prompt_tokens" in fields else 0, attachments,
    )  # fmt: skip


def _read_attachment(entry: Any) -> Attachment:
    if not isinstance(entry, list) or len(entry) != len(Attachment._fields):
        _refuse("attachments", entry, "lists of name, size_bytes, tokens and association")
    fields = dict(zip(Attachment._fields, entry, strict=True))
    return Attachment(
        as_text(fields, "name"), as_count(fields, "size_bytes"), as_count(fields, "tokens"),
        _number(fields, "association"),
    )  # fmt: skip


def read_answer(fields: Any, also: frozenset[str] = frozenset()) -> Completion:
    """The answer an object holds, beside fields called `also`. Raises KeyError for a missing field, ValueError for a wrong one."""
    if not isinstance(fields, dict):
        _refuse("answers", fields, "objects of fields")
    values: dict[str, Any] = {}
    for name in fields:
        check = _CHECKS.get(name)
        if check is not None:
            values[name] = check(fields, name)
        elif name not in also:
            raise ValueError(f"unknown field {name!r}")
    for name in _REQUIRED:
        if name not in values:
            raise KeyError(name)
    answer = Completion(**values)
    if answer.provenance not in PROVENANCES:
        _refuse("provenance", answer.provenance, " or ".join(PROVENANCES))
    return answer


def read_messages(fields: Mapping[str, Any], name: str) -> tuple[Message, ...]:
    """The messages a field holds as lists of role and content."""
    if name not in fields:
        raise KeyError(name)
    return tuple([_read_message(entry) for entry in as_list(fields, name)])


def _read_message(entry: Any) -> Message:
    if not isinstance(entry, list) or len(entry) != 2:
        _refuse("messages", entry, "lists of role and content")
    fields = dict(zip(Message._fields, entry, strict=True))
    role = as_text(fields, "role")
    return Message(_ROLES.get(role, role), as_text(fields, "content"))


def as_list(fields: Mapping[str, Any], name: str) -> list[Any]:
    """A field that is a list; an absent one is empty."""
    value = fields.get(name, [])
    return value if isinstance(value, list) else _refuse(name, value, "a list")


def as_text(fields: Mapping[str, Any], name: str) -> str:
    """A field that is text."""
    value = fields[name]
    return value if isinstance(value, str) else _refuse(name, value, "text")


def as_count(fields: Mapping[str, Any], name: str) -> int:
    """A field that counts something."""
    value = fields[name]
    if type(value) is not int or not 0 <= value <= _LARGEST_COUNT:
        _refuse(name, value, f"a whole number from 0 to {_LARGEST_COUNT}")
    return value


def _optional_text(fields: Mapping[str, Any], name: str) -> str | None:
    return None if fields[name] is None else as_text(fields, name)


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        _refuse(name, value, "a finite number")
    if value < 0 and name != "mean_logprob":
        _refuse(name, value, "at least 0")
    return float(value)


_KINDS: dict[Any, Callable[[Mapping[str, Any], str], Any]] = {
    str: as_text, int: as_count, float: _number, str | None: _optional_text
}  # fmt: skip
_CHECKS = {name: _KINDS[kind] for name, kind in get_type_hints(Completion).items()}


def _refuse(name: str, found: Any, wanted: str) -> NoReturn:
    shown = json.dumps(found)
    raise ValueError(f"the field {name!r} holds {shown if len(shown) <= 40 else shown[:37] + '...'}, not {wanted}")
