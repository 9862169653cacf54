"""Which requests a learner meets: the scenario's training requests where it has some, in a new random order in every simulation."""

from __future__ import annotations

from pathlib import Path

from sim.scenario import Dialogues, Scenario
from sim.workload import BuiltWorkload, arrival_times, build_workload, in_order

DIALOGUES = 4000
"""Generated dialogues to learn from."""


class Pool:
    """Builds a simulation's workload, from tasks that were drawn once.

    Generated dialogues come from the split that the scenario does not run; other tasks from what `inference.training` names. Where
    a scenario has neither, every simulation draws its own tasks, as a run under that seed would.
    """

    def __init__(self, scenario: Scenario, path: Path, dialogues: int = DIALOGUES) -> None:
        self._scenario, self._path = scenario, path
        tasks = scenario.workload.tasks
        if isinstance(tasks, Dialogues):
            drawn = tasks.model_copy(update={"training_dialogues": dialogues})
            workload = scenario.workload.model_copy(update={"tasks": drawn, "requests": 1})
            scenario = scenario.model_copy(update={"workload": workload})
        self._drawn = build_workload(scenario, scenario.seeds[0], path)

    def __call__(self, seed: int) -> BuiltWorkload:
        """The workload of the simulation with this seed."""
        training = self._drawn.training
        if training is None:
            return build_workload(self._scenario, seed, self._path)
        spec = self._scenario.workload
        requests = in_order(training.tasks, spec.requests, seed, shuffle=True)
        arrivals = arrival_times(spec.arrivals, spec.requests, seed, self._path)
        return BuiltWorkload(training.tasks, requests, self._drawn.agent, training.backend, arrivals)
