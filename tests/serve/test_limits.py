"""Limits over a window of time, against the event loop's own clock."""

from __future__ import annotations

import asyncio

import pytest

from serve.upstream.errors import BudgetExceeded
from serve.upstream.limits import Budget, RateLimit, Spending


@pytest.mark.parametrize("amounts", [[1.0] * 14, [2.0, 1.0, 3.0, 1.0, 1.0, 2.0, 3.0, 1.0], [9.0, 1.0, 4.0]])
def test_no_window_holds_more_than_the_limit(amounts: list[float]) -> None:
    """In any window the amounts that passed stay within the limit; one above the whole limit passes alone."""
    limit, window_s = 4.0, 0.3

    async def pass_all() -> list[tuple[float, float]]:
        rate = RateLimit(limit, window_s)
        return [(entry.at_s, entry.amount) for entry in await asyncio.gather(*map(rate.acquire, amounts))]

    passed = asyncio.run(pass_all())
    assert [amount for _, amount in passed] == [min(amount, limit) for amount in amounts]
    for start_s, _ in passed:
        inside = [amount for at_s, amount in passed if start_s <= at_s < start_s + window_s]
        assert sum(inside) <= limit, passed


def test_waiters_pass_in_the_order_they_came() -> None:
    """A large call is not overtaken by small ones behind it, and a cancelled waiter holds up nobody."""
    order: list[str] = []

    async def pass_all() -> None:
        rate = RateLimit(2.0, 0.2)

        async def one(name: str, amount: float) -> None:
            await rate.acquire(amount)
            order.append(name)

        tasks = [
            asyncio.create_task(one(name, amount))
            for name, amount in (("a", 1.0), ("large", 2.0), ("gone", 2.0), ("b", 1.0), ("c", 1.0))
        ]
        await asyncio.sleep(0.05)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(pass_all())
    assert order == ["a", "large", "b", "c"]


def test_what_an_estimate_took_too_much_is_free_at_once() -> None:
    """A correction lets a waiter pass long before the window ends."""

    async def pass_two() -> float:
        rate = RateLimit(100.0, 3600.0)
        first = await rate.acquire(90.0)
        waiting = asyncio.create_task(rate.acquire(50.0))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        rate.correct(first, 20.0)
        return (await asyncio.wait_for(waiting, 60.0)).amount

    assert asyncio.run(pass_two()) == 50.0


def test_without_a_limit_nobody_waits() -> None:
    """None is no limit."""

    async def pass_many() -> int:
        rate = RateLimit(None)
        return len([await rate.acquire(1e9) for _ in range(1000)])

    assert asyncio.run(pass_many()) == 1000


def test_calls_beyond_what_is_granted_wait_for_the_grant() -> None:
    """Nothing is reserved beyond what is written down as spent, and what can never be granted is refused at once."""

    async def spend() -> None:
        budget = Budget(10.0, granted_usd=2.0)
        first = await budget.reserve(1.5)
        waiting = [asyncio.create_task(budget.reserve(usd)) for usd in (4.0, 1.0)]
        await asyncio.sleep(0.05)
        now = await budget.spending()
        assert (now.reserved_usd, now.waiting_usd) == (1.5, 4.0)
        with pytest.raises(BudgetExceeded):
            await budget.reserve(9.0)
        await budget.grant(3.0)
        await asyncio.sleep(0.05)
        assert [task.done() for task in waiting] == [False, True]
        await budget.settle(first, 0.5)
        await budget.grant(6.0)
        await waiting[0]
        assert (await budget.spending()).total_usd == 5.5

    asyncio.run(spend())


def test_a_stopped_budget_refuses_who_waits_and_who_comes() -> None:
    """Where spending cannot be written down any more, nobody waits for it."""

    async def spend() -> None:
        budget = Budget(10.0, granted_usd=0.0)
        waiting = asyncio.create_task(budget.reserve(1.0))
        await asyncio.sleep(0.05)
        await budget.stop("no room")
        for call in (waiting, budget.reserve(1.0)):
            with pytest.raises(BudgetExceeded, match="no room"):
                await call

    asyncio.run(spend())


def test_what_was_spent_before_counts() -> None:
    """A budget that goes on begins where the last one ended; calls then under way count as spent."""

    async def spend() -> None:
        budget = Budget(10.0, Spending(4.0, 1.0, reserved_usd=2.0, retried=3))
        assert await budget.spending() == Spending(4.0, 3.0, retried=3)
        with pytest.raises(BudgetExceeded, match=r"of 10 USD, 4\.0"):
            await budget.reserve(3.5)
        await budget.reserve(3.0, retry=True)
        assert (await budget.spending()).retried == 4

    asyncio.run(spend())
