"""A policy at work on live calls: the observation the simulator would build, from the clock on the wall and the load that is.

The network is not measured: transfer times are what the scenario's links take when nothing else is on them, by the simulator's
own estimate, with bandwidth traces and random bandwidth going on as time passes.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

from simpy import Event

from sim.attempt import wrong_placement
from sim.cost import TierRates
from sim.environment import FastEnvironment
from sim.policies import bring, file_of
from sim.policies.base import Observation, Placement, RoutingPolicy, Study, TierView
from sim.records import RequestRow, SubtaskRow
from sim.scenario import Scenario
from sim.server import OK
from sim.signals import LiveSignals
from sim.study import rates_of, study_of, tier_views
from sim.tier import Links, TierRuntime, build_tiers
from sim.workload import BuiltWorkload, build_workload, load_trace
from workloads.errors import InputError
from workloads.placing import Charge, TierLoad
from workloads.task import Completion, ModelCall, Task

_REMEMBERED_REQUESTS = 10_000
_FIRST_GUESS_TOKENS = 64.0
"""Length of an answer before any was seen."""
_SMOOTHING = 0.05
"""Weight of the latest answer in the typical length."""


class LoadSignals(LiveSignals):
    """Signals with the queues of the live tiers; links, prices and nominal service times are the scenario's."""

    def __init__(
        self, env: FastEnvironment, tiers: Mapping[str, TierRuntime], rates: Sequence[TierRates[float]], scenario: Scenario
    ) -> None:  # fmt: skip
        super().__init__(tiers, rates, scenario.pricing.other, scenario.client.home_power_w)
        self.env, self.tiers = env, tiers
        self.load: Mapping[str, TierLoad] = {}
        self.prompt_tokens = 0
        self.typical_tokens = dict.fromkeys(tiers, _FIRST_GUESS_TOKENS)
        """Length of a tier's answers lately, tokens."""

    def wait_s(self, tier: str) -> float:
        """Calls ahead x nominal service time / calls answered at the same time; 0 while there is room."""
        load = self.load.get(tier)
        if load is None or (not load.waiting and load.active < load.capacity):
            return 0.0
        service_s = self.service_s(tier, self.prompt_tokens, round(self.typical_tokens[tier]))
        return (load.waiting + 1) * service_s / max(1, load.capacity)


class LiveWorld:
    """What all policies of a gateway share: the tiers as policies see them, the clock, signals and the ledger."""

    def __init__(self, scenario: Scenario, scenario_path: Path, seed: int) -> None:
        self._scenario, self._seed = scenario, seed
        files = [file for link in scenario.links for file in (link.up_trace, link.down_trace) if file is not None]
        self._traces = {file: load_trace(file, scenario_path) for file in files}  # they may not lie where this goes
        self._rates = rates_of(scenario)
        self.views = tier_views(scenario, self._rates)
        self.small = next((view.name for view in self.views if view.role == "slm"), self.views[0].name)
        self.large = next((view.name for view in self.views if view.role == "llm"), self.views[-1].name)
        self.deadline_s = scenario.sla.deadline_s or scenario.client.timeout_s
        self.homes = scenario.workload.homes

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the clock and the simulator's objects, which are made anew where this arrives."""
        return {name: value for name, value in vars(self).items() if name not in ("signals", "_began_s")}

    @cached_property
    def _began_s(self) -> float:
        return time.monotonic()

    def now_s(self) -> float:
        """Seconds since the first call here."""
        began_s = self._began_s  # first: it may be set now
        return time.monotonic() - began_s

    @cached_property
    def signals(self) -> LoadSignals:
        """What policies may know, on idle links that nothing travels over."""
        env, scenario = FastEnvironment(), self._scenario
        tiers = build_tiers(env, scenario, self._seed, Links(env, scenario, self._seed, self._traces.__getitem__))
        return LoadSignals(env, tiers, tuple(self._rates.values()), scenario)

    def observation(
        self, request: int, call: ModelCall, arrival_s: float, attempts: Sequence[SubtaskRow], load: Mapping[str, TierLoad]
    ) -> Observation:  # fmt: skip
        """What the policy sees of this call."""
        signals, now_s = self.signals, self.now_s()
        if now_s > signals.env.now:
            signals.env.run(until=now_s)  # nothing is scheduled: only the clock of the links moves on
        signals.load, signals.prompt_tokens = load, call.prompt_tokens
        return Observation(
            request, call, now_s, arrival_s, self.deadline_s, self.views, self.small, self.large, attempts, signals,
            request % self.homes,
        )  # fmt: skip

    def attempt(
        self, tier: str, completion: Completion, upload_bytes: float, download_bytes: float, prefill_s: float, decode_s: float,
        decision_s: float, request: int, position: int,
    ) -> SubtaskRow:  # fmt: skip
        """An answered call as a row of the simulator's records; ends now.

        The device time is the profile's for a call alone, or the measured time where the scenario says `service_time: measured`.
        """
        signals, now_s = self.signals, self.now_s()
        runtime = signals.tiers[tier]
        typical = signals.typical_tokens
        typical[tier] += _SMOOTHING * (completion.completion_tokens - typical[tier])
        took_s = prefill_s + decode_s
        if math.isnan(took_s):
            prefill_s = decode_s = took_s = 0.0
        device_s = 0.0
        if runtime.roofline is not None:
            measured = self._scenario.inference.service_time == "measured" and took_s > 0.0
            nominal_s = runtime.nominal_service_s(completion.prompt_tokens, completion.completion_tokens)
            device_s = took_s if measured else nominal_s
        return SubtaskRow(
            request, position, 0, runtime.index, 0, OK, completion.provenance, now_s - took_s - decision_s, 0.0, 0.0, decision_s,
            0.0, 0.0, prefill_s, decode_s, 0.0, now_s, math.nan, device_s, completion.prompt_tokens, completion.cached_tokens,
            completion.completion_tokens, upload_bytes, download_bytes, "",
        )  # fmt: skip

    def charge(self, row: SubtaskRow) -> Charge:
        """The ledger of one attempt."""
        return Charge(self.signals.cost_usd(row), self.signals.energy_j(row))


class StudyOnDemand:
    """A Study that is put together when a policy first looks into it: many policies only want its seed."""

    def __init__(
        self, scenario: Scenario, scenario_path: Path, seed: int, workload: BuiltWorkload | None = None
    ) -> None:
        self._scenario, self._path, self.seed, self._workload = scenario, scenario_path, seed, workload
        self.looked_into = False

    def as_study(self) -> Study:
        """This, for callers that want a Study: it has every field."""
        return cast(Study, self)

    @property
    def tiers(self) -> tuple[TierView, ...]:
        """The tiers, which need no workload."""
        return tier_views(self._scenario, rates_of(self._scenario))

    @cached_property
    def _study(self) -> Study:
        self.looked_into = True
        workload = self._workload or build_workload(self._scenario, self.seed, self._path)
        return study_of(self._scenario, workload, self.seed)

    def __getattr__(self, name: str) -> Any:
        """Any field of the Study."""
        if name.startswith("__") or name not in Study._fields:
            raise AttributeError(name)
        return getattr(self._study, name)


class _Request(NamedTuple):
    """What is remembered of a request under way."""

    task: Task
    arrival_s: float
    attempts: tuple[SubtaskRow, ...] = ()
    begun: bool = False
    """Whether its first subtask was placed; another one's may come before it where branches run side by side."""


class _Origin:
    """The file (path and text) of a policy's class, if it has one. Unpickled before the policy, it brings the class along."""

    def __init__(self, file: tuple[str, bytes] | None) -> None:
        self._file = file
        if file is not None:
            bring(*file)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _Origin, (self._file,)


class LivePolicy:
    """One prepared policy and the requests it is placing.

    A request starts with its first call (position 0), or with one of another branch that comes before it. The end of one is not known: it is forgotten when so many others came
    later, and the policy is told by `learn` with status `unknown` and no score.
    """

    def __init__(self, policy: RoutingPolicy) -> None:
        self._origin = _Origin(file_of(policy))  # before the policy: see there
        self._policy = policy
        self._requests: OrderedDict[int, _Request] = OrderedDict()

    @property
    def kind(self) -> type[RoutingPolicy]:
        """The policy's class."""
        return type(self._policy)

    def knows(self, request: int) -> bool:
        """Whether the request's first call was placed here."""
        return request in self._requests

    def place(self, request: int, call: ModelCall, world: LiveWorld, load: Mapping[str, TierLoad]) -> Placement:
        """Decide about one call. Raises InputError for a policy that cannot answer at once, or names no tier."""
        known = self._requests.get(request)
        if known is None or (known.begun and call.position == 0):
            self._forget(request, world)
            self._requests[request] = _Request(call.task, world.now_s())
            self._policy.start(request, call.task)
            if len(self._requests) > _REMEMBERED_REQUESTS:
                self._forget(next(iter(self._requests)), world)
        if call.position == 0:
            self._requests[request] = self._requests[request]._replace(begun=True)
        self._requests.move_to_end(request)
        return self._checked(self._policy.place(self._observation(request, call, world, load)), world)

    def review(
        self, request: int, call: ModelCall, world: LiveWorld, load: Mapping[str, TierLoad], placement: Placement, answer: Completion
    ) -> Placement | None:  # fmt: skip
        """Where an answer that the policy does not take is to be given again."""
        if request not in self._requests:
            return None  # forgotten, as so many others came meanwhile
        again = self._policy.review(self._observation(request, call, world, load), placement, answer)
        return None if again is None else self._checked(again, world)

    def _observation(
        self, request: int, call: ModelCall, world: LiveWorld, load: Mapping[str, TierLoad]
    ) -> Observation:
        known = self._requests[request]
        return world.observation(request, call, known.arrival_s, known.attempts, load)

    @staticmethod
    def _checked(placement: Placement | Event, world: LiveWorld) -> Placement:
        tiers = [view.name for view in world.views]
        if not isinstance(placement, Placement):
            remedy = "Use a policy that answers at once"
            raise InputError("policy", "place() waits for an event, which only a simulation brings", remedy)
        if placement.tier not in tiers:
            raise wrong_placement(placement, tiers)
        return placement

    def answered(self, row: SubtaskRow) -> None:
        """Remember what a call of a request under way cost."""
        known = self._requests.get(row.request)
        if known is not None:
            self._requests[row.request] = known._replace(attempts=(*known.attempts, row))

    def _forget(self, request: int, world: LiveWorld) -> None:
        known = self._requests.pop(request, None)
        if known is None:
            return
        slm = [view.role == "slm" for view in world.views]
        small = sum(slm[row.tier] for row in known.attempts)
        row = RequestRow(
            request, known.task.id, known.task.family, request % world.homes, known.arrival_s, world.now_s(), math.nan, len(known.attempts), small,
            math.nan, "unknown", "", "live",
        )  # fmt: skip
        self._policy.learn(row)
