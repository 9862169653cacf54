"""What runs inside a Ray Serve replica: an engine with a model, or a proxy to an upstream, behind one set of methods.

Answers and failures travel as values: a call that cannot be answered returns a ModelUnavailable instead of raising it, so that Serve
neither logs a traceback for every 429 nor wraps the reason in one of its own errors.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager

from serve.deployments import TierDeployment
from serve.generation import Generation, ModelSpec
from serve.replicas.asking import Ask, Model, ReplicaStats, Reply
from serve.replicas.metrics import Meter
from workloads.errors import InputError, ModelUnavailable

START_MARK = "isthmus-start-error "
"""What is between this and the line's end in a failed constructor's message is the InputError as JSON."""


class _Replica:
    """The methods Serve calls. A subclass says which model stands behind them."""

    def __init__(self, tier: TierDeployment, app_name: str) -> None:
        self._tier = tier
        with _told(tier):
            self._model = self._load(tier, app_name)
        self._meter = Meter(tier.name)

    def _load(self, tier: TierDeployment, app_name: str) -> Model:
        raise NotImplementedError

    async def complete(self, ask: Ask) -> Reply:
        """The answer, or why there is none; never later than `ask.timeout_s`. Cancelling frees the call's slot."""
        begun_s = time.perf_counter()
        try:
            async with asyncio.timeout(ask.timeout_s):
                reply: Reply = await self._model.complete(ask)
        except TimeoutError:
            reply = ModelUnavailable("timeout", f"{self._tier.name}: no answer within {ask.timeout_s:g} s")
        except ModelUnavailable as failure:
            reply = failure
        except asyncio.CancelledError:
            self._meter.failed("cancelled")
            raise
        self._count(reply, begun_s)
        return reply

    async def complete_many(self, asks: Sequence[Ask]) -> list[Reply]:
        """Answers in the order of the calls, once all are there: one Serve request for many calls, within the first one's time."""
        begun_s = time.perf_counter()
        try:
            replies = await self._model.complete_many(asks, asks[0].timeout_s)
        except asyncio.CancelledError:
            self._meter.failed("cancelled", len(asks))
            raise
        for reply in replies:
            self._count(reply, begun_s)
        return replies

    async def stream(self, ask: Ask) -> AsyncIterator[str | Reply]:
        """The pieces of the answer's text as they come, then the whole answer, or why it broke off."""
        begun_s = time.perf_counter()
        until_s = asyncio.get_running_loop().time() + ask.timeout_s
        try:
            async with aclosing(self._model.stream(ask)) as items:
                while True:
                    # Never around a yield: the time limit would strike in whatever the taker of the pieces waits for.
                    async with asyncio.timeout_at(until_s):
                        item = await anext(items, None)
                    if item is None:
                        return
                    if isinstance(item, Generation):
                        self._count(item, begun_s)
                    yield item
        except TimeoutError:
            failure = ModelUnavailable("timeout", f"{self._tier.name}: no whole answer within {ask.timeout_s:g} s")
        except ModelUnavailable as error:
            failure = error
        except (asyncio.CancelledError, GeneratorExit):
            self._meter.failed("cancelled")
            raise
        self._count(failure, begun_s)
        yield failure

    async def stats(self) -> ReplicaStats:
        """What this replica did so far and does now."""
        import ray

        queued, active = self._model.load()
        here = ray.get_runtime_context()
        return ReplicaStats(
            self._tier.name,
            here.get_actor_id() or "",
            here.get_node_id(),
            os.getpid(),
            queued,
            active,
            *self._meter.totals,
            *self._model.spent(),
        )

    def check_health(self) -> None:
        """Serve calls this every `health_check_period_s` and replaces the replica if it raises or does not return."""
        self._meter.load(*self._model.load())
        self._model.check()

    def __del__(self) -> None:
        """Serve calls this once the calls in flight have ended, or the time for them has."""
        model = getattr(self, "_model", None)  # the constructor may have failed before there was one
        if model is not None:
            model.close()

    def _count(self, reply: Reply, begun_s: float) -> None:
        if isinstance(reply, Generation):
            self._meter.answered(reply, time.perf_counter() - begun_s)
        else:
            self._meter.failed(reply.reason)


class EdgeSLM(_Replica):
    """Hosts a model on an edge node."""

    def _load(self, tier: TierDeployment, app_name: str) -> Model:
        from serve.replicas.hosted import HostedModel

        del app_name
        assert isinstance(tier.model, ModelSpec)
        return HostedModel(tier.model, tier.max_batch)


class CloudProxy(_Replica):
    """Forwards to an upstream, or hosts a model where there is none; never on an edge node."""

    def _load(self, tier: TierDeployment, app_name: str) -> Model:
        if isinstance(tier.model, ModelSpec):
            from serve.replicas.hosted import HostedModel

            return HostedModel(tier.model, tier.max_batch)
        from serve.replicas.forwarded import ForwardedModel

        return ForwardedModel(tier.model, app_name, tier.name)


@contextmanager
def _told(tier: TierDeployment) -> Iterator[None]:
    """Lets an InputError of the constructor through Serve, which passes on nothing but a traceback's text."""
    try:
        yield
    except InputError as error:
        told = json.dumps([f"{tier.place}: {error.place}", error.problem, error.remedy])
        raise RuntimeError(f"{START_MARK}{told}") from None


def start_error(message: str) -> InputError | None:
    """The InputError that a replica's constructor raised, out of the message Serve shows; None if there is none in it."""
    _, mark, rest = message.rpartition(START_MARK)
    if not mark:
        return None
    place, problem, remedy = json.loads(rest.splitlines()[0])
    return InputError(place, problem, remedy)
