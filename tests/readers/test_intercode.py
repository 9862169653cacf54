from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workloads.readers import intercode

Find = Callable[[str], Path]


def episode(task_id: int = 0, **changes: Any) -> dict[str, Any]:
    """A sound two-turn episode but for the changes."""
    history = {
        "actions": ["ls", "cat x"],
        "observations": ["x", "1"],
        "rewards": [0, 1.0],
        "valid_action": [True, True],
    }
    value = {
        "environment": "ic_bash",
        "dataset": "./data.json",
        "task_id": task_id,
        "query": "Show x",
        "turn_history": history,
        "summary": {"max_reward": 1.0, "max_reward_idx": 1, "turns_taken": 2, "turns_max": 10},
    }
    return value | changes


def write(folder: Path, document: Any) -> Path:
    """A file of this document."""
    path = folder / "episodes.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize(("model", "solved", "turns"), [("gpt-4", 0.737, 5.7), ("gpt-3.5", 0.473, 7.3)])
def test_reads_the_real_episodes(shared_data: Find, model: str, solved: float, turns: float) -> None:
    """1,034 SQL tasks per model, with the published share solved and mean number of turns."""
    episodes = list(intercode.read(shared_data(f"agents/intercode_sql_{model}.json")))
    assert len(episodes) == 1034
    assert sum(e.reward == 1 for e in episodes) / 1034 == pytest.approx(solved, abs=0.0005)
    assert sum(len(e.actions) for e in episodes) / 1034 == pytest.approx(turns, abs=0.05)
    assert {e.hardness for e in episodes} == {"easy", "medium", "hard", "extra"}
    assert {e.turns_max for e in episodes} == {10}


def test_both_real_models_worked_on_the_same_tasks(shared_data: Find) -> None:
    """Task ids, questions and hardness agree between the two files, so outcomes pair up by task id."""
    first, second = (
        {e.task_id: (e.query, e.hardness) for e in intercode.read(shared_data(f"agents/intercode_sql_{model}.json"))}
        for model in ("gpt-4", "gpt-3.5")
    )
    assert first == second


def test_reads_a_bash_episode_without_hardness(tmp_path: Path) -> None:
    """Fields that only SQL tasks have stay empty; fields with no name of their own are kept in `extra`."""
    (read,) = intercode.read(write(tmp_path, {"7": episode(7, info={"file_diff": 0.33})}))
    assert (read.task_id, read.hardness, read.actions, read.rewards) == (7, "", ("ls", "cat x"), (0.0, 1.0))
    assert read.extra == {"info": {"file_diff": 0.33}, "max_reward_idx": 1, "turns_taken": 2}


def test_observations_become_text(tmp_path: Path) -> None:
    """Some environments answer with a list or a number; a null is an answer nobody recorded."""
    history = episode()["turn_history"] | {"observations": [["a", 1], None]}
    (read,) = intercode.read(write(tmp_path, {"0": episode(turn_history=history)}))
    assert read.observations == ('["a", 1]', None)


def test_a_last_action_may_lack_its_observation(tmp_path: Path) -> None:
    """An action that broke the environment was graded, but neither observation nor validity was recorded."""
    history = episode()["turn_history"] | {"observations": ["x"], "valid_action": [True]}
    (read,) = intercode.read(write(tmp_path, {"0": episode(turn_history=history)}))
    assert (read.observations, read.valid_action) == (("x", None), (True, None))


def test_validity_and_the_turn_limit_are_optional(tmp_path: Path) -> None:
    """Capture-the-flag files have no valid_action, planning agents no turns_max."""
    history = {name: value for name, value in episode()["turn_history"].items() if name != "valid_action"}
    (read,) = intercode.read(write(tmp_path, {"0": episode(turn_history=history, summary={"max_reward": 1})}))
    assert (read.valid_action, read.turns_max) == ((None, None), None)


def test_reads_episodes_under_logs(tmp_path: Path) -> None:
    """Planning agents wrap the episodes together with their settings."""
    path = write(tmp_path, {"meta": {"env": "sql"}, "logs": {"852": episode(852), "3": episode(3)}})
    assert [read.task_id for read in intercode.read(path)] == [852, 3]
