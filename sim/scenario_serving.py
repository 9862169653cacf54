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
    max_retries: Annotated[int, Field(ge=0, le=20)] = 4
    """Further tries after 408, 409, 429, 5xx and lost connections, with backoff and Retry-After."""
    concurrency: Count = 32
    """Calls in flight at the same time."""
    requests_per_min: Positive | None = None
    """Rate limit kept on our side."""
    tokens_per_min: Positive | None = None
    """Rate limit kept on our side."""
    max_usd: Positive | None = None
    """Never spend more than this in one run, at the tier's prices; calls that could pass it are refused."""


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
    """auto takes a GPU where the replica has one."""
    quantisation: Literal["int8", "bnb-8bit", "bnb-4bit"] | None = None
    """Weights in fewer bits: int8 on the CPU, bnb-8bit and bnb-4bit (bitsandbytes) on a GPU."""
    chat_template: str | None = None
    """File with a chat template of one's own."""
    max_tokens: Count = 256
    """Longest answer, tokens."""
    num_cpus: Positive = 1.0
    """Logical CPUs a replica takes."""
    num_gpus: NonNegative = 0.0
    """GPUs a replica takes."""
    max_replicas: Count | None = None
    """Scale out from the tier's `replicas` to this many under load; default: fixed."""
    request_timeout_s: Positive = 60.0
    """A live call unanswered after this time has failed, s."""

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

    backend: Literal["replay", "serve"] = "replay"
    """replay: from `recording`, or from where the tasks' own answers are; serve: from the tiers' live models on Ray Serve."""
    recording: str | None = None
    """replay: the recording (JSON lines, .gz or plain) that answers tasks which bring no answers of their own."""
    on_miss: Literal["error", "modelled"] = "error"
    """A placement nobody recorded: stop, or answer by a model of outcomes and label it `modelled` (tasks of kind intercode)."""
    service_time: Literal["profile", "measured"] = "profile"
    """Service seconds from the device or endpoint profile, or as measured with the recorded or live answer."""
    local_cluster: LocalNodes = LocalNodes()
    """serve: nodes of the cluster started for the run when no --address is given."""
