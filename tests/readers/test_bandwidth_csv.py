"""Tests of the reader of bandwidth traces in CSV files with named columns."""

from __future__ import annotations

import pytest

from workloads.errors import InputError
from workloads.readers import bandwidth_csv

IRISH_HEADER = (
    "Timestamp,Longitude,Latitude,Speed,Operatorname,CellID,NetworkMode,RSRP,DL_bitrate,UL_bitrate,State,PINGAVG"
)


def irish_row(second: int, kbps: int) -> str:
    """One line as the data sets of University College Cork write it, `second` after 07:27:58."""
    minute, second = divmod(27 * 60 + 58 + second, 60)
    return f"2019.11.28_07.{minute:02d}.{second:02d},-8.38,51.93,0,B,12,5G,-100,{kbps},20,D,-"


@pytest.fixture
def made(tmp_path):
    """Writes a file and returns its path."""

    def write(content: str | bytes):
        path = tmp_path / "trace.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_value_holds_until_the_next_row_and_the_last_for_the_median_step(made):
    """Steps of 2, 1, 1 and 4 s have the median 1.5 s, which is how long the last value holds."""
    trace = bandwidth_csv.read(made("time_s,bandwidth_mbps\n0,9\n2,3\n3,4\n4,5\n8,6\n"))
    assert trace.durations_s.tolist() == [2, 1, 1, 4, 1.5]
    assert trace.mbps.tolist() == [9, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("content", "mbps"),
    [
        ("time_s,bandwidth_mbps\n0,8\n1,4\n", [8, 4]),
        ("Time_ms,Throughput_kbps\n0,8000\n1000,4000\n", [8, 4]),
        ("timestamp,bytes_per_s\n1700000000,1000000\n1700000001,500000\n", [8, 4]),
        ("time_us,rate_gbps\n5,0.008\n1000005,0.004\n", [8, 4]),
        ("bits_per_second,seconds\n8e6,10\n4e6,11\n", [8, 4]),
        ("datetime,download_mbps\n2024-02-29T23:59:59.5Z,8\n2024-03-01 00:00:00.5+00:00,4\n", [8, 4]),
        ("unit_id,dtime,bytes_sec\n7,2016-06-01 12:00:00,1000000\n7,2016-06-01 12:00:01,500000\n", [8, 4]),
        (f"{IRISH_HEADER}\n{irish_row(1, 8000)}\n{irish_row(2, 4000)}\n", [8, 4]),
        ("\ufefftime_s,bandwidth_mbps\r\n0,8\r\n\r\n1,4", [8, 4]),
    ],
)
def test_the_same_trace_under_every_name_and_unit(made, content, mbps):
    """One second at 8 Mbit/s and one at 4, in the units and names of different sources, is the same trace."""
    trace = bandwidth_csv.read(made(content))
    assert trace.durations_s == pytest.approx([1, 1])
    assert trace.mbps == pytest.approx(mbps)


@pytest.mark.parametrize("unit", sorted(bandwidth_csv.BANDWIDTH_UNITS))
def test_units_of_bandwidth_follow_their_spelling(made, unit):
    """A unit means its prefix (powers of 1000) times bits, or times 8 where it says bytes."""
    prefix = {"k": 1e3, "m": 1e6, "g": 1e9}.get(unit[0].lower(), 1) if unit[0] not in "bB" else 1
    megabits = prefix * (8 if "B" in unit else 1) / 1e6
    trace = bandwidth_csv.read(made("time_s,x\n0,3\n1,3\n"), bandwidth_column=f"x:{unit}")
    assert trace.mean_mbps == pytest.approx(3 * megabits)


def test_columns_without_units_can_be_given(made):
    """A drive test with bare names is read once the caller says what they are; known names need no unit."""
    path = made("seq_num,Throughput,DL_bitrate\n0,10,1000\n2,20,3000\n")
    trace = bandwidth_csv.read(path, time_column="seq_num:min", bandwidth_column="Throughput:MB/s")
    assert trace.durations_s.tolist() == [120, 120]
    assert trace.mbps.tolist() == [80, 160]
    assert bandwidth_csv.read(path, "seq_num:s", "DL_bitrate").mbps.tolist() == [1, 3]


def test_a_name_may_hold_a_colon(made):
    """A column whose own name holds a colon can still be given with a unit."""
    path = made("time:x,bandwidth_mbps\n0,10\n2,20\n")
    assert bandwidth_csv.read(path, time_column="time:x:ms").durations_s.tolist() == [0.002, 0.002]


def test_clock_of_whole_seconds(made):
    """Repeated seconds and a step back by one, as in real 5G logs, span no time and are reported by row."""
    seconds = [0, 1, 1, 2, 3, 2, 3, 4, 5]
    rows = "\n".join(irish_row(second, 1000 * (i + 1)) for i, second in enumerate(seconds))
    trace = bandwidth_csv.read(made(f"{IRISH_HEADER}\n{rows}\n"))
    assert trace.non_increasing_rows == (4, 7, 8)
    assert trace.durations_s.tolist() == [1, 1, 1, 1, 1, 1]
    assert trace.mbps.tolist() == [1, 3, 4, 7, 8, 9]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"time_s,bandwidth_mbps\n", ["header but no rows"]),
        (b"time_s,bandwidth_mbps\n0,5\n", ["row 2", "no time passes"]),
        (b"0,5\n1,5\n", ["row 1", "no time column", "'0', '5'", "Units: s, ms", "timestamp"]),
        (b"time_s,speed\n0,5\n1,5\n", ["row 1", "no bandwidth column", "'time_s', 'speed'", "Mbit/s", "dl_bitrate"]),
        (b"time_s,download_mbps,bps\n0,5,5\n", ["row 1", "several columns", "'download_mbps', 'bps'"]),
        (b"time_s\n0\n1\n", ["row 1", "no bandwidth column"]),
        (b"time_s,time_s,bandwidth_mbps\n0,0,1\n", ["'time_s'", "twice"]),
        (b"time_s,bandwidth_mbps\n0,5\n1\n", ["row 3", "1 value"]),
        (b"time_s,bandwidth_mbps\n0,5\n1,5,5\n", ["row 3", "3 values"]),
        (b"time_s,bandwidth_mbps\n0,5\n1,NaN\n", ["row 3", "bandwidth_mbps", "'NaN'"]),
        (b"time_s,bandwidth_mbps\n0,5\n1,\n", ["row 3", "bandwidth_mbps"]),
        (b"time_s,bandwidth_mbps\n0,5\n1,-1\n", ["row 3", "bandwidth_mbps", "'-1'"]),
        (b"time_s,bandwidth_mbps\n0,5\ninf,1\n", ["row 3", "time_s", "'inf'"]),
        (b"time_s,bandwidth_mbps\n0,0\n1,0\n", ["mbps", "no bandwidth is above 0"]),
        (b"time_s,bandwidth_mbps\n3,1\n2,1\n1,1\n", ["row 3", "2 of 3 times"]),
        (b"timestamp,bandwidth_mbps\n1700000000000,1\n1700000001000,1\n", ["row 2", "'timestamp'", "timestamp:ms"]),
        (b"timestamp,bandwidth_mbps\n2019-11-28,1\nlater,1\n", ["row 3", "'timestamp'", "'later'"]),
        (b"timestamp,bandwidth_mbps\nyesterday,1\ntoday,1\n", ["row 2", "'timestamp'", "'yesterday'"]),
        (b"timestamp,bandwidth_mbps\n2019.13.28_07.27.23,1\n", ["row 2", "'timestamp'"]),
        (b'time_s,bandwidth_mbps\n0,"5\n1,5\n', ["row 2", "CSV"]),
        (b"time_s,bandwidth_mbps\n0,\xff\n", ["row 2", "UTF-8"]),
        (b"time_s,bandwidth_mbps\n0,1e308\n1e308,1e308\n", ["overflow"]),
    ],
)
def test_names_what_is_wrong(made, content, words):
    """Each broken file ends as one message with the path, the row or columns, and what was found there."""
    path = made(content)
    with pytest.raises(InputError) as caught:
        bandwidth_csv.read(path)
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"bandwidth_column": "Throughput"}, ["'Throughput'", "does not say its unit", "Mbit/s"]),
        ({"bandwidth_column": "Throughput:MBps"}, ["'MBps' is not a unit", "Mbps"]),
        ({"bandwidth_column": "Troughput:Mbps"}, ["no such bandwidth column", "Did you mean 'Throughput'"]),
        ({"time_column": "Throughput:Mbps"}, ["'Mbps' is not a unit of time", "ms"]),
        ({"time_column": ""}, ["no such time column"]),
    ],
)
def test_names_what_is_wrong_with_given_columns(made, given, words):
    """A given column that is not there or has no known unit is refused with what could be meant."""
    with pytest.raises(InputError) as caught:
        bandwidth_csv.read(made("time_s,Throughput\n0,1\n1,1\n"), **given)
    assert all(word in str(caught.value) for word in words), str(caught.value)
