"""The journal of a recording: what was put there is there next time, whatever happened in between."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.errors import InputError
from workloads.recording_journal import Journal, journal_path
from workloads.task import Completion

OF: Mapping[str, Any] = {"models": {"slm": {"source": "pair/slm"}}, "sampling": "greedy"}


def answer(number: int) -> Completion:
    """An answer like no other."""
    return Completion("slm", f"find the mother of person {number}\n", 5 + number, 3, 340, mean_logprob=-number / 8)


def key(number: int) -> str:
    """Its key."""
    return f"{number:032x}"


@pytest.fixture
def journal_file(tmp_path: Path) -> Iterator[Path]:
    """A closed journal of ten answers."""
    path = journal_path(tmp_path / "out.jsonl.gz")
    with Journal(path, OF) as journal:
        for number in range(10):
            journal.put(key(number), answer(number))
    yield path
    assert [p.name for p in tmp_path.iterdir()] in ([], [path.name])


def held(journal: Journal, count: int = 20) -> list[int]:
    """Numbers of the answers that are there, each as it was put."""
    found = [number for number in range(count) if journal.get(key(number)) is not None]
    for number in found:
        same = journal.get(key(number))
        assert same is not None
        assert same._replace(prefill_s=0, decode_s=0, score=0) == answer(number)._replace(
            prefill_s=0, decode_s=0, score=0
        )
    return found


def test_answers_are_there_next_time(journal_file: Path) -> None:
    """And while it is open; new ones join them."""
    with Journal(journal_file, OF) as journal:
        assert (journal.kept, journal.damaged, len(journal)) == (10, 0, 10)
        journal.put(key(15), answer(15))
        assert held(journal) == [*range(10), 15]
        assert len(journal) == 11
    with Journal(journal_file, OF) as journal:
        assert held(journal) == [*range(10), 15]


def test_a_journal_cut_short_anywhere_keeps_what_is_whole(journal_file: Path) -> None:
    """After every byte of the file: whole lines count, the torn one goes, and appending afterwards does no harm."""
    content = journal_file.read_bytes()
    lines = content.count(b"\n")
    assert lines == 11
    for size in range(0, len(content), 41):
        journal_file.write_bytes(content[:size])
        whole = max(0, content[:size].count(b"\n") - 1)
        with Journal(journal_file, OF) as journal:
            assert (len(journal), journal.damaged) == (whole, 0)
            journal.put(key(15), answer(15))
        with Journal(journal_file, OF) as journal:
            assert held(journal) == [*range(whole), 15]


@settings(max_examples=30)
@given(row=st.integers(1, 10), place=st.integers(0, 60), byte=st.integers(0, 255))
def test_a_damaged_line_costs_no_other(
    row: int, place: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any byte of a line's first 60 changed: at most that answer (and the next, if the line end moved) is lost."""
    path = tmp_path_factory.mktemp("journal") / "j"
    with Journal(path, OF) as journal:
        for number in range(10):
            journal.put(key(number), answer(number))
    lines = path.read_bytes().splitlines(keepends=True)
    line = bytearray(lines[row])
    line[place] = byte
    lines[row] = bytes(line)
    path.write_bytes(b"".join(lines))
    with Journal(path, OF) as journal:
        kept = {number for number in range(10) if number + 1 != row and journal.get(key(number)) is not None}
        assert kept == set(range(10)) - {row - 1}
        assert journal.damaged <= 2


@pytest.mark.parametrize(
    ("of", "differs"),
    [
        ({**OF, "sampling": "temperature 1"}, """its 'sampling' is "greedy", now it is "temperature 1\""""),
        (
            {"models": {"slm": {"source": "other"}}, "sampling": "greedy"},
            """its 'models.slm.source' is "pair/slm", now it is "other\"""",
        ),
        ({**OF, "timings": True}, "its 'timings' is null, now it is true"),
    ],
)
def test_a_journal_of_something_else_is_refused(of: Mapping[str, Any], differs: str, journal_file: Path) -> None:
    """The message says in what it differs, and the journal stays as it was."""
    before = journal_file.read_bytes()
    with pytest.raises(InputError, match=re.escape(differs)):
        Journal(journal_file, of)
    assert journal_file.read_bytes() == before


@pytest.mark.parametrize("content", [b"hello\n", b"{}\n", b"[]\n", b'{"isthmus_journal":2,"of":{},"sha256":""}\n'])
def test_another_file_in_its_place_is_refused(content: bytes, journal_file: Path) -> None:
    """Somebody's file is not overwritten."""
    journal_file.write_bytes(content)
    with pytest.raises(InputError, match="not a journal of this Isthmus"):
        Journal(journal_file, OF)
    assert journal_file.read_bytes() == content


def test_two_cannot_write_at_the_same_time(journal_file: Path) -> None:
    """The second is told so at once, and the first goes on."""
    pytest.importorskip("fcntl")
    with Journal(journal_file, OF) as journal:
        with pytest.raises(InputError, match="another process is recording there"):
            Journal(journal_file, OF)
        journal.put(key(15), answer(15))
    with Journal(journal_file, OF) as journal:
        assert len(journal) == 11


def test_a_finished_journal_goes(journal_file: Path) -> None:
    """And can be begun anew."""
    with Journal(journal_file, OF) as journal:
        journal.discard()
    assert not journal_file.exists()
    with Journal(journal_file, {}) as journal:
        assert journal.kept == 0


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    """One sentence."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        Journal(tmp_path / "file" / "j", OF)


def test_a_full_disk_is_one_clear_message_and_no_half_line(journal_file: Path) -> None:
    """A limit on the size of files stands for it: what was written before stays whole."""
    resource = pytest.importorskip("resource")
    before = journal_file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(journal_file, OF) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 50, limits[1]))
        try:
            for _ in range(2):
                with pytest.raises(InputError, match="cannot be written"):
                    journal.put(key(15), answer(15))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert held(journal) == list(range(10))
    assert journal_file.read_bytes() == before


def test_only_named_fields_are_kept(tmp_path: Path) -> None:
    """Whatever else an answer carries stays out."""

    class Answer(Completion):
        headers: dict[str, str]

    told = Answer(*answer(1))
    told.headers = {"authorization": "Bearer sk-secret"}
    with Journal(tmp_path / "j", OF) as journal:
        journal.put(key(1), told)
    assert "secret" not in (tmp_path / "j").read_text()
    assert set(json.loads((tmp_path / "j").read_text().splitlines()[1])) == {
        "key", "model", "text", "prompt_tokens", "completion_tokens", "download_bytes", "mean_logprob"
    }  # fmt: skip
