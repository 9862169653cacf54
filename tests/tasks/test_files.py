"""GSM8K- and HotpotQA-style files: what is read, what is refused, and requests solved with the tools. The data are invented."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from workloads.agent import Agent, in_turn
from workloads.errors import InputError
from workloads.task import Completion, Message, Outcome, Task
from workloads.tasks.files import (
    GSM8K_SYSTEM,
    HOTPOTQA_SYSTEM,
    gsm8k_agent,
    gsm8k_tasks,
    hotpotqa_agent,
    hotpotqa_tasks,
)
from workloads.tasks.paragraphs import Paragraph, lookup, search
from workloads.tool_agent import parse_step

SUMS = [
    {"question": "Nia has 3 boxes of 12 pens . How many pens ?", "answer": "3 * 12 = <<3*12=36>>36 pens.\n#### 36"},
    {"question": "Ben earns $2,000 and doubles it.", "answer": "<<2000*2=4000>>\n<<4000-0=4000>>\n#### $4,000"},
    {"question": "A debt?", "answer": "#### -7.50"},
]
FILM = {
    "_id": "5a1",
    "question": "In which town was the director of Blue Harbor born?",
    "answer": "North Lindel",
    "type": "bridge",
    "level": "hard",
    "context": [
        ["Red Harbor", ["Red Harbor is a novel.", " It is set in a harbor that is not blue."]],
        ["Blue Harbor", ["Blue Harbor is a film.", " Ivo Calder directed it."]],
        ["Ivo Calder", ["Ivo Calder was a director.", " He was born in North Lindel ."]],
    ],
    "supporting_facts": [["Blue Harbor", 1], ["Ivo Calder", 1]],
}
FACT = {**FILM, "_id": "5a2", "question": "Is Red Harbor a film?", "answer": "no", "type": "comparison"}


def write(path: Path, text: str) -> Path:
    """The text in a file, compressed if its name says so."""
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def lines(path: Path, rows: list[Any]) -> Path:
    """Rows as JSON lines."""
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def drive(agent: Agent, task: Task, texts: list[str]) -> tuple[Outcome, tuple[Message, ...]]:
    """A request whose model says these texts: its outcome and the conversation of its last call."""
    run = in_turn(agent(task))
    call = next(run)
    for text in texts:
        try:
            call = run.send(Completion("model", text, call.prompt_tokens, 1, 1))
        except StopIteration as end:
            assert text == texts[-1]
            return end.value, call.messages
    raise AssertionError("the request went on")


@pytest.mark.parametrize("name", ["sums.jsonl", "sums.jsonl.gz", "sums.json", "sums.json.gz"])
def test_gsm8k_file(tmp_path, name):
    """Lines or one list, plain or compressed: the same tasks, with the number after #### as the answer."""
    path = tmp_path / name
    (lines(path, SUMS) if "jsonl" in name else write(path, json.dumps(SUMS)))
    tasks = gsm8k_tasks(path)
    assert [(task.id, task.answer, task.family) for task in tasks] == [
        ("gsm8k-1", "36", "gsm8k"),
        ("gsm8k-2", "4000", "gsm8k"),
        ("gsm8k-3", "-7.50", "gsm8k"),
    ]
    assert [task.features["steps"] for task in tasks] == [1, 2, 0]
    assert tasks[0].prompt == SUMS[0]["question"]
    assert tasks[0].prompt_tokens == 11  # 44 bytes
    assert gsm8k_tasks(path, limit=2) == tasks[:2]


@pytest.mark.parametrize("name", ["films.json", "films.json.gz", "films.jsonl"])
def test_hotpotqa_file(tmp_path, name):
    """A list or lines: tasks by id, with type as family, and the paragraphs where the tools find them and policies do not look."""
    path = tmp_path / name
    (lines(path, [FILM, FACT]) if "jsonl" in name else write(path, json.dumps([FILM, FACT])))
    film, fact = hotpotqa_tasks(path)
    assert (film.id, film.answer, film.family) == ("5a1", "North Lindel", "bridge")
    assert (fact.id, fact.answer, fact.family) == ("5a2", "no", "comparison")
    assert film.features == {"type": "bridge", "level": "hard"}
    assert film.prompt == FILM["question"]
    assert [paragraph.title for paragraph in film.latent] == ["Red Harbor", "Blue Harbor", "Ivo Calder"]
    assert hotpotqa_tasks(path, limit=1) == [film]
    assert pickle.loads(pickle.dumps(film)) == film  # noqa: S301 - own bytes: tasks travel to worker processes


def test_a_limit_stops_the_reading(tmp_path):
    """Rows after the limit are not looked at, so the start of a huge or broken file can be used."""
    path = write(tmp_path / "sums.jsonl", json.dumps(SUMS[0]) + "\nbroken\n")
    assert len(gsm8k_tasks(path, limit=1)) == 1
    with pytest.raises(InputError, match="row 2"):
        gsm8k_tasks(path)
    with pytest.raises(InputError, match="limit: found 0"):
        gsm8k_tasks(path, limit=0)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "?"}, "row 2: field 'answer' is missing"),
        (
            {"questions": "?", "answer": "#### 1"},
            "row 2: field 'question' is missing. Write 'question' for 'questions'",
        ),
        ({"question": 5, "answer": "#### 1"}, "row 2, column 'question': the number 5 is not a text"),
        ({"question": " ", "answer": "#### 1"}, "row 2, column 'question'"),
        ({"question": "?", "answer": None}, "row 2, column 'answer': null is not a text"),
        ({"question": "?", "answer": "42"}, "row 2, column 'answer': ends in '42', which is no '####' with a number"),
        ({"question": "?", "answer": "3 #### many"}, "row 2, column 'answer': ends in '3 #### many'"),
        ([1], "row 2: holds a list of 1 entries"),
    ],
)
def test_malformed_problems(tmp_path, row, says):
    """Each wrong row is one message with the file, the line, the field and what was found there."""
    path = lines(tmp_path / "sums.jsonl", [SUMS[0], row])
    with pytest.raises(InputError) as caught:
        gsm8k_tasks(path)
    assert str(caught.value).startswith(f"{path}: {says}")


def without(field: str) -> dict[str, Any]:
    """The question about the film without a field."""
    return {name: value for name, value in FILM.items() if name != field}


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (without("answer"), "entry 2: field 'answer' is missing"),
        ({**FILM, "_id": 7}, "entry 2, field '_id': the number 7 is not a text"),
        ({**FILM, "answer": ""}, "entry 2, field 'answer'"),
        ({**FILM, "type": 3}, "entry 2, field 'type': the number 3 is not a text"),
        ({**FILM, "context": {"title": []}}, "entry 2, field 'context': an object of 1 fields is not a list"),
        ({**FILM, "context": []}, "entry 2, field 'context': holds no paragraph"),
        (
            {**FILM, "context": [["T", ["s"]], ["T", "s"]]},
            "entry 2, field 'context': paragraph 2 holds a list of 2 entries",
        ),
        ({**FILM, "context": [["T", ["s", 1]]]}, "entry 2, field 'context': paragraph 1"),
        ({**FILM, "context": [{"title": "T"}]}, "entry 2, field 'context': paragraph 1 holds an object"),
        (FACT, "entry 2, field '_id': the question '5a2' occurs twice"),
        ("text", "entry 2: holds the text"),
    ],
)
def test_malformed_questions(tmp_path, entry, says):
    """Each wrong entry of the list is one message with the file, the entry, the field and what was found there."""
    path = write(tmp_path / "films.json", json.dumps([FACT, entry]))
    with pytest.raises(InputError) as caught:
        hotpotqa_tasks(path)
    assert str(caught.value).startswith(f"{path}: {says}")


@pytest.mark.parametrize(
    "text", ["", "\n\n", "[]", "[1", '{"question": ', "[[", "5", "\x00", "[NaN]", '{"a": 1, "a": 2}']
)
@pytest.mark.parametrize("read", [gsm8k_tasks, hotpotqa_tasks])
def test_files_that_hold_no_questions(tmp_path, text, read):
    """Empty, truncated or other files are one message that names the file; so are a missing one and a cut-off gzip."""
    path = write(tmp_path / "file.json", text)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "missing.json")
    cut = tmp_path / "cut.json.gz"
    cut.write_bytes(gzip.compress(json.dumps([FILM]).encode())[:-12])
    with pytest.raises(InputError, match=r"cut\.json\.gz"):
        read(cut)


def test_a_word_problem_with_the_calculator(tmp_path):
    """The request computes, meets the result, answers with a unit and a dollar sign, and is right; a wrong number is wrong."""
    task = gsm8k_tasks(lines(tmp_path / "sums.jsonl", SUMS))[1]
    outcome, messages = drive(gsm8k_agent(), task, ["compute 2,000 * 2", "Answer: $4,000.00 in all"])
    assert outcome == Outcome(1.0, "$4,000.00 in all")
    assert messages == (
        Message("system", GSM8K_SYSTEM),
        Message("user", task.prompt),
        Message("assistant", "compute 2,000 * 2"),
        Message("tool", "4000"),
    )
    assert drive(gsm8k_agent(), task, ["answer 2000"])[0].score == 0.0


def test_a_question_with_search_and_lookup(tmp_path):
    """The request finds one paragraph by the other; exact match wants the whole answer, F1 gives a part for a part."""
    film, fact = hotpotqa_tasks(write(tmp_path / "films.json", json.dumps([FILM, FACT])))
    steps = ["search Blue Harbor", "lookup Calder born"]
    outcome, messages = drive(hotpotqa_agent(), film, [*steps, "answer the North Lindel."])
    assert outcome.score == 1.0
    assert [message.content for message in messages if message.role == "tool"] == [
        "Blue Harbor: Blue Harbor is a film. Ivo Calder directed it.",
        "(Blue Harbor) Ivo Calder directed it. (Ivo Calder) Ivo Calder was a director. (Ivo Calder) He was born in North Lindel .",
    ]
    assert drive(hotpotqa_agent(), film, ["answer Lindel"])[0].score == 0.0
    assert drive(hotpotqa_agent("f1"), film, ["answer Lindel"])[0].score == pytest.approx(2 / 3)
    assert drive(hotpotqa_agent("f1"), fact, ["answer no, it is a novel"])[0].score == 0.0
    with pytest.raises(InputError, match="Did you mean 'exact_match'"):
        hotpotqa_agent("exact-match")


def test_agents_stop(tmp_path):
    """An agent that only looks around ends with score 0 after its subtasks, and says how long a step may be."""
    film = hotpotqa_tasks(write(tmp_path / "films.json", json.dumps([FILM])))[0]
    assert drive(hotpotqa_agent(max_subtasks=2), film, ["search x", "search y"])[0] == Outcome(0.0, "")
    assert next(gsm8k_agent(max_tokens=40)(film)).max_tokens == 40
    assert next(hotpotqa_agent(count_tokens=lambda messages: 100 * len(messages))(film)).prompt_tokens == 200


PARAGRAPHS = (
    Paragraph("Blue Harbor (film)", ("Blue Harbor is a film of the sea.", " It has music.")),
    Paragraph("Harbor", ("A harbor is a place for ships of the sea.",)),
    Paragraph("Ivo Calder", ("Ivo Calder made the film of the harbor.", "He liked music of the sea.")),
    Paragraph("Music", ()),
)
ASKED = Task("q", latent=PARAGRAPHS)


@pytest.mark.parametrize(
    ("asked", "title"),
    [
        ("harbor", "Harbor"),
        ("The Harbor.", "Harbor"),
        ("blue harbor", "Blue Harbor (film)"),
        ("who is calder of the film", "Ivo Calder"),
        ("ships", "Harbor"),
        ("of", "Blue Harbor (film)"),
        ("liked", "Ivo Calder"),
        ("music", "Music"),
    ],
)
def test_search(asked, title):
    """A title as a whole comes first, then words that few paragraphs have, twice in titles; the first of equal ones."""
    assert search(ASKED, asked).startswith(f"{title}:")


def test_what_is_not_there():
    """A search without a hit names the titles, an empty one says what is wrong, and neither raises."""
    assert search(ASKED, "zebra") == "nothing found; the titles are: Blue Harbor (film); Harbor; Ivo Calder; Music"
    assert lookup(ASKED, "zebra") == "nothing found"
    assert search(ASKED, "the!") == "error: nothing to search for"
    assert lookup(ASKED, "") == "error: nothing to look up"
    assert lookup(Task("q", latent=(Paragraph("Empty", ()),)), "zebra") == "nothing found"


def test_lookup_shows_the_best_sentences():
    """Sentences with most of the words, three at most, in the order of the text, each with its title."""
    assert lookup(ASKED, "music of the sea") == "(Ivo Calder) He liked music of the sea."
    assert lookup(ASKED, "sea").count("(") == 3 + 1  # one title has brackets itself


@pytest.mark.parametrize(("system", "verbs"), [(GSM8K_SYSTEM, {"compute"}), (HOTPOTQA_SYSTEM, {"search", "lookup"})])
def test_the_example_follows_the_protocol(system, verbs):
    """What the system prompt shows as steps is what the agent understands, down to the final answer."""
    example = system.partition("Example.")[2].splitlines()[1:]
    steps = [parse_step(line, frozenset(verbs)) for line in example if not line.startswith("(result:")]
    assert {verb for verb, _ in steps[:-1]} <= verbs
    assert steps[-1][0] == "answer"
    assert all(argument for _, argument in steps)
    assert all(f"{verb} " in system.partition("Example.")[0] for verb in verbs)


def test_the_examples_of_the_prompts_work(tmp_path):
    """Played as written, the worked examples meet the results they show."""
    sums = Task("s", answer="31")
    outcome, messages = drive(gsm8k_agent(), sums, ["compute 3 * 12", "compute 36 - 5", "answer 31"])
    assert outcome.score == 1.0
    assert [message.content for message in messages if message.role == "tool"] == ["36", "31"]
    film = Paragraph("Blue Harbor", ("Blue Harbor is a 1961 film directed by Ivo Calder.",))
    person = Paragraph("Ivo Calder", ("Ivo Calder was a director.", "He was born in North Lindel."))
    question = Task("q", answer="North Lindel", latent=(person, film))
    for title in ("Blue Harbor", "Ivo Calder"):
        assert f"(result: {search(question, title)})" in HOTPOTQA_SYSTEM
    assert drive(hotpotqa_agent(), question, ["answer North Lindel"])[0].score == 1.0
