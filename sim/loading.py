"""From a YAML file to validated scenarios: reading, `--set`, sweeps, and errors that name file, line and field."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from sim.profiles import KINDS
from sim.scenario import PolicySpec, Scenario
from sim.validation import Source, check_memory, describe_errors, models_at
from sim.yaml_text import Document, Location, dump_yaml, field_name, read_yaml
from workloads.errors import InputError, suggest

__all__ = ["LoadedScenario", "Variant", "data_path", "dump_yaml", "load_scenario"]

DATA_VARIABLE = "ISTHMUS_DATA"
"""Environment variable that says where recorded data of others lies; scenarios write $ISTHMUS_DATA/<file>."""
MOST_VARIANTS = 10_000
_CHECKOUT = Path(__file__).resolve().parents[1]
_MAX_BYTES = 200_000
_PATHS = "Paths name fields, e.g. tiers.edge.replicas, and entries of lists, e.g. links.0.link"


class Variant(NamedTuple):
    """One point of the sweep grid."""

    label: str
    settings: dict[str, Any]
    scenario: Scenario
    source: Source


class LoadedScenario(NamedTuple):
    """A scenario as read: where it came from and every point of its sweep, all validated."""

    path: Path
    scenario: Scenario
    variants: tuple[Variant, ...]


def load_scenario(path: Path, settings: Sequence[str] = ()) -> LoadedScenario:
    """Read and validate a scenario file; `settings` are `path=value` overrides. Raises InputError."""
    document, lines = _read_file(path)
    changes = []
    for setting in settings:
        place = f"--set {_shown_option(setting)}"
        field, value = _parse_setting(setting, place)
        changes.append((_apply(document, field, value, place), place))
    source = Source(path, lines, tuple(changes))
    scenario = _validated(document, source)
    return LoadedScenario(path, scenario, tuple(_variants(document, scenario, source)))


def data_path(path: str, scenario_path: Path) -> Path:
    """A file named in a scenario: absolute, relative to the scenario's folder, or under $ISTHMUS_DATA."""
    if path.startswith(f"${DATA_VARIABLE}/"):
        root = Path(os.environ.get(DATA_VARIABLE) or _CHECKOUT.parent / "shared" / "data")
        return root / path.split("/", 1)[1]
    return scenario_path.parent / path


def _read_file(path: Path) -> Document:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(str(path), f"larger than {_MAX_BYTES // 1000} kB", "A scenario is a small YAML file")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise InputError(str(path), "no such file", f"Scenarios there: {', '.join(near) or 'none'}") from None
    except IsADirectoryError:
        raise InputError(str(path), "is a folder", "Name a scenario YAML file in it") from None
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise InputError(str(path), "not a text file", "A scenario is YAML in UTF-8") from None
        reason = getattr(error, "strerror", None) or error
        raise InputError(str(path), f"cannot be read ({reason})", "Name a scenario YAML file") from None
    document = read_yaml(text, str(path))
    if not isinstance(document.value, dict):
        problem = "holds nothing" if document.value is None else "not a mapping of scenario fields"
        raise InputError(f"{path}:1", problem, "Start from scenarios/quickstart.yaml")
    return document


def _shown_option(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # bytes on the command line that are not UTF-8
    return text if len(text) <= 100 else text[:97] + "..."


def _parse_setting(setting: str, place: str) -> tuple[str, Any]:
    field, equals, text = setting.partition("=")
    if not equals:
        raise InputError(place, "holds no '='", "Write --set path=value, e.g. --set workload.requests=50")
    if len(text) > _MAX_BYTES:
        raise InputError(place, "the value is too long", "Write it into the scenario file")
    return field.strip(), read_yaml(text, place, numbered=False).value


class _Indexed(dict[str, Any]):
    """A list being edited by index."""


def _apply(document: dict[str, Any], path: str, value: Any, place: str) -> Location:
    """Set `value` at a dotted path and return where that is; a profile given by name becomes that profile with changes."""
    parts = _parts(document, path, place)
    node: dict[str, Any] = document
    location: Location = ()
    for part in parts[:-1]:
        location = (*location, _checked_key(node, part, location, place))
        node = _descend(node, part, location, place)
    location = (*location, _checked_key(node, parts[-1], location, place))
    node[parts[-1]] = value
    return location


def _parts(document: Any, path: str, place: str) -> list[str]:
    """A path's names. Names may hold dots themselves, so the longest name that exists is taken each time."""
    if path.startswith("sweep."):
        return ["sweep", path.removeprefix("sweep.")]
    words, parts, node = path.split("."), list[str](), document
    if not all(words):
        raise InputError(place, f"{path!r} is not a path", _PATHS)
    while words:
        known = [n for n in range(len(words), 0, -1) if isinstance(node, dict) and ".".join(words[:n]) in node]
        size = known[0] if known else 1
        parts.append(".".join(words[:size]))
        node = node.get(parts[-1]) if isinstance(node, dict) else None
        words = words[size:]
    return parts


def _checked_key(node: dict[str, Any], part: str, location: Location, place: str) -> str | int:
    """A name as it is, an index of a list as a number of that list."""
    if not isinstance(node, _Indexed):
        return part
    if part not in node:
        allowed = f"0 to {len(node) - 1}" if node else "none: the list is empty"
        raise InputError(place, f"{field_name(location)} has no entry {part!r}", f"Entries: {allowed}")
    return int(part)


def _descend(node: dict[str, Any], part: str, location: Location, place: str) -> dict[str, Any]:
    child = node.get(part)
    if child is None:
        if location[:-1] == ("tiers",):
            raise InputError(place, f"there is no tier {part!r}", suggest(part, node))
        child = node[part] = {}
    elif isinstance(child, str):
        kinds = models_at(location)
        if PolicySpec in kinds:
            child = node[part] = {"policy": child}
        elif any(kind in kinds for kind in KINDS.values()):
            child = node[part] = {"profile": child}
    elif isinstance(child, tuple):
        # Lists are addressed by index as if they were mappings; _restored makes them lists again.
        child = node[part] = _Indexed({str(i): item for i, item in enumerate(child)})
    if not isinstance(child, dict):
        raise InputError(place, f"{field_name(location)} is {child!r}, which has no fields", _PATHS)
    return child


def _restored(node: Any) -> Any:
    """A copy in which edited lists are lists again."""
    if isinstance(node, dict):
        items = {key: _restored(value) for key, value in node.items()}
        return tuple(items.values()) if isinstance(node, _Indexed) else items
    return tuple(_restored(value) for value in node) if isinstance(node, tuple) else node


def _validated(document: Any, source: Source) -> Scenario:
    plain = _restored(document)
    try:
        scenario = Scenario.model_validate(plain)
    except ValidationError as error:
        raise describe_errors(error, source, plain) from None
    check_memory(scenario, source)
    return scenario


def _variants(document: dict[str, Any], scenario: Scenario, source: Source) -> Iterator[Variant]:
    """Every point of the sweep grid; one point called `base` where nothing is swept."""
    labels = {path: _labels(path, values, source) for path, values in scenario.sweep.items()}
    points = math.prod(map(len, labels.values()))
    if points > MOST_VARIANTS:
        raise InputError(
            source.place(("sweep",)), f"a grid of {points:,} points", f"Sweep over {MOST_VARIANTS:,} at most"
        )
    names = _short_names(list(scenario.sweep))
    for numbers in itertools.product(*(range(len(values)) for values in scenario.sweep.values())):
        changed, changes, settings = _restored(document), list(source.changes), dict[str, Any]()
        changed.pop("sweep", None)
        for (path, values), number in zip(scenario.sweep.items(), numbers, strict=True):
            place = f"{source.place(('sweep', path, number))}, value {labels[path][number]}"
            settings[path] = _without_label(path, values[number])
            changes.append((_apply(changed, path, settings[path], place), place))
        chosen = [(path, values[n], n) for (path, values), n in zip(scenario.sweep.items(), numbers, strict=True)]
        label = ", ".join(_point_name(names[path], value, labels[path][n]) for path, value, n in chosen)
        here = source._replace(changes=tuple(changes))
        yield Variant(label or "base", settings, _validated(changed, here), here)


def _point_name(field: str, value: Any, text: str) -> str:
    """`field=value`, or the label alone of a value that has one."""
    return text if isinstance(value, Mapping) and value.get("label") else f"{field}={text}"


def _labels(path: str, values: Sequence[Any], source: Source) -> list[str]:
    """A short text for each value of one swept field, all different."""
    if not values:
        raise InputError(
            source.place(("sweep", path)), "found an empty list", "Give at least one value, or leave it out"
        )
    for texts in ([_short_text(value) for value in values], [_text(value) for value in values]):
        if len(set(texts)) == len(texts):
            return texts
    twice = next(number for number, text in enumerate(texts) if text in texts[:number])
    raise InputError(
        source.place(("sweep", path, twice)), f"the value {texts[twice]} is given twice", "Keep one of the two"
    )


def _without_label(path: str, value: Any) -> Any:
    """A swept mapping may name itself with a `label`, which is no field of what it describes (unless it is a policy)."""
    if not isinstance(value, Mapping) or "label" not in value or PolicySpec in models_at(tuple(path.split("."))):
        return value
    return {name: item for name, item in value.items() if name != "label"}


def _short_text(value: Any) -> str:
    if not isinstance(value, Mapping):
        return _text(value)
    named = next((value[key] for key in ("label", "profile", "policy", "kind") if value.get(key)), None)
    return _text(named or (Path(str(value["path"])).name if value.get("path") else value))


def _text(value: Any) -> str:
    """A value as the name of a sweep point shows it."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_text(item)}" for key, item in value.items())
    if isinstance(value, tuple):
        return f"({' '.join(map(_text, value))})"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """Swept paths by as many of their last names as tell them apart, and tell what an index belongs to."""
    names = {}
    for path in paths:
        parts = path.split(".")
        for size in range(1, len(parts) + 1):
            names[path] = ".".join(parts[-size:])
            clear = not any(p != path and f".{p}".endswith(f".{names[path]}") for p in paths)
            if clear and not parts[-size].isdigit():
                break
    return names
