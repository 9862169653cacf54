"""The authors' policies on M4A1, judged as the authors judge and fairly: what `run_sim.py tmo authors` and `tmo judge` do.

A policy is made from the training dialogues of a split alone and evaluated on the others. Trained networks are kept by policy, split
and a hash of everything they depend on, so an interrupted command goes on where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sim.tmo.authors import Evaluated, Setting, evaluated, values_of
from sim.tmo.authors_learning import (
    LEARNERS,
    REPORT_EVERY,
    load_network,
    policy_of,
    save_network,
    trained,
    training_key,
)
from sim.tmo.logged import FloatArray, Layout, LoggedTurns, authors_split, fold, read_m4a1
from sim.tmo.off_policy import LEAST_TURNS, Behaviour, Judged, Part, judged
from sim.tmo.recorded_walk import RecordedWalk
from sim.tmo.responses import NearestNeighbours, TaskActionMeans, kind_of
from sim.tmo.turn_policies import TurnPolicy, TurnValues, best_by_kind, by_kind, fixed, greedy, mixed
from workloads.errors import InputError, suggest

Progress = Callable[[str, int], Callable[[], None]]
"""(name, steps) -> what to call after each step."""
DRAWS = 20
"""Walks that are averaged where a policy chooses by chance."""
LEARNED = (*LEARNERS, *(f"RC-{learner}" for learner in LEARNERS))


class Split(NamedTuple):
    """Dialogues to make policies of, and others to judge them on; `seed` is that of the training."""

    name: str
    train: LoggedTurns
    test: LoggedTurns
    seed: int


class Row(NamedTuple):
    """A policy's evaluation on one split: by the table it was trained on (`own`), or by the table of the held-out dialogues."""

    policy: str
    split: str
    judge: str
    found: Evaluated


@dataclass(frozen=True)
class Experiment:
    """A data file in a setting, and the folder where what is trained is kept."""

    turns: LoggedTurns
    setting: Setting
    steps: int
    learned: tuple[str, ...]
    folder: Path

    def splits(self, count: int, *, authors: bool) -> list[Split]:
        """Splits of the authors' seeds 1, 2, ..., or folds that hold every dialogue out once. Answers with "sorry" words count 0."""
        turns = self.turns.zeroed()
        if authors:
            return [Split(f"seed{seed}", *authors_split(turns, seed), seed) for seed in range(1, count + 1)]
        return [Split(f"fold{number}of{count}", *fold(turns, number, folds=count), number) for number in range(count)]

    def policies(self, split: Split, progress: Progress) -> Iterator[tuple[str, TurnPolicy]]:
        """Every policy by name, made from the split's training dialogues."""
        setting, layout, train = self.setting, self.turns.layout, split.train
        neighbours = NearestNeighbours().fit(train)
        yield "random", mixed(layout, 0.5)
        yield "local", fixed(layout, 0)
        yield "cloud", mixed(layout, 0.0)
        for action, name in list(enumerate(layout.names))[1:]:
            yield name, fixed(layout, action)
        cells = TaskActionMeans().fit(train)
        for suffix, model in (("", neighbours), (" (means)", cells)):
            values = values_of(setting, model)
            yield f"table{suffix}", by_kind(layout, best_by_kind(train, values))
            yield f"greedy{suffix}", greedy(values)
        yield "table (tried)", by_kind(layout, best_by_kind(train, _tried(values_of(setting, cells), cells, layout)))
        for name in self.learned:
            budgets, learner = name.startswith("RC-"), name.removeprefix("RC-")
            environment = RecordedWalk(setting, neighbours, train, budgets=budgets)
            key = training_key(learner, environment, split.seed, self.steps)
            path = self.folder / "policies" / f"{name}-{split.name}-{key}.npz"
            if not path.exists():
                done = progress(f"{name}, {split.name}", self.steps // REPORT_EVERY)
                path.parent.mkdir(parents=True, exist_ok=True)
                save_network(trained(learner, environment, split.seed, self.steps, done), path)
            yield name, policy_of(load_network(path), setting, budgets=budgets)

    def evaluations(self, splits: Sequence[Split], progress: Progress) -> list[Row]:
        """The authors' evaluation of every policy on every split, by their table and by one of the held-out dialogues."""
        rows = []
        for split in splits:
            judges = {"own": NearestNeighbours().fit(split.train), "held_out": NearestNeighbours().fit(split.test)}
            for name, policy in self.policies(split, progress):
                draws = DRAWS if name in ("random", "cloud") else 1
                for judge, model in judges.items():
                    rng = np.random.default_rng(split.seed)
                    found = evaluated(self.setting, model, split.test, policy, rng, draws)
                    rows.append(Row(name, split.name, judge, found))
        return rows

    def judgements(
        self, splits: Sequence[Split], progress: Progress, *, graded: bool = False, resamples: int = 500
    ) -> dict[str, Judged]:
        """The off-policy value of every policy over the test dialogues of all splits, and what that is more than Local's.

        With `graded`, answers with "sorry" words keep their grade. Policies are the same either way.
        """
        parts: dict[str, list[Part]] = {}
        for split in splits:
            test = self.turns.of(_in_order(split.test)) if graded else split.test
            known = self.setting.known(test.associations)
            for name, policy in self.policies(split, progress):
                parts.setdefault(name, []).append(Part(test, policy, known))
        behaviour, done = Behaviour(self.turns), progress("judging", len(parts))
        found = {}
        for name, own in parts.items():
            found[name] = judged(own, TaskActionMeans, behaviour, against=parts["local"], resamples=resamples)
            done()
        return found


def experiment(
    path: Path, out: Path, device: str, network: str, steps: int, learned: Sequence[str] = LEARNED
) -> Experiment:
    """Read the data and find the folder. Raises InputError for malformed data, an unknown setting or learner, or too few steps."""
    turns = read_m4a1(path)
    setting = Setting(turns.layout, device, network)
    for name in learned:
        if name not in LEARNED:
            raise InputError("--learner", f"there is no {name!r}", suggest(name, LEARNED))
    if steps < REPORT_EVERY:
        raise InputError("--steps", f"{steps} train nothing", f"Give at least {REPORT_EVERY}")
    digest = hashlib.sha256(path.read_bytes() + f"{device} {network} {steps}".encode())
    return Experiment(turns, setting, steps, tuple(learned), out / "m4a1" / digest.hexdigest()[:12])


def means(rows: Sequence[Row], judge: str) -> Mapping[str, tuple[Evaluated, float]]:
    """By policy: the mean over splits, and the reward's standard deviation between them."""
    found: dict[str, list[Evaluated]] = {}
    for row in rows:
        if row.judge == judge:
            found.setdefault(row.policy, []).append(row.found)
    return {
        name: (
            Evaluated(*(float(value) for value in np.mean(group, axis=0))),
            float(np.std([one.reward for one in group], ddof=1)) if len(group) > 1 else float("nan"),
        )
        for name, group in found.items()
    }


def _tried(values: TurnValues, cells: TaskActionMeans, layout: Layout) -> TurnValues:
    """The same values, where the training dialogues tried the action often enough in turns of this kind to know anything of it."""

    def among(features: FloatArray) -> FloatArray:
        return np.where(cells.counts[kind_of(layout, features)] < LEAST_TURNS, -np.inf, values(features))

    return among


def _in_order(turns: LoggedTurns) -> list[int]:
    """The dialogues in the order in which their turns stand."""
    return list(dict.fromkeys(turns.dialogue.tolist()))
