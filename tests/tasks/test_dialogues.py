"""Generated dialogues have the statistics that their docstring states, and the same seed draws the same ones."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from workloads.dialogue import turns_of
from workloads.dialogue_truth import latent_of
from workloads.errors import InputError
from workloads.task import Task
from workloads.tasks.dialogue_texts import DOMAINS, QUESTIONS
from workloads.tasks.dialogues import KINDS, DialogueSpec, dialogue_tasks, kinds_of, modalities_of

COUNT = 4000


@pytest.fixture(scope="module")
def drawn() -> list[Task]:
    """Many dialogues of the default kind."""
    return list(dialogue_tasks(COUNT, np.random.default_rng(7)))


def share_error(share: float, count: int) -> float:
    """Four standard errors of a share."""
    return 4 * (share * (1 - share) / count) ** 0.5


def test_turns_kinds_and_domains_are_even(drawn: list[Task]) -> None:
    """2 to 5 turns, 3.5 in the mean; four categories and six domains, each as often."""
    turns = np.array([len(turns_of(task)) for task in drawn])
    kinds = [turn.kind for task in drawn for turn in turns_of(task)]
    domains = [task.family for task in drawn]
    assert turns.mean() == pytest.approx(3.5, abs=0.07)
    assert np.unique(turns).tolist() == [2, 3, 4, 5]
    lengths = [str(count) for count in turns]
    for values, expected in ((lengths, set("2345")), (kinds, {k.name for k in KINDS[:4]}), (domains, set(DOMAINS))):
        assert set(values) == expected
        even = 1 / len(expected)
        for value in expected:
            assert values.count(value) / len(values) == pytest.approx(even, abs=share_error(even, len(values)))


def test_images_have_the_stated_sizes_and_tokens(drawn: list[Task]) -> None:
    """Bytes per tile are log-normal around 92 kB with sigma 0.4; 1, 2, 4, 6 tiles with the stated chances, 170 tokens each and 85."""
    tokens = np.array([[a.tokens for a in task.attachments] for task in drawn])
    sizes = np.array([[a.size_bytes for a in task.attachments] for task in drawn])
    tiles = (tokens - 85) / 170
    for count, chance in ((1, 0.2), (2, 0.3), (4, 0.35), (6, 0.15)):
        assert (tiles == count).mean() == pytest.approx(chance, abs=share_error(chance, tiles.size))
    assert tiles.mean() == pytest.approx(3.1, abs=0.07)
    logs = np.log(sizes / tiles / 92_000)
    assert logs.mean() == pytest.approx(0.0, abs=0.015)
    assert logs.std() == pytest.approx(0.4, abs=0.012)


def test_questions_refer_to_as_many_modalities_as_their_kind_says(drawn: list[Task]) -> None:
    """The counts have the kind's probabilities, and a question names exactly what it needs."""
    for kind in KINDS[:4]:
        counts = []
        for task in drawn:
            for turn, needs in zip(turns_of(task), latent_of(task).needs, strict=True):
                if turn.kind == kind.name:
                    needed = [a.name for a, need in zip(task.attachments, needs, strict=True) if need > 0.5]
                    assert [a.name for a in task.attachments if a.name in turn.question] == needed
                    counts.append(len(needed))
        for number, chance in enumerate(kind.needs):
            assert counts.count(number) / len(counts) == pytest.approx(chance, abs=share_error(chance, len(counts)))


def test_needs_and_scores_have_the_stated_ranges(drawn: list[Task]) -> None:
    """0.6 to 0.95 of what is referred to, up to 0.1 of the rest; association scores miss them by 0.05 in the root mean square."""
    needs = np.array([need for task in drawn for turn in latent_of(task).needs for need in turn])
    scores = np.array([score for task in drawn for turn in turns_of(task) for score in turn.associations])
    high = needs > 0.5
    assert 0.6 <= needs[high].min() <= needs[high].max() <= 0.95
    assert needs[high].mean() == pytest.approx(0.775, abs=0.003)
    assert 0.0 <= needs[~high].min() <= needs[~high].max() <= 0.1
    assert (scores - needs)[high].std() == pytest.approx(0.05, rel=0.05)
    assert scores.min() >= 0.0
    assert scores.max() <= 1.0
    exact = dialogue_tasks(50, np.random.default_rng(1), DialogueSpec(association_error=0.0))
    assert all(
        turn.associations == need for t in exact for turn, need in zip(turns_of(t), latent_of(t).needs, strict=True)
    )


def test_answers_have_the_stated_lengths(drawn: list[Task]) -> None:
    """The kind's mean, and half of it as standard deviation, within 4 %."""
    for kind in KINDS[:4]:
        tokens = np.array([
            count for task in drawn for of, count in zip(latent_of(task).kinds, latent_of(task).answer_tokens, strict=True) if of is kind
        ])  # fmt: skip
        assert tokens.mean() == pytest.approx(kind.answer_tokens, rel=0.04)
        assert tokens.std() == pytest.approx(kind.answer_tokens / 2, rel=0.08)


def test_the_same_seed_draws_the_same_dialogues_whatever_the_number() -> None:
    """A longer draw begins with the shorter one; another seed draws others; ids are unique."""
    few, many = (list(dialogue_tasks(n, np.random.default_rng(5))) for n in (20, 60))
    assert many[:20] == few
    assert len({task.id for task in many}) == 60
    other = next(dialogue_tasks(1, np.random.default_rng(6)))
    assert turns_of(other) != turns_of(few[0])


@pytest.mark.parametrize(("modalities", "kinds"), [(0, 1), (1, 8), (9, 12), (14, 30)])
def test_any_number_of_modalities_and_kinds(modalities: int, kinds: int) -> None:
    """Names are unique, every kind occurs, and questions refer to no more modalities than there are."""
    spec = DialogueSpec(modalities=modalities, kinds=kinds, turns=(1, 6))
    tasks = list(dialogue_tasks(300, np.random.default_rng(3), spec))
    for task in tasks:
        assert len({a.name for a in task.attachments}) == modalities
        assert all(a.size_bytes > 0 for a in task.attachments)
        assert len(turns_of(task)) in (1, 6)
        assert all(len(turn.associations) == modalities for turn in turns_of(task))
    assert {turn.kind for task in tasks for turn in turns_of(task)} == {kind.name for kind in kinds_of(kinds)}


def test_tables_are_consistent() -> None:
    """Chances add up to 1, the large model is better at everything, every kind and domain has its words."""
    for kind in kinds_of(40):
        assert sum(kind.needs) == pytest.approx(1.0)
        assert 0.0 < kind.weak < kind.strong <= 1.0
        assert 0.0 < kind.visual <= 1.0
    for modality in modalities_of(12):
        assert sum(modality.chances) == pytest.approx(1.0)
    assert {kind.name for kind in KINDS} < set(QUESTIONS)
    names = [modality.name for modality in modalities_of(12)]
    for domain in DOMAINS.values():
        said = " ".join(word for words in domain for word in words)
        assert not any(name in said for name in names), "a question that needs nothing must not name a modality"


def test_needs_persist_where_asked() -> None:
    """Turns refer to what the turn before did with the stated chance, or by chance; questions go on naming what they need."""

    def repeats(tasks: list[Task]) -> list[bool]:
        needed = [[tuple(np.array(turn) > 0.5) for turn in latent_of(task).needs] for task in tasks]
        return [before == after for turns in needed for before, after in pairwise(turns)]

    plain, lasting = (
        list(dialogue_tasks(1500, np.random.default_rng(4), DialogueSpec(persistence=share))) for share in (0.0, 0.7)
    )
    by_chance = float(np.mean(repeats(plain)))
    assert 0.1 < by_chance < 0.4
    assert np.mean(repeats(lasting)) == pytest.approx(0.7 + 0.3 * by_chance, abs=0.05)
    for task in lasting:
        for turn, need in zip(turns_of(task), latent_of(task).needs, strict=True):
            assert any(a.name in turn.question for a in task.attachments) == (max(need) > 0.5)


def test_sizes_scale() -> None:
    """`size_scale` multiplies bytes and leaves tokens alone."""
    one, ten = (next(dialogue_tasks(1, np.random.default_rng(2), DialogueSpec(size_scale=s))) for s in (1.0, 10.0))
    for small, large in zip(one.attachments, ten.attachments, strict=True):
        assert large.size_bytes == pytest.approx(10 * small.size_bytes, abs=10)
        assert large.tokens == small.tokens


BAD: list[tuple[dict[str, Any], str]] = [
    ({"modalities": -1}, "modalities"), ({"kinds": 0}, "kinds"), ({"turns": ()}, "turns"), ({"turns": (2, 0)}, "turns"),
    ({"domains": ()}, "domains"), ({"domains": ("kitchn",)}, "Did you mean 'kitchen'"), ({"size_scale": 0.0}, "size_scale"),
    ({"size_scale": float("inf")}, "size_scale"), ({"association_error": -0.1}, "association_error"),
    ({"persistence": 1.5}, "persistence"),
    ({"association_error": float("nan")}, "association_error"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), BAD)
def test_dialogues_that_cannot_be_are_one_message(fields: dict[str, Any], words: str) -> None:
    """Numbers of things below the least, unknown domains, impossible sizes and errors."""
    with pytest.raises(InputError, match=words):
        DialogueSpec(**fields)
