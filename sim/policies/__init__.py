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
from importlib.abc import SourceLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from sim.policies.base import PolicyOptions, RoutingPolicy
from sim.policies.baselines import AllLlm, AllSlm, Fixed, PromptLength, Random
from sim.policies.cascade import FrugalCascade, Minions
from sim.policies.hera.policy import Hera
from sim.policies.learned import EmbeddingRouter, NearestNeighbours
from sim.policies.oracle import OracleCost, OracleSlmUsage
from sim.policies.tmo.baselines import CloudAction, FixedAction, LocalAction, RandomAction
from sim.policies.tmo.learned import Tmo
from sim.policies.tmo.learners import ActionTable, Greedy, LinUcb, Thompson
from sim.policies.tmo.oracle import OracleDialogues
from sim.policies.trained import HybridLlm, MatrixFactorisation, SimilarityWeighted
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
    "hybrid-llm": HybridLlm,
    "similarity-weighted": SimilarityWeighted,
    "matrix-factorisation": MatrixFactorisation,
    "minions": Minions,
    "frugal-cascade": FrugalCascade,
    "hera": Hera,
    "tmo": Tmo,
    "tmo-random": RandomAction,
    "tmo-local": LocalAction,
    "tmo-cloud": CloudAction,
    "tmo-fixed": FixedAction,
    "tmo-table": ActionTable,
    "tmo-greedy": Greedy,
    "tmo-linucb": LinUcb,
    "tmo-thompson": Thompson,
    "oracle-dialogues": OracleDialogues,
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
    return with_options(policy_class(name, base_dir), name, options)


def with_options(policy: type[RoutingPolicy], name: str, options: Mapping[str, Any]) -> RoutingPolicy:
    """As `build_policy`, for a class in hand; messages call it `name`."""
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


class _FromText(SourceLoader):
    """Runs a file's text as a module. No byte code is left beside the file, and none that is stale is used."""

    def __init__(self, path: str, text: bytes) -> None:
        self.path, self.text = path, text

    def get_filename(self, fullname: str) -> str:
        """The file, which need not be on this machine."""
        del fullname
        return self.path

    def get_data(self, path: str) -> bytes:
        """The text."""
        del path
        return self.text


@cache
def _run_file(path: Path, modified_ns: int) -> ModuleType:
    """The file as a module; run once per process, and again when it was modified."""
    del modified_ns
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "Name a Python file") from None
    linecache.checkcache(str(path))
    return _run_text(str(path), text)


def _run_text(path: str, text: bytes) -> ModuleType:
    """A policy file's text as a module, under a name that belongs to this file with this text in every process."""
    digest = hashlib.sha256(b"\0".join((path.encode(), text))).hexdigest()
    name = f"policy_file_{Path(path).stem}_{digest[:12]}"
    module = sys.modules.get(name)
    if module is not None:
        return module
    module = ModuleType(name)
    module.__file__, module.__loader__ = path, _FromText(path, text)
    sys.modules[name] = module  # annotations and docstrings of its classes are looked up there
    try:
        module.__loader__.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        problem = f"{type(error).__name__}: {message or 'no message'}"
        raise InputError(f"{path}:{_line(error, path)}", problem, "The file must run without errors.") from None
    return module


def file_of(policy: RoutingPolicy) -> tuple[str, bytes] | None:
    """(path, text) of the file that a policy's class was loaded from; None for one of this package."""
    loader = getattr(sys.modules[type(policy).__module__], "__loader__", None)
    return (loader.path, loader.text) if isinstance(loader, _FromText) else None


def bring(path: str, text: bytes) -> None:
    """Have the classes of a policy file in this process, so that policies made elsewhere can be unpickled. The file may be absent."""
    _run_text(path, text)


def _line(error: BaseException, path: str) -> int:
    """The line of the file where an error came up."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
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
