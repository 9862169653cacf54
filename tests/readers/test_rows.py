from __future__ import annotations

import contextlib
import csv
import gzip
import io
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workloads.errors import InputError
from workloads.readers._rows import csv_rows, json_document, json_lines, number, open_text

# Everything UTF-8 can hold but NUL, which marks a file as binary; quotes, commas and line ends come up often.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0")
TEXT = st.text(st.one_of(st.sampled_from('",\r\n \ufeff'), CHARACTERS), max_size=30)
TABLE = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(table=TABLE, end=st.sampled_from(["\n", "\r\n"]), packed=st.booleans())
def test_csv_text_survives_a_round_trip(tmp_path: Path, table: list[tuple[str, str]], end: str, packed: bool) -> None:
    """Whatever text the standard writer puts in a table comes back character for character, from gzip too."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("left", "right"), *table])
    content = stream.getvalue().encode()
    path = tmp_path / "table.csv"
    path.write_bytes(gzip.compress(content) if packed else content)
    rows = [values for _, values in csv_rows(path, ("left", "right"))]
    assert rows == [{"left": left, "right": right} for left, right in table]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever a file holds, reading ends in rows or in an InputError, never in another error."""
    path = tmp_path / "junk"
    path.write_bytes(content)
    for reader in (lambda: list(csv_rows(path, ())), lambda: list(json_lines(path)), lambda: json_document(path)):
        with contextlib.suppress(InputError):
            reader()


def test_row_numbers_are_the_lines_rows_start_on(tmp_path: Path) -> None:
    """A value over three lines and a blank line push the rows after them down."""
    path = tmp_path / "table.csv"
    path.write_text('text\n"one\n\nthree"\n\nlast\n', encoding="utf-8")
    assert list(csv_rows(path, ("text",))) == [(2, {"text": "one\n\nthree"}), (6, {"text": "last"})]


def test_fields_may_be_larger_than_csv_allows_by_default(tmp_path: Path) -> None:
    """An answer of 300,000 characters is read whole."""
    path = tmp_path / "table.csv"
    path.write_text("text\n" + "x" * 300_000, encoding="utf-8")
    ((_, values),) = csv_rows(path, ("text",))
    assert values == {"text": "x" * 300_000}


def test_aliases_take_the_name_the_reader_uses(tmp_path: Path) -> None:
    """A column under its other name, with blanks around it, is found and renamed."""
    path = tmp_path / "table.csv"
    path.write_text("SessionID , tokens\nabc,5\n", encoding="utf-8")
    rows = list(csv_rows(path, ("session", "tokens"), {"session": ("SessionID",)}))
    assert rows == [(2, {"session": "abc", "tokens": "5"})]


@pytest.mark.parametrize("line", [10, 20_000])
@pytest.mark.parametrize(("junk", "problem"), [(b"a\xffb", "byte 0xff is not valid UTF-8"), (b"a\0b", "NUL byte")])
def test_bytes_that_are_not_text_are_found_on_their_line(tmp_path: Path, line: int, junk: bytes, problem: str) -> None:
    """The line of a bad byte is right near the start of a file and far beyond the first block read."""
    path = tmp_path / "table.txt"
    path.write_bytes(b"some text\n" * (line - 1) + junk + b"\nmore\n")
    with pytest.raises(InputError, match=f"row {line}: .*{problem}"), open_text(path) as file:
        file.read()


def test_a_character_across_two_blocks_is_no_error(tmp_path: Path) -> None:
    """Characters of several bytes may fall on the border between two blocks read."""
    path = tmp_path / "text.txt"
    path.write_text("a" + "€" * 200_000, encoding="utf-8")
    with open_text(path) as file:
        assert file.read() == "a" + "€" * 200_000


def test_a_file_that_breaks_off_within_a_character_is_refused(tmp_path: Path) -> None:
    """A download cut off in the middle of a character is not read as a shorter text."""
    path = tmp_path / "text.txt"
    path.write_bytes("price: 5 €".encode()[:-1])
    with pytest.raises(InputError, match="row 1: byte 0xe2 is not valid UTF-8"), open_text(path) as file:
        file.read()


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    """A slip in a file's name is answered with the name that was meant."""
    (tmp_path / "azure_2023.csv").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match=r"there is no such file\. Did you mean 'azure_2023\.csv'\?"):
        open_text(tmp_path / "azure_2032.csv")


@pytest.mark.parametrize(
    ("text", "value"),
    [("12", 12), ("+12", 12), (" 12.0 ", 12), ("1.2e1", 12), (12.0, 12), ("9007199254740993", 2**53 + 1)],
)
def test_whole_numbers(text: object, value: int) -> None:
    """Every way to write a whole number gives it exactly, beyond what a float can hold too."""
    found = number(text, "p", 1, "c", integer=True)
    assert found == value
    assert type(found) is int


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "nan",
        "inf",
        "-Infinity",
        "1_000",
        "\uff11\uff12",
        "0x10",
        "1e999",
        "five",
        "1,5",
        ".",
        None,
        True,
        [1],
        math.nan,
    ],
)
@pytest.mark.parametrize("integer", [False, True])
def test_what_is_not_a_number(text: object, integer: bool) -> None:
    """float() and int() would take some of these; none is a number in a data file."""
    with pytest.raises(InputError, match=r"path: row 3, column 'tokens': .* is not a (whole|finite) number"):
        number(text, "path", 3, "tokens", integer=integer)


@pytest.mark.parametrize("text", ["12.5", str(2**63), "9" * 5000, 10**400])
def test_whole_numbers_have_64_bits(text: object) -> None:
    """A fraction and a number too long for a results column are refused where a whole number is asked for."""
    with pytest.raises(InputError, match="is not a whole number"):
        number(text, "path", 3, "tokens", integer=True)
