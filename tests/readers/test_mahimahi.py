"""Tests of the reader of Mahimahi's packet delivery traces."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.errors import InputError
from workloads.readers import mahimahi


@pytest.fixture
def made(tmp_path):
    """Writes a file and returns its path."""

    def write(content: str | bytes):
        path = tmp_path / "trace.up"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_one_line_is_a_link_of_twelve_megabits(made):
    """A file that holds just "1" sends 1,500 bytes every millisecond: the manual's own example of 12 Mbit/s."""
    trace = mahimahi.read(made("1\n"))
    assert trace.period_s == pytest.approx(0.001)
    assert trace.mean_mbps == pytest.approx(12)


def test_bins_and_gaps(made):
    """Deliveries go to the bin that ends at or after them; empty bins in a row are one piece; the last bin is short."""
    trace = mahimahi.read(made("0\n100\n101\n101\n600\n650\n"), bin_s=0.1)
    assert trace.durations_s == pytest.approx([0.1, 0.1, 0.3, 0.1, 0.05])
    assert trace.mbps == pytest.approx([2 * 0.12, 2 * 0.12, 0, 0.12, 0.24])


@given(
    steps_ms=st.lists(st.integers(0, 400), min_size=1, max_size=80),
    start_ms=st.integers(1, 5000),
    bin_ms=st.integers(1, 2000),
)
def test_no_byte_is_lost_or_made_up_to_any_edge(tmp_path_factory, steps_ms, start_ms, bin_ms):
    """Up to the end of every piece the trace has carried exactly 1,500 bytes for every delivery by then."""
    times_ms = start_ms + np.cumsum(steps_ms)
    path = tmp_path_factory.mktemp("traces") / "trace.up"
    path.write_text("".join(f"{time}\n" for time in times_ms))
    trace = mahimahi.read(path, bin_s=bin_ms / 1000)
    carried_bytes = np.cumsum(trace.durations_s * trace.mbps * 1e6 / 8)
    edges_ms = np.cumsum(trace.durations_s) * 1000
    delivered = [np.sum(times_ms <= round(edge)) * mahimahi.PACKET_BYTES for edge in edges_ms]
    assert edges_ms[-1] == pytest.approx(times_ms[-1])
    assert carried_bytes == pytest.approx(delivered, rel=1e-9)
    assert trace.durations_s.max() <= 5.401  # no piece is longer than the longest gap: nothing is smeared over it
    assert carried_bytes[-1] == pytest.approx(len(times_ms) * mahimahi.PACKET_BYTES, rel=1e-12)


def test_a_long_silence_costs_no_memory(made):
    """A day without a packet is one piece, however small the bins are."""
    trace = mahimahi.read(made("1\n86400000\n"), bin_s=0.001)
    assert len(trace.mbps) == 3
    assert trace.period_s == pytest.approx(86400)


def test_accepts_crlf_and_blank_lines(made):
    """Windows line ends, a missing final newline and blank lines change nothing."""
    trace = mahimahi.read(made(b"\r\n1\r\n2\r\n\r\n2"))
    assert trace.mean_mbps == pytest.approx(18)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"\n\n", ["no rows"]),
        (b"1\n5\n4\n", ["row 3", "4 ms comes after 5 ms"]),
        (b"1\n2.5\n", ["row 2", "'2.5'", "whole number"]),
        (b"1\n-2\n", ["row 2", "'-2'"]),
        (b"1\nnan\n", ["row 2", "'nan'"]),
        (b"1\ntwo\n", ["row 2", "'two'"]),
        (b"1 1500\n2 1500\n", ["row 1", "'1 1500'"]),
        (b"0\n0\n", ["row 2", "ends at 0 ms"]),
        (b"1700000000000\n1700000000001\n", ["row 1", "clock reading"]),
        (b"1\n99999999999999999999\n", ["row 2", "9999999999"]),
        (b"1\n\xff\xfe\n", ["row 2", "UTF-8"]),
    ],
)
def test_names_what_is_wrong(made, content, words):
    """Each broken file ends as one message with the path, the row, and what was found there."""
    path = made(content)
    with pytest.raises(InputError) as caught:
        mahimahi.read(path)
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)


@pytest.mark.parametrize("bin_s", [0, -1, 0.0005, 0.0125, float("nan"), float("inf")])
def test_refuses_bins_that_cut_a_millisecond(made, bin_s):
    """A bin must be a whole number of milliseconds, or deliveries could not be assigned exactly."""
    with pytest.raises(InputError, match="whole number of milliseconds"):
        mahimahi.read(made("1\n"), bin_s=bin_s)


def test_a_bin_longer_than_the_trace_is_the_mean(made):
    """With any bin as long as the period or longer the whole trace is one piece."""
    for bin_s in (0.4, 1e300):
        trace = mahimahi.read(made("100\n400\n"), bin_s=bin_s)
        assert trace.durations_s.tolist() == [0.4]
        assert trace.mbps == pytest.approx([0.06])
