"""Step times fitted to measured calls, whatever load they ran under.

An answer says how long its prefill and its decoding took, not with whom it shared the iterations. That follows from when the
other answers were made: calls that were read together report the very same prefill time, and two calls that decode at the
same time advance together, token by token. So every prefill iteration gives one equation,

    seconds = base + a * prompts + b * tokens + c * attention pairs

and every call another one, over the decode iterations of its answer:

    seconds - prefills of others in between = base * steps + d * sequences + e * tokens in the cache + f * others that joined

where the right side sums over its iterations. Both systems are solved by non-negative least squares on errors relative to the
prediction. `f` is what a call costs the engine besides its iterations (joining, leaving, the event loop's share of the
interpreter); it is charged to its prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from sim.roofline import attention_pairs
from sim.step_times import StepTimes
from workloads.errors import InputError
from workloads.timed_calls import TimedCall

Floats = npt.NDArray[np.float64]
FEWEST_CALLS = 20
_ROUNDS = 4
"""Fits, each with the errors taken relative to what the one before predicted; the predictions settle after two or three."""

_OUTLIER = 6.0
"""Rows further off than this many times the median error are left out of the next fit: a machine that paused measures itself."""

_LEAST_SHARE = 0.01
"""No row counts as if it took less than this share of the median: a term that came out as nothing would make it count alone."""

_SAME_MOMENT_S = 1.0
"""Two iterations hardly ever take the same time to the last bit; this far apart they are two even then."""


class TermError(NamedTuple):
    """How far `samples` measurements are from what a fitted part predicts, relative to that."""

    median: float
    p95: float
    bias: float
    """Sum of predicted over sum of measured seconds, less 1."""
    samples: int


class StepFit(NamedTuple):
    """Fitted step times and their errors on the measurements they were fitted to."""

    times: StepTimes
    prefill: TermError
    decode: TermError
    overhead_p95_s: float
    overhead_samples: int
    join_s: float
    """Part of `prefill_s_per_prompt` that is not prefill: what a call costs the engine besides its iterations."""


class _Load(NamedTuple):
    """The calls of one run as columns; decoding starts at `start_s` and is over at `end_s`."""

    start_s: Floats
    end_s: Floats
    prefill_s: Floats
    prompt_tokens: Floats
    steps: Floats
    group: npt.NDArray[np.intp]


def fit_step_times(loads: Sequence[Sequence[TimedCall]], alone: Sequence[TimedCall]) -> StepFit:
    """Step times from the calls of several runs on one replica; `alone` are calls that had the system to themselves.

    Raises InputError where there is too little to fit.
    """
    columns = [_columns(calls) for calls in loads if len(calls) > 0]
    if sum(load.steps.size for load in columns) < FEWEST_CALLS or not alone:
        raise InputError(
            "calibration", f"fewer than {FEWEST_CALLS} calls were answered", "Measure for longer, or use a faster model"
        )
    prefill_rows = np.vstack([_prefill_rows(load) for load in columns])
    decode_rows = np.vstack([_decode_rows(load) for load in columns])
    decode_rows = decode_rows[decode_rows[:, 0] > 0]
    if not len(decode_rows):
        raise InputError("calibration", "no answer is longer than a token", "Use prompts with longer answers")
    prefill, prefill_error = _solve(prefill_rows)
    decode, decode_error = _solve(decode_rows)
    overhead_s = np.maximum(0.0, [call.around_s for call in alone])
    times = StepTimes(
        prefill_base_s=prefill[0], prefill_s_per_prompt=prefill[1] + decode[3], prefill_s_per_token=prefill[2],
        prefill_s_per_pair=prefill[3], decode_base_s=decode[0], decode_s_per_sequence=decode[1],
        decode_s_per_kv_token=decode[2], call_overhead_s=float(np.median(overhead_s)),
    )  # fmt: skip
    p95_s = float(np.quantile(overhead_s, 0.95))
    return StepFit(times, prefill_error, decode_error, p95_s, len(overhead_s), decode[3])


def _columns(calls: Sequence[TimedCall]) -> _Load:
    answers = [call.completion for call in calls]
    prefill_s = np.array([answer.prefill_s for answer in answers])
    decode_s = np.array([answer.decode_s for answer in answers])
    if not np.isfinite(prefill_s + decode_s).all():
        raise InputError(
            "calibration", "answers come without prefill and decode times", "Calibrate a model served here"
        )
    start_s = np.array([call.answered_s for call in calls]) - decode_s
    group = _read_together(prefill_s, start_s)
    # The least late of a group says when its decoding began.
    earliest_s = np.full(group.max() + 1, np.inf)
    np.minimum.at(earliest_s, group, start_s)
    start_s = earliest_s[group]
    prompt_tokens = np.array([answer.prompt_tokens for answer in answers], dtype=np.float64)
    steps = np.array([max(0, answer.completion_tokens - 1) for answer in answers], dtype=np.float64)
    return _Load(start_s, start_s + decode_s, prefill_s, prompt_tokens, steps, group)


def _read_together(prefill_s: Floats, start_s: Floats) -> npt.NDArray[np.intp]:
    """Numbers the prefill iterations: calls of one report the same time to the last bit, at about the same moment."""
    order = np.lexsort((start_s, prefill_s))
    new = (np.diff(prefill_s[order]) != 0.0) | (np.diff(start_s[order]) > _SAME_MOMENT_S)
    group = np.empty(order.size, dtype=np.intp)
    group[order] = np.concatenate(([0], np.cumsum(new)))
    return group


def _prefill_rows(load: _Load) -> Floats:
    """(1, prompts, tokens, pairs, seconds) of every prefill iteration."""
    pairs = np.array([attention_pairs(int(tokens), 0) for tokens in load.prompt_tokens])
    prompts = np.bincount(load.group).astype(np.float64)
    tokens = np.bincount(load.group, load.prompt_tokens)
    seconds = np.bincount(load.group, load.prefill_s) / prompts
    return np.column_stack([np.ones(prompts.size), prompts, tokens, np.bincount(load.group, pairs), seconds])


def _decode_rows(load: _Load) -> Floats:
    """(steps, sequences, cache tokens, joins, seconds), summed over the decode iterations of every call."""
    starts, ends = load.start_s, load.end_s
    first = np.unique(load.group, return_index=True)[1]
    middle_s = starts[first] - 0.5 * load.prefill_s[first]
    order = np.argsort(middle_s)
    middle_s, stall_s = middle_s[order], load.prefill_s[first][order]
    prompts = np.bincount(load.group)[order].astype(np.float64)
    stalled_s, joined = _running(middle_s, stall_s), _running(middle_s, prompts)
    seconds = (ends - starts) - (stalled_s(ends) - stalled_s(starts))
    pace = np.divide(load.steps, seconds, out=np.zeros_like(seconds), where=seconds > 0)
    sequences, cached = load.steps.copy(), _own_cache(load.prompt_tokens, load.steps)
    for i in range(starts.size):
        low, high = np.maximum(starts, starts[i]), np.minimum(ends, ends[i])
        others = (high > low) & (np.arange(starts.size) != i)
        low, high, rate = low[others], high[others], pace[others]
        shared = rate * np.maximum(0.0, high - low - (stalled_s(high) - stalled_s(low)))
        before = rate * np.maximum(0.0, low - starts[others] - (stalled_s(low) - stalled_s(starts[others])))
        sequences[i] += shared.sum()
        cached[i] += (shared * (load.prompt_tokens[others] + before + 0.5 * shared)).sum()
    return np.column_stack([load.steps, sequences, cached, joined(ends) - joined(starts), seconds])


class _running:  # noqa: N801 - a function with memory
    """Sum of `amounts` at times up to t."""

    def __init__(self, times_s: Floats, amounts: Floats) -> None:
        self._times_s, self._sums = times_s, np.concatenate(([0.0], np.cumsum(amounts)))

    def __call__(self, time_s: Floats) -> Floats:
        sums: Floats = self._sums[np.searchsorted(self._times_s, time_s, side="right")]
        return sums


def _own_cache(prompt_tokens: Floats, steps: Floats) -> Floats:
    """Tokens a call itself holds, summed over its steps: the prompt, and one more after each step."""
    own: Floats = steps * prompt_tokens + 0.5 * steps * (steps - 1.0)
    return own


def _solve(rows: Floats) -> tuple[list[float], TermError]:
    """Coefficients for all columns but the last, which they predict; without outliers at the last try.

    Errors are relative to the prediction; the first try, which has none yet, is plain least squares. Relative to what was
    measured they would favour rows that chance, or taking off the prefills in between, made short: times would come out too low.
    """
    terms, seconds = rows[:, :-1], rows[:, -1]
    expected_s, kept = np.ones_like(seconds), np.ones(seconds.size, dtype=np.bool_)
    for _ in range(_ROUNDS):
        coefficients = _nnls(terms[kept], seconds[kept], expected_s[kept])
        predicted_s = terms @ coefficients
        expected_s = np.maximum(predicted_s, _LEAST_SHARE * np.median(predicted_s) + 1e-12)
        off = np.abs(seconds / expected_s - 1.0)
        kept = off <= _OUTLIER * np.median(off) + 1e-9
    bias = float(predicted_s.sum() / seconds.sum() - 1.0)
    return coefficients.tolist(), TermError(float(np.median(off)), float(np.quantile(off, 0.95)), bias, len(rows))


def _nnls(terms: Floats, seconds: Floats, expected_s: Floats) -> Floats:
    relative = terms / expected_s[:, None]
    scale = np.maximum(np.abs(relative).max(axis=0), 1e-300)  # columns differ by orders of magnitude
    coefficients: Floats = nnls(relative / scale, seconds / expected_s)[0] / scale
    return coefficients
