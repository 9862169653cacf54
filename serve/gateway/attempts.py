"""Attempts at tiers: for how long a tier is asked, how busy it is meanwhile, and which attempts may have cost what nobody knows.

Nothing here knows HTTP or Ray. Tiers stand behind `TierHandle`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from serve.gateway.openai_answers import reason_of
from serve.gateway.openai_protocol import ChatRequest
from serve.generation import Generation, Sampling
from workloads.errors import ModelUnavailable
from workloads.placing import Decision, TierLoad
from workloads.task import Message, ModelCall

GRACE_S = 4.0
"""A tier is given up this much later than it was told: it keeps its time itself, and its client waits 2 s for it to say so."""
_FREE = frozenset(("rate-limited", "own-limit", "overloaded", "budget", "refused", "prompt-too-long"))
"""Failures before an answer was begun. `unreachable` is none: the connection to an upstream may break in the middle of one."""


class TierHandle(Protocol):
    """A tier as the gateway sees it: one model behind any number of replicas.

    `generate` and `stream` raise ModelUnavailable with its reason, stop at once when they are cancelled or closed, and take None
    for the model's own limit or sampling.
    """

    @property
    def model(self) -> str:
        """The name of its model."""
        ...

    @property
    def capacity(self) -> int:
        """Calls it can answer at the same time."""
        ...

    @property
    def request_timeout_s(self) -> float:
        """The longest it may take for a call; it has failed then."""
        ...

    async def generate(
        self, messages: tuple[Message, ...], max_tokens: int | None, sampling: Sampling | None, timeout_s: float
    ) -> Generation:
        """The whole answer."""
        ...

    def stream(
        self, messages: tuple[Message, ...], max_tokens: int | None, sampling: Sampling | None, timeout_s: float
    ) -> AsyncGenerator[str | Generation, None]:
        """The pieces of the text as they come, then the whole as a Generation."""
        ...

    async def health(self) -> str:
        """Empty while a healthy replica is there, else what is wrong."""
        ...


class Lost(NamedTuple):
    """An attempt that may have cost something nobody knows: its tier and the reason, `cancelled` where nobody waited for it."""

    tier: str
    reason: str


@dataclass(frozen=True, slots=True)
class Placed:
    """A call with its decision: `label` is the model name it is counted under, `until_s` the loop's time to give up.

    `lost` grows with every attempt that ends without its usage.
    """

    chat: ChatRequest
    label: str
    request: int
    call: ModelCall
    decision: Decision
    until_s: float
    lost: list[Lost] = field(default_factory=list)


class Attempts:
    """Asks tiers, one attempt at a time for a call; belongs to one event loop.

    An attempt may take what is left of its call's time, at most the tier's own limit, and at most `attempt_timeout_s`.
    """

    def __init__(self, tiers: Mapping[str, TierHandle], attempt_timeout_s: float | None) -> None:
        self._tiers, self._attempt_timeout_s = tiers, attempt_timeout_s
        self._busy = dict.fromkeys(tiers, 0)

    def load(self) -> dict[str, TierLoad]:
        """How busy the tiers are with calls of this gateway."""
        return {
            name: TierLoad(max(0, busy - tier.capacity), min(busy, tier.capacity), tier.capacity)
            for (name, tier), busy in zip(self._tiers.items(), self._busy.values(), strict=True)
        }

    async def whole(self, placed: Placed, tier: str) -> Generation:
        """The whole answer. Raises ModelUnavailable."""
        limit_s = self._limit_s(placed, tier)
        with self._counted(placed, tier):
            try:
                async with asyncio.timeout(limit_s + GRACE_S):
                    return await self._tiers[tier].generate(*_arguments(placed), limit_s)
            except TimeoutError:
                raise _late(limit_s) from None

    async def pieces(self, placed: Placed, tier: str) -> AsyncGenerator[str | Generation, None]:
        """The pieces of the text as they come, then the whole as a Generation. Raises ModelUnavailable."""
        limit_s = self._limit_s(placed, tier)
        until_s = asyncio.get_running_loop().time() + limit_s + GRACE_S
        with self._counted(placed, tier):
            async with aclosing(self._tiers[tier].stream(*_arguments(placed), limit_s)) as pieces:
                piece = await self._next(pieces, until_s, limit_s)
                while not isinstance(piece, Generation):
                    yield piece
                    piece = await self._next(pieces, until_s, limit_s)
        yield piece  # outside: whoever takes this one and leaves has hung up on nobody

    @staticmethod
    async def _next(pieces: AsyncGenerator[str | Generation, None], until_s: float, limit_s: float) -> str | Generation:
        try:
            # Never around a yield: the time limit would strike in whatever the taker of the pieces waits for.
            async with asyncio.timeout_at(until_s):
                return await anext(pieces)
        except StopAsyncIteration:
            raise ModelUnavailable("bad-answer", "a stream ended without its end") from None
        except TimeoutError:
            raise _late(limit_s) from None

    def _limit_s(self, placed: Placed, tier: str) -> float:
        left_s = max(0.001, placed.until_s - asyncio.get_running_loop().time())
        return min(left_s, self._tiers[tier].request_timeout_s, self._attempt_timeout_s or left_s)

    @contextmanager
    def _counted(self, placed: Placed, tier: str) -> Iterator[None]:
        """The tier is busy for as long, and an end without an answer is noted if it may have cost something."""
        self._busy[tier] += 1
        try:
            yield
        except ModelUnavailable as failure:
            if reason_of(failure) not in _FREE:
                placed.lost.append(Lost(tier, reason_of(failure)))
            raise
        except (asyncio.CancelledError, GeneratorExit):
            placed.lost.append(Lost(tier, "cancelled"))
            raise
        except BaseException:
            placed.lost.append(Lost(tier, "error"))
            raise
        finally:
            self._busy[tier] -= 1


def _arguments(placed: Placed) -> tuple[tuple[Message, ...], int | None, Sampling | None]:
    return placed.chat.messages, placed.chat.max_tokens, placed.chat.sampling


def _late(limit_s: float) -> ModelUnavailable:
    return ModelUnavailable("timeout", f"no answer within {limit_s:g} s")
