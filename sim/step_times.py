"""How long a language model takes on a device, as measured: iterations that cost a fixed time plus so much per unit of work.

The roofline cannot describe a small model on a CPU, where the interpreter and the memory of one layer's activations count as
much as the weights. There a decode iteration takes `d0 + d1 * batch + d2 * tokens in the cache` and a prefill one
`p0 + p1 * prompts + p2 * tokens + p3 * attention pairs`. `run_sim.py calibrate` measures a served model and fits these numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from sim.step_model import StepModel, rising_steps_real
from workloads.errors import InputError


@dataclass(frozen=True)
class StepTimes(StepModel):
    """Seconds of an iteration, term by term; every term is finite and not negative.

    A prefill iteration: `prefill_base_s`, and for each prompt, new token and pair of a new token with one it attends to the
    next three. A decode iteration: `decode_base_s`, and for each sequence and each token held in the cache the next two.
    `call_overhead_s` is what a call waits outside the engine.
    """

    prefill_base_s: float = 0.0
    prefill_s_per_prompt: float = 0.0
    prefill_s_per_token: float = 0.0
    prefill_s_per_pair: float = 0.0
    decode_base_s: float = 0.0
    decode_s_per_sequence: float = 0.0
    decode_s_per_kv_token: float = 0.0
    call_overhead_s: float = 0.0
    kv_capacity_tokens: int | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and not 0.0 <= value < math.inf:
                raise InputError(f"step times: field '{item.name}'", f"found {value}", "Give a finite number from 0.")
        if not self.decode_base_s + self.decode_s_per_sequence > 0.0:
            raise InputError(
                "step times: fields 'decode_base_s' and 'decode_s_per_sequence'", "both are 0", "A token takes time."
            )

    def prefill_many_s(self, tokens: int, context: int, pairs: float, prompts: int = 1) -> float:
        """Seconds of one iteration that reads `prompts` prompts; `context` counts through the pairs only."""
        return (
            self.prefill_base_s
            + self.prefill_s_per_prompt * prompts
            + self.prefill_s_per_token * tokens
            + self.prefill_s_per_pair * pairs
        )

    def decode_span_s(self, batch: int, kv_tokens: int, steps: int) -> float:
        """Exact seconds of `steps` consecutive iterations: an arithmetic series, as each adds `batch` tokens to the cache."""
        first_s = self._first_s(batch, kv_tokens)
        return steps * (first_s + self.decode_s_per_kv_token * batch * (0.5 * (steps - 1)))

    def _first_s(self, batch: int, kv_tokens: int) -> float:
        return self.decode_base_s + self.decode_s_per_sequence * batch + self.decode_s_per_kv_token * kv_tokens

    def _steps_real(self, batch: int, kv_tokens: int, seconds: float) -> float:
        if seconds <= 0.0:
            return 0.0
        return rising_steps_real(self._first_s(batch, kv_tokens), self.decode_s_per_kv_token * batch, seconds)
