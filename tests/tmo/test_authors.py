from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from sim.tmo.authors import Setting, evaluated, values_of
from sim.tmo.authors_learning import load_network, policy_of, save_network, trained
from sim.tmo.logged import Layout, LoggedTurns, authors_split, fold, read_m4a1
from sim.tmo.recorded_walk import RecordedWalk, observed
from sim.tmo.responses import NearestNeighbours
from sim.tmo.turn_policies import best_by_kind, by_kind, fixed, greedy, mixed, walk
from tests.tmo.made_up_log import LAYOUT, made_up_log, truth
from workloads.errors import InputError

Find = Callable[[str], Path]


@pytest.fixture(name="turns")
def fixture_turns(shared_data: Find) -> LoggedTurns:
    """The published sample as the authors read it."""
    return read_m4a1(shared_data("m4a1/M4A1.json")).zeroed()


def test_costs_are_the_authors() -> None:
    """0.0114 s on a TX2 (their division by 1024 included), $7.9e-9 of electricity, and the cloud's constants by images."""
    setting = Setting(Layout(3, ("a",)))
    assert setting.latency_s[[0, 1, 2, 5, 8]] == pytest.approx([0.011429, 6.4603, 4.76134, 6.24569, 6.98211], rel=1e-4)
    assert setting.usage_usd[[0, 1, 2, 5, 8]] == pytest.approx([7.943e-9, 0.00049, 0.005, 0.00945, 0.01368], rel=1e-4)


def test_the_reward_is_the_papers() -> None:
    """Response plus a third of the association less thirds of both costs, each min-max over what there is to choose."""
    setting = Setting(Layout(3, ("a",)), network="wifi")
    known = setting.known(np.array([[0.2, 0.1, 0.3]]))[0]
    late, dear = setting.latency_s, setting.usage_usd
    late, dear = (late - late[0]) / (late[8] - late[0]), (dear - dear[0]) / (dear[8] - dear[0])
    assert known[0] == 0.0
    assert known[6] == pytest.approx((0.5 / 0.6 - late[6] - dear[6]) / 3)
    assert known[8] == pytest.approx(-1 / 3)


def test_local_greedy_and_table_reproduce_the_authors_code(turns: LoggedTurns) -> None:
    """On their seeds 1 to 3 (wired, TX2) their code gives .8686 for Local; a table by kind gives 1.083 and greedy 1.279."""
    setting, rewards = Setting(turns.layout), []
    for seed in (1, 2, 3):
        train, test = authors_split(turns, seed)
        model = NearestNeighbours().fit(train)
        values = values_of(setting, model)
        policies = [
            fixed(turns.layout, 0), by_kind(turns.layout, best_by_kind(train, values)), greedy(values),
            mixed(turns.layout, 0.5),
        ]  # fmt: skip
        rng = np.random.default_rng(seed)
        rewards.append([evaluated(setting, model, test, p, rng, repeats=20).reward for p in policies])
    local, table, best, random = np.mean(rewards, axis=0)
    assert local == pytest.approx(0.8686, abs=5e-5)
    assert (table, best) == (pytest.approx(1.083, abs=1e-3), pytest.approx(1.279, abs=1e-3))
    assert random == pytest.approx(0.793, abs=0.03)


def test_greedy_is_good_in_its_own_eyes_only(turns: LoggedTurns) -> None:
    """Judged by the table it maximises greedy is far above always-local; by the held-out dialogues' table it is no better."""
    setting, found = Setting(turns.layout), []
    for number in range(10):
        train, test = fold(turns, number % 5, seed=number // 5)
        own, held_out = NearestNeighbours().fit(train), NearestNeighbours().fit(test)
        policy, rng = greedy(values_of(setting, own)), np.random.default_rng(0)
        found.append([
            evaluated(setting, own, test, policy, rng).reward,
            evaluated(setting, held_out, test, policy, rng).reward,
            evaluated(setting, held_out, test, fixed(turns.layout, 0), rng).reward,
        ])  # fmt: skip
    own_eyes, others, local = np.mean(found, axis=0)
    assert own_eyes > 1.25
    assert others < local + 0.02
    assert own_eyes > others + 0.4


def test_budgets_are_judged_over_all_dialogues(turns: LoggedTurns) -> None:
    """The share over budget and the mean excess count every dialogue, those within included."""
    setting = Setting(turns.layout, latency_budget_s=20.0, usage_budget_usd=1.0)
    _, test = fold(turns, 0)
    found = evaluated(setting, NearestNeighbours().fit(test), test, fixed(turns.layout, 8), np.random.default_rng(0))
    length = np.bincount(test.dialogue)[test.dialogues]
    seconds = length * setting.latency_s[8]
    assert found.over_budget == pytest.approx((seconds > 20).mean())
    assert found.excess_s == pytest.approx(np.maximum(seconds - 20, 0).mean())
    assert found.latency_s == pytest.approx(seconds.mean())
    assert found.excess_usd == 0.0


def test_a_walk_meets_its_own_consequences() -> None:
    """The state of each turn holds what the policy itself did before, not what the log did."""
    log = made_up_log(30, np.random.default_rng(0), truth())
    walked = walk(log, fixed(LAYOUT, 4), np.random.default_rng(1))
    later = log.position > 0
    previous = walked.features[:, LAYOUT.history - 4 : LAYOUT.history - 1]
    assert (previous[later] == [1, 1, 1]).all()
    assert (previous[~later] == [-1, 0, 0]).all()
    assert (walked.features[:, LAYOUT.history - 1] == log.kind).all()
    again = walk(log, mixed(LAYOUT, 0.5), np.random.default_rng(1))
    assert (again.action == walk(log, mixed(LAYOUT, 0.5), np.random.default_rng(1)).action).all()
    assert np.mean(again.action == 0) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("budgets", [False, True])
def test_the_recorded_walk_is_a_gymnasium_environment(turns: LoggedTurns, *, budgets: bool) -> None:
    """Gymnasium's checker finds nothing; the seed decides the episodes; states are the log's whatever is done."""
    setting = Setting(turns.layout)
    model = NearestNeighbours().fit(turns)
    environment = RecordedWalk(setting, model, turns, budgets=budgets)
    check_env(environment, skip_render_check=True)
    episodes = []
    for action in (0, 8):
        state, _ = environment.reset(seed=3)
        states, ended = [state[:25].tolist()], False
        while not ended:
            state, _, ended, _, _ = environment.step(np.int64(action))
            states.append(state[:25].tolist())
        episodes.append(states)
    assert episodes[0] == episodes[1]


def test_with_budgets_what_is_left_is_seen_and_overrunning_earns_nothing(turns: LoggedTurns) -> None:
    """The last two numbers fall by the action's costs; beyond a budget a turn is worth 0; in an evaluation they follow the walk."""
    setting = Setting(turns.layout)
    environment = RecordedWalk(setting, NearestNeighbours().fit(turns), turns, budgets=True)
    for seed in range(20):
        state, _ = environment.reset(seed=seed)
        ended, left = False, state[25:]
        while not ended:
            state, reward, ended, _, _ = environment.step(np.int64(8))
            left = left - [setting.latency_s[8], setting.usage_usd[8]]
            assert (reward == 0.0) == bool((left < 0).any())
            if not ended:
                assert state[25:] == pytest.approx(left, rel=1e-5, abs=1e-6)
    walked = walk(turns, fixed(turns.layout, 8), np.random.default_rng(0))
    seen = observed(setting, walked.features, budgets=True)
    assert seen[:, 25] == pytest.approx(30.0 - turns.position * setting.latency_s[8])
    assert seen[:, 26] == pytest.approx(0.05 - turns.position * setting.usage_usd[8])


@pytest.mark.timeout(900)  # PPO alone takes 25 s of a core, which may be shared
@pytest.mark.parametrize("learner", ["DQN", *(pytest.param(name, marks=pytest.mark.slow) for name in ("PPO", "A2C"))])
def test_a_trained_policy_is_kept_without_pickle(learner: str, turns: LoggedTurns, tmp_path: Path) -> None:
    """The arrays that are kept choose what Stable-Baselines3's own policy of the same seed chooses, also after saving."""
    import stable_baselines3

    setting, model = Setting(turns.layout), NearestNeighbours().fit(turns)
    network = trained(learner, RecordedWalk(setting, model, turns), seed=5, steps=300)
    algorithm = getattr(stable_baselines3, learner)(
        "MlpPolicy", RecordedWalk(setting, model, turns), seed=5, device="cpu"
    )
    algorithm.learn(300)
    theirs, _ = algorithm.predict(turns.features[:, :25].astype(np.float32), deterministic=True)
    save_network(network, tmp_path / "policy.npz")
    ours = policy_of(load_network(tmp_path / "policy.npz"), setting)(turns.features).argmax(axis=1)
    assert np.mean(ours == theirs) > 0.99
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    with pytest.raises(InputError, match="is no saved policy"):
        load_network(tmp_path / "broken.npz")


def test_a_setting_that_cannot_be_is_refused() -> None:
    """Unknown devices and networks, more images than the authors have costs for, impossible budgets: one message each."""
    layout = Layout(3, ("a",))
    with pytest.raises(InputError, match=r"device: 'TX2' is not among the authors'.*Jetson TX2"):
        Setting(layout, device="TX2")
    with pytest.raises(InputError, match="Did you mean '5g'"):
        Setting(layout, network="5G")
    with pytest.raises(InputError, match="costs end at 3 images, the dialogues have 4"):
        Setting(Layout(4, ("a",)))
    with pytest.raises(InputError, match="usage_budget_usd: 0 is no budget"):
        Setting(layout, usage_budget_usd=0.0)
    with pytest.raises(InputError, match="latency_budget_s: nan is no budget"):
        Setting(layout, latency_budget_s=float("nan"))
