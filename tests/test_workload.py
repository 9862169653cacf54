"""What a scenario asks: tasks, their order, who answers, and recordings by reference."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.scenario import BandwidthFile, Scenario
from sim.simulation import simulate
from sim.workload import build_workload, load_trace
from tests.helpers import NOWHERE, Chosen, always, rows, run_built, scenario, slots
from workloads.errors import InputError, RecordingMiss
from workloads.recording import Recording, write_recording
from workloads.task import Completion, Message, Task

PAIR = {"edge": slots(mean_s=0.1), "cloud": slots("llm", 0.2)}


def asking(tasks: dict[str, Any], requests: int = 10, **fields: Any) -> Scenario:
    """A two-tier scenario over these tasks."""
    return scenario(PAIR, workload={"tasks": tasks, "requests": requests, **fields.pop("workload", {})}, **fields)


# -------------------------------------------------------------------------------------------------------- modelled tasks


def test_every_request_has_a_task_of_its_own() -> None:
    """Up to `distinct_tasks` every request is a new task, in the order drawn."""
    built = build_workload(asking({"kind": "modelled"}, 50), 1, NOWHERE)
    assert [task.id for task in built.requests] == [f"seed1-{i}" for i in range(50)]


def test_tasks_repeat_in_a_new_order() -> None:
    """Beyond the distinct ones all are asked again before any is asked a third time, in another order."""
    built = build_workload(asking({"kind": "modelled", "distinct_tasks": 8}, 24), 1, NOWHERE)
    rounds = [[task.id for task in built.requests[start : start + 8]] for start in (0, 8, 16)]
    assert all(sorted(ids) == sorted(rounds[0]) for ids in rounds)
    assert rounds[1] != rounds[0] != rounds[2] != rounds[1]


def test_modelled_options_reach_the_tasks() -> None:
    """Prompt length, steps and tool time of the scenario are those of the tasks."""
    tasks = {"kind": "modelled", "mean_subtasks": 3.0, "prompt_tokens": 900.0, "tokens_cv": 0.0, "tool_s": 0.5}
    built = build_workload(asking(tasks, 2000), 1, NOWHERE)
    assert {len(task.latent.weights) for task in built.requests} == {3}
    assert np.mean([task.prompt_tokens for task in built.requests]) == pytest.approx(
        900 * np.sinh(0.25) / 0.25, rel=0.02
    )
    records = run_built(asking(tasks), always("edge"))
    assert {row["tool_s"] for row in rows(records.subtasks)} == {0.0, 0.5}


# ----------------------------------------------------------------------------------------------------------- recordings


def recorded(folder: Path, *, mixed: bool = True) -> str:
    """A recording of four two-step tasks by models `edge` and `cloud`; without the mixed paths where told so."""
    recording = Recording(["edge", "cloud"])
    for number in range(4):
        task = Task(f"q{number}", f"question {number}", "42", "sums")
        recording.tasks.append(task)
        first = (Message("user", task.prompt),)
        for model in recording.models:
            recording.add(task.id, first, _answer(model, f"{model} acts", tool_text="seen", tool_s=0.25))
            after = (*first, Message("assistant", f"{model} acts"), Message("tool", "seen"))
            for closer in recording.models:
                if mixed or closer == model:
                    recording.add(task.id, after, _answer(closer, "42", score=float(closer == "cloud")))
    write_recording(recording, folder / "answers.jsonl.gz")
    return "answers.jsonl.gz"


def _answer(model: str, text: str, **fields: Any) -> Completion:
    return Completion(model, text, 20, 5, 400, **fields)


def test_a_recording_is_replayed(tmp_path: Path) -> None:
    """Answers, tool times and grades come from the recording, whatever the path, and count as exact."""
    world = asking({"kind": "recording", "path": recorded(tmp_path)}, 8)
    path = tmp_path / NOWHERE.name
    built = build_workload(world, 1, path)
    assert Counter(task.id for task in built.requests) == {f"q{i}": 2 for i in range(4)}
    crossing = Chosen(lambda seen: "cloud" if seen.call.position else "edge")
    for policy, score in ((always("edge"), 0.0), (crossing, 1.0)):
        records = simulate(world, built, policy, 1, lambda file: load_trace(file, path))
        assert records.requests["score"].tolist() == [score] * 8
        assert set(records.requests["provenance"]) == {"exact"}
        assert [row["tool_s"] for row in rows(records.subtasks) if row["request"] == 0] == [0.0, 0.25]


def test_a_path_nobody_recorded_is_refused_with_the_nearest(tmp_path: Path) -> None:
    """A miss names model, subtask, task and the nearest recorded conversation."""
    world = asking({"kind": "recording", "path": recorded(tmp_path, mixed=False)}, 1)
    path = tmp_path / NOWHERE.name
    policy = Chosen(lambda seen: "cloud" if seen.call.position else "edge")
    with pytest.raises(
        RecordingMiss, match=r"no answer of 'cloud' to subtask 1 of task 'q\d'.*nearest recorded conversation is 'edge'"
    ):
        simulate(world, build_workload(world, 1, path), policy, 1, lambda file: load_trace(file, path))


def test_a_model_without_answers_is_an_input_error(tmp_path: Path) -> None:
    """The tiers' models must be among the recorded ones; the message names those."""
    recorded(tmp_path)
    world = scenario(
        {"edgy": slots()}, workload={"tasks": {"kind": "recording", "path": "answers.jsonl.gz"}, "requests": 1}
    )
    with pytest.raises(InputError, match=r"answers\.jsonl\.gz.*no answers of 'edgy'.*edge, cloud"):
        build_workload(world, 1, tmp_path / NOWHERE.name)
    named = scenario(
        {"edgy": slots(model_name="cloud")},
        workload={"tasks": {"kind": "recording", "path": "answers.jsonl.gz"}, "requests": 1},
    )
    assert len(build_workload(named, 1, tmp_path / NOWHERE.name).tasks) == 4


def test_a_broken_recording_names_its_line(tmp_path: Path) -> None:
    """Version, damage and truncation are input errors with the row."""
    good = gzip.decompress((tmp_path / recorded(tmp_path)).read_bytes()).decode().splitlines()
    cases = {
        "version": [good[0].replace('"isthmus_recording":2', '"isthmus_recording":9'), *good[1:]],
        "row 1": ["{}", *good[1:]],
        "row 6": [*good[:5], good[5][: len(good[5]) // 2], *good[6:]],
        "row 7": [*good[:6], good[6].replace('"completion_tokens":5', '"completion_tokens":-5'), *good[7:]],
        "checksum": [*good[:6], good[6].replace('"text":"edge acts"', '"text":"edge rests"'), *good[7:]],
    }
    for number, (expected, lines) in enumerate(cases.items()):
        name = f"broken{number}.jsonl"
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        world = asking({"kind": "recording", "path": name}, 1)
        with pytest.raises(InputError, match=rf"{name}.*{expected}"):
            build_workload(world, 1, tmp_path / NOWHERE.name)


# ---------------------------------------------------------------------------------------------------- recordings of others


def test_routellm_answers(shared_data) -> None:
    """Both models' grades of GSM8K as published: the whole file under All-SLM and All-LLM."""
    path = shared_data("outcomes/routellm_gsm8k_responses.csv")
    tasks = {
        "kind": "routellm", "path": str(path), "slm": "mistralai/Mixtral-8x7B-Instruct-v0.1", "llm": "gpt-4-1106-preview"
    }  # fmt: skip
    world = asking(tasks, 1000)
    built = build_workload(world, 1, NOWHERE)
    assert len({task.id for task in built.requests}) == 1000
    records = {tier: run_built(world, always(tier)) for tier in PAIR}
    assert records["cloud"].requests["score"].mean() > records["edge"].requests["score"].mean() + 0.1
    assert set(records["cloud"].requests["subtasks"]) == {1}


def test_intercode_episodes(shared_data) -> None:
    """Pure placements are exact; mixed ones need a model of outcomes and are labelled with it."""
    tasks = {
        "kind": "intercode", "slm_path": str(shared_data("agents/intercode_sql_gpt-3.5.json")),
        "llm_path": str(shared_data("agents/intercode_sql_gpt-4.json")),
    }  # fmt: skip
    mixed = Chosen(lambda seen: ("edge", "cloud")[seen.call.position % 2])
    world = asking(tasks, 200)
    pure = run_built(world, always("cloud"))
    assert set(pure.requests["provenance"]) == {"exact"}
    assert pure.requests["status"].tolist() == ["completed"] * 200
    with pytest.raises(RecordingMiss, match=r"set inference\.on_miss: modelled"):
        run_built(world, mixed)
    modelled = run_built(asking(tasks, 200, inference={"on_miss": "modelled"}), mixed)
    assert {"modelled"} < set(modelled.requests["provenance"]) | {"exact"}
    assert np.all((modelled.requests["score"] >= 0) & (modelled.requests["score"] <= 1))


def test_recorded_pairs_need_both_roles() -> None:
    """Outcomes of two models need a small and a large tier."""
    world = scenario(
        {"edge": slots()}, workload={"tasks": {"kind": "routellm", "path": "x.csv", "slm": "a", "llm": "b"}}
    )
    with pytest.raises(InputError, match="role slm and one of role llm"):
        build_workload(world, 1, NOWHERE)


# ------------------------------------------------------------------------------------------------------ bandwidth traces


def test_a_bandwidth_trace_is_scaled(tmp_path: Path) -> None:
    """The factor applies to the recorded rates, not to the times."""
    (tmp_path / "net.txt").write_text("0 1.0\n5 3.0\n10 2.0\n")
    plain, scaled = (
        load_trace(BandwidthFile(path="net.txt", scale=scale), tmp_path / NOWHERE.name) for scale in (1.0, 2.5)
    )
    assert scaled.mbps.tolist() == [2.5 * rate for rate in plain.mbps]
    assert scaled.durations_s.tolist() == plain.durations_s.tolist()
