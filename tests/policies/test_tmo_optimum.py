"""The constrained optimum against every plan there is, against its own bound, and against what a simulation gives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from sim.policies.base import Study
from sim.policies.tmo.episodes import plan_each, plan_unforeseen
from sim.policies.tmo.optimum import Dialogues, Plan, best_for_rate, best_plan
from sim.policies.tmo.oracle import OracleDialogues, OracleOptions, dialogues_of
from sim.tmo.actions import Action, action_set
from sim.tmo.reward import Reward, association_norm
from tests.helpers import run_built, scenario
from tests.policies import dialogue_study, modelled_study, prepared
from workloads.dialogue import turns_of
from workloads.dialogue_truth import DialogueBackend
from workloads.errors import InputError
from workloads.task import Completion, ModelCall, with_attachments
from workloads.tasks.dialogues import DialogueSpec
from workloads.trial import run_trial

RESPONSE = Reward(0.0, 0.0, 0.0)
SMALL = DialogueSpec(modalities=2, turns=(1, 2, 3))


def actions_of(study: Study) -> tuple[Action, ...]:
    """The actions of a study's dialogues."""
    return action_set(study.tiers, [attachment.name for attachment in study.tasks[0].attachments])


def problem(study: Study, reward: Reward = RESPONSE) -> Dialogues:
    """The study's dialogues with their costs in $."""
    return dialogues_of(study, study.tasks, actions_of(study), reward, "total_usd")


def walked(study: Study, task: int, plan: tuple[int, ...], reward: Reward = RESPONSE) -> tuple[float, float]:
    """(expected reward, cost) of a plan for one dialogue, asking the backend for the mean of every turn."""
    actions, models = actions_of(study), {tier.name: tier.model for tier in study.tiers}
    assert isinstance(study.backend, DialogueBackend)
    backend: DialogueBackend = study.backend

    class Sending:
        """Sends along what the plan says."""

        def submit(self, call: ModelCall, model: str) -> Completion:
            action = actions[plan[call.position]]
            sent = with_attachments(call, tuple(a for a in call.task.attachments if a.name in action.modalities))
            spent.append(study.expected_cost_usd(sent, action.tier, call.task.latent.answer_tokens[call.position]))
            score = backend.mean(call, model, action.modalities)
            uploaded = [i for i, a in enumerate(call.task.attachments) if a.name in action.modalities]
            fit = association_norm(turns_of(call.task)[call.position].associations, uploaded)
            worth.append(reward.of(score, fit, 0.0, spent[-1]))
            return backend.submit(sent, model)

    spent: list[float] = []
    worth: list[float] = []
    run_trial(study.agent, study.tasks[task], Sending(), lambda call: models[actions[plan[call.position]].tier])
    return math.fsum(worth), math.fsum(spent)


def all_plans(study: Study) -> list[list[tuple[float, float]]]:
    """(reward, cost) of every plan of every dialogue."""
    choices = range(len(actions_of(study)))
    return [
        [walked(study, row, plan) for plan in itertools.product(choices, repeat=len(turns_of(task)))]
        for row, task in enumerate(study.tasks)
    ]


def test_plans_are_worth_what_the_backend_says() -> None:
    """Reward and cost of the plan for any rate are those of walking it turn by turn, weights of the reward included."""
    study = dialogue_study(6)
    for reward in (RESPONSE, Reward(0.3, 0.0, 0.2)):
        dialogues = problem(study, reward)
        for rate in (0.0, 50.0, 300.0):
            best = best_for_rate(dialogues, rate)
            for row in range(len(study.tasks)):
                plan = tuple(best.actions[row][best.actions[row] >= 0])
                assert walked(study, row, plan, reward) == pytest.approx((best.reward[row], best.cost[row]), rel=1e-9)


def test_for_every_rate_the_plan_is_the_best_of_all() -> None:
    """Against enumeration of all plans of small dialogues."""
    study = dialogue_study(8, spec=SMALL)
    plans = all_plans(study)
    for rate in (0.0, 100.0, 1000.0):
        best = best_for_rate(problem(study), rate)
        for row, of_task in enumerate(plans):
            expected = max(reward - rate * cost for reward, cost in of_task)
            assert best.reward[row] - rate * best.cost[row] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_each_dialogues_budget_gives_the_best_plan_that_keeps_it(share: float) -> None:
    """Against enumeration; where none keeps it, the cheapest."""
    study = dialogue_study(8, spec=SMALL)
    dialogues = problem(study)
    budget = share * float(best_for_rate(dialogues, 0.0).cost.max())
    plan, plans = plan_each(dialogues, budget), all_plans(study)
    within = [[p for p in of_task if p[1] <= budget] for of_task in plans]
    best = [
        max(kept)[0] if kept else min((c, -r) for r, c in every)[1] * -1
        for kept, every in zip(within, plans, strict=True)
    ]
    assert plan.reward == pytest.approx(np.mean(best), rel=1e-12)
    assert plan.gap == 0.0


def test_the_mean_budget_gives_the_best_of_all_combinations_up_to_the_gap() -> None:
    """Against every combination of the plans of three dialogues; the bound is never below, and the plan never above it."""
    study = dialogue_study(3, spec=DialogueSpec(modalities=1, turns=(1, 2)))
    dialogues, plans = problem(study), all_plans(study)
    dearest = float(best_for_rate(dialogues, 0.0).cost.mean())
    for share in (0.1, 0.4, 0.7, 1.0):
        plan = best_plan(dialogues, share * dearest)
        best = max(
            np.mean([p[0] for p in chosen])
            for chosen in itertools.product(*plans)
            if np.mean([p[1] for p in chosen]) <= share * dearest * (1 + 1e-12)
        )
        assert plan.reward - 1e-12 <= best <= plan.bound + 1e-12
        assert plan.cost <= share * dearest * (1 + 1e-12)


def test_with_many_dialogues_the_gap_is_small_and_the_budget_used() -> None:
    """The plan is within 0.5 % of the bound, and spends what it may."""
    dialogues = problem(dialogue_study(150))
    dearest = float(best_for_rate(dialogues, 0.0).cost.mean())
    rewards = []
    for share in (0.1, 0.3, 0.6, 0.9):
        plan = best_plan(dialogues, share * dearest)
        assert 0 <= plan.gap < 0.005 * plan.bound
        assert 0.97 * share * dearest < plan.cost <= share * dearest
        rewards.append(plan.reward)
    gains = np.diff(rewards) / np.diff((0.1, 0.3, 0.6, 0.9))
    assert (gains > 0).all()
    assert (np.diff(gains) < 0).all(), "each further dollar buys less"


def test_rules_are_ordered_as_they_must_be() -> None:
    """Each by itself <= with some exempt <= in the mean; without foresight, at its own cost, no more than with it."""
    study = dialogue_study(150)
    dialogues = problem(study)
    assert study.training is not None
    others = dialogues_of(study.training, study.training.tasks, actions_of(study), RESPONSE, "total_usd")
    for share in (0.2, 0.5, 0.8):
        budget = share * float(best_for_rate(dialogues, 0.0).cost.mean())
        each, exempt, mean = (
            plan_each(dialogues, budget),
            plan_each(dialogues, budget, 0.1),
            best_plan(dialogues, budget),
        )
        assert each.reward < exempt.reward
        assert each.reward < mean.reward
        over = [dialogue_cost > budget for dialogue_cost in costs_of(dialogues, exempt)]
        assert 0 < np.mean(over) <= 0.1
        blind = plan_unforeseen(dialogues, others, budget)
        assert blind.reward <= best_plan(dialogues, blind.cost).bound + 1e-9
        assert blind.reward > 0.97 * best_plan(dialogues, blind.cost).reward
        assert blind.cost == pytest.approx(budget, rel=0.15)


def costs_of(dialogues: Dialogues, plan: Plan) -> list[float]:
    """The cost of each dialogue under a plan."""
    cost = np.zeros(dialogues.count)
    for number, step in enumerate(dialogues.steps):
        cost[step.rows] += step.cost[np.arange(len(step.rows)), plan.actions[step.rows, number]]
    return cost.tolist()


def test_weights_count_dialogues_several_times() -> None:
    """A dialogue asked three times counts as three of it."""
    study = dialogue_study(5)
    once = problem(study._replace(tasks=[*study.tasks, study.tasks[0], study.tasks[0]]))
    budget = 0.3 * float(best_for_rate(once, 0.0).cost.mean())
    weighed = best_plan(problem(study), budget, np.array([3.0, 1, 1, 1, 1]))
    assert weighed.bound == pytest.approx(best_plan(once, budget).bound, rel=1e-6)


WORLD = {
    "workload": {"tasks": {"kind": "dialogues"}, "requests": 250, "arrivals": {"kind": "constant", "rate_per_s": 0.01}},
    "links": ({"between": ("home", "cloud"), "link": "wifi"},),
}
TIERS = {
    "local": {"role": "slm", "model": "llama-3.2-3b-int4", "device": "jetson-orin-nx", "prefix_cache": False},
    "cloud": {"role": "llm", "model": "gpt-4o", "endpoint": "gpt-4o-class", "prefix_cache": False},
}


def oracle(**options: object) -> OracleDialogues:
    """The oracle with these options."""
    return OracleDialogues(OracleOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("item", "budget"), [("total_usd", 0.005), ("latency_s", 6.6)])
def test_a_simulation_spends_and_gets_what_was_planned(item: str, budget: float) -> None:
    """Without queues the mean cost is the budget (dollars within 1 %, drawn seconds within 5 %) and the mean reward the plan's."""
    policy = oracle(item=item, budget=budget)
    records = run_built(scenario(TIERS, **WORLD, client={"stream": True}), policy)
    turns = records.subtasks
    spent = records.requests[item].mean()
    tolerance = 0.01 if item == "total_usd" else 0.05
    assert spent == pytest.approx(policy.plan.cost, rel=tolerance)
    assert policy.plan.cost <= budget
    assert np.nansum(turns["score"]) / 250 == pytest.approx(policy.plan.reward, rel=0.02)


def test_a_tighter_budget_uses_less_and_gets_less() -> None:
    """Spending and scores fall with the budget, and no budget is exceeded."""
    found = []
    for budget in (0.001, 0.004, 0.008):
        requests = run_built(scenario(TIERS, **WORLD), oracle(budget=budget)).requests
        found.append((requests["total_usd"].mean(), requests["score"].mean()))
        assert found[-1][0] <= budget * 1.01
    assert found == sorted(found)


BAD = [
    ({"budget": 1e-9}, dialogue_study, "cheapest costs"),
    ({}, modelled_study, "truth behind these tasks is not known"),
    ({}, lambda: dialogue_study()._replace(keeps_attachments=True), "keep_attachments"),
    ({"foresees": False}, lambda: dialogue_study()._replace(training=None), "no training dialogues"),
    ({}, lambda: dialogue_study(2, spec=DialogueSpec(modalities=8)), "most_modalities: 2"),
]


@pytest.mark.parametrize(("options", "study", "words"), BAD)
def test_what_cannot_be_planned_is_one_message(
    options: dict[str, object], study: Callable[[], Study], words: str
) -> None:
    """A budget below the cheapest plan, tasks without a truth, nothing to learn futures from, too many histories."""
    with pytest.raises(InputError, match=words):
        prepared(OracleDialogues, study(), **options)
