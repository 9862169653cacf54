"""One limit on dollars for all replicas of a tier, for all groups of a run, and for a run that goes on after a kill."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from serve.app import deployed
from serve.backend import RayServeBackend
from serve.cloud import UpstreamSpec
from serve.deployments import TierDeployment
from serve.replicas.budget import kept_budgets, shared_budget
from serve.upstream.errors import BudgetExceeded
from serve.upstream.spending import SpendingBook
from tests.serve.ray_cluster import PATIENCE_S, kill, question, replicas_of, until
from tests.serve.upstream import Upstream, start_upstream
from workloads.backend import Handle
from workloads.errors import ModelUnavailable

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

DOLLARS: dict[str, Any] = {"input_usd_per_mtok": 1e-6, "output_usd_per_mtok": 1e6}
"""A dollar for each token of an answer, and next to nothing for the prompt."""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """One whose answers cost four dollars."""
    with start_upstream() as running:
        running.script(default={"kind": "ok", "text": "a b c d"})
        yield running


def tiers(upstream: Upstream, max_usd: float | None = 40.5, replicas: int = 1) -> dict[str, TierDeployment]:
    """A tier that forwards to it."""
    spec = UpstreamSpec(upstream.url, "m", None, max_retries=0, max_usd=max_usd, **DOLLARS)
    return {"api": TierDeployment("api", "cloud", spec, replicas=replicas, num_cpus=0.25, request_timeout_s=PATIENCE_S)}


def answered(backend: RayServeBackend, count: int) -> int:
    """How many of `count` calls of four tokens were answered, one after the other; the others fail for want of budget."""
    endings = [_ending(backend.submit(question(f"q {number}", 4), "api")) for number in range(count)]
    assert set(endings) <= {"stop", "length", "budget"}
    return count - endings.count("budget")


def billed(upstream: Upstream) -> float:
    """What the upstream asks for, in dollars."""
    return 4.0 * sum(call["kind"] == "ok" for call in upstream.calls())


def written_usd(path: Path) -> float:
    """What the book in a file says may be spent at most."""
    last = json.loads(path.read_text().splitlines()[-1])
    return float(last["confirmed_usd"] + last["unconfirmed_usd"])


def test_a_budget_holds_for_all_proxies_and_outlives_them(cluster, upstream: Upstream) -> None:
    """Two proxies share one limit, and one that is killed and comes back has not forgotten what was spent."""
    with (
        deployed(tiers(upstream, replicas=2), app_name="money", timeout_s=PATIENCE_S) as clients,
        RayServeBackend(clients) as backend,
    ):
        assert answered(backend, 6) == 6
        victim = next(s for s in backend.stats()["api"] if s.answered)
        assert victim.confirmed_usd == pytest.approx(4.0 * victim.answered, abs=0.01)
        kill(victim)
        until(lambda: len({s.pid for s in replicas_of(backend, "api")} - {victim.pid}) == 2, "two proxies again")
        assert answered(backend, 20) == 4  # 40 dollars are 10 answers of 4 tokens
        with pytest.raises(ModelUnavailable, match="budget"):
            backend.submit(question("one more", 4), "api").result()
    assert billed(upstream) == 40.0


def test_a_budget_is_one_for_all_groups_of_a_run_and_for_the_run_that_goes_on(
    cluster, upstream: Upstream, tmp_path
) -> None:
    """Models that are brought up again spend what is left; the book says where it went, also to the next process."""
    path = tmp_path / "spending"
    with SpendingBook(path) as book:
        for app, count, expected in (("one", 4, 4), ("two", 4, 4)):
            with (
                deployed(tiers(upstream), app_name=app, timeout_s=PATIENCE_S, book=book) as clients,
                RayServeBackend(clients) as backend,
            ):
                assert answered(backend, count) == expected
                assert billed(upstream) <= written_usd(path) <= 40.5
        assert book.lines() == ["upstream of tier api: 32.0000 USD; 0 retries; limit 40.5 USD"]
    assert written_usd(path) == pytest.approx(32.0, abs=0.01)
    with (
        SpendingBook(path) as book,
        deployed(tiers(upstream), app_name="three", timeout_s=PATIENCE_S, book=book) as clients,
        RayServeBackend(clients) as backend,
    ):
        assert answered(backend, 4) == 2
    assert billed(upstream) == 40.0


def test_what_a_killed_run_may_have_spent_is_written_before(cluster, upstream: Upstream, tmp_path) -> None:
    """At every moment the file allows for what is billed, and for little more."""
    path = tmp_path / "spending"
    with (
        SpendingBook(path) as book,
        deployed(tiers(upstream, 400.0), app_name="ahead", timeout_s=PATIENCE_S, book=book) as clients,
        RayServeBackend(clients) as backend,
    ):
        for number in range(40):
            backend.submit(question(f"q {number}", 4), "api").result()
            assert billed(upstream) <= written_usd(path) <= billed(upstream) + 2 * 400.0 / 20
    assert 5 < len(path.read_text().splitlines()) < 40  # in parts, not call by call


def test_a_call_without_a_limit_is_counted_too(cluster, upstream: Upstream) -> None:
    """The end of a run says what it cost."""
    book = SpendingBook()
    with (
        deployed(tiers(upstream, None), app_name="free", timeout_s=PATIENCE_S, book=book) as clients,
        RayServeBackend(clients) as backend,
    ):
        assert answered(backend, 3) == 3
    assert book.lines() == ["upstream of tier api: 12.0000 USD; 0 retries"]


def test_a_reservation_whose_caller_goes_away_is_given_back(cluster, upstream: Upstream, tmp_path) -> None:
    """A caller cancelled while the actor reserves leaves nothing reserved, however that race ends."""

    async def cancelled_calls() -> float:
        budget = shared_budget("gone", "api", limited=True)
        assert budget is not None
        for round_ in range(20):
            asking = [asyncio.create_task(budget.reserve(0.5)) for _ in range(10)]
            await asyncio.sleep(0.001 * round_)
            for task in asking:
                task.cancel()
            for ended in await asyncio.gather(*asking, return_exceptions=True):
                if isinstance(ended, int):
                    await budget.settle(ended, 0.0)
        until_s = asyncio.get_running_loop().time() + PATIENCE_S
        while (reserved := (await budget.spending()).reserved_usd) and asyncio.get_running_loop().time() < until_s:
            await asyncio.sleep(0.05)
        assert (await budget.spending()).total_usd == 0.0
        return reserved

    with kept_budgets(tiers(upstream).values(), "gone", SpendingBook()):
        assert asyncio.run(cancelled_calls()) == 0.0


def test_a_budget_whose_actor_dies_refuses_where_there_is_a_limit(cluster, upstream: Upstream) -> None:
    """Without it nobody knows what is left; without a limit calls go on, uncounted."""
    import ray

    async def ask(limited: bool) -> int:
        budget = shared_budget("dead", "api", limited=limited)
        assert budget is not None
        ray.kill(budget._actor)
        with suppress(ray.exceptions.RayActorError):
            while True:  # it dies a moment after
                await budget._actor.spending.remote()
        reservation = await budget.reserve(1.0)
        await budget.settle(reservation, 1.0)
        return reservation

    with kept_budgets(tiers(upstream).values(), "dead", SpendingBook()), pytest.raises(BudgetExceeded, match="is gone"):
        asyncio.run(ask(True))
    with kept_budgets(tiers(upstream, None).values(), "dead", SpendingBook()):
        assert asyncio.run(ask(False)) < 0
    assert shared_budget("nobody's", "api", limited=False) is None


# --------------------------------------------------------------------------------------------------------- paid answers


def test_a_paid_answer_does_not_wait_for_others(cluster, upstream: Upstream) -> None:
    """Calls of one submission travel alone: an answer is there, and kept, while another one hangs."""
    upstream.script({"kind": "hang"})
    with (
        deployed(tiers(upstream), app_name="alone", timeout_s=PATIENCE_S) as clients,
        RayServeBackend(clients) as backend,
    ):
        handles = backend.submit_many([(question(f"q {number}", 4), "api") for number in range(4)])
        until(lambda: sum(handle._future.done() for handle in handles) == 3, "three answers")
        assert [handle.result().text for handle in handles if handle._future.done()] == ["a b c d"] * 3
        kill(backend.stats()["api"][0])  # with it goes the call that hangs
        assert Counter(_ending(handle) for handle in handles) == {"stop": 3, "replica-died": 1}
    assert len(upstream.calls()) == 4


def _ending(handle: Handle) -> str:
    try:
        return handle.result().finish_reason
    except ModelUnavailable as failure:
        return failure.reason


def test_calls_that_our_own_limits_hold_back_do_not_fail(cluster, upstream: Upstream) -> None:
    """A call's time counts from when it may be sent: with one at a time all are answered, each asked once and for what is allowed."""
    upstream.script(default={"kind": "ok", "text": "a b c d", "delay_s": 0.7})
    spec = UpstreamSpec(upstream.url, "m", None, concurrency=1, max_retries=0, max_tokens=3)
    tier = TierDeployment("api", "cloud", spec, max_batch=8, num_cpus=0.25, request_timeout_s=2.0)
    with (
        deployed({"api": tier}, app_name="patient", timeout_s=PATIENCE_S) as clients,
        RayServeBackend(clients) as backend,
    ):
        calls = [(question(f"q {number}", 4), "api") for number in range(8)]
        handles = [*backend.submit_many(calls[:4]), *(backend.submit(*call) for call in calls[4:])]
        assert [handle.result().text for handle in handles] == ["a b c"] * 8
    asked = [call["body"]["messages"][0]["content"] for call in upstream.calls()]
    assert sorted(asked) == sorted(f"q {number}" for number in range(8))
