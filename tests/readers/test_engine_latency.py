"""Tests of the reader of measured prefill and decode times."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from workloads.errors import InputError
from workloads.readers import engine_latency

HEADER = "model,hardware,prompt_size,batch_size,token_size,peak_power,average_power,prompt_time,token_time,e2e_time,tensor_parallel"
ROW = "llama2-70b,h100-80gb,512,2,128,1.0,0.7,200,50,6550,4"


@pytest.fixture
def made(tmp_path):
    """Writes a file and returns its path."""

    def write(content: str | bytes):
        path = tmp_path / "perf_model.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_units_and_names(made):
    """Milliseconds become seconds, and the expected end-to-end time is the prefill and 127 further steps."""
    (run,) = engine_latency.read(made(f"{HEADER}\r\n{ROW}\r\n"))
    assert (run.model, run.hardware, run.tensor_parallel) == ("llama2-70b", "h100-80gb", 4)
    assert (run.prompt_tokens, run.batch_size, run.output_tokens) == (512, 2, 128)
    assert (run.prefill_s, run.decode_step_s, run.end_to_end_s) == pytest.approx((0.2, 0.05, 6.55))
    assert (run.peak_power_share, run.average_power_share) == (1.0, 0.7)
    assert run.expected_end_to_end_s == pytest.approx(0.2 + 127 * 0.05)
    assert run.unmeasured == ()
    assert not run.end_to_end_disagrees


def test_zeros_are_kept_and_flagged(made):
    """A zero time or power stays zero, is named as unmeasured, and no end-to-end comparison is claimed without times."""
    (run,) = engine_latency.read(made(f"{HEADER}\nm,h,512,1,128,0.0,0,200,0,6550,4\n"))
    assert run.decode_step_s == 0
    assert run.unmeasured == ("decode_step_s", "peak_power_share", "average_power_share")
    assert run.end_to_end_disagrees


def test_powers_may_be_left_out(made):
    """A file without the two power columns is read; the powers count as unmeasured."""
    (run,) = engine_latency.read(
        made(
            "model,hardware,prompt_size,batch_size,token_size,prompt_time,token_time,e2e_time,tensor_parallel\n"
            "m,h,512,1,128,200,50,6550,4\n"
        )
    )
    assert run.unmeasured == ("peak_power_share", "average_power_share")


def test_recorded_file(shared_data):
    """All 1,260 runs are read; powers are missing from 1,000 of them and times from none."""
    runs = list(engine_latency.read(shared_data("cloud/perf_model.csv")))
    assert len(runs) == 1260
    assert Counter(run.unmeasured for run in runs) == {(): 260, ("peak_power_share", "average_power_share"): 1000}
    assert Counter(run.model for run in runs) == {"llama2-70b": 945, "bloom-176b": 315}
    assert {run.tensor_parallel for run in runs} == {2, 4, 8}


def test_recorded_times_behave_as_the_phases_should(shared_data):
    """At 128 answer tokens and batch 1, prefill grows in step with the prompt and decoding hardly: compute against memory."""
    runs = [
        run
        for run in engine_latency.read(shared_data("cloud/perf_model.csv"))
        if (run.model, run.hardware, run.tensor_parallel) == ("llama2-70b", "a100-80gb", 8)
        and (run.batch_size, run.output_tokens) == (1, 128)
    ]
    short = [run for run in runs if run.prompt_tokens == 1024]
    long = [run for run in runs if run.prompt_tokens == 4096]
    prefill = np.median([run.prefill_s for run in long]) / np.median([run.prefill_s for run in short])
    decode = np.median([run.decode_step_s for run in long]) / np.median([run.decode_step_s for run in short])
    assert 3 < prefill < 6  # four times the tokens
    assert 0.9 < decode < 1.3


def test_recorded_end_to_end_times_disagree_where_answers_are_long_or_batches_large(shared_data):
    """98 % of the runs of 128 tokens in batches up to 16 add up within 10 %; longer answers often stopped early and took less."""
    runs = list(engine_latency.read(shared_data("cloud/perf_model.csv")))
    plain = [run for run in runs if run.output_tokens == 128 and run.batch_size <= 16]
    assert np.mean([run.end_to_end_disagrees for run in plain]) < 0.02
    cut_short = [run for run in runs if run.output_tokens > 1024]
    assert np.mean([run.end_to_end_s < 0.9 * run.expected_end_to_end_s for run in cut_short]) > 0.9


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty"]),
        (HEADER + "\n", ["header but no rows"]),
        (HEADER.replace(",token_time", "") + "\n" + ROW + "\n", ["row 1", "token_time", "missing"]),
        (f"{HEADER}\n{ROW.replace('200', '-200')}\n", ["row 2", "prompt_time", "'-200'"]),
        (f"{HEADER}\n{ROW}\n{ROW.replace('6550', 'nan')}\n", ["row 3", "e2e_time", "'nan'"]),
        (f"{HEADER}\n{ROW.replace('6550', '')}\n", ["row 2", "e2e_time"]),
        (f"{HEADER}\n{ROW.replace(',512', ',512.5')}\n", ["row 2", "prompt_size", "'512.5'"]),
        (f"{HEADER}\n{ROW.replace(',512', ',0')}\n", ["row 2", "prompt_size", "'0'"]),
        (f"{HEADER}\n{ROW.replace('llama2-70b', ' ')}\n", ["row 2", "model"]),
        (f"{HEADER}\n{ROW},1\n", ["row 2", "12 values"]),
        (f"{HEADER}\n{ROW.replace('0.7', 'low')}\n", ["row 2", "average_power", "'low'"]),
        (f"{HEADER}\n{ROW}\n".encode() + b"\x00\n", ["row 3", "NUL"]),
    ],
)
def test_names_what_is_wrong(made, content, words):
    """Each broken file ends as one message with the path, the row and column, and what was found there."""
    path = made(content)
    with pytest.raises(InputError) as caught:
        list(engine_latency.read(path))
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)
