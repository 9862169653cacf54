"""The live models behind the same interface as recorded ones: calls go to Ray Serve, many at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from types import TracebackType
from weakref import WeakSet

from serve.cloud import UpstreamSpec
from serve.generation import Generation, Sampling
from serve.replicas.asking import ReplicaStats, Reply
from serve.replicas.failures import unavailable
from serve.replicas.tier_client import Pending, TierClient, replies_of
from workloads.agent import FRAMING_BYTES
from workloads.errors import InputError, ModelUnavailable, suggest
from workloads.task import Completion, Message, ModelCall

GREEDY = Sampling()

Conversation = tuple[tuple[Message, ...], int | None]


class RayServeBackend:
    """An InferenceBackend over deployed tiers, by the name of their model, for any number of threads; `close` ends it.

    sampling: of every call; greedy unless told otherwise, None leaves it to the model.
    retries: how often a call whose replica died under it is sent again, within its time limit. The simulated client has a retry
        policy of its own, with records, so the default is never.
    """

    def __init__(
        self, clients: Mapping[str, TierClient], *, sampling: Sampling | None = GREEDY, retries: int = 0
    ) -> None:
        self._clients, self._sampling, self._retries = dict(clients), sampling, retries
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._lock = Lock()
        self._sent: WeakSet[Pending] = WeakSet()
        self._closed = False

    def submit(self, call: ModelCall, model: str) -> LiveHandle | LiveFuture:
        """Send `call` to `model` and return at once. Raises InputError for a model that is not deployed."""
        client = self._client(model)
        if isinstance(
            client.tier.model, UpstreamSpec
        ):  # only as many as its limits let pass: no call's time is lost waiting
            return self.submit_many([(call, model)])[0]
        messages, max_tokens = _conversation(call, client)

        def start(limit_s: float) -> Pending:
            return self._on_its_way(client.start(messages, max_tokens, self._sampling, limit_s))

        return LiveHandle(model, start, client.tier.request_timeout_s, self._retries)

    def submit_many(self, calls: Sequence[tuple[ModelCall, str]]) -> list[LiveFuture]:
        """Send many (call, model) and return at once; handles in the same order.

        Calls of a model travel together, `bulk_calls` of its tier at a time, which costs a fraction of a Serve request each; they
        are sent as earlier ones return, and a call's time counts from when it is sent. For work that waits for all of it: an
        answer comes back with the others it travelled with.
        """
        futures: list[Future[Reply]] = [Future() for _ in calls]
        by_model: dict[str, list[int]] = {}
        for index, (_, model) in enumerate(calls):
            by_model.setdefault(model, []).append(index)
        for model, indexes in by_model.items():
            client = self._client(model)
            size = client.tier.bulk_calls
            for start in range(0, len(indexes), size):
                chunk = indexes[start : start + size]
                asked = [_conversation(calls[i][0], client) for i in chunk]
                answers = [futures[i] for i in chunk]
                sending = self._pool(client).submit(self._send, client, asked, answers)
                sending.add_done_callback(partial(_see_to_the_end, answers))
        return [LiveFuture(model, future) for (_, model), future in zip(calls, futures, strict=True)]

    def stats(self) -> dict[str, list[ReplicaStats]]:
        """Model -> what its replicas did and do; raises ModelUnavailable for a tier that does not answer."""
        return {model: client.stats() for model, client in self._clients.items()}

    def client(self, model: str) -> TierClient:
        """The client of a model, for streaming and asynchronous calls."""
        return self._client(model)

    def close(self) -> None:
        """Send nothing more and wait for nothing: calls without an answer fail as cancelled, and their replicas drop them."""
        with self._lock:
            self._closed = True
            sent = list(self._sent)
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)
        for pending in sent:
            pending.cancel()
        for pool in self._pools.values():
            pool.shutdown(wait=True)

    def __enter__(self) -> RayServeBackend:
        """Itself; the end of the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _client(self, model: str) -> TierClient:
        client = self._clients.get(model)
        if client is None:
            raise InputError(f"model {model!r}", "is not deployed", suggest(model, self._clients))
        return client

    def _pool(self, client: TierClient) -> ThreadPoolExecutor:
        with self._lock:
            if client.model not in self._pools:
                threads, name = client.tier.bulk_requests, f"send-{client.tier.name}"
                self._pools[client.model] = ThreadPoolExecutor(threads, thread_name_prefix=name)
            return self._pools[client.model]

    def _on_its_way(self, pending: Pending) -> Pending:
        """Remember what `close` is to cancel."""
        with self._lock:
            self._sent.add(pending)
            closed = self._closed
        if closed:
            pending.cancel()
        return pending

    def _send(self, client: TierClient, asked: Sequence[Conversation], futures: Sequence[Future[Reply]]) -> None:
        """Answer one chunk; runs in a thread of the pool, whose number is what keeps the replicas busy but not flooded."""
        wanted = [future.set_running_or_notify_cancel() for future in futures]
        if not any(wanted):
            return  # all were cancelled before they were sent
        retries = self._retries
        while True:
            replies = replies_of(self._on_its_way(client.start_many(asked, self._sampling)), len(asked))
            if any(map(_not_sent, replies)) and not self._closed:
                continue  # our own limits held it back: no failure, and its time begins anew
            if retries == 0 or not any(map(_died, replies)):
                break
            retries -= 1
        for future, reply in zip(futures, replies, strict=True):
            if not future.cancelled():
                future.set_result(reply)


class LiveHandle:
    """One call on its way to a live model; `start` sends it with a time limit."""

    def __init__(self, model: str, start: Callable[[float], Pending], limit_s: float, retries: int) -> None:
        self._model, self._start, self._retries = model, start, retries
        self._until_s = time.monotonic() + limit_s
        self._pending = start(limit_s)

    def result(self) -> Completion:
        """Wait for the answer; ModelUnavailable if there is none. Always the same when asked again."""
        while _died(reply := self._pending.reply()) and self._retries > 0:
            left_s = self._until_s - time.monotonic()
            if left_s <= 0:
                break
            self._retries -= 1
            self._pending = self._start(left_s)
        return _completion(self._model, reply)

    def cancel(self) -> None:
        """Give the call up: nobody will ask for its answer."""
        self._pending.cancel()


class LiveFuture:
    """One of many calls on their way to a live model."""

    def __init__(self, model: str, future: Future[Reply]) -> None:
        self._model, self._future = model, future

    def result(self) -> Completion:
        """Wait for the answer; ModelUnavailable if there is none. Always the same when asked again."""
        try:
            return _completion(self._model, self._future.result())
        except CancelledError:
            raise ModelUnavailable("cancelled", self._model) from None

    def cancel(self) -> None:
        """Give the call up if it has not been sent; what is under way may be paid for, and goes on to its end."""
        self._future.cancel()

    withdraw = cancel


def _see_to_the_end(answers: Sequence[Future[Reply]], sending: Future[None]) -> None:
    """Whatever became of the thread that was to answer these calls, nobody waits for them for ever."""
    error = None if sending.cancelled() else sending.exception()
    failure = ModelUnavailable("cancelled", "the backend was closed") if error is None else unavailable(error, "send")
    for answer in answers:
        if not answer.done():
            answer.set_result(failure)


def _died(reply: Reply) -> bool:
    return isinstance(reply, ModelUnavailable) and reply.reason == "replica-died"


def _not_sent(reply: Reply) -> bool:
    return isinstance(reply, ModelUnavailable) and reply.reason == "own-limit"


def _conversation(call: ModelCall, client: TierClient) -> Conversation:
    return call.messages, min(call.max_tokens, client.tier.model.max_tokens)


def _completion(model: str, reply: Reply) -> Completion:
    if isinstance(reply, ModelUnavailable):
        raise reply
    return completion_of(reply, model)


def completion_of(answer: Generation, model: str) -> Completion:
    """A model's answer as the other layers know it; `download_bytes` is its text in UTF-8 and the framing around it."""
    size = FRAMING_BYTES + len(answer.text.encode("utf-8", "surrogatepass"))
    return Completion(
        model,
        answer.text,
        answer.prompt_tokens,
        answer.completion_tokens,
        size,
        answer.cached_tokens,
        answer.mean_logprob,
        answer.prefill_s,
        answer.decode_s,
        answer.finish_reason,
        "live",
    )
