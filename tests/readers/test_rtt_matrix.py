"""Tests of the reader of round-trip times between cloud regions."""

from __future__ import annotations

import csv
import pickle

import pytest

from workloads.errors import InputError
from workloads.readers import rtt_matrix

SMALL = "Source,North,South,West\nNorth,,80,41.5\nSouth,82,,\nEast,7,,0\n"


@pytest.fixture
def made(tmp_path):
    """Writes a file and returns its path."""

    def write(content: str | bytes):
        path = tmp_path / "latency.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_every_recorded_cell_is_found_or_refused(shared_data):
    """Each cell of the recorded matrix is read as written, in s, or refused where it is blank."""
    path = shared_data("cloud/latency.csv")
    matrix = rtt_matrix.read(path)
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    blanks = 0
    for source, *cells in rows:
        for target, cell in zip(header[1:], cells, strict=True):
            if cell:
                assert matrix.rtt_s(source, target) == pytest.approx(float(cell) / 1000)
                assert matrix.one_way_s(source, target) == pytest.approx(float(cell) / 2000)
            else:
                blanks += 1
                with pytest.raises(InputError, match="was not measured"):
                    matrix.rtt_s(source, target)
    assert (len(matrix.regions), len(matrix.measured_s), blanks) == (51, 2350, 150)


def test_regions_of_either_list_are_known(shared_data):
    """A region that occurs only as a row or only as a column is a region, and its one direction is told."""
    matrix = rtt_matrix.read(shared_data("cloud/latency.csv"))
    assert {"Indonesia Central", "West India"} <= set(matrix.regions)
    assert matrix.rtt_s("Australia Central", "West India") > 0
    with pytest.raises(InputError, match=r"other direction was: .* ms from 'Australia Central'"):
        matrix.rtt_s("West India", "Australia Central")


def test_directions_differ(made):
    """The matrix is read source down and target across, and never mirrored."""
    matrix = rtt_matrix.read(made(SMALL))
    assert matrix.rtt_s("North", "South") == pytest.approx(0.080)
    assert matrix.rtt_s("South", "North") == pytest.approx(0.082)
    assert matrix.rtt_s("East", "West") == 0
    assert matrix.regions == ("North", "South", "East", "West")
    assert pickle.loads(pickle.dumps(matrix)) == matrix  # noqa: S301 - this project's own value, made in this test


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("Nort", "South", ["no region 'Nort'", "Did you mean 'North'"]),
        ("North", "south", ["no region 'south'", "'South'"]),
        ("North", "North", ["'North' to 'North'", "within a region"]),
        ("South", "West", ["'South' to 'West'", "Neither"]),
        ("West", "North", ["'West' to 'North'", "41.5 ms from 'North'"]),
    ],
)
def test_names_what_is_not_known(made, source, target, words):
    """Unknown regions and blank pairs are refused with the nearest name or what was measured instead."""
    path = made(SMALL)
    with pytest.raises(InputError) as caught:
        rtt_matrix.read(path).rtt_s(source, target)
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"Source,North\n", ["header but no rows"]),
        (b"Source\nNorth\n", ["row 1", "one column only"]),
        (b"Source,North,\nNorth,1,2\n", ["row 1", "no name"]),
        (b"Source,North,North\nNorth,1,2\n", ["'North'", "twice"]),
        (b"Source,North\nNorth,1\nNorth,2\n", ["row 3", "'North'", "row 2"]),
        (b"Source,North\n ,1\n", ["row 2", "no name"]),
        (b"Source,North\nNorth,\nSouth,\n", ["no pair"]),
        (b"Source,North\nNorth,-1\n", ["row 2", "'North'", "'-1'"]),
        (b"Source,North\nNorth,n/a\n", ["row 2", "'North'", "'n/a'"]),
        (b"Source,North\nNorth,nan\n", ["row 2", "'North'", "'nan'"]),
        (b"Source,North,South\nNorth,1\n", ["row 2", "2 values"]),
        (b"Source,North\nNorth,\xff\n", ["row 2", "UTF-8"]),
    ],
)
def test_names_what_is_wrong(made, content, words):
    """Each broken file ends as one message with the path, the row or column, and what was found there."""
    path = made(content)
    with pytest.raises(InputError) as caught:
        rtt_matrix.read(path)
    assert all(word in str(caught.value) for word in [str(path), *words]), str(caught.value)
