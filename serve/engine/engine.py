"""Continuous batching around a CausalLM: requests join and leave the batch between any two decoding steps.

One thread owns the model. Each iteration it admits waiting requests, first come first served, while the batch has room, reads
their prompts (which yields their first token), and then decodes one token for every request in the batch. This is the discipline
of Orca (G.-I. Yu et al., OSDI 2022) and of the simulator's device model. Prompts are tokenized by the thread that submits.

A model that does not fit slots (see `serve.slm`) is served in static batches: newcomers wait until the batch is done.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from time import monotonic, perf_counter

import torch

from serve.engine.errors import EngineBusy, EngineClosed, ModelFailed
from serve.engine.requests import EngineStats, Request, TextStream
from serve.generation import Generation, Sampling
from serve.slm import CausalLM
from workloads.errors import InputError
from workloads.task import Message

_LOG = logging.getLogger(__name__)
_FAILURES = 3
"""So many exceptions of the model in a row make the engine unhealthy."""
_LAST_STEP_S = 5.0
"""How long `close` waits for the step in progress before it fails what is left."""


class Engine:
    """Serves one model to many callers; every public method may be called from any thread.

    max_batch: requests decoded together. max_waiting: length of the waiting line, None for no limit. stall_s: an iteration that
    takes longer makes the engine unhealthy.
    """

    def __init__(
        self, model: CausalLM, max_batch: int = 8, max_waiting: int | None = None, *, stall_s: float = 300.0
    ) -> None:
        if max_batch < 1 or (max_waiting or 0) < 0:
            found = f"found max_batch {max_batch}, max_waiting {max_waiting}"
            raise InputError("engine", found, "Allowed: max_batch from 1, max_waiting from 0")
        self.model, self.max_batch, self.max_waiting = model, max_batch, max_waiting
        self._stall_s = stall_s
        self._decoder = model.decoder(max_batch)
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._unfinished: set[Request] = set()
        self._sweep = False  # somebody cancelled
        self._next_deadline_s = float("inf")
        self._close_at_s: float | None = None
        self._crashed = False
        self._failures = 0
        self._iteration_s: float | None = None  # when the iteration in progress began
        self._counts = dict.fromkeys(
            ("finished", "failed", "cancelled", "timed_out", "prompt_tokens", "generated_tokens", "prefills", "steps"),
            0,
        )
        self._busy_s = 0.0
        self._thread = threading.Thread(target=self._work, name=f"engine {model.spec.source}", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------------ for callers

    def submit(
        self, messages: Sequence[Message], max_tokens: int | None = None, sampling: Sampling | None = None, *,
        timeout_s: float | None = None, on_text: Callable[[str], object] | None = None,
    ) -> Future[Generation]:  # fmt: skip
        """Start answering a conversation; max_tokens and sampling default to the model's spec.

        Raises at once: InputError, PromptTooLong, EngineBusy, EngineClosed. The future fails with TimeoutError `timeout_s` after
        submission, with ModelFailed, or with what `on_text` raised. `on_text` hears each new piece of text in the engine's thread
        and must be quick; the pieces make up the final text. Cancelling the future, at any time before it is done, frees its place
        at the next step.
        """
        ids = self.model.tokens(messages)
        limit = self.model.limit(len(ids), max_tokens)
        chosen = sampling or self.model.spec.sampling
        request = Request(ids, limit, chosen, self.model.ends, timeout_s, on_text, self.model.chat)
        with self._changed:
            if self._close_at_s is not None or self._crashed:
                raise EngineClosed(f"model {self.model.spec.source!r} is no longer served here")
            if self.max_waiting is not None and len(self._unfinished) >= self.max_batch + self.max_waiting:
                raise EngineBusy(f"{len(self._waiting)} requests wait for model {self.model.spec.source!r}")
            self._waiting.append(request)
            self._unfinished.add(request)
            if request.deadline_s is not None:
                self._next_deadline_s = min(self._next_deadline_s, request.deadline_s)
            self._changed.notify()
        request.future.add_done_callback(self._on_done)
        return request.future

    def stream(
        self, messages: Sequence[Message], max_tokens: int | None = None, sampling: Sampling | None = None, *,
        timeout_s: float | None = None,
    ) -> TextStream:  # fmt: skip
        """Like `submit`, with the text as an iterator of pieces."""
        stream = TextStream()
        stream.follow(self.submit(messages, max_tokens, sampling, timeout_s=timeout_s, on_text=stream.put))
        return stream

    def cancel(self, future: Future[Generation]) -> bool:
        """Give a request up, waiting or half answered; False where it was done already."""
        return future.cancel()

    def stats(self) -> EngineStats:
        """Counts so far."""
        with self._changed:
            waiting, active = len(self._waiting), len(self._unfinished) - len(self._waiting)
        return EngineStats(waiting, active, self.max_batch, busy_s=self._busy_s, **self._counts)

    def healthy(self) -> bool:
        """Whether requests can be expected to be answered."""
        began = self._iteration_s
        stalled = began is not None and perf_counter() - began > self._stall_s
        return self._thread.is_alive() and self._failures < _FAILURES and not stalled

    def close(self, drain_s: float = 10.0) -> None:
        """Take nothing new, go on for up to `drain_s` seconds, then fail what is left with EngineClosed.

        Returns when all futures are done: within `drain_s` and the step in progress, or 5 s more if that step does not end.
        """
        with self._changed:
            at_s = monotonic() + drain_s
            self._close_at_s = at_s if self._close_at_s is None else min(at_s, self._close_at_s)
            self._changed.notify_all()
        if threading.current_thread() is self._thread:
            return
        self._thread.join(drain_s + _LAST_STEP_S)
        self._fail_all(EngineClosed("the engine was closed before the answer was finished"))

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------- the engine's thread

    def _on_done(self, future: Future[Generation]) -> None:
        if future.cancelled():
            self._sweep = True

    def _work(self) -> None:
        if self.model.spec.threads is not None:
            torch.set_num_threads(self.model.spec.threads)  # a setting of each thread
        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    self._iteration_s = perf_counter()
                    self._iterate()
                    self._busy_s += perf_counter() - self._iteration_s
                    self._iteration_s = None
            self._fail_all(EngineClosed("the engine was closed before the answer was finished"))
        except BaseException as error:
            _LOG.exception("the engine's thread ended")
            self._crashed = True
            self._fail_all(ModelFailed(f"the engine ended: {type(error).__name__}: {error}"))

    def _wait_for_work(self) -> bool:
        """False when it is time to go."""
        with self._changed:
            while not self._waiting and not self._decoder.rows and self._close_at_s is None:
                self._changed.wait()
            if self._close_at_s is None:
                return True
            return bool(self._waiting or self._decoder.rows) and monotonic() < self._close_at_s

    def _iterate(self) -> None:
        if self._sweep or monotonic() >= self._next_deadline_s:
            self._drop()
        newcomers = self._admit()
        for group in self._decoder.groups(newcomers):
            self._prefill(group)
        if self._decoder.rows:
            self._step()

    def _drop(self) -> None:
        """Let go of the cancelled and of those whose time is up."""
        self._sweep = False
        now_s = monotonic()
        with self._changed:
            overdue = [r for r in self._unfinished if r.deadline_s is not None and r.deadline_s <= now_s]
            left = [r.deadline_s for r in self._unfinished if r.deadline_s is not None and r.deadline_s > now_s]
            self._next_deadline_s = min(left, default=float("inf"))
            for request in overdue:
                tokens = len(request.tokens)
                request.end(TimeoutError(f"no answer within {request.timeout_s:g} s ({tokens} tokens so far)"))
            for request in self._unfinished:
                if request.future.cancelled():
                    request.finish_reason = "cancelled"
            gone = [request for request in self._waiting if request.finish_reason is not None]
            self._waiting = deque(request for request in self._waiting if request.finish_reason is None)
        for request in [*gone, *self._decoder.take_finished()]:
            self._finish(request)

    def _admit(self) -> list[Request]:
        room = self.max_batch - len(self._decoder.rows)
        if not self._decoder.can_join and self._decoder.rows:
            room = 0
        newcomers: list[Request] = []
        with self._changed:
            while self._waiting and len(newcomers) < room:
                if self._waiting[0].alone and newcomers:
                    break
                newcomers.append(self._waiting.popleft())
                if newcomers[-1].alone:
                    break
        return newcomers

    def _prefill(self, group: list[Request]) -> None:
        try:
            self._decoder.add(group)
        except Exception as error:
            self._failures += 1
            if len(group) == 1:
                self._fail(group[0], error)
            else:  # one of them may be to blame: each tries again by itself
                with self._changed:
                    for request in reversed(group):
                        request.restart()
                        request.alone = True
                        self._waiting.appendleft(request)
            return
        self._failures = 0
        self._counts["prefills"] += 1
        self._counts["prompt_tokens"] += sum(len(request.prompt) for request in group)
        self._settle(group)

    def _step(self) -> None:
        rows = list(self._decoder.rows)
        try:
            self._decoder.step()
        except Exception as error:
            self._failures += 1
            self._decoder.clear()
            for request in rows:
                self._fail(request, error)
            return
        self._failures = 0
        self._counts["steps"] += 1
        self._settle(rows)

    def _settle(self, rows: list[Request]) -> None:
        """After every one of `rows` got a token: pass on text, and part from those that are done."""
        self._counts["generated_tokens"] += len(rows)
        for request in rows:
            if request.text is not None:
                request.say()
        for request in self._decoder.take_finished():
            self._finish(request)

    def _finish(self, request: Request) -> None:
        if request.error is not None or request.future.cancelled():
            error = request.error or CancelledError()
            self._end(request, "timed_out" if isinstance(error, TimeoutError) else "failed", error)
            return
        try:
            answer = self.model.generation(request, request.text.text if request.text else None)
        except Exception as failure:
            self._fail(request, failure)
        else:
            self._end(request, "finished", replace(answer, queue_s=max(0.0, request.started_s - request.submitted_s)))

    def _fail(self, request: Request, error: Exception) -> None:
        if not isinstance(error, ModelFailed):
            _LOG.warning("model %r failed: %r", self.model.spec.source, error)
            failed = ModelFailed(f"model {self.model.spec.source!r} failed: {type(error).__name__}: {error}")
            failed.__cause__ = error
            error = failed
        self._end(request, "failed", error)

    def _end(self, request: Request, kind: str, outcome: Generation | BaseException) -> None:
        with self._changed:
            self._unfinished.discard(request)
        self._counts[kind if request.resolve(outcome) else "cancelled"] += 1

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            left = list(self._unfinished)
            self._unfinished.clear()
            self._waiting.clear()
        for request in left:
            self._end(request, "failed", error)
