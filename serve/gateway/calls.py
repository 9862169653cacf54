"""What happens to one chat call behind the gateway's HTTP: place it, ask the tier, go elsewhere if that fails, charge it.

Nothing here knows HTTP or Ray. Tiers stand behind `attempts.TierHandle`, decisions behind `workloads.placing.Placer`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from serve.gateway.attempts import GRACE_S, Attempts, Lost, Placed, TierHandle
from serve.gateway.openai_answers import finite, reason_of, retry_after, unavailable
from serve.gateway.openai_protocol import ApiError, ChatRequest
from serve.generation import Generation
from workloads.agent import FRAMING_BYTES
from workloads.errors import InputError, ModelUnavailable
from workloads.placing import IN_CHAIN, Charge, Part, Placer, TierLoad, call_of, request_number
from workloads.task import Completion

_LOG = logging.getLogger(__name__)
_TOKENS_UNLESS_TOLD = 1024
"""What a policy takes for the limit of an answer that names none."""
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What the gateway allows. Times in seconds.

    timeout_s: a call that takes longer, decision and fail-over included, is answered with 504. attempt_timeout_s: a tier that
    takes longer counts as failed, as one does that takes longer than its own `request_timeout_s`; None leaves it at that.
    fail_over: whether other tiers are tried. max_in_flight: calls at the same time; more are answered with 429. max_body_bytes,
    body_timeout_s: of a request's body. send_timeout_s: a client that takes nothing of its answer for so long is hung up on.
    health_timeout_s: of a tier's health. key_sha256: of the key that clients must show, None for none; the key itself goes
    nowhere.
    """

    timeout_s: float = 300.0
    attempt_timeout_s: float | None = None
    fail_over: bool = True
    max_in_flight: int = 1000
    max_body_bytes: int = 4_000_000
    body_timeout_s: float = 30.0
    send_timeout_s: float = 60.0
    health_timeout_s: float = 5.0
    key_sha256: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Answered:
    """A call's whole answer, by whom and at what cost."""

    placed: Placed
    tier: str
    model: str
    reason: str
    generation: Generation
    charge: Charge
    completion: Completion

    def on_top_of(self, earlier: Charge) -> Answered:
        """This answer, with what an earlier one cost that the policy did not take."""
        total = Charge(self.charge.cost_usd + earlier.cost_usd, self.charge.energy_j + earlier.energy_j)
        return replace(self, charge=total)

    def extra(self) -> dict[str, Any]:
        """The field `isthmus` of an answer: placement, reason, cost and energy."""
        return {
            "tier": self.tier, "model": self.model, "reason": self.reason, "placed_on": self.placed.decision.tier,
            "request": self.placed.request, "position": self.placed.call.position,
            "decision_s": finite(self.placed.decision.decision_s), "cost_usd": finite(self.charge.cost_usd),
            "energy_j": finite(self.charge.energy_j),
        }  # fmt: skip


@dataclass(slots=True)
class Stream:
    """A streamed answer under way. Who sends it counts `sent_bytes`; `answered` is set when the pieces end."""

    placed: Placed
    tier: str
    reason: str
    sent_bytes: int = 0
    answered: Answered | None = None


class Calls:
    """Places and answers calls; belongs to one event loop."""

    def __init__(self, placer: Placer, tiers: Mapping[str, TierHandle], options: GatewayOptions) -> None:
        self.placer, self.tiers, self.options = placer, tiers, options
        self.in_flight = 0
        self._attempts = Attempts(tiers, options.attempt_timeout_s)
        self._ready = frozenset(placer.names())
        # Placing may encode a text and preparing train a policy, which must not hold up the answers of others. Charging changes
        # what placing reads, so it has its turns in the same thread.
        self._placing = ThreadPoolExecutor(1, thread_name_prefix="placing")
        self._preparing = ThreadPoolExecutor(8, thread_name_prefix="preparing")  # one trains, others find theirs ready

    def close(self) -> None:
        """Let the threads go."""
        for threads in (self._placing, self._preparing):
            threads.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a call; raises ApiError (429) when too many are under way."""
        if self.in_flight >= self.options.max_in_flight:
            message = f"{self.in_flight} calls are being answered, which is the limit."
            headers = {"Retry-After": str(retry_after(1.0))}
            raise ApiError(429, message, kind="rate_limit_error", code="overloaded", headers=headers)
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    def label(self, model_name: str) -> str:
        """The name a model is counted under. Raises ApiError (404) for one that is not offered."""
        try:
            return self.placer.check(model_name)
        except InputError as error:
            raise _no_such_model(error) from None

    async def place(self, chat: ChatRequest, number: int | None, part: Part = IN_CHAIN) -> Placed:
        """Ask the policy; `number` is the request's number if the client gave one. Raises ApiError (404, 504)."""
        label = self.label(chat.model)
        until_s = asyncio.get_running_loop().time() + self.options.timeout_s
        request = request_number(chat.messages) if number is None else number
        call = call_of(chat.messages, chat.max_tokens or _TOKENS_UNLESS_TOLD, part=part)
        if chat.model not in self._ready:
            await self._prepare(chat.model, until_s)
        asked = partial(self.placer.place, chat.model, request, call, self.load())
        return Placed(chat, label, request, call, await self._within(until_s, self._placing, asked), until_s)

    async def _prepare(self, model_name: str, until_s: float) -> None:
        try:
            await self._within(until_s, self._preparing, partial(self.placer.prepare, model_name))
        except InputError as error:
            if not error.place.startswith("policy"):  # not about the value asked for, and nothing a client should read
                raise
            raise _no_such_model(error) from None

    async def _within(self, until_s: float, threads: ThreadPoolExecutor, work: Callable[[], _Value]) -> _Value:
        """What the placer's `work` returns. Raises ApiError (504) if that is not there by the loop's time `until_s`."""
        try:
            async with asyncio.timeout_at(until_s) as limit:
                return await asyncio.get_running_loop().run_in_executor(threads, work)
        except TimeoutError:
            if not limit.expired():  # the placer's own
                raise
            message = f"The policy took longer than {self.options.timeout_s:g} s, which is the limit of a call."
            raise ApiError(504, message, kind="timeout", code="timeout") from None

    def load(self) -> dict[str, TierLoad]:
        """How busy the tiers are with calls of this gateway."""
        return self._attempts.load()

    async def answer(self, placed: Placed) -> Answered:
        """The whole answer, and if the policy does not take it, the next one. Raises ApiError when no tier could answer."""
        answered = await self._one_answer(placed)
        while (again := await self._reviewed(answered)) is not None:
            answered = (await self._one_answer(again)).on_top_of(answered.charge)
        return answered

    async def _reviewed(self, answered: Answered) -> Placed | None:
        """The call placed anew, if its policy looks at answers and does not take this one."""
        placed = answered.placed
        if not self.placer.reviews(placed.chat.model):
            return None
        decision = placed.decision._replace(tier=answered.tier)
        asked = partial(
            self.placer.review, placed.chat.model, placed.request, placed.call, self.load(), decision, answered.completion
        )  # fmt: skip
        again = await self._within(placed.until_s, self._placing, asked)
        return None if again is None else replace(placed, decision=again)

    async def _one_answer(self, placed: Placed) -> Answered:
        """The first tier's answer that can. Raises ApiError when none could."""
        async for tier, reason, failures in self._ladder(placed):
            try:
                generation = await self._attempts.whole(placed, tier)
            except ModelUnavailable as failure:
                failures[tier] = failure
                continue
            size = FRAMING_BYTES + len(generation.text.encode("utf-8", "surrogatepass"))
            return await self._answered(placed, tier, reason, generation, size)
        raise AssertionError("a ladder ends with an answer or an error")

    async def stream(self, placed: Placed) -> AsyncGenerator[Stream | str, None]:
        """First a Stream, when the first piece is there, then the pieces. Raises ApiError when no tier could answer.

        After the first piece no other tier is tried: half of an answer has been sent. A policy that looks at answers sees the whole
        one first, which then comes as one piece.
        """
        if self.placer.reviews(placed.chat.model):
            answered = await self.answer(placed)
            yield Stream(answered.placed, answered.tier, answered.reason, answered=answered)
            yield answered.generation.text
            return
        async for tier, reason, failures in self._ladder(placed):
            stream = Stream(placed, tier, reason)
            begun = False
            try:
                async with aclosing(self._attempts.pieces(placed, tier)) as pieces:
                    async for piece in pieces:
                        if not begun:
                            begun = True
                            yield stream
                        if isinstance(piece, Generation):
                            stream.answered = await self._answered(placed, tier, reason, piece, stream.sent_bytes)
                            return
                        yield piece
            except ModelUnavailable as failure:
                failures[tier] = failure
                if begun:
                    raise unavailable(failures) from None

    async def _ladder(self, placed: Placed) -> AsyncIterator[tuple[str, str, dict[str, ModelUnavailable]]]:
        """(tier, reason, failures so far) of each try; the caller adds to the failures, or stops."""
        decision, failures = placed.decision, dict[str, ModelUnavailable]()
        reason = decision.reason
        for tier in (decision.tier, *(decision.fall_backs if self.options.fail_over else ())):
            if failures and asyncio.get_running_loop().time() >= placed.until_s:
                break
            yield tier, reason, failures
            _LOG.warning("tier %s could not answer request %d: %s", tier, placed.request, failures[tier])
            reason = f"fail-over from {tier}: {reason_of(failures[tier])}"
        raise unavailable(failures)

    async def _answered(
        self, placed: Placed, tier: str, reason: str, generation: Generation, download_bytes: float
    ) -> Answered:
        completion = Completion(
            self.tiers[tier].model, generation.text, generation.prompt_tokens, generation.completion_tokens, round(download_bytes),
            generation.cached_tokens, generation.mean_logprob, generation.prefill_s, generation.decode_s,
            generation.finish_reason, "live",
        )  # fmt: skip
        asked = partial(
            self.placer.charge, tier, completion, placed.call.upload_bytes, download_bytes, generation.prefill_s,
            generation.decode_s, decision_s=placed.decision.decision_s, model_name=placed.chat.model, request=placed.request,
            position=placed.call.position,
        )  # fmt: skip
        until_s = max(
            placed.until_s, asyncio.get_running_loop().time() + GRACE_S
        )  # the answer is there, and only waits for this
        try:
            charge = await self._within(until_s, self._placing, asked)
        except BaseException:
            placed.lost.append(Lost(tier, "not-charged"))
            raise
        return Answered(placed, tier, self.tiers[tier].model, reason, generation, charge, completion)


def _no_such_model(error: InputError) -> ApiError:
    message = f"{error.problem[:1].upper()}{error.problem[1:]}. {error.remedy}"
    return ApiError(404, message, param="model", code="model_not_found")
