"""How many turns a second a learner gets, side by side in one process: `python benchmarks/learning.py [--json]`.

CPU time, all candidates in turn in every repeat, ratios as medians within the repeats, as in speed.py. The trivial environment has
the same spaces and answers with numbers drawn beforehand: what Stable-Baselines3 reaches on it is what no environment exceeds.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # started as a file, Python looks for imports beside that file only
    sys.path.insert(0, str(ROOT))

import gymnasium  # noqa: E402 - these need the line above
import numpy as np  # noqa: E402
import typer  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.base_class import BaseAlgorithm  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv  # noqa: E402

from benchmarks.side_by_side import Candidate, measure, ratio  # noqa: E402
from sim.loading import load_scenario  # noqa: E402
from sim.policies.threads import one_thread  # noqa: E402
from sim.tmo.constraint import Multipliers, Rule  # noqa: E402
from sim.tmo.environment import PlacementEnv, view_of  # noqa: E402
from sim.tmo.learning.learners import build  # noqa: E402
from sim.tmo.learning.training import unchecked_distributions  # noqa: E402
from sim.tmo.learning.vector import PlacementVecEnv  # noqa: E402
from sim.tmo.observing import Budget, Vector  # noqa: E402
from sim.tmo.pool import Pool  # noqa: E402
from sim.tmo.reward import Reward  # noqa: E402

AUTHORS_STEPS_PER_S, AUTHORS_TRAINING_STEPS_PER_S = 3_000, 970
"""What TMO's code reached on one CPU thread: its bare environment, and its fastest learner."""
ENVS, EPISODE = 16, 4
LABELS = {
    "environment": "Isthmus: the environment alone, actions by chance",
    "training": "Isthmus: RC-PPO on it, 16 simulations side by side",
    "same_learner": "the same PPO on a trivial environment of the same spaces",
    "plain_learner": "PPO as it comes, on one trivial environment",
}


class Trivial(gymnasium.Env[Vector, np.int64]):
    """Episodes of four steps whose observations were drawn beforehand."""

    def __init__(self, like: PlacementEnv) -> None:
        self.observation_space, self.action_space = like.observation_space, like.action_space
        self._rows = (
            np.random.default_rng(0).uniform(*like.view.bounds, (64, len(like.view.bounds[0]))).astype(np.float32)
        )
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Vector, dict[str, Any]]:
        """The next row."""
        super().reset(seed=seed)
        return self._rows[self._step % 64], {}

    def step(self, action: np.int64 | int) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        """The next row, and a reward for low numbers."""
        self._step += 1
        return self._rows[self._step % 64], float(-action), self._step % EPISODE == 0, False, {}


def candidates(scenario: Path, steps: int) -> dict[str, Candidate]:
    """Everybody makes about `steps` steps."""
    loaded = load_scenario(scenario)
    view = view_of(loaded.scenario, loaded.path, budgets=[Budget("total_usd", 0.006, 0.006)])
    pool = Pool(loaded.scenario, loaded.path)
    envs = [PlacementEnv(loaded.scenario, loaded.path, view, Reward(), build=pool) for _ in range(ENVS)]
    multipliers = Multipliers(Rule(), [False])
    vector = PlacementVecEnv(envs, multipliers)
    actions = np.random.default_rng(0).integers(len(view.actions), size=steps).tolist()
    single = PlacementEnv(loaded.scenario, loaded.path, view, Reward(), build=pool)
    single.reset(seed=1)
    ours = build("ppo", vector, multipliers, 1, steps)
    theirs = build("ppo", DummyVecEnv([lambda: Trivial(single)] * ENVS), multipliers, 1, steps)  # type: ignore[arg-type]
    plain = PPO("MlpPolicy", DummyVecEnv([lambda: Trivial(single)]), device="cpu", seed=1)

    def alone() -> int:
        for action in actions:
            if single.step(action)[2]:
                single.reset()
        return steps

    return {
        "environment": alone,
        **{
            name: partial(learned, model, steps, as_ours=name != "plain_learner")
            for name, model in {"training": ours, "same_learner": theirs, "plain_learner": plain}.items()
        },
    }


def learned(model: BaseAlgorithm, steps: int, *, as_ours: bool = True) -> int:
    """A training from where the model is."""
    if as_ours:
        with unchecked_distributions():
            return model.learn(steps, log_interval=10**9).num_timesteps
    return model.learn(steps, log_interval=10**9).num_timesteps


def summarise(rates: Mapping[str, Sequence[float]], steps: int) -> dict[str, Any]:
    """The benchmark's result as one JSON object."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "environment_steps_per_s": medians["environment"],
        "training_steps_per_s": medians["training"],
        "training_to_same_learner": ratio(rates, "training", "same_learner"),
        "training_to_plain_learner": ratio(rates, "training", "plain_learner"),
        "environment_to_authors": medians["environment"] / AUTHORS_STEPS_PER_S,
        "training_to_authors": medians["training"] / AUTHORS_TRAINING_STEPS_PER_S,
        "context": {
            "meaning": "steps (turns) per CPU second of one core; the authors' figures are from another day of a like machine",
            "steps": steps, "repeats": len(rates["training"]), "rates_per_s": medians,
            "repeats_per_s": {name: list(values) for name, values in rates.items()},
            "python": platform.python_version(), "platform": platform.platform(),
        },
    }  # fmt: skip


def as_table(result: Mapping[str, Any]) -> Table:
    """The result for people."""
    table = Table("what runs", header_style="bold")
    table.add_column("steps per CPU s", justify="right")
    for name, rate in result["context"]["rates_per_s"].items():
        table.add_row(LABELS[name], f"{rate:,.0f}")
    table.add_row(
        "training over the same learner on the trivial environment", f"{result['training_to_same_learner']:.2f} x"
    )
    table.add_row(
        "training over PPO as it comes on one trivial environment", f"{result['training_to_plain_learner']:.2f} x"
    )
    return table


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    scenario: Annotated[Path, typer.Option(help="Scenario to learn on.")] = ROOT / "scenarios" / "tmo.yaml",
    steps: Annotated[int, typer.Option(min=1024, help="Steps of a timed run.")] = 8192,
    repeats: Annotated[int, typer.Option(min=1, help="Times that everybody runs.")] = 3,
) -> None:
    """Measure the learning environment and a training on it next to Stable-Baselines3 on a trivial environment."""
    runs = candidates(scenario, steps)
    with one_thread():
        measure(runs, 1)  # nobody pays for imports and first simulations
        result = summarise(measure(runs, repeats), steps)
    print(json.dumps(result, indent=1)) if as_json else Console().print(as_table(result))


if __name__ == "__main__":
    typer.run(main)
