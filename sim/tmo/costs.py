"""What equal answers cost under other ledgers: `run_sim.py tmo costs`.

Each ledger puts something on a scenario's bill that the scenario itself leaves out. Under each, the same mean score of a turn is bought
by the optimum, by a policy trained under that ledger, and by both as they are when only the scenario's own bill is known. A price moves
no event, so what the latter did is billed anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sim.cells import resolved
from sim.cost import ledger, sla_penalties
from sim.loading import LoadedScenario, load_scenario
from sim.policies import build_policy
from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy, Study
from sim.records import Records, RequestRow
from sim.run_store import key_of
from sim.scenario import Scenario
from sim.study import rates_of
from sim.tmo.constraint import Rule
from sim.tmo.environment import view_of
from sim.tmo.kept import kept_policy, save_json, simulated
from sim.tmo.observing import DEFAULT_PARTS, Budget
from sim.tmo.reward import Reward
from workloads.task import Task

LEDGERS: dict[str, tuple[str, ...]] = {
    "API alone": (),
    "+ energy": ("pricing.other.electricity_usd_per_kwh=0.426", "pricing.other.carbon_usd_per_tonne=70"),
    "+ transfer": ("links.0.link.transfer_usd_per_gbyte=6",),
    "+ device": ("tiers.local.device.price_usd=699", "pricing.other.hardware_utilisation=0.02"),
    "+ late answers": ("sla.penalty_usd=0.01",),
}
"""Settings of a scenario by name: German households and EU emissions (profile `high-electricity`, `eu`), mobile data in the United States
(profile `4g-metered`), a Jetson that works half an hour a day, a cent for every dialogue beyond its deadline."""
LEDGERS["all of them"] = tuple(setting for settings in LEDGERS.values() for setting in settings)
ITEMS = {
    "API": ("api_input_usd", "api_cached_usd", "api_output_usd"),
    "energy": ("energy_usd", "carbon_usd"),
    "transfer": ("transfer_usd",),
    "device": ("hardware_usd",),
}
PENALTY = "late answers"
HASTE = 1.0
"""Weight of latency with which policies are made besides, where late answers cost: a second takes 0.05 off a turn's score."""
_SEED = 101


class Point(NamedTuple):
    """A policy's run: mean score of a turn, mean $ of a dialogue by item, and each action's share of the turns."""

    score: float
    usd: Mapping[str, float]
    actions: Mapping[str, float]

    @property
    def total_usd(self) -> float:
        """All items."""
        return math.fsum(self.usd.values())


class Noted(RoutingPolicy):
    """Another policy, whose actions are counted: the tier, and how many modalities go along."""

    def __init__(self, policy: RoutingPolicy, small: str) -> None:
        super().__init__(PolicyOptions(decision_s=getattr(policy.options, "decision_s", 0.0)))
        self._policy, self._small = policy, small
        self.actions: dict[str, int] = {}

    def prepare(self, study: Study) -> None:
        """As the other."""
        self._policy.prepare(study)

    def start(self, request: int, task: Task) -> None:
        """As the other."""
        self._policy.start(request, task)

    def place(self, seen: Observation) -> Placement:
        """As the other; one that names no modalities sends all."""
        placed = self._policy.place(seen)
        assert isinstance(placed, Placement)
        sent = len(seen.call.task.attachments if placed.modalities is None else placed.modalities)
        action = "on board" if placed.tier == self._small else f"cloud, {sent} sent along"
        self.actions[action] = self.actions.get(action, 0) + 1
        return placed

    def learn(self, row: RequestRow) -> None:
        """As the other."""
        self._policy.learn(row)


def bill(records: Records, scenario: Scenario) -> dict[str, float]:
    """Mean $ of a request by item, as this scenario's ledger has it: the run may have been made under another."""
    rates = rates_of(scenario)
    charged = ledger(records.subtasks, [rates[name] for name in scenario.tiers], scenario.pricing.other)
    count = len(records.requests["request"])
    found = {item: float(sum(np.sum(charged[column]) for column in columns)) / count for item, columns in ITEMS.items()}
    requests = records.requests
    late = sla_penalties(
        requests["end_s"] - requests["arrival_s"], requests["status"] == "completed", scenario.sla.deadline_s, scenario.sla.penalty_usd
    )  # fmt: skip
    return {**found, PENALTY: float(late.mean())}


def cheapest_mix(points: Sequence[Point], score: float) -> Point | None:
    """The cheapest way to this mean score: a policy, or one of two for each dialogue by chance. None where it is out of reach."""
    mixes = []
    for low in points:
        for high in points:
            if low.score <= score <= high.score:
                share = 0.0 if high.score == low.score else (score - low.score) / (high.score - low.score)
                mixes.append(Point(score, _mixed(low.usd, high.usd, share), _mixed(low.actions, high.actions, share)))
    return min(mixes, key=lambda point: point.total_usd, default=None)


def _mixed(low: Mapping[str, float], high: Mapping[str, float], share: float) -> dict[str, float]:
    return {name: (1 - share) * low.get(name, 0.0) + share * high.get(name, 0.0) for name in {**low, **high}}


class Bills:
    """Runs policies on a scenario and bills them under its ledgers; runs and trained policies are kept in `folder`."""

    def __init__(
        self, path: Path, settings: Sequence[str], folder: Path, budgets: Sequence[float], steps: int,
        ledgers: Mapping[str, Sequence[str]] = LEDGERS,
    ) -> None:  # fmt: skip
        self._folder, self._budgets, self._steps = folder, tuple(sorted(budgets)), steps
        self.worlds: dict[str, LoadedScenario] = {
            name: load_scenario(path, [*settings, *own]) for name, own in ledgers.items()
        }

    def rows(self, score: float) -> Iterator[dict[str, Any]]:
        """What this mean score of a turn costs under each ledger, by who buys it."""
        plain = next(iter(self.worlds))
        for name, world in self.worlds.items():
            buyers = {"optimum": ("oracle", name), "trained": ("trained", name), "optimum, API bill": ("oracle", plain),
                      "trained, API bill": ("trained", plain)}  # fmt: skip
            for buyer, (kind, known) in buyers.items():
                if name == plain and known == plain and buyer.endswith("bill"):
                    continue
                hastes = (0.0, HASTE) if known == name and world.scenario.sla.penalty_usd else (0.0,)
                points = [self._point(kind, known, name, budget, haste) for haste in hastes for budget in self._budgets]
                found = cheapest_mix(points, score)
                if found is not None:
                    yield {
                        "ledger": name,
                        "policy": buyer,
                        "total_usd": found.total_usd,
                        "usd": found.usd,
                        "actions": found.actions,
                    }

    def _point(self, kind: str, known: str, billed: str, budget: float, haste: float) -> Point:
        """A policy that knows one ledger and keeps a budget under it, billed under another. One run is billed under all of them."""
        world = self.worlds[known]
        payers = {name: other.scenario for name, other in self.worlds.items()}
        key = key_of(
            kind, resolved(world.scenario), [*map(resolved, payers.values())], budget, haste, self._steps, self._budgets
        )[:12]
        path = self._folder / "bills" / f"{key}.json"
        if not path.exists():
            if kind == "oracle":
                policy = build_policy("oracle-dialogues", {"budget": budget, "latency": haste}, Path())
            else:
                policy = build_policy("tmo", {"weights": self._trained(known, haste), "budget": budget}, Path())
            points = _run(policy, world, payers)
            save_json(path, {name: point._asdict() for name, point in points.items()})
        return Point(**json.loads(path.read_text())[billed])

    def _trained(self, known: str, haste: float) -> str:
        from sim.tmo.learning.training import Plan

        world = self.worlds[known]
        budget = Budget("total_usd", self._budgets[0], self._budgets[-1])
        view = view_of(world.scenario, world.path, DEFAULT_PARTS, [budget])
        reward = Reward(association=0.0, latency=haste, usage=0.0)
        plan = Plan("ppo", self._steps, rule=Rule("mean"), evaluation_episodes=100)
        return kept_policy(self._folder, [world.scenario], world.path, view, reward, plan)


def _run(policy: RoutingPolicy, world: LoadedScenario, payers: Mapping[str, Scenario]) -> dict[str, Point]:
    """One run, billed under every ledger."""
    scenario = world.scenario
    small = next(name for name, tier in scenario.tiers.items() if tier.role == "slm")
    noted = Noted(policy, small)
    records = simulated(scenario, world.path, noted, _SEED)
    answered = records.subtasks["status"] == "ok"
    turns = sum(noted.actions.values())
    score = float(np.nansum(records.subtasks["score"][answered])) / turns
    shares = {name: count / turns for name, count in sorted(noted.actions.items(), reverse=True)}
    return {name: Point(score, bill(records, payer), shares) for name, payer in payers.items()}
