"""What `record SCENARIO` is to record: tasks, models, and what the answers depend on."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sim.loading import LoadedScenario
from sim.scenario import TEXT_TASKS, Tier
from sim.text_tasks import text_tasks
from workloads.agent import Agent
from workloads.errors import InputError
from workloads.expansion import MAX_DEPTH
from workloads.recording_file import Header
from workloads.task import Task


class RecordingPlan(NamedTuple):
    """What is to be recorded. `of` is what the answers depend on, and so what a journal must be of to go on with."""

    loaded: LoadedScenario
    tasks: Sequence[Task]
    agent: Agent
    models: tuple[str, ...]
    header: Header
    of: Mapping[str, Any]
    timings: bool


def plan_recording(
    loaded: LoadedScenario, out: Path, depth: int | None, tasks_limit: int | None, timings: bool, sampling: str,
    fingerprints: Mapping[str, str],
) -> RecordingPlan:  # fmt: skip
    """Check what is asked for; raises InputError for what cannot be recorded."""
    _check(loaded, out, depth, tasks_limit, timings)
    models = _models(loaded)
    tasks, agent = _tasks(loaded, tasks_limit)
    of = {"sampling": sampling, **_description(loaded, models, timings, fingerprints)}
    made: dict[str, Any] = {"isthmus": _version()}
    made |= {"policies_of": loaded.scenario.name} if depth is None else {"depth": depth}
    if tasks_limit is not None:
        made["first_tasks"] = len(tasks)
    made |= {name: value for name, value in of.items() if name != "sampling"}
    return RecordingPlan(loaded, tasks, agent, tuple(models), Header(tuple(models), sampling, made), of, timings)


def _check(loaded: LoadedScenario, out: Path, depth: int | None, tasks_limit: int | None, timings: bool) -> None:
    if depth is not None and not 1 <= depth <= MAX_DEPTH:
        raise InputError("--counterfactual", f"found {depth}", f"Allowed: 1 to {MAX_DEPTH}")
    if out.is_dir():
        raise InputError(str(out), "is a folder", "Name the recording's file in it, e.g. answers.jsonl.gz")
    if out.exists():
        raise InputError(str(out), "is there already", "Name another file, or remove it to record again")
    if tasks_limit is not None and (tasks_limit < 1 or depth is None):
        raise InputError(
            "--tasks", f"found {tasks_limit}" if depth else "is for --counterfactual",
            "Give at least 1" if depth else "The policies ask what workload.requests says",
        )  # fmt: skip
    for variant in loaded.variants:
        kind = variant.scenario.workload.tasks.kind
        if kind not in TEXT_TASKS:
            raise InputError(
                f"{loaded.path}: field workload.tasks", f"tasks of kind {kind!r} bring their own answers",
                f"Only these are asked and can be recorded: {', '.join(TEXT_TASKS)}",
            )  # fmt: skip
        if variant.scenario.inference.service_time == "measured" and not timings:
            raise InputError(
                f"{loaded.path}: field inference.service_time", "is 'measured', but the recording will hold no seconds",
                "Record with --timings, or set service_time: profile",
            )  # fmt: skip


def _models(loaded: LoadedScenario) -> dict[str, dict[str, Any]]:
    """What stands behind each model name, in the order of tiers. No address and no key is named."""
    models: dict[str, dict[str, Any]] = {}
    for variant in loaded.variants:
        for name, tier in variant.scenario.tiers.items():
            models.setdefault(tier.model_name or name, _served(tier))
    return models


def _served(tier: Tier) -> dict[str, Any]:
    served = tier.serve
    if served is None:
        return {}
    if served.upstream is not None:
        return {"upstream": served.upstream.model, "max_tokens": served.max_tokens}
    fields = {
        "source": _last_name(served.source or ""), "dtype": served.dtype, "quantisation": served.quantisation,
        "chat_template": _last_name(served.chat_template or ""), "max_tokens": served.max_tokens,
    }  # fmt: skip
    return {name: value for name, value in fields.items() if value not in (None, "", "auto")}


def _tasks(loaded: LoadedScenario, limit: int | None) -> tuple[Sequence[Task], Agent]:
    """The tasks of all sweep variants, each once, and their agent."""
    found: dict[str, Task] = {}
    agents: list[Agent] = []
    for variant in loaded.variants:
        tasks, agent = text_tasks(variant.scenario, loaded.path)
        agents.append(agent)
        for task in tasks:
            if found.setdefault(task.id, task).prompt != task.prompt:
                raise InputError(
                    f"task {task.id!r}", "is two different questions", "Record one of the variants at a time"
                )
    if any(agent is not agents[0] for agent in agents):
        raise InputError(f"{loaded.path}: field sweep", "changes the kind of tasks", "Record one kind at a time")
    return list(found.values())[:limit], agents[0]


def _description(
    loaded: LoadedScenario, models: Mapping[str, Mapping[str, Any]], timings: bool, fingerprints: Mapping[str, str]
) -> dict[str, Any]:
    """What the answers depend on, for people and for telling journals apart; without places of this machine."""
    kinds: list[dict[str, Any]] = []
    for variant in loaded.variants:
        spec = variant.scenario.workload.tasks.model_dump(mode="json")
        spec = {name: _last_name(value) if name == "path" else value for name, value in spec.items()}
        if spec not in kinds:
            kinds.append(spec)
    behind = {
        name: {**facts, **({"fingerprint": fingerprints[name]} if name in fingerprints else {})}
        for name, facts in models.items()
    }
    return {"tasks": kinds[0] if len(kinds) == 1 else kinds, "behind": behind, "timings": timings}


def _last_name(path: str) -> str:
    """A path without the folders of this machine; names like pair/slm or owner/model stay."""
    return Path(path).name if path.startswith(("/", "~", ".", "$")) or path.count("/") > 1 else path


def _version() -> str:
    try:
        return importlib.metadata.version("isthmus")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout whose dependencies were installed by hand
        return "unknown"
