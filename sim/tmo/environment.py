"""A Gymnasium environment that steps the one simulation: a decision of one request is a pending event, `step` makes it happen.

There is no second world. `simulate` runs the very same processes, links, servers and ledger with a policy that answers at once; here
the policy leaves the decisions of one request at a time to whoever calls `step`. Requests arrive one after another in one long
simulation, and when it is over the next one begins with another seed.

An episode is one request. The next one is the first to arrive after it; requests that arrive meanwhile are load, placed by the
`background` policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt

from sim.environment import fire
from sim.policies.base import Placement, RoutingPolicy
from sim.records import Records, RequestRow
from sim.scenario import Scenario
from sim.simulation import Simulation, collect, prepare
from sim.study import rates_of, tier_views
from sim.tmo.actions import action_set, placement
from sim.tmo.focus import AnyAction, Focus
from sim.tmo.observing import DEFAULT_PARTS, Budget, Dialogue, Observer, Vector, View
from sim.tmo.reward import Reward, association_norm
from sim.workload import BuiltWorkload, build_workload, load_trace
from workloads.dialogue import is_dialogue, turns_of
from workloads.task import Task

Costs = npt.NDArray[np.float64]


class Episode(NamedTuple):
    """A finished episode: the request's row, what it cost by item, and its rewards and actions by turn."""

    row: RequestRow
    costs: tuple[float, ...]
    rewards: tuple[float, ...]
    actions: tuple[int, ...]


class PlacementEnv(gymnasium.Env[Vector, np.int64]):
    """Places the turns of one request an episode.

    `info["costs"]` is what the last turn cost, shape (items,), by `cost_items`: the budgets' items first. Costs are never part of the
    reward but through its own weights. With budgets, `info["budgets"]` are this episode's, drawn evenly on a logarithmic scale
    where the view gives a range. Where no turn is graded, the request's score counts at its end. `info["episode"]` of the last step
    is an Episode.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own name and type

    def __init__(
        self, scenario: Scenario, path: Path, view: View, reward: Reward, *, background: RoutingPolicy | None = None,
        decision_s: float = 0.0, seed: int = 0, build: Callable[[int], BuiltWorkload] | None = None,
    ) -> None:  # fmt: skip
        self.scenario, self.view, self.reward = scenario, view, reward
        self._path = path
        self._build = build or partial(build_workload, scenario, scenario_path=path)
        """(seed) -> the simulation's workload; by default what a run under that seed would ask."""
        self.observer = Observer(view, ("latency_s", "total_usd", reward.usage_item))
        self.cost_items = self.observer.items
        self._latency, self._usage = (self.cost_items.index(item) for item in ("latency_s", reward.usage_item))
        self.observation_space = gymnasium.spaces.Box(*view.bounds, dtype=np.float32)
        self.action_space = gymnasium.spaces.Discrete(len(view.actions))
        self._placements = [placement(action, str(action)) for action in view.actions]
        self.focus = Focus(background or AnyAction(view.actions), decision_s)
        self._simulation: Simulation | None = None
        self._begun, self._seed = 0, seed
        self._budget_rng = np.random.default_rng(seed)
        self._uploaded: dict[tuple[str, ...], list[list[int]]] = {}
        self._uploads: list[list[int]] = []
        """By action: which of the request's attachments it uploads."""
        self._dialogue: Dialogue | None = None
        self._vector = np.zeros(self.observation_space.shape, np.float32)
        self._rewards: list[float] = []
        self._actions: list[int] = []
        self._graded = False

    # ----------------------------------------------------------------------------------------------------------- Gymnasium

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Vector, dict[str, Any]]:  # fmt: skip
        """Go to the next request's first turn. With a seed: begin the sequence of simulations that belongs to it."""
        super().reset(seed=seed)
        if seed is not None:
            self._seed, self._begun, self._simulation = seed, 0, None
            self._budget_rng = np.random.default_rng([seed, 1])
        focus = self.focus
        if focus.decision is not None and self._simulation is not None:  # left in the middle of an episode
            self._give_up()
        focus.release()
        while focus.seen is None:
            if self._simulation is None or self._simulation.done.triggered:
                self._begin()
            focus.release()
            self._run()
        self._uploads = self._uploads_of(focus.seen.call.task)
        self._dialogue = self.observer.begin(self._draw_budgets())
        self._rewards, self._actions, self._graded = [], [], False
        self._vector = self.observer.see(self._dialogue, focus.seen)
        return self._vector, self._info((0.0,) * len(self.cost_items))

    def step(self, action: np.int64 | int) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        """Place the turn and run the world to the request's next turn, or to its end."""
        focus, dialogue, chosen = self.focus, self._dialogue, int(action)
        seen, decision = focus.seen, focus.decision
        if dialogue is None or seen is None or decision is None:
            raise gymnasium.error.ResetNeeded("reset comes first")
        self.observer.act(dialogue, chosen)
        turn, first = dialogue.turn, len(seen.attempts)
        before = dialogue.spent
        focus.seen = focus.decision = None
        fire(decision, self._placements[chosen])
        self._run()
        if focus.seen is not None:
            self._vector = self.observer.see(dialogue, focus.seen)
        else:
            self.observer.settle(dialogue, seen.attempts, seen.signals)
        costs = tuple(map(float.__sub__, dialogue.spent, before))
        response = math.nan
        for row in seen.attempts[first:]:
            if row.status == "ok" and row.tier >= 0:
                response = row.score
        fit = 0.0
        if self.reward.association:
            fit = association_norm(turn.associations, self._uploads[chosen])
        reward = self.reward.of(response, fit, costs[self._latency], costs[self._usage])
        ended = focus.ended
        self._graded |= response == response
        if ended is not None and not self._graded:
            reward += ended.score
        self._rewards.append(reward)
        self._actions.append(chosen)
        info = self._info(costs)
        if ended is not None:
            info["episode_end"] = Episode(ended, tuple(dialogue.spent), tuple(self._rewards), tuple(self._actions))
        return self._vector, reward, ended is not None, False, info

    def records(self) -> Records:
        """The records so far of the simulation under way, as `simulate` would give them: only for requests that have ended."""
        assert self._simulation is not None, "reset comes first"
        return collect(self.scenario, self._simulation)

    @property
    def simulation_seed(self) -> int:
        """The scenario seed of the simulation under way."""
        return simulation_seed(self._seed, self._begun - 1)

    # --------------------------------------------------------------------------------------------------------- the one world

    def _begin(self) -> None:
        seed = simulation_seed(self._seed, self._begun)
        self._begun += 1
        workload = self._build(seed)
        focus = self.focus
        self._simulation = prepare(self.scenario, workload, focus, seed, lambda file: load_trace(file, self._path))
        focus.attach(self._simulation.env)
        self._simulation.done.callbacks.append(self._simulation.env.pause)

    def _run(self) -> None:
        """Run until a decision is pending, the request in focus has ended, or the simulation has."""
        simulation = self._simulation
        assert simulation is not None
        simulation.env.proceed()

    def _give_up(self) -> None:
        """Leave the rest of the request to the background."""
        focus = self.focus
        seen, decision = focus.seen, focus.decision
        assert seen is not None
        assert decision is not None
        focus.release()
        focus.focus = -1  # nobody's turn: arrivals from here to the next reset are load
        answer = focus.background.place(seen)
        assert isinstance(answer, Placement)
        fire(decision, answer)

    def _draw_budgets(self) -> list[float]:
        rng = self._budget_rng
        return [low if low == high else float(low * (high / low) ** rng.random()) for _, low, high in self.view.budgets]

    def _info(self, costs: tuple[float, ...]) -> dict[str, Any]:
        assert self._dialogue is not None
        return {"costs": np.array(costs), "budgets": self._dialogue.budgets}

    def _uploads_of(self, task: Task) -> list[list[int]]:
        names = tuple([attachment.name for attachment in task.attachments])
        found = self._uploaded.get(names)
        if found is None:
            found = [[i for i, name in enumerate(names) if name in action.modalities] for action in self.view.actions]
            self._uploaded[names] = found
        return found


def simulation_seed(seed: int, number: int) -> int:
    """The scenario seed of a learner's simulation: none is one that scenarios name."""
    return int(np.random.SeedSequence([seed, number, 0x7A10]).generate_state(1)[0]) + 2**32


def view_of(
    scenario: Scenario, path: Path, parts: Sequence[str] = DEFAULT_PARTS, budgets: Sequence[Budget] = (), most: int | None = None
) -> View:  # fmt: skip
    """What can be done and seen in a scenario: its tiers, the modalities and categories of its tasks."""
    tasks = build_workload(scenario, scenario.seeds[0], path).tasks
    modalities = dict.fromkeys(attachment.name for task in tasks for attachment in task.attachments)
    dialogues = [turns_of(task) for task in tasks if is_dialogue(task)]
    kinds = {turn.kind for turns in dialogues for turn in turns} or {task.family for task in tasks}
    actions = action_set(tier_views(scenario, rates_of(scenario)), tuple(modalities), most)
    most_turns = max(map(len, dialogues), default=12)
    return View(actions, tuple(sorted(kinds)), tuple(parts), tuple(budgets), most_turns)
