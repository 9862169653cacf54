"""One call as it is sent to an upstream, how long it may take and what it can cost at most."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve.generation import Sampling
from serve.upstream.answer import estimated_tokens
from serve.upstream.spec import UpstreamSpec
from workloads.task import Message

_FRAMING_TOKENS = 16
"""More than chat templates put around a message."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call ready to be sent; `pieces`: the caller gets the text as it comes. Times are the event loop's."""

    body: dict[str, Any]
    streamed: bool
    pieces: bool
    prompt_tokens: int
    max_tokens: int
    worst_usd: float
    begun_s: float
    deadline_s: float | None

    @property
    def tokens(self) -> float:
        """Prompt and answer together, as far as one can tell before."""
        return float(self.prompt_tokens + self.max_tokens)

    def until(self, time_s: float) -> float:
        """`time_s` or the deadline, whichever is first."""
        return time_s if self.deadline_s is None else min(time_s, self.deadline_s)

    def admitted_by(self, now_s: float, attempt_s: float) -> float | None:
        """The latest time to send an attempt that waits since `now_s`.

        It keeps `attempt_s`, but at most half of the time left, for the answer: one that comes too late is paid for nothing.
        """
        if self.deadline_s is None:
            return None
        return self.deadline_s - min(attempt_s, max(0.0, self.deadline_s - now_s) / 2)


@dataclass(slots=True)
class Bill:
    """What an admitted attempt turned out to use; None is unknown."""

    usd: float | None = None
    tokens: int | None = None


def call_of(
    spec: UpstreamSpec, messages: Sequence[Message], max_tokens: int, sampling: Sampling | None, timeout_s: float | None, *,
    streamed: bool, pieces: bool = False,
) -> Call:  # fmt: skip
    """The call for these messages, begun now; InputError for a limit on tokens that cannot be."""
    body, now_s = spec.body(messages, max_tokens, sampling), asyncio.get_running_loop().time()
    texts = [message["content"] for message in body["messages"]]
    # A token of a byte-level vocabulary is at least one byte, so bytes bound what no one has counted yet.
    most_tokens = sum(len(text.encode()) for text in texts) + _FRAMING_TOKENS * (len(texts) + 1)
    likely_tokens = sum(estimated_tokens(text) for text in texts)
    deadline_s = None if timeout_s is None else now_s + timeout_s
    worst_usd = max(spec.usd(most_tokens, max_tokens, cached) for cached in (0, most_tokens))
    return Call(body, streamed, pieces, likely_tokens, max_tokens, worst_usd, now_s, deadline_s)
