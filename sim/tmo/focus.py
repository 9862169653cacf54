"""How decisions leave the simulation: one request at a time waits for somebody outside, the others are the background's."""

from __future__ import annotations

from collections.abc import Sequence

from simpy import Event

from sim.draws import CommonDraws
from sim.environment import FastEnvironment
from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy, Study
from sim.records import RequestRow
from sim.tmo.actions import Action, placement
from workloads.task import Task


class AnyAction(RoutingPolicy):
    """Places by chance, each action as likely: load before anybody has learned. The draw belongs to (request, position)."""

    def __init__(self, actions: Sequence[Action]) -> None:
        super().__init__(PolicyOptions())
        self._placements = [placement(action, f"by chance: {action}") for action in actions]
        self._draws = CommonDraws(0, "any action")

    def prepare(self, study: Study) -> None:
        """Only the seed."""
        self._draws = CommonDraws(study.seed, "any action")

    def place(self, seen: Observation) -> Placement:
        """Draw."""
        draw = self._draws.uniform(seen.request, seen.call.position)
        return self._placements[int(draw * len(self._placements))]


class Focus(RoutingPolicy):
    """Holds up the decisions of one request at a time; the others are the background's.

    It pauses the event loop when a decision is pending (`seen`, `decision`), and when the request in focus has ended (`ended`).
    """

    def __init__(self, background: RoutingPolicy, decision_s: float) -> None:
        super().__init__(PolicyOptions(decision_s=decision_s))
        self.background = background
        self.focus: int | None = None
        self.seen: Observation | None = None
        self.decision: Event | None = None
        self.ended: RequestRow | None = None
        self._env: FastEnvironment | None = None

    def attach(self, env: FastEnvironment) -> None:
        """The simulation whose decisions these are."""
        self._env = env
        self.release()

    def release(self) -> None:
        """The next request to arrive will be in focus."""
        self.focus = self.seen = self.decision = self.ended = None

    def prepare(self, study: Study) -> None:
        """The background learns."""
        self.background.prepare(study)

    def start(self, request: int, task: Task) -> None:
        """Take the request, or leave it to the background."""
        if self.focus is None:
            self.focus = request
        self.background.start(request, task)

    def place(self, seen: Observation) -> Placement | Event:
        """Have the decision taken outside."""
        if seen.request != self.focus:
            return self.background.place(seen)
        assert self._env is not None
        self.seen, self.decision = seen, Event(self._env)
        self._env.pause()
        return self.decision

    def learn(self, row: RequestRow) -> None:
        """A request has ended."""
        self.background.learn(row)
        if row.request == self.focus:
            assert self._env is not None
            self.ended = row
            self._env.pause()
