"""What is asked of a language model and what it returned, as frozen values: no model library is needed to handle them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from workloads.errors import InputError, suggest

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTISATIONS = ("int8", "bnb-8bit", "bnb-4bit")
ATTENTIONS = ("eager", "sdpa", "flash_attention_2")
_SOURCE = re.compile(r"\s*\S.*")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen: greedily at `temperature` 0, else drawn from the `top_p` nucleus.

    A request's draws come from its own `seed`, so that its answer depends on no other request. With `ignore_end` a hosted model
    goes on past the end of its turn until the answer is as long as it may be: work of a known size, for measurements.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    ignore_end: bool = False

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, 2.0)
        _number("top_p", self.top_p, 0.0, 1.0, above=True)
        _whole("seed", self.seed, 0)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model to load and how; InputError for a value that cannot be.

    source: a Hugging Face name ("owner/name") or a folder with config.json, safetensors weights and a tokenizer.
    dtype: "auto" keeps the dtype the weights are stored in.
    device: "auto" is the first GPU where there is one, else the CPU.
    quantisation: None, "int8" (linear layers, on the CPU), "bnb-8bit" or "bnb-4bit" (bitsandbytes, on a GPU).
    attention: None leaves the choice to transformers.
    revision: a branch, tag or commit on the hub.
    chat_template: a Jinja template, its text, in place of the tokenizer's own.
    local_files_only: use what is on this machine and never ask the hub.
    max_tokens: the answer's limit where a request names none.
    context_tokens: a limit on prompt and answer together, below the model's own.
    threads: CPU threads of one operation; None leaves torch's setting.
    temperature, top_p, seed: the sampling where a request names none.
    """

    source: str
    dtype: str = "auto"
    device: str = "auto"
    quantisation: str | None = None
    attention: str | None = None
    revision: str | None = None
    chat_template: str | None = None
    local_files_only: bool = False
    max_tokens: int = 256
    context_tokens: int | None = None
    threads: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _pattern("model source", self.source, _SOURCE, "Give a Hugging Face name or a folder")
        _one_of("model dtype", self.dtype, DTYPES)
        if self.quantisation is not None:
            _one_of("model quantisation", self.quantisation, QUANTISATIONS)
        if self.attention is not None:
            _one_of("model attention", self.attention, ATTENTIONS)
        _pattern("model device", self.device, _DEVICE, "Allowed: auto, cpu, cuda, cuda:N")
        _whole("max_tokens", self.max_tokens, 1)
        for name, value in (("context_tokens", self.context_tokens), ("threads", self.threads)):
            if value is not None:
                _whole(name, value, 1)
        _ = self.sampling  # checks its own fields

    @property
    def sampling(self) -> Sampling:
        """The sampling of a request that names none."""
        return Sampling(self.temperature, self.top_p, self.seed)


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer of a model.

    completion_tokens: tokens the model produced, the closing end-of-turn token included: each took a decoding step.
    mean_logprob: their mean natural log-probability under the unmodified model distribution; NaN if not measured.
    queue_s, prefill_s, decode_s: waiting, reading the prompt up to the first token, and the rest; they add up to the stay.
    finish_reason: "stop" (the model ended its turn) or "length" (max_tokens or the context was reached).
    cached_tokens: prompt tokens that were not computed again.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    mean_logprob: float
    prefill_s: float
    decode_s: float
    finish_reason: str
    cached_tokens: int = 0
    queue_s: float = 0.0


def _one_of(place: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(place, f"found {value!r}", suggest(str(value), allowed))


def _pattern(place: str, value: Any, pattern: re.Pattern[str], remedy: str) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InputError(place, f"found {value!r}", remedy)


def _number(place: str, value: Any, low: float, high: float, *, above: bool = False) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not fits or (above and value == low):
        raise InputError(place, f"found {value!r}", f"Allowed: {'above ' if above else ''}{low:g} to {high:g}")


def _whole(place: str, value: Any, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(place, f"found {value!r}", f"Allowed: a whole number from {low}")
