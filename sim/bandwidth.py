"""Capacity of a link over time, with an exact integral and its exact inverse.

A link asks two questions: how many bytes could have left between two instants, and when will the next `size_bytes`
have left. Rates are piecewise constant, so both are a search in a list of prefix sums; nothing is stepped through.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

BYTES_PER_S_PER_MBPS = 125_000.0
"""1 Mbit/s = 10^6 bit/s = 125 000 byte/s."""
_CHUNK_INTERVALS = 1024
_CRUMB_BYTES = 1e-3
"""Rounding may leave such a crumb of a transfer that ends where silence begins; nobody waits out a silence for it."""


class Capacity(Protocol):
    """What a link can carry. Times are simulation seconds >= 0."""

    def bytes_between(self, t0_s: float, t1_s: float) -> float:
        """Integral of the rate over [t0_s, t1_s], in bytes; t1_s >= t0_s."""
        ...

    def time_when(self, t0_s: float, size_bytes: float) -> float:
        """The earliest time by which `size_bytes` can have left since `t0_s`; zero-rate stretches are waited out."""
        ...

    def mbps_at(self, t_s: float) -> float:
        """The rate in force at `t_s` (at a boundary: the rate that begins there)."""
        ...


class ConstantCapacity:
    """The same rate for ever; `mbps=math.inf` is a link without a limit."""

    __slots__ = ("bytes_per_s", "mbps")

    def __init__(self, mbps: float) -> None:
        if not mbps > 0:
            raise ValueError(f"mbps must be > 0 (math.inf for no limit), found {mbps}")
        self.mbps = float(mbps)
        self.bytes_per_s = self.mbps * BYTES_PER_S_PER_MBPS

    def bytes_between(self, t0_s: float, t1_s: float) -> float:
        """Rate times time; an empty interval carries nothing, also without a limit."""
        return (t1_s - t0_s) * self.bytes_per_s if t1_s > t0_s else 0.0

    def time_when(self, t0_s: float, size_bytes: float) -> float:
        """Size over rate after `t0_s`."""
        return t0_s + size_bytes / self.bytes_per_s

    def mbps_at(self, t_s: float) -> float:
        """The constant rate."""
        return self.mbps


class TraceCapacity:
    """A recorded trace, piecewise constant, repeated for ever.

    `mbps[i]` holds for `durations_s[i]`; `offset_s` is the place in the trace at simulation time 0, so that many
    links can share one recording without moving in step. Whole repetitions are counted, not added up: a time in the
    millionth loop is as exact as the clock itself.
    """

    __slots__ = ("_loop_bytes", "_loop_s", "_offset_s", "_rates", "_sent", "_starts")

    def __init__(
        self,
        durations_s: Sequence[float] | npt.NDArray[np.float64],
        mbps: Sequence[float] | npt.NDArray[np.float64],
        offset_s: float = 0.0,
    ) -> None:
        durations, rates = np.asarray(durations_s, dtype=np.float64), np.asarray(mbps, dtype=np.float64)
        _check_trace(durations, rates, offset_s)
        # Plain lists of floats: bisect and arithmetic on numpy scalars are several times slower.
        self._rates: list[float] = (rates * BYTES_PER_S_PER_MBPS).tolist()
        self._starts: list[float] = np.concatenate([[0.0], np.cumsum(durations)]).tolist()
        self._sent: list[float] = np.concatenate([[0.0], np.cumsum(durations * rates * BYTES_PER_S_PER_MBPS)]).tolist()
        self._loop_s: float = self._starts.pop()
        self._loop_bytes: float = self._sent[-1]
        self._offset_s = float(offset_s)

    def bytes_between(self, t0_s: float, t1_s: float) -> float:
        """Whole repetitions plus the difference within one."""
        loop0, sent0 = self._sent_at(t0_s)
        loop1, sent1 = self._sent_at(t1_s)
        return (loop1 - loop0) * self._loop_bytes + (sent1 - sent0)

    def time_when(self, t0_s: float, size_bytes: float) -> float:
        """The inverse of `bytes_between`, at the earliest of the times that qualify."""
        if size_bytes <= 0.0:
            return t0_s
        starts, sent, rates = self._starts, self._sent, self._rates
        phase: float = (t0_s + self._offset_s) % self._loop_s
        i = bisect_right(starts, phase) - 1
        goal = sent[i] + (phase - starts[i]) * rates[i] + size_bytes
        if goal <= sent[i + 1]:  # within the piece we are in, which covers most transfers
            return t0_s + size_bytes / rates[i] if rates[i] else t0_s
        loops, rest = divmod(goal, self._loop_bytes)
        i = bisect_left(sent, rest) - 1  # sent[i] < rest <= sent[i + 1], so this piece has a rate
        if i < 0 or (rest - sent[i] < _CRUMB_BYTES and not rates[i - 1]):  # through before the silence, if there is one
            loops, rest = (loops, sent[i]) if i > 0 and sent[i] > 0.0 else (loops - 1.0, self._loop_bytes)
            i = bisect_left(sent, rest) - 1
        return max(t0_s, t0_s + (loops * self._loop_s + starts[i] + (rest - sent[i]) / rates[i] - phase))

    def mbps_at(self, t_s: float) -> float:
        """The recorded rate at `t_s`."""
        phase = (t_s + self._offset_s) % self._loop_s
        return self._rates[bisect_right(self._starts, phase) - 1] / BYTES_PER_S_PER_MBPS

    def _sent_at(self, t_s: float) -> tuple[float, float]:
        loop, phase = divmod(t_s + self._offset_s, self._loop_s)
        i = bisect_right(self._starts, phase) - 1
        return loop, self._sent[i] + (phase - self._starts[i]) * self._rates[i]


def _check_trace(durations_s: npt.NDArray[np.float64], mbps: npt.NDArray[np.float64], offset_s: float) -> None:
    if durations_s.ndim != 1 or durations_s.shape != mbps.shape or not durations_s.size:
        raise ValueError(f"durations_s and mbps must be equally long, found shapes {durations_s.shape}, {mbps.shape}")
    if not (np.isfinite(durations_s).all() and (durations_s > 0).all()):
        raise ValueError("every duration must be finite and > 0")
    if not (np.isfinite(mbps).all() and (mbps >= 0).all() and (mbps > 0).any()):
        raise ValueError("every mbps must be finite and >= 0, and at least one > 0")
    if not (math.isfinite(offset_s) and offset_s >= 0):
        raise ValueError(f"offset_s must be finite and >= 0, found {offset_s}")


class RandomCapacity:
    """A rate drawn anew every `interval_s`, with mean `mean_mbps` and coefficient of variation `cv`.

    The draws are independent from interval to interval. Intervals are drawn in their own order and in chunks of one
    fixed size: the rate at a time depends on `rng` alone, never on who asked or when.
    """

    __slots__ = ("_cv", "_interval_s", "_kind", "_mean", "_rates", "_rng", "_sent")

    def __init__(
        self,
        mean_mbps: float,
        cv: float,
        interval_s: float,
        rng: np.random.Generator,
        kind: Literal["lognormal", "gamma"] = "lognormal",
    ) -> None:
        if not (0 < mean_mbps < math.inf and 0 <= cv < math.inf and 0 < interval_s < math.inf):
            raise ValueError(f"need mean_mbps > 0, cv >= 0, interval_s > 0, found {mean_mbps}, {cv}, {interval_s}")
        if kind not in ("lognormal", "gamma"):
            raise ValueError(f"kind must be 'lognormal' or 'gamma', found {kind!r}")
        self._mean, self._cv, self._kind = mean_mbps * BYTES_PER_S_PER_MBPS, float(cv), kind
        self._interval_s, self._rng = float(interval_s), rng
        self._rates: list[float] = []
        self._sent = [0.0]

    def bytes_between(self, t0_s: float, t1_s: float) -> float:
        """Difference of the running integral."""
        return self._sent_at(t1_s) - self._sent_at(t0_s)

    def time_when(self, t0_s: float, size_bytes: float) -> float:
        """The inverse of `bytes_between`; draws as many intervals as it takes."""
        if size_bytes <= 0.0:
            return t0_s
        i = int(t0_s / self._interval_s)
        before = self._sent_at(t0_s)
        goal = before + size_bytes
        if goal <= self._sent[i + 1]:
            return t0_s + size_bytes / self._rates[i] if self._rates[i] else t0_s
        while self._sent[-1] < goal:
            self._draw()
        i = bisect_left(self._sent, goal, i + 2) - 1  # sent[i] < goal <= sent[i + 1], so this interval has a rate
        return i * self._interval_s + (goal - self._sent[i]) / self._rates[i]

    def mbps_at(self, t_s: float) -> float:
        """The rate drawn for the interval that holds `t_s`."""
        i = int(t_s / self._interval_s)
        while i >= len(self._rates):
            self._draw()
        return self._rates[i] / BYTES_PER_S_PER_MBPS

    def _sent_at(self, t_s: float) -> float:
        i = int(t_s / self._interval_s)
        while i >= len(self._rates):
            self._draw()
        return self._sent[i] + (t_s - i * self._interval_s) * self._rates[i]

    def _draw(self) -> None:
        variance = self._cv**2
        if variance == 0.0:
            factors = np.ones(_CHUNK_INTERVALS)
        elif self._kind == "gamma":
            factors = self._rng.gamma(1.0 / variance, variance, _CHUNK_INTERVALS)
        else:
            log_variance = math.log1p(variance)
            factors = self._rng.lognormal(-log_variance / 2, math.sqrt(log_variance), _CHUNK_INTERVALS)
        rates = factors * self._mean
        self._rates += rates.tolist()
        # Summed up one after the other, as `accumulate` would: NumPy's cumulative sum keeps the order.
        sent = rates * self._interval_s
        sent[0] += self._sent[-1]
        self._sent += np.cumsum(sent).tolist()
