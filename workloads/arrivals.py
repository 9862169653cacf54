"""Arrival processes: numpy Generator in, sorted arrival times out (seconds from 0)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]


def constant(count: int, rate_per_s: float) -> Times:
    """Evenly spaced, the first after one gap."""
    return np.arange(1, count + 1) / rate_per_s


def poisson(count: int, rate_per_s: float, rng: np.random.Generator) -> Times:
    """Exponential gaps."""
    return np.cumsum(rng.exponential(1 / rate_per_s, count))


def gamma(count: int, rate_per_s: float, cv: float, rng: np.random.Generator) -> Times:
    """Renewal process with Gamma gaps of coefficient of variation `cv`; 1 = Poisson, above 1 = bursty."""
    shape = 1 / cv**2
    return np.cumsum(rng.gamma(shape, 1 / (rate_per_s * shape), count))


def mmpp(
    count: int, rate_per_s: float, burst_factor: float, burst_share: float, burst_s: float, rng: np.random.Generator
) -> Times:
    """Two-state Markov-modulated Poisson process with mean rate `rate_per_s`.

    Busy spells last `burst_s` on average and take `burst_share` of the time; the busy rate is `burst_factor` times the quiet
    one. Starts in the stationary distribution.
    """
    quiet_rate = rate_per_s / (1 - burst_share + burst_share * burst_factor)
    quiet_s = burst_s * (1 - burst_share) / burst_share
    pieces: list[Times] = []
    drawn, start_s, busy = 0, 0.0, bool(rng.random() < burst_share)
    while drawn < count:
        spell_s = rng.exponential(burst_s if busy else quiet_s)
        rate = quiet_rate * burst_factor if busy else quiet_rate
        # Given their number, Poisson arrivals in a spell are uniform.
        piece = np.sort(start_s + spell_s * rng.random(rng.poisson(rate * spell_s)))
        pieces.append(piece)
        drawn, start_s, busy = drawn + len(piece), start_s + spell_s, not busy
    return np.concatenate(pieces)[:count]


def diurnal(count: int, rate_per_s: float, period_s: float, amplitude: float, rng: np.random.Generator) -> Times:
    """Poisson with rate `rate_per_s * (1 + amplitude * sin(2 pi t / period_s))`, by time change of a unit-rate process.

    The integrated rate is inverted by Newton's method, safeguarded by its bounds; each time stops at its own precision, so
    that it does not depend on how many there are.
    """
    goals = np.cumsum(rng.exponential(1.0, count)) / rate_per_s
    omega = 2 * math.pi / period_s
    swing = amplitude / omega
    low, high = goals - 2 * swing, goals + 0.0
    times = goals.copy()
    open_ = np.ones(count, dtype=np.bool_)
    for _ in range(60):
        excess = times + swing * (1 - np.cos(omega * times)) - goals
        high = np.where(excess > 0, np.minimum(high, times), high)
        low = np.where(excess <= 0, np.maximum(low, times), low)
        newton = times - excess / np.maximum(1 + amplitude * np.sin(omega * times), 1e-9)
        step = np.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
        open_ &= np.abs(step - times) >= 1e-14 * np.maximum(1.0, goals)
        if not open_.any():
            break
        times = np.where(open_, step, times)
    return np.maximum.accumulate(times)
