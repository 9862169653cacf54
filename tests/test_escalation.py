"""A policy that reviews answers: the subtask is done again elsewhere, and what was done in vain is paid for and stays on record."""

from __future__ import annotations

from typing import Any

import pytest

from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy
from tests.helpers import Step, device, link, phases, rows, run, scenario, slots, task
from workloads.errors import InputError
from workloads.task import Completion

TIERS = {"edge": slots(), "cloud": slots("llm", mean_s=1.0)}
LINKS = (link("home", "edge"), link("home", "cloud"))


class Doubting(RoutingPolicy):
    """Places on the edge; what comes from there at `position` is done again where `again` says."""

    def __init__(self, again: Any, position: int = 0) -> None:
        super().__init__(PolicyOptions(decision_s=0.05))
        self._again, self._position = again, position
        self.reviewed: list[tuple[int, str]] = []

    def place(self, seen: Observation) -> Placement:
        """Edge first."""
        return Placement("edge", "first")

    def review(self, seen: Observation, placement: Placement, answer: Completion) -> Placement | None:
        """Doubt one position."""
        self.reviewed.append((seen.call.position, placement.tier))
        doubted = placement.tier == "edge" and seen.call.position == self._position
        return self._again if doubted else None


def test_an_answer_that_does_not_convince_is_done_again() -> None:
    """By hand: decision .05, up .6, service 2, down .2; then to the cloud, decided in .3 s: up .6, service 1, down .2."""
    again = Placement("cloud", "doubt", decision_s=0.3)
    policy = Doubting(again)
    records = run(scenario(TIERS, links=LINKS), [task(Step(), Step())], policy)
    first, second, third = rows(records.subtasks)
    assert phases(first) == [("decision_s", 0.05), ("uplink_s", 0.6), ("decode_s", 2.0), ("downlink_s", 0.2)]
    assert phases(second) == [("decision_s", 0.3), ("uplink_s", 0.6), ("decode_s", 1.0), ("downlink_s", 0.2)]
    assert [(row["position"], row["attempt"], row["tier"], row["status"], row["reason"]) for row in (first, second, third)] == [
        (0, 0, 0, "escalated", "first"), (0, 1, 1, "ok", "doubt"), (1, 0, 0, "ok", "first"),
    ]  # fmt: skip
    assert policy.reviewed == [(0, "edge"), (0, "cloud"), (1, "edge")]
    (request,) = rows(records.requests)
    assert (request["subtasks"], request["slm_subtasks"], request["status"]) == (2, 1, "completed")
    assert request["ttft_s"] == pytest.approx(second["end_s"])  # the first token that counts is the second answer's


def test_what_was_done_in_vain_is_paid_for() -> None:
    """The edge device's energy is that of a request nobody doubts; the cloud's comes on top."""
    tiers = {"edge": device(), "cloud": device("llm")}
    world = scenario(tiers, links=LINKS)
    alone = run(world, [task()], Doubting(None))
    both = run(world, [task()], Doubting(Placement("cloud")))
    (edge,) = rows(alone.subtasks)
    wasted, done = rows(both.subtasks)
    assert (wasted["status"], wasted["energy_j"], wasted["total_usd"]) == (
        "escalated",
        edge["energy_j"],
        edge["total_usd"],
    )
    assert done["energy_j"] > 0
    assert both.requests["energy_j"][0] == pytest.approx(wasted["energy_j"] + done["energy_j"])


def test_an_escalation_nowhere_is_refused() -> None:
    """A tier that does not exist, as from `place`."""
    with pytest.raises(InputError, match="which is no tier"):
        run(scenario(TIERS, links=LINKS), [task()], Doubting(Placement("nowhere")))
    with pytest.raises(InputError, match="returned 'cloud'"):
        run(scenario(TIERS, links=LINKS), [task()], Doubting("cloud"))
