"""A replica's side of the budget that an actor keeps: what is reserved for a caller that has gone is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from serve.cloud import Upstream, UpstreamError, UpstreamSpec
from serve.replicas.budget import SharedBudget
from serve.upstream.errors import BudgetExceeded
from serve.upstream.limits import Budget, Spending
from tests.serve.upstream import start_upstream
from tests.serve.upstream_calls import PRICED, QUESTION


class Actor:
    """Stands where a budget's actor would: it does at once what it is asked, and its answers are on their way until `open`."""

    def __init__(self, max_usd: float) -> None:
        self.budget, self.open = Budget(max_usd), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return _Method(getattr(self.budget, name), self.open)


class _Method:
    def __init__(self, method: Callable[..., Awaitable[Any]], answered: asyncio.Event) -> None:
        self._method, self._answered = method, answered

    def remote(self, *given: Any, **named: Any) -> asyncio.Task[Any]:
        """As an actor's method."""
        return asyncio.create_task(self._run(*given, **named))

    async def _run(self, *given: Any, **named: Any) -> Any:
        answer = await self._method(*given, **named)
        await self._answered.wait()
        return answer


async def quiet(budget: Budget) -> Spending:
    """Where it stands once what is on its way has come."""
    for _ in range(10):
        await asyncio.sleep(0.01)
    return await budget.spending()


def test_a_reservation_for_a_caller_that_has_gone_is_given_back() -> None:
    """The actor has reserved when the caller is cancelled, and only then learns that nobody will settle."""

    async def leave() -> None:
        actor = Actor(1.0)
        asking = asyncio.create_task(SharedBudget(actor, limited=True).reserve(0.75))
        assert (await quiet(actor.budget)).reserved_usd == 0.75
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        actor.open.set()
        assert await quiet(actor.budget) == Spending()
        with pytest.raises(BudgetExceeded):  # a refusal of which nobody hears is nothing to give back
            await SharedBudget(actor, limited=True).reserve(2.0)

    asyncio.run(leave())


def test_a_call_whose_time_ends_while_it_reserves_leaves_nothing_behind() -> None:
    """The time to reserve is part of the call's own, so a budget that does not answer does not hold it for ever."""

    async def late(url: str) -> None:
        actor = Actor(10.0)
        spec = UpstreamSpec(url, "m", None, max_usd=10.0, **PRICED)
        client = Upstream(spec, SharedBudget(actor, limited=True))
        with pytest.raises(UpstreamError) as failure:
            await client.complete(QUESTION, 5, timeout_s=1.0)
        assert failure.value.reason == "own_limit"
        actor.open.set()
        assert await quiet(actor.budget) == Spending()
        assert (await client.complete(QUESTION, 5, timeout_s=60.0)).text == "You said: one two three"
        await client.close()

    with start_upstream() as server:
        asyncio.run(asyncio.wait_for(late(server.url), 120.0))
        assert len(server.calls()) == 1
