"""HERA where an agent forks: every branch is decided by itself, with its own thresholds and its own commitments."""

from __future__ import annotations

import pytest

from sim.policies.base import Study
from sim.policies.hera import policy as hera_policy
from sim.policies.hera.policy import Hera, HeraOptions
from sim.policies.trees import grow_trees, worth
from tests.policies import decisions, observation, placed, study_of
from tests.policies.test_hera import Equality
from tests.workloads.test_forks import forking, talk
from workloads.backend import ScriptedBackend
from workloads.errors import InputError
from workloads.task import Completion, Message, ModelCall, Task

TASK = Task("t", "task")


@pytest.fixture(autouse=True)
def _equality(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hera_policy, "EmbeddingSimilarity", Equality)


def reply(call: ModelCall, model: str) -> Completion:
    """In the first branch the small model says second what the large one says first; nothing else is ever alike."""
    early = model == "huge" and len(call.messages) == 1
    late = model == "tiny" and len(call.messages) == 3
    goal = call.branch == 100 and (early or late)
    return Completion(model, "goal" if goal else f"{model} {call.position} {len(call.messages)}", 1, 1, 1)


def prepared(components: str) -> tuple[Hera, Study]:
    """Two branches of three subtasks and a join of two."""
    made = study_of([TASK], forking(2, 3), ScriptedBackend(reply))
    policy = Hera(HeraOptions(estimators="perfect", components=components))
    policy.prepare(made)
    return policy, made


def test_branches_are_decided_by_themselves() -> None:
    """SLE finds distance 1 in the first branch: two subtasks go small there, none in the other branch, and none of the join."""
    policy, made = prepared("sse+sle")
    chosen = {position: placement for (_, position), placement in decisions(policy, made).items()}
    assert {position: placement.tier for position, placement in chosen.items()} == {
        100: "edge", 101: "edge", 102: "cloud", 200: "cloud", 201: "cloud", 202: "cloud", 1000: "cloud", 1001: "cloud",
    }  # fmt: skip
    assert chosen[101].reason == "sle d=1"


def test_a_commitment_of_one_branch_is_not_used_up_by_another() -> None:
    """Asked in turns, as branches side by side ask: what the first branch is committed to waits for its own next subtask."""
    policy, _ = prepared("sse+sle")
    first, second = (talk(TASK, f"task  {number}", 100 * (number + 1), 3, 100 * (number + 1)) for number in (0, 1))
    calls = [next(first), next(second)]
    placements = [placed(policy, observation(call)) for call in calls]
    calls = [
        run.send(reply(call, model)) for run, call, model in zip((first, second), calls, ("tiny", "huge"), strict=True)
    ]
    placements += [placed(policy, observation(call)) for call in reversed(calls)]
    assert [placement.tier for placement in placements] == ["edge", "cloud", "cloud", "edge"]
    assert (placements[3].reason, placements[3].decided) == ("sle d=1", False)


def test_lookahead_ends_where_branches_do() -> None:
    """CD looks five steps ahead; a branch that both models end two steps on is compared as far as it goes."""
    policy, made = prepared("cd")
    assert {placement.tier for placement in decisions(policy, made).values()} == {"cloud"}


def test_the_threshold_rises_with_the_subtasks_of_a_branch() -> None:
    """A branch's first subtask has the first threshold, whatever its position among all subtasks; a chain's follows its position."""
    policy = Hera(HeraOptions())
    said = (
        Message("user", "task"),
        Message("assistant", "a"),
        Message("tool", "b"),
        Message("assistant", "c"),
        Message("tool", "d"),
    )
    for count, kappa in ((1, 0.60), (3, 0.62), (5, 0.64)):
        call = ModelCall(TASK, 200 + count, said[:count], 1, 1, branch=2)
        assert policy._threshold(observation(call)) == pytest.approx(kappa)
        assert policy._threshold(observation(call._replace(branch=0))) == pytest.approx(0.7)


def test_the_whole_request_runs_small_where_both_joins_end_alike() -> None:
    """URC compares the final outputs of the whole workflow, whose first call to be placed has position 0."""

    def alike(call: ModelCall, model: str) -> Completion:
        return Completion(model, "end" if call.position >= 1000 else f"{model} {call.position}", 1, 1, 1)

    made = study_of([TASK], forking(2, 2, before=True), ScriptedBackend(alike))
    policy = Hera(HeraOptions(estimators="perfect", components="urc"))
    policy.prepare(made)
    placements = decisions(policy, made)
    assert {(placement.tier, placement.reason) for placement in placements.values()} == {("edge", "urc 1.00")}


def test_policies_that_learn_what_an_answer_is_worth_say_that_they_cannot() -> None:
    """What one branch's answer is worth depends on the other branches."""
    _, made = prepared("sse")
    (tree,) = grow_trees(made, made.tasks)
    with pytest.raises(InputError, match=r"its agent forks.*Use a policy that does not learn this"):
        worth(tree, ("tiny", "huge"), 0.5)
