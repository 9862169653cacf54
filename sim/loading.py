"""From a YAML file to validated scenarios: reading, `--set`, sweeps, and errors that name file, line and field."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sim.scenario import Scenario
from sim.validation import describe_errors
from workloads.errors import InputError

DATA_VARIABLE = "ISTHMUS_DATA"
"""Environment variable that says where recorded data of others lies; scenarios write $ISTHMUS_DATA/<file>."""
_CHECKOUT = Path(__file__).resolve().parents[1]
_MAX_BYTES = 5_000_000


class Variant(NamedTuple):
    """One point of the sweep grid."""

    label: str
    settings: dict[str, Any]
    scenario: Scenario


class LoadedScenario(NamedTuple):
    """A scenario as read: where it came from and every point of its sweep, all validated."""

    path: Path
    scenario: Scenario
    variants: tuple[Variant, ...]


def load_scenario(path: Path, settings: Sequence[str] = ()) -> LoadedScenario:
    """Read and validate a scenario file; `settings` are `path=value` overrides. Raises InputError."""
    tree = _read_yaml(path)
    document = _plain(tree)
    for setting in settings:
        _apply(document, *_parse_setting(setting), place=f"--set {setting}")
    scenario = _validated(document, path, tree)
    return LoadedScenario(path, scenario, tuple(_variants(document, scenario, path, tree)))


def data_path(path: str, scenario_path: Path) -> Path:
    """A file named in a scenario: absolute, relative to the scenario's folder, or under $ISTHMUS_DATA."""
    if path.startswith(f"${DATA_VARIABLE}/"):
        root = Path(os.environ.get(DATA_VARIABLE, _CHECKOUT.parent / "shared" / "data"))
        return root / path.split("/", 1)[1]
    return scenario_path.parent / path


def _read_yaml(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(str(path), "larger than 5 MB", "A scenario is a small YAML file; is this the right one?")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise InputError(str(path), "no such file", f"Scenarios here: {', '.join(near) or 'none'}") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "Give the path of a scenario YAML file") from None
    except UnicodeDecodeError:
        raise InputError(str(path), "not a text file", "A scenario is YAML in UTF-8") from None
    try:
        tree = YAML(typ="rt").load(text)
    except YAMLError as error:
        raise _yaml_error(path, error) from None
    except (ValueError, RecursionError) as error:  # e.g. a date such as 2024-99-99, endless nesting
        raise InputError(str(path), f"not valid YAML ({error})", "Correct the value") from None
    if not isinstance(tree, Mapping):
        raise InputError(f"{path}:1", "not a mapping of scenario fields", "Start from scenarios/quickstart.yaml")
    return tree


def _yaml_error(path: Path, error: YAMLError) -> InputError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = f":{mark.line + 1}" if mark is not None else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return InputError(f"{path}{line}", f"not valid YAML ({problem})", "Correct the syntax on or just above this line")


def _plain(node: Any) -> Any:
    """YAML nodes as plain values: mappings with string keys, tuples, scalars without their YAML style."""
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return tuple(_plain(value) for value in node)
    for kind in (bool, int, float, str):  # ruamel's ScalarFloat and friends become plain numbers
        if isinstance(node, kind):
            return kind(node)
    return node


def parse_value(text: str) -> Any:
    """A value as YAML reads it: 3, 0.5, true, name, [1, 2]."""
    try:
        return _plain(YAML(typ="safe", pure=True).load(text))
    except (YAMLError, ValueError) as error:
        raise InputError(f"value {text!r}", f"not valid YAML ({str(error).splitlines()[0]})", "Quote it if it is text") from None


def _parse_setting(setting: str) -> tuple[str, Any]:
    path, equals, text = setting.partition("=")
    if not equals or not path.strip():
        raise InputError(f"--set {setting}", "no value", "Write --set path=value, e.g. --set workload.requests=50")
    return path.strip(), parse_value(text)


def _apply(document: dict[str, Any], path: str, value: Any, place: str) -> None:
    """Set `value` at a dotted path; a profile given by name becomes that profile with changes."""
    *parents, last = path.split(".")
    node: Any = document
    for depth, part in enumerate(parents):
        node = _descend(node, part, ".".join(parents[: depth + 1]), place)
    if isinstance(node, dict):
        node[last] = value
        return
    raise InputError(place, f"{'.'.join(parents)} has no fields to set", "Paths name fields, e.g. tiers.edge.replicas")


def _descend(node: dict[str, Any], part: str, path: str, place: str) -> dict[str, Any]:
    child = node.get(part)
    if child is None:
        child = node[part] = {}
    elif isinstance(child, str):
        child = node[part] = {"profile": child}
    elif isinstance(child, tuple):
        # Lists are addressed by index as if they were mappings, then put back as tuples by _restored.
        child = node[part] = _Indexed({str(i): item for i, item in enumerate(child)})
    if not isinstance(child, dict):
        raise InputError(place, f"{path} is {child!r}, which has no fields", "Paths name fields, e.g. tiers.edge.replicas")
    return child


class _Indexed(dict[str, Any]):
    """A list being edited by index."""


def _restored(node: Any) -> Any:
    if isinstance(node, dict):
        items = {key: _restored(value) for key, value in node.items()}
        return tuple(items.values()) if isinstance(node, _Indexed) else items
    if isinstance(node, tuple):
        return tuple(_restored(value) for value in node)
    return node


def _copy(node: Any) -> Any:
    if isinstance(node, dict):
        return type(node)((key, _copy(value)) for key, value in node.items())
    return tuple(_copy(value) for value in node) if isinstance(node, tuple) else node


def _validated(document: Any, path: Path, tree: Any) -> Scenario:
    try:
        return Scenario.model_validate(_restored(document))
    except ValidationError as error:
        raise describe_errors(error, path, tree) from None


def _variants(document: dict[str, Any], scenario: Scenario, path: Path, tree: Any) -> Iterator[Variant]:
    paths = list(scenario.sweep)
    for values in itertools.product(*scenario.sweep.values()):
        settings = dict(zip(paths, values, strict=True))
        changed = _copy(document)
        changed.pop("sweep", None)
        for field, value in settings.items():
            _apply(changed, field, value, place=f"{path}: sweep of {field}")
        label = ", ".join(f"{_short(field)}={_text(value)}" for field, value in settings.items())
        yield Variant(label or "base", settings, _validated(changed, path, tree))


def _short(path: str) -> str:
    """The part of a path that tells: `links.0.link` -> link, `workload.arrivals.rate_per_s` -> rate_per_s."""
    return path.rsplit(".", 1)[-1]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("label") or value.get("path") or value.get("profile") or value)
    return str(value)


def dump_yaml(value: Mapping[str, Any]) -> str:
    """A resolved scenario as YAML."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)
