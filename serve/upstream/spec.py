"""Where calls to an upstream go, and within which limits: a frozen value that needs no client library."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from serve.generation import Sampling
from workloads.errors import InputError
from workloads.task import Message


@dataclass(frozen=True, slots=True)
class UpstreamSpec:
    """Where calls go and within which limits; InputError for a value that cannot be.

    base_url: the API's root, such as "https://api.openai.com/v1". It holds no key: it appears in messages.
    api_key_env: the environment variable that holds the key; None for an upstream that wants none.
    timeout_s: the longest one attempt may take from sending to its last token; connect_timeout_s to a connection.
    max_retries: attempts after the first. Each waits what Retry-After asks for and a random part of first_backoff_s,
        twice as much the next time and so on up to max_backoff_s.
    concurrency: attempts in flight at once.
    requests_per_min, tokens_per_min: limits over any 60 s; tokens are prompt and answer together. None: no limit.
    max_usd: a hard limit on spending; needs prices above 0, or no call would ever come nearer to it.
    input_usd_per_mtok, cached_input_usd_per_mtok, output_usd_per_mtok: dollars per million tokens; cached None: as input.
    max_tokens: the answer's limit where a call names none.
    logprobs: ask for log-probabilities. stream: `complete` streams too, which measures the time to the first token.
    limit_field: what the upstream calls the limit on answer tokens; OpenAI's newer models want "max_completion_tokens".
    tool_role: the role under which observations of tools are sent; APIs take "tool" only after their own tool calls.
    """

    base_url: str
    model: str
    api_key_env: str | None = "OPENAI_API_KEY"
    timeout_s: float = 60.0
    connect_timeout_s: float = 5.0
    max_retries: int = 4
    first_backoff_s: float = 0.5
    max_backoff_s: float = 8.0
    concurrency: int = 32
    requests_per_min: float | None = None
    tokens_per_min: float | None = None
    max_usd: float | None = None
    input_usd_per_mtok: float | None = None
    cached_input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float | None = None
    max_tokens: int = 1024
    logprobs: bool = False
    stream: bool = False
    limit_field: str = "max_tokens"
    tool_role: str = "user"

    def __post_init__(self) -> None:
        self._check_address()
        # A key given by mistake in place of its variable's name is not repeated.
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", self.api_key_env):
            remedy = "Name the environment variable (capitals, digits and '_') that holds the key"
            raise InputError("upstream api_key_env", "found no name of a variable", remedy)
        for name in ("timeout_s", "connect_timeout_s", "requests_per_min", "tokens_per_min", "max_usd"):
            self._check_number(name, above=True)
        for name in (
            "first_backoff_s",
            "max_backoff_s",
            "input_usd_per_mtok",
            "cached_input_usd_per_mtok",
            "output_usd_per_mtok",
        ):
            self._check_number(name)
        for name, low, high in (("max_retries", 0, 100), ("concurrency", 1, 1000), ("max_tokens", 1, 10_000_000)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise InputError(
                    f"upstream {name}", f"found {value!r}", f"Allowed: a whole number from {low} to {high}"
                )
        for name, allowed in (
            ("limit_field", ("max_tokens", "max_completion_tokens")),
            ("tool_role", ("user", "tool")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"upstream {name}", f"found {getattr(self, name)!r}", f"Allowed: {', '.join(allowed)}")
        if self.max_usd is not None and not (self.input_usd_per_mtok and self.output_usd_per_mtok):
            prices = f"input {self.input_usd_per_mtok or 0:g}, output {self.output_usd_per_mtok or 0:g} USD per million tokens"
            remedy = "Set input_usd_per_mtok and output_usd_per_mtok to what the upstream asks, or leave max_usd out"
            raise InputError(
                "upstream max_usd", f"a limit on dollars without prices ({prices}) would never be reached", remedy
            )

    def usd(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> float:
        """The price of an answer; 0 without prices."""
        input_usd, output_usd = self.input_usd_per_mtok or 0.0, self.output_usd_per_mtok or 0.0
        cached_usd = input_usd if self.cached_input_usd_per_mtok is None else self.cached_input_usd_per_mtok
        return (
            (prompt_tokens - cached_tokens) * input_usd + cached_tokens * cached_usd + completion_tokens * output_usd
        ) / 1e6

    def body(self, messages: Sequence[Message], max_tokens: int, sampling: Sampling | None) -> dict[str, Any]:
        """The fields of one chat call; `sampling` None leaves it to the upstream."""
        if max_tokens < 1:
            raise InputError("max_tokens", f"found {max_tokens!r}", "Allowed: a whole number from 1")
        roles = [self.tool_role if message.role == "tool" else message.role for message in messages]
        # Models do emit halves of characters, which no JSON document can carry.
        texts = [message.content.encode("utf-8", "replace").decode() for message in messages]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)],
            self.limit_field: max_tokens,
        }
        if self.logprobs:
            body["logprobs"] = True
        if sampling is not None:
            body |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
            body |= {"seed": sampling.seed} if sampling.temperature > 0 else {}
        return body

    def _check_address(self) -> None:
        remedy = "Give the API's root, such as https://api.openai.com/v1, without a key, user name or query"
        try:
            parts = urlsplit(self.base_url)
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except (ValueError, AttributeError, TypeError):
            raise InputError("upstream base_url", "found no address", remedy) from None
        if not whole or parts.username or parts.password or parts.query or parts.fragment:
            raise InputError("upstream base_url", "found no plain http or https address", remedy)
        model: Any = self.model  # what a file says is not yet known to be text
        if not isinstance(model, str) or not model.strip():
            raise InputError("upstream model", f"found {model!r}", "Give the model's name at the upstream")

    def _check_number(self, name: str, *, above: bool = False) -> None:
        value = getattr(self, name)
        if value is None and name not in ("timeout_s", "connect_timeout_s", "first_backoff_s", "max_backoff_s"):
            return
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0 or (above and value == 0):
            allowed = f"Allowed: a number {'above' if above else 'from'} 0"
            raise InputError(f"upstream {name}", f"found {value!r}", allowed)
