"""A replica's model that lives elsewhere: calls go to an OpenAI-compatible upstream, within one budget for all replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Any

from serve.cloud import Upstream, UpstreamSpec
from serve.generation import Generation
from serve.replicas.asking import Ask, Reply
from serve.replicas.placement import TIER_LABEL
from serve.upstream.errors import BudgetExceeded, UpstreamError
from serve.upstream.limits import Budget, Spending
from workloads.errors import ModelUnavailable

DEFAULT_MAX_TOKENS = 1024
"""The answer's limit where a call names none."""

_NAMESPACE = "isthmus"


class ForwardedModel:
    """An upstream behind the methods a replica asks for. InputError if its key is not in this process's environment."""

    def __init__(self, spec: UpstreamSpec, app_name: str, tier: str) -> None:
        self._upstream = Upstream(spec, None if spec.max_usd is None else _SharedBudget(app_name, tier))
        self._concurrency = spec.concurrency
        self._open = 0

    async def complete(self, ask: Ask) -> Generation:
        """The upstream's answer."""
        with self._counted():
            return await self._upstream.complete(ask.messages, _limit(ask), ask.sampling, ask.timeout_s)

    async def complete_many(self, asks: Sequence[Ask], timeout_s: float) -> list[Reply]:
        """All answers; the upstream's own limits decide how many are asked for at once."""

        async def one(ask: Ask) -> Reply:
            try:
                return await self.complete(ask._replace(timeout_s=timeout_s))
            except ModelUnavailable as failure:
                return failure

        return list(await asyncio.gather(*map(one, asks)))

    async def stream(self, ask: Ask) -> AsyncGenerator[str | Generation, None]:
        """The pieces of the upstream's answer, then the whole."""
        with self._counted():
            async with aclosing(self._upstream.stream(ask.messages, _limit(ask), ask.sampling, ask.timeout_s)) as items:
                async for item in items:
                    yield item

    def load(self) -> tuple[int, int]:
        """Calls (waiting for a slot, being answered)."""
        active = min(self._open, self._concurrency)
        return self._open - active, active

    def check(self) -> None:
        """Healthy as long as the process is: an upstream that is down is no reason to start a proxy anew."""

    def close(self) -> None:
        """Close the connections soon, if called on the loop they belong to; else they end with the process."""
        with suppress(RuntimeError):
            self._closing = asyncio.get_running_loop().create_task(self._upstream.close())

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._open += 1
        try:
            yield
        except UpstreamError as error:
            reason = error.reason.replace("_", "-")
            raise ModelUnavailable(reason, error.problem, error.retry_after_s or 0.0) from None
        finally:
            self._open -= 1


def _limit(ask: Ask) -> int:
    return DEFAULT_MAX_TOKENS if ask.max_tokens is None else ask.max_tokens


# -------------------------------------------------------------------------------------------------------- one budget


class _SharedBudget(Budget):
    """Stands for the tier's budget, which an actor keeps: a replica that dies and comes back has not forgotten what was spent."""

    def __init__(self, app_name: str, tier: str) -> None:
        import ray

        super().__init__()
        self._actor: Any = ray.get_actor(_actor_name(app_name, tier), namespace=_NAMESPACE)

    async def reserve(self, usd: float) -> int:
        """As Budget.reserve; without the actor nothing is spent any more."""
        import ray

        try:
            return int(await self._actor.reserve.remote(usd))
        except BudgetExceeded as error:  # Ray's own subclass of it
            raise BudgetExceeded(error.problem) from None
        except ray.exceptions.RayActorError:
            raise BudgetExceeded("the process that keeps the budget is gone") from None

    async def settle(self, reservation: int, usd: float | None) -> None:
        """As Budget.settle."""
        import ray

        try:
            await self._actor.settle.remote(reservation, usd)
        except ray.exceptions.RayActorError:
            return  # the reservation stands, and the next one is refused

    async def spending(self) -> Spending:
        """As Budget.spending."""
        spending: Spending = await self._actor.spending.remote()
        return spending


def open_budget(app_name: str, tier: str, max_usd: float) -> None:
    """Start the actor that keeps a tier's budget until `close_budget`; it is never restarted, as it would start from zero."""
    import ray

    actor: Any = ray.remote(num_cpus=0, max_restarts=0)(Budget)
    name = _actor_name(app_name, tier)
    made = actor.options(name=name, namespace=_NAMESPACE, lifetime="detached", label_selector={TIER_LABEL: "!edge"})
    ray.get(made.remote(max_usd).spending.remote(), timeout=60.0)


def close_budget(app_name: str, tier: str) -> None:
    """End that actor, if there is one."""
    import ray

    try:
        ray.kill(ray.get_actor(_actor_name(app_name, tier), namespace=_NAMESPACE))
    except ValueError:
        return


def _actor_name(app_name: str, tier: str) -> str:
    return f"budget-{app_name}-{tier}"
