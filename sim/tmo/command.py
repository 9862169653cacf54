"""`run_sim.py train`: from the command's words to a trained policy in a folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sim.loading import LoadedScenario
from sim.tmo.card import Card
from sim.tmo.constraint import Keep, Rule
from sim.tmo.environment import view_of
from sim.tmo.observing import COST_ITEMS, DEFAULT_PARTS, PARTS, Budget
from sim.tmo.reward import Reward
from workloads.errors import InputError, suggest

_SHOW_EVERY = 500
"""Steps."""


@dataclass(frozen=True)
class Wishes:
    """What was asked for, as written on the command line."""

    learner: str = "ppo"
    budgets: Sequence[str] = ()
    keep: str = "chance"
    tolerance: float = Rule.tolerance
    reward: Sequence[str] = ()
    parts: str = ",".join(DEFAULT_PARTS)
    most: int | None = None
    steps: int = 100_000
    seed: int = 1
    episodes: int = 1000


def train_policy(loaded: LoadedScenario, wishes: Wishes, out: Path, console: Console) -> Card:
    """Train as wished, on all points of the scenario's sweep side by side, with a progress bar.

    Raises InputError for anything that cannot be trained.
    """
    scenario = loaded.scenario
    keep = one_of("--keep", wishes.keep, get_args(Keep))
    budgets = [parsed_budget(text) for text in wishes.budgets]
    parts = [one_of("--parts", part, PARTS) for part in wishes.parts.split(",")]
    reward = parsed_reward(wishes.reward, constrained=bool(budgets))
    rule = Rule(keep, wishes.tolerance)  # type: ignore[arg-type]
    view = view_of(scenario, loaded.path, parts, budgets, wishes.most)
    from sim.tmo.learning.learners import LEARNERS
    from sim.tmo.learning.training import Plan, train

    learner = one_of("--learner", wishes.learner, LEARNERS)
    plan = Plan(learner, wishes.steps, wishes.seed, rule, evaluation_episodes=wishes.episodes)
    with TrainingProgress(console, wishes.steps) as progress:
        return train(
            [variant.scenario for variant in loaded.variants], loaded.path, view, reward, plan, out, progress.show
        )


def one_of(option: str, value: str, allowed: Any) -> str:
    """The value where it is one of those allowed; raises InputError with the nearest name."""
    if value not in allowed:
        raise InputError(option, f"there is no {value!r}", suggest(value, allowed))
    return value


def parsed_budget(text: str) -> Budget:
    """ITEM=VALUE, or ITEM=LOW:HIGH for a policy that keeps any budget between them."""
    item, _, numbers = text.partition("=")
    one_of("--budget", item, COST_ITEMS)
    low, _, high = numbers.partition(":")
    try:
        budget = Budget(item, float(low), float(high or low))
    except ValueError:
        raise InputError(f"--budget {text}", "not a number", "Write e.g. --budget latency_s=20") from None
    if not 0.0 < budget.low <= budget.high < math.inf:
        raise InputError(
            f"--budget {text}", "not a positive number or range", "Write e.g. --budget total_usd=0.005:0.02"
        )
    return budget


def parsed_reward(settings: Sequence[str], *, constrained: bool) -> Reward:
    """TMO's weights changed by NAME=VALUE settings; with budgets latency and usage weigh nothing unless they are set."""
    reward = Reward(latency=0.0, usage=0.0) if constrained else Reward()
    names = {field.name: getattr(reward, field.name) for field in fields(reward)}
    changes: dict[str, Any] = {}
    for text in settings:
        name, _, value = text.partition("=")
        one_of("--reward", name, names)
        try:
            if isinstance(names[name], tuple):
                low, _, high = value.partition(":")
                changes[name] = (float(low), float(high))
            else:
                changes[name] = value if isinstance(names[name], str) else float(value)
        except ValueError:
            raise InputError(f"--reward {text}", "not a number", "Write e.g. --reward association=0.5") from None
    if changes.get("usage_item", "total_usd") not in COST_ITEMS:
        raise InputError(
            "--reward usage_item",
            f"there is no cost {changes['usage_item']!r}",
            suggest(changes["usage_item"], COST_ITEMS),
        )
    return replace(reward, **changes)


class TrainingProgress:
    """A bar over steps with the last episodes' mean reward and spending, the share over budget, and the multipliers."""

    def __init__(self, console: Console, steps: int) -> None:
        self._progress = Progress(
            TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"), TimeRemainingColumn(),
            console=console,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=steps, facts="")
        self._shown = 0

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, steps: int, env: Any) -> None:
        """Another rollout is done; short ones are shown together."""
        if steps < self._shown + _SHOW_EVERY:
            return
        self._shown = steps
        lately = list(env.lately)
        facts = ""
        if lately:
            facts = f"reward {sum(sum(episode.rewards) for episode, _ in lately) / len(lately):.3f}"
            for index, (spec, knots) in enumerate(zip(env.envs[0].view.budgets, env.multipliers.values, strict=True)):
                spent = sum(episode.costs[index] for episode, _ in lately) / len(lately)
                over = sum(episode.costs[index] > budgets[index] for episode, budgets in lately) / len(lately)
                facts += f" · {spec.item} {spent:.4g}, {over:.0%} over, multiplier {knots.mean():.2f}"
        self._progress.update(self._task, completed=steps, facts=facts)


def card_table(card: Card) -> Table:
    """What a trained policy does on episodes it was not trained on."""
    measured, items = card.measured, [budget.item for budget in card.view.budgets]
    table = Table("what", "value", title=f"{card.learner} on {card.scenario}, {measured['episodes']:,} unseen episodes")
    table.add_row("reward of an episode", f"{measured['reward']:.3f} ± {measured['reward_interval']:.3f}")
    for name in dict.fromkeys([*items, "latency_s", "total_usd"]):
        table.add_row(name, f"{measured[name]:.4g}")
    for index, item in enumerate(items):
        low, high = card.view.budgets[index][1:]
        table.add_row(
            f"{item} over {low:g}" + (f" to {high:g}" if low < high else ""), f"{measured['violation_rate'][index]:.1%}"
        )
        table.add_row(f"{item}: mean excess", f"{measured['mean_excess_share'][index]:.2%}")
        table.add_row(f"{item}: multiplier", ", ".join(f"{knot:.3g}" for knot in card.multipliers[index]))
    return table
