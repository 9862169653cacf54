from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.policies.base import TierView
from sim.tmo.actions import action_set
from sim.tmo.logged import Layout, authors_split, fold, read_m4a1
from workloads.errors import InputError

Find = Callable[[str], Path]
M4A1 = "m4a1/M4A1.json"


def dialogue(number: int, *turns: tuple[int, list[int] | None, str], images: int = 3, **changed: Any) -> dict[str, Any]:
    """A dialogue of turns (action, image_index, answer)."""
    return {
        "id": number,
        "image_paths": [f"{i}.jpg" for i in range(images)],
        "interactions": [
            {
                "question": "q", "task_cat": ("Query", "Chat")[place % 2], "action": action, "image_index": index,
                "answer": answer, "score": 0.5 + place, "interaction_time": 1.0, "usage_cost": 0.001,
            }
            for place, (action, index, answer) in enumerate(turns)
        ],
        "association_score": [[0.1 * (i + 1) for i in range(images)] for _ in turns],
        **changed,
    }  # fmt: skip


def written(path: Path, *dialogues: dict[str, Any]) -> Path:
    """An M4A1 file."""
    path.write_text(json.dumps(dialogues), encoding="utf-8")
    return path


def test_the_state_is_the_papers_window(tmp_path: Path) -> None:
    """Each turn carries where the last ones ran, what they uploaded and every kind so far, oldest first, padded with -1."""
    path = written(tmp_path / "a.json", dialogue(7, (1, [2, 0], "fine"), (0, None, "I'm sorry"), (1, None, "yes")))
    turns = read_m4a1(path)
    pad, first, second, third = [-1] * 5, [-1, 0, 0, 0, 1], [1, 1, 0, 1, 0], [0, 0, 0, 0, 1]
    scores = pytest.approx([0.1, 0.2, 0.3])
    for row, window in enumerate((pad * 4 + first, pad * 3 + first + second, pad * 2 + first + second + third)):
        assert turns.features[row, :25].tolist() == window
        assert turns.features[row, 25:] == scores
    assert turns.action.tolist() == [6, 0, 1]
    assert turns.refused.tolist() == [False, True, False]
    assert turns.zeroed().response.tolist() == [0.5, 0.0, 2.5]
    assert turns.response.tolist() == [0.5, 1.5, 2.5]


def test_the_window_forgets_turns_beyond_five(tmp_path: Path) -> None:
    """The sixth turn still sees the second one's state, and no longer the first's."""
    turns = read_m4a1(written(tmp_path / "a.json", dialogue(0, *[(1, [i % 3], "") for i in range(6)])))
    assert turns.features[5, :5].tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("images", [0, 1, 2, 3, 4])
def test_actions_are_numbered_as_in_the_paper(images: int) -> None:
    """Local, then the cloud with no image, each one, each pair ...: the same order as the policies' action sets."""
    names = [str(i) for i in range(images)]
    tiers = (TierView("edge", "slm", "s"), TierView("cloud", "llm", "l"))
    layout = Layout(images, ("a",))
    assert layout.actions == 1 + 2**images
    found = [tuple(np.flatnonzero(row).astype(str)) for row in layout.uploads]
    assert found == [action.modalities for action in action_set(tiers, names)]
    for action, row in enumerate(layout.uploads):
        assert layout.action_of(action > 0, np.flatnonzero(row)[::-1]) == action


def test_the_real_file(shared_data: Find) -> None:
    """Nine actions, four kinds, 28 % of local answers with "sorry" words and 1 % of cloud ones; raw scores beyond 1."""
    turns = read_m4a1(shared_data(M4A1))
    assert (len(turns), turns.layout.actions, len(turns.layout.kinds)) == (352, 9, 4)
    local = turns.action == 0
    assert turns.refused[local].mean() == pytest.approx(0.28, abs=0.005)
    assert turns.refused[~local].mean() == pytest.approx(0.011, abs=0.001)
    assert turns.response.max() == 9.0
    assert (turns.features[:, 24] == turns.kind).all()
    again = (turns.position > 0).nonzero()[0]
    assert (turns.features[again, 20] == (turns.action[again - 1] > 0)).all()


def test_folds_hold_every_dialogue_out_once(shared_data: Find) -> None:
    """Five folds: disjoint test sets that cover all dialogues, none of them in its own training set."""
    turns = read_m4a1(shared_data(M4A1))
    seen: list[int] = []
    for number in range(5):
        train, test = fold(turns, number)
        assert not np.isin(test.dialogue, train.dialogue).any()
        assert len(train) + len(test) == len(turns)
        seen += test.dialogues.tolist()
    assert sorted(seen) == turns.dialogues.tolist()


def test_the_authors_split_is_pythons_shuffle(shared_data: Find) -> None:
    """A fifth of the dialogues in the order random.Random(seed).shuffle gives, as their code takes them."""
    train, test = authors_split(read_m4a1(shared_data(M4A1)), 1)
    assert (len(train.dialogues), len(test.dialogues)) == (80, 20)
    first = test.dialogue[np.r_[True, np.diff(test.dialogue) != 0]]
    assert first[:5].tolist() == [53, 37, 65, 51, 4]
    assert (test.position[np.r_[True, np.diff(test.dialogue) != 0]] == 0).all()


def test_files_that_cannot_be_one_log(tmp_path: Path) -> None:
    """Different numbers of images, too many of them, too few dialogues: one message each, with the place."""
    one, two = dialogue(0, (0, None, "")), dialogue(1, (0, None, ""), images=2)
    with pytest.raises(InputError, match="dialogue 1, field 'image_paths': has 2 images, dialogue 0 has 3"):
        read_m4a1(written(tmp_path / "a.json", one, two))
    with pytest.raises(InputError, match="9 images make 513 actions"):
        read_m4a1(written(tmp_path / "b.json", dialogue(0, (0, None, ""), images=9)))
    turns = read_m4a1(written(tmp_path / "c.json", one))
    with pytest.raises(InputError, match="1 cannot be split in 5 parts"):
        fold(turns, 0)
    with pytest.raises(InputError, match="a fifth of 1 is none"):
        authors_split(turns, 1)
