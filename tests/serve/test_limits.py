"""Limits over a window of time, against the event loop's own clock."""

from __future__ import annotations

import asyncio

import pytest

from serve.upstream.limits import RateLimit


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
