"""What a client saw of live model calls: when each was due, sent and answered. Seconds from the start of the load."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from workloads.task import Completion


class TimedCall(NamedTuple):
    """One model call. `sent_s` is when it left for the system, `answered_s` when the answer was in hand there.

    `tool_s` before it and `upload_bytes` are the call's own.
    """

    sent_s: float
    answered_s: float
    completion: Completion
    upload_bytes: int = 0
    tool_s: float = 0.0

    @property
    def around_s(self) -> float:
        """Seconds neither prefill nor decode: the serving system's own, and waiting."""
        return self.answered_s - self.sent_s - self.completion.prefill_s - self.completion.decode_s


class TimedRequest(NamedTuple):
    """One request: its calls in order, and why it failed (empty: it did not).

    `due_s` is when it should have begun, `begun_s` when it did; the difference is the load generator's own lateness.
    `last_tool_s` is the time of a tool after the last answer.
    """

    task_id: str
    due_s: float
    begun_s: float
    ended_s: float
    calls: tuple[TimedCall, ...]
    failure: str = ""
    last_tool_s: float = 0.0

    @property
    def latency_s(self) -> float:
        """From when it was due to its end, as its user sees it."""
        return self.ended_s - self.due_s


class Measurement(NamedTuple):
    """A closed loop: `callers` who for `seconds` asked again as soon as they were answered, and what they saw."""

    callers: int
    seconds: float
    requests: tuple[TimedRequest, ...]

    def per_s(self, warm_share: float = 0.25) -> float:
        """Requests completed per second, after a first share of the time in which the system fills."""
        warm_s = warm_share * self.seconds
        ended = sum(warm_s < request.ended_s <= self.seconds and not request.failure for request in self.requests)
        return ended / (self.seconds - warm_s)


def all_calls(requests: Iterable[TimedRequest]) -> Iterator[TimedCall]:
    """The answered calls of all requests."""
    for request in requests:
        yield from request.calls
