"""What the engine keeps of a request, what it tells about itself, and an answer's text as an iterator."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from time import monotonic, perf_counter

from serve.engine.chat import ChatFormat, GrowingText
from serve.engine.decoding import Row
from serve.generation import Generation, Sampling


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the engine started; `waiting` and `active` are those of this moment, `busy_s` the time spent computing."""

    waiting: int
    active: int
    max_batch: int
    finished: int
    failed: int
    cancelled: int
    timed_out: int
    prompt_tokens: int
    generated_tokens: int
    prefills: int
    steps: int
    busy_s: float


class Request(Row):
    """A row with somebody waiting for it."""

    __slots__ = ("alone", "deadline_s", "error", "future", "on_text", "submitted_s", "text", "timeout_s")

    def __init__(
        self, prompt: Sequence[int], limit: int, sampling: Sampling, ends: frozenset[int], timeout_s: float | None,
        on_text: Callable[[str], object] | None, chat: ChatFormat,
    ) -> None:  # fmt: skip
        super().__init__(prompt, limit, sampling, ends)
        self.future: Future[Generation] = Future()
        self.submitted_s, self.timeout_s = perf_counter(), timeout_s
        self.deadline_s = None if timeout_s is None else monotonic() + timeout_s
        self.on_text, self.text = on_text, GrowingText(chat) if on_text else None
        self.error: BaseException | None = None
        self.alone = False

    def end(self, error: BaseException) -> None:
        """Ends with an error; the decoder lets go of it after the step."""
        self.error, self.finish_reason = error, "error"

    def say(self) -> None:
        """Pass on the text that the newest token made certain. What the listener raises ends this request alone."""
        if self.text is None or self.on_text is None or self.finish_reason in ("error", "nan"):
            return
        try:
            piece = "" if self.finish_reason == "stop" else self.text.add(self.tokens[-1])
            piece += self.text.finish() if self.finish_reason is not None else ""
            if piece:
                self.on_text(piece)
        except Exception as error:
            self.end(error)

    def resolve(self, answer: Generation | BaseException) -> bool:
        """Hand over the outcome; False where the request was cancelled before."""
        try:
            if isinstance(answer, Generation):
                self.future.set_result(answer)
            else:
                self.future.set_exception(answer)
        except InvalidStateError:
            if self.future.cancelled():
                self.future.set_running_or_notify_cancel()  # wakes whoever waits for several futures
            return False
        return True


class TextStream:
    """An answer's text, piece by piece; `future` is its Generation. Iterating raises what ended the request."""

    def __init__(self) -> None:
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.put = self._pieces.put
        self.future: Future[Generation] = Future()

    def follow(self, future: Future[Generation]) -> None:
        """Iterate until this future is done."""
        self.future = future
        future.add_done_callback(lambda _: self.put(None))

    def __iter__(self) -> Iterator[str]:
        while (piece := self._pieces.get()) is not None:
            yield piece
        self.put(None)  # a second iteration ends at once
        self.future.result()
