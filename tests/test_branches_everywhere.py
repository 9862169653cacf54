"""A workflow that forks, three places: replay in the simulator, the same with live calls, and behind the gateway decide alike."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from sim.cells import expand_cells, run_cell
from sim.loading import LoadedScenario, load_scenario
from sim.placing import PolicyPlacer
from sim.workload import build_workload
from tests.conftest import ROOT
from tests.helpers import rows
from tests.test_hera_everywhere import Live
from workloads.placing import Part, TierLoad, call_of
from workloads.task import ModelCall, Task
from workloads.tasks.pair import count_tokens
from workloads.trial import run_trial

IDLE: Mapping[str, TierLoad] = {}
SETTINGS = [
    "workload.requests=30", "workload.tasks.distinct_tasks=30", "seeds=[1]", "sweep={}",
    "policies=[{policy: hera, estimators: perfect, components: sse+sle+cd+sd, kappa: 0.85}, {policy: random, p: 0.5}, "
    "{policy: hera, label: partial, estimators: perfect, components: sse+sd, decomposition: prefix, kappa: 0.7}]",
]  # fmt: skip


@pytest.fixture(scope="module")
def loaded() -> LoadedScenario:
    """Thirty requests of two or three branches."""
    return load_scenario(ROOT / "scenarios/branching.yaml", SETTINGS)


def behind_the_gateway(loaded: LoadedScenario, name: str) -> list[tuple[int, int, str, str]]:
    """Every placement of a client that forks and tells where its calls stand."""
    placer = PolicyPlacer(loaded.scenario, loaded.path)
    recorded = build_workload(loaded.scenario, 1, loaded.path)
    model_of = {tier: spec.model_name or tier for tier, spec in loaded.scenario.tiers.items()}
    made: list[tuple[int, int, str, str]] = []
    for request, task in enumerate(recorded.requests):

        def choose(call: ModelCall, request: int = request) -> str:
            seen = call_of(call.messages, call.max_tokens, count_tokens, Part(call.position, call.branch))
            decision = placer.place(name, request, seen, IDLE)
            made.append((request, call.position, decision.tier, decision.reason))
            return model_of[decision.tier]

        run_trial(recorded.agent, task, recorded.backend, choose)
    return sorted(made)


@pytest.mark.slow
def test_replay_live_calls_and_the_gateway_place_branches_alike(loaded: LoadedScenario) -> None:
    """Every subtask of every branch and join, with its reason; in the simulator branches run side by side, here one after another."""
    recorded = build_workload(loaded.scenario, 1, loaded.path)
    tiers = list(loaded.scenario.tiers)
    for cell in expand_cells(loaded):
        replayed, asked = (
            [(row["request"], row["position"], tiers[row["tier"]], row["reason"]) for row in rows(found.subtasks)]
            for found in (run_cell(cell), run_cell(cell, live=Live(recorded.backend)))
        )
        assert replayed == asked
        assert len({tier for _, _, tier, _ in replayed}) == 2
        assert behind_the_gateway(loaded, f"isthmus/{cell.policy.name}") == sorted(replayed)


def test_branches_may_arrive_in_any_order_and_a_number_may_be_used_again(loaded: LoadedScenario) -> None:
    """A request begins with whichever branch comes first; its first subtask asked once more begins another request."""
    placer = PolicyPlacer(loaded.scenario, loaded.path)
    (policy,) = [placer._listed[name] for name in placer._listed if name.startswith("random")]
    calls = [ModelCall(Task("t"), position, (), 1, 1, branch=position + 1) for position in range(3)]
    begun = []
    for position in (2, 0, 1):
        policy.place(7, calls[position], placer._world, IDLE)
        begun.append(policy._requests[7].arrival_s)
    assert len(set(begun)) == 1
    policy.place(7, calls[0], placer._world, IDLE)
    assert policy._requests[7].arrival_s > begun[0]
