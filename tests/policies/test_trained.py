"""Routers and cascades trained on other requests: their labels by hand, and that they find what there is to find."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.policies.base import RoutingPolicy, Study
from sim.policies.cascade import FrugalCascade, Minions, MinionsOptions
from sim.policies.trained import (
    Example,
    HybridLlm,
    HybridLlmOptions,
    MatrixFactorisation,
    SimilarityWeighted,
    transformed_labels,
    win_shares,
)
from sim.policies.trees import Worth, grow_trees, subtask_text, two_models, worth
from tests.policies import decisions, observation, prepared, study_of, text_study
from tests.policies.test_oracle import tree_study
from workloads.agent import conversation_agent, in_turn
from workloads.backend import ScriptedBackend
from workloads.errors import InputError
from workloads.task import Completion, ModelCall, Task

TRAINED = (HybridLlm, SimilarityWeighted, MatrixFactorisation)


def with_training() -> Study:
    """Tasks of which the small model gets the long half wrong; others of the same kind to learn from."""
    study = text_study(24)
    other = text_study(60)
    return study._replace(training=other._replace(tasks=other.tasks[24:]))


def test_the_worth_of_an_answer_by_hand() -> None:
    """Tiny first: 1 if tiny goes on, .3 if huge does; huge first: .6 at once."""
    study = tree_study({"q": {"tt": (1.0, 1), "th": (0.3, 1), "h": (0.6, 1)}})
    (tree,) = grow_trees(study, study.tasks)
    root, *_ = sorted(tree.nodes.values(), key=lambda node: len(node.call.messages))
    for share, small in ((0.0, 1.0), (1.0, 0.3), (0.5, 0.65)):
        found = worth(tree, two_models(study), share)[root.call.messages]
        assert found == pytest.approx((small, 0.6))


@given(st.lists(st.sampled_from([-1.0, -0.5, -0.25, 0.0, 0.5]), min_size=2, max_size=12))
def test_transformed_labels_part_the_examples_best(gaps: list[float]) -> None:
    """No other allowed gap gives more pairs with different labels."""
    labels = transformed_labels(np.array(gaps))
    pairs = sum(a != b for a, b in itertools.combinations(labels.tolist(), 2))
    for allowed in (0.0, 0.25, 0.5, 1.0):
        other = [gap >= -allowed for gap in gaps]
        assert pairs >= sum(a != b for a, b in itertools.combinations(other, 2))


def test_labels_by_hand() -> None:
    """Deterministic compares under the large model's continuation, probabilistic the coin's."""
    rows = [
        Example("a", Worth(1.0, 1.0), Worth(0.5, 0.8)),
        Example("b", Worth(0.0, 1.0), Worth(0.0, 1.0)),
        Example("c", Worth(1.0, 0.0), Worth(1.0, 0.5)),
    ]
    assert HybridLlm(HybridLlmOptions(labels="deterministic"))._labels(rows).tolist() == [1.0, 0.0, 1.0]
    assert HybridLlm(HybridLlmOptions())._labels(rows) == pytest.approx([1 - 0.5 * 0.8, 0.0, 1.0])
    assert win_shares(rows).tolist() == [0.5, 0.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("policy", TRAINED)
def test_a_router_finds_which_requests_the_small_model_can_do(policy: type[RoutingPolicy]) -> None:
    """Short questions small, long ones large, at every threshold between what it believes of the two."""
    study = with_training()
    threshold = 0.5 if policy is HybridLlm else 0.25  # a tie is half a win for the other two
    made = decisions(prepared(policy, study, per="request", threshold=threshold), study)
    for number, task in enumerate(study.tasks):
        assert made[number, 0].tier == ("edge" if "plus" in task.prompt else "cloud")


@pytest.mark.slow
def test_a_cascade_learns_whose_answers_to_give_up() -> None:
    """After two small steps the small model ends long questions wrongly: at the right threshold those and no others are escalated."""
    study = with_training()
    cascade = prepared(FrugalCascade, study)
    assert isinstance(cascade, FrugalCascade)
    believed: dict[bool, list[float]] = {True: [], False: []}
    for task in study.tasks:
        run = in_turn(study.agent(task))
        call = next(run)
        for _ in range(2):
            call = run.send(study.backend.submit(call, "tiny").result())
        answer = study.backend.submit(call, "tiny").result()
        features = cascade._features([subtask_text(call.messages)], [answer])
        believed["plus" in task.prompt].append(float(cascade._predict(features)[0]))
    assert min(believed[True]) > max(believed[False])
    between = (min(believed[True]) + max(believed[False])) / 2
    strict = prepared(FrugalCascade, study, threshold=between)
    assert isinstance(strict, FrugalCascade)
    again = strict.review(observation(call), strict.place(observation(call)), answer)
    assert (again.tier if again else "") == ("" if "plus" in task.prompt else "cloud")


def test_minions_escalate_what_the_small_model_is_unsure_of() -> None:
    """By the mean log-probability; the large model's answers are taken."""
    call = ModelCall(Task("t", prompt="go"), 0, (), 10, 10)
    policy = Minions(MinionsOptions(min_logprob=-0.5))
    seen = observation(call)
    first = policy.place(seen)
    assert first.tier == "edge"
    sure, unsure = (Completion("tiny", "x", 1, 1, 1, mean_logprob=value) for value in (-0.5, -0.51))
    assert policy.review(seen, first, sure) is None
    again = policy.review(seen, first, unsure)
    assert again is not None
    assert (again.tier, policy.review(seen, again, unsure)) == ("cloud", None)
    with pytest.raises(InputError, match="gave no log-probabilities"):
        policy.review(seen, first, Completion("tiny", "x", 1, 1, 1))


@pytest.mark.parametrize("policy", [*TRAINED, FrugalCascade])
def test_nothing_to_learn_from_is_one_message(policy: type[RoutingPolicy]) -> None:
    """No training recording, an empty one, and one without counterfactuals."""
    study = text_study(4)
    with pytest.raises(InputError, match=r"inference\.training"):
        prepared(policy, study)
    with pytest.raises(InputError, match="holds no task"):
        prepared(policy, study._replace(training=study._replace(tasks=())))


def test_a_recording_without_counterfactuals_is_one_message() -> None:
    """Only All-SLM and All-LLM are there."""
    half = tree_study({"q": {"tt": (1.0, 1), "hh": (1.0, 1)}})
    whole = study_of([Task("r", prompt="r")], conversation_agent(), ScriptedBackend(lambda call, model: half))  # type: ignore[arg-type,return-value]
    with pytest.raises(InputError, match="every placement"):
        prepared(HybridLlm, whole._replace(training=half))
