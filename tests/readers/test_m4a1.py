from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from workloads.readers import m4a1

Find = Callable[[str], Path]
M4A1 = "m4a1/M4A1.json"


def as_published(dialogue: m4a1.Dialogue) -> dict[str, Any]:
    """The JSON object a dialogue came from."""
    turns = [
        {
            "question": turn.question,
            "task_cat": turn.task_cat,
            "action": turn.action,
            "image_index": None if turn.image_index is None else list(turn.image_index),
            "answer": turn.answer,
            "score": turn.score,
            "interaction_time": turn.interaction_time_s,
            "usage_cost": turn.usage_cost_usd,
            **turn.extra,
        }
        for turn in dialogue.turns
    ]
    return {
        "id": dialogue.id,
        "image_paths": list(dialogue.image_paths),
        "interactions": turns,
        "association_score": [list(turn.association_scores) for turn in dialogue.turns],
        **dialogue.extra,
    }


def test_nothing_of_the_real_file_is_lost(shared_data: Find) -> None:
    """Writing the dialogues back gives the published JSON, value for value."""
    path = shared_data(M4A1)
    assert [as_published(dialogue) for dialogue in m4a1.read(path)] == json.loads(path.read_text(encoding="utf-8"))


def test_the_real_file_has_its_published_size(shared_data: Find) -> None:
    """100 dialogues of 2 to 5 turns, 352 turns in four kinds of task, three images each."""
    dialogues = list(m4a1.read(shared_data(M4A1)))
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    assert (len(dialogues), len(turns)) == (100, 352)
    assert Counter(turn.task_cat for turn in turns) == {
        "Assistive System": 99,
        "Recommendation": 91,
        "Message Editing": 82,
        "Query": 80,
    }
    assert {len(dialogue.image_paths) for dialogue in dialogues} == {3}


def test_the_real_cloud_costs_more_and_scores_higher(shared_data: Find) -> None:
    """Action 0 is the local model and 1 the cloud: only the cloud sees images, and it is dearer and better."""
    turns = [turn for dialogue in m4a1.read(shared_data(M4A1)) for turn in dialogue.turns]
    local = [turn for turn in turns if turn.action == m4a1.LOCAL]
    cloud = [turn for turn in turns if turn.action == m4a1.CLOUD]
    assert not any(turn.image_index for turn in local)
    assert sum(turn.image_index is not None for turn in cloud) == 97
    assert sum(t.usage_cost_usd for t in cloud) / len(cloud) > 10 * sum(t.usage_cost_usd for t in local) / len(local)
    assert sum(turn.score for turn in cloud) / len(cloud) > sum(turn.score for turn in local) / len(local)


def test_values_are_frozen_and_unknown_fields_kept(tmp_path: Path) -> None:
    """A dialogue cannot be changed by accident, and a field added later is not dropped."""
    turn = {
        "question": "q",
        "task_cat": "Query",
        "action": 1,
        "image_index": [1, 0],
        "answer": "",
        "score": 1,
        "interaction_time": 0.5,
        "usage_cost": 0.001,
        "tokens": 12,
    }
    path = tmp_path / "m4a1.json"
    document = [{"id": 4, "image_paths": ["a", "b"], "interactions": [turn], "association_score": [[0.1, 0.2]]}]
    path.write_text(json.dumps(document), encoding="utf-8")
    (dialogue,) = m4a1.read(path)
    assert as_published(dialogue) == document[0]
    assert dialogue.turns[0].extra == {"tokens": 12}
    with pytest.raises(FrozenInstanceError):
        dialogue.turns[0].score = 9.0  # type: ignore[misc]
