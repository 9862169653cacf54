"""The scenario: everything one simulation depends on, validated before anything runs.

Read top to bottom: `Scenario` at the end names the sections. Every field has its unit in its name and, where it has one, a
default. Reading YAML, applying `--set` and unfolding sweeps is sim/loading.py's work.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sim.profiles import Device, Endpoint, LinkHop, Model, NonNegative, Positive, Prices, PriceProfile, Share, Strict

Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]


class Arrivals(Strict):
    """When requests arrive."""

    kind: Literal["poisson", "gamma", "mmpp", "diurnal", "closed", "trace", "constant"] = "poisson"
    """poisson; gamma (renewal with a chosen burstiness); mmpp (two-state bursts); diurnal (sinusoidal Poisson); closed (users who
    wait for their answer); trace (recorded times); constant (evenly spaced)."""
    rate_per_s: Positive = 1.0
    """Mean arrival rate, requests/s (not for closed and trace)."""
    cv: Positive = 1.0
    """gamma: coefficient of variation of the gaps; 1 = Poisson, above 1 = bursty."""
    burst_factor: Annotated[float, Field(ge=1)] = 4.0
    """mmpp: rate in the busy state over rate in the quiet state."""
    burst_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """mmpp: share of time in the busy state."""
    burst_s: Positive = 30.0
    """mmpp: mean length of a busy spell, s."""
    period_s: Positive = 86_400.0
    """diurnal: length of a day, s."""
    amplitude: Share = 0.5
    """diurnal: relative swing of the rate around its mean."""
    users: Count = 10
    """closed: number of users."""
    think_s: NonNegative = 10.0
    """closed: mean pause between an answer and the next request (exponential), s."""
    path: str | None = None
    """trace: the recorded file."""
    format: Literal["azure_llm", "burstgpt", "mooncake"] | None = None
    """trace: the file's format."""
    time_scale: Positive = 1.0
    """trace: factor on all times; 2 = half the load."""

    @model_validator(mode="after")
    def _trace_is_named(self) -> Arrivals:
        if self.kind == "trace" and (self.path is None or self.format is None):
            raise ValueError("arrivals of kind 'trace' need a path and a format")
        return self


class Modelled(Strict):
    """Statistical agent tasks, calibrated to the published averages of HERA/AIMS."""

    kind: Literal["modelled"]
    mean_subtasks: Annotated[float, Field(ge=3, le=12)] = 5.9
    """Mean steps of a request run by the large model."""
    max_subtasks: Annotated[int, Field(ge=3, le=15)] = 12
    """Most steps of a request."""
    prompt_tokens: Positive = 300.0
    """Mean length of the user's prompt, tokens."""
    slm_output_tokens: Positive = 70.0
    """Mean answer of the small model per step, tokens."""
    llm_output_tokens: Positive = 90.0
    """Mean answer of the large model per step, tokens."""
    tool_tokens: NonNegative = 60.0
    """Mean tool answer appended to the conversation per step, tokens."""
    tokens_cv: NonNegative = 0.6
    """Coefficient of variation of all token counts."""
    tool_s: NonNegative = 0.0
    """Time of a tool call between steps, s."""
    distinct_tasks: Count = 10_000
    """Most different tasks drawn; more requests repeat them in a new random order."""


class RouteLLM(Strict):
    """Single-question tasks with both models' recorded answers: a RouteLLM correctness CSV."""

    kind: Literal["routellm"]
    path: str
    """The CSV file."""
    slm: str
    """Column of the small model."""
    llm: str
    """Column of the large model."""


class InterCode(Strict):
    """Recorded multi-step agent episodes, one file per model, on the same tasks."""

    kind: Literal["intercode"]
    slm_path: str
    """Episodes of the small model."""
    llm_path: str
    """Episodes of the large model."""
    observation_tool_s: NonNegative = 0.2
    """Time the environment takes to answer an action, s (the recordings hold no times)."""


class TokenTrace(Strict):
    """Single-call tasks whose token counts come from the arrival trace; answers are not graded by text but modelled."""

    kind: Literal["trace"]


class RecordedTasks(Strict):
    """Tasks and answers from an Isthmus recording."""

    kind: Literal["recording"]
    path: str
    """The recording (JSON lines, .gz or plain)."""


class Workload(Strict):
    """What is asked, how often, by whom."""

    tasks: Annotated[Modelled | RouteLLM | InterCode | TokenTrace | RecordedTasks, Field(discriminator="kind")]
    """Where tasks and answers come from."""
    requests: Count = 400
    """Number of requests; tasks repeat in a new random order when there are fewer of them."""
    warmup_requests: Annotated[int, Field(ge=0)] = 0
    """Requests at the start that run but are left out of metrics."""
    arrivals: Arrivals = Arrivals()
    """When requests arrive."""
    homes: Count = 1
    """Number of user devices; requests come from them in turn."""
    shuffle: bool = True
    """Draw a new order of the tasks per seed."""


class Service(Strict):
    """A server known only by its service time: for theory and for measured completions."""

    distribution: Literal["exponential", "constant"] = "exponential"
    """Shape of the service time."""
    mean_s: Positive = 1.0
    """Mean service time, s."""
    slots: Count = 1
    """Requests served at the same time from one queue."""


class Tier(Strict):
    """A place where a model runs: exactly one of device, endpoint or service says how."""

    role: Literal["slm", "llm"]
    """Whether its model counts as the small or the large one."""
    model: Model
    """The model it serves."""
    model_name: str | None = None
    """Name under which answers were recorded; default the tier's name."""
    device: Device | None = None
    """Hardware with continuous batching."""
    endpoint: Endpoint | None = None
    """A hosted API."""
    service: Service | None = None
    """A plain queue with given service times."""
    replicas: Count = 1
    """Number of equal servers."""
    max_batch: Count = 32
    """device: sequences decoded together."""
    discipline: Literal["fifo", "priority"] = "fifo"
    """Order of the queue."""
    balancer: Literal["least-loaded", "round-robin", "random", "affinity"] = "least-loaded"
    """How a replica is chosen; affinity keeps a conversation where its cache is."""
    prefix_cache: bool = True
    """Reuse the processed prefix of a conversation (devices: KV cache; endpoints: prompt caching)."""
    cache_lifetime_s: NonNegative = 600.0
    """device: how long an idle prefix is kept, s (endpoints have their own)."""

    @model_validator(mode="after")
    def _one_kind(self) -> Tier:
        given = [kind for kind in ("device", "endpoint", "service") if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"a tier needs exactly one of device, endpoint or service, found {' and '.join(given) or 'none'}")
        return self


class BandwidthFile(Strict):
    """A recorded bandwidth trace; it repeats for ever."""

    path: str
    """The recorded file."""
    format: Literal["pensieve", "mahimahi", "csv"] = "pensieve"
    """pensieve: time and Mbit/s in two columns; mahimahi: packet times in ms; csv: named columns with units."""
    time_column: str | None = None
    """csv: `column:unit` of the time, where the header does not tell."""
    bandwidth_column: str | None = None
    """csv: `column:unit` of the bandwidth, where the header does not tell."""
    scale: Positive = 1.0
    """Factor on the bandwidth."""
    random_start: bool = True
    """Start at a random point of the trace, drawn per seed."""


class LinkSpec(Strict):
    """A hop between two places; the user's device is the place `home`."""

    between: tuple[Name, Name]
    """The two ends, the one nearer to the user first."""
    link: LinkHop
    """The hop's profile."""
    up_trace: BandwidthFile | None = None
    """Recorded bandwidth away from the user, instead of the profile's."""
    down_trace: BandwidthFile | None = None
    """Recorded bandwidth towards the user, instead of the profile's."""
    shared: bool = True
    """Concurrent transfers share the bandwidth (false: each has all of it)."""
    per_home: bool = False
    """Every user device has a link of its own (an access link)."""


class Fault(Strict):
    """Something that breaks, at given times or at random."""

    target: Name
    """A tier's name, or `a-b` for the link between a and b."""
    kind: Literal["outage", "crash", "slow"] = "outage"
    """outage: link or API unreachable; crash: one replica of a device loses its work and restarts; slow: API `factor` times slower."""
    at_s: tuple[NonNegative, ...] = ()
    """Start times, s."""
    duration_s: Positive = 60.0
    """How long each lasts (mean, for random ones), s."""
    mean_time_between_s: Positive | None = None
    """Random faults: mean time between the end of one and the start of the next (exponential), s."""
    factor: Annotated[float, Field(ge=1)] = 5.0
    """slow: factor on the API's time to first token and time per token."""
    replica: Annotated[int, Field(ge=0)] = 0
    """crash: which replica."""

    @model_validator(mode="after")
    def _has_a_time(self) -> Fault:
        if bool(self.at_s) == (self.mean_time_between_s is not None):
            raise ValueError("a fault needs either at_s or mean_time_between_s")
        return self


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


class Inference(Strict):
    """Where answers come from when a recording lacks them."""

    on_miss: Literal["error", "modelled"] = "error"
    """A placement nobody recorded: stop, or answer by a model of outcomes and label it `modelled`."""
    service_time: Literal["profile", "measured"] = "profile"
    """Service seconds from the device or endpoint profile, or as measured with the recorded answer."""


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
    """Where missing answers come from."""
    policies: Annotated[tuple[PolicySpec, ...], Field(min_length=1)]
    """Policies to compare."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (1, 2, 3)
    """Scenario seeds; every policy sees the same arrivals, network and tasks under one seed."""
    sweep: dict[str, tuple[Any, ...]] = {}
    """Grid over any field: {path: [values]}, paths as in --set."""

    @model_validator(mode="after")
    def _names_fit(self) -> Scenario:
        if not self.tiers:
            raise ValueError("tiers: at least one tier is needed")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: give at least one seed, and none twice")
        if "home" in self.tiers:
            raise ValueError("tiers: 'home' is the user's device and cannot name a tier")
        if self.workload.warmup_requests >= self.workload.requests:
            raise ValueError("workload.warmup_requests: must be less than workload.requests")
        self._check_trace_workload()
        self._check_places()
        return self

    def _check_trace_workload(self) -> None:
        if self.workload.tasks.kind == "trace" and self.workload.arrivals.kind != "trace":
            raise ValueError("workload.tasks of kind 'trace' take token counts from workload.arrivals, which must be of kind 'trace'")

    def _check_places(self) -> None:
        hops = {"-".join(link.between) for link in self.links}
        targets = hops | set(self.tiers)
        for fault in self.faults:
            if fault.target not in targets:
                raise ValueError(f"faults: no tier or link {fault.target!r}. Allowed: {', '.join(sorted(targets))}")
            if (fault.target in hops and fault.kind != "outage") or (
                fault.kind == "slow" and self.tiers[fault.target].endpoint is None
            ):
                raise ValueError(f"faults: {fault.kind!r} does not apply to {fault.target!r}; links have outages, endpoints can be slow")
            if fault.target in self.tiers and fault.kind == "crash" and fault.replica >= self.tiers[fault.target].replicas:
                raise ValueError(f"faults: tier {fault.target!r} has no replica {fault.replica}")
        for tier in self.pricing.tokens:
            if tier not in self.tiers:
                raise ValueError(f"pricing.tokens: no tier {tier!r}. Allowed: {', '.join(self.tiers)}")
        if len(hops) != len(self.links):
            raise ValueError("links: two links join the same places")
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
        raise ValueError(f"links: no path from 'home' to tier {tier!r}; a link's first end is the one nearer to the user")
