"""Learned routers: what they learn, and that they never learn from what they are judged on."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.frontier import apgr, router_curve
from sim.policies.base import RoutingPolicy, Study
from sim.policies.features import TaskFeatures, TextEncoder, text_encoder, whole_request_scores
from sim.policies.learned import (
    EmbeddingRouter,
    LearnedRouter,
    Learner,
    NearestNeighbours,
    calibrated_thresholds,
    fold_numbers,
    logistic_regression,
    nearest_neighbours,
    out_of_fold_scores,
)
from tests.conftest import ROOT
from tests.policies import decisions, modelled_study, observation, placed, prepared, text_study
from workloads.errors import InputError
from workloads.task import Attachment, ModelCall, Task

ROUTERS: list[type[RoutingPolicy]] = [EmbeddingRouter, NearestNeighbours]
LEARNERS: list[Learner] = [logistic_regression, nearest_neighbours(5)]


def separable(count: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of two columns and outcomes that follow the first one, with noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 2))
    return features, features[:, 0] + 0.3 * rng.normal(size=count) > 0


def large_share(policy: RoutingPolicy, study: Study) -> float:
    """Share of the study's requests that the policy sends to the large model."""
    made = decisions(policy, study)
    return sum(made[request, 0].tier == "cloud" for request in range(len(study.tasks))) / len(study.tasks)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), fold=st.integers(0, 2), share=st.floats(0.1, 0.9), learner=st.sampled_from(LEARNERS))
def test_a_fold_never_learns_from_itself(seed: int, fold: int, share: float, learner: Learner) -> None:
    """Turning all outcomes of a fold round changes neither its scores nor its threshold, but does change other folds'."""
    features, good = separable(60, seed)
    folds = np.arange(60) % 3
    turned = np.where(folds == fold, ~good, good)
    ties = np.zeros(60)
    scores = [out_of_fold_scores(features, outcome, folds, learner) for outcome in (good, turned)]
    thresholds = [calibrated_thresholds(features, outcome, folds, learner, share, ties) for outcome in (good, turned)]
    assert np.array_equal(scores[0][folds == fold], scores[1][folds == fold])
    assert thresholds[0][fold] == thresholds[1][fold]
    assert not np.array_equal(scores[0][folds != fold], scores[1][folds != fold])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), learner=st.sampled_from(LEARNERS))
def test_a_threshold_ignores_the_folds_own_scores(seed: int, learner: Learner) -> None:
    """Moving a fold's own features leaves its threshold where it was."""
    features, good = separable(60, seed)
    folds = np.arange(60) % 3
    moved = np.where((folds == 1)[:, np.newaxis], features * 3 - 1, features)
    ties = np.zeros(60)
    before, after = (calibrated_thresholds(f, good, folds, learner, 0.4, ties) for f in (features, moved))
    assert before[1] == after[1]


@pytest.mark.parametrize("learner", LEARNERS)
def test_what_can_be_learned_is_learned(learner: Learner) -> None:
    """Where the outcome follows from the features, most pairs are ranked right out of fold."""
    features, good = separable(120)
    scores = out_of_fold_scores(features, good, np.arange(120) % 5, learner)
    right_order = (scores[good][:, np.newaxis] > scores[~good][np.newaxis]).mean()
    assert right_order > 0.85


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("outcome", [True, False])
def test_one_outcome_only(learner: Learner, outcome: bool) -> None:
    """Training tasks that all ended alike give equal scores on the right side of a half, and no error."""
    features, _ = separable(20)
    scores = learner(features, np.full(20, outcome))(features)
    assert np.ptp(scores) < 1e-12
    assert (scores[0] > 0.5) == outcome


def test_neighbours_by_hand() -> None:
    """Two neighbours: one in the same direction (weight 1) that is good, one at a right angle (weight 1/2) that is not."""
    known = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    predict = nearest_neighbours(2)(known, np.array([True, False, False]))
    assert predict(np.array([[3.0, 0.0]])) == pytest.approx([1 / 1.5])


def test_logistic_regression_is_monotone_and_calibrated() -> None:
    """On one column the probability rises with it, and its mean over the training tasks is the share of good ones."""
    features = np.linspace(-2, 2, 50)[:, np.newaxis]
    good = np.arange(50) % 7 < np.arange(50) / 10
    scores = logistic_regression(features, good)(features)
    assert (np.diff(scores) > 0).all()
    assert scores.mean() == pytest.approx(good.mean(), abs=1e-3)  # what the maximum of the likelihood implies


@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.booleans()), min_size=2), st.integers(2, 5))
def test_equal_prompts_share_a_fold(drawn: list[tuple[str, bool]], folds: int) -> None:
    """Tasks with the same prompt are never on both sides, and no fold has two groups more than another."""
    groups, good = [group for group, _ in drawn], np.array([outcome for _, outcome in drawn])
    numbers = fold_numbers(groups, good, folds, np.random.default_rng(0))
    fold_of = {group: set(numbers[[g == group for g in groups]].tolist()) for group in groups}
    assert all(len(found) == 1 for found in fold_of.values())
    sizes = [sum(found == {fold} for found in fold_of.values()) for fold in range(folds)]
    assert max(sizes) - min(sizes) <= 1


def test_folds_hold_like_shares_of_outcomes() -> None:
    """Good and bad tasks are spread evenly, so that no fold is trained without one of them."""
    good = np.arange(100) < 20
    numbers = fold_numbers([str(i) for i in range(100)], good, 5, np.random.default_rng(1))
    assert [int(good[numbers == fold].sum()) for fold in range(5)] == [4] * 5


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_the_share_of_large_requests_is_met(router: type[RoutingPolicy], share: float) -> None:
    """The share on unseen folds is the one asked for, within five standard errors; 0 and 1 are exact."""
    study = modelled_study(300)
    found = large_share(prepared(router, study, large_share=share), study)
    # Both the calibrating tasks and the placed ones are a sample of 300.
    assert abs(found - share) <= 5 * np.sqrt(2 * share * (1 - share) / 300)


@pytest.mark.parametrize("router", ROUTERS)
def test_equal_scores_are_divided(router: type[RoutingPolicy]) -> None:
    """Where nothing can be learned (every outcome is alike) the share is still met, by a draw from each task's name."""
    study = modelled_study(300)
    alike = study._replace(tasks=[task for task in study.tasks if task.latent.tolerance == np.inf])
    found = large_share(prepared(router, alike, large_share=0.3), alike)
    assert abs(found - 0.3) <= 5 * np.sqrt(2 * 0.3 * 0.7 / len(alike.tasks))


def test_sizes_are_learned_from_where_there_is_no_text() -> None:
    """On statistical tasks, whose length hints at their difficulty, the router beats a coin out of fold."""
    study = modelled_study(600)
    router = prepared(EmbeddingRouter, study)
    assert isinstance(router, LearnedRouter)
    weak, strong = whole_request_scores(study, study.tasks)
    curve = router_curve([-router.scores[task.id] for task in study.tasks], weak, strong)
    assert apgr(curve.strong_share, curve.accuracy, weak.mean(), strong.mean()) > 0.52


@pytest.mark.parametrize("router", ROUTERS)
def test_an_unseen_task_is_judged_too(router: type[RoutingPolicy]) -> None:
    """A task that was not studied is decided by what all of the study taught: long prompts go large, short ones do not."""
    study = modelled_study(300)
    policy = prepared(router, study)
    calls = [ModelCall(Task(f"new-{n}", prompt_tokens=n), 0, (), n, 4 * n) for n in (20, 20_000)]
    if router is EmbeddingRouter:
        assert [placed(policy, observation(call)).tier for call in calls] == ["edge", "cloud"]
    assert [placed(policy, observation(call)).tier for call in calls] == [
        placed(policy, observation(c)).tier for c in calls
    ]


@pytest.mark.parametrize("router", ROUTERS)
def test_nothing_to_learn_from_is_an_error(router: type[RoutingPolicy]) -> None:
    """Tasks without text and of one size, or a single task, are refused with the reason."""
    study = modelled_study(5)
    alike = [Task(f"t{i}", prompt_tokens=9, latent=task.latent) for i, task in enumerate(study.tasks)]
    with pytest.raises(InputError, match="no text and are all of one size"):
        prepared(router, study._replace(tasks=alike))
    with pytest.raises(InputError, match=r"1 different task\(s\)"):
        prepared(router, study._replace(tasks=[study.tasks[0]] * 4))


@pytest.mark.parametrize("router", ROUTERS)
def test_an_unprepared_router_says_so(router: type[RoutingPolicy]) -> None:
    """Asked before it has learned, a router does not guess."""
    with pytest.raises(InputError, match="before it had learned"):
        router(router.Options()).place(observation(ModelCall(Task("t"), 0, (), 1, 1)))


def test_sizes_and_attachments_are_features() -> None:
    """Without text a row is 1, ln((1 + tokens) / 100), the number of attachments and ln(1 + MB)."""
    tasks = [Task("a", prompt_tokens=99), Task("b", attachments=(Attachment("i", 500_000), Attachment("j", 500_000)))]
    rows = TaskFeatures("all-MiniLM-L6-v2", text=False)(tasks)
    assert rows == pytest.approx(np.array([[1, 0, 0, 0], [1, np.log(0.01), 2, np.log(2)]]))


@pytest.mark.slow
def test_embeddings_do_not_depend_on_the_past() -> None:
    """Equal texts give equal numbers, bit for bit, whatever was encoded before; meaning shows in the cosine."""
    texts = [f"How many eggs do {n} hens lay?" for n in range(70)] + ["Prove that the square root of 2 is irrational."]
    used, fresh = text_encoder(), TextEncoder("all-MiniLM-L6-v2")
    used.encode(texts[:3])
    rows = used.encode(texts + texts[:2])
    assert np.array_equal(rows[:-2], fresh.encode(texts))
    assert np.array_equal(rows[-2:], rows[:2])
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0)
    assert rows[1] @ rows[2] > 0.8 > 0.3 > rows[1] @ rows[70]


@pytest.mark.slow
def test_text_is_learned_from() -> None:
    """Where the small model fails on one kind of text, half of the requests at the large model give all its accuracy."""
    study = text_study()
    policy = prepared(EmbeddingRouter, study, large_share=0.5, encoder="all-MiniLM-L6-v2")
    made = decisions(policy, study)
    hard = [request for request, task in enumerate(study.tasks) if task.family == "farm"]
    assert np.mean([made[request, 0].tier == "cloud" for request in hard]) >= 0.9


@pytest.mark.slow
def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """An encoder that cannot be loaded is refused with what can be used."""
    (tmp_path / "readme.txt").write_text("no model here", encoding="utf-8")
    with pytest.raises(InputError, match=r"option 'encoder'.*cannot be loaded.*all-MiniLM-L6-v2"):
        text_encoder(str(tmp_path)).encode(["text"])


@pytest.mark.slow
def test_the_packaged_encoder_needs_no_network() -> None:
    """Loading and using it opens no connection and looks no host up, as the interpreter's own audit shows."""
    code = """
import sys
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
from sim.policies.features import text_encoder
print(text_encoder().encode(["a text"]).shape, seen)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 384) []"
    assert "%|" not in done.stderr  # and draws no progress bar


@pytest.mark.slow
def test_a_learned_router_beats_prompt_length(shared_data: Callable[[str], Path]) -> None:
    """On RouteLLM's GSM8K outcomes both routers, out of fold, have a higher APGR than the length of the prompt."""
    with shared_data("outcomes/routellm_gsm8k_responses.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    weak_name, strong_name = list(rows[0])[1:3]
    weak, strong = (np.array([row[name] == "True" for row in rows], float) for name in (weak_name, strong_name))
    tasks = [Task(str(i), prompt=row["prompt"]) for i, row in enumerate(rows)]
    features = TaskFeatures("all-MiniLM-L6-v2", text=True)(tasks)
    good = weak >= strong
    folds = fold_numbers([task.prompt for task in tasks], good, 5, np.random.default_rng(0))

    def area(scores: np.ndarray) -> float:
        curve = router_curve(-scores, weak, strong)
        return apgr(curve.strong_share, curve.accuracy, float(weak.mean()), float(strong.mean()))

    by_length = area(-np.array([len(task.prompt) for task in tasks], float))
    found = {
        name: area(out_of_fold_scores(features, good, folds, learner))
        for name, learner in (("regression", logistic_regression), ("neighbours", nearest_neighbours(40)))
    }
    assert min(found.values()) > by_length > 0.55, (found, by_length)
