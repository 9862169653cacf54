"""Baselines of TMO: what they choose, what they learn, and that they find what is planted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.policies import POLICIES
from sim.policies.base import Placement, RoutingPolicy, Study, TierView
from sim.policies.tmo.baselines import ActionPolicy, FixedAction
from sim.policies.tmo.experience import (
    FEATURES,
    Dialogues,
    Expected,
    Linear,
    Past,
    RewardOptions,
    numbers,
    play,
    reward_of,
)
from sim.policies.tmo.learners import ActionTable, Greedy, LinUcb, Thompson
from sim.policies.tmo.oracle import OracleDialogues, OracleOptions
from sim.records import RequestRow, SubtaskRow
from sim.tmo.actions import Action
from sim.tmo.reward import Reward
from tests.policies import TIERS, decisions, dialogue_study, observation, placed, prepared, study_of
from workloads.agent import AgentRun, in_turn
from workloads.backend import ScriptedBackend
from workloads.dialogue import Turn, dialogue_agent, dialogue_task, turns_of
from workloads.errors import InputError
from workloads.task import Attachment, Completion, ModelCall, Task

RESPONSE = {"association": 0.0, "latency": 0.0, "usage": 0.0}
STUDY = dialogue_study(60)
NAMES = ("overview", "close-up", "side view")


def chosen(policy: RoutingPolicy, study: Study = STUDY) -> Counter[tuple[str, tuple[str, ...] | None]]:
    """How often a policy takes each action."""
    return Counter((p.tier, p.modalities) for p in decisions(policy, study).values())


def test_chance_is_even_over_the_actions() -> None:
    """`tmo-random` takes nine actions alike, `tmo-cloud` the eight of the large tier: chi-squared below the 99.9 % quantile."""
    for name, kinds, quantile in (("tmo-random", 9, 26.1), ("tmo-cloud", 8, 24.3)):
        found = chosen(prepared(POLICIES[name], dialogue_study(300)), dialogue_study(300))
        assert len(found) == kinds
        expected = found.total() / kinds
        assert sum((count - expected) ** 2 / expected for count in found.values()) < quantile
        if name == "tmo-cloud":
            assert {tier for tier, _ in found} == {"cloud"}


def test_local_and_fixed_take_one_action() -> None:
    """Always the small tier; or always the action of that number."""
    assert set(chosen(prepared(POLICIES["tmo-local"], STUDY))) == {("edge", ())}
    expected = {
        0: ("edge", ()),
        1: ("cloud", ()),
        3: ("cloud", NAMES[1:2]),
        6: ("cloud", (NAMES[0], NAMES[2])),
        8: ("cloud", NAMES),
    }
    for number, action in expected.items():
        assert set(chosen(prepared(FixedAction, STUDY, action=number))) == {action}


def test_an_action_that_does_not_exist_is_one_message() -> None:
    """A number beyond the tasks' actions names those there are."""
    with pytest.raises(InputError, match=r"no action 9.*9\. Allowed: 0 edge, 1 cloud, 2 cloud\+overview"):
        prepared(FixedAction, STUDY, action=9)
    prepared(FixedAction, STUDY, action=4, most_modalities=1)
    with pytest.raises(InputError, match="no action 5"):
        prepared(FixedAction, STUDY, action=5, most_modalities=1)


def planted(best: dict[str, Action]) -> Study:
    """Dialogues of one turn in which each category is answered rightly by one action only."""
    attached = tuple(Attachment(name, 1000, 10) for name in NAMES)

    def tasks(name: str) -> list[Task]:
        kinds = [kind for kind in best for _ in range(40)]
        return [
            dialogue_task(f"{name}{i}", [Turn("?", kind, (0.5, 0.5, 0.5))], attached) for i, kind in enumerate(kinds)
        ]

    def answer(call: ModelCall, model: str) -> Completion:
        wanted = best[turns_of(call.task)[0].kind]
        names = tuple(a.name for a in (call.task.attachments if call.attachments is None else call.attachments))
        right = (("tiny" if wanted.tier == "edge" else "huge"), wanted.modalities) == (model, names)
        return Completion(model, "", call.prompt_tokens, 10, 340, score=0.9 if right else 0.2)

    study = study_of(tasks("own"), dialogue_agent(), ScriptedBackend(answer))
    return study._replace(training=study._replace(tasks=tasks("other")))


def test_the_table_finds_the_planted_action_of_every_category() -> None:
    """One lookup per category; a category it never saw takes the best action of all."""
    best = {
        "a": Action("edge"),
        "b": Action("cloud", NAMES[:1]),
        "c": Action("cloud", NAMES),
        "d": Action("cloud", NAMES),
    }
    study = planted(best)
    policy = prepared(ActionTable, study, **RESPONSE)
    for call_kind, action in {**best, "unheard of": Action("cloud", NAMES)}.items():
        task = dialogue_task("new", [Turn("?", call_kind, (0.5,) * 3)], study.tasks[0].attachments)
        call = next(dialogue_agent()(task))
        assert isinstance(call, ModelCall)
        found = placed(policy, observation(call))
        assert (found.tier, found.modalities) == (action.tier, action.modalities)


def expected_response(policy: RoutingPolicy, study: Study) -> float:
    """Mean expected score of a policy's placements, by the truth."""
    from tests.policies.test_tmo_optimum import actions_of, walked

    actions = {(a.tier, a.modalities): i for i, a in enumerate(actions_of(study))}
    made, total = decisions(policy, study), 0.0
    for row, task in enumerate(study.tasks):
        plan = tuple(actions[made[row, p].tier, made[row, p].modalities or ()] for p in range(len(turns_of(task))))
        total += walked(study, row, plan)[0] / len(plan)
    return total / len(study.tasks)


def test_learners_lie_between_chance_and_the_optimum() -> None:
    """Greedy beats the table, the table every fixed action and chance, and nobody the oracle without a budget."""
    greedy, table = (expected_response(prepared(kind, STUDY, **RESPONSE), STUDY) for kind in (Greedy, ActionTable))
    fixed = max(expected_response(prepared(FixedAction, STUDY, action=n), STUDY) for n in range(9))
    chance = expected_response(prepared(POLICIES["tmo-random"], STUDY), STUDY)
    best = OracleDialogues(OracleOptions(budget=100.0))
    best.prepare(STUDY)
    assert chance < fixed <= table + 1e-9
    assert table < greedy <= expected_response(best, STUDY)
    assert greedy > 0.95 * expected_response(best, STUDY)


def ended(request: int) -> RequestRow:
    """A request's row, of which bandits read the number only."""
    return RequestRow(request, "t", "f", 0, 0.0, 1.0, 0.1, 1, 0, 0.5, "completed", "", "modelled")


def online(
    policy: RoutingPolicy, rounds: int, reward: dict[Placement, float], needs: Sequence[float] = (0.9, 0.0, 0.0)
) -> list[Placement]:
    """Dialogues of one turn, one after another; the answer's grade depends on the placement."""
    task = dialogue_task("d", [Turn("?", "query", tuple(needs))], tuple(Attachment(name, 1000, 10) for name in NAMES))
    made = []
    for request in range(rounds):
        call = next(dialogue_agent()(task))
        assert isinstance(call, ModelCall)
        attempts: list[SubtaskRow] = []
        policy.start(request, task)
        placement = placed(policy, observation(call, request, attempts=attempts))
        made.append(placement)
        score = reward.get(placement._replace(reason=""), 0.1)
        attempts.append(SubtaskRow(
            request, 0, 0, 0 if placement.tier == "edge" else 1, 0, "ok", "exact", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0,
            0.1, 0.0, 10, 0, 10, 100.0, 100.0, "", score,
        ))  # fmt: skip
        policy.learn(ended(request))
    return made


@pytest.mark.parametrize("kind", [LinUcb, Thompson])
def test_bandits_learn_online_what_pays(kind: type[RoutingPolicy]) -> None:
    """They try several actions and end with the one that is graded well, whichever it is; the same seed makes the same choices."""
    for best in (Placement("edge", "", ()), Placement("cloud", "", ("overview",))):
        made = online(prepared(kind, STUDY, **RESPONSE), 150, {best: 0.9})
        assert len({p.modalities for p in made}) > 1
        late = [placement._replace(reason="") for placement in made[-40:]]
        assert late.count(best) >= 36
        assert made == online(prepared(kind, STUDY, **RESPONSE), 150, {best: 0.9})


def test_a_bandit_forgets_what_has_ended() -> None:
    """Nothing is kept of requests that have ended, and one that never was placed is no trouble."""
    policy = prepared(LinUcb, STUDY)
    assert isinstance(policy, LinUcb)
    online(policy, 5, {})
    policy.learn(ended(99))
    assert vars(policy.dialogues)["_open"] == vars(policy.dialogues)["_past"] == vars(policy.dialogues)["_seen"] == {}


@given(
    rows=st.lists(st.tuples(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.floats(-1, 1)), min_size=1, max_size=12),
    ridge=st.floats(0.1, 10),
)  # fmt: skip
@settings(max_examples=50)
def test_learning_row_by_row_is_ridge_regression(rows: list[tuple[list[float], float]], ridge: float) -> None:
    """Weights and uncertainty are those of the closed form (X'X + ridge I)^-1 X'y."""
    model = Linear(3, ridge)
    for features, value in rows:
        model.learn(np.array(features), value)
    x, y = np.array([features for features, _ in rows]), np.array([value for _, value in rows])
    inverse = np.linalg.inv(x.T @ x + ridge * np.eye(3))
    np.testing.assert_allclose(model.weights, inverse @ x.T @ y, atol=1e-8)
    point = np.array([0.3, -0.2, 0.9])
    assert model.width(point) == pytest.approx(math.sqrt(point @ inverse @ point), rel=1e-6)


def test_features_by_hand() -> None:
    """Shares of what is needed that goes along, is remembered, is missed; clutter, position, change of tier, expected costs."""
    attached = [Attachment(name, 1, 1) for name in NAMES]
    turn, past = Turn("?", "query", (0.8, 0.6, 0.6)), Past("edge", frozenset(NAMES[1:2]))
    action = Action("cloud", NAMES[:1])
    found = numbers(turn, attached, 2, past, action, Expected(5.0, 0.00685), Reward())
    assert found.tolist() == pytest.approx([1, 0.4, 0.3, 0.3, 0.2 / 3, 0.4, 1, 0.25, 0.5])
    assert len(found) == FEATURES
    assert past.after(action) == Past("cloud", frozenset(NAMES[:2]))
    down = numbers(turn, attached, 0, Past(), action, Expected(math.inf, 0.0), Reward())
    assert np.isfinite(down).all()


def test_rewards_learned_offline_are_those_of_the_reward() -> None:
    """Play tries all actions about alike; without weights a sample's reward is the drawn score, with them it is lower or higher."""
    plain = list(play(FixedAction(FixedAction.Options()), STUDY, Reward(0, 0, 0), 2))
    counts = Counter(sample.action for sample in plain)
    assert len(counts) == 9
    assert max(counts.values()) < 2 * min(counts.values())
    assert all(0.0 <= sample.reward <= 1.0 for sample in plain)
    priced = list(play(FixedAction(FixedAction.Options()), STUDY, Reward(0.0, 0.0, 0.5), 2))
    assert all(b.reward < a.reward for a, b in zip(plain, priced, strict=True))
    assert [s.action for s in plain] == [s.action for s in priced], "the same seed plays alike"


def test_decisions_do_not_depend_on_turns_to_come() -> None:
    """Policies that are no oracles place a turn alike whatever the user will ask next."""
    study = dialogue_study(12)
    changed = [
        dialogue_task(task.id, (turns_of(task)[0], Turn("Something else?", "diagnosis", (1.0, 1.0, 1.0))), task.attachments, task.family)
        for task in study.tasks
    ]  # fmt: skip
    for name in sorted(POLICIES):
        if name.startswith("tmo-"):
            one, other = (prepared(POLICIES[name], study) for _ in range(2))
            for request, tasks in enumerate(zip(study.tasks, changed, strict=True)):
                first, second = (
                    placed(policy, observation(next(in_turn(dialogue_agent()(task))), request))
                    for policy, task in zip((one, other), tasks, strict=True)
                )
                assert first == second, name


def test_learners_without_training_dialogues_say_so() -> None:
    """One message for policies that learn beforehand."""
    for kind in (ActionTable, Greedy):
        with pytest.raises(InputError, match="training_dialogues"):
            prepared(kind, STUDY._replace(training=None))


def test_tiers_that_see_are_offered_more_actions() -> None:
    """A small model that takes pictures has a subset of them to choose, too."""
    policy = ActionPolicy(ActionPolicy.Options())
    seeing = (TierView("edge", "slm", "tiny", multimodal=True), TIERS[1])
    assert len(policy.actions(seeing, STUDY.tasks[0])) == 16
    assert len(policy.actions(TIERS, STUDY.tasks[0])) == 9


def test_reward_options_become_the_reward() -> None:
    """Weights and the ranges that count as 1."""
    options = RewardOptions(association=0.1, latency=0.2, usage=0.3, latency_full_s=10.0, usage_full_usd=0.01)
    assert reward_of(options) == Reward(0.1, 0.2, 0.3, (0.0, 10.0), (0.0, 0.01))
    assert reward_of(RewardOptions()) == Reward()


def failing(task: Task) -> AgentRun:
    """An agent without turns of its own."""
    yield ModelCall(task, 0, (), 10, 400)
    raise AssertionError


def test_a_failed_turn_counts_as_nothing_got() -> None:
    """All attempts' seconds count; nobody answered, so the response is 0."""
    dialogues = Dialogues(Reward(0.0, 1.0, 0.0, (0.0, 10.0)))
    call = next(failing(STUDY.tasks[0]))
    assert isinstance(call, ModelCall)
    attempts: list[SubtaskRow] = []
    seen = observation(call, 7, attempts=attempts)
    dialogues.chose(seen, Action("cloud"), np.zeros(FEATURES))
    for number, status in enumerate(("rejected", "timeout")):
        begun_s, phases = 2.0 * number, (0.0,) * 8
        row = (
            7,
            0,
            number,
            1,
            0,
            status,
            "",
            begun_s,
            *phases,
            begun_s + 2.0,
            math.nan,
            0.0,
            0,
            0,
            0,
            0.0,
            0.0,
            "",
            math.nan,
        )
        attempts.append(SubtaskRow._make(row))
    assert [reward for _, reward in dialogues.ended(7)] == [pytest.approx(-0.4)]
