"""The kinds of named profiles a scenario can refer to, and the one file that holds them: profiles.yaml.

Anywhere a scenario expects a profile it may give a name (`device: jetson-orin-nx`), a name with changes
(`device: {profile: jetson-orin-nx, memory_gbytes: 8}`) or all fields. The resolved scenario in a run's results always holds
all fields, so a result does not change meaning when a profile is corrected later.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from ruamel.yaml import YAML

from workloads.errors import suggest

PROFILES_FILE = Path(__file__).with_name("profiles.yaml")

# The upper bounds are absurd on purpose: they only keep arithmetic finite.
Positive = Annotated[float, Field(gt=0, le=1e15)]
NonNegative = Annotated[float, Field(ge=0, le=1e15)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]


class Strict(BaseModel):
    """Base of every configuration value: frozen, no unknown fields, no silent conversion, no NaN or infinity."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class StepTimesProfile(Strict):
    """Measured times of one model's iterations on one device, for where no roofline fits; `run_sim.py calibrate` prints them.

    A prefill iteration reads all newly admitted prompts; a decode iteration gives every sequence in the batch a token.
    """

    prefill_base_s: NonNegative = 0.0
    """Fixed time of a prefill iteration, s."""
    prefill_s_per_prompt: NonNegative = 0.0
    """Time per prompt in it, s."""
    prefill_s_per_token: NonNegative = 0.0
    """Time per new prompt token, s."""
    prefill_s_per_pair: NonNegative = 0.0
    """Time per pair of a new token and one it attends to (n (n + 1) / 2 pairs in a prompt of n), s."""
    decode_base_s: NonNegative = 0.0
    """Fixed time of a decode iteration, s."""
    decode_s_per_sequence: NonNegative = 0.0
    """Time per sequence in the batch, s."""
    decode_s_per_kv_token: NonNegative = 0.0
    """Time per token held in the cache, s."""
    call_overhead_s: NonNegative = 0.0
    """Time a call spends around the engine (RPC, event loop, reading the text), s; it takes no place in the batch."""

    @model_validator(mode="after")
    def _tokens_take_time(self) -> StepTimesProfile:
        if not self.decode_base_s + self.decode_s_per_sequence > 0:
            raise ValueError("a decode iteration takes no time. Give decode_base_s or decode_s_per_sequence")
        return self


class DeviceProfile(Strict):
    """Hardware that runs a model: what its iterations take (by a roofline or measured), its power and its price."""

    peak_tflops: Positive | None = None
    """Peak dense compute at the precision the model runs in, TFLOP/s; needed unless step times are given."""
    flops_efficiency: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the peak that prefill reaches (model FLOPs utilisation)."""
    memory_bandwidth_gbytes_s: Positive | None = None
    """Peak memory bandwidth, 1e9 bytes/s; needed unless step times are given."""
    bandwidth_efficiency: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of the peak bandwidth that decoding reaches."""
    memory_gbytes: Positive
    """Memory for weights and KV cache, 1e9 bytes."""
    step_overhead_s: NonNegative = 0.001
    """Fixed time per engine iteration (kernel launches, scheduling), s."""
    step_times: StepTimesProfile | None = None
    """Measured times of the tier's model here, instead of the roofline's numbers above."""
    static_power_w: NonNegative = 0.0
    """Power drawn while idle, W."""
    dynamic_power_w: NonNegative = 0.0
    """Additional power while serving, W."""
    price_usd: NonNegative = 0.0
    """Purchase price, $."""
    lifetime_years: Positive = 3.0
    """Years over which the price is written off."""
    source: str = ""
    """Where the numbers come from."""

    @model_validator(mode="after")
    def _can_be_timed(self) -> DeviceProfile:
        for name in ("peak_tflops", "memory_bandwidth_gbytes_s"):
            if self.step_times is None and getattr(self, name) is None:
                raise ValueError(f"{name}: is missing. Give it, or measured step_times")
        return self


class ModelProfile(Strict):
    """A language model: its size for the roofline, its price for the ledger."""

    parameters_b: Positive = 1.0
    """Active parameters per token, 1e9."""
    weight_gbytes: Positive | None = None
    """Bytes of weights read per decoding step, 1e9; default 2 bytes per active parameter."""
    kv_bytes_per_token: NonNegative = 100_000.0
    """KV-cache bytes per token: 2 x layers x KV heads x head width x bytes per number."""
    quality: Share = 0.0
    """How large-model-like its steps are in modelled workloads: 0 = the SLM of the calibration, 1 = its LLM."""
    price_name: str | None = None
    """`provider/model` in the price library; unset = no API price (own hardware)."""
    bytes_per_token: Positive = 4.0
    """Bytes of text per token, to size payloads where no text exists and tokens where only text exists."""
    source: str = ""
    """Where the numbers come from."""


class LinkProfile(Strict):
    """A network hop, both directions. Bandwidth is shared fairly by the transfers under way in one direction."""

    up_mbps: Positive
    """Bandwidth away from the user, Mbit/s (mean, where it varies)."""
    down_mbps: Positive
    """Bandwidth towards the user, Mbit/s (mean, where it varies)."""
    propagation_s: NonNegative
    """One-way delay without queueing, s (half the unloaded round-trip time)."""
    jitter_s: NonNegative = 0.0
    """Mean of the additional random delay per message, s."""
    jitter: Literal["none", "exponential", "normal", "lognormal"] = "exponential"
    """Shape of the additional delay."""
    loss: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a packet is lost and sent again."""
    bandwidth_cv: NonNegative = 0.0
    """Coefficient of variation of the bandwidth over time; 0 = constant."""
    bandwidth_interval_s: Positive = 1.0
    """How often a varying bandwidth changes, s."""
    energy_up_j_per_mbyte: NonNegative = 0.0
    """Radio energy of the user's side for sending, J per 1e6 bytes."""
    energy_down_j_per_mbyte: NonNegative = 0.0
    """Radio energy of the user's side for receiving, J per 1e6 bytes."""
    transfer_usd_per_gbyte: NonNegative = 0.0
    """Price of moved data in either direction, $ per 1e9 bytes."""
    source: str = ""
    """Where the numbers come from."""


class EndpointProfile(Strict):
    """A hosted model behind an API, known from outside: latency distributions and limits."""

    ttft_median_s: Positive
    """Median time to first token after the request has arrived, s (log-normal)."""
    ttft_sigma: NonNegative = 0.0
    """Log-standard deviation of the time to first token."""
    prefill_s_per_token: NonNegative = 0.0
    """Additional time to first token per uncached prompt token, s."""
    tokens_per_s_median: Positive
    """Median decoding rate of one stream, tokens/s (log-normal)."""
    tokens_per_s_sigma: NonNegative = 0.0
    """Log-standard deviation of the decoding rate between calls."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Calls in flight beyond which the endpoint answers 429; unset = no limit."""
    rpm: Positive | None = None
    """Requests per minute beyond which the endpoint answers 429; unset = no limit."""
    tpm: Positive | None = None
    """Tokens (prompt + completion) per minute beyond which the endpoint answers 429; unset = no limit."""
    cache_lifetime_s: NonNegative = 300.0
    """How long a processed prompt prefix stays cached after its last use, s; 0 = no prompt caching."""
    cache_min_tokens: Annotated[int, Field(ge=0)] = 1024
    """Shortest prefix that is cached, tokens."""
    source: str = ""
    """Where the numbers come from."""


class PriceProfile(Strict):
    """What things cost besides API tokens."""

    electricity_usd_per_kwh: NonNegative = 0.1668
    """Price of electricity, $ per kWh."""
    carbon_g_per_kwh: NonNegative = 390.0
    """Carbon intensity of the grid, g CO2-equivalent per kWh."""
    carbon_usd_per_tonne: NonNegative = 0.0
    """Price put on carbon, $ per tonne CO2-equivalent."""
    hardware_utilisation: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of its lifetime the hardware is busy; its price is spread over the busy time only."""
    source: str = ""
    """Where the numbers come from."""


KINDS: dict[str, type[Strict]] = {
    "devices": DeviceProfile,
    "models": ModelProfile,
    "links": LinkProfile,
    "endpoints": EndpointProfile,
    "prices": PriceProfile,
}


@cache
def named_profiles() -> dict[str, dict[str, dict[str, Any]]]:
    """profiles.yaml as {kind: {name: fields}}."""
    loaded: dict[str, dict[str, dict[str, Any]]] = YAML(typ="safe").load(PROFILES_FILE.read_text(encoding="utf-8"))
    return loaded


def _expand(kind: str, value: Any) -> Any:
    """A profile given by name, or by name with changes, as the mapping of all its fields."""
    if isinstance(value, str):
        value = {"profile": value}
    if not isinstance(value, dict) or "profile" not in value:
        return value
    known = named_profiles()[kind]
    name = value["profile"]
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"no profile {name!r} among {kind}. {suggest(str(name), known)}")
    return {**known[name], **{field: v for field, v in value.items() if field != "profile"}}


Device = Annotated[DeviceProfile, BeforeValidator(lambda v: _expand("devices", v))]
Model = Annotated[ModelProfile, BeforeValidator(lambda v: _expand("models", v))]
LinkHop = Annotated[LinkProfile, BeforeValidator(lambda v: _expand("links", v))]
Endpoint = Annotated[EndpointProfile, BeforeValidator(lambda v: _expand("endpoints", v))]
Prices = Annotated[PriceProfile, BeforeValidator(lambda v: _expand("prices", v))]
