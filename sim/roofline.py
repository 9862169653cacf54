"""How long a language model takes on a device: the roofline model applied to transformer inference.

A step takes as long as the slower of its arithmetic and its memory traffic (S. Williams, A. Waterman, D. Patterson,
"Roofline: an insightful visual performance model", CACM 52(4), 2009). A forward pass costs two operations per active
parameter and token and reads every weight once; decoding one token also reads the whole key-value cache
(R. Pope et al., "Efficiently scaling transformer inference", MLSys 2023, section 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

from sim.step_model import StepModel, attention_pairs, rising_steps_real
from workloads.errors import InputError

__all__ = ["Roofline", "attention_pairs"]

_MAY_BE_ZERO = {"step_overhead_s", "kv_bytes_per_token", "weight_bytes", "attention_flops_per_pair"}
_SHARES = {"flops_efficiency", "bandwidth_efficiency"}


@dataclass(frozen=True)
class Roofline(StepModel):
    """One model on one device (or on a tensor-parallel group taken as one device).

    Device: `peak_flops` in operations/s, `memory_bandwidth_bytes_s`, usable `memory_bytes`, both efficiencies in
    (0, 1], `step_overhead_s` per iteration (kernel launches, scheduler, collectives).
    Model: `parameters` active per token, `weight_bytes` read per pass (all resident ones), `kv_bytes_per_token`.
    `attention_flops_per_pair` is 4 x layers x hidden width: operations per (new token, token it attends to) pair
    in prefill; 0 leaves the quadratic term out, which is within 5 % up to about 4,000 tokens on large models.
    """

    peak_flops: float
    memory_bandwidth_bytes_s: float
    memory_bytes: float
    parameters: float
    weight_bytes: float
    kv_bytes_per_token: float = 0.0
    flops_efficiency: float = 1.0
    bandwidth_efficiency: float = 1.0
    step_overhead_s: float = 0.0
    attention_flops_per_pair: float = 0.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = float(getattr(self, item.name))
            low_enough = value <= 1.0 if item.name in _SHARES else math.isfinite(value)
            if not (low_enough and (value > 0.0 or (value == 0.0 and item.name in _MAY_BE_ZERO))):
                bounds = "in (0, 1]" if item.name in _SHARES else "finite and positive"
                if item.name in _MAY_BE_ZERO:
                    bounds = "finite and not negative"
                raise InputError(f"roofline: field '{item.name}'", f"found {value}", f"Give a number that is {bounds}.")
        if self.weight_bytes > self.memory_bytes:
            raise InputError(
                "roofline: field 'weight_bytes'",
                f"the weights ({self.weight_bytes:.4g} bytes) do not fit into the memory ({self.memory_bytes:.4g} bytes)",
                "Choose a smaller or quantised model, or a device with more memory.",
            )

    @cached_property
    def kv_capacity_tokens(self) -> int | None:
        """Tokens whose keys and values fit beside the weights; None when a token takes no memory."""
        if self.kv_bytes_per_token == 0.0:
            return None
        return int((self.memory_bytes - self.weight_bytes) / self.kv_bytes_per_token)

    @cached_property
    def compute_s_per_token(self) -> float:
        """Arithmetic seconds per token: 2 x parameters / achieved operations per second."""
        return 2.0 * self.parameters / (self.peak_flops * self.flops_efficiency)

    @cached_property
    def weights_s(self) -> float:
        """Seconds to read every weight once."""
        return self.weight_bytes / (self.memory_bandwidth_bytes_s * self.bandwidth_efficiency)

    @cached_property
    def kv_s_per_token(self) -> float:
        """Seconds to read one token's keys and values."""
        return self.kv_bytes_per_token / (self.memory_bandwidth_bytes_s * self.bandwidth_efficiency)

    @cached_property
    def _pair_s(self) -> float:
        return self.attention_flops_per_pair / (self.peak_flops * self.flops_efficiency)

    def prefill_many_s(self, tokens: int, context: int, pairs: float, prompts: int = 1) -> float:
        """Seconds of one iteration that reads several prompts; arithmetic and traffic do not depend on their number."""
        compute = self.compute_s_per_token * tokens + self._pair_s * pairs
        memory = self.weights_s + self.kv_s_per_token * context
        return (compute if compute > memory else memory) + self.step_overhead_s

    def decode_step_s(self, batch: int, kv_tokens: int) -> float:
        """Seconds of one iteration that gives each of `batch` sequences, holding `kv_tokens` together, a token."""
        compute = self.compute_s_per_token * batch
        memory = self.weights_s + self.kv_s_per_token * kv_tokens
        return (compute if compute > memory else memory) + self.step_overhead_s

    def decode_span_s(self, batch: int, kv_tokens: int, steps: int) -> float:
        """Exact seconds of `steps` consecutive iterations; the cache grows by `batch` tokens in each.

        Memory time grows linearly and arithmetic time is constant, so there is one crossover: a rectangle before
        it, an arithmetic series after it.
        """
        compute = self.compute_s_per_token * batch
        slope = self.kv_s_per_token * batch
        memory = self.weights_s + self.kv_s_per_token * kv_tokens
        flat = 0
        if memory < compute:
            flat = steps if memory + slope * steps <= compute else min(steps, math.ceil((compute - memory) / slope))
        rising = steps - flat
        series = rising * (memory + slope * (0.5 * (flat + steps - 1)))
        return compute * flat + series + self.step_overhead_s * steps

    def _steps_real(self, batch: int, kv_tokens: int, seconds: float) -> float:
        if seconds <= 0.0:
            return 0.0
        overhead = self.step_overhead_s
        compute = self.compute_s_per_token * batch
        slope = self.kv_s_per_token * batch
        memory = self.weights_s + self.kv_s_per_token * kv_tokens
        flat = 0.0
        if memory < compute:
            plateau = compute + overhead
            if slope == 0.0 or seconds <= plateau * ((compute - memory) / slope):
                return seconds / plateau
            flat = math.ceil((compute - memory) / slope)
            seconds = max(0.0, seconds - plateau * flat)
            memory += slope * flat
        return flat + rising_steps_real(memory + overhead, slope, seconds)
