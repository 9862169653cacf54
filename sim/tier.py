"""One tier at run time: its servers behind a balancer and the routes to it, built from the scenario."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

from simpy import Environment

from sim.bandwidth import Capacity, ConstantCapacity, RandomCapacity, TraceCapacity
from sim.batching import BatchingServer
from sim.draws import CommonDraws, component_rng
from sim.endpoint import CloudEndpoint, LogNormal
from sim.fleet import Fleet
from sim.network import Link, Route
from sim.nominal import nominal_service_s
from sim.prompt_cache import PromptCache
from sim.scenario import BandwidthFile, LinkSpec, Scenario, Service, Tier
from sim.server import Job, Server, SlotServer
from sim.step_model import StepModel
from sim.study import roofline_of
from workloads.bandwidth import BandwidthTrace
from workloads.errors import InputError
from workloads.task import Completion, ModelCall

_NOT_MEASURED = (
    "Use service_time: profile, or answers with their seconds: live ones, or a recording made with --timings"
)
TraceLoader = Callable[[BandwidthFile], BandwidthTrace]


class TierRuntime:
    """A tier's fleet and its routes, one pair per home (one pair in all where homes share their links)."""

    __slots__ = (
        "_draws", "_exponential", "_keeps_attachments", "_mean_s", "_measured", "_routes", "fall_backs", "fleet", "index", "model_name", "name",
        "roofline", "sees_modalities", "spec", "tells_first_token",
    )  # fmt: skip

    def __init__(
        self, index: int, name: str, spec: Tier, fleet: Fleet, routes: list[tuple[Route | None, Route | None]],
        draws: CommonDraws, roofline: StepModel | None, *, measured: bool, keeps_attachments: bool = False,
    ) -> None:  # fmt: skip
        self.index, self.name, self.spec, self.fleet, self._routes = index, name, spec, fleet, routes
        self.model_name = spec.model_name or name
        self.roofline = roofline
        self.sees_modalities = spec.sees_modalities
        self._keeps_attachments = keeps_attachments
        # A server that is given its service times, measured or drawn, does not know when the first token comes.
        self.tells_first_token = spec.service is None and not (measured and spec.device is not None)
        self.fall_backs: tuple[TierRuntime, ...] = ()
        self._draws, self._measured = draws, measured
        # Read out of the pydantic model once, as every call asks.
        self._mean_s = spec.service.mean_s if spec.service else None
        self._exponential = spec.service is not None and spec.service.distribution == "exponential"

    def routes(self, home: int) -> tuple[Route | None, Route | None]:
        """(up, down) between a home and this tier; None where nothing lies between them."""
        routes = self._routes
        return routes[home % len(routes)]

    @property
    def all_routes(self) -> list[tuple[Route | None, Route | None]]:
        """Every (up, down) pair, by home where homes have links of their own."""
        return self._routes

    def job(self, answer: Completion, call: ModelCall, request: int) -> Job:
        """The work an answer is for this tier's servers.

        Attachments that are sent anew with every turn lead the prompt: what was processed of the conversation is of use again only
        with the same ones. Those that a tier keeps stay where they came up.
        """
        conversation: Hashable = request
        if call.attachments and not self._keeps_attachments:
            conversation = (request, *[attachment.name for attachment in call.attachments])
        return Job(
            answer.prompt_tokens, answer.completion_tokens, request, call.position,
            self._service_s(answer, request, call.position), call.prefix_blocks, conversation=conversation,
        )  # fmt: skip

    def nominal_service_s(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Prefill and decode seconds of one call alone on an idle server."""
        return nominal_service_s(self.spec, self.roofline, prompt_tokens, completion_tokens)

    def _service_s(self, answer: Completion, request: int, position: int) -> float | None:
        """Given service seconds; None where the server works them out from its profile."""
        if self._measured:
            # An API that is not asked for a stream tells no first token: all its seconds are in `decode_s`.
            prefill_s = answer.prefill_s if answer.prefill_s == answer.prefill_s else 0.0
            if answer.decode_s != answer.decode_s:
                problem = f"the answers of {self.model_name!r} (tier {self.name}) hold no measured times"
                raise InputError("field inference.service_time", problem, _NOT_MEASURED)
            return prefill_s + answer.decode_s
        mean_s = self._mean_s
        if mean_s is not None and self._exponential:
            return -mean_s * math.log(self._draws.uniform(request, position))
        return mean_s


class Links:
    """All links of a scenario, made once and shared by the routes that cross them."""

    def __init__(self, env: Environment, scenario: Scenario, seed: int, load_trace: TraceLoader) -> None:
        self._env, self._seed, self._load_trace = env, seed, load_trace
        self._homes = scenario.workload.homes if any(link.per_home for link in scenario.links) else 1
        self.by_hop: dict[str, list[tuple[Link, Link]]] = {
            "-".join(spec.between): [self._pair(spec, home) for home in range(self._homes if spec.per_home else 1)]
            for spec in scenario.links
        }

    def routes(self, hops: tuple[LinkSpec, ...]) -> list[tuple[Route | None, Route | None]]:
        """One (up, down) pair per home that has links of its own, else one in all."""
        if not hops:
            return [(None, None)]
        pairs = [self.by_hop["-".join(spec.between)] for spec in hops]
        return [self._route([pair[home % len(pair)] for pair in pairs]) for home in range(self._homes)]

    def _route(self, pairs: list[tuple[Link, Link]]) -> tuple[Route, Route]:
        return Route(self._env, [up for up, _ in pairs]), Route(self._env, [down for _, down in reversed(pairs)])

    def _pair(self, spec: LinkSpec, home: int) -> tuple[Link, Link]:
        return self._link(spec, "up", spec.link.up_mbps, home), self._link(spec, "down", spec.link.down_mbps, home)

    def _link(self, spec: LinkSpec, direction: str, mbps: float, home: int) -> Link:
        hop, name = spec.link, f"{'-'.join(spec.between)}/{direction}/{home}"
        jitter_s = hop.jitter_s if hop.jitter != "none" else 0.0
        return Link(
            self._env, name, self._capacity(spec, direction, mbps, name), propagation_s=hop.propagation_s, jitter_s=jitter_s,
            jitter=hop.jitter if jitter_s else "none", loss=hop.loss, shared=spec.shared, draws=CommonDraws(self._seed, name),
        )  # fmt: skip

    def _capacity(self, spec: LinkSpec, direction: str, mbps: float, name: str) -> Capacity:
        rng = component_rng(self._seed, f"bandwidth/{name}")
        file = spec.up_trace if direction == "up" else spec.down_trace
        if file is not None:
            trace = self._load_trace(file)
            offset_s = float(rng.random() * trace.durations_s.sum()) if file.random_start else 0.0
            return TraceCapacity(trace.durations_s, trace.mbps, offset_s)
        if spec.link.bandwidth_cv:
            return RandomCapacity(mbps, spec.link.bandwidth_cv, spec.link.bandwidth_interval_s, rng)
        return ConstantCapacity(mbps)


def build_tiers(env: Environment, scenario: Scenario, seed: int, links: Links) -> dict[str, TierRuntime]:
    """Every tier of a scenario, ready to serve."""
    measured = scenario.inference.service_time == "measured"
    tiers = {}
    for index, (name, spec) in enumerate(scenario.tiers.items()):
        roofline = roofline_of(spec)
        fleet = Fleet(
            [_server(env, f"{name}/{i}", spec, roofline, seed, measured=measured) for i in range(spec.replicas)],
            spec.balancer,
            draws=CommonDraws(seed, f"balancer/{name}"),
            name=name,
        )
        draws = CommonDraws(seed, f"service/{name}")
        tiers[name] = TierRuntime(
            index, name, spec, fleet, links.routes(scenario.route(name)), draws, roofline, measured=measured,
            keeps_attachments=scenario.client.keep_attachments,
        )  # fmt: skip
    for tier in tiers.values():
        tier.fall_backs = tuple(other for other in tiers.values() if other is not tier)
    return tiers


def _server(
    env: Environment, name: str, spec: Tier, roofline: StepModel | None, seed: int, *, measured: bool
) -> Server:
    if roofline is not None and measured:  # the measured times hold what batching did; only the slots are left to model
        return SlotServer(env, spec.max_batch, discipline=spec.discipline, name=name)
    if roofline is not None:
        cache = (
            PromptCache(spec.cache_lifetime_s, block_tokens=16) if spec.prefix_cache and spec.cache_lifetime_s else None
        )
        return BatchingServer(
            env, roofline, max_batch=spec.max_batch, discipline=spec.discipline, cache=cache, name=name
        )
    if spec.endpoint is not None:
        return _endpoint(env, name, spec, seed)
    service = spec.service or Service()
    return SlotServer(env, service.slots, discipline=spec.discipline, name=name)


def _endpoint(env: Environment, name: str, spec: Tier, seed: int) -> CloudEndpoint:
    api = spec.endpoint
    assert api is not None
    cache = (
        PromptCache(api.cache_lifetime_s, block_tokens=128, minimum_tokens=api.cache_min_tokens)
        if spec.prefix_cache and api.cache_lifetime_s
        else None
    )
    return CloudEndpoint(
        env, name, ttft_s=LogNormal(api.ttft_median_s, api.ttft_sigma),
        tokens_per_s=LogNormal(api.tokens_per_s_median, api.tokens_per_s_sigma),
        draws=(CommonDraws(seed, f"ttft/{name}"), CommonDraws(seed, f"rate/{name}")), concurrency=api.concurrency, rpm=api.rpm,
        tpm=api.tpm, ttft_per_prompt_token_s=api.prefill_s_per_token, cache=cache,
    )  # fmt: skip
