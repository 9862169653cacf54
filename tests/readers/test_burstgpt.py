from __future__ import annotations

from pathlib import Path

from workloads.readers import burstgpt
from workloads.readers.trace_request import TraceRequest

FIRST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,GPT-4,1087,0,1087,API log
45,ChatGPT,0,0,0,Conversation log
"""
LATER = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,1722ac82-0a46,43,GPT-4,906,446,1352,Conversation log
19440161.5,,2.5,ChatGPT,36,29,65,API log
19440192.0,,,ChatGPT,36,0,36,API log
"""


def write(folder: Path, text: str) -> Path:
    """A file of this text."""
    path = folder / "burst.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_the_first_files(tmp_path: Path) -> None:
    """Six columns: times count from the first row, and a request without an answer is a failure that stays."""
    assert list(burstgpt.read(write(tmp_path, FIRST))) == [
        TraceRequest(0.0, 472, 18, model="ChatGPT", kind="Conversation log"),
        TraceRequest(40.0, 1087, 0, failed=True, model="GPT-4", kind="API log"),
        TraceRequest(40.0, 0, 0, failed=True, model="ChatGPT", kind="Conversation log"),
    ]


def test_reads_later_files_whose_columns_moved(tmp_path: Path) -> None:
    """Eight columns, two of them in between: sessions and elapsed times are kept, blanks stay blank."""
    assert list(burstgpt.read(write(tmp_path, LATER))) == [
        TraceRequest(0.0, 906, 446, (), False, "1722ac82-0a46", "GPT-4", "Conversation log", 43.0),
        TraceRequest(51.5, 36, 29, (), False, "", "ChatGPT", "API log", 2.5),
        TraceRequest(82.0, 36, 0, (), True, "", "ChatGPT", "API log", None),
    ]


def test_accepts_the_announced_name_of_the_session_column(tmp_path: Path) -> None:
    """The data's own page also calls the column SessionID."""
    path = write(tmp_path, LATER.replace("Session ID", "SessionID"))
    assert [request.session for request in burstgpt.read(path)] == ["1722ac82-0a46", "", ""]


def test_token_counts_written_as_floats_are_whole(tmp_path: Path) -> None:
    """A column that once had gaps is often written as 472.0; that is still 472 tokens."""
    (request, *_) = burstgpt.read(write(tmp_path, FIRST.replace(",472,", ",472.0,")))
    assert request.prompt_tokens == 472
    assert type(request.prompt_tokens) is int
