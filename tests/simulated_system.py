"""A "real" system whose step times are known: it runs in virtual time, so a load of minutes takes a moment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sim.policies.base import PolicyOptions
from sim.policies.baselines import AllSlm
from sim.scenario import Scenario
from sim.simulation import simulate
from sim.step_times import StepTimes
from sim.twin import measured_scenario
from sim.workload import BuiltWorkload, load_trace
from tests.helpers import NOWHERE, rows
from workloads.agent import Agent
from workloads.backend import ScriptedBackend
from workloads.task import Completion, ModelCall, Task
from workloads.timed_calls import TimedCall, TimedRequest

Delay = Callable[[bool, int, int, float], float]


class SimulatedSystem:
    """One tier of a scenario on `times`; answers take as many tokens as they may. `noise` is the sigma of measured durations."""

    def __init__(self, scenario: Scenario, tier: str, times: StepTimes, noise: float = 1e-9) -> None:
        self._scenario, self._noise = measured_scenario(scenario, tier, times), noise
        self._rng = np.random.default_rng(5)
        self._read: dict[float, float] = {}

    def open_loop(
        self, requests: Sequence[Task], agent: Agent, due_s: Sequence[float], delay_s: Delay | None = None
    ) -> list[TimedRequest]:
        """As a load generator that is never late; the links are the simulator's own."""
        del delay_s
        return self._run(self._scenario, requests, agent, np.array(due_s))

    def closed_loop(self, requests: Sequence[Task], agent: Agent, callers: int, seconds: float) -> list[TimedRequest]:
        """As many of the requests as are begun within `seconds`."""
        document = self._scenario.model_dump()
        document["links"] = ()
        document["workload"]["arrivals"] = {"kind": "closed", "users": callers, "think_s": 0.0}
        closed = Scenario.model_validate(document)
        begun = [request for request in self._run(closed, requests, agent, None) if request.begun_s < seconds]
        return self._run(closed, requests[: len(begun)], agent, None)

    def _run(self, scenario: Scenario, requests: Sequence[Task], agent: Agent, due_s: Any) -> list[TimedRequest]:
        self._read.clear()
        workload = BuiltWorkload(requests, requests, agent, ScriptedBackend(_answer), due_s)
        records = simulate(scenario, workload, AllSlm(PolicyOptions()), 1, lambda file: load_trace(file, NOWHERE))
        calls: dict[int, list[TimedCall]] = {}
        answered_s: dict[int, float] = {}
        for row in rows(records.subtasks):
            if row["tier"] >= 0:
                calls.setdefault(row["request"], []).append(self._call(row))
                answered_s[row["request"]] = row["end_s"]
        return [
            TimedRequest(
                task.id, row["arrival_s"], row["arrival_s"], row["end_s"], tuple(calls[row["request"]]),
                last_tool_s=row["end_s"] - answered_s[row["request"]],
            )
            for task, row in zip(requests, rows(records.requests), strict=True)
        ]  # fmt: skip

    def _call(self, row: dict[str, Any]) -> TimedCall:
        first, second = 1.0 + self._noise * self._rng.standard_normal(2)  # no clock shows the same time twice
        sent_s = row["start_s"] + row["backoff_s"] + row["tool_s"] + row["decision_s"] + row["uplink_s"]
        first = self._read.setdefault(
            round(sent_s + row["queue_s"], 9), first
        )  # calls that were read together have one time
        completion = Completion(
            "m", "", row["prompt_tokens"], row["completion_tokens"], round(row["download_bytes"]),
            prefill_s=round(row["prefill_s"], 9) * first, decode_s=row["decode_s"] * second,
        )  # fmt: skip
        return TimedCall(
            sent_s, row["end_s"] - row["downlink_s"], completion, round(row["upload_bytes"]), row["tool_s"]
        )


def _answer(call: ModelCall, model: str) -> Completion:
    return Completion(model, "", call.prompt_tokens, call.max_tokens, 300 + 4 * call.max_tokens)
