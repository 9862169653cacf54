"""InterCode: recorded episodes of language agents working in SQL, Bash, Python and capture-the-flag environments.

Source: github.com/princeton-nlp/intercode (MIT), data/results; Yang et al., "InterCode: Standardizing and Benchmarking
Interactive Coding with Execution Feedback", NeurIPS 2023.

One JSON object {task id: episode}, or {"meta": ..., "logs": {task id: episode}}. Traps:
- The file is a single object, so it is loaded whole (a few MB), and every episode is checked as it is yielded.
- Only SQL tasks carry a hardness. Some agents leave out valid_action, turns_max or the observation and validity of a
  last action that broke the environment; what was not recorded is None.
- summary.max_reward grades the episode: the best reward of any turn, not that of the last. Rewards can be negative.
- There are no token counts and no times; derive tokens from the text.
- Two models' files hold the same tasks but different actions: mixing models within an episode is no exact replay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from workloads.errors import InputError
from workloads.readers._fields import list_field, number_field, other_fields, require_fields, text_field
from workloads.readers._rows import StrPath, json_document, json_kind, place

FORMAT = "InterCode episodes: JSON object of task ids, each with query, turn_history and summary"

HISTORY = ("actions", "observations", "rewards", "valid_action")
EPISODE = ("environment", "dataset", "task_id", "query", "turn_history", "summary", "hardness")
SUMMARY = ("max_reward", "turns_max")


@dataclass(frozen=True, slots=True)
class Episode:
    """One task as one model worked on it; the four turn tuples have one entry per action.

    `observations` is the environment's answer to each action as text and `valid_action` whether it ran; None where it
    was not recorded. `reward` is the best of `rewards`. `extra` holds the fields only some agents write, such as thoughts.
    """

    task_id: int
    query: str
    actions: tuple[str, ...]
    observations: tuple[str | None, ...]
    rewards: tuple[float, ...]
    valid_action: tuple[bool | None, ...]
    reward: float
    turns_max: int | None = None
    hardness: str = ""
    environment: str = ""
    dataset: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


def read(path: StrPath) -> Iterator[Episode]:
    """Yield the episodes in file order; raises InputError at a malformed one or at a task that occurs twice."""
    document = json_document(path)
    if isinstance(document, dict) and isinstance(document.get("logs"), dict):
        document = document["logs"]
    if not isinstance(document, dict) or not document:
        remedy = 'Give one JSON object of episodes, such as {"0": {...}}'
        raise InputError(place(path), f"holds {json_kind(document)} instead of episodes", remedy)
    seen: set[int] = set()
    for key, value in document.items():
        where = f"episode {key}"
        episode = _episode(value, path, where)
        if episode.task_id in seen:
            raise InputError(place(path, where, "task_id"), f"task {episode.task_id} occurs twice", "Keep one of them")
        seen.add(episode.task_id)
        yield episode


def _episode(value: Any, path: StrPath, where: str) -> Episode:
    require_fields(value, ("task_id", "query", "turn_history", "summary"), path, where)
    history, summary = value["turn_history"], value["summary"]
    require_fields(history, HISTORY[:3], path, f"{where}, turn_history")
    require_fields(summary, SUMMARY[:1], path, f"{where}, summary")
    actions = _actions(history["actions"], path, where)
    turns = len(actions)
    rewards = _rewards(history["rewards"], turns, path, where)
    best = number_field(summary["max_reward"], "max_reward", path, where)
    if abs(best - max(rewards)) > 1e-9:
        problem = f"{best:g} is not the largest reward of its turns, {max(rewards):g}"
        raise InputError(place(path, where, "max_reward"), problem, "Correct the summary or the rewards")
    turns_max = summary.get("turns_max")
    return Episode(
        task_id=number_field(value["task_id"], "task_id", path, where, 0, integer=True),
        query=text_field(value, "query", path, where),
        actions=actions,
        observations=_observations(history["observations"], turns, path, where),
        rewards=rewards,
        valid_action=_valid_action(history.get("valid_action"), turns, path, where),
        reward=best,
        turns_max=None if turns_max is None else number_field(turns_max, "turns_max", path, where, 1, integer=True),
        hardness=text_field(value, "hardness", path, where, default=""),
        environment=text_field(value, "environment", path, where, default=""),
        dataset=text_field(value, "dataset", path, where, default=""),
        extra=other_fields(value, EPISODE) | other_fields(history, HISTORY) | other_fields(summary, SUMMARY),
    )


def _actions(value: Any, path: StrPath, where: str) -> tuple[str, ...]:
    actions = list_field(value, "actions", path, where)
    if not actions:
        raise InputError(place(path, where, "actions"), "the episode has no action", "Leave the episode out")
    if not all(isinstance(action, str) for action in actions):
        problem = f"{json_kind(value)} is not a list of texts"
        raise InputError(place(path, where, "actions"), problem, "Give every action as text")
    return tuple(actions)


def _rewards(value: Any, turns: int, path: StrPath, where: str) -> tuple[float, ...]:
    rewards = list_field(value, "rewards", path, where, turns)
    return tuple(number_field(reward, "rewards", path, where) for reward in rewards)


def _observations(value: Any, turns: int, path: StrPath, where: str) -> tuple[str | None, ...]:
    observations = _all_but_the_last(value, "observations", turns, path, where)
    return tuple(
        item if item is None or isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in observations
    )


def _valid_action(value: Any, turns: int, path: StrPath, where: str) -> tuple[bool | None, ...]:
    if value is None:
        return (None,) * turns
    valid = _all_but_the_last(value, "valid_action", turns, path, where)
    if not all(item is None or isinstance(item, bool) for item in valid):
        problem = f"{json_kind(value)} is not a list of true and false"
        raise InputError(place(path, where, "valid_action"), problem, "Give true or false for every action")
    return tuple(valid)


def _all_but_the_last(value: Any, name: str, turns: int, path: StrPath, where: str) -> list[Any]:
    """Accept a missing last entry: an action that broke the environment was graded but has nothing else recorded."""
    if isinstance(value, list) and len(value) == turns - 1:
        return [*value, None]
    return list_field(value, name, path, where, turns)
