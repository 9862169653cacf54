"""One budget for all replicas of a tier, in an actor: a replica that dies and comes back has not forgotten what was spent.

What is spent goes into the run's SpendingBook. Of a limited budget a part is written there before it may be spent, so that the
limit holds for a run that is killed and goes on later: what it may have spent is in the book.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from serve.cloud import UpstreamSpec
from serve.deployments import TierDeployment
from serve.replicas.placement import live_nodes, off_edge
from serve.upstream.errors import BudgetExceeded
from serve.upstream.limits import Budget, Spending
from serve.upstream.spending import SpendingBook
from workloads.errors import InputError

_NAMESPACE = "isthmus"
_GRANTS = 20
"""Parts in which a limit is granted: a kill costs at most about one of them."""
_LOOK_S = 0.25
_ANSWER_S = 60.0
_NOT_COUNTED = -1
_GONE = "the process that keeps the budget is gone"


class SharedBudget(Budget):
    """Stands for the budget that an actor keeps. Without the actor nothing is spent any more where there is a limit."""

    def __init__(self, actor: Any, *, limited: bool) -> None:
        super().__init__()
        self._actor, self._limited = actor, limited
        self._left: set[asyncio.Future[int]] = set()

    async def reserve(self, usd: float, *, retry: bool = False) -> int:
        """As Budget.reserve; if it is cancelled, what the actor reserves all the same is given back."""
        asked = asyncio.ensure_future(self._asked(usd, retry))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            self._left.add(asked)
            asked.add_done_callback(self._give_back)
            raise

    async def settle(self, reservation: int, usd: float | None) -> None:
        """As Budget.settle."""
        import ray

        try:
            if reservation != _NOT_COUNTED:
                await self._actor.settle.remote(reservation, usd)
        except ray.exceptions.RayActorError:
            return  # the reservation stands, and the next one is refused

    async def spending(self) -> Spending:
        """As Budget.spending."""
        spending: Spending = await self._actor.spending.remote()
        return spending

    async def _asked(self, usd: float, retry: bool) -> int:
        import ray

        try:
            return int(await self._actor.reserve.remote(usd, retry=retry))
        except BudgetExceeded as error:  # Ray's own subclass of it
            raise BudgetExceeded(error.problem) from None
        except ray.exceptions.RayActorError:
            if self._limited:
                raise BudgetExceeded(_GONE) from None
            return _NOT_COUNTED

    def _give_back(self, asked: asyncio.Future[int]) -> None:
        self._left.discard(asked)
        if not asked.cancelled() and asked.exception() is None and asked.result() != _NOT_COUNTED:
            self._actor.settle.remote(asked.result(), 0.0)


def shared_budget(app_name: str, tier: str, *, limited: bool) -> SharedBudget | None:
    """The budget of a tier of this application; None outside of one, where there is no limit to keep."""
    import ray

    if not limited and not ray.is_initialized():  # looking for an actor would start a cluster
        return None
    try:
        return SharedBudget(ray.get_actor(_actor_name(app_name, tier), namespace=_NAMESPACE), limited=limited)
    except ValueError:
        if limited:
            raise
        return None


@contextmanager
def kept_budgets(tiers: Iterable[TierDeployment], app_name: str, book: SpendingBook) -> Iterator[None]:
    """The budgets of all tiers with an upstream, for the length of a block; what they spent is in `book` afterwards."""
    with ExitStack() as stack:
        kept: list[_Kept] = []
        for tier in tiers:
            if isinstance(tier.model, UpstreamSpec):
                kept.append(_Kept(tier, tier.model.max_usd, app_name, book))
                stack.callback(kept[-1].close)
        stack.enter_context(_granting([budget for budget in kept if not budget.granted]))
        yield


class _Kept:
    """A tier's budget, from the driver's side. The actor is never restarted, as it would not know what was spent."""

    def __init__(self, tier: TierDeployment, max_usd: float | None, app_name: str, book: SpendingBook) -> None:
        import ray

        self._tier, self._book, self._max_usd = tier.name, book, math.inf if max_usd is None else max_usd
        # Where nothing outlives this process there is nothing to write down before it is spent.
        self._step_usd = self._max_usd / _GRANTS if book.lasts else math.inf
        before = book.open(tier.name, max_usd)
        self._granted_usd = self._grant(before)
        kept: Any = ray.remote(num_cpus=0, max_restarts=0)(Budget)
        name, nodes = _actor_name(app_name, tier.name), live_nodes()
        made = kept.options(name=name, namespace=_NAMESPACE, lifetime="detached", **off_edge(tier.place, nodes))
        self._actor = made.remote(max_usd, before, self._granted_usd)
        try:
            ray.get(self._actor.spending.remote(), timeout=_ANSWER_S)
        except ray.exceptions.RayError as error:
            ray.kill(self._actor)
            problem = f"the process that keeps its budget does not answer ({type(error).__name__})"
            raise InputError(tier.place, problem, "See `ray status`: the cluster may be overloaded") from None

    @property
    def granted(self) -> bool:
        """Whether all there is may be spent."""
        return self._granted_usd >= self._max_usd

    def extend(self) -> None:
        """Grant the next part if the last one is half used."""
        import ray

        if self.granted:
            return
        now: Spending = ray.get(self._actor.spending.remote(), timeout=_ANSWER_S)
        if now.total_usd + max(now.waiting_usd, self._step_usd / 2) <= self._granted_usd:
            return
        try:
            self._granted_usd = self._grant(now)
        except InputError as error:  # what cannot be written down must not be spent
            self._granted_usd = self._max_usd
            self._actor.stop.remote(str(error))
        else:
            self._actor.grant.remote(self._granted_usd)

    def close(self) -> None:
        """Write down what was spent, and end the actor; the book keeps what was granted if it does not answer."""
        import ray

        try:
            now: Spending = ray.get(self._actor.spending.remote(), timeout=_ANSWER_S)
            self._book.note(self._tier, now.ended)
        except ray.exceptions.RayError:
            return
        finally:
            ray.kill(self._actor)

    def _grant(self, now: Spending) -> float:
        """Write down as spent what may be from now on; returns the total allowed."""
        granted_usd = min(self._max_usd, now.total_usd + now.waiting_usd + self._step_usd)
        if math.isfinite(granted_usd):
            unconfirmed_usd = max(granted_usd, now.total_usd) - now.confirmed_usd
            self._book.note(self._tier, Spending(now.confirmed_usd, unconfirmed_usd, retried=now.retried))
        return granted_usd


@contextmanager
def _granting(budgets: Sequence[_Kept]) -> Iterator[None]:
    """Extend budgets as they are used, in the background."""
    if not budgets:
        yield
        return
    import ray

    ended = threading.Event()

    def extend() -> None:
        while not ended.wait(_LOOK_S):
            for budget in budgets:
                try:
                    budget.extend()
                except ray.exceptions.RayError:
                    continue  # it is asked again; without it nothing is spent

    thread = threading.Thread(target=extend, daemon=True, name="budgets")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _actor_name(app_name: str, tier: str) -> str:
    return f"budget-{app_name}-{tier}"
