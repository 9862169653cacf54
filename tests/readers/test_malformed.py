"""Every fault that a data file can have ends as one InputError that names the file and where in it the fault is."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from workloads.errors import InputError
from workloads.readers import azure_llm, burstgpt, intercode, m4a1, mooncake, routellm

READERS = (azure_llm, burstgpt, mooncake, routellm, intercode, m4a1)
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
TIME = "2023-11-16 18:17:03.9799600"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
MOON = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n'

EPISODES: dict[str, Any] = {
    "5": {
        "task_id": 5,
        "query": "Which?",
        "turn_history": {
            "actions": ["a", "b"],
            "observations": ["x", "y"],
            "rewards": [0, 1],
            "valid_action": [True, True],
        },
        "summary": {"max_reward": 1, "turns_max": 10},
    }
}
DIALOGUES: list[Any] = [
    {
        "id": 0,
        "image_paths": ["a.jpg", "b.jpg"],
        "interactions": [
            {
                "question": "Why?",
                "task_cat": "Query",
                "action": 1,
                "image_index": [0],
                "answer": "So.",
                "score": 0.5,
                "interaction_time": 2.0,
                "usage_cost": 0.001,
            }
        ],
        "association_score": [[0.2, 0.3]],
    }
]


def edited(document: Any, *path: Any, to: Any) -> str:
    """The document as JSON with one value replaced, or removed where `to` is `...`."""
    result = copy.deepcopy(document)
    target = result
    for step in path[:-1]:
        target = target[step]
    if to is ...:
        del target[path[-1]]
    else:
        target[path[-1]] = to
    return json.dumps(result)


CASES: list[tuple[str, ModuleType, str, tuple[str, ...]]] = [
    ("header only", azure_llm, AZURE, ("header but no rows",)),
    ("blank lines only", azure_llm, "\r\n\r\n", ("row 1", "'TIMESTAMP' is missing")),
    ("column missing", azure_llm, f"TIMESTAMP,ContextTokens\n{TIME},5\n", ("row 1", "'GeneratedTokens' is missing")),
    ("column misspelt", azure_llm, f"TIMESTAMP,ContextToken,GeneratedTokens\n{TIME},5,5\n", ("for 'ContextToken'",)),
    ("column in other case", azure_llm, f"timestamp,ContextTokens,GeneratedTokens\n{TIME},5,5\n", ("for 'timestamp'",)),
    (
        "wrong delimiter",
        azure_llm,
        f"TIMESTAMP;ContextTokens;GeneratedTokens\n{TIME};5;5\n",
        ("row 1", "TIMESTAMP;Con"),
    ),
    ("column twice", azure_llm, f"TIMESTAMP,ContextTokens,GeneratedTokens,TIMESTAMP\n{TIME},5,5,\n", ("occurs twice",)),
    ("row too short", azure_llm, f"{AZURE}{TIME},5,5\r\n{TIME},5\r\n", ("row 3", "2 values", "3 columns")),
    ("row too long", azure_llm, f"{AZURE}{TIME},5,5,5\r\n", ("row 2", "4 values")),
    ("not a time", azure_llm, f"{AZURE}yesterday,5,5\r\n", ("row 2, column 'TIMESTAMP'", "'yesterday' is not a time")),
    ("no such day", azure_llm, f"{AZURE}2023-02-29 00:00:00,5,5\r\n", ("row 2, column 'TIMESTAMP'", "2023-02-29")),
    ("bad fraction", azure_llm, f"{AZURE}{TIME}x,5,5\r\n", ("row 2, column 'TIMESTAMP'",)),
    ("time missing", azure_llm, f"{AZURE},5,5\r\n", ("row 2, column 'TIMESTAMP'",)),
    ("out of order", azure_llm, f"{AZURE}{TIME},5,5\n2023-11-16 18:17:03.9799599,5,5\n", ("row 3", "Sort the rows")),
    ("text in a number", azure_llm, f"{AZURE}{TIME},many,5\r\n", ("row 2, column 'ContextTokens'", "'many'")),
    ("nan", azure_llm, f"{AZURE}{TIME},5,NaN\r\n", ("row 2, column 'GeneratedTokens'", "'NaN'")),
    ("negative", azure_llm, f"{AZURE}{TIME},-5,5\r\n", ("row 2, column 'ContextTokens'", "too small", ">= 0")),
    ("fraction of a token", azure_llm, f"{AZURE}{TIME},5,5.5\r\n", ("row 2, column 'GeneratedTokens'", "whole")),
    ("number missing", azure_llm, f"{AZURE}{TIME},,5\r\n", ("row 2, column 'ContextTokens'", "empty value")),
    ("other format", burstgpt, f"{AZURE}{TIME},5,5\r\n", ("row 1", "'Timestamp' is missing", "for 'TIMESTAMP'")),
    ("infinite time", burstgpt, f"{BURST}inf,GPT-4,1,1,2,API log\n", ("row 2, column 'Timestamp'", "'inf'")),
    ("negative time", burstgpt, f"{BURST}-1,GPT-4,1,1,2,API log\n", ("row 2, column 'Timestamp'",)),
    ("out of order", burstgpt, f"{BURST}5,GPT-4,1,1,2,x\n4,GPT-4,1,1,2,x\n", ("row 3, column 'Timestamp'", "Sort")),
    ("negative tokens", burstgpt, f"{BURST}5,GPT-4,1,-1,0,x\n", ("row 2, column 'Response tokens'",)),
    ("unclosed quote", burstgpt, f'{BURST}5,"GPT-4,1,1,2,x\n6,y,1,1,2,x\n', ("row 2", "not valid CSV")),
    ("truncated line", mooncake, MOON + MOON[:40], ("row 2", "not valid JSON")),
    ("a list", mooncake, MOON + "[1, 2]\n", ("row 2", "a list of 2 entries")),
    ("field missing", mooncake, MOON.replace("output_length", "output_lenght"), ("row 1", "for 'output_lenght'")),
    ("field twice", mooncake, MOON.replace("output_length", "input_length"), ("row 1", "'input_length' occurs twice")),
    ("nan", mooncake, MOON.replace("600", "NaN"), ("row 1", "NaN is not a JSON number")),
    ("overflow", mooncake, MOON.replace("600", "1e999"), ("row 1, column 'input_length'",)),
    ("number in quotes", mooncake, MOON.replace("600", '"600"'), ("row 1, column 'input_length'", "without quotes")),
    ("negative", mooncake, MOON.replace(": 5", ": -5"), ("row 1, column 'output_length'",)),
    ("out of order", mooncake, MOON.replace(": 0,", ": 9,") + MOON, ("row 2, column 'timestamp'", "Sort")),
    ("ids as text", mooncake, MOON.replace("[0, 1]", '["0", "1"]'), ("row 1, column 'hash_ids'",)),
    ("ids not a list", mooncake, MOON.replace("[0, 1]", "7"), ("row 1, column 'hash_ids'", "number 7")),
    ("too many ids", mooncake, MOON.replace("[0, 1]", "[0, 1, 2, 3]"), ("row 1, column 'hash_ids'", "4 blocks")),
    ("no prompt column", routellm, "question,a\nq,1\n", ("row 1", "'prompt' is missing", "'question'")),
    ("no model", routellm, "prompt\nq\n", ("row 1", "no model")),
    ("index column", routellm, ",prompt,a\n0,q,1\n", ("row 1", "no name", "index")),
    ("not an outcome", routellm, "prompt,a\nq,True\nq,yes\n", ("row 3, column 'a'", "'yes'", "True, False")),
    ("outcome missing", routellm, 'prompt,a\n"q\nq",\n', ("row 2, column 'a'",)),
    ("empty prompt", routellm, "prompt,a\n,True\n", ("row 2, column 'prompt'",)),
    ("broken quote", routellm, 'prompt,a\n"q"q,True\n', ("row 2", "not valid CSV")),
    ("truncated", intercode, json.dumps(EPISODES, indent=1)[:-20], ("row ", "not valid JSON")),
    ("a list", intercode, json.dumps(list(EPISODES.values())), ("a list of 1 entries",)),
    ("no episodes", intercode, "{}", ("an object of 0 fields",)),
    ("episode is text", intercode, '{"5": "done"}', ("episode 5", "text")),
    ("task twice", intercode, json.dumps(EPISODES | {"6": EPISODES["5"]}), ("episode 6, field 'task_id'", "twice")),
    (
        "no history",
        intercode,
        edited(EPISODES, "5", "turn_history", to=...),
        ("episode 5", "'turn_history' is missing"),
    ),
    ("no actions", intercode, edited(EPISODES, "5", "turn_history", "actions", to=[]), ("episode 5, field 'actions'",)),
    ("action a number", intercode, edited(EPISODES, "5", "turn_history", "actions", 0, to=1), ("field 'actions'",)),
    (
        "rewards short",
        intercode,
        edited(EPISODES, "5", "turn_history", "rewards", 1, to=...),
        ("field 'rewards'", "1 ent"),
    ),
    ("observations gone", intercode, edited(EPISODES, "5", "turn_history", "observations", to=[]), ("'observations'",)),
    (
        "validity text",
        intercode,
        edited(EPISODES, "5", "turn_history", "valid_action", 0, to="yes"),
        ("'valid_action'",),
    ),
    (
        "reward null",
        intercode,
        edited(EPISODES, "5", "turn_history", "rewards", 0, to=None),
        ("field 'rewards'", "null"),
    ),
    (
        "grade not the best",
        intercode,
        edited(EPISODES, "5", "summary", "max_reward", to=0.5),
        ("field 'max_reward'", "0.5"),
    ),
    ("query a list", intercode, edited(EPISODES, "5", "query", to=["Which?"]), ("episode 5, field 'query'",)),
    ("hardness a number", intercode, edited(EPISODES, "5", "hardness", to=3), ("episode 5, field 'hardness'",)),
    ("an object", m4a1, json.dumps(DIALOGUES[0]), ("an object of 4 fields",)),
    ("no dialogues", m4a1, "[]", ("a list of 0 entries",)),
    ("deeply nested", m4a1, "[" * 100_000, ("m4a1.json", "taken as data")),
    ("id twice", m4a1, json.dumps(DIALOGUES * 2), ("dialogue 1, field 'id'", "twice")),
    (
        "empty dialogue",
        m4a1,
        edited(DIALOGUES, 0, "interactions", to=[]),
        ("dialogue 0, field 'interactions'", "empty"),
    ),
    (
        "score missing",
        m4a1,
        edited(DIALOGUES, 0, "interactions", 0, "score", to=...),
        ("dialogue 0, turn 0", "'score'"),
    ),
    ("score nan", m4a1, json.dumps(DIALOGUES).replace("0.5", "NaN"), ("NaN",)),
    ("score text", m4a1, edited(DIALOGUES, 0, "interactions", 0, "score", to="5"), ("turn 0, field 'score'",)),
    (
        "time negative",
        m4a1,
        edited(DIALOGUES, 0, "interactions", 0, "interaction_time", to=-1),
        ("'interaction_time'",),
    ),
    ("question empty", m4a1, edited(DIALOGUES, 0, "interactions", 0, "question", to=" "), ("field 'question'",)),
    (
        "no such action",
        m4a1,
        edited(DIALOGUES, 0, "interactions", 0, "action", to=2),
        ("field 'action'", "no action 2"),
    ),
    (
        "local with image",
        m4a1,
        edited(DIALOGUES, 0, "interactions", 0, "action", to=0),
        ("field 'image_index'", "local"),
    ),
    ("no such image", m4a1, edited(DIALOGUES, 0, "interactions", 0, "image_index", to=[2]), ("field 'image_index'",)),
    ("image twice", m4a1, edited(DIALOGUES, 0, "interactions", 0, "image_index", to=[0, 0]), ("field 'image_index'",)),
    (
        "association short",
        m4a1,
        edited(DIALOGUES, 0, "association_score", 0, 0, to=...),
        ("'association_score'", "of 2"),
    ),
    ("association gone", m4a1, edited(DIALOGUES, 0, "association_score", to=[]), ("field 'association_score'", "of 1")),
    ("image path null", m4a1, edited(DIALOGUES, 0, "image_paths", 0, to=None), ("field 'image_paths'",)),
]


def name(module: ModuleType) -> str:
    """The format a reader reads."""
    return module.__name__.rpartition(".")[2]


def refusal(reader: Callable[[Path], Iterator[Any]], path: Path) -> str:
    """The text of the InputError with which reading the file ends."""
    with pytest.raises(InputError) as caught:
        list(reader(path))
    return str(caught.value)


@pytest.mark.parametrize(
    ("module", "text", "parts"),
    [pytest.param(*case[1:], id=f"{name(case[1])}: {case[0]}") for case in CASES],
)
def test_a_fault_is_named(tmp_path: Path, module: ModuleType, text: str, parts: tuple[str, ...]) -> None:
    """The message starts with the path and names the row or field and what was found there."""
    path = tmp_path / f"{name(module)}.json"
    path.write_text(text, encoding="utf-8", newline="")
    message = refusal(module.read, path)
    assert message.startswith(str(path))
    assert all(part in message for part in parts), message
    assert len(message) < 500 + len(str(path))


@pytest.mark.parametrize("text", [json.dumps(EPISODES), json.dumps(DIALOGUES)])
def test_the_documents_under_test_are_sound(tmp_path: Path, text: str) -> None:
    """Unedited, the JSON documents above are read: each case has only the fault it is named after."""
    path = tmp_path / "sound.json"
    path.write_text(text, encoding="utf-8")
    assert list((intercode if text[0] == "{" else m4a1).read(path))


@pytest.mark.parametrize("module", READERS, ids=name)
class TestEveryReader:
    """Faults that do not depend on the format."""

    def test_missing_file(self, tmp_path: Path, module: ModuleType) -> None:
        """A missing file is named."""
        path = tmp_path / "nowhere" / "data.csv"
        assert f"{path}: there is no such file" in refusal(module.read, path)

    def test_directory(self, tmp_path: Path, module: ModuleType) -> None:
        """A folder is not a file."""
        assert f"{tmp_path}: is a directory" in refusal(module.read, tmp_path)

    def test_empty_file(self, tmp_path: Path, module: ModuleType) -> None:
        """An empty file is no data set, plain or compressed."""
        for content in (b"", gzip.compress(b"")):
            (tmp_path / "data").write_bytes(content)
            assert f"{tmp_path / 'data'}: the file is empty" in refusal(module.read, tmp_path / "data")

    def test_binary_file(self, tmp_path: Path, module: ModuleType) -> None:
        """A picture, a UTF-16 text and a Parquet file are not UTF-8 text."""
        for content in (b"\x89PNG\r\n\x1a\n\0\0", "prompt,a\n".encode("utf-16"), b"PAR1\x15\x04\x15\xff"):
            (tmp_path / "data").write_bytes(content)
            assert "UTF-8 text" in refusal(module.read, tmp_path / "data")

    def test_broken_gzip(self, tmp_path: Path, module: ModuleType) -> None:
        """A gzip file that breaks off or was damaged is not read as a shorter one."""
        packed = gzip.compress((AZURE + f"{TIME},5,5\r\n" * 5000).encode(), mtime=0)
        damaged = packed[:-8] + bytes(4) + packed[-4:]
        for content in (packed[: len(packed) // 2], packed[:12], damaged):
            (tmp_path / "data.gz").write_bytes(content)
            assert str(tmp_path / "data.gz") in refusal(module.read, tmp_path / "data.gz")

    def test_git_lfs_pointer(self, tmp_path: Path, module: ModuleType) -> None:
        """A checkout without Git LFS has a three-line pointer where the data should be."""
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4bb37836\nsize 52283111\n"
        (tmp_path / "data.csv").write_text(pointer, encoding="utf-8")
        assert "git lfs pull" in refusal(module.read, tmp_path / "data.csv")

    def test_describes_its_format(self, tmp_path: Path, module: ModuleType) -> None:
        """FORMAT is one line for listings."""
        assert module.FORMAT
        assert "\n" not in module.FORMAT
