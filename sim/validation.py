"""Turns pydantic's errors into one message that names file, line, field, what was found and what is allowed."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from sim.scenario import Scenario
from workloads.errors import InputError, suggest


def describe_errors(error: ValidationError, path: Path, tree: Any, model: type[BaseModel] = Scenario) -> InputError:
    """The first problem in full, and how many more there are."""
    problems = error.errors(include_url=False)
    first = min(problems, key=lambda e: e["type"] != "extra_forbidden")  # a misspelt name explains a missing one
    line, field = _locate(tree, first["loc"])
    place = f"{path}:{line}" if line else str(path)
    if field:
        place += f": field {field}"
    more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
    problem, remedy = _explain(first, model)
    return InputError(place, problem, remedy + more)


def _locate(tree: Any, location: Sequence[str | int]) -> tuple[int | None, str]:
    """Line (from 1) and dotted name of an error's location; union tags in it are passed over."""
    node, line, names = tree, None, []
    for depth, part in enumerate(location):
        last = depth == len(location) - 1
        if (isinstance(node, Mapping) and part in node) or (isinstance(node, Sequence) and not isinstance(node, str) and isinstance(part, int) and part < len(node)):
            line, node = _line(node, part, line), node[part]
        elif not last or (isinstance(node, Mapping) and _is_tag(part, node)):
            continue
        names.append(str(part))
    return line, ".".join(names)


def _is_tag(part: str | int, node: Mapping[str, Any]) -> bool:
    return part == node.get("kind")


def _line(node: Any, part: str | int, default: int | None) -> int | None:
    marks = getattr(node, "lc", None)
    try:
        position = marks.key(part) if isinstance(node, Mapping) else marks.item(part)  # type: ignore[union-attr]
    except (AttributeError, KeyError, TypeError):  # set on the command line: not in the file
        return default
    return int(position[0]) + 1


def _explain(problem: Any, model: type[BaseModel]) -> tuple[str, str]:
    kind, location, found = problem["type"], problem["loc"], problem.get("input")
    name = str(location[-1]) if location else ""
    if kind == "extra_forbidden":
        return f"unknown field {name!r}", suggest(name, _fields_at(model, location[:-1])) + "."
    if kind == "missing":
        return f"required field {name!r} is missing", "Add it; `run_sim.py schema` documents every field."
    if kind in ("value_error", "assertion_error"):
        return str(problem["ctx"]["error"]).rstrip("."), "See `run_sim.py schema` for every field and `run_sim.py list` for names."
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"unknown kind {_shown(found)}", f"Allowed: {problem['ctx'].get('expected_tags', 'see the schema')}."
    message = str(problem["msg"]).replace("Input should be", "must be").rstrip(".")
    return f"found {_shown(found)}", f"It {message}." if message.startswith("must") else f"{message}."


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, list(value)[:4])) or 'no fields'}"
    if isinstance(value, tuple):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Field names of the configuration value at a location, following unions by their `kind`."""
    candidates: list[Any] = [model]
    for part in location:
        step: list[Any] = []
        for kind in candidates:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                if str(part) in kind.model_fields:
                    step += _unfold(kind.model_fields[str(part)].annotation)
                elif _has_tag(kind, part):
                    step.append(kind)
            else:  # the value type of a dict or the item type of a tuple
                step += [inner for arg in typing.get_args(kind) for inner in _unfold(arg)]
        candidates = step or candidates
    models = [k for k in candidates if isinstance(k, type) and issubclass(k, BaseModel)]
    return sorted({name for kind in models for name in kind.model_fields})


def _has_tag(kind: type[BaseModel], part: str | int) -> bool:
    field = kind.model_fields.get("kind")
    return field is not None and part in typing.get_args(field.annotation)


def _unfold(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _unfold(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [inner for arg in typing.get_args(annotation) for inner in _unfold(arg)]
    return [annotation]
