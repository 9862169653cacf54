"""The statistical agent against the published averages it was calibrated to, and what must hold of every task."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.workload import build_workload
from tests.helpers import NOWHERE, Chosen, always, rows, run_built, scenario, slots
from workloads.modelled import AccuracyModel, ModelledWorkload, TokenModel, modelled_tasks, trace_task
from workloads.task import ModelCall, Task
from workloads.trial import Trial, enumerate_trials, run_trial

MODEL = ModelledWorkload({"small": 0.0, "large": 1.0, "middle": 0.4})
COUNT = 20_000
SAMPLING = 3 * 0.5 / COUNT**0.5
"""Three standard errors of a share among COUNT tasks: 1 point."""


@cache
def tasks() -> tuple[Task, ...]:
    """Many tasks of the default sizes."""
    return tuple(modelled_tasks(COUNT, np.random.default_rng(1)))


def outcome(task: Task, place: Callable[[ModelCall], str]) -> Trial:
    """How a task ends when `place` names the model of every call."""
    return run_trial(MODEL.agent, task, MODEL, place)


def on(model: str) -> Callable[[ModelCall], str]:
    """Every call to one model."""
    return lambda call: model


def alternately(call: ModelCall) -> str:
    """Small and large in turn."""
    return ("small", "large")[call.position % 2]


def accuracy(place: Callable[[Task, np.random.Generator], Callable[[ModelCall], str]]) -> float:
    """Share of the tasks that end right."""
    rng = np.random.default_rng(2)
    return float(np.mean([outcome(task, place(task, rng)).score for task in tasks()]))


def pure_accuracy(model: str) -> float:
    """Accuracy of one model throughout."""
    return accuracy(lambda task, rng: on(model))


def one_small_step(where: float) -> Callable[[Task, np.random.Generator], Callable[[ModelCall], str]]:
    """Everything large except the step at this share of the way: 0 the first, 1 the last."""

    def place(task: Task, rng: np.random.Generator) -> Callable[[ModelCall], str]:
        chosen = round(where * (len(task.latent.weights) - 1))
        # A small step may bring a follow-up step; it belongs to the same step and counts nothing.
        return lambda call: "small" if call.position == chosen else "large"

    return place


# --------------------------------------------------------------------------------------------------------- calibration


def test_all_large_and_all_small() -> None:
    """HERA/AIMS, Fig. 2: 93.15 % with the large model throughout, 42.95 % with the small one."""
    assert pure_accuracy("large") == pytest.approx(0.9315, abs=SAMPLING)
    assert pure_accuracy("small") == pytest.approx(0.4295, abs=SAMPLING)


def test_a_coin_for_every_step() -> None:
    """A fair coin for every step: 47.65 % published; the calibration stays within 2 points of it."""
    mixed = accuracy(lambda task, rng: lambda call: "small" if rng.random() < 0.5 else "large")
    assert mixed == pytest.approx(0.4765, abs=0.02 + SAMPLING)


@pytest.mark.parametrize(("where", "published"), [(0.0, 0.0525), (0.5, 0.0759), (1.0, 0.0953)])
def test_one_small_step(where: float, published: float) -> None:
    """Fig. 4a: one early, middle or late small step costs 5.25, 7.59 and 9.53 points; within half a point of each."""
    # Paired on the same tasks: a cost of 10 points has a standard error of 0.2.
    cost = pure_accuracy("large") - accuracy(one_small_step(where))
    assert cost == pytest.approx(published, abs=0.005 + 0.006)


def test_late_steps_matter_more() -> None:
    """The later the one small step, the more it costs, on the very same tasks."""
    scores = [accuracy(one_small_step(where)) for where in (0.0, 0.5, 1.0)]
    assert scores[0] > scores[1] > scores[2]


def test_number_of_steps() -> None:
    """5.9 steps with the large model on average, 6.37 with the small one, which sometimes needs one more."""
    for model, mean in (("large", 5.9), ("small", 6.37)):
        steps = np.mean([len(outcome(task, on(model)).models) for task in tasks()[:10_000]])
        assert steps == pytest.approx(mean, abs=0.08)


def test_token_counts_have_their_means() -> None:
    """Answers average 70 and 90 tokens, tool answers 60, with a coefficient of variation of 0.6."""
    latents = [task.latent for task in tasks()[:5000]]
    for field, mean in (("slm_tokens", 70.0), ("llm_tokens", 90.0), ("tool_tokens", 60.0)):
        counts = np.concatenate([getattr(latent, field) for latent in latents])
        assert counts.mean() == pytest.approx(mean, rel=0.02)
        assert counts.std() / counts.mean() == pytest.approx(0.6, abs=0.03)


def test_prompts_show_difficulty_but_do_not_give_it_away() -> None:
    """Tasks that only the large model solves have somewhat longer prompts: a router can learn a little from them."""
    prompts = np.array([task.prompt_tokens for task in tasks()])
    easy = np.array([task.latent.tolerance == float("inf") for task in tasks()])
    ranks = prompts.argsort().argsort() / len(prompts)
    assert 0.55 < (ranks[~easy].mean() - ranks[easy].mean()) + 0.5 < 0.75


# ------------------------------------------------------------------------------------------------------ what always holds


def test_the_accuracy_curve_is_the_chance_of_a_tolerance() -> None:
    """The share of tasks whose tolerance is at least x is all_llm - (all_llm - all_slm) g(x), for every x."""
    model = AccuracyModel()
    quantiles = (np.arange(50_000) + 0.5) / 50_000
    tolerances = np.array([model.tolerance(q) for q in quantiles])
    for share in (0.0, 0.05, 0.15, 0.2, 0.25, 0.3, 0.6, 1.0):
        expected = model.all_llm - (model.all_llm - model.all_slm) * model.lost_share(share)
        assert np.mean(tolerances >= share) == pytest.approx(expected, abs=1e-4)
    assert model.lost_share(0.0) == 0.0
    assert model.lost_share(1.0) == pytest.approx(1.0)


@settings(deadline=None)
@given(subtasks=st.integers(1, 15))
def test_weights_sum_to_one_and_rise(subtasks: int) -> None:
    """Position weights are shares, later ones larger."""
    weights = AccuracyModel().weights(subtasks)
    assert sum(weights) == pytest.approx(1.0)
    assert all(early < late for early, late in itertools.pairwise(weights))


@settings(deadline=None)
@given(number=st.integers(0, 999))
def test_more_small_steps_never_help(number: int) -> None:
    """On one task, a placement whose small steps include another's never scores higher than it."""
    task = next(
        itertools.islice(
            modelled_tasks(1000, np.random.default_rng(3), tokens=TokenModel(max_subtasks=5)), number, None
        )
    )
    trials = list(enumerate_trials(MODEL.agent, task, MODEL, ["small", "large"]))
    # Follow-up steps of small ones have no weight: what counts is which of the task's own steps ran small.
    scores: dict[frozenset[int], set[float]] = {}
    for trial in trials:
        scores.setdefault(_small_steps(task, trial), set()).add(trial.score)
    assert all(len(found) == 1 for found in scores.values()), "the same small steps always end the same"
    best = {steps: found.pop() for steps, found in scores.items()}
    for more, fewer in itertools.product(best, repeat=2):
        if more > fewer:
            assert best[more] <= best[fewer]


def _small_steps(task: Task, trial: Trial) -> frozenset[int]:
    """Indices of the task's own steps that ran small, follow-up steps left out."""
    small, models = set(), iter(trial.models)
    for step, follows in enumerate(task.latent.extra):
        if next(models) == "small":
            small.add(step)
            if follows:
                next(models)
    return frozenset(small)


def test_a_placement_always_ends_the_same() -> None:
    """Running a task again gives the same calls, sizes and score."""
    for task in tasks()[:200]:
        first, second = (outcome(task, alternately) for _ in range(2))
        assert first == second


def test_a_better_small_model_does_less_harm() -> None:
    """Quality 0.4 counts as 0.6 of a small step: its accuracy lies between the two pure ones."""
    small, middle, large = (pure_accuracy(model) for model in ("small", "middle", "large"))
    assert small <= middle < large


def test_conversations_grow() -> None:
    """Each prompt is the one before with its answer and the tool's; the upload follows it at 4 bytes a token."""
    for task in tasks()[:100]:
        trial = outcome(task, on("large"))
        assert trial.calls[0].prompt_tokens == task.prompt_tokens
        for step, (before, after) in enumerate(itertools.pairwise(trial.calls)):
            answer = trial.completions[step].completion_tokens
            assert after.prompt_tokens == before.prompt_tokens + answer + task.latent.tool_tokens[step]
        assert all(call.upload_bytes == 300 + 4 * call.prompt_tokens for call in trial.calls)
        assert all(completion.provenance == "modelled" for completion in trial.completions)


def test_a_trace_request_is_one_step() -> None:
    """A trace's request keeps its token counts on either model."""
    task = trace_task(7, 1234, 56, (1, 2), 0.5)
    for model in ("small", "large"):
        trial = outcome(task, on(model))
        assert [(call.prompt_tokens, call.prefix_blocks) for call in trial.calls] == [(1234, (1, 2))]
        assert [completion.completion_tokens for completion in trial.completions] == [56]


# ----------------------------------------------------------------------------------------------------- in the simulation


def test_the_simulation_scores_what_the_model_says() -> None:
    """Simulated All-SLM, All-LLM and alternating runs end every task as the agent does off line."""
    world = scenario(
        {"small": slots(mean_s=0.01), "large": {**slots("llm", 0.01), "model": {"quality": 1.0}}},
        workload={"tasks": {"kind": "modelled"}, "requests": 2000},
    )  # fmt: skip
    places = {
        "small": always("small"), "large": always("large"),
        "mixed": Chosen(lambda seen: ("small", "large")[seen.call.position % 2]),
    }  # fmt: skip
    offline = {task.id: task for task in build_workload(world, 1, NOWHERE).tasks}
    for name, policy in places.items():
        records = run_built(world, policy)
        assert set(records.requests["status"]) == {"completed"}
        for request in rows(records.requests):
            place = alternately if name == "mixed" else on(name)
            trial = outcome(offline[request["task_id"]], place)
            assert (request["score"], request["subtasks"]) == (trial.score, len(trial.models))
            assert request["provenance"] == "modelled"
