"""An experiment as cells: every (sweep variant, policy with its options, seed) is one simulation of its own.

A cell is a small picklable value, so it can run in any process; what it needs from disk it loads there.
"""

from __future__ import annotations

import itertools
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sim.cost import TokenPrices
from sim.loading import LoadedScenario
from sim.policies import build_policy, policy_class
from sim.policies.base import PolicyOptions
from sim.records import Records, RequestRow
from sim.scenario import PolicySpec, Scenario
from sim.scenario_serving import ServedModel
from sim.simulation import Simulation, finish, prepare
from sim.study import price_of, rates_of, tier_views
from sim.workload import At, build_workload, check_files, load_trace, no_place
from workloads.backend import InferenceBackend
from workloads.errors import InputError

MOST_CELLS = 100_000
"""Simulations in one run beyond which it is refused: a slip in a list of options, not a plan."""


class PolicyVariant(NamedTuple):
    """A policy with one value for every option. `knob` is the swept number that traces its family's curve, or NaN."""

    name: str
    family: str
    policy: str
    options: dict[str, Any]
    knob: float


class Cell(NamedTuple):
    """One simulation to run."""

    number: int
    variant: str
    scenario: Scenario
    scenario_path: Path
    policy: PolicyVariant
    seed: int

    @property
    def file_name(self) -> str:
        """Name of its record files, unique in the run and in the run's order."""
        return f"{self.number:05d}.parquet"

    @property
    def constants(self) -> dict[str, Any]:
        """The columns that tell this cell's rows from others'."""
        policy = self.policy
        return {
            "variant": self.variant, "policy": policy.name, "family": policy.family, "knob": policy.knob, "seed": self.seed
        }  # fmt: skip


def expand_cells(loaded: LoadedScenario) -> list[Cell]:
    """All cells of an experiment, in a fixed order; raises InputError for anything that no cell could run with."""
    cells: list[Cell] = []
    for variant in loaded.variants:
        scenario, source = variant.scenario, variant.source
        for tier in scenario.tiers:  # an unknown price name is an input error now, not after an hour
            with source.at("tiers", tier, "model", "price_name"):
                price = price_of(scenario, tier)
            with source.at("tiers", tier, "serve", "upstream", "max_usd"):
                _check_limit(scenario.tiers[tier].serve, price)
        check_files(scenario, loaded.path, source.at)
        policies = list(expand_policies(scenario, loaded.path.parent, source.at))
        if len(cells) + len(policies) * len(scenario.seeds) > MOST_CELLS:
            problem = f"more than {MOST_CELLS:,} simulations: sweep points x policies with their options x seeds"
            raise InputError(str(loaded.path), problem, "Give fewer values, policies or seeds")
        for policy, seed in itertools.product(policies, scenario.seeds):
            cells.append(Cell(len(cells), variant.label, scenario, loaded.path, policy, seed))
    return cells


def _check_limit(served: ServedModel | None, price: TokenPrices) -> None:
    """Raise InputError for a limit on dollars that no call could ever come nearer to."""
    upstream = served.upstream if served is not None else None
    if upstream is None or upstream.max_usd is None:
        return
    usd = price.input_usd * 1e6, price.output_usd * 1e6
    if upstream.input_usd_per_mtok is not None and upstream.output_usd_per_mtok is not None:
        usd = upstream.input_usd_per_mtok, upstream.output_usd_per_mtok
    if not all(usd):
        prices = f"input {usd[0]:g}, output {usd[1]:g} USD per million tokens"
        problem = f"a limit on dollars without prices ({prices}) would never be reached"
        remedy = "Set input_usd_per_mtok and output_usd_per_mtok to what the API asks, or leave max_usd out"
        raise InputError("field max_usd", problem, remedy)


def expand_policies(scenario: Scenario, base_dir: Path, at: At = no_place) -> Iterator[PolicyVariant]:
    """Unfold option lists into one policy per value; names must differ. `at` names the place of an error."""
    seen: set[str] = set()
    tiers = tier_views(scenario, rates_of(scenario))
    for number, spec in enumerate(scenario.policies):
        with at("policies", number):
            for policy in _unfold(spec, base_dir):
                if policy.name in seen:
                    raise InputError(f"policy {policy.name!r}", "occurs twice", "Give one of them a label")
                seen.add(policy.name)
                build_policy(policy.policy, policy.options, base_dir).check(tiers)
                yield policy


def _unfold(spec: PolicySpec, base_dir: Path) -> Iterator[PolicyVariant]:
    kind = policy_class(spec.policy, base_dir)
    family = spec.label or spec.policy.rpartition(":")[2]
    swept = [name for name, value in spec.options.items() if isinstance(value, tuple) and not _takes_list(kind, name)]
    for name in swept:
        if not spec.options[name]:
            raise InputError(f"policy {family!r}, option {name!r}", "an empty list", "Give at least one value")
    if math.prod(len(spec.options[name]) for name in swept) > MOST_CELLS:
        problem = f"its option lists unfold to more than {MOST_CELLS:,} policies"
        raise InputError(f"policy {family!r}", problem, "Give fewer values")
    for values in itertools.product(*(spec.options[name] for name in swept)):
        chosen = dict(zip(swept, values, strict=True))
        shown = ", ".join(
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in chosen.items()
        )
        options = {**spec.options, **chosen}
        number = _knob(kind.Options, kind.knob, chosen, options)
        yield PolicyVariant(f"{family}({shown})" if shown else family, family, spec.policy, options, number)


def _knob(known: type[PolicyOptions], knob: str | None, chosen: Mapping[str, Any], options: Mapping[str, Any]) -> float:
    """The number that traces a family's curve: the policy's knob, or where only other options are swept, the first of those."""
    if knob is not None and (knob in chosen or not chosen):
        value = options.get(knob, known.model_fields[knob].default)
    else:
        value = next(iter(chosen.values()), None)
    return float(value) if isinstance(value, int | float) else math.nan


def _takes_list(kind: Any, option: str) -> bool:
    field = kind.Options.model_fields.get(option)
    return field is not None and typing.get_origin(field.annotation) is tuple


def run_cell(
    cell: Cell, on_end: Callable[[RequestRow], None] | None = None, live: InferenceBackend | None = None
) -> Records:
    """Simulate one cell; `live` answers where its scenario asks live models."""
    return finish(cell.scenario, prepare_cell(cell, on_end, live))


def prepare_cell(
    cell: Cell, on_end: Callable[[RequestRow], None] | None = None, live: InferenceBackend | None = None
) -> Simulation:
    """Set one cell up, its policy's study included, without running it."""
    workload = build_workload(cell.scenario, cell.seed, cell.scenario_path, live)
    policy = build_policy(cell.policy.policy, cell.policy.options, cell.scenario_path.parent)
    return prepare(
        cell.scenario, workload, policy, cell.seed, lambda file: load_trace(file, cell.scenario_path), on_end
    )


def resolved(scenario: Scenario) -> Mapping[str, Any]:
    """A scenario with every profile and default written out, as plain values."""
    plain: Mapping[str, Any] = scenario.model_dump(mode="json")
    return plain
