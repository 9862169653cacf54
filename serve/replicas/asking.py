"""What travels between a replica and its callers, as frozen values, and what a replica asks of its model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from serve.generation import Generation, Sampling
from workloads.errors import ModelUnavailable
from workloads.task import Message


class Ask(NamedTuple):
    """One call as it travels to a replica. `sampling` None is the model's own; `timeout_s` counts from its arrival there."""

    messages: tuple[Message, ...]
    max_tokens: int | None
    sampling: Sampling | None
    timeout_s: float


Reply = Generation | ModelUnavailable


@dataclass(frozen=True, slots=True)
class ReplicaStats:
    """One replica: where it is, what waits and runs there now, and its totals since it started.

    retried, confirmed_usd, unconfirmed_usd: at an upstream, attempts after a call's first, dollars spent, and the most that attempts
        without a known cost may have cost.
    """

    tier: str
    actor_id: str
    node_id: str
    pid: int
    queued: int
    active: int
    answered: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    retried: int = 0
    confirmed_usd: float = 0.0
    unconfirmed_usd: float = 0.0


class Model(Protocol):
    """What a replica asks: an engine here, or an API elsewhere. Failures are raised as ModelUnavailable."""

    async def complete(self, ask: Ask) -> Generation:
        """The whole answer."""
        ...

    async def complete_many(self, asks: Sequence[Ask], timeout_s: float) -> list[Reply]:
        """The whole answers in order, with failures as values; what is not there after `timeout_s` has failed."""
        ...

    def stream(self, ask: Ask) -> AsyncGenerator[str | Generation, None]:
        """The pieces of its text as they come, then the whole."""
        ...

    def load(self) -> tuple[int, int]:
        """Calls (waiting, being answered) now."""
        ...

    def spent(self) -> tuple[int, float, float]:
        """What it spent elsewhere so far: further attempts, dollars known, and dollars at most where nobody knows."""
        ...

    def check(self) -> None:
        """Raise if it cannot answer any more."""
        ...

    def close(self) -> None:
        """Answer nothing more; what is still under way fails."""
        ...
