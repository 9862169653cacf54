"""What a batching server must know of a model on a device: how long its iterations take.

Two answers exist: the roofline (sim/roofline.py) works them out from hardware and model, measured step times
(sim/step_times.py) were fitted to a system that runs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod


class StepModel(ABC):
    """Times of prefill and decode iterations in closed form; decoding `n` steps costs no more to work out than one."""

    call_overhead_s: float = 0.0
    """Seconds a call spends around the engine (RPC, event loop, reading the text), taking no place in the batch."""

    @property
    @abstractmethod
    def kv_capacity_tokens(self) -> int | None:
        """Tokens whose keys and values fit into the memory; None without a limit."""

    @abstractmethod
    def prefill_many_s(self, tokens: int, context: int, pairs: float, prompts: int = 1) -> float:
        """Seconds of one iteration that reads `prompts` prompts, all other arguments summed over them.

        `tokens` are new, `context` are cached already, `pairs` as `attention_pairs` counts them.
        """

    @abstractmethod
    def decode_span_s(self, batch: int, kv_tokens: int, steps: int) -> float:
        """Exact seconds of `steps` consecutive iterations; the cache grows by `batch` tokens in each."""

    @abstractmethod
    def _steps_real(self, batch: int, kv_tokens: int, seconds: float) -> float:
        """The inverse of `decode_span_s` with a fraction of a step, up to rounding."""

    def prefill_s(self, tokens: int, context: int = 0) -> float:
        """Seconds to process `tokens` new prompt tokens of one sequence after `context` tokens already cached."""
        return self.prefill_many_s(tokens, context, attention_pairs(tokens, context))

    def decode_step_s(self, batch: int, kv_tokens: int) -> float:
        """Seconds of one iteration that gives each of `batch` sequences, holding `kv_tokens` together, a token."""
        return self.decode_span_s(batch, kv_tokens, 1)

    def steps_to_reach(self, batch: int, kv_tokens: int, seconds: float) -> tuple[int, float]:
        """The fewest steps whose span is at least `seconds`, and that span: the end of the iteration in progress."""
        real = self._steps_real(batch, kv_tokens, seconds)
        steps = math.ceil(real)
        span = self.decode_span_s(batch, kv_tokens, steps)
        if 1e-6 < steps - real < 1.0 - 1e-6 and real < 1e6:
            return steps, span
        # The real-valued solution may be off by rounding at a whole step; the spans themselves decide.
        while span < seconds:
            steps += 1
            span = self.decode_span_s(batch, kv_tokens, steps)
        while steps > 0:
            shorter = self.decode_span_s(batch, kv_tokens, steps - 1)
            if shorter < seconds:
                break
            steps, span = steps - 1, shorter
        return steps, span

    def steps_within(self, batch: int, kv_tokens: int, seconds: float) -> int:
        """The most whole steps that end within `seconds`: the inverse of `decode_span_s`."""
        steps, span = self.steps_to_reach(batch, kv_tokens, seconds)
        return steps if span <= seconds else steps - 1


def rising_steps_real(first_s: float, slope_s: float, seconds: float) -> float:
    """Steps (with a fraction) in `seconds` where the first takes `first_s` and each takes `slope_s` more than the one before.

    Solves first * n + slope * n * (n - 1) / 2 = seconds in the form that does not cancel for a small slope.
    """
    linear = first_s - 0.5 * slope_s
    root = linear + math.sqrt(linear * linear + 2.0 * slope_s * seconds)
    return 2.0 * seconds / root if root > 0.0 else 0.0


def attention_pairs(tokens: int, context: int) -> float:
    """(new token, token it attends to) pairs of a causal prefill: every new token sees the context and itself."""
    return tokens * (context + 0.5 * (tokens + 1))
