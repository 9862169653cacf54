"""The file of a recording, version 2: what is in it, and that no damage goes unnoticed."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.errors import InputError, RecordingError
from workloads.recording import Recording, read_recording, recordable, write_recording
from workloads.recording_file import Header, RecordingWriter
from workloads.task import Completion, Message, Task

OPENING = (Message("user", "6 * 7?"),)
AFTER = (*OPENING, Message("assistant", "compute 6 * 7"), Message("tool", "42"))
LINES = [
    '{"isthmus_recording":2,"models":["slm","llm"],"sampling":"greedy","made":{"depth":2}}',
    '{"task":{"id":"t","prompt":"6 * 7?","family":"sums","answer":"42"}}',
    '{"add":[["user","6 * 7?"]],"answers":[{"model":"slm","text":"compute 6 * 7","prompt_tokens":5,"completion_tokens":6,'
    '"download_bytes":313},{"model":"llm","text":"answer 42","prompt_tokens":5,"completion_tokens":3,"download_bytes":309}]}',
    '{"keep":1,"add":[["assistant","compute 6 * 7"],["tool","42"]],"answers":[{"model":"llm","text":"answer 42",'
    '"prompt_tokens":15,"completion_tokens":3,"download_bytes":309,"mean_logprob":-0.125}]}',
]


def ended(lines: list[str], tasks: int = 1, answers: int = 3) -> str:
    """Lines with the last one that vouches for them."""
    content = "".join(f"{line}\n" for line in lines)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f'{content}{{"end":{{"tasks":{tasks},"answers":{answers},"sha256":"{digest}"}}}}\n'


def example() -> Recording:
    """What LINES say, put together in another order."""
    recording = Recording(["slm", "llm"], made={"depth": 2})
    recording.tasks.append(Task("t", "6 * 7?", "42", "sums"))
    recording.add("t", AFTER, Completion("llm", "answer 42", 15, 3, 309, mean_logprob=-0.125))
    recording.add("t", OPENING, Completion("llm", "answer 42", 5, 3, 309))
    recording.add("t", OPENING, Completion("slm", "compute 6 * 7", 5, 6, 313))
    return recording


def read_text(folder: Path, content: str | bytes) -> Recording:
    """A recording with this content, read."""
    path = folder / "r.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_recording(path)


def test_the_file_is_what_its_description_says(tmp_path: Path) -> None:
    """Header, task, each conversation as what it adds to the one before, and the line that vouches for all of it."""
    write_recording(example(), tmp_path / "r.jsonl")
    assert (tmp_path / "r.jsonl").read_text() == ended(LINES)
    back = read_recording(tmp_path / "r.jsonl")
    assert back.made == {"depth": 2}
    assert set(back.answers) == {("slm", OPENING), ("llm", OPENING), ("llm", AFTER)}
    assert back.answers["llm", AFTER].mean_logprob == -0.125


def test_equal_messages_are_written_once(tmp_path: Path) -> None:
    """A conversation of many steps costs its last step only: the file grows with the answers, not with their square."""
    sizes = []
    for steps in (20, 40):
        recording, messages = Recording(["slm"]), tuple[Message, ...](OPENING)
        recording.tasks.append(Task("t", "6 * 7?"))
        for number in range(steps):
            recording.add("t", messages, Completion("slm", f"step {number:03d}", 5, 3, 309))
            messages = (*messages, Message("assistant", f"step {number:03d}"), Message("tool", "x" * 200))
        write_recording(recording, tmp_path / "r.jsonl")
        sizes.append((tmp_path / "r.jsonl").stat().st_size)
    assert sizes[1] < 2.1 * sizes[0]


def test_answers_of_a_task_that_is_not_listed_survive(tmp_path: Path) -> None:
    """A recording can hold answers to conversations whose task it does not describe."""
    recording = example()
    recording.add("stranger", AFTER, Completion("slm", "answer 41", 15, 3, 309))
    write_recording(recording, tmp_path / "r.jsonl")
    back = read_recording(tmp_path / "r.jsonl")
    assert back.conversations() == recording.conversations()
    assert [task.id for task in back.tasks] == ["t"]


def test_one_answer_of_two_tasks_is_found_for_both(tmp_path: Path) -> None:
    """Two tasks that put the same question share its answer, and each of them is known to have asked."""
    recording = example()
    recording.tasks.append(Task("twin", "6 * 7?", "42"))
    recording.add("twin", OPENING, recording.answers["slm", OPENING])
    write_recording(recording, tmp_path / "r.jsonl.gz")
    assert read_recording(tmp_path / "r.jsonl.gz").conversations() == recording.conversations()


def changed(row: int, **fields: Any) -> str:
    """LINES with fields of one line changed, and an end that fits them."""
    lines = list(LINES)
    lines[row] = json.dumps({**json.loads(lines[row]), **fields})
    return ended(lines)


FORGED = [
    (changed(0, isthmus_recording=7), "row 1", "version 7"),
    (changed(0, made=[1]), "field 'made'", "[1]"),
    (changed(1, task={"id": "t"}), "row 2", "'prompt' is missing"),
    (changed(2, keep=1), "row 3", "'keep' holds 1, but the conversation before has 0 messages"),
    (changed(3, keep=-1), "row 4", "'keep' holds -1"),
    (changed(3, keep=2), "row 4", "'keep' holds 2"),
    (changed(3, add=[["tool"]]), "row 4", "role and content"),
    (changed(3, add="x"), "row 4", "'add' holds \"x\", not a list"),
    (changed(3, key="ab"), "row 4", "unknown field 'key'"),
    (changed(3, answers=["x"]), "row 4", "'answers' holds \"x\""),
    (changed(3, answers=[{"model": "slm"}]), "row 4", "'text' is missing"),
    (
        changed(3, answers=[{**json.loads(LINES[3])["answers"][0], "model": "gpt"}]),
        "row 4",
        "'gpt' is none of slm, llm",
    ),
    (changed(3, answers=[{**json.loads(LINES[3])["answers"][0], "authorization": "x"}]), "row 4", "'authorization'"),
    (ended([LINES[0], *LINES[2:]], 0), "row 2", "no task comes before it"),
    (ended([*LINES, LINES[1]], 2), "row 5", "'t' occurs twice"),
    (ended([*LINES, "[]"]), "row 5", "no object"),
    (ended([*LINES, "{"]), "row 5", "not valid JSON at character"),
    (ended([*LINES, '{"task_id":5}']), "row 5", "'task_id' holds 5, not text"),
    (ended([*LINES, "[" * 100_000]), "row 5", "recursion"),
    (ended(LINES[:1], 0, 0), "r.jsonl", "holds no task"),
    (ended(LINES, tasks=2), "r.jsonl", "holds 1 of 2 tasks"),
    (ended(LINES, answers=4), "r.jsonl", "holds 3 of 4 answers"),
    (ended(LINES) + LINES[1] + "\n", "row 6", "more lines after its end"),
    ("".join(f"{line}\n" for line in LINES), "r.jsonl", "breaks off before its last line"),
    (ended(LINES).replace("6 * 7?", "6 * 8?"), "r.jsonl", "checksum does not belong"),
    (ended(LINES).replace("answer 42", "answer 24"), "r.jsonl", "checksum does not belong"),
    (ended(LINES).replace('"depth":2', '"depth":3'), "r.jsonl", "checksum does not belong"),
    (ended(LINES)[:-1], "r.jsonl", "checksum does not belong"),
]


@pytest.mark.parametrize(("content", "place", "problem"), FORGED)
def test_damage_is_found_and_its_place_named(content: str, place: str, problem: str, tmp_path: Path) -> None:
    """What is wrong in a line is told with its row; what could be right but was changed is told by the checksum."""
    with pytest.raises(InputError) as caught:
        read_text(tmp_path, content)
    assert place in caught.value.place
    assert problem in caught.value.problem


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_a_file_cut_short_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    """After every single byte, within a line or at its end, plain or compressed."""
    path = tmp_path / name
    write_recording(example(), path)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(InputError):
            read_recording(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_changed_byte_never_goes_unnoticed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A plain recording with any one byte changed is refused, whatever it says now."""
    content = bytearray(ended(LINES).encode())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    with pytest.raises(InputError):
        read_text(tmp_path_factory.mktemp("byte"), bytes(content))


def test_a_changed_byte_of_a_compressed_file_does_no_harm(tmp_path: Path) -> None:
    """It is refused, or was one that says nothing of the content (such as the operating system in gzip's head)."""
    path = tmp_path / "r.jsonl.gz"
    write_recording(example(), path)
    content, refused = path.read_bytes(), 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            assert read_recording(path).conversations() == example().conversations()
        except InputError:
            refused += 1
    assert refused > 0.9 * len(content)


def write_tasks(path: Path, count: int, partial: Path | None = None, *, fails: bool = False) -> None:
    """A recording of many long tasks, or of the first before something else goes wrong."""
    with RecordingWriter(path, Header(("slm",)), partial) as writer:
        for number in range(count):
            writer.task(Task(str(number), "x" * 1000))
            if fails:
                raise ZeroDivisionError
        writer.finish()


def test_a_recording_not_finished_leaves_nothing(tmp_path: Path) -> None:
    """Neither under its own name nor under any other; what was there before stays."""
    path = tmp_path / "r.jsonl.gz"
    write_recording(example(), path)
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        write_tasks(path, 5, fails=True)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("r.jsonl.gz", before)]


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_a_full_disk_is_one_clear_message(name: str, tmp_path: Path) -> None:
    """The device that is always full stands for it, behind a link; no half file is left."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    partial = tmp_path / "partial"
    partial.symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"r\.jsonl.*: cannot be written \(No space left on device\)"):
        write_tasks(tmp_path / name, 100, partial)
    assert list(tmp_path.iterdir()) == []


def test_what_a_recording_keeps_of_an_answer_is_the_same_next_time() -> None:
    """Seconds and cache hits are left out or rounded, the name is the one asked for, and doing so twice changes nothing."""
    live = Completion(
        "vendor/v2", "42", 5, 3, 302, cached_tokens=4, mean_logprob=-0.123456, prefill_s=0.012345, decode_s=1.23456,
        provenance="live",
    )  # fmt: skip
    plain, timed = recordable(live, "slm"), recordable(live, "slm", timings=True)
    assert (plain.model, plain.mean_logprob, plain.cached_tokens, plain.provenance) == ("slm", -0.1235, 0, "exact")
    assert plain.prefill_s != plain.prefill_s
    assert (timed.prefill_s, timed.decode_s, timed.cached_tokens) == (0.0123, 1.23, 4)
    assert recordable(timed, "slm", timings=True) == timed
    assert recordable(live._replace(provenance="modelled"), "slm").provenance == "modelled"


def test_a_compressed_recording_is_the_plain_one(tmp_path: Path) -> None:
    """`.gz` only compresses."""
    write_recording(example(), tmp_path / "r.jsonl.gz")
    assert gzip.decompress((tmp_path / "r.jsonl.gz").read_bytes()).decode() == ended(LINES)


def test_a_recording_of_an_older_version_says_what_can_be_read(tmp_path: Path) -> None:
    """The message names the versions."""
    with pytest.raises(RecordingError, match="reads versions 1 and 2; record again"):
        read_text(tmp_path, changed(0, isthmus_recording=0))
