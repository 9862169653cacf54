"""Fixed tiers, the coin and the prompt's length."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.policies.base import RoutingPolicy, TierView
from sim.policies.baselines import AllLlm, AllSlm, Fixed, PromptLength, Random
from sim.records import RequestRow
from tests.policies import Decisions, decisions, modelled_study, observation, placed, prepared
from workloads.errors import InputError
from workloads.task import ModelCall, Task

STUDY = modelled_study(40)


def tiers_of(made: Decisions) -> set[str]:
    """The tiers in use."""
    return {placement.tier for placement in made.values()}


def large_in(policy: RoutingPolicy) -> set[tuple[int, int]]:
    """The subtasks among 40 requests of 12 steps that the policy sends to the large tier."""
    task = Task("t", prompt_tokens=10)
    slots = [(request, position) for request in range(40) for position in range(12)]
    return {
        (request, position)
        for request, position in slots
        if placed(policy, observation(ModelCall(task, position, (), 10, 40), request)).tier == "cloud"
    }


def ended(request: int) -> RequestRow:
    """The row of a request that has ended."""
    return RequestRow(request, "t", "default", 0, 0.0, 1.0, 0.5, 1, 1, 1.0, "completed", "", "exact")


@pytest.mark.parametrize(
    ("policy_type", "options", "tier"),
    [
        (AllSlm, {}, "edge"),
        (AllLlm, {}, "cloud"),
        (Fixed, {}, "edge"),
        (Fixed, {"tier": "small"}, "edge"),
        (Fixed, {"tier": "large"}, "cloud"),
        (Fixed, {"tier": "cloud"}, "cloud"),
    ],
)
def test_a_fixed_policy_uses_one_tier(policy_type: type[RoutingPolicy], options: dict[str, Any], tier: str) -> None:
    """Whatever comes goes to the one tier, named by role or by name."""
    assert tiers_of(decisions(prepared(policy_type, STUDY, **options), STUDY)) == {tier}


def test_fixed_reaches_a_third_tier() -> None:
    """A tier in neither role can be named."""
    study = STUDY._replace(tiers=(TierView("phone", "slm", "tiny"), *STUDY.tiers))
    policy = prepared(Fixed, study, tier="phone")
    assert placed(policy, observation(ModelCall(study.tasks[0], 0, (), 10, 40))).tier == "phone"


def test_fixed_refuses_an_unknown_tier() -> None:
    """A tier that does not exist is refused with the nearest that does."""
    with pytest.raises(InputError, match=r"no tier is called 'clod'.*'cloud'"):
        prepared(Fixed, STUDY, tier="clod")


@pytest.mark.parametrize("policy_type", [Fixed, AllSlm, AllLlm, Random, PromptLength])
def test_a_placement_is_made_once(policy_type: type[RoutingPolicy]) -> None:
    """Equal decisions are the very same object: the event loop's hot path builds nothing."""
    policy = prepared(policy_type, STUDY)
    seen = observation(ModelCall(STUDY.tasks[0], 0, (), 10, 40))
    assert policy.place(seen) is policy.place(seen)


@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_raising_p_only_moves_more(low: float, high: float) -> None:
    """What is large at a lower p is large at a higher one: variants of the coin differ by no more than they must."""
    low, high = min(low, high), max(low, high)
    assert large_in(prepared(Random, STUDY, p=low)) <= large_in(prepared(Random, STUDY, p=high))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_coin_is_fair(p: float) -> None:
    """The share of large subtasks is p within five standard errors, and exact at 0 and 1."""
    share = len(large_in(prepared(Random, STUDY, p=p))) / 480
    assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / 480)


def test_another_seed_tosses_other_coins() -> None:
    """The coins come from the scenario's seed."""
    assert large_in(prepared(Random, STUDY)) != large_in(prepared(Random, STUDY._replace(seed=4)))


def test_one_coin_can_decide_a_request() -> None:
    """With `per: request` a request is either all small or all large, and both occur."""
    large = large_in(prepared(Random, STUDY, per="request"))
    requests = {request for request, _ in large}
    assert large == {(request, position) for request in requests for position in range(12)}
    assert 0 < len(requests) < 40


def test_prompt_length_looks_at_the_first_prompt() -> None:
    """Per request the first prompt decides for all that follow; exactly the threshold is still short."""
    policy = prepared(PromptLength, STUDY, threshold_tokens=100)
    sizes = {1: (100, 101, 900), 2: (101, 50, 900)}
    tiers = {
        request: [
            placed(policy, observation(ModelCall(Task("t"), i, (), n, 40), request)).tier for i, n in enumerate(row)
        ]
        for request, row in sizes.items()
    }
    assert tiers == {1: ["edge"] * 3, 2: ["cloud"] * 3}


def test_prompt_length_can_look_at_every_prompt() -> None:
    """Per subtask each prompt decides for itself."""
    policy = prepared(PromptLength, STUDY, threshold_tokens=100, per="subtask")
    tiers = [placed(policy, observation(ModelCall(Task("t"), i, (), n, 40))).tier for i, n in enumerate((100, 101, 50))]
    assert tiers == ["edge", "cloud", "edge"]


def test_prompt_length_forgets_ended_requests() -> None:
    """Memory does not grow with the requests that have gone by, and a number used again starts afresh."""
    policy = prepared(PromptLength, STUDY, threshold_tokens=100)
    seen = observation(ModelCall(Task("t"), 0, (), 200, 40), 7)
    assert placed(policy, seen).tier == "cloud"
    policy.learn(ended(7))
    assert placed(policy, seen._replace(call=seen.call._replace(prompt_tokens=50))).tier == "edge"


@given(low=st.integers(0, 2000), high=st.integers(0, 2000))
def test_a_higher_threshold_keeps_more_small(low: int, high: int) -> None:
    """Raising the threshold moves requests to the small tier only."""
    low, high = min(low, high), max(low, high)
    first = {
        threshold: {
            request
            for request, task in enumerate(STUDY.tasks)
            if placed(
                prepared(PromptLength, STUDY, threshold_tokens=threshold),
                observation(ModelCall(task, 0, (), task.prompt_tokens, 40), request),
            ).tier == "cloud"
        }
        for threshold in (low, high)
    }  # fmt: skip
    assert first[high] <= first[low]
