"""Tests of the reader of two-column bandwidth traces."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.errors import InputError
from workloads.readers import pensieve


@pytest.fixture
def made(tmp_path):
    """Writes a file and returns its path."""

    def write(content: str | bytes):
        path = tmp_path / "trace"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(("folder", "count"), [("norway_hsdpa", 24), ("fcc_broadband", 30), ("campus_wifi", 40)])
def test_reads_every_recorded_trace_as_its_simulator_does(shared_data, folder, count):
    """For every recorded file, the bits of one period equal Pensieve's own sum over bandwidth[i] x (t[i] - t[i-1])."""
    paths = sorted(shared_data(f"network/{folder}").iterdir())
    assert len(paths) == count
    for path in paths:
        columns = np.loadtxt(path)
        trace = pensieve.read(path)
        megabits = float(np.sum(columns[1:, 1] * np.diff(columns[:, 0])))
        assert trace.mean_mbps * trace.period_s == pytest.approx(megabits, rel=1e-12)
        assert trace.period_s == pytest.approx(columns[-1, 0], rel=1e-12)


def test_only_the_recorded_trace_with_a_stall_has_rows_without_time(shared_data):
    """Of the 94 recorded files one repeats a time: six rows written at once after a stall of 7.2 s."""
    found = {}
    for folder in ("norway_hsdpa", "fcc_broadband", "campus_wifi"):
        for path in shared_data(f"network/{folder}").iterdir():
            rows = pensieve.read(path).non_increasing_rows
            if rows:
                found[path.name] = rows
    assert found == {"wifi_cafe_231115-154511.txt": (139, 140, 141, 142, 143, 144)}


def test_stall_lasts_as_long_as_it_was_recorded(shared_data):
    """The stall spans 7.2 s: at no bandwidth as Pensieve reads it, at 0.36 Mbit/s as the measuring tool meant it."""
    path = shared_data("network/campus_wifi/wifi_cafe_231115-154511.txt")
    for trace, mbps in ((pensieve.read(path), 0.0), (pensieve.read(path, covers="after"), 0.36)):
        longest = int(np.argmax(trace.durations_s))
        assert trace.durations_s[longest] == pytest.approx(7.2)
        assert trace.mbps[longest] == mbps


def test_value_holds_before_its_time(made):
    """The first value, at the origin, spans no time; each later one holds since the row before."""
    trace = pensieve.read(made("0 9\n2 3\n3.5 4\n"))
    assert trace.durations_s.tolist() == [2, 1.5]
    assert trace.mbps.tolist() == [3, 4]
    assert trace.non_increasing_rows == ()


def test_first_value_counts_where_time_has_passed(made):
    """In a file that begins after the origin the first value holds from the origin on."""
    trace = pensieve.read(made("2 9\n3 4\n"))
    assert trace.durations_s.tolist() == [2, 1]
    assert trace.mbps.tolist() == [9, 4]


def test_value_holds_after_its_time_where_asked(made):
    """Read as interval starts, each value holds until the next row and the last for the median step."""
    trace = pensieve.read(made("0 9\n2 3\n4 4\n5 6\n"), covers="after")
    assert trace.durations_s.tolist() == [2, 2, 1, 2]
    assert trace.mbps.tolist() == [9, 3, 4, 6]


def test_clock_set_back_a_little_does_not_move_time(made):
    """After a step back from 3 s to 2.5 s, time goes on where it was: 3 s to 4 s belong to the row at 4 s."""
    trace = pensieve.read(made("0 9\n1 1\n2 2\n3 3\n2.5 7\n3 8\n4 4\n"))
    assert trace.durations_s.tolist() == [1, 1, 1, 1]
    assert trace.mbps.tolist() == [1, 2, 3, 4]
    assert trace.non_increasing_rows == (5, 6)


def test_scaling_keeps_the_rows_without_time(made):
    """A scaled trace still reports which rows spanned no time."""
    assert pensieve.read(made("0 1\n1 1\n1 2\n2 3\n")).scaled(2).non_increasing_rows == (3,)


@given(
    steps=st.lists(st.integers(-2, 9), min_size=10, max_size=60).filter(
        lambda steps: sum(step <= 0 for step in steps) < len(steps) / 4
    ),
    data=st.data(),
)
def test_integral_does_not_depend_on_rows_without_time(tmp_path_factory, steps, data):
    """Removing the reported rows from a file leaves exactly the same trace: they carried nothing."""
    values = data.draw(st.lists(st.integers(1, 50), min_size=len(steps), max_size=len(steps)))
    times = np.maximum(np.cumsum([1, *steps[1:]]), 0)
    lines = [f"{time} {value}\n" for time, value in zip(times, values, strict=True)]
    path = tmp_path_factory.mktemp("traces") / "trace"
    path.write_text("".join(lines))
    trace = pensieve.read(path)
    path.write_text("".join(line for row, line in enumerate(lines, 1) if row not in trace.non_increasing_rows))
    again = pensieve.read(path)
    assert again.non_increasing_rows == ()
    assert again.durations_s.tolist() == trace.durations_s.tolist()
    assert again.mbps.tolist() == trace.mbps.tolist()
    assert trace.period_s == pytest.approx(times.max())


@pytest.mark.parametrize(
    "content",
    [
        b"0 9\r\n2 3\r\n3.5 4\r\n",
        b"0\t9\n2\t3\n3.5\t4",
        b"\xef\xbb\xbf0 9\n\n 2   3 \n3.5 4\n\n",
        b"0.0 9e0\n+2. 3\n3.5 4.0\n",
        gzip.compress(b"0 9\n2 3\n3.5 4\n", mtime=0),
    ],
    ids=["CRLF", "tabs, no final newline", "BOM, blank lines, spaces", "exponents and signs", "gzip"],
)
def test_accepts_the_same_trace_however_it_is_written(made, content):
    """Line ends, separators, blank lines, a byte order mark and compression change nothing."""
    trace = pensieve.read(made(content))
    assert trace.durations_s.tolist() == [2, 1.5]
    assert trace.mbps.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"\n \n\n", ["no rows"]),
        (b"time mbps\n0 1\n1 2\n", ["row 1", "time_s", "'time'"]),
        (b"0 1\n1 nan\n", ["row 2", "mbps", "'nan'"]),
        (b"0 1\n1 inf\n", ["row 2", "mbps", "'inf'"]),
        (b"0 1\n1 -2\n", ["row 2", "mbps", "'-2'"]),
        (b"0 1\n-1 2\n", ["row 2", "time_s", "'-1'"]),
        (b"0 1\n1 fast\n", ["row 2", "mbps", "'fast'"]),
        (b"0 1\n1 1_0\n", ["row 2", "mbps", "'1_0'"]),
        (b"0 1\n1 1e999\n", ["row 2", "mbps", "1e999"]),
        (b"0 1\n1\n", ["row 2", "columns is 1"]),
        (b"0 1\n1 2 3\n", ["row 2", "columns is 3"]),
        (b"0,1\n1,2\n", ["row 1", "columns is 1"]),
        (b"0 0\n1 0\n2 0\n", ["mbps", "no bandwidth is above 0"]),
        (b"0 5\n1 0\n2 0\n", ["mbps", "no bandwidth is above 0"]),
        (b"0 5\n", ["row 1", "no time passes"]),
        (b"5 1\n5 1\n5 1\n5 1\n", ["row 2", "3 of 4 times"]),
        (b"9 1\n8 1\n7 1\n6 1\n", ["row 2", "3 of 4 times"]),
        (b"".join(b"%d 1\n" % (i % 20) for i in range(40)), ["row 21", "falls back by 19 s"]),
        (b"1511000000.1 1\n1511000001.1 2\n", ["row 1", "clock reading"]),
        (b"0 1\n1 \xff\xfe\n", ["row 2", "UTF-8"]),
        (b"0 1\n\x00\x01\x02\n", ["row 2", "NUL"]),
        (gzip.compress(b"0 1\n1 2\n" * 100, mtime=0)[:-20], ["cannot be read on"]),
    ],
)
def test_names_what_is_wrong(made, content, words):
    """Each broken file ends as one message with the path, the row or field, and what was found there."""
    path = made(content)
    with pytest.raises(InputError) as caught:
        pensieve.read(path)
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)


def test_names_a_missing_file_and_a_wrong_argument(tmp_path, made):
    """A file that is not there, a directory and an unknown interval convention are refused by name."""
    with pytest.raises(InputError, match="no such file"):
        pensieve.read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="directory"):
        pensieve.read(tmp_path)
    with pytest.raises(InputError, match="'during'"):
        pensieve.read(made("0 1\n1 2\n"), covers="during")  # type: ignore[arg-type]
