"""What all readers share: streaming rows with their line numbers, and checking numbers.

Whatever is wrong with a file ends as an InputError that names the file, the row and the column, never as an error of
csv, json, gzip or the text decoder. A row's number is the physical line on which it starts; the first line is 1.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, Literal, NoReturn, overload

from workloads.errors import InputError
from workloads.readers._text import AGAIN_REMEDY, StrPath, open_text, place

__all__ = [
    "StrPath",
    "csv_header",
    "csv_rows",
    "json_document",
    "json_kind",
    "json_lines",
    "nearest",
    "number",
    "open_text",
    "place",
]

LARGEST_FIELD_CHARACTERS = 2**31 - 1  # csv stops at 131,072 characters unless told; answers of models can be longer
LARGEST_INTEGER = 2**63 - 1  # results are kept as 64-bit integers
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)  # float() would also take "1_000" and "nan"


def csv_rows(
    path: StrPath, required: Sequence[str], aliases: Mapping[str, Sequence[str]] | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (row number, {column: text}) for each row of a CSV file with a header; blank lines hold no row.

    Text is kept exactly, with line breaks inside quotes. `aliases` maps a column's name to other names a file may use
    for it; the rows carry the first. Raises InputError where required columns are missing, a column occurs twice, a
    row is too short or long, a quote is broken, or no row follows the header.
    """
    rows = _csv_lines(path)
    names = _column_names(path, next(rows, (1, [])), required, aliases or {})
    row = 0
    for row, values in rows:
        if len(values) != len(names):
            problem = f"{len(values)} values where the header names {len(names)} columns"
            raise InputError(place(path, row), problem, "Give every column a value and quote values that hold commas")
        yield row, dict(zip(names, values, strict=True))
    if not row:
        raise InputError(place(path), "holds a header but no rows", AGAIN_REMEDY)


def csv_header(path: StrPath, required: Sequence[str]) -> list[str]:
    """The column names of a CSV file in order; raises InputError as `csv_rows` does."""
    rows = _csv_lines(path)
    try:
        return _column_names(path, next(rows, (1, [])), required, {})
    finally:
        rows.close()


def _csv_lines(path: StrPath) -> Generator[tuple[int, list[str]], None, None]:
    """Yield (row number, values), header included."""
    csv.field_size_limit(LARGEST_FIELD_CHARACTERS)
    row = 1
    with open_text(path) as file:
        reader = csv.reader(file, strict=True)
        try:
            for values in reader:
                if values:
                    yield row, values
                row = reader.line_num + 1
        except csv.Error as error:
            remedy = "Close every quote and write a quote inside a quoted value twice"
            raise InputError(place(path, row), f"not valid CSV: {error}", remedy) from error


def _column_names(
    path: StrPath,
    header_row: tuple[int, list[str]],
    required: Sequence[str],
    aliases: Mapping[str, Sequence[str]],
) -> list[str]:
    row, header = header_row
    canonical = {other: name for name, others in aliases.items() for other in others}
    names = [canonical.get(name.strip(), name.strip()) for name in header]
    for name in required:
        if name not in names:
            raise InputError(place(path, row), f"column '{name}' is missing", nearest(name, names))
    for name in names:
        if names.count(name) > 1:
            raise InputError(place(path, row, name), "the column occurs twice", "Give every column a name of its own")
    return names


def nearest(name: str, names: Sequence[str]) -> str:
    """The remedy for a missing name: the names found that look like it, and what names there are."""
    folded = {found.casefold(): found for found in names}
    near = [folded[key] for key in difflib.get_close_matches(name.casefold(), folded, n=2, cutoff=0.5)]
    hint = f"Write '{name}' for {' or '.join(map(repr, near))} if that is meant. " if near else ""
    return f"{hint}Found: {', '.join(map(repr, names[:20])) or 'no names'}"


def json_lines(path: StrPath) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number, object) for each line of a JSON Lines file; blank lines hold no row.

    Raises InputError where a line is not one JSON object, an object names a field twice, or there is no row.
    """
    any_row = False
    with open_text(path) as file:
        for row, line in enumerate(file, start=1):
            if not line.strip():
                continue
            value = _parse_json(line, path, row)
            if not isinstance(value, dict):
                raise InputError(
                    place(path, row), f"holds {json_kind(value)}", "Give one JSON object {...} on every line"
                )
            any_row = True
            yield row, value
    if not any_row:
        raise InputError(place(path), "holds no rows", AGAIN_REMEDY)


def json_document(path: StrPath) -> Any:
    """The one JSON value a file holds; raises InputError where it is broken or an object names a field twice."""
    with open_text(path) as file:
        return _parse_json(file.read(), path, None)


def _parse_json(text: str, path: StrPath, row: int | None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_fields, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        problem = f"not valid JSON at character {error.colno}: {error.msg}"
        raise InputError(place(path, (row or 1) + error.lineno - 1), problem, AGAIN_REMEDY) from error
    except (ValueError, RecursionError) as error:
        remedy = "Use finite numbers, distinct field names and at most a few levels of nesting"
        raise InputError(place(path, row), f"cannot be taken as data: {error}", remedy) from error


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field '{next(name for name in names if names.count(name) > 1)}' occurs twice")
    return fields


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def json_kind(value: Any) -> str:
    """What a JSON value is, in words, and short however large it is."""
    if isinstance(value, dict | list):
        return f"an object of {len(value)} fields" if isinstance(value, dict) else f"a list of {len(value)} entries"
    shown = json.dumps(value[:40] if isinstance(value, str) else value)
    return (
        shown
        if value is None or isinstance(value, bool)
        else f"the {'text' if isinstance(value, str) else 'number'} {shown}"
    )


@overload
def number(
    text: Any,
    path: StrPath,
    row: int | str | None,
    column: str,
    minimum: float | None = None,
    *,
    integer: Literal[True],
) -> int: ...
@overload
def number(
    text: Any, path: StrPath, row: int | str | None, column: str, minimum: float | None = None, integer: bool = False
) -> float: ...
def number(
    text: Any,
    path: StrPath,
    row: int | str | None,
    column: str,
    minimum: float | None = None,
    integer: bool = False,
) -> float | int:
    """A finite number from a CSV value or a JSON number; NaN, infinity, booleans and other text raise InputError.

    `minimum` is the least value allowed. `integer` asks for a whole number (12 or 12.0, not 12.5) of at most 64 bits.
    """
    if integer and type(text) is str and len(text) < 19 and text.isascii() and text.isdigit():
        value: float | int = int(text)  # the usual case of a trace, first because it is many times faster
    else:
        value = _number(text, path, row, column, integer)
    if minimum is not None and value < minimum:
        raise InputError(place(path, row, column), f"{_shown(text)} is too small", f"Give a number >= {minimum:g}")
    return value


def _number(value: Any, path: StrPath, row: int | str | None, column: str, integer: bool) -> float | int:
    kind = "a whole number" if integer else "a finite number"
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        text = value.strip()
        exact = int(text) if text.lstrip("+-").isdigit() and len(text) < 30 else float(text)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        exact = value
    else:
        exact = math.nan
    whole = not integer or (exact == exact // 1 and abs(exact) <= LARGEST_INTEGER)
    if not whole or not abs(exact) <= sys.float_info.max:  # false for NaN too
        problem = f"{_shown(value)} is not {kind}"
        raise InputError(
            place(path, row, column), problem, f"Give {kind}, such as {'12, below 2**63' if integer else '12.5'}"
        )
    return int(exact) if integer else float(exact)


def _shown(value: Any) -> str:
    """A value as an error shows it: a CSV value in quotes, a JSON value with what it is."""
    if isinstance(value, str):
        return repr(value[:40]) if value.strip() else "an empty value"
    return repr(value)[:40] if isinstance(value, int | float) and not isinstance(value, bool) else json_kind(value)
