"""What was spent at upstreams, kept in a file from one process to the next."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serve.upstream.limits import Spending
from serve.upstream.spending import SpendingBook
from workloads.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a book lies, in a folder that is not there yet."""
    return tmp_path / "run" / "spending"


def test_a_book_goes_on_where_it_stopped(path: Path) -> None:
    """Of each tier the last line counts, also in the next process."""
    with SpendingBook(path) as book:
        assert book.open("cloud", 5.0) == Spending()
        book.note("cloud", Spending(1.0, 0.5))
        book.note("other", Spending(0.25, 0.0))
        book.note("cloud", Spending(1.25, 0.0, retried=2))
        assert book.lines() == ["upstream of tier cloud: 1.2500 USD; 2 retries; limit 5 USD"]
    with SpendingBook(path) as book:
        assert book.open("cloud", 5.0) == Spending(1.25, 0.0, retried=2)
        assert book.open("other", None) == Spending(0.25, 0.0)
        book.note("other", Spending(0.25, 0.125))
        assert book.lines()[1] == (
            "upstream of tier other: 0.2500 USD, and at most 0.1250 more for calls whose usage never came; 0 retries"
        )
        book.discard()
    assert not path.exists()


def test_without_a_file_a_book_lasts_as_long_as_its_process() -> None:
    """Several groups of cells share one."""
    book = SpendingBook()
    book.open("cloud", 5.0)
    book.note("cloud", Spending(1.0, 0.5))
    assert book.open("cloud", 5.0) == Spending(1.0, 0.5)


def test_a_line_that_a_kill_cut_short_says_nothing(path: Path) -> None:
    """It was to be written before anything was spent; the next line is whole again."""
    with SpendingBook(path) as book:
        book.open("cloud", None)
        book.note("cloud", Spending(1.0, 0.5))
    path.write_bytes(path.read_bytes() + b'{"tier":"cloud","conf')
    with SpendingBook(path) as book:
        assert book.open("cloud", None) == Spending(1.0, 0.5)
        book.note("cloud", Spending(2.0, 0.0))
    assert [json.loads(line)["confirmed_usd"] for line in path.read_text().splitlines()] == [1.0, 2.0]


@pytest.mark.parametrize("line", [" ", "7", '{"tier":"cloud"}', '{"tier":"c","confirmed_usd":"x"}', "[" * 100_000])
def test_a_damaged_book_is_refused(path: Path, line: str) -> None:
    """Dollars are not guessed: the message names the file and what to do."""
    path.parent.mkdir()
    path.write_text(f"{line}\n")
    with pytest.raises(
        InputError, match=r"spending \(dollars spent so far\): holds a line that is damaged.*Ask the provider"
    ):
        SpendingBook(path).open("cloud", None)


def test_two_processes_do_not_spend_from_one_book(path: Path) -> None:
    """The second one is told, and the file stays as it was."""
    code = f"from pathlib import Path; from serve.upstream.spending import SpendingBook; SpendingBook(Path({str(path)!r})).open('t', 1.0)"
    with SpendingBook(path) as book:
        book.open("cloud", None)
        book.note("cloud", Spending(1.0, 0.0))
        other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert other.returncode != 0
    assert "another process is spending on the same run" in other.stderr
    assert len(path.read_text().splitlines()) == 1


def test_a_book_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    """Before anything is spent."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be read"):
        SpendingBook(tmp_path / "file" / "spending").open("cloud", None)
