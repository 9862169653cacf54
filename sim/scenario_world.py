"""The scenario's world: tiers with their servers, links between places, and what breaks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.profiles import Count, Device, Endpoint, LinkHop, Model, Name, NonNegative, Positive, Strict
from sim.scenario_serving import ServedModel


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
    multimodal: bool | None = None
    """Whether its model takes attachments (images, clips); default: models of role llm do, those of role slm do not."""
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
    serve: ServedModel | None = None
    """The real model behind the tier in live runs (`inference.backend: serve`, `record`, `serve`)."""

    @model_validator(mode="after")
    def _one_kind(self) -> Tier:
        given = [kind for kind in ("device", "endpoint", "service") if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a tier needs exactly one of device, endpoint or service, found {' and '.join(given) or 'none'}"
            )
        return self

    @property
    def sees_modalities(self) -> bool:
        """Whether its model takes attachments."""
        return self.role == "llm" if self.multimodal is None else self.multimodal


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
