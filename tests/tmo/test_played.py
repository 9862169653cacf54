"""Logs of generated dialogues, whose truth is known: the off-policy estimators find what policies are worth there."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from sim.tmo.logged import FloatArray, IntArray, recorded_features
from sim.tmo.off_policy import Behaviour, Horizon, Part, judged
from sim.tmo.played import Played, layout_of, play
from sim.tmo.responses import TaskActionMeans
from sim.tmo.turn_policies import TurnPolicy, by_kind, fixed, mixed, walk
from workloads.dialogue_truth import DialogueBackend, Truth
from workloads.errors import InputError
from workloads.task import Task
from workloads.tasks.dialogues import DialogueSpec, dialogue_tasks

MODELS = ("small", "large")
SPEC = DialogueSpec(modalities=2, turns=(2, 3))


def tasks(count: int, seed: int) -> list[Task]:
    """Generated dialogues with two modalities."""
    return list(dialogue_tasks(count, np.random.default_rng(seed), SPEC))


def backend(noise: float = 0.6) -> DialogueBackend:
    """The truth; without noise every score is its mean."""
    return DialogueBackend({"small": 0.2, "large": 0.9}, frozenset({"large"}), Truth(noise=noise))


def log(count: int, seed: int, policy: TurnPolicy, noise: float = 0.6, *, every: bool = False) -> Played:
    """A log of a policy."""
    return play(tasks(count, seed), backend(noise), MODELS, policy, np.random.default_rng(seed), every=every)


LAYOUT = layout_of(tasks(30, 0))
LOGGING = mixed(LAYOUT, 0.4)


def dialogue_mean(dialogue: IntArray, values: FloatArray) -> float:
    """The mean over dialogues of the mean turn."""
    return float((np.bincount(dialogue, values) / np.bincount(dialogue)).mean())


def test_a_log_is_what_the_policy_did() -> None:
    """States hold the log's own earlier actions; scores are the truth's; a policy's walk through the log is its own log."""
    turns = log(20, 1, LOGGING, noise=0.0).turns
    again = recorded_features(LAYOUT, turns.dialogue, turns.kind, turns.action, turns.associations)
    assert (turns.features == again).all()
    assert np.bincount(turns.action, minlength=5).min() > 0
    assert set(np.bincount(turns.dialogue)) == {2, 3}
    always = fixed(LAYOUT, 3)
    own = log(20, 1, always).turns
    assert (walk(turns, always, np.random.default_rng(0)).features == own.features).all()
    assert (own.action == 3).all()
    assert np.isnan(own.latency_s).all()


def test_every_action_of_a_state_is_known_where_asked_for() -> None:
    """The action taken scores as in the log; more images that are needed never score less than the text alone, on average."""
    played = log(60, 2, LOGGING, noise=0.0, every=True)
    assert played.every is not None
    taken = played.every[np.arange(len(played.turns)), played.turns.action]
    assert (taken == played.turns.response).all()
    local, text, _, _, both = played.every.mean(axis=0)
    assert local < text < both


def coverage(policy: TurnPolicy, horizon: Horizon, dialogues: int, repeats: int) -> FloatArray:
    """Share of logs whose weighted and doubly robust intervals hold the truth."""
    population = log(3_000, 10_000, policy if horizon == "dialogue" else LOGGING, noise=0.0, every=True)
    assert population.every is not None
    worth = (policy(population.turns.features) * population.every).sum(axis=1)
    true = dialogue_mean(population.turns.dialogue, worth)
    hits = np.zeros(2)
    for seed in range(repeats):
        turns = log(dialogues, seed, LOGGING).turns
        part = Part(turns, policy, np.zeros((len(turns), LAYOUT.actions)))
        found = judged([part], partial(TaskActionMeans, 3.0), Behaviour(turns), horizon, seed=seed, resamples=200)
        hits += [interval.lo <= true <= interval.hi for interval in (found.weighted, found.doubly_robust)]
    return hits / repeats


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "horizon"),
    [
        (mixed(LAYOUT, 0.7), "dialogue"),
        (mixed(LAYOUT, 0.7), "turn"),
        (fixed(LAYOUT, 0), "turn"),
        (by_kind(LAYOUT, np.array([4, 1, 0, 4])), "turn"),
    ],
)
def test_intervals_hold_the_truth_of_generated_dialogues(policy: TurnPolicy, horizon: Horizon) -> None:
    """In at least 90 % of 100 logs, up to what 100 coin tosses of 90 % allow (one-sided 99 %: 83)."""
    weighted, robust = coverage(policy, horizon, 150, 100)
    assert weighted >= 0.83
    assert robust >= 0.83


def test_dialogues_of_one_log_have_one_set_of_actions() -> None:
    """Different numbers of attachments: one message that names the dialogue."""
    other = list(dialogue_tasks(1, np.random.default_rng(0), DialogueSpec(modalities=3), name="other"))
    with pytest.raises(InputError, match="task 'other-0': has 3 attachments, 'dialogue-0' has 2"):
        layout_of([*tasks(2, 0), *other])
