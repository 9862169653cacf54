"""Measured prefill and decode times of serving engines on known hardware, by model, prompt length and batch size.

Source: `perf_model.csv` of Mutinifni/splitwise-sim; Patel et al., "Splitwise: Efficient Generative LLM Inference Using
Phase Splitting", ISCA 2024. Times are in ms in the file. A row is one run: `batch_size` prompts of `prompt_size` tokens,
each answered with `token_size` tokens, on `tensor_parallel` accelerators; `prompt_time` is the prefill of the whole batch
and `token_time` the mean decoding step, which gives every prompt of the batch one token.

Traps
- Zeros mean not measured (the powers of most rows). They are kept as 0.0 and named in `unmeasured`.
- `e2e_time` is often far from prefill + steps x step time: shorter where the model stopped before `token_size` tokens,
  longer where the batch did not fit and was served in parts. `end_to_end_disagrees` says so; prefill and step times are
  the ones to fit.
- Powers are shares, near 1 under full load; the file does not say of what (its paper divides by the rated power).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from workloads.errors import InputError
from workloads.readers._rows import StrPath, csv_rows, number, place

FORMAT = "Splitwise engine measurements: CSV of prefill, decode and end-to-end times in ms by model, hardware and batch"

NAMES = ("model", "hardware")
COUNTS = ("prompt_size", "batch_size", "token_size", "tensor_parallel")
TIMES = ("prompt_time", "token_time", "e2e_time")
TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class EngineLatency:
    """One measured run. `unmeasured` names the fields below whose 0.0 means that nothing was measured."""

    model: str
    hardware: str
    tensor_parallel: int
    prompt_tokens: int
    batch_size: int
    output_tokens: int
    prefill_s: float
    decode_step_s: float
    end_to_end_s: float
    peak_power_share: float
    average_power_share: float
    unmeasured: tuple[str, ...]

    @property
    def expected_end_to_end_s(self) -> float:
        """Prefill, which gives the first token, and one decoding step for each further token, in s."""
        return self.prefill_s + (self.output_tokens - 1) * self.decode_step_s

    @property
    def end_to_end_disagrees(self) -> bool:
        """Whether the measured end-to-end time is more than 10 % away from the expected one, or either is unknown."""
        if {"prefill_s", "decode_step_s", "end_to_end_s"} & set(self.unmeasured):
            return True
        return abs(self.expected_end_to_end_s - self.end_to_end_s) > TOLERANCE * self.end_to_end_s


def read(path: StrPath) -> Iterator[EngineLatency]:
    """Yield one value per row; raises InputError naming the row and column that is wrong. Powers may be left out."""
    for row, values in csv_rows(path, required=(*NAMES, *COUNTS, *TIMES)):
        yield _measurement(path, row, values)


def _measurement(path: StrPath, row: int, values: Mapping[str, str]) -> EngineLatency:
    names = {name: values[name].strip() for name in NAMES}
    for name, text in names.items():
        if not text:
            raise InputError(place(path, row, name), "the name is missing", f"Name the {name}")
    counts = {name: number(values[name], path, row, name, minimum=1, integer=True) for name in COUNTS}
    measured = {
        "prefill_s": number(values["prompt_time"], path, row, "prompt_time", minimum=0) / 1000,
        "decode_step_s": number(values["token_time"], path, row, "token_time", minimum=0) / 1000,
        "end_to_end_s": number(values["e2e_time"], path, row, "e2e_time", minimum=0) / 1000,
        "peak_power_share": number(values.get("peak_power", "0"), path, row, "peak_power", minimum=0),
        "average_power_share": number(values.get("average_power", "0"), path, row, "average_power", minimum=0),
    }
    return EngineLatency(
        model=names["model"],
        hardware=names["hardware"],
        tensor_parallel=counts["tensor_parallel"],
        prompt_tokens=counts["prompt_size"],
        batch_size=counts["batch_size"],
        output_tokens=counts["token_size"],
        unmeasured=tuple(field for field, value in measured.items() if value == 0),
        **measured,
    )
