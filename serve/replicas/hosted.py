"""A replica's own model: an engine with continuous batching behind the methods a replica asks for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Lock

from serve.engine.engine import Engine
from serve.engine.errors import EngineBusy, EngineClosed, ModelFailed, PromptTooLong
from serve.generation import Generation, ModelSpec
from serve.pair import pair_path
from serve.replicas.asking import Ask, Reply
from serve.slm import CausalLM
from workloads.errors import BackendError, InputError, ModelUnavailable
from workloads.task import Message

_WARM_UP_S = 300.0
_REASONS: dict[type[BackendError], str] = {
    PromptTooLong: "prompt-too-long",
    EngineBusy: "overloaded",
    EngineClosed: "replica-died",
    ModelFailed: "bad-answer",
}


class HostedModel:
    """Loads the model, and answers once through it, so that the first caller does not wait for what is done only once.

    A source of `pair/slm` or `pair/llm` is the shipped model of this machine's checkout. Raises InputError for what cannot be
    loaded and ModelFailed for a model that does not answer.
    """

    def __init__(self, spec: ModelSpec, max_batch: int) -> None:
        if spec.source in ("pair/slm", "pair/llm"):
            spec = replace(spec, source=str(pair_path(spec.source.removeprefix("pair/"))))
        self._engine = Engine(CausalLM(spec), max_batch)
        with suppress(InputError, PromptTooLong):  # a model need not have a form for just this conversation
            self._engine.submit((Message("user", "Hello"),), 2).result(_WARM_UP_S)

    async def complete(self, ask: Ask) -> Generation:
        """The answer. Cancelling frees its place in the batch at the next step."""
        with _translated():
            return await asyncio.wrap_future(self._submit(ask))

    async def complete_many(self, asks: Sequence[Ask], timeout_s: float) -> list[Reply]:
        """All answers, with one wake-up of the event loop: for small models one for each costs as much as the answer."""
        started = [self._started(ask) for ask in asks]
        futures = [future for future in started if isinstance(future, Future)]
        try:
            async with asyncio.timeout(timeout_s):
                await _all_done(futures)
        except TimeoutError:
            pass  # what is done counts
        finally:
            for future in futures:
                future.cancel()  # nothing happens where it is done
        return [_outcome(each, timeout_s) if isinstance(each, Future) else each for each in started]

    async def stream(self, ask: Ask) -> AsyncGenerator[str | Generation, None]:
        """The pieces of the text as the engine makes them, then the whole."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        with _translated():
            future = self._submit(ask, lambda piece: loop.call_soon_threadsafe(pieces.put_nowait, piece))
            future.add_done_callback(lambda _: loop.call_soon_threadsafe(pieces.put_nowait, None))
            try:
                while (piece := await pieces.get()) is not None:
                    yield piece
                yield future.result()
            finally:
                future.cancel()  # nothing happens where it is done

    def load(self) -> tuple[int, int]:
        """Calls (waiting, in the batch)."""
        stats = self._engine.stats()
        return stats.waiting, stats.active

    def spent(self) -> tuple[int, float, float]:
        """Nothing."""
        return 0, 0.0, 0.0

    def check(self) -> None:
        """Raise ModelFailed if the engine's thread has ended, hangs, or fails every time."""
        if not self._engine.healthy():
            raise ModelFailed("the engine is not healthy")

    def close(self) -> None:
        """Fail what is left, within the decoding step in progress; Serve has waited for calls in flight before."""
        self._engine.close(0.0)

    def _started(self, ask: Ask) -> Future[Generation] | ModelUnavailable:
        try:
            with _translated():
                return self._submit(ask)
        except ModelUnavailable as failure:
            return failure

    def _submit(self, ask: Ask, on_text: Callable[[str], object] | None = None) -> Future[Generation]:
        return self._engine.submit(ask.messages, ask.max_tokens, ask.sampling, on_text=on_text)


def _all_done(futures: Sequence[Future[Generation]]) -> asyncio.Future[None]:
    """Done when all of them are, however they end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    left, lock = len(futures), Lock()

    def settle() -> None:
        if not done.done():
            done.set_result(None)

    def one_less(_: object) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            loop.call_soon_threadsafe(settle)

    if not futures:
        settle()
    for future in futures:
        future.add_done_callback(one_less)
    return done


def _outcome(future: Future[Generation], timeout_s: float) -> Reply:
    """What became of a future that is done or was cancelled because its time was over."""
    try:
        with _translated():
            return future.result(0)
    except ModelUnavailable as failure:
        return failure
    except CancelledError:
        return ModelUnavailable("timeout", f"no answer within {timeout_s:g} s")


@contextmanager
def _translated() -> Iterator[None]:
    """The engine's errors as ModelUnavailable."""
    try:
        yield
    except ModelUnavailable:
        raise
    except InputError as error:  # messages that the model's chat template has no form for
        raise ModelUnavailable("refused", str(error)) from None
    except BackendError as error:
        raise ModelUnavailable(_REASONS.get(type(error), "bad-answer"), str(error)) from None
