"""The learning environment is the simulation: same rewards and costs, seeded, within its bounds, accepted by both checkers."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sim.policies.base import Observation, PolicyOptions
from sim.policies.tmo.learned import NetworkPolicy
from sim.records import Records
from sim.simulation import simulate
from sim.tmo.environment import Episode, PlacementEnv
from sim.tmo.evaluation import play, rewards_of_records
from sim.tmo.observing import PARTS, Budget, Observer, View
from sim.tmo.reward import Reward
from sim.workload import build_workload, load_trace
from tests.helpers import load_text
from tests.policies import IdleSignals
from tests.tmo.dialogue_world import dialogues, environment, random_network, untrained
from workloads.dialogue import Turn, dialogue_task
from workloads.task import Attachment, ModelCall

STEPS = """
name: steps
workload: {tasks: {kind: modelled, tool_s: 0.3}, requests: 25, arrivals: {kind: poisson, rate_per_s: 0.1}}
tiers:
  edge: {role: slm, model: llama-3.2-3b-int4, device: jetson-orin-nx}
  cloud: {role: llm, model: gpt-4o, endpoint: gpt-4o-class}
links: [{between: [home, edge], link: wifi}, {between: [edge, cloud], link: wired}]
client: {timeout_s: 25, signal_age_s: 2}
sla: {deadline_s: 15, penalty_usd: 0.01}
policies: [all-slm]
seeds: [1]
"""
ITEMS = ("latency_s", "total_usd", "energy_j")


def network_policy(env: PlacementEnv, seed: int = 0, decide: str = "greedy") -> NetworkPolicy:
    """A policy of random weights with the environment's decision time."""
    budgets = [budget.low for budget in env.view.budgets]
    options = PolicyOptions(decision_s=env.focus.options.decision_s)
    return NetworkPolicy(untrained(env.view, decide=decide), random_network(env.view, seed), budgets, options)


def one_simulation(env: PlacementEnv, policy: NetworkPolicy, seed: int) -> list[Episode]:
    """Every episode of the first simulation of a seed."""
    observation, _ = env.reset(seed=seed)
    first, found = env.simulation_seed, []
    while env.simulation_seed == first:
        seen = env.focus.seen
        assert seen is not None
        observation, _, ended, _, info = env.step(policy.choose(observation, seen.request, seen.call.position))
        if ended:
            found.append(info["episode_end"])
            observation, _ = env.reset()
    return found


def replayed(env: PlacementEnv, policy: NetworkPolicy, path: Path, seed: int) -> Records:
    """What `run` makes of the same policy under the same scenario seed."""
    workload = build_workload(env.scenario, seed, path)
    return simulate(env.scenario, workload, policy, seed, lambda file: load_trace(file, path))


@pytest.mark.parametrize("decide", ["greedy", "sample"])
def test_a_run_gives_the_environments_rewards_and_costs(tmp_path: Path, decide: str) -> None:
    """One dynamics: turn by turn the records of a run under load say what the environment said, to 1e-9."""
    loaded = dialogues(tmp_path, "workload.arrivals.rate_per_s=0.15", "client.signal_age_s=3")
    budgets = [Budget("total_usd", 0.01, 0.01), Budget("energy_j", 50.0, 50.0)]
    env = environment(loaded, budgets, decision_s=0.01)
    policy = env.focus.background = network_policy(env, decide=decide)
    episodes = one_simulation(env, policy, seed=7)
    seed = env_seed(env, 7)
    records = replayed(env, network_policy(env, decide=decide), loaded.path, seed)
    requests = build_workload(loaded.scenario, seed, loaded.path).requests
    turns = rewards_of_records(records.subtasks, requests, env.view, env.reward)
    assert 10 < len(episodes) < 60  # the others arrived while one of these was under way
    for episode in episodes:
        request = episode.row.request
        assert turns["reward"][turns["request"] == request] == pytest.approx(episode.rewards, abs=1e-9)
        costs = dict(zip(env.cost_items, episode.costs, strict=True))
        for item in ITEMS:
            assert costs[item] == pytest.approx(records.requests[item][request], abs=1e-9)
        assert episode.row.score == pytest.approx(records.requests["score"][request], abs=1e-9)


def test_ungraded_turns_leave_the_requests_score(tmp_path: Path) -> None:
    """Where no turn is graded the request's score counts once, at its end; timeouts and tools are in the costs all the same."""
    loaded = load_text(tmp_path, STEPS)
    env = environment(loaded, reward=Reward(0.0, 0.0, 0.0))
    env.focus.background = network_policy(env)
    episodes = one_simulation(env, network_policy(env), seed=3)
    records = replayed(env, network_policy(env), loaded.path, env_seed(env, 3))
    for episode in episodes:
        assert sum(episode.rewards) == pytest.approx(records.requests["score"][episode.row.request])
        assert episode.costs[0] == pytest.approx(records.requests["latency_s"][episode.row.request], abs=1e-9)
    assert {str(episode.row.status) for episode in episodes} == {"completed", "timeout"}


def env_seed(env: PlacementEnv, seed: int) -> int:
    """The scenario seed of a sequence's first simulation."""
    env.reset(seed=seed)
    return env.simulation_seed


# ------------------------------------------------------------------------------------------------------------- the interface


@pytest.mark.parametrize("world", ["dialogues", "steps"])
def test_both_checkers_accept_it(tmp_path: Path, world: str) -> None:
    """Gymnasium's and Stable-Baselines3's, without a warning."""
    loaded = dialogues(tmp_path) if world == "dialogues" else load_text(tmp_path, STEPS)
    budgets = [Budget("latency_s", 10.0, 40.0), Budget("total_usd", 0.01, 0.01)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(environment(loaded, budgets), skip_render_check=True)
        sb3_check_env(environment(loaded, budgets))


def test_it_can_be_vectorised(tmp_path: Path) -> None:
    """Three at a time under Gymnasium's vector interface, each with its own sequence."""
    loaded = dialogues(tmp_path)
    width = len(environment(loaded).view.bounds[0])
    many = gymnasium.vector.SyncVectorEnv([lambda: environment(loaded) for _ in range(3)])
    first, _ = many.reset(seed=5)
    assert len({row.tobytes() for row in first}) == 3
    for _ in range(20):
        observations, rewards, *_ = many.step(many.action_space.sample())
    assert observations.shape == (3, width)
    assert np.isfinite(rewards).all()


def trace(env: PlacementEnv, seed: int, steps: int = 60) -> list[Any]:
    """Observations and rewards under chance actions that depend on the seed alone."""
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=seed)
    rows: list[Any] = [observation.tolist()]
    for _ in range(steps):
        observation, reward, ended, _, info = env.step(int(rng.integers(len(env.view.actions))))
        rows.append((observation.tolist(), reward, info["costs"].tolist()))
        if ended:
            rows.append(env.reset()[0].tolist())
    return rows


def test_a_seed_decides_the_sequence_of_episodes(tmp_path: Path) -> None:
    """Same seed, same episodes, whatever was played before; another seed, others. Simulations follow one another."""
    loaded = dialogues(tmp_path, "workload.requests=6")
    env = environment(loaded, [Budget("latency_s", 5.0, 50.0)])
    first = trace(env, 3)
    assert trace(env, 4) != first
    assert trace(env, 3) == first
    assert trace(environment(loaded, [Budget("latency_s", 5.0, 50.0)]), 3) == first


def test_an_episode_left_early_goes_to_the_background(tmp_path: Path) -> None:
    """A reset in the middle of an episode begins the next request, and the one left behind still ends."""
    env = environment(dialogues(tmp_path))
    env.reset(seed=1)
    assert env.focus.seen is not None
    left = env.focus.seen.request
    env.reset()
    assert env.focus.seen.request > left
    play(env, lambda *_: 0, 20, seed=1)
    env.reset(seed=1)
    env.reset()
    for _ in range(40):
        if env.step(0)[2]:
            env.reset()
    assert left in env.records().requests["request"]


def test_records_before_the_end_are_of_requests_that_have_ended(tmp_path: Path) -> None:
    """In the middle of an episode its turns so far are in neither table, and the costs of the others are their own."""
    env = environment(dialogues(tmp_path))
    env.reset(seed=1)
    while not env.step(0)[2]:
        pass
    env.reset()
    env.step(0)
    records = env.records()
    (ended,) = records.requests["request"]
    assert set(records.subtasks["request"]) == {ended}
    assert records.requests["total_usd"] == pytest.approx([records.subtasks["total_usd"].sum()])


def test_a_step_before_the_reset_says_so(tmp_path: Path) -> None:
    """Gymnasium's own error."""
    with pytest.raises(gymnasium.error.ResetNeeded):
        environment(dialogues(tmp_path)).step(0)


# ------------------------------------------------------------------------------------------------------------ what is observed


def test_the_learners_own_actions_make_its_next_state(tmp_path: Path) -> None:
    """The action just taken is in the next observation's history, and nobody else's."""
    env = environment(dialogues(tmp_path), parts=("history",))
    for action, shown in enumerate(env.view.actions):
        env.reset(seed=2)
        observation = env.step(action)[0]
        tiers, modalities, kinds = len(env.view.tiers), len(env.view.modalities), len(env.view.kinds)
        latest = observation[4 * (tiers + modalities + kinds) :][: tiers + modalities]
        assert latest.tolist() == [
            *(float(tier == shown.tier) for tier in env.view.tiers),
            *(float(name in shown.modalities) for name in env.view.modalities),
        ]


class Wild(IdleSignals):
    """Signals of a system that is down, or faster than light."""

    def __init__(self, value: float) -> None:
        self.value = value

    def wait_s(self, tier: str) -> float:
        """Whatever."""
        return self.value

    def transfer_s(self, tier: str, upload_bytes: float, download_bytes: float, home: int = 0) -> float:
        """Whatever, growing with the bytes."""
        return self.value * (1 + upload_bytes)


@pytest.mark.parametrize("value", [0.0, 1e-12, 1.0, 1e12, math.inf])
def test_no_observation_leaves_its_bounds(tmp_path: Path, value: float) -> None:
    """Outages, empty and huge attachments, spent budgets, unknown kinds, positions beyond the last: every number stays inside."""
    base = environment(dialogues(tmp_path)).view
    view = View(
        base.actions, base.kinds, tuple(PARTS), (Budget("latency_s", 1e-3, 1e3), Budget("total_usd", 1.0, 1.0)), 3
    )
    low, high = view.bounds
    observer = Observer(view)
    dialogue = observer.begin([value if 0 < value < math.inf else 1.0, 1e-9])
    dialogue.spent[1] = 1e9
    names = base.modalities
    for position in range(12):
        size = [0, 10**12][position % 2]
        attachments = [Attachment(name, size) for name in names]
        task = dialogue_task("d", [Turn("why?", "never heard of", (1.0,) * len(names))], attachments)
        call = ModelCall(task, position, (), 10**9, 10**9)
        seen = Observation(0, call, 1e6 * value, 0.0, 60.0, (), "local", "cloud", (), Wild(value))
        if not math.isfinite(seen.now_s):
            seen = seen._replace(now_s=1e300)
        vector = observer.see(dialogue, seen)
        observer.act(dialogue, position % len(view.actions))
        assert vector.dtype == np.float32
        assert ((low <= vector) & (vector <= high)).all()
