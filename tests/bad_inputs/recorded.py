"""Files a scenario names: traces, recordings, policies of one's own."""

from __future__ import annotations

import gzip
import json

from tests.bad_inputs import BASE, SCENARIO, Case, scenario
from workloads.recording import conversation_key
from workloads.task import Message

_TRACE = "arrivals:\n    kind: trace\n    path: trace.csv\n    format: azure_llm\n    rate_per_s: 0.05"
_POISSON = "arrivals:\n    kind: poisson\n    rate_per_s: 0.05"
_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
_ROW = "2023-11-16 18:17:{:02d}.0000000,100,{}\n"
_TASKS = "tasks: {kind: modelled}"
_PLUGIN = "- all-slm"
_AT = "scenario.yaml:7: field workload.arrivals.path"
_WIFI = "link: wifi}"


def _trace(name: str, content: str | bytes | None, *says: str) -> Case:
    return scenario(name, _POISSON, _TRACE, *says, files={} if content is None else {"trace.csv": content})


def _link(name: str, content: str | bytes, *says: str, form: str = "pensieve") -> Case:
    spec = f"link: wifi, up_trace: {{path: net.txt, format: {form}}}}}"
    return scenario(name, _WIFI, spec, "scenario.yaml:18: field links.0.up_trace", *says, files={"net.txt": content})


def _outcomes(name: str, content: str, *says: str) -> Case:
    tasks = "tasks: {kind: routellm, path: answers.csv, slm: small, llm: large}"
    return scenario(name, _TASKS, tasks, "scenario.yaml:3: field workload.tasks", *says, files={"answers.csv": content})


def _plugin(name: str, content: str | None, *says: str) -> Case:
    files = {} if content is None else {"mine.py": content}
    return scenario(name, _PLUGIN, "- mine.py:Mine", "scenario.yaml:21: field policies.0", *says, files=files)


def recording_lines(version: int = 1, models: tuple[str, ...] = ("edge", "cloud")) -> list[str]:
    """A small valid recording: one task, answered by each of the models."""
    messages = (Message("user", "2 + 2?"),)
    head = {"isthmus_recording": version, "models": models, "sampling": "greedy", "tasks": 1, "answers": len(models)}
    answers = [
        {
            "key": conversation_key(model, messages), "task_id": "t", "messages": messages, "model": model, "text": "4",
            "prompt_tokens": 5, "completion_tokens": 1, "download_bytes": 301, "score": 1.0,
        }
        for model in models
    ]  # fmt: skip
    return [json.dumps(line) for line in (head, {"task": {"id": "t", "prompt": "2 + 2?"}}, *answers)]


def _recording(name: str, content: str | bytes | None, *says: str, path: str = "answers.jsonl") -> Case:
    tasks = f"tasks: {{kind: recording, path: {path}}}"
    files = {} if content is None else {path: content}
    return scenario(name, _TASKS, tasks, "scenario.yaml:3: field workload.tasks", *says, files=files)


_GOOD = recording_lines()
_ONE_ROLE = BASE.replace(_TASKS, "tasks: {kind: routellm, path: a.csv, slm: s, llm: l}").replace(
    "role: slm", "role: llm"
)
_CHANGED = [*_GOOD[:2], _GOOD[2].replace("2 + 2?", "2 + 3?"), _GOOD[3]]

CASES: list[Case] = [
    _trace("trace missing", None, _AT, "trace.csv", "no such file"),
    _trace("trace empty", "", _AT, "the file is empty"),
    _trace("trace without rows", _HEADER, _AT, "no rows"),
    _trace("trace too short", _HEADER + _ROW.format(1, 5), _AT, "1 requests, 20 are asked for", "at most 1"),
    _trace("trace out of order", _HEADER + _ROW.format(5, 5) + _ROW.format(4, 5), _AT, "row 3", "TIMESTAMP"),
    _trace("trace with NaN", _HEADER + _ROW.format(1, "nan"), _AT, "row 2, column 'GeneratedTokens'", "'nan'"),
    _trace("trace with an empty value", _HEADER + _ROW.format(1, ""), _AT, "row 2", "an empty value"),
    _trace("trace with a row cut short", _HEADER + "2023-11-16 18:17:01\n", _AT, "row 2", "1 values"),
    _trace("trace with wrong columns", "time,in,out\n1,2,3\n", _AT, "row 1", "'TIMESTAMP' is missing"),
    _trace("trace that is a gzip cut short", gzip.compress((_HEADER + _ROW.format(1, 5) * 99).encode())[:60], _AT, "trace.csv"),
    _trace("trace of binary junk", bytes(range(256)), _AT, "not text"),
    scenario("trace that is a folder", _POISSON, _TRACE.replace("trace.csv", "."), _AT, "is a directory"),
    scenario("unknown trace format", _POISSON, _TRACE.replace("azure_llm", "azure"), "scenario.yaml:8", "'azure'", "'azure_llm'"),
    _link("network trace empty", "", "net.txt", "empty"),
    _link("network trace with one column", "1\n2\n", "row 1", "number of columns is 1"),
    _link("network trace with text", "1 fast\n", "row 1", "'fast'"),
    _link("network trace out of order", "5 1\n4 1\n3 1\n", "2 of 3 times do not increase"),
    _link("network trace of clock times", "1700000000 1\n1700000001 1\n", "clock reading"),
    _link("mahimahi trace with fractions", "1.5\n", "row 1", form="mahimahi"),
    _link("unknown network format", "1 1\n", "'pensive'", "Did you mean 'pensieve'", form="pensive")._replace(
        says=("scenario.yaml:18: field links.0.up_trace.format", "'pensive'", "Did you mean 'pensieve'")
    ),
    _outcomes("outcomes without the model", "prompt,smal,large\nhi,True,False\n", "row 1", "no model 'small'", "'smal'"),
    _outcomes("outcomes without prompts", "question,small,large\nhi,True,False\n", "'prompt' is missing"),
    _outcomes("outcomes that are neither", "prompt,small,large\nhi,perhaps,False\n", "row 2, column 'small'", "'perhaps'"),
    scenario(
        "no model of outcomes", "", "inference: {on_miss: modelled}\n", "scenario.yaml:24: field inference.on_miss",
        "'modelled' needs a model of outcomes", "tasks of kind 'modelled' have none",
    ),
    scenario("episodes missing", _TASKS, "tasks: {kind: intercode, slm_path: a.json, llm_path: b.json}", "a.json", "no such file"),
    scenario("recorded answers for one role only", "role: slm", "role: llm")._replace(
        files={SCENARIO: _ONE_ROLE, "a.csv": "prompt,s,l\nhi,True,False\n"}, says=("scenario.yaml:3", "role slm", "Add the other")
    ),
    _recording("recording missing", None, "answers.jsonl", "no such file"),
    _recording("recording of another version", "\n".join(recording_lines(7)), "row 1", "version 7", "record again"),
    _recording("recording that is none", '{"a": 1}\n', "row 1", "not an Isthmus recording"),
    _recording("recording of text", "hello\n", "row 1", "not valid JSON"),
    _recording("recording without tasks", _GOOD[0] + "\n", "holds no task"),
    _recording("recording without an answer's end", "\n".join(_GOOD)[:-20], "row 4", "not valid JSON"),
    _recording("recording without its last line", "\n".join(_GOOD[:-1]), "holds 1 of 2 answers", "Record again"),
    _recording("recording with a changed line", "\n".join(_CHANGED), "row 3", "key does not belong"),
    _recording("recording without a tier's model", "\n".join(recording_lines(models=("edge",))), "no answers of 'cloud'", "model_name"),
    _recording("truncated gzip", gzip.compress("\n".join(_GOOD).encode())[:-30], "answers.jsonl.gz", path="answers.jsonl.gz"),
    _plugin("policy file missing", None, "no file", "mine.py", "scenario's folder"),
    scenario("policy file with an endless name", _PLUGIN, f"- {'x' * 300}.py:Mine", "scenario.yaml:21", "no file"),
    _plugin("policy file broken", "x = (\n", "mine.py:1", "SyntaxError"),
    _plugin("policy file that fails", "\nraise RuntimeError('no luck')\n", "mine.py:2", "RuntimeError: no luck"),
    _plugin("policy file that exits", "import sys\nsys.exit(0)\n", "mine.py:2", "SystemExit"),
    _plugin("policy file without the class", "x = 1\n", "mine.py", "no class 'Mine'"),
    _plugin("policy class that is none", "class Mine:\n    pass\n", "'Mine' is not a RoutingPolicy"),
]  # fmt: skip
