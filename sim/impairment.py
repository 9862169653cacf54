"""What a link adds to a transfer besides sending time: jitter, and packets lost and sent again.

Every draw belongs to a (request, position), so the order of events cannot change it.
"""

from __future__ import annotations

import math
from typing import Literal

from scipy.special import bdtr, bdtrik

from sim.draws import CommonDraws

JitterKind = Literal["none", "exponential", "normal", "lognormal"]
LOGNORMAL_CV = 1.0
"""Coefficient of variation of lognormal jitter."""
_LOG_VARIANCE = math.log1p(LOGNORMAL_CV**2)
_LOG_STD = math.sqrt(_LOG_VARIANCE)
_FEW_LOSSES = 30.0
_64_BITS = (1 << 64) - 1


class Jitter:
    """Extra one-way delay, never negative, of scale `jitter_s` seconds.

    exponential: mean `jitter_s`. normal: N(0, jitter_s) truncated at 0, so its mean is jitter_s * sqrt(2 / pi).
    lognormal: mean `jitter_s`, coefficient of variation `LOGNORMAL_CV`.
    """

    __slots__ = ("_draws", "_kind", "_scale", "mean_s")

    def __init__(self, kind: JitterKind, jitter_s: float, draws: CommonDraws) -> None:
        self._kind, self._draws = kind, draws
        self._scale = jitter_s * math.exp(-_LOG_VARIANCE / 2) if kind == "lognormal" else jitter_s
        self.mean_s = jitter_s * math.sqrt(2 / math.pi) if kind == "normal" else jitter_s

    def delay_s(self, request: int, position: int) -> float:
        """The delay of this slot, in seconds."""
        if self._kind == "exponential":
            return -self._scale * math.log(self._draws.uniform(request, position))
        normal = self._draws.normal(request, position)
        return self._scale * (abs(normal) if self._kind == "normal" else math.exp(_LOG_STD * normal))


class PacketLoss:
    """Packets lost independently with probability `loss` at every attempt, and sent again in rounds until all arrived.

    The packets lost in a round are Binomial(packets sent in it, loss). All packets of a transfer count as equally
    large, so the bytes on the wire are size / (1 - loss) on average.
    """

    __slots__ = ("_draws", "_loss", "_mtu_bytes", "bytes_factor")

    def __init__(self, loss: float, mtu_bytes: int, draws: CommonDraws) -> None:
        self._loss, self._mtu_bytes, self._draws = loss, mtu_bytes, draws
        self.bytes_factor = 1.0 / (1.0 - loss)

    def resend(self, size_bytes: float, request: int, position: int) -> tuple[float, int]:
        """(bytes on the wire including those sent again, rounds of sending again) of this slot."""
        packets = lost = math.ceil(size_bytes / self._mtu_bytes)
        sent, rounds = packets, 0
        # The slot's one uniform seeds a SplitMix64 stream (Steele, Lea, Flood 2014), one number for each round.
        state = int(self._draws.uniform(request, position) * (1 << 53))
        while lost:
            state = (state + 0x9E3779B97F4A7C15) & _64_BITS
            lost = binomial_quantile(_split_mix(state), lost, self._loss)
            if lost:
                sent += lost
                rounds += 1
        return (size_bytes * (sent / packets) if rounds else size_bytes), rounds

    def mean_rounds(self, size_bytes: float) -> float:
        """Expected rounds of sending again: the mean maximum of as many geometric variables as there are packets."""
        packets, total, power = math.ceil(size_bytes / self._mtu_bytes), 0.0, self._loss
        while packets * power > 1e-6:
            total -= math.expm1(packets * math.log1p(-power))  # 1 - (1 - loss^k)^packets
            power *= self._loss
        return total


def _split_mix(state: int) -> float:
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _64_BITS
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _64_BITS
    return (((state ^ (state >> 31)) >> 12) + 0.5) / (1 << 52)


def binomial_quantile(uniform: float, trials: int, probability: float) -> int:
    """The smallest k with P(Binomial(trials, probability) <= k) >= uniform; 0 <= probability < 1."""
    if trials * probability > _FEW_LOSSES:  # scipy's inverse is continuous in k: round up, then make sure
        k: int = math.ceil(bdtrik(uniform, trials, probability))
        return k - 1 if k > 0 and bdtr(k - 1, trials, probability) >= uniform else k
    term = below = (1.0 - probability) ** trials
    odds = probability / (1.0 - probability)
    k = 0
    while below < uniform and k < trials:
        term *= (trials - k) * odds / (k + 1)
        k += 1
        below += term
    return k
