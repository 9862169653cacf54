"""Continuous batching token by token: slow, and short enough to be checked by eye."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sim.roofline import Roofline, attention_pairs


@dataclass
class Call:
    """One job of the reference, and what becomes of it."""

    arrival_s: float
    prompt: int
    output: int
    cached: int = 0
    priority: int = 0
    cancel_s: float = math.inf
    tokens: int = 0
    status: str = "waiting"
    started_s: float = math.nan
    first_token_s: float = math.nan
    finished_s: float = math.nan
    device_s: float = 0.0

    @property
    def reservation(self) -> int:
        """Tokens of memory it may need."""
        return self.prompt + self.output

    @property
    def kv_tokens(self) -> int:
        """Tokens in memory: the prompt and every generated token that has been fed back."""
        return self.prompt + max(0, self.tokens - 1)

    def leave(self, status: str, now: float) -> None:
        """Note the end."""
        self.status, self.finished_s = status, now


@dataclass
class Reference:
    """One replica; `run` returns the boundaries of all iterations."""

    roofline: Roofline
    max_batch: int
    capacity: float
    by_priority: bool
    crash_s: float
    calls: list[Call]
    batch: list[Call] = field(default_factory=list)
    now: float = -math.inf
    boundaries: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Iteration after iteration until everybody has left."""
        for call in self.calls:
            if call.reservation > self.capacity and call.arrival_s < self.crash_s:
                call.leave("oversized", call.arrival_s)
        while True:
            self.cancel_waiting()
            waiting = [call for call in self.calls if call.status == "waiting" and call.arrival_s <= self.now]
            if self.by_priority:
                waiting.sort(key=lambda call: call.priority)
            new = self.admit(waiting)
            if not self.batch:
                # Idle: the first to come starts at once, alone.
                arrivals = [call.arrival_s for call in self.calls if call.status == "waiting"]
                if not arrivals or min(arrivals) >= self.crash_s:
                    break
                self.now = min(arrivals)
                new = self.admit(
                    [call for call in self.calls if call.status == "waiting" and call.arrival_s == self.now][:1]
                )
            end = self.now + (self.prefill_s(new) if new else self.decode_s())
            if end > self.crash_s:
                self.share(self.crash_s - self.now)
                break
            self.share(end - self.now)
            self.now = end
            self.boundaries.append(end)
            for call in new or self.batch:
                call.tokens += 1
            self.remove()
        self.crash()

    def admit(self, waiting: list[Call]) -> list[Call]:
        """Take from the head of the line while there is room."""
        new: list[Call] = []
        for call in waiting:
            used = sum(other.reservation for other in self.batch)
            if len(self.batch) == self.max_batch or used + call.reservation > self.capacity:
                break
            call.status, call.started_s = "running", self.now
            self.batch.append(call)
            new.append(call)
        return new

    def prefill_s(self, new: list[Call]) -> float:
        """All new prompts in one pass."""
        parts = [(max(1, call.prompt - call.cached), call.cached) for call in new]
        pairs = sum(attention_pairs(tokens, cached) for tokens, cached in parts)
        return self.roofline.prefill_many_s(sum(t for t, _ in parts), sum(c for _, c in parts), pairs)

    def decode_s(self) -> float:
        """One token for everybody."""
        return self.roofline.decode_step_s(len(self.batch), sum(call.kv_tokens for call in self.batch))

    def share(self, seconds: float) -> None:
        """Everybody in the batch pays the same part of the time."""
        for call in self.batch:
            call.device_s += seconds / len(self.batch)

    def remove(self) -> None:
        """Let go whoever is done or was cancelled during the iteration."""
        for call in list(self.batch):
            if call.tokens == 1 and call.output > 0 and math.isnan(call.first_token_s):
                call.first_token_s = self.now
            if call.cancel_s <= self.now:
                call.leave("cancelled", self.now)
            elif call.tokens >= call.output:
                call.leave("ok", self.now)
            if call.status != "running":
                self.batch.remove(call)

    def cancel_waiting(self) -> None:
        """A waiting call leaves when it is cancelled, unless the crash comes first."""
        for call in self.calls:
            if call.status == "waiting" and call.cancel_s <= min(self.now, self.crash_s):
                call.leave("cancelled", call.cancel_s)

    def crash(self) -> None:
        """Everybody still here leaves at the crash; whoever comes later is turned away."""
        for call in self.calls:
            if call.status == "running":
                call.leave("cancelled" if call.cancel_s <= self.crash_s else "crashed", self.crash_s)
            elif call.status == "waiting" and call.arrival_s >= self.crash_s:
                call.leave("unavailable", call.arrival_s)
            elif call.status == "waiting":
                cancelled = call.cancel_s <= self.crash_s
                call.leave("cancelled" if cancelled else "crashed", min(call.cancel_s, self.crash_s))
