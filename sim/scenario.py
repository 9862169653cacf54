"""The scenario: everything one simulation depends on, validated before anything runs.

`Scenario` at the end names the sections; workload and world have files of their own. Every field has its unit in its name and,
where it has one, a default. Reading YAML, applying `--set` and unfolding sweeps is sim/loading.py's work.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from pydantic import Field, model_validator

from sim.profiles import Name, NonNegative, Positive, PriceProfile, Prices, Strict
from sim.scenario_serving import Inference, LocalNodes, ServedModel, UpstreamApi
from sim.scenario_workload import (
    Arrivals,
    BranchingTasks,
    Dialogues,
    Gsm8kTasks,
    HotpotQaTasks,
    InterCode,
    Modelled,
    PairTasks,
    RecordedTasks,
    RouteLLM,
    TokenTrace,
    Workload,
)
from sim.scenario_world import BandwidthFile, Fault, LinkSpec, Service, Tier
from workloads.errors import suggest

__all__ = [
    "Arrivals",
    "BandwidthFile",
    "BranchingTasks",
    "Client",
    "Dialogues",
    "Fault",
    "Gsm8kTasks",
    "HotpotQaTasks",
    "Inference",
    "InterCode",
    "LinkSpec",
    "LocalNodes",
    "Modelled",
    "PairTasks",
    "PolicySpec",
    "Pricing",
    "RecordedTasks",
    "RouteLLM",
    "Scenario",
    "ServedModel",
    "Service",
    "Sla",
    "Tier",
    "TokenPrice",
    "TokenTrace",
    "UpstreamApi",
    "Workload",
]


TEXT_TASKS = ("pair", "branching", "gsm8k", "hotpotqa")
"""Kinds of tasks that are only asked: a recording or a live model answers them."""


class Client(Strict):
    """What the agent's side does about slow and failing tiers."""

    timeout_s: Positive = 300.0
    """A request unfinished after this time is given up (HERA's completion rate uses 300 s)."""
    attempt_timeout_s: Positive | None = None
    """One attempt at a subtask is given up after this time and retried or failed over."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Further attempts of a subtask on the same tier after 429, outage, crash or attempt timeout."""
    backoff_s: NonNegative = 0.5
    """Pause before the first retry, doubled each time, with full jitter; a Retry-After counts as the least pause."""
    backoff_max_s: Positive = 60.0
    """Longest pause, s."""
    fail_over: bool = True
    """When retries are used up, try the other tiers in the order they are listed."""
    stream: bool = True
    """Answers are streamed: tokens travel while the rest is generated."""
    stream_bytes_per_token: NonNegative = 180.0
    """Framing of one streamed token (server-sent event with a JSON chunk), bytes."""
    signal_age_s: NonNegative = 0.0
    """Policies see queues and links as they were up to this long ago: measurements are taken this often; 0 = always fresh."""
    keep_attachments: bool = False
    """What was sent along to a tier stays in the conversation there: later turns see it and do not send it again (false: every turn
    sends its own, as in TMO)."""
    max_branches: Annotated[int, Field(ge=1)] | None = None
    """Most branches of a request that run side by side where its agent forks; the others follow. 1 = one after another; null = all."""
    home_power_w: NonNegative = 0.0
    """Power of the user's device while it decides where to run a step, W."""


class Sla(Strict):
    """What lateness costs."""

    deadline_s: Positive | None = None
    """A request later than this is late; also what policies see as their time budget."""
    penalty_usd: NonNegative = 0.0
    """Charge per late or unfinished request, $."""


class TokenPrice(Strict):
    """An API price list of one's own, $ per 1e6 tokens."""

    input_usd_per_mtok: NonNegative
    """Prompt tokens."""
    output_usd_per_mtok: NonNegative
    """Completion tokens."""
    cached_input_usd_per_mtok: NonNegative | None = None
    """Prompt tokens read from the cache; default as input."""


class Pricing(Strict):
    """The price list of the ledger."""

    date: datetime.date = datetime.date(2026, 1, 1)
    """API prices as they were on this day, from the price library."""
    tokens: dict[Name, TokenPrice] = {}
    """API prices per tier, instead of the library's."""
    other: Prices = PriceProfile()
    """Electricity, carbon and hardware."""


class PolicySpec(Strict):
    """A policy and its options; an option given as a list is swept."""

    policy: str
    """A name from `list`, or `file.py:Class` of your own."""
    label: Name | None = None
    """Name of the family in results; default the policy's name."""
    options: dict[str, Any] = {}
    """The policy's options."""

    @model_validator(mode="before")
    @classmethod
    def _options_beside_the_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"policy": value}
        if isinstance(value, dict) and "options" not in value:
            own = {k: v for k, v in value.items() if k in ("policy", "label")}
            return {**own, "options": {k: v for k, v in value.items() if k not in own}}
        return value


class Scenario(Strict):
    """A complete experiment: one workload on one world under several policies and seeds."""

    name: Name
    """Results go to results/<name>/."""
    description: str = ""
    """One paragraph for the report."""
    workload: Workload
    """What is asked."""
    tiers: dict[Name, Tier]
    """Places where models run, in the order of fail-over."""
    links: tuple[LinkSpec, ...] = ()
    """Hops between `home` and the tiers; a tier without a link to `home` is at home."""
    faults: tuple[Fault, ...] = ()
    """What breaks."""
    client: Client = Client()
    """What the agent's side does about it."""
    sla: Sla = Sla()
    """What lateness costs."""
    pricing: Pricing = Pricing()
    """The price list."""
    inference: Inference = Inference()
    """Where answers come from."""
    policies: Annotated[tuple[PolicySpec, ...], Field(min_length=1)]
    """Policies to compare."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (1, 2, 3)
    """Scenario seeds; every policy sees the same arrivals, network and tasks under one seed."""
    sweep: dict[str, tuple[Any, ...]] = {}
    """Grid over any field: {path: [values]}, paths as in --set."""

    @model_validator(mode="after")
    def _names_fit(self) -> Scenario:
        if not self.tiers:
            raise ValueError("tiers: there is none. Describe at least one tier")
        if not self.seeds:
            raise ValueError("seeds: there is none. Give at least one seed")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: one is given twice. Give different seeds")
        if "home" in self.tiers:
            raise ValueError("tiers.home: 'home' is the user's device and cannot name a tier. Choose another name")
        if self.workload.warmup_requests >= self.workload.requests:
            few = f"{self.workload.warmup_requests} of {self.workload.requests} requests are warm-up"
            raise ValueError(f"workload.warmup_requests: {few}. Leave some to be measured")
        self._check_trace_workload()
        self._check_answers()
        self._check_places()
        return self

    def _check_answers(self) -> None:
        """Somebody must be there to answer the tasks."""
        kind, inference = self.workload.tasks.kind, self.inference
        own = kind not in TEXT_TASKS
        if inference.on_miss == "modelled" and kind != "intercode":
            raise ValueError(
                f"inference.on_miss: 'modelled' needs a model of outcomes, and tasks of kind {kind!r} have none. Leave it out: "
                "record what is missing, or ask live models with backend: serve"
            )
        if inference.backend == "serve":
            if own:
                raise ValueError(
                    f"inference.backend: 'serve' asks live models, but tasks of kind {kind!r} bring their own answers. "
                    f"Give tasks of kind {', '.join(TEXT_TASKS)}, or backend: replay"
                )
            for name, tier in self.tiers.items():
                if tier.serve is None:
                    raise ValueError(
                        f"tiers.{name}.serve: is missing, and inference.backend 'serve' asks the tier's live model. "
                        "Say which model it is, e.g. serve: {source: pair/slm}"
                    )
        elif inference.backend == "modelled":
            if kind != "pair":
                raise ValueError(
                    f"inference.backend: 'modelled' makes up answers to tasks of kind 'pair' only, found kind {kind!r}. Give "
                    "workload.tasks of kind pair, or backend: replay"
                )
        elif not own and inference.recording is None:
            raise ValueError(
                f"inference.recording: is missing, and tasks of kind {kind!r} bring no answers. Name a recording made by "
                "`run_sim.py record`, or set backend: serve to ask live models"
            )
        elif own and inference.recording is not None:
            raise ValueError(f"inference.recording: tasks of kind {kind!r} bring their own answers. Leave it out")

    def _check_trace_workload(self) -> None:
        if self.workload.tasks.kind == "trace" and self.workload.arrivals.kind != "trace":
            raise ValueError(
                "workload.tasks: kind 'trace' takes its token counts from the arrivals. Give workload.arrivals of kind 'trace'"
            )

    def _check_places(self) -> None:
        hops = {"-".join(link.between) for link in self.links}
        targets = hops | set(self.tiers)
        for number, fault in enumerate(self.faults):
            place = f"faults.{number}"
            if fault.target not in targets:
                raise ValueError(f"{place}.target: no tier or link {fault.target!r}. {suggest(fault.target, targets)}")
            if (fault.target in hops and fault.kind != "outage") or (
                fault.kind == "slow" and self.tiers[fault.target].endpoint is None
            ):
                raise ValueError(
                    f"{place}.kind: {fault.kind!r} does not apply to {fault.target!r}. Links have outages, tiers outages and "
                    "crashes, and only endpoints can be slow"
                )
            if (
                fault.target in self.tiers
                and fault.kind == "crash"
                and fault.replica >= self.tiers[fault.target].replicas
            ):
                last = self.tiers[fault.target].replicas - 1
                raise ValueError(
                    f"{place}.replica: tier {fault.target!r} has no replica {fault.replica}. Its last one is {last}"
                )
        for tier in self.pricing.tokens:
            if tier not in self.tiers:
                raise ValueError(f"pricing.tokens: no tier {tier!r}. {suggest(tier, self.tiers)}")
        if len(hops) != len(self.links):
            raise ValueError("links: two links join the same places. Keep one of them")
        starts = {link.between[0] for link in self.links}
        for number, link in enumerate(self.links):
            near, far = link.between
            if far == "home" or near == far:
                raise ValueError(
                    f"links.{number}.between: goes from {near!r} to {far!r}. Name the end nearer to the user first"
                )
            if far not in self.tiers and far not in starts:
                raise ValueError(
                    f"links.{number}.between: {far!r} is no tier and leads nowhere. {suggest(far, self.tiers)}"
                )
        for tier in self.tiers:
            self.route(tier)

    def route(self, tier: str) -> tuple[LinkSpec, ...]:
        """The hops from home to a tier (fewest first); empty where no link mentions it: the tier is at home."""
        if not any(tier in link.between for link in self.links):
            return ()
        paths: list[tuple[str, tuple[LinkSpec, ...]]] = [("home", ())]
        seen = {"home"}
        while paths:
            place, hops = paths.pop(0)
            if place == tier:
                return hops
            for link in self.links:
                near, far = link.between
                if near == place and far not in seen:
                    seen.add(far)
                    paths.append((far, (*hops, link)))
        raise ValueError(
            f"links: no path from 'home' to tier {tier!r}. A link's first end is the one nearer to the user"
        )
