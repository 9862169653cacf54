"""The caller's side of a deployed tier: every call ends exactly once, in time, with a Generation or a ModelUnavailable.

A DeploymentHandle alone promises neither: with the last replica gone it waits without an end, and a call whose replica dies raises
one of a dozen exceptions and is not sent again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Any

from serve.deployments import TierDeployment
from serve.generation import Generation, Sampling
from serve.replicas.asking import Ask, ReplicaStats, Reply
from serve.replicas.failures import unavailable
from serve.replicas.lookout import Lookout
from workloads.errors import ModelUnavailable
from workloads.task import Message

_GRACE_S = 2.0
"""A replica keeps the timeout itself and says so; this much later it is taken for gone."""
_COLLECT_S = 1.0
"""An answer that is collected after its time gets this long to come over, as it may have been ready for long."""
_STATS_S = 10.0

Look = Callable[[str], tuple[int, str]]


class TierClient:
    """A tier as its callers see it, in any thread or event loop of a process that is connected to the cluster.

    `handle` is the DeploymentHandle of its Serve application `app`, `model` the name callers know its model by. `look` tells how many
    replicas of an application are up, and what Serve says about it.
    """

    def __init__(self, tier: TierDeployment, model: str, app: str, handle: Any, look: Look | None = None) -> None:
        self.tier, self.model, self.app = tier, model, app
        self._handle, self._look = handle, look or running_replicas
        self._streaming = handle.options(stream=True)
        self._lookout = Lookout(tier.name, lambda: self._look(app)[0] > 0)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """Travels to the gateway's replica, without what it knows of the tier's replicas here."""
        return type(self), (self.tier, self.model, self.app, self._handle, self._look)

    @property
    def capacity(self) -> int:
        """Calls its replicas answer at the same time, before any scaling out."""
        return self.tier.first_replicas * self.tier.max_batch

    @property
    def request_timeout_s(self) -> float:
        """The longest it may take for a call."""
        return self.tier.request_timeout_s

    # ------------------------------------------------------------------------------------------------ from a thread

    def start(
        self,
        messages: tuple[Message, ...],
        max_tokens: int | None,
        sampling: Sampling | None,
        timeout_s: float | None = None,
    ) -> Pending:
        """Send one call; returns at once. `timeout_s` None is the tier's own."""
        limit_s = self.tier.request_timeout_s if timeout_s is None else timeout_s
        return self._sent(self._handle.complete, Ask(messages, max_tokens, sampling, limit_s), limit_s)

    def complete_many(
        self, calls: Sequence[tuple[tuple[Message, ...], int | None]], sampling: Sampling | None
    ) -> list[Reply]:
        """Answer these calls as one Serve request on one replica, and wait. They share one time limit and fail together."""
        return replies_of(self.start_many(calls, sampling), len(calls))

    def start_many(self, calls: Sequence[tuple[tuple[Message, ...], int | None]], sampling: Sampling | None) -> Pending:
        """Send these calls as one Serve request; `replies_of` waits for their outcome."""
        limit_s = self.tier.request_timeout_s
        asks = [Ask(messages, max_tokens, sampling, limit_s) for messages, max_tokens in calls]
        return self._sent(self._handle.complete_many, asks, limit_s)

    def _sent(self, method: Any, argument: Any, limit_s: float) -> Pending:
        try:
            failure = self._lookout.nobody()
            return Pending(self, None if failure else method.remote(argument), limit_s, failure)
        except Exception as error:  # the connection to the cluster may be gone
            return Pending(self, None, limit_s, self.failed(error, limit_s))

    def stats(self) -> list[ReplicaStats]:
        """The replicas that answer; raises ModelUnavailable if that takes longer than ten seconds.

        Serve counts the question as a call: a replica with `max_ongoing` of them on its hands answers once one has ended.
        """
        try:
            replies: list[ReplicaStats] = self._handle.broadcast("stats").results(timeout_s=_STATS_S)
        except Exception as error:
            raise unavailable(error, self.tier.name) from None
        return sorted(replies, key=lambda stats: stats.actor_id)

    # -------------------------------------------------------------------------------------------- from an event loop

    async def generate(
        self, messages: tuple[Message, ...], max_tokens: int | None, sampling: Sampling | None, timeout_s: float
    ) -> Generation:
        """The whole answer; ModelUnavailable with its reason if there is none. Cancelling it frees the call's slot."""
        if failure := await self._lookout.nobody_async():
            raise failure
        response = self._call(self._handle.complete, Ask(messages, max_tokens, sampling, timeout_s))
        try:
            async with asyncio.timeout(timeout_s + _GRACE_S):
                reply: Reply = await response
        except asyncio.CancelledError:
            _give_up(response)
            raise
        except Exception as error:
            reply = self.failed(error, timeout_s)
            _give_up(response)
        return _answer(reply)

    async def stream(
        self, messages: tuple[Message, ...], max_tokens: int | None, sampling: Sampling | None, timeout_s: float
    ) -> AsyncGenerator[str | Generation, None]:
        """The pieces of the answer as they come, then the whole; ModelUnavailable if there is none or it breaks off.

        Close it (`contextlib.aclosing`) to hang up, which frees the call's slot.
        """
        if failure := await self._lookout.nobody_async():
            raise failure
        until_s = asyncio.get_running_loop().time() + timeout_s + _GRACE_S
        response = self._call(self._streaming.stream, Ask(messages, max_tokens, sampling, timeout_s))
        ended = False
        try:
            while True:
                try:
                    async with asyncio.timeout_at(until_s):
                        item = await anext(response)
                except StopAsyncIteration:
                    raise ModelUnavailable("bad-answer", f"{self.tier.name}: a stream without its end") from None
                except Exception as error:
                    raise self.failed(error, timeout_s) from None
                if not isinstance(item, str):
                    ended = True
                    yield _answer(item)
                    return
                yield item
        finally:
            if not ended:
                _give_up(response)

    def _call(self, method: Any, ask: Ask) -> Any:
        """Send a call on its way; ModelUnavailable where that alone fails, as it does without a cluster or with Serve gone."""
        try:
            return method.remote(ask)
        except Exception as error:
            raise self.failed(error, ask.timeout_s) from None

    async def health(self) -> str:
        """Empty while a replica is up, else what is wrong."""
        try:
            running, told = await asyncio.to_thread(self._look, self.app)
        except Exception as error:
            return str(unavailable(error, self.tier.name))
        return "" if running else f"{self.tier.name}: no replica is up{f' ({told})' if told else ''}"

    # --------------------------------------------------------------------------------------------------- when it fails

    def failed(self, error: BaseException, limit_s: float) -> ModelUnavailable:
        """What an exception of a call means. After a timeout the next call first waits for a look whether anybody is there."""
        failure = unavailable(error, self.tier.name)
        if failure.reason == "timeout":
            self._lookout.missed()
            return ModelUnavailable("timeout", f"{self.tier.name}: no answer within {limit_s:g} s")
        return failure


class Pending:
    """One request on its way. `reply` may be called any number of times, from one thread: the outcome stays the same.

    Another thread may cancel it meanwhile.
    """

    def __init__(self, client: TierClient, response: Any, limit_s: float, failure: ModelUnavailable | None) -> None:
        self._client, self._response, self._limit_s = client, response, limit_s
        self._until_s = time.monotonic() + limit_s + _GRACE_S
        self._reply: Any = failure

    def reply(self) -> Any:
        """Wait for what the replica returned, at most until the call's time is over; failures are returned as values."""
        if self._reply is None:
            try:
                self._reply = self._response.result(timeout_s=max(_COLLECT_S, self._until_s - time.monotonic()))
            except Exception as error:
                self._reply = self._client.failed(error, self._limit_s)
                _give_up(self._response)
            self._response = None
        return self._reply

    def cancel(self) -> None:
        """Give the call up; its slot is freed and a later `reply` says "cancelled"."""
        if self._reply is None:
            _give_up(self._response)
            self._response, self._reply = None, ModelUnavailable("cancelled", self._client.tier.name)


def replies_of(pending: Pending, calls: int) -> list[Reply]:
    """Wait for the outcome of so many calls that travel together."""
    replies = pending.reply()
    return [replies] * calls if isinstance(replies, ModelUnavailable) else list(replies)


def _give_up(response: Any) -> None:
    """Cancel a call. For one that no replica has got Serve raises here why not, which its caller has been told already."""
    with suppress(Exception):
        response.cancel()


def _answer(reply: Reply) -> Generation:
    if isinstance(reply, ModelUnavailable):
        raise reply
    return reply


def running_replicas(app: str) -> tuple[int, str]:
    """How many replicas of a Serve application are up, and what Serve says about it."""
    import ray
    from ray import serve

    if not ray.is_initialized():  # asked without a cluster, Serve would start one
        raise RuntimeError("this process is not connected to a cluster")
    status: Any = serve.status().applications.get(app)
    if status is None:
        return 0, "it is not deployed"
    running = sum(deployment.replica_states.get("RUNNING", 0) for deployment in status.deployments.values())
    told = " ".join(" ".join(deployment.message for deployment in status.deployments.values()).split())
    return running, told[-200:]
