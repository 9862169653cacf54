"""Learners on the simulation: budgets that bind, the same weights for the same seed, and trainings that go on after a kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.loading import LoadedScenario
from sim.policies import build_policy
from sim.policies.threads import one_thread
from sim.simulation import simulate
from sim.tmo.card import CARD, WEIGHTS, Card, read_policy
from sim.tmo.constraint import Keep, Multipliers, Rule
from sim.tmo.environment import view_of
from sim.tmo.learning.checkpoint import NAME
from sim.tmo.learning.learners import LEARNERS, network_of
from sim.tmo.learning.training import Plan, train
from sim.tmo.learning.vector import PlacementVecEnv, PricedReplay
from sim.tmo.observing import Budget
from sim.tmo.reward import Reward
from sim.workload import build_workload, load_trace
from tests.tmo.dialogue_world import dialogues, environment
from workloads.errors import InputError

RESPONSE = Reward(association=0.0, latency=0.0, usage=0.0)
SHORT: dict[str, Any] = {
    "steps": 2048,
    "checkpoint_steps": 1024,
    "evaluation_episodes": 20,
    "dialogues": 200,
    "envs": 4,
}


def learned(
    loaded: LoadedScenario, out: Path, budgets: tuple[Budget, ...] = (), on_rollout: Callable[..., None] | None = None, **plan: Any
) -> Card:  # fmt: skip
    """Train on a scenario for the response alone."""
    view = view_of(loaded.scenario, loaded.path, budgets=budgets)
    return train(
        [variant.scenario for variant in loaded.variants], loaded.path, view, RESPONSE, Plan(**plan), out, on_rollout
    )


def dollars(value: float, high: float = 0.0) -> tuple[Budget, ...]:
    """A budget on dollars, or a range."""
    return (Budget("total_usd", value, high or value),)


# ------------------------------------------------------------------------------------------------------------ what binds

TIGHTER = (0.012, 0.008, 0.005)


@pytest.fixture(name="cards", scope="module")
def fixture_cards(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[float, Keep], Card]:
    """Policies trained for three budgets, and for the middle one without a multiplier."""
    folder, cards = tmp_path_factory.mktemp("binding"), {}
    wanted: list[tuple[float, Keep]] = [*((budget, "chance") for budget in TIGHTER), (0.008, "none")]
    for budget, keep in wanted:
        plan: dict[str, Any] = {"steps": 12_288, "rule": Rule(keep), "evaluation_episodes": 400}
        cards[budget, keep] = learned(dialogues(folder), folder / f"{budget}{keep}", dollars(budget), **plan)
    return cards


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_tighter_budget_lowers_use(cards: dict[tuple[float, Keep], Card]) -> None:
    """Dollars fall with the budget, the multipliers have moved, and with them at most 5 % of unseen requests go over."""
    spent = [cards[budget, "chance"].measured["total_usd"] for budget in TIGHTER]
    assert spent[0] > spent[1] > spent[2]
    for budget in TIGHTER:
        card = cards[budget, "chance"]
        assert card.multipliers[0][0] > 0.3
        assert card.measured["violation_rate"][0] <= 0.05


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_without_the_multiplier_the_budget_is_broken(cards: dict[tuple[float, Keep], Card]) -> None:
    """The same training sees the same budget and its costs, and spends more than half again as much."""
    free, bound = cards[0.008, "none"], cards[0.008, "chance"]
    assert free.multipliers == [[0.0]]
    assert free.measured["violation_rate"][0] > 0.2
    assert free.measured["total_usd"] > 1.5 * bound.measured["total_usd"]


def test_a_budget_below_the_cheapest_action_is_impossible(tmp_path: Path) -> None:
    """Half of the requests could not keep it whatever is done: said before any training, with what could be kept."""
    with pytest.raises(InputError, match=r"latency_s = 0.5: cannot be kept: the cheapest action \(cloud throughout\)"):
        learned(dialogues(tmp_path), tmp_path / "out", (Budget("latency_s", 0.5, 0.5),))
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------- every learner, every rule, again


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_same_seed_gives_the_same_weights(tmp_path: Path, learner: str) -> None:
    """To the bit; another seed gives others. What is written runs as a policy and holds no pickle."""
    loaded, names = dialogues(tmp_path), {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        learned(loaded, tmp_path / name, dollars(0.01), learner=learner, seed=seed, **SHORT)
        names[name] = (tmp_path / name / WEIGHTS).read_bytes()
    assert names["a"] == names["b"] != names["c"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [CARD, WEIGHTS]
    policy = build_policy("tmo", {"weights": str(tmp_path / "a")}, tmp_path)
    workload = build_workload(loaded.scenario, 1, loaded.path)
    records = simulate(loaded.scenario, workload, policy, 1, lambda file: load_trace(file, loaded.path))
    assert (records.requests["status"] == "completed").all()


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_training_that_was_killed_goes_on_as_if_nothing_had_happened(tmp_path: Path, learner: str) -> None:
    """Stopped after a checkpoint and repeated, it ends with the weights and multipliers of one that ran through."""
    loaded = dialogues(tmp_path)
    plan: dict[str, Any] = {"learner": learner, "rule": Rule("mean"), "dual_episodes": 20, **SHORT}
    whole = learned(loaded, tmp_path / "whole", dollars(0.003, 0.01), **plan)

    def stop(steps: int, env: PlacementVecEnv) -> None:
        if steps > 1300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned(loaded, tmp_path / "again", dollars(0.003, 0.01), stop if learner != "ppo" else stop_late, **plan)
    assert [path.name for path in (tmp_path / "again").iterdir()] == [NAME]
    again = learned(loaded, tmp_path / "again", dollars(0.003, 0.01), **plan)
    assert again.multipliers == whole.multipliers
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def stop_late(steps: int, env: PlacementVecEnv) -> None:
    """PPO's rollouts are 1024 steps long: the second ends at the training's end."""
    if steps > 2000:
        raise KeyboardInterrupt


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    """Another seed would go on with weights that are not its own."""
    loaded, out = dialogues(tmp_path), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        learned(loaded, out, dollars(0.01), stop_late, **SHORT)
    with pytest.raises(InputError, match="belongs to another training"):
        learned(loaded, out, dollars(0.01), seed=2, **SHORT)
    (out / NAME).write_text("not tensors")
    with pytest.raises(InputError, match="cannot be read"):
        learned(loaded, out, dollars(0.01), **SHORT)


def test_replayed_steps_are_priced_when_they_are_sampled(tmp_path: Path) -> None:
    """The multipliers have moved since a step was made: its reward is less what it costs now."""
    multipliers = Multipliers(Rule("mean"), [False])
    env = PlacementVecEnv([environment(dialogues(tmp_path), dollars(0.01))], multipliers, priced=False)
    replay = PricedReplay(10, env.observation_space, env.action_space, "cpu", multipliers=multipliers)
    before = env.reset()
    for _ in range(10):
        after, rewards, dones, infos = env.step(np.array([len(env.envs[0].view.actions) - 1]))
        replay.add(before, after, np.array([0]), rewards, dones, infos)
        before = after
    rows = np.arange(10)
    plain = replay._get_samples(rows).rewards.numpy()
    multipliers.values[0] = np.array([2.0])
    priced = replay._get_samples(rows).rewards.numpy()
    assert plain[:, 0] == pytest.approx(replay.rewards[:, 0])
    assert (plain - priced)[:, 0] == pytest.approx(2.0 * replay.signals[:, 0, 0], rel=1e-5)
    assert (replay.signals > 0).all()


def test_zero_reward_shaping_gives_nothing_beyond_the_budget(tmp_path: Path) -> None:
    """The authors' rule: once an episode is over its budget its steps are worth 0, and no multiplier moves."""
    env = PlacementVecEnv(
        [environment(dialogues(tmp_path), dollars(0.004), reward=RESPONSE)], Multipliers(Rule("zero"), [False])
    )
    env.reset()
    spent, seen = 0.0, set()
    for _ in range(60):
        _, rewards, dones, infos = env.step(np.array([len(env.envs[0].view.actions) - 1]))
        spent += infos[0]["costs"][0]
        assert (rewards[0] > 0) == (spent <= 0.004)
        seen.add(spent <= 0.004)
        spent = 0.0 if dones[0] else spent
    assert seen == {True, False}


def test_the_network_on_file_decides_as_the_learner(tmp_path: Path) -> None:
    """The plain arrays give the very actions that Stable-Baselines3's own model prefers."""
    from sim.tmo.learning.learners import build

    env = PlacementVecEnv([environment(dialogues(tmp_path), dollars(0.01))], Multipliers(Rule(), [False]))
    rng = np.random.default_rng(0)
    low, high = env.envs[0].view.bounds
    observations = rng.uniform(low, high, (200, len(low))).astype(np.float32)
    for learner in LEARNERS:
        with one_thread():
            model = build(learner, env, env.multipliers, 3, 1000)
            asked, _ = model.predict(observations, deterministic=True)
        network = network_of(model)
        assert (network(observations).argmax(axis=1) == asked).all()
        assert [int(network(row).argmax()) for row in observations[:20]] == asked[:20].tolist()


def test_trained_weights_come_with_their_card(tmp_path: Path) -> None:
    """What was trained, on what, for which budgets, and what it does on unseen requests."""
    learned(dialogues(tmp_path), tmp_path / "out", dollars(0.004, 0.016), rule=Rule("mean"), **SHORT)
    card, _ = read_policy(tmp_path / "out")
    assert (card.learner, card.scenario, card.decide, card.steps) == ("ppo", "dialogues", "greedy", 2048)
    assert card.view.budgets == dollars(0.004, 0.016)
    assert len(card.multipliers[0]) == Rule().knots
    assert card.measured["episodes"] == 20


def test_what_a_policy_spends_is_measured_where_the_mean_keeps_a_range_of_budgets(tmp_path: Path) -> None:
    """At every knot, on requests it learned from, and near what it spends on others; nothing for one budget, or one of each request."""
    loaded = dialogues(tmp_path)
    ranged = learned(
        loaded, tmp_path / "ranged", dollars(0.004, 0.016), rule=Rule("mean"), **{**SHORT, "evaluation_episodes": 100}
    )
    shown, spent = np.array(ranged.spends).T
    assert shown == pytest.approx(0.004 * 4 ** (np.arange(5) / 4), rel=1e-4)
    assert np.interp(0.008, shown, spent) == pytest.approx(ranged.measured["total_usd"], rel=0.25)
    for budgets, rule in ((dollars(0.01), Rule("mean")), (dollars(0.004, 0.016), Rule("chance"))):
        name = f"{rule.keep}-{len(budgets)}"
        assert learned(loaded, tmp_path / name, budgets, rule=rule, **SHORT).spends == []
