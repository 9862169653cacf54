"""One HERA, three places: replay in the simulator, the same with live calls, and behind the gateway decide alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sim.cells import expand_cells, run_cell
from sim.loading import LoadedScenario, load_scenario
from sim.placing import PolicyPlacer
from sim.workload import build_workload
from tests.conftest import ROOT
from tests.helpers import rows
from workloads.backend import Handle, InferenceBackend
from workloads.placing import TierLoad, call_of
from workloads.task import ModelCall
from workloads.tasks.pair import count_tokens
from workloads.trial import run_trial

IDLE: Mapping[str, TierLoad] = {}
POLICIES = (
    "policies=[{policy: hera, estimators: perfect, tau_request: 0.95, kappa: 0.9}, "
    "{policy: hera, label: no-urc, estimators: perfect, components: sse+sle+cd+sd, kappa: 0.8}, "
    "{policy: hera, label: trained, estimators: pair, tau_request: 0.8, kappa: 0.95, kappa_step: 0}]"
)


@pytest.fixture(scope="module")
def loaded() -> LoadedScenario:
    """Forty requests of the shipped recording under perfect and under trained estimators."""
    settings = [
        "workload.requests=40",
        "workload.tasks.distinct_tasks=40",
        "inference.training=null",
        "seeds=[1]",
        POLICIES,
    ]
    return load_scenario(ROOT / "scenarios/hera.yaml", settings)


class Live:
    """The recorded answers as if somebody gave them now."""

    def __init__(self, recorded: InferenceBackend) -> None:
        self._recorded = recorded

    def submit(self, call: ModelCall, model: str) -> Handle:
        """The recorded answer, said to be live."""
        answer = self._recorded.submit(call, model).result()
        return answer._replace(provenance="live")


@pytest.mark.slow
def test_replay_live_calls_and_the_gateway_place_alike(loaded: LoadedScenario) -> None:
    """Every subtask of every request, with its reason."""
    placer = PolicyPlacer(loaded.scenario, loaded.path)
    recorded = build_workload(loaded.scenario, 1, loaded.path)
    tiers = list(loaded.scenario.tiers)
    model_of = {name: tier.model_name or name for name, tier in loaded.scenario.tiers.items()}
    for cell in expand_cells(loaded):
        replayed, asked = (
            [(row["request"], row["position"], tiers[row["tier"]], row["reason"]) for row in rows(found.subtasks)]
            for found in (run_cell(cell), run_cell(cell, live=Live(recorded.backend)))
        )
        assert replayed == asked
        gateway: list[tuple[int, int, str, str]] = []
        for number, task in enumerate(recorded.requests):

            def choose(
                call: ModelCall,
                made: list[Any] = gateway,
                request: int = number,
                name: str = f"isthmus/{cell.policy.name}",
            ) -> str:
                seen = call_of(call.messages, call.max_tokens, count_tokens)
                decision = placer.place(name, request, seen, IDLE)
                made.append((request, call.position, decision.tier, decision.reason))
                return model_of[decision.tier]

            run_trial(recorded.agent, task, recorded.backend, choose)
        assert sorted(gateway) == sorted(replayed)
