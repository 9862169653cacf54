"""The simulated counterpart of a tier that really runs: the same arrivals, calls, token counts and links, on fitted step times."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sim.environment import FastEnvironment
from sim.policies.base import PolicyOptions
from sim.policies.baselines import AllSlm
from sim.profiles import StepTimesProfile
from sim.records import Records
from sim.scenario import LinkSpec, Scenario
from sim.simulation import simulate
from sim.step_times import StepTimes
from sim.tier import Links, TraceLoader
from sim.workload import BuiltWorkload
from workloads.agent import AgentRun
from workloads.backend import ScriptedBackend
from workloads.errors import InputError
from workloads.task import Completion, ModelCall, Outcome, Task
from workloads.timed_calls import TimedRequest

Floats = npt.NDArray[np.float64]
_NO_LIMIT_S = 1e9
_ANY_MEMORY_GBYTES = 1e6


class TwinTimes(NamedTuple):
    """When the simulated requests ended and how long they took, in the order of the measured ones."""

    ended_s: Floats
    latency_s: Floats


class Twin:
    """A tier of a scenario with measured step times, alone in its world, asked what the real one was asked."""

    def __init__(self, scenario: Scenario, tier: str, times: StepTimes, seed: int, load_trace: TraceLoader) -> None:
        self._scenario = measured_scenario(scenario, tier, times)
        self._seed, self._load_trace = seed, load_trace

    def open_loop(self, measured: Sequence[TimedRequest]) -> TwinTimes:
        """The same requests, due at the same times."""
        return self._run(self._scenario, measured, np.array([request.due_s for request in measured]))

    def closed_loop(self, measured: Sequence[TimedRequest], callers: int) -> TwinTimes:
        """The same requests in turn, by `callers` users next to the system who ask again as soon as they are answered."""
        document = self._scenario.model_dump()
        document["links"] = ()
        document["workload"]["arrivals"] = {"kind": "closed", "users": callers, "think_s": 0.0}
        return self._run(Scenario.model_validate(document), measured, None)

    def _run(self, scenario: Scenario, measured: Sequence[TimedRequest], due_s: Floats | None) -> TwinTimes:
        tasks = [Task(str(number), latent=request) for number, request in enumerate(measured)]
        workload = BuiltWorkload(tasks, tasks, _same_calls, ScriptedBackend(_same_answer), due_s)
        records = simulate(scenario, workload, AllSlm(PolicyOptions()), self._seed, self._load_trace)
        _check(records)
        return TwinTimes(records.requests["end_s"], records.requests["latency_s"])


def _same_calls(task: Task) -> AgentRun:
    """Asks what a measured request asked; nothing where that failed, so that the numbers of the others stay the same."""
    request: TimedRequest = task.latent
    for position, call in enumerate(() if request.failure else request.calls):
        tokens = call.completion.prompt_tokens
        yield ModelCall(task, position, (), tokens, call.upload_bytes, call.tool_s)
    return Outcome(1.0, "", 0.0 if request.failure else request.last_tool_s)


def _same_answer(call: ModelCall, model: str) -> Completion:
    del model
    request: TimedRequest = call.task.latent
    return request.calls[call.position].completion


def measured_scenario(scenario: Scenario, tier: str, times: StepTimes) -> Scenario:
    """The scenario with this tier only, on measured step times, and a client that waits as the load generator does."""
    document: dict[str, Any] = scenario.model_dump()
    kept: dict[str, Any] = document["tiers"][tier]
    device = kept["device"] or {"memory_gbytes": _ANY_MEMORY_GBYTES}
    fitted = {name: getattr(times, name) for name in StepTimesProfile.model_fields}
    # A live engine keeps no prefixes; answers arrive whole, as the backend returns them.
    kept.update(device={**device, "step_times": fitted}, endpoint=None, service=None, prefix_cache=False)
    client = {"stream": False, "timeout_s": _NO_LIMIT_S, "retries": 0, "fail_over": False}
    document.update(
        tiers={tier: kept}, links=tuple(link.model_dump() for link in scenario.route(tier)), faults=(), client=client,
        policies=("all-slm",), sweep={},
    )  # fmt: skip
    document["pricing"]["tokens"] = {
        name: price for name, price in document["pricing"]["tokens"].items() if name == tier
    }
    document["inference"]["service_time"] = "profile"
    return Scenario.model_validate(document)


def _check(records: Records) -> None:
    lost = [str(reason) for reason in records.requests["reason"][records.requests["status"] != "completed"]]
    if lost:
        raise InputError(
            "fidelity",
            f"{len(lost)} simulated requests did not complete ({lost[0]})",
            "Give the tier's device more memory",
        )


class LinkDelays:
    """What every call spends on the links to a tier, drawn as the simulator draws it; for sleeping that long in reality.

    Raises InputError for links on which a call's delay depends on when it is sent or on other calls.
    """

    def __init__(self, scenario: Scenario, tier: str, seed: int, load_trace: TraceLoader) -> None:
        hops = scenario.route(tier)
        for number, link in enumerate(scenario.links):
            if link in hops:
                _check_link(number, link)
        self._env, self._lock = FastEnvironment(), Lock()
        self._routes = Links(self._env, scenario, seed, load_trace).routes(hops)
        self._homes = scenario.workload.homes

    def __call__(self, up: bool, request: int, position: int, size_bytes: float) -> float:
        """Seconds this call's request (`up`) or answer is on its way; safe to ask from any thread."""
        routes = self._routes[request % self._homes % len(self._routes)]
        route = routes[0] if up else routes[1]
        if route is None:
            return 0.0
        with self._lock:
            begun_s = self._env.now
            self._env.run(until=route.transfer(size_bytes, request, position))
            return self._env.now - begun_s


def _check_link(number: int, link: LinkSpec) -> None:
    varies = link.link.bandwidth_cv > 0 or link.up_trace is not None or link.down_trace is not None
    problems = {
        "shared": ("calls would delay each other on it", link.shared, "Set shared: false"),
        "link.bandwidth_cv": ("its bandwidth changes over time", varies, "Use a link of constant bandwidth"),
    }
    for field, (problem, wrong, remedy) in problems.items():
        if wrong:
            raise InputError(
                f"field links.{number}.{field}", problem, f"{remedy}: real delays are injected call by call"
            )
