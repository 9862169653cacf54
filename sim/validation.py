"""Turns what is wrong with a scenario into one message that names file, line, field, what was found and what is allowed."""

from __future__ import annotations

import datetime
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from sim.scenario import Scenario
from sim.yaml_text import Location, field_name
from workloads.errors import InputError, suggest

_SEE_SCHEMA = "`run_sim.py schema` documents every field"
_NAMED_FIELD = re.compile(r"([a-z_]+(?:\.[\w-]+)*): ")
_NUMERIC = re.compile(r"[-+.\deE]+")
_NAME_RULE = (
    "A name starts with a letter or digit and goes on with letters, digits, '_', '.' or '-', 80 characters at most."
)
_WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text; quote it if it looks like a number, a date or true",
    "tuple_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of fields",
    "date_type": "a date such as 2026-01-31",
    "finite_number": "a finite number",
}


class Source(NamedTuple):
    """Where the fields of a scenario were given: the lines of its file, and what `--set` and the sweep put over them."""

    path: Path
    lines: Mapping[Location, int]
    changes: tuple[tuple[Location, str], ...] = ()
    """(field, where it was set instead), the later ones over the earlier ones."""

    def place(self, location: Location) -> str:
        """File, line and name of a field; or the option or sweep value that set it."""
        field = f": field {field_name(location)}" if location else ""
        for changed, place in reversed(self.changes):
            if location[: len(changed)] == changed:
                return place if location == changed else place + field
        inside = [place for changed, place in self.changes if changed[: len(location)] == location]
        if inside and location and location not in self.lines:
            return inside[-1] + field
        line = next((self.lines[location[:n]] for n in range(len(location), 0, -1) if location[:n] in self.lines), None)
        return f"{self.path}{f':{line}' if line else ''}{field}{f' (with {inside[-1]})' if inside else ''}"

    @contextmanager
    def at(self, *location: str | int) -> Iterator[None]:
        """Whatever is wrong inside this block gets a field's place in front of its own."""
        try:
            yield
        except InputError as error:
            known = error.place.startswith("field ") or field_name(location).startswith(error.place)
            inner = "" if known else f": {error.place}"
            raise type(error)(self.place(location) + inner, error.problem, error.remedy) from None


def describe_errors(error: ValidationError, source: Source, document: Any) -> InputError:
    """The first problem in full, and how many more there are."""
    problems = error.errors(include_url=False)
    first = min(problems, key=lambda e: e["type"] != "extra_forbidden")  # a misspelt name explains a missing one
    location = _in_document(document, first["loc"])
    more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
    problem, remedy = _explain(first, _value_at(document, location[:-1]))
    named = _NAMED_FIELD.match(problem)
    if named and first["type"] == "value_error":  # a check across fields names the one to look at
        inner = tuple(int(part) if part.isdigit() else part for part in named[1].split("."))
        location, problem = (*location, *inner), problem[named.end() :]
    return InputError(source.place(location), problem, remedy + more)


def check_memory(scenario: Scenario, source: Source) -> None:
    """Raise InputError for a model whose weights do not fit into the memory of its tier's device."""
    for name, tier in scenario.tiers.items():
        if tier.device is None:
            continue
        weights = tier.model.weight_gbytes or 2 * tier.model.parameters_b  # as the roofline takes them
        if weights > tier.device.memory_gbytes:
            raise InputError(
                source.place(("tiers", name)),
                f"the weights of its model take {weights:.4g} GB, its device has {tier.device.memory_gbytes:.4g} GB of memory",
                "Choose a smaller or quantised model, or a device with more memory",
            )


def _in_document(document: Any, location: Sequence[str | int]) -> Location:
    """An error's location without the union tags and marks in it that the document does not have."""
    node, found = document, list[str | int]()
    for depth, part in enumerate(location):
        inside = _inside(node, part)
        if inside:
            node = node[part]
        elif depth < len(location) - 1 or part == "[key]" or (isinstance(node, Mapping) and part == node.get("kind")):
            continue
        found.append(part)
    return tuple(found)


def _inside(node: Any, part: str | int) -> bool:
    if isinstance(node, tuple):
        return isinstance(part, int) and part < len(node)
    return isinstance(node, Mapping) and part in node


def _value_at(document: Any, location: Location) -> Any:
    for part in location:
        document = document[part] if _inside(document, part) else None
    return document


def _explain(problem: Any, parent: Any) -> tuple[str, str]:
    """What was found, and what is allowed instead; `parent` is the value that holds the field."""
    kind, loc, found = problem["type"], problem["loc"], problem.get("input")
    name = str(loc[-1]) if loc else ""
    context = problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown field {_shown(name)}", suggest(name, _fields_at(loc[:-1])) + "."
    if kind == "missing":
        return _missing(name, parent)
    if kind in ("value_error", "assertion_error"):
        found, _, remedy = str(context["error"]).rstrip(".").partition(". ")
        return found, f"{remedy or _SEE_SCHEMA}."
    if kind == "model_attributes_type":
        return f"found {_shown(found)}", f"Give a mapping with a kind. {_one_of(_tags_at(loc))}"
    if kind == "union_tag_not_found":
        return "its kind is missing", f"Add the field 'kind'. {_one_of(_tags_at(loc))}"
    if kind == "union_tag_invalid":
        return f"unknown kind {_shown(context['tag'])}", suggest(str(context["tag"]), _tags_at(loc)) + "."
    if kind == "literal_error":
        allowed = [choice.strip("'") for choice in re.split(", | or ", context["expected"])]
        return f"found {_shown(found)}", suggest(str(found), allowed) + "."
    if kind in ("string_pattern_mismatch", "string_too_long"):
        return f"{_shown(found)} cannot be a name", _NAME_RULE
    rule = _rule(kind, str(problem["msg"]), context)
    quoted = kind in ("int_type", "float_type", "date_type") and isinstance(found, str) and _NUMERIC.fullmatch(found)
    return f"found {_shown(found)}", rule.removesuffix(".") + ", without quotes." if quoted else rule


def _missing(name: str, parent: Any) -> tuple[str, str]:
    if isinstance(parent, tuple):
        return f"found a list of {len(parent)}", f"Entry {int(name) + 1} is missing."
    given = f"; given: {', '.join(map(str, list(parent)[:8]))}" if isinstance(parent, Mapping) and parent else ""
    return f"required field {name!r} is missing{given}", f"Add it; {_SEE_SCHEMA}."


def _rule(kind: str, message: str, context: Mapping[str, Any]) -> str:
    if kind in _WORDS:
        return f"It must be {_WORDS[kind]}."
    if kind in ("too_short", "too_long"):
        bound = context.get("min_length") or context.get("max_length")
        return f"It must have at {'least' if kind == 'too_short' else 'most'} {bound} {'entry' if bound == 1 else 'entries'}."
    message = message.replace("Input should be", "must be").rstrip(".")
    return f"It {message}." if message.startswith("must") else f"{message}."


def _one_of(names: Sequence[str]) -> str:
    return f"Allowed: {', '.join(names)}."


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, list(value)[:4])) or 'no fields'}"
    if isinstance(value, tuple | list):
        return f"a list of {len(value)}" if value else "an empty list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value) if isinstance(value, datetime.date) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def models_at(location: Sequence[str | int]) -> list[type[BaseModel]]:
    """The configuration values a location of the scenario can hold, following unions by their `kind`."""
    candidates: list[Any] = [Scenario]
    for part in location:
        step: list[Any] = []
        for kind in candidates:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                if str(part) in kind.model_fields:
                    step += _unfold(kind.model_fields[str(part)].annotation)
                elif part in _tags_of(kind):
                    step.append(kind)
            else:  # the value type of a dict or the item type of a tuple
                step += [inner for arg in typing.get_args(kind) for inner in _unfold(arg)]
        candidates = step
    return [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _fields_at(location: Sequence[str | int]) -> list[str]:
    return sorted({name for kind in models_at(location) for name in kind.model_fields})


def _tags_at(location: Sequence[str | int]) -> list[str]:
    return [tag for kind in models_at(location) for tag in _tags_of(kind)]


def _tags_of(kind: type[BaseModel]) -> tuple[str, ...]:
    field = kind.model_fields.get("kind")
    return typing.get_args(field.annotation) if field is not None else ()


def _unfold(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _unfold(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [inner for arg in typing.get_args(annotation) for inner in _unfold(arg)]
    return [annotation]
