"""What learned policies are worth on a scenario: `run_sim.py tmo regret`, `tmo budgets`, `tmo networks` and `tmo parts`.

Every policy places the same requests under the same seeds, so differences are paired. Trained policies are kept under a name that says
all they depend on: a command that was interrupted goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.cells import resolved
from sim.loading import LoadedScenario
from sim.policies import build_policy
from sim.run_store import key_of
from sim.scenario import Scenario
from sim.tmo.card import read_policy
from sim.tmo.constraint import Keep, Rule
from sim.tmo.environment import view_of
from sim.tmo.evaluation import half_width
from sim.tmo.kept import kept_policy, save_array, save_json, simulated
from sim.tmo.observing import DEFAULT_PARTS, Budget
from sim.tmo.reward import Reward

Array = npt.NDArray[np.float64]
RESPONSE = Reward(association=0.0, latency=0.0, usage=0.0)
"""The reward of the optimum: the sum of a dialogue's scores, with costs as the budget's concern alone."""
BLIND = tuple(part for part in DEFAULT_PARTS if part not in ("network", "queues"))
PRICES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5)
"""Weights of usage between which greedy is tuned to a budget."""
FINE_PRICES = (*PRICES, 1.25, 1.75, 2.0, 2.25, 2.75, 3.0, 4.0)
"""The same where greedy is the rival: the best it can do for what others spend."""


class Judged(NamedTuple):
    """A policy on n requests: reward and cost of each, shape (n,)."""

    reward: Array
    cost: Array

    def row(self, name: str, budget: float) -> dict[str, Any]:
        """Its means, the share of requests over a budget and their mean excess, for a table."""
        excess = np.maximum(0.0, self.cost / budget - 1.0)
        return {
            "policy": name, "budget": budget, "reward": float(self.reward.mean()), "interval": half_width(self.reward),
            "cost": float(self.cost.mean()), "over": float((excess > 0).mean()), "excess": float(excess.mean()),
        }  # fmt: skip


def difference(first: Judged, second: Judged) -> tuple[float, float]:
    """(mean, 95 % half-width) of the paired difference of rewards."""
    gap = first.reward - second.reward
    return float(gap.mean()), half_width(gap)


@dataclass(frozen=True)
class Trial:
    """A scenario on which policies are trained for an item's budget and judged, and the folder where they are kept."""

    loaded: LoadedScenario
    folder: Path
    item: str = "total_usd"
    steps: int = 60_000
    seeds: tuple[int, ...] = (101, 102)
    on_rollout: Callable[..., None] | None = None

    def trained(
        self, scenarios: Sequence[Scenario], budget: float, *, keep: Keep, learner: str = "ppo", parts: Sequence[str] = DEFAULT_PARTS, seed: int = 1
    ) -> str:  # fmt: skip
        """The folder of a policy for this budget, trained now unless it is there."""
        from sim.tmo.learning.training import Plan

        plan = Plan(learner, self.steps, seed, Rule(keep), evaluation_episodes=200)
        view = view_of(scenarios[0], self.loaded.path, parts, [Budget(self.item, budget, budget)])
        return kept_policy(self.folder, scenarios, self.loaded.path, view, RESPONSE, plan, self.on_rollout)

    def judged(self, scenario: Scenario, policy: str, **options: Any) -> Judged:
        """A policy on the scenario's requests under every seed, run now unless its numbers are kept."""
        key = key_of(resolved(scenario), policy, options, self.seeds, self.item)[:16]
        path = self.folder / "judged" / f"{key}.npy"
        if not path.exists():
            save_array(path, self._run(scenario, policy, options))
        return Judged(*np.load(path, allow_pickle=False))

    def _run(self, scenario: Scenario, policy: str, options: Mapping[str, Any]) -> Judged:
        rewards, costs = [], []
        for seed in self.seeds:
            built = build_policy(policy, options, self.loaded.path.parent)
            records = simulated(scenario, self.loaded.path, built, seed)
            taken = records.subtasks["status"] == "ok"
            scores = np.where(taken, np.nan_to_num(records.subtasks["score"]), 0.0)
            rewards.append(np.bincount(records.subtasks["request"], scores, minlength=len(records.requests["request"])))
            costs.append(records.requests[self.item])
        return Judged(np.concatenate(rewards), np.concatenate(costs))

    def save(self, name: str, found: Any) -> None:
        """Keep a table as JSON."""
        save_json(self.folder / f"{name}.json", found)


def regret(trial: Trial, budgets: Sequence[float], learners: Sequence[str], weights: str) -> Iterator[dict[str, Any]]:
    """For each budget, kept in the mean: the optimum, what was learned, and what greedy and the fixed actions can do for as much.

    `share` is of the optimum. `tmo` is the policy for any budget in `weights`, `rc-...` one of each learner, trained for this budget.
    `over_greedy` and `over_fixed` are their paired differences, with half-widths, to the best mix of two prices, or of two actions, that
    costs in the mean what they cost themselves.
    """
    scenario = trial.loaded.scenario
    for budget in budgets:  # a wrong name or budget is told before anything runs
        build_policy("tmo", {"weights": weights, "budget": budget}, trial.loaded.path.parent)
    view = view_of(scenario, trial.loaded.path)
    fixed = [trial.judged(scenario, "tmo-fixed", action=number) for number in range(len(view.actions))]
    greedy = [trial.judged(scenario, "tmo-greedy", association=0.0, latency=0.0, usage=price) for price in FINE_PRICES]
    for budget in budgets:
        optimum = trial.judged(scenario, "oracle-dialogues", budget=budget, item=trial.item)
        rows = {
            "optimum": optimum,
            "optimum, no foresight": trial.judged(
                scenario, "oracle-dialogues", budget=budget, item=trial.item, foresees=False
            ),
            "fixed": mixed(fixed, budget),
            "greedy": mixed(greedy, budget),
            "tmo": trial.judged(scenario, "tmo", weights=weights, budget=budget),
        }
        for learner in learners:
            folder = trial.trained([scenario], budget, keep="mean", learner=learner)
            rows[f"rc-{learner}"] = trial.judged(scenario, "tmo", weights=folder)
        for name, found in rows.items():
            row = {**found.row(name, budget), "share": float(found.reward.mean() / optimum.reward.mean())}
            if name == "tmo" or name.startswith("rc-"):
                spent = float(found.cost.mean())
                row["over_greedy"] = difference(found, mixed(greedy, spent))
                row["over_fixed"] = difference(found, mixed(fixed, spent))
            yield row


def mixed(found: Sequence[Judged], cost: float) -> Judged:
    """The most reward that choosing between two of these by chance gets for this mean cost; the cheapest where it is too little.

    Rewards and costs are each request's expectations over that chance, so nothing is added to their spread.
    """
    means = [(judged.cost.mean(), judged.reward.mean()) for judged in found]
    best = max(
        (judged for judged, (spent, _) in zip(found, means, strict=True) if spent <= cost),
        key=_mean_reward,
        default=None,
    )
    for low, (less, _) in zip(found, means, strict=True):
        for high, (more, _) in zip(found, means, strict=True):
            if less <= cost < more:
                share = (cost - less) / (more - less)
                both = Judged(*((1 - share) * a + share * b for a, b in zip(low, high, strict=True)))
                best = max((both, best or both), key=_mean_reward)
    return best or min(found, key=lambda judged: float(judged.cost.mean()))


def _mean_reward(judged: Judged) -> float:
    return float(judged.reward.mean())


def budgets(
    trial: Trial, asked: Sequence[float], keeps: Sequence[Keep], learners: Sequence[str], seeds: Sequence[int] = (1,)
) -> Iterator[dict[str, Any]]:
    """For each budget that every request should keep: each way to keep it with PPO, then each further learner, kept by chance.

    `over` and `excess` (the mean of what is over, as a share of the budget) are of all requests. The first row is the optimum that keeps
    the budget but for the rule's tolerance of requests. Each policy is trained once for every one of `seeds`; what keeps no budget
    is the same one for all of them.
    """
    scenario, rule = trial.loaded.scenario, Rule()
    for budget in asked:
        optimum = trial.judged(
            scenario, "oracle-dialogues", budget=budget, item=trial.item, keeps="each", tolerance=rule.tolerance
        )
        yield {**optimum.row("optimum", budget), "keep": f"{rule.tolerance:.0%} over", "share": 1.0}
        ways: list[tuple[str, Keep]] = [("ppo", keep) for keep in keeps]
        ways += [(learner, "chance") for learner in learners]
        for (learner, keep), seed in product(ways, seeds):
            seen = max(asked) if keep == "none" else budget
            folder = trial.trained([scenario], seen, keep=keep, learner=learner, seed=seed)
            found = trial.judged(scenario, "tmo", weights=folder)
            row = {**found.row(learner, budget), "keep": keep, "seed": seed}
            multiplier = read_policy(Path(folder))[0].multipliers[0][0]
            yield {**row, "share": float(found.reward.mean() / optimum.reward.mean()), "multiplier": multiplier}


def networks(
    trial: Trial, budget: float, unseen: Trial | None = None, seeds: Sequence[int] = (1,)
) -> Iterator[dict[str, Any]]:
    """Trained on each point of the scenario's sweep and on all together, tested on every one; each request keeps the budget (chance).

    `trained` is a point's label, `all` for the policy that was trained on all of them and sees the network, `all, blind` for the one that
    does not see it. Rows of `all` have in `over_blind` how much more it earns than that one where both keep the budget (`alike`), and in
    `kept_over_blind` how much more where a request over budget earns nothing. Both are trained once for every one of `seeds` (`seed`), the
    others under the first. The points of `unseen` are tested on as well, and nobody is trained on them.
    """
    points = {variant.label: variant.scenario for variant in trial.loaded.variants}
    tests = [(trial, label, scenario) for label, scenario in points.items()]
    if unseen is not None:
        tests += [(unseen, variant.label, variant.scenario) for variant in unseen.loaded.variants]
    everywhere = list(points.values())
    sights = {"all, blind": BLIND, "all": DEFAULT_PARTS}
    wanted = [(name, everywhere, sight, seed) for seed in seeds for name, sight in sights.items()]
    wanted += [(label, [scenario], DEFAULT_PARTS, seeds[0]) for label, scenario in points.items()]
    blind: dict[tuple[str, int], Judged] = {}
    for trained, scenarios, seen, seed in wanted:
        weights = trial.trained(scenarios, budget, keep="chance", parts=seen, seed=seed)
        for judge, tested, scenario in tests:
            found = judge.judged(scenario, "tmo", weights=weights)
            row = {
                **found.row("tmo", budget),
                "trained": trained,
                "seed": seed,
                "tested": tested,
                "unseen": judge is not trial,
            }
            if trained == "all":
                plain, other = judge.judged(scenario, "tmo-fixed", action=1), blind[tested, seed]
                row["over_blind"] = difference(*alike(found, other, plain, budget, Rule().tolerance))
                row["kept_over_blind"] = difference(kept(found, budget), kept(other, budget))
            blind.setdefault((tested, seed), found)
            yield row


def alike(first: Judged, second: Judged, plain: Judged, budget: float, tolerance: float) -> tuple[Judged, Judged]:
    """Both brought to the same share of requests over the budget, which becomes their `cost`; shares up to the tolerance count as kept.

    Who breaks it more often does by chance what `plain` does; where even that is not seldom enough, `plain` stands alone.
    """
    counted = [Judged(judged.reward, (judged.cost > budget).astype(float)) for judged in (first, second, plain)]
    fewest = max(tolerance, min(float(judged.cost.mean()) for judged in counted[:2]))
    lowered = [
        judged if judged.cost.mean() <= fewest else mixed([judged, counted[2]], fewest) for judged in counted[:2]
    ]
    return lowered[0], lowered[1]


def kept(judged: Judged, budget: float) -> Judged:
    """Requests over the budget earn nothing."""
    return Judged(np.where(judged.cost > budget, 0.0, judged.reward), judged.cost)


def parts(trial: Trial, budget: float) -> Iterator[dict[str, Any]]:
    """Learners that see less, and one that sees the question's embedding besides; budgets are kept in the mean.

    They spend a little more or less than the budget, so each is compared to greedy tuned to what it spends (`over_greedy`);
    `difference` is how much more that is than for the learner that sees all.
    """
    scenario = trial.loaded.scenario
    greedy = [trial.judged(scenario, "tmo-greedy", association=0.0, latency=0.0, usage=price) for price in PRICES]
    without = [part for part in DEFAULT_PARTS if part not in ("budget", "position", "prompt", "queues")]
    seen = {
        "all": DEFAULT_PARTS,
        **{f"without {part}": tuple(p for p in DEFAULT_PARTS if p != part) for part in without},
        "the authors' (kind, history, remaining)": ("kind", "history", "remaining"),
        "all and the question": (*DEFAULT_PARTS, "question"),
    }
    first: Judged | None = None
    for name, chosen in seen.items():
        found = trial.judged(scenario, "tmo", weights=trial.trained([scenario], budget, keep="mean", parts=chosen))
        gap = Judged(found.reward - mixed(greedy, float(found.cost.mean())).reward, found.cost)
        first = first or gap
        yield {
            **found.row(name, budget),
            "over_greedy": (float(gap.reward.mean()), half_width(gap.reward)),
            "difference": difference(gap, first),
        }
