"""Recordings: what goes in comes out, byte for byte, and what is damaged is refused."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bad_inputs.recorded import recording_lines
from workloads.agent import conversation_agent
from workloads.backend import ScriptedBackend
from workloads.errors import BackendError, InputError, RecordingError, RecordingMiss
from workloads.recording import (
    Recording,
    RecordingBackend,
    ReplayBackend,
    conversation_key,
    read_recording,
    write_recording,
)
from workloads.task import Attachment, Completion, Message, ModelCall, Task
from workloads.trial import enumerate_trials, pure_trial

MODELS = ("edge", "cloud")
TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # any character at all, halves of pairs included
COUNT = st.integers(0, 2**31 - 1)
FINITE = st.floats(0, 1e9)


def call(task: Task, *contents: str, position: int = 0) -> ModelCall:
    """A call after these messages."""
    return ModelCall(task, position, tuple(Message("user", text) for text in contents), 10, 400)


def answer(model: str = "edge", text: str = "4", **fields: Any) -> Completion:
    """A completion of little interest."""
    return Completion(model, text, 5, 1, 301, **fields)


def small_recording() -> Recording:
    """Two tasks, one of them answered by both models."""
    recording = Recording(MODELS)
    tasks = [Task("t1", "2 + 2?", "4", "sums"), Task("t2", "Which?", attachments=(Attachment("photo", 9000, 85, 0.7),))]
    recording.tasks.extend(tasks)
    for model in MODELS:
        recording.add("t1", (Message("user", "2 + 2?"),), answer(model, score=1.0))
    recording.add("t2", (Message("user", "Which?"),), answer("cloud", "That one"))
    return recording


def round_trip(recording: Recording, path: Path) -> Recording:
    """Written and read again."""
    write_recording(recording, path)
    return read_recording(path)


# ---------------------------------------------------------------------------------------------------- there and back

COMPLETIONS = st.builds(
    Completion, st.sampled_from(MODELS), TEXT, COUNT, COUNT, COUNT, cached_tokens=COUNT, mean_logprob=st.floats(-50, 0) | st.just(float("nan")),
    prefill_s=FINITE, decode_s=FINITE | st.just(float("nan")), finish_reason=st.sampled_from(("stop", "length")), tool_text=st.none() | TEXT,
    tool_s=FINITE, score=st.floats(0, 1) | st.just(float("nan")), provenance=st.sampled_from(("exact", "modelled")),
)  # fmt: skip
TASKS = st.builds(
    Task, TEXT, TEXT, st.none() | TEXT, TEXT, COUNT,
    st.lists(st.builds(Attachment, TEXT, COUNT, COUNT, st.floats(0, 1)), max_size=2).map(tuple),
)  # fmt: skip
MESSAGES = st.lists(st.builds(Message, TEXT, TEXT), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    tasks=st.lists(TASKS, min_size=1, max_size=3, unique_by=lambda task: task.id),
    answers=st.lists(st.tuples(TEXT, MESSAGES, COMPLETIONS), max_size=5),
    suffix=st.sampled_from((".jsonl", ".jsonl.gz")),
)
def test_everything_comes_back(
    tasks: list[Task], answers: list[tuple[str, tuple[Message, ...], Completion]], suffix: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """Any text in any field survives, line ends, quotes, control characters and halves of characters included."""
    recording = Recording(MODELS, "temperature 0.7, seed 3")
    recording.tasks.extend(tasks)
    for entry in answers:
        recording.add(*entry)
    folder = tmp_path_factory.mktemp("trip")
    back = round_trip(recording, folder / f"r{suffix}")
    assert back.tasks == recording.tasks
    assert (back.models, back.sampling) == (recording.models, recording.sampling)
    assert {asked: known(c) for asked, c in back.answers.items()} == {
        asked: known(c) for asked, c in recording.answers.items()
    }
    assert back.conversations() == recording.conversations()
    assert [path.name for path in folder.iterdir()] == [f"r{suffix}"]  # and nothing is left beside it


def known(completion: Completion) -> dict[str, Any]:
    """The fields of an answer that are not NaN."""
    return {name: value for name, value in completion._asdict().items() if value == value}


def test_equal_recordings_are_equal_files(tmp_path: Path) -> None:
    """Neither the order of answering nor the file's name nor the time of writing shows in the bytes."""
    first = small_recording()
    second = Recording(MODELS)
    second.tasks.extend(first.tasks)
    for task, model, messages in reversed(first.conversations()):
        second.add(task, messages, first.answers[model, messages])
    paths = [tmp_path / "a.jsonl.gz", tmp_path / "elsewhere.jsonl.gz"]
    for recording, path in zip((first, second), paths, strict=True):
        write_recording(recording, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    head = paths[0].read_bytes()[:10]
    assert head[3] == 0  # no name in it
    assert head[4:8] == bytes(4)  # no time


def test_plain_and_compressed_hold_the_same(tmp_path: Path) -> None:
    """`.gz` only compresses; lines end in a line feed on every system."""
    for name in ("r.jsonl", "r.jsonl.gz"):
        write_recording(small_recording(), tmp_path / name)
    plain = (tmp_path / "r.jsonl").read_bytes()
    assert gzip.decompress((tmp_path / "r.jsonl.gz").read_bytes()) == plain
    assert plain.endswith(b"}\n")
    assert b"\r" not in plain


def test_writing_again_replaces_the_whole_file(tmp_path: Path) -> None:
    """A shorter recording leaves nothing of a longer one behind."""
    path = tmp_path / "deep" / "r.jsonl"
    write_recording(small_recording(), path)
    short = Recording(MODELS)
    short.tasks.append(Task("only"))
    assert [task.id for task in round_trip(short, path).tasks] == ["only"]


def test_what_was_live_is_exact_and_what_was_modelled_stays_so(tmp_path: Path) -> None:
    """Replaying a live answer is exact; an answer out of a model of outcomes does not become real by being recorded."""
    recording = Recording(MODELS)
    recording.tasks.append(Task("t"))
    for text, provenance in (("a", "live"), ("b", "modelled"), ("c", "exact")):
        recording.add("t", (Message("user", text),), answer(text=text, provenance=provenance))
    back = round_trip(recording, tmp_path / "r.jsonl")
    assert {c.text: c.provenance for c in back.answers.values()} == {"a": "exact", "b": "modelled", "c": "exact"}


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    """One sentence, and no partial file."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        write_recording(small_recording(), tmp_path / "file" / "r.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ------------------------------------------------------------------------------------------------------------- keys


def test_a_key_depends_on_model_sampling_and_conversation() -> None:
    """Any of them changed is another key; the same again is the same."""
    messages = (Message("user", "hi"), Message("assistant", "ho"))
    keys = {
        conversation_key("edge", messages),
        conversation_key("cloud", messages),
        conversation_key("edge", messages, "temperature 1"),
        conversation_key("edge", messages[:1]),
        conversation_key("edge", (messages[0], Message("tool", "ho"))),
        conversation_key("edge", (messages[0], Message("assistant", "ho "))),
        conversation_key("edge", (Message("user", "hi"), Message("assistant", ""), Message("ho", ""))),
    }
    assert len(keys) == 7
    assert conversation_key("edge", messages) in keys


def test_a_key_does_not_depend_on_the_step_or_the_task() -> None:
    """The same conversation is the same question wherever it comes up."""
    recording = small_recording()
    for task, position in ((recording.tasks[0], 0), (recording.tasks[0], 7), (Task("another"), 3)):
        assert ReplayBackend(recording).submit(call(task, "2 + 2?", position=position), "edge").result().text == "4"


# ----------------------------------------------------------------------------------------------------------- replay


def test_a_miss_names_the_nearest_conversation() -> None:
    """The message says what was asked for, how far the recording agrees, and what to do."""
    recording = small_recording()
    recording.add("t1", tuple(Message("user", text) for text in ("2 + 2?", "sure?")), answer("cloud"))
    with pytest.raises(RecordingMiss) as caught:
        ReplayBackend(recording).submit(call(recording.tasks[0], "2 + 2?", "really?", position=1), "edge").result()
    text = str(caught.value)
    assert "no answer of 'edge' to subtask 1 of task 't1'" in text
    assert "of which the first 1 agree" in text
    assert text.endswith("Record this placement, or use a policy that places whole requests")
    assert isinstance(caught.value, BackendError)


def test_of_two_equally_near_conversations_the_one_of_the_same_model_is_named() -> None:
    """It tells more to whoever looks for the difference."""
    recording = small_recording()
    for model in MODELS:
        assert f"is '{model}' after 1 messages" in recording.near_misses(call(recording.tasks[0], "2 + 2?", "x"), model)


def test_a_miss_of_an_unknown_task_says_so() -> None:
    """There is no nearest conversation of a task nobody recorded."""
    with pytest.raises(RecordingMiss, match="nothing is recorded of task 'new'"):
        ReplayBackend(small_recording()).submit(call(Task("new"), "hi"), "edge").result()


def test_a_miss_is_no_error_until_somebody_wants_the_answer() -> None:
    """Recording keeps collected answers only, so who gave up on a call must be able to do so in replay too."""
    handle = ReplayBackend(small_recording()).submit(call(Task("new"), "hi"), "edge")
    with pytest.raises(RecordingMiss):
        handle.result()


def test_a_miss_can_be_answered_otherwise() -> None:
    """With a fallback, only what is missing goes there."""
    recording = small_recording()
    replay = ReplayBackend(recording, lambda asked, model: answer(model, "made up", provenance="modelled"))
    assert replay.submit(call(recording.tasks[0], "2 + 2?"), "edge").result().provenance == "exact"
    assert replay.submit(call(recording.tasks[0], "2 + 3?"), "edge").result().text == "made up"


# -------------------------------------------------------------------------------------------------------- recording


def scripted(steps: int = 3) -> Callable[[ModelCall, str], Completion]:
    """Models that say who they are; the environment answers `steps - 1` times."""

    def reply(asked: ModelCall, model: str) -> Completion:
        last = asked.position == steps - 1
        text = f"{model} on {len(asked.messages)} messages"
        return answer(
            f"vendor/{model}-v2", text, tool_text=None if last else f"ok {asked.position}", score=0.5, provenance="live"
        )

    return reply


def test_recording_passes_answers_on_and_keeps_them() -> None:
    """The caller sees what the backend said, under the name it asked for; so does replay."""
    recording = Recording(MODELS)
    task = Task("t", "go")
    live = pure_trial(conversation_agent(), task, RecordingBackend(ScriptedBackend(scripted()), recording), "edge")
    replayed = pure_trial(conversation_agent(), task, ReplayBackend(recording), "edge")
    assert live.completions == replayed.completions
    assert {c.model for c in live.completions} == {"edge"}
    assert len(recording.answers) == 3


def test_only_collected_answers_are_kept() -> None:
    """Submitting alone records nothing: the answer may never come."""
    recording = Recording(MODELS)
    handle = RecordingBackend(ScriptedBackend(scripted()), recording).submit(call(Task("t"), "hi"), "edge")
    assert not recording.answers
    handle.result()
    handle.result()
    assert len(recording.answers) == 1


def test_a_model_that_is_not_to_be_recorded_is_refused_at_once() -> None:
    """Not when hours of answers are read back."""
    with pytest.raises(InputError, match="Recorded models: edge, cloud"):
        RecordingBackend(ScriptedBackend(scripted()), Recording(MODELS)).submit(call(Task("t"), "hi"), "gpt")


def test_every_placement_can_be_replayed(tmp_path: Path) -> None:
    """The whole tree of placements recorded: each of the 8 conversations of 3 steps replays as it was, from the file too."""
    recording = Recording(MODELS)
    task = Task("t", "go")
    recording.tasks.append(task)
    agent = conversation_agent()
    live = list(enumerate_trials(agent, task, RecordingBackend(ScriptedBackend(scripted()), recording), MODELS))
    back = round_trip(recording, tmp_path / "r.jsonl.gz")
    again = list(enumerate_trials(agent, back.tasks[0], ReplayBackend(back), MODELS))
    assert len(live) == len(again) == 8
    assert len(recording.answers) == 2 + 4 + 8
    for before, after in zip(live, again, strict=True):
        assert before.models == after.models
        assert [known(c._replace(provenance="exact")) for c in before.completions] == [
            known(c) for c in after.completions
        ]


class SecretiveBackend:
    """A backend as they come: it knows a key, and its answers carry more than a Completion has."""

    api_key = "sk-very-secret"

    def submit(self, asked: ModelCall, model: str) -> Completion:
        """Answer with headers attached."""
        del asked
        found = Answer(*answer(model))
        found.headers = {"authorization": f"Bearer {self.api_key}"}
        return found


class Answer(Completion):
    """A Completion with attributes of its own."""

    headers: dict[str, str]


def test_no_secret_reaches_a_recording(tmp_path: Path) -> None:
    """Only the named fields of Task and Completion are written, whatever else backend, answer and task hold."""
    recording = Recording(MODELS)
    task = Task("t", "hi", features={"token": "sk-very-secret"}, latent="sk-very-secret")
    recording.tasks.append(task)
    RecordingBackend(SecretiveBackend(), recording).submit(call(task, "hi"), "edge").result()
    path = tmp_path / "r.jsonl"
    write_recording(recording, path)
    content = path.read_text(encoding="utf-8")
    assert "secret" not in content
    lines = [json.loads(line) for line in content.splitlines()[1:]]
    assert {field for line in lines for field in line} == {"task", "add", "answers", "end"}
    assert {field for line in lines for entry in line.get("answers", ()) for field in entry} == {
        "model", "text", "prompt_tokens", "completion_tokens", "download_bytes"
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- damaged, as version 1 wrote it


def with_line(number: int, **fields: Any) -> str:
    """A valid recording with fields of one line changed; None takes a field out."""
    lines = recording_lines()
    changed = {**json.loads(lines[number]), **fields}
    lines[number] = json.dumps({key: value for key, value in changed.items() if value is not ...})
    return "\n".join(lines)


DAMAGED = [
    (with_line(0, isthmus_recording=3), "row 1", "version 3"),
    (with_line(0, isthmus_recording="1"), "row 1", "version '1'"),
    (with_line(0, isthmus_recording=True), "row 1", "version True"),
    (with_line(0, isthmus_recording=...), "row 1", "not an Isthmus recording"),
    (with_line(0, models="edge"), "field 'models'", "'edge'"),
    (with_line(0, models=[]), "field 'models'", "list of model names"),
    (with_line(0, sampling=5), "field 'sampling'", "5"),
    (with_line(0, tasks=9), "recording.jsonl", "holds 1 of 9 tasks"),
    (with_line(0, answers=9), "recording.jsonl", "holds 2 of 9 answers"),
    (with_line(1, task="t"), "row 2", "'task' holds \"t\", not an object"),
    (with_line(1, task={"prompt": "x"}), "row 2", "'id' is missing"),
    (with_line(1, task={"id": 5, "prompt": "x"}), "row 2", "'id' holds 5, not text"),
    (with_line(1, task={"id": "t", "prompt": "x", "attachments": [["a", -1, 0, 0]]}), "row 2", "size_bytes"),
    (with_line(1, task={"id": "t", "prompt": "x", "attachments": [["a"]]}), "row 2", "attachments"),
    (with_line(2, key="0" * 32), "row 3", "key does not belong"),
    (with_line(2, model="other"), "row 3", "'other' is none of edge, cloud"),
    (with_line(2, model="cloud"), "row 3", "key does not belong"),
    (with_line(2, messages=[["user", "2 + 3?"]]), "row 3", "key does not belong"),
    (with_line(2, messages=[["user"]]), "row 3", "role and content"),
    (with_line(2, messages=[["user", None]]), "row 3", "'content' holds null"),
    (with_line(2, messages=...), "row 3", "'messages' is missing"),
    (with_line(2, text=...), "row 3", "'text' is missing"),
    (with_line(2, text=["4"]), "row 3", "'text' holds"),
    (with_line(2, prompt_tokens=-1), "row 3", "'prompt_tokens' holds -1"),
    (with_line(2, prompt_tokens=5.5), "row 3", "whole number"),
    (with_line(2, completion_tokens=True), "row 3", "'completion_tokens' holds true"),
    (with_line(2, download_bytes=2**31), "row 3", "'download_bytes'"),
    (with_line(2, prefill_s=-0.5), "row 3", "at least 0"),
    (with_line(2, decode_s="1"), "row 3", "finite number"),
    (with_line(2, score=10**400), "row 3", "'score'"),
    (with_line(2, provenance="certain"), "row 3", "exact or live or modelled"),
    (with_line(2, authorization="Bearer x"), "row 3", "unknown field 'authorization'"),
    ("\n".join([*recording_lines(), recording_lines()[1]]), "row 5", "'t' occurs twice"),
    (recording_lines()[0], "recording.jsonl", "holds no task"),
    ("\n".join(recording_lines())[:-1], "row 4", "not valid JSON"),
    ("\n".join([*recording_lines(), "[]"]), "row 5", "a list"),
    ("\n".join(recording_lines()).replace('"score": 1.0', '"score": NaN'), "row 3", "NaN"),
    ("\n".join(recording_lines()).replace('"score": 1.0', '"score": 1e999'), "row 3", "'score'"),
]


@pytest.mark.parametrize(("content", "place", "problem"), DAMAGED)
def test_damage_is_found_and_its_place_named(content: str, place: str, problem: str, tmp_path: Path) -> None:
    """Every field of every line is checked; the error names row and field."""
    path = tmp_path / "recording.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_recording(path)
    assert str(path) in caught.value.place
    assert place in caught.value.place
    assert problem in caught.value.problem + caught.value.remedy


def test_the_undamaged_recording_is_read(tmp_path: Path) -> None:
    """What the cases above damage is valid, without the counts in its head as well."""
    path = tmp_path / "recording.jsonl"
    for content in ("\n".join(recording_lines()), with_line(0, tasks=..., answers=...)):
        path.write_text(content, encoding="utf-8")
        assert len(read_recording(path).answers) == 2


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_file_cut_short_is_refused(share: float, tmp_path: Path) -> None:
    """Wherever a compressed or plain recording breaks off, at the end of a line too."""
    for name in ("r.jsonl", "r.jsonl.gz"):
        path = tmp_path / name
        write_recording(small_recording(), path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError):
            read_recording(path)
    path = tmp_path / "r.jsonl"
    write_recording(small_recording(), path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: max(1, int(len(lines) * share))]))
    with pytest.raises(RecordingError):
        read_recording(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_changed_byte_never_goes_unnoticed_or_unhandled(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A version 1 recording with one byte changed reads as what it says now, or is refused; nothing else happens."""
    path = tmp_path_factory.mktemp("byte") / "r.jsonl"
    content = bytearray("\n".join(recording_lines()).encode())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        recording = read_recording(path)
    except InputError:
        return
    asked = [("edge", (Message("user", "2 + 2?"),)), ("cloud", (Message("user", "2 + 2?"),))]
    assert sorted(recording.answers) == sorted(asked)  # their keys vouch for model and conversation


def test_reading_takes_no_more_memory_than_what_is_kept(tmp_path: Path) -> None:
    """Lines are read one by one: the peak lies little above what the recording itself needs."""
    recording = Recording(MODELS)
    for number in range(400):
        task = Task(f"t{number}", f"{number} " + "word " * 400)
        recording.tasks.append(task)
        recording.add(task.id, (Message("user", task.prompt),), answer(text=f"{number} " + "answer " * 400))
    path = tmp_path / "r.jsonl.gz"
    write_recording(recording, path)
    del recording
    tracemalloc.start()
    back = read_recording(path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(back.tasks) == 400
    assert kept > 1_500_000
    assert peak < 1.3 * kept
