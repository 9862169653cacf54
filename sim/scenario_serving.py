"""The scenario's live side: which real model stands behind a tier, and where answers come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.profiles import Count, NonNegative, Positive, Strict


class UpstreamApi(Strict):
    """An OpenAI-compatible API to which a cloud tier forwards its calls."""

    base_url: str
    """Where it is, e.g. https://api.openai.com/v1."""
    model: str
    """The model's name there."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; null for an API without one."""
    timeout_s: Positive = 60.0
    """One try at a call is given up after this time, s."""
    connect_timeout_s: Positive = 5.0
    """A connection that takes longer is given up, s."""
    max_retries: Annotated[int, Field(ge=0, le=20)] = 4
    """Further tries after 408, 409, 429, 5xx and lost connections."""
    first_backoff_s: NonNegative = 0.5
    """Before a further try: what Retry-After asks for and a random part of this, of twice this the next time, and so on, s."""
    max_backoff_s: NonNegative = 8.0
    """The most of it, s."""
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 32
    """Calls in flight at the same time."""
    requests_per_min: Positive | None = None
    """Rate limit kept on our side; waiting for it counts against no call's time in a run."""
    tokens_per_min: Positive | None = None
    """Rate limit kept on our side, prompt and answer together."""
    max_usd: Positive | None = None
    """Never spend more than this in one run or recording, however often it is resumed; calls that could pass it are refused."""
    input_usd_per_mtok: NonNegative | None = None
    """What the API asks for a million tokens of prompt, $; default: the tier's price, of `model` or `pricing.tokens`."""
    cached_input_usd_per_mtok: NonNegative | None = None
    """Of them those it had in its cache, $; default: as other input, or with no price of its own the tier's."""
    output_usd_per_mtok: NonNegative | None = None
    """What the API asks for a million tokens of answer, $; goes with input_usd_per_mtok."""
    stream: bool = False
    """Ask for answers as streams, which measures the time to the first token (service_time: measured)."""
    logprobs: bool = False
    """Ask for log-probabilities; not every API gives them."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the API calls the limit on an answer's tokens; OpenAI's newer models want max_completion_tokens."""
    tool_role: Literal["user", "tool"] = "user"
    """Role under which a tool's observations are sent; most APIs take tool only after tool calls of their own."""

    @model_validator(mode="after")
    def _both_prices(self) -> UpstreamApi:
        if (self.input_usd_per_mtok is None) != (self.output_usd_per_mtok is None):
            raise ValueError("a price of its own needs both input_usd_per_mtok and output_usd_per_mtok")
        if self.cached_input_usd_per_mtok is not None and self.input_usd_per_mtok is None:
            raise ValueError("cached_input_usd_per_mtok goes with input_usd_per_mtok and output_usd_per_mtok")
        return self


class ServedModel(Strict):
    """The real model that answers a tier's calls in live runs."""

    source: str | None = None
    """A Hugging Face name, a local folder, or one of the shipped pair: pair/slm, pair/llm."""
    upstream: UpstreamApi | None = None
    """Instead of a model of our own: an API."""
    where: Literal["edge", "cloud"] | None = None
    """Kind of cluster nodes it runs on, by node label `isthmus-tier`; default edge for an slm, cloud for an llm."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """auto is a GPU for a replica with num_gpus, else the CPU."""
    quantisation: Literal["int8", "bnb-8bit", "bnb-4bit"] | None = None
    """Weights in fewer bits: int8 on the CPU, bnb-8bit and bnb-4bit (bitsandbytes) on a GPU."""
    chat_template: str | None = None
    """File with a Jinja chat template of one's own."""
    max_tokens: Count = 256
    """Longest answer, tokens."""
    num_cpus: Positive = 1.0
    """Logical CPUs a replica takes."""
    num_gpus: NonNegative = 0.0
    """GPUs a replica takes."""
    max_replicas: Count | None = None
    """Scale out from the tier's `replicas` to this many under load; default: fixed."""
    request_timeout_s: Positive | None = None
    """A live call unanswered after this time has failed, s; default: 60, or three times the timeout_s of an upstream."""

    @model_validator(mode="after")
    def _one_source(self) -> ServedModel:
        if (self.source is None) == (self.upstream is None):
            raise ValueError("a served model needs either source or upstream")
        return self


class LocalNodes(Strict):
    """The local Ray cluster a live run starts when no --address is given."""

    edge: Count = 2
    """Nodes labelled edge."""
    cloud: Count = 1
    """Nodes labelled cloud; the head is one of them."""


class Inference(Strict):
    """Where answers come from."""

    backend: Literal["replay", "serve", "modelled"] = "replay"
    """replay: from `recording`, or from where the tasks' own answers are; serve: from the tiers' live models on Ray Serve; modelled: made
    up from the tasks' solutions by each model's quality and labelled so (tasks of kind pair), for any number of models."""
    recording: str | None = None
    """replay: the recording (JSON lines, .gz or plain) that answers tasks which bring no answers of their own."""
    training: str | None = None
    """A counterfactual recording of other requests, which policies may learn from before the run."""
    on_miss: Literal["error", "modelled"] = "error"
    """A placement nobody recorded: stop, or answer by a model of outcomes and label it `modelled` (tasks of kind intercode)."""
    service_time: Literal["profile", "measured"] = "profile"
    """Service seconds from the device or endpoint profile, or as measured with the recorded or live answer."""
    local_cluster: LocalNodes = LocalNodes()
    """serve: nodes of the cluster started for the run when no --address is given."""
