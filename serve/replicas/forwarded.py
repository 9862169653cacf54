"""A replica's model that lives elsewhere: calls go to an OpenAI-compatible upstream, within one budget for all replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress

from serve.cloud import Upstream, UpstreamSpec
from serve.generation import Generation
from serve.replicas.asking import Ask, Reply
from serve.replicas.budget import shared_budget
from serve.replicas.metrics import UpstreamMeter
from serve.upstream.errors import UpstreamError
from workloads.errors import InputError, ModelUnavailable


class ForwardedModel:
    """An upstream behind the methods a replica asks for. InputError if its key is not in this process's environment."""

    def __init__(self, spec: UpstreamSpec, app_name: str, tier: str) -> None:
        self._upstream = Upstream(spec, shared_budget(app_name, tier, limited=spec.max_usd is not None))
        self._meter = UpstreamMeter(tier)
        self._spec, self._open = spec, 0

    async def complete(self, ask: Ask) -> Generation:
        """The upstream's answer."""
        with self._counted():
            return await self._upstream.complete(ask.messages, self._limit(ask), ask.sampling, ask.timeout_s)

    async def complete_many(self, asks: Sequence[Ask], timeout_s: float) -> list[Reply]:
        """All answers; the upstream's own limits decide how many are asked for at once."""

        async def one(ask: Ask) -> Reply:
            try:
                return await self.complete(ask._replace(timeout_s=timeout_s))
            except ModelUnavailable as failure:
                return failure

        # Whatever happens to one of them is its reply: an exception here would leave the others running, paid for and lost.
        return list(await asyncio.gather(*map(one, asks)))

    async def stream(self, ask: Ask) -> AsyncGenerator[str | Generation, None]:
        """The pieces of the upstream's answer, then the whole."""
        with self._counted():
            items = self._upstream.stream(ask.messages, self._limit(ask), ask.sampling, ask.timeout_s)
            async with aclosing(items):
                async for item in items:
                    yield item

    def load(self) -> tuple[int, int]:
        """Calls (waiting for a slot, being answered)."""
        active = min(self._open, self._spec.concurrency)
        return self._open - active, active

    def spent(self) -> tuple[int, float, float]:
        """Attempts after a call's first, dollars confirmed, and the most that attempts without a known cost may have cost."""
        stats = self._upstream.stats()
        return stats.retried, stats.confirmed_usd, stats.unconfirmed_usd

    def check(self) -> None:
        """Healthy as long as the process is: an upstream that is down is no reason to start a proxy anew."""

    def close(self) -> None:
        """Close the connections soon, if called on the loop they belong to; else they end with the process."""
        with suppress(RuntimeError):
            self._closing = asyncio.get_running_loop().create_task(self._upstream.close())

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Around one call: whatever goes wrong is a ModelUnavailable."""
        self._open += 1
        try:
            yield
        except UpstreamError as error:
            reason = error.reason.replace("_", "-")
            raise ModelUnavailable(reason, error.problem, error.retry_after_s or 0.0) from None
        except InputError as error:
            raise ModelUnavailable("refused", str(error)) from None
        except Exception as error:  # its text could hold what the upstream wrote back: the key
            raise ModelUnavailable("bad-answer", f"{type(error).__name__} while asking the upstream") from None
        finally:
            self._open -= 1
            self._meter.spent(*self.spent())

    def _limit(self, ask: Ask) -> int:
        return self._spec.max_tokens if ask.max_tokens is None else ask.max_tokens
