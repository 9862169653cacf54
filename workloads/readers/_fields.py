"""Fields of JSON values, checked: what the readers of JSON formats share beyond `_rows`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

from workloads.errors import InputError
from workloads.readers._rows import StrPath, json_kind, nearest, number, place


def require_fields(value: Any, names: Sequence[str], path: StrPath, row: int | str) -> None:
    """Raise InputError if `value` is not an object with the named fields; it names the fields that look like one."""
    if not isinstance(value, dict):
        raise InputError(place(path, row), f"holds {json_kind(value)}", "Give a JSON object {...}")
    for name in names:
        if name not in value:
            raise InputError(place(path, row), f"field '{name}' is missing", nearest(name, list(value)))


def other_fields(value: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """The fields a reader has no name for, kept so that nothing is lost."""
    return {name: item for name, item in value.items() if name not in known}


def text_field(
    value: Mapping[str, Any],
    name: str,
    path: StrPath,
    row: int | str,
    default: str | None = None,
    filled: bool = False,
) -> str:
    """A text field; `default` stands for a missing or null one, `filled` refuses an empty one."""
    text = value.get(name)
    if text is None and default is not None:
        return default
    if not isinstance(text, str) or (filled and not text.strip()):
        problem = f"{json_kind(text)} is not a text" + (" with anything in it" if isinstance(text, str) else "")
        raise InputError(place(path, row, name), problem, "Give a text in quotes")
    return text


def list_field(value: Any, name: str, path: StrPath, row: int | str, length: int | None = None) -> list[Any]:
    """`value` itself if it is a list, of `length` entries where that is given."""
    if not isinstance(value, list):
        raise InputError(place(path, row, name), f"{json_kind(value)} is not a list", "Give a JSON list [...]")
    if length is not None and len(value) != length:
        raise InputError(place(path, row, name), f"{len(value)} entries instead of {length}", f"Give {length} entries")
    return value


@overload
def number_field(
    value: Any, name: str, path: StrPath, row: int | str, minimum: float | None = None, *, integer: Literal[True]
) -> int: ...
@overload
def number_field(value: Any, name: str, path: StrPath, row: int | str, minimum: float | None = None) -> float: ...
def number_field(
    value: Any, name: str, path: StrPath, row: int | str, minimum: float | None = None, integer: bool = False
) -> float | int:
    """A finite JSON number, as `number` checks it; a number written as text is refused."""
    if isinstance(value, str):
        raise InputError(place(path, row, name), f"{json_kind(value)} is not a number", "Give a number without quotes")
    return number(value, path, row, name, minimum, integer)
