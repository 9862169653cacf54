"""Forwarding to any OpenAI-compatible upstream: a plain class without Ray.

One call is one or more attempts. An attempt waits for a slot (`concurrency`), then for the rate limits, reserves the most
it can cost and is sent; between attempts a call holds nothing. A call that waits until too little time is left for an answer
was never sent: "own_limit", which costs nothing and is no failure of the upstream. What an attempt costs:

- an answer with usage: its tokens at the spec's prices;
- an error status, or no connection: nothing, as upstreams bill answers;
- anything else that was sent (too slow, broken off, cancelled, no usage): unknown, so the reserved worst case stays
  counted. This makes `max_usd` hard, as long as the upstream keeps to the limit on tokens that it was given.

Only answers that came are counted as usage, so a retry counts no call twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

from serve.generation import Generation, Sampling
from serve.upstream.answer import Answer
from serve.upstream.call import Bill, Call, call_of
from serve.upstream.errors import BudgetExceeded, UpstreamError, explain
from serve.upstream.limits import Budget, Passage, RateLimit
from serve.upstream.spec import UpstreamSpec
from workloads.errors import InputError
from workloads.task import Message

__all__ = ["BudgetExceeded", "Upstream", "UpstreamError", "UpstreamSpec", "UpstreamStats"]

LONGEST_RETRY_AFTER_S = 120.0
"""An upstream that asks for more is given up: the caller learns `retry_after_s` and can go elsewhere."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UpstreamStats:
    """Counts since construction: calls by how they ended, attempts after the first, and the usage of the answers.

    `estimated` are answers without usage: their tokens are estimates, in the Generation and here. `unconfirmed_usd` is the most
    that attempts without a known cost can have cost, `confirmed_usd` what the others did.
    """

    answered: int = 0
    failed: int = 0
    retried: int = 0
    estimated: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    confirmed_usd: float = 0.0
    unconfirmed_usd: float = 0.0


class Upstream:
    """An OpenAI-compatible API behind one small interface; belongs to the event loop of its first call.

    The key is read from the environment here, in the process that uses it; InputError if its variable is not set.
    `budget` lets several upstreams share one limit; without one, `max_usd` holds for this object.
    """

    def __init__(self, spec: UpstreamSpec, budget: Budget | None = None) -> None:
        import openai

        self.spec = spec
        self.budget = Budget(spec.max_usd) if budget is None else budget
        self._key = _read_key(spec.api_key_env)
        # Retries are made here, not by the client: it knows no deadline, and its attempts would pass by the limits.
        # A key must be given, or it would send OPENAI_API_KEY to whatever upstream this is.
        timeout = openai.Timeout(spec.timeout_s, connect=spec.connect_timeout_s)
        key = self._key or "none"
        self._client = openai.AsyncOpenAI(api_key=key, base_url=spec.base_url, timeout=timeout, max_retries=0)
        self._create = self._client.chat.completions.create  # imports more of the library now, not while a call waits
        self._slots = asyncio.Semaphore(spec.concurrency)
        self._requests, self._tokens = RateLimit(spec.requests_per_min), RateLimit(spec.tokens_per_min)
        self._stats = UpstreamStats()
        # What the client raises, and what reading an answer of the wrong shape raises.
        self._faults = (openai.OpenAIError, TimeoutError, ValueError, TypeError, AttributeError, LookupError)

    def __repr__(self) -> str:
        return f"Upstream({self.spec.model!r} at {self.spec.base_url!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Upstream holds a key and connections and is not sent anywhere; send its UpstreamSpec")

    def stats(self) -> UpstreamStats:
        """What happened so far."""
        return self._stats

    async def close(self) -> None:
        """Close the connections; calls in flight fail."""
        await self._client.close()

    async def complete(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        sampling: Sampling | None = None,
        timeout_s: float | None = None,
    ) -> Generation:
        """The model's answer; UpstreamError with its reason if there is none.

        `sampling` None leaves it to the upstream. `timeout_s` bounds the whole call, waiting and retries included; None
        leaves that to `max_retries`. `queue_s` is the time before the attempt that was answered. Unless the spec says
        `stream`, `prefill_s` is NaN and `decode_s` all of that attempt.
        """
        call = call_of(self.spec, messages, max_tokens, sampling, timeout_s, streamed=self.spec.stream)
        generation = [item async for item in self._answer(call)][-1]
        assert isinstance(generation, Generation)
        return generation

    async def stream(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        sampling: Sampling | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[str | Generation, None]:
        """The pieces of the answer's text as they come, then the whole as a Generation; otherwise like `complete`.

        A call is tried again only until its first piece. Close the iterator (`contextlib.aclosing`) to hang up early.
        """
        call = call_of(self.spec, messages, max_tokens, sampling, timeout_s, streamed=True, pieces=True)
        async with aclosing(self._answer(call)) as items:
            async for item in items:
                yield item

    async def _answer(self, call: Call) -> AsyncGenerator[str | Generation, None]:
        """All attempts of one call."""
        failure: UpstreamError | None = None
        for attempt in range(self.spec.max_retries + 1):
            error, begun = None, False
            try:
                async with aclosing(self._attempt(call, attempt)) as items:
                    async for item in items:
                        begun = True
                        yield item
            except UpstreamError as raised:
                error = raised
            if error is None:
                return
            # A call that was sent and failed did not fail for want of a place for one more attempt.
            failure = error if failure is None or error.reason != "own_limit" else failure
            delay_s = None if begun else self._delay_s(error, attempt, call)
            if delay_s is None:
                self._count(failed=1)
                raise failure
            self._count(retried=1)
            _LOG.info("%r: %s; retry %d of %d in %.2f s", self, error, attempt + 1, self.spec.max_retries, delay_s)
            await asyncio.sleep(delay_s)

    def _delay_s(self, error: UpstreamError, attempt: int, call: Call) -> float | None:
        """Seconds until the next attempt, Retry-After and then a random part of the backoff; None to give up."""
        asked_s = error.retry_after_s or 0.0
        if not error.passing or attempt == self.spec.max_retries or asked_s > LONGEST_RETRY_AFTER_S:
            return None
        delay_s = asked_s + random.uniform(0.0, min(self.spec.max_backoff_s, self.spec.first_backoff_s * 2**attempt))
        next_s = asyncio.get_running_loop().time() + delay_s
        return delay_s if call.deadline_s is None or next_s < call.deadline_s else None

    async def _attempt(self, call: Call, number: int) -> AsyncGenerator[str | Generation, None]:
        """One attempt: admitted, sent, answered and charged; UpstreamError if not."""
        async with self._admitted(call, retry=number > 0) as bill:
            error = None
            try:
                async with aclosing(self._ask(call, bill)) as items:
                    async for item in items:
                        yield item
            except self._faults as fault:
                error, charged = explain(fault, self._key)
                bill.usd = None if charged else 0.0
            if error is not None:  # raised outside the handler: its context would hold the request
                raise error

    @asynccontextmanager
    async def _admitted(self, call: Call, *, retry: bool) -> AsyncIterator[Bill]:
        """A slot, a place within the limits and a reservation, given back with what the bill says at the end."""
        async with AsyncExitStack() as held:
            entered = await self._entered(call, held, retry=retry)
            if entered is None:  # raised here, where no exception is being handled
                wait_s = max(self._requests.wait_s(1.0), self._tokens.wait_s(call.tokens))
                raise UpstreamError("own_limit", "our own limits let no call pass in time", wait_s or None)
            passage, reservation = entered
            bill = Bill()
            try:
                yield bill
            finally:
                if bill.tokens is not None:
                    self._tokens.correct(passage, bill.tokens)
                if bill.usd is None:
                    self._count(unconfirmed_usd=call.worst_usd)
                else:
                    self._count(confirmed_usd=bill.usd)
                await self.budget.settle(reservation, bill.usd)

    async def _entered(self, call: Call, held: AsyncExitStack, *, retry: bool) -> tuple[Passage, int] | None:
        """(what is taken of the tokens a minute, reservation); None, with nothing but a slot taken, if that takes too long."""
        now_s, taken = asyncio.get_running_loop().time(), list[tuple[RateLimit, Passage]]()
        try:
            async with asyncio.timeout_at(call.admitted_by(now_s, self.spec.timeout_s)):
                await held.enter_async_context(self._slots)
                for limit, amount in ((self._requests, 1.0), (self._tokens, call.tokens)):
                    taken.append((limit, await limit.acquire(amount)))
                return taken[-1][1], await self.budget.reserve(call.worst_usd, retry=retry)
        except BaseException as error:
            for limit, passage in taken:
                limit.correct(passage, 0.0)
            if isinstance(error, TimeoutError):
                return None
            raise

    async def _ask(self, call: Call, bill: Bill) -> AsyncGenerator[str | Generation, None]:
        """Send the call and read its answer."""
        clock = asyncio.get_running_loop().time
        started_s, answer = clock(), Answer()
        until_s = call.until(started_s + self.spec.timeout_s)
        if not call.streamed:
            async with asyncio.timeout_at(until_s):
                answer.read(await self._create(**call.body))
        else:
            async with asyncio.timeout_at(until_s):
                events = await self._create(**call.body, stream=True, stream_options={"include_usage": True})
            async with aclosing(events):
                while True:
                    # Never around a yield: the time limit would strike in whatever the caller waits for.
                    async with asyncio.timeout_at(until_s):
                        chunk = await anext(events, None)
                    if chunk is None:
                        break
                    if (piece := answer.read_piece(chunk, clock())) and call.pieces:
                        yield piece
        generation = answer.generation(call.prompt_tokens, started_s - call.begun_s, started_s, clock())
        self._charge(generation, bill, estimated=answer.usage is None)
        yield generation

    def _charge(self, generation: Generation, bill: Bill, *, estimated: bool) -> None:
        """Put an answer on the bill and into the counts."""
        tokens = (generation.prompt_tokens, generation.completion_tokens, generation.cached_tokens)
        if not estimated:
            bill.usd, bill.tokens = self.spec.usd(*tokens), tokens[0] + tokens[1]
        elif not self._stats.estimated:
            _LOG.warning("%r reports no usage: tokens are estimates, and costs count as the most they can be", self)
        counts = dict(zip(("prompt_tokens", "completion_tokens", "cached_tokens"), tokens, strict=True))
        self._count(answered=1, estimated=int(estimated), **counts)

    def _count(self, **more: float) -> None:
        self._stats = replace(self._stats, **{name: getattr(self._stats, name) + value for name, value in more.items()})


def _read_key(variable: str | None) -> str | None:
    """The key, without the blanks and line ends that come with files; errors name the variable, never the value."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        remedy = f"Set {variable}, or name another with api_key_env (null: the upstream wants no key)"
        raise InputError("upstream api_key_env", f"the environment variable {variable} is not set", remedy)
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError("upstream api_key_env", f"the value of {variable} is no key", "It is one plain word")
    return key
