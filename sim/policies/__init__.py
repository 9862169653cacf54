"""Routing policies by name, and how one that is not in the list is loaded from a file.

Heavy libraries (scikit-learn, torch) are imported by the methods that need them: reading this table costs nothing.
"""

from __future__ import annotations

import hashlib
import inspect
import linecache
import sys
import traceback
from collections.abc import Mapping
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from sim.policies.base import PolicyOptions, RoutingPolicy
from sim.policies.baselines import AllLlm, AllSlm, Fixed, PromptLength, Random
from sim.policies.learned import EmbeddingRouter, NearestNeighbours
from sim.policies.oracle import OracleCost, OracleSlmUsage
from workloads.errors import InputError, suggest

POLICIES: dict[str, type[RoutingPolicy]] = {
    "fixed": Fixed,
    "all-slm": AllSlm,
    "all-llm": AllLlm,
    "random": Random,
    "prompt-length": PromptLength,
    "embedding-router": EmbeddingRouter,
    "nearest-neighbours": NearestNeighbours,
    "oracle-slm-usage": OracleSlmUsage,
    "oracle-cost": OracleCost,
}


def policy_class(name: str, base_dir: Path) -> type[RoutingPolicy]:
    """The policy called `name`: one of POLICIES, or `file.py:ClassName` with the file relative to `base_dir`.

    Raises InputError for an unknown name, and for a file that is missing, fails to run or holds no such policy.
    """
    if name in POLICIES:
        return POLICIES[name]
    file_name, colon, attribute = name.rpartition(":")
    if not colon or not file_name.endswith(".py"):
        remedy = f"{suggest(name, POLICIES)}, or your own as `file.py:ClassName`"
        raise InputError("policies", f"there is no policy {name!r}", remedy)
    path = (base_dir / file_name).resolve()
    if not _is_file(path):
        raise InputError(
            f"policy {name!r}", f"there is no file {path}", "The path is relative to the scenario's folder."
        )
    return _checked(_run_file(path, path.stat().st_mtime_ns), attribute, path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than any file's
        return False


def build_policy(name: str, options: Mapping[str, Any], base_dir: Path) -> RoutingPolicy:
    """A policy with its options set; raises InputError for an unknown policy, or an option that is unknown or out of range."""
    policy = policy_class(name, base_dir)
    try:
        return policy(policy.Options.model_validate(dict(options)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        option = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            remedy = suggest(option, policy.Options.model_fields)
            raise InputError(f"policy {name!r}", f"there is no option {option!r}", remedy) from None
        problem = f"{first['input']!r} is not allowed"
        raise InputError(f"policy {name!r}, option {option!r}", problem, f"{first['msg']}.") from None


class _SourceOnly(SourceFileLoader):
    """Compiles the file each time: no byte code is left beside it, and none that is stale is used."""

    def path_stats(self, path: str | bytes) -> Mapping[str, Any]:
        """Answer that byte code cannot be kept."""
        raise OSError


@cache
def _run_file(path: Path, modified_ns: int) -> ModuleType:
    """The file as a module; run once per process, and again when it was modified."""
    name = f"policy_file_{path.stem}_{hashlib.sha256(f'{path} {modified_ns}'.encode()).hexdigest()[:12]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # annotations and docstrings of its classes are looked up there
    linecache.checkcache(str(path))
    try:
        _SourceOnly(name, str(path)).exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        problem = f"{type(error).__name__}: {message or 'no message'}"
        raise InputError(f"{path}:{_line(error, path)}", problem, "The file must run without errors.") from None
    return module


def _line(error: BaseException, path: Path) -> int:
    """The line of the file where an error came up."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return (lines[-1] if lines else None) or 1


def _checked(module: ModuleType, name: str, path: Path) -> type[RoutingPolicy]:
    """The class called `name`, if it is a policy that can be used."""
    found: Any = vars(module).get(name)
    if not _is_policy(found):
        own = [key for key, value in vars(module).items() if _is_policy(value) and value.__module__ == module.__name__]
        problem = f"there is no class {name!r}" if found is None else f"{name!r} is not a RoutingPolicy"
        remedy = suggest(name, own) if own else "Define a class that extends sim.policies.base.RoutingPolicy."
        raise InputError(str(path), problem, remedy)
    place, options = f"{path}: class {name}", found.Options
    if found.place is RoutingPolicy.place:
        raise InputError(place, "it decides nothing", "Override `place(self, seen)`.")
    if not (inspect.isclass(options) and issubclass(options, PolicyOptions)):
        raise InputError(place, "its Options are not PolicyOptions", "Extend sim.policies.base.PolicyOptions.")
    if found.knob is not None and found.knob not in options.model_fields:
        raise InputError(
            place, f"its knob {found.knob!r} is not among its options", suggest(found.knob, options.model_fields)
        )
    policy: type[RoutingPolicy] = found
    return policy


def _is_policy(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, RoutingPolicy)
