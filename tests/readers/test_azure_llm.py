from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from workloads.errors import InputError
from workloads.readers import azure_llm

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
Find = Callable[[str], Path]


def write(folder: Path, *rows: str, end: str = "\n") -> Path:
    """A trace of these rows."""
    path = folder / "trace.csv"
    path.write_text(end.join([HEADER, *rows]), encoding="utf-8", newline="")
    return path


def test_reads_every_request_of_the_real_trace(shared_data: Find) -> None:
    """The 2023 code trace holds 8,819 requests whose token counts sum to those that awk counts in the file."""
    requests = list(azure_llm.read(shared_data("llm_arrivals/azure_llm_2023_code.csv")))
    assert len(requests) == 8819
    assert sum(request.prompt_tokens for request in requests) == 18_059_974
    assert sum(request.output_tokens for request in requests) == 245_896
    assert requests[0] == (0.0, 4808, 10, (), False, "", "", "", None)
    assert requests[-1][:3] == (3435.948056, 549, 173)


def test_real_arrivals_are_bursty(shared_data: Find) -> None:
    """Counts per second in the real trace vary 13 times as much as a Poisson process of the same 2.57 per second."""
    times_s = np.array([r.time_s for r in azure_llm.read(shared_data("llm_arrivals/azure_llm_2023_code.csv"))])
    counts = np.bincount(times_s.astype(int))
    assert len(times_s) / times_s[-1] == pytest.approx(2.57, abs=0.005)
    assert counts.var() / counts.mean() == pytest.approx(13, abs=0.5)


def test_keeps_all_seven_digits_of_a_fraction(tmp_path: Path) -> None:
    """Two times 100 ns apart stay 100 ns apart, although an absolute time in seconds cannot tell them apart."""
    path = write(tmp_path, "2023-11-16 18:17:03.9799600,1,1", "2023-11-16 18:17:03.9799601,1,1")
    assert [request.time_s for request in azure_llm.read(path)] == [0.0, 1e-7]


def test_reads_the_times_of_2024(tmp_path: Path) -> None:
    """Six digits and a zone, no fraction on a whole second, and other zones are all one time line."""
    path = write(
        tmp_path,
        "2024-05-10 23:59:59.009930+00:00,10,1",
        "2024-05-11 00:00:01+00:00,10,1",
        "2024-05-11 02:00:01.5+02:00,10,1",
        "2024-05-11T00:00:02Z,10,1",
        "2024-05-10 18:30:03-0530,10,1",
    )
    assert [request.time_s for request in azure_llm.read(path)] == [0.0, 1.99007, 2.49007, 2.99007, 3.99007]


def test_a_leap_day_is_a_day(tmp_path: Path) -> None:
    """Times are taken from the calendar: 28 February to 1 March 2024 are two days."""
    path = write(tmp_path, "2024-02-28 00:00:00,1,1", "2024-03-01 00:00:00,1,1")
    assert [request.time_s for request in azure_llm.read(path)] == [0.0, 2 * 86400.0]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_a_missing_last_one_do_not_matter(tmp_path: Path, end: str) -> None:
    """The same rows come out whatever the line ends are, with or without one after the last row."""
    rows = ["2023-11-16 18:17:03,1,2", "2023-11-16 18:17:04,3,4"]
    expected = [(0.0, 1, 2), (1.0, 3, 4)]
    assert [request[:3] for request in azure_llm.read(write(tmp_path, *rows, end=end))] == expected
    assert [request[:3] for request in azure_llm.read(write(tmp_path, *rows, "", end=end))] == expected


def test_reads_gzip_and_a_byte_order_mark(tmp_path: Path) -> None:
    """A compressed file that starts with a byte order mark reads like a plain one."""
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(f"\ufeff{HEADER}\n2023-11-16 18:17:03.5,1,2\n".encode()))
    assert [request[:3] for request in azure_llm.read(path)] == [(0.0, 1, 2)]


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    """Another order of columns, and one more, change nothing."""
    path = tmp_path / "trace.csv"
    path.write_text("GeneratedTokens,Region,ContextTokens,TIMESTAMP\n7,west,5,2023-11-16 18:17:03\n")
    assert [request[:3] for request in azure_llm.read(path)] == [(0.0, 5, 7)]


def test_rows_before_a_bad_one_are_still_yielded(tmp_path: Path) -> None:
    """The reader streams: a fault in the third row does not hide the first two."""
    path = write(tmp_path, "2023-11-16 18:17:03,1,2", "2023-11-16 18:17:04,3,4", "2023-11-16 18:17:05,x,4")
    requests = azure_llm.read(path)
    assert [next(requests).prompt_tokens, next(requests).prompt_tokens] == [1, 3]
    with pytest.raises(InputError, match="row 4, column 'ContextTokens'"):
        next(requests)
