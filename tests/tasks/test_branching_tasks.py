"""Tasks that fall into independent questions, and models of any number that are made up from solutions."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from sim.cells import expand_cells, run_cell
from sim.loading import LoadedScenario, load_scenario
from sim.policies.features import FloatArray
from sim.policies.hera import policy as hera_policy
from sim.policies.hera.policy import Hera, HeraOptions
from sim.recording_run import record
from sim.study import study_of
from sim.workload import build_workload
from tests.conftest import ROOT
from tests.helpers import load_text, rows
from tests.policies import decisions
from tests.recording_process import SCENARIO
from workloads.agent import in_turn
from workloads.backend import ScriptedBackend
from workloads.errors import InputError
from workloads.recording import read_recording
from workloads.task import Completion, Message, ModelCall, Task
from workloads.tasks import sums
from workloads.tasks.branching import Branching, branching_agent, branching_tasks
from workloads.tasks.modelled_pair import Errors, ModelledPair, told
from workloads.tasks.pair import grade, pair_agent, pair_tasks, split_of
from workloads.trial import pure_trial

TASKS = branching_tasks("test", 60, 1, branches=(2, 3, 4))


def right_step(call: ModelCall, model: str, spoilt: str = "") -> Completion:
    """The next step of whichever question a conversation is about, worked out from its text; wrong where it holds `spoilt`."""
    prompt, known = call.messages[0].content, told(call.messages)
    facts = [
        sentence.strip().split(" is ") for sentence in prompt.split(" . ") if " is " in sentence and "?" not in sentence
    ]
    asked = prompt.split("how much is ")[1].removesuffix(" ?")
    if asked in known:
        return Completion(model, f"answer {int(known[asked]) + bool(spoilt and spoilt in prompt)}", 1, 1, 1)
    for name, told_as in facts:
        if name not in known and all(
            word in known or word in ("plus", "minus", "times") or word.isdigit() for word in told_as.split()
        ):
            signs = {"plus": "+", "minus": "-", "times": "*"}
            text = " ".join(known.get(word, signs.get(word, word)) for word in told_as.split())
            return Completion(model, f"compute {name} = {text}", 1, 1, 1)
    raise AssertionError(prompt)


def test_right_steps_everywhere_make_the_right_answer() -> None:
    """Through branches, tools and join."""
    for task in TASKS:
        trial = pure_trial(branching_agent(), task, ScriptedBackend(right_step), "m")
        assert (trial.score, trial.answer) == (1.0, task.answer)


def test_one_wrong_branch_makes_the_answer_wrong() -> None:
    """The join adds what the branches answered, right or not."""
    for task in TASKS[:20]:
        made: Branching = task.latent
        spoilt = made.problems[1].prompt
        trial = pure_trial(branching_agent(), task, ScriptedBackend(lambda c, m, s=spoilt: right_step(c, m, s)), "m")  # type: ignore[misc]
        assert trial.score == 0.0
        assert int(trial.answer) == made.total + 1


def test_a_branch_without_a_number_leaves_nothing_to_join() -> None:
    """The request ends there with score 0."""
    trial = pure_trial(
        branching_agent(), TASKS[0], ScriptedBackend(lambda c, m: Completion(m, "answer Nia", 1, 1, 1)), "m"
    )
    assert (trial.score, trial.answer) == (0.0, "")
    assert len(trial.calls) == len(TASKS[0].latent.problems)


def test_tasks_are_what_the_pair_knows() -> None:
    """Questions and right joins are of the split, sums stay in range, and the same seed gives the same tasks."""
    assert branching_tasks("test", 60, 1, branches=(2, 3, 4)) == TASKS
    assert len({task.prompt for task in TASKS}) == len({task.id for task in TASKS}) == 60
    for task in TASKS:
        made: Branching = task.latent
        join = made.join([problem.answer for problem in made.problems])
        assert all(split_of(question) == "test" for question in (*(problem.prompt for problem in made.problems), join))
        assert made.total <= sums.LARGEST
        assert task.answer == str(made.total)
        assert grade(task, f"{made.total} .") == 1.0


def test_every_call_has_a_place_of_its_own_that_no_answer_moves() -> None:
    """Step s of branch b of k is at s * k + b whatever the others do; branches have numbers, the join has none."""
    task = next(task for task in TASKS if len(task.latent.problems) == 3)
    calls = pure_trial(branching_agent(), task, ScriptedBackend(right_step), "m").calls
    assert len({call.position for call in calls}) == len(calls)
    assert all(call.task is task for call in calls)
    for call in calls:
        steps = sum(message.role == "assistant" for message in call.messages)
        assert call.position == (3 * steps + call.branch - 1 if call.branch else 30 + steps)
    assert {call.branch for call in calls} == {0, 1, 2, 3}
    first = next(in_turn(branching_agent()(task)))
    assert (first.position, first.branch) == (0, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"branches": (1,)}, r"branching_tasks: branches: found \[1\].*Give numbers from 2 to 4"), ({"branches": ()}, "found \\[\\]"),
        ({"branches": (5,)}, "from 2 to 4"), ({"split": "tset"}, "branching_tasks: split.*test"),
        ({"lengths": (7,)}, "branching_tasks: lengths"), ({"distractors": (3,)}, "branching_tasks: distractors"), ({"count": -1}, "count"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_said(fields: dict[str, Any], message: str) -> None:
    """With the function's own name in front."""
    with pytest.raises(InputError, match=message):
        branching_tasks(**{"split": "test", "count": 1, "seed": 1, **fields})


def hasty(call: ModelCall, model: str) -> Completion:
    """The little model is wrong in every third question; both name the tokens they take."""
    wrong = call.messages[0].content if model == "little" and len(call.messages[0].content) % 3 == 0 else ""
    step = right_step(call, model, wrong)
    return step._replace(
        prompt_tokens=call.prompt_tokens, completion_tokens=len(step.text.split()), download_bytes=300 + len(step.text)
    )


@pytest.mark.parametrize("depth", [None, 15])
def test_forks_are_recorded_and_replayed_as_they_were(tmp_path: Path, depth: int | None) -> None:
    """What policies asked in parallel branches, or every placement: the same rows come of it, whichever branch asked first."""
    few = ["workload.tasks={kind: branching, distinct_tasks: 8}", "workload.requests=8"]
    loaded = load_text(tmp_path, SCENARIO, few)
    summary = record(loaded, ScriptedBackend(hasty), tmp_path / "r.jsonl.gz", depth)
    assert summary.accuracy["large"] == 1.0
    assert summary.accuracy["little"] < 1.0
    replaying = load_text(tmp_path, SCENARIO, [*few, "inference.backend=replay", "inference.recording=r.jsonl.gz"])
    for live, replay in zip(expand_cells(loaded), expand_cells(replaying), strict=True):
        first, second = (
            rows(found.subtasks) for found in (run_cell(live, live=ScriptedBackend(hasty)), run_cell(replay))
        )
        assert [{**row, "score": 0, "ttft_s": 0} for row in first] == [
            {**row, "score": 0, "ttft_s": 0} for row in second
        ]
        assert any(row["start_s"] == other["start_s"] for row, other in pairwise(first))


# ------------------------------------------------------------------------------------------------------- made-up models


def test_a_model_errs_wherever_a_better_one_does_and_alike() -> None:
    """One draw for all at every moment: who errs says the same wrong thing, and accuracy rises with quality."""
    names = {"small": 0.2, "a": 0.4, "b": 0.6, "c": 0.9, "perfect": 1.0}
    backend, tasks = ModelledPair(names, Errors(0.4, 0.0)), pair_tasks("test", 300, 5)
    right, erred = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for task in tasks:
        trials = {name: pure_trial(pair_agent(), task, backend, name) for name in names}
        for call, best in zip(trials["perfect"].calls, trials["perfect"].completions, strict=True):
            wrong = {name: text for name in names if (text := backend.submit(call, name).text) != best.text}
            assert list(wrong) == list(names)[: len(wrong)]
            assert len(set(wrong.values())) <= 1
            for name in wrong:
                erred[name] += 1
        for name, trial in trials.items():
            right[name] += bool(trial.score)
    assert right["small"] < right["a"] < right["b"] < right["c"] < right["perfect"] == 300
    assert erred["small"] > erred["a"] > erred["b"] > erred["c"] > erred["perfect"] == 0


def test_models_that_do_not_err_say_the_same_in_the_same_style() -> None:
    """From `coarse_from` on models think back and take two names a step, below it one."""
    backend, task = (
        ModelledPair({"small": 0.0, "middle": 0.5, "large": 1.0}, Errors(0.0, 0.0)),
        pair_tasks("test", 1, 5, lengths=(4,))[0],
    )
    said = {
        m: [c.text for c in pure_trial(pair_agent(), task, backend, m).completions]
        for m in ("small", "middle", "large")
    }
    assert said["middle"] == said["large"]
    assert len(said["small"]) == 4 + 2
    assert len(said["large"]) == 3 + 1
    assert all(c.provenance == "modelled" for c in pure_trial(pair_agent(), task, backend, "large").completions)


def test_what_tools_could_not_do_is_not_known() -> None:
    """Values come from observations only; the last word counts."""
    said = (
        Message("user", "Q = 1"),
        Message("tool", "Nia = 3 ; Ben = error: cannot read"),
        Message("tool", "F = nothing found ; Nia = 4"),
    )
    assert told(said) == {"Nia": "4"}


def test_a_task_without_solution_cannot_be_answered() -> None:
    """Said with what to do."""
    call = ModelCall(Task("t"), 0, (Message("user", "x"),), 1, 1)
    with pytest.raises(InputError, match=r"task 't': brings no solution.*kind pair, or a recording"):
        ModelledPair({"m": 1.0}).submit(call, "m")


THREE = """
name: three
workload: {tasks: {kind: pair, distinct_tasks: 12}, requests: 12}
inference: {backend: modelled}
tiers:
  device: {role: slm, model: {quality: 0.0}, model_name: small, service: {mean_s: 1.0}}
  phone: {role: slm, model: {quality: 0.0}, model_name: small, service: {mean_s: 1.0}}
  box: {role: slm, model: {quality: 0.6}, model_name: middle, service: {mean_s: 1.0}}
  cloud: {role: llm, model: {quality: 1.0}, model_name: large, service: {mean_s: 1.0, slots: 9}}
pricing: {tokens: {cloud: {input_usd_per_mtok: 2.0, output_usd_per_mtok: 8.0}}}
policies:
  - {policy: hera, estimators: perfect, tiers: all, components: sse+sle+cd+sd, kappa: 0.95, time_usd_per_s: 0.00001}
seeds: [1]
"""


def three(folder: Path, *settings: str) -> LoadedScenario:
    """Four tiers with three models."""
    return load_text(folder, THREE, settings)


@pytest.mark.slow
def test_three_models_are_recorded_and_replayed(tmp_path: Path) -> None:
    """Every placement on three models goes into a recording, and HERA decides on it as it does on the models themselves."""
    backend = ModelledPair({"small": 0.0, "middle": 0.6, "large": 1.0})
    summary = record(three(tmp_path), backend, tmp_path / "three.jsonl.gz", 15)
    assert read_recording(summary.path).models == ("small", "middle", "large")
    assert summary.accuracy["large"] >= summary.accuracy["small"]
    (cell,) = expand_cells(three(tmp_path))
    (again,) = expand_cells(three(tmp_path, "inference.backend=replay", "inference.recording=three.jsonl.gz"))
    first, second = (rows(run_cell(one).subtasks) for one in (cell, again))
    assert [(r["tier"], r["reason"], r["end_s"]) for r in first] == [
        (r["tier"], r["reason"], r["end_s"]) for r in second
    ]
    assert len({row["tier"] for row in first}) >= 3
    assert {row["provenance"] for row in second} == {"modelled"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("workload.tasks={kind: branching}",), r"inference.backend: 'modelled' makes up answers to tasks of kind 'pair' only"),
        (("tiers.phone.model.quality=0.3",), r"model_name 'small' has qualities 0 and 0.3"),
        (("policies=[{policy: hera, estimators: perfect, tiers: all, usd_budget: 0.1}]",), "'all' does not go with usd_budget"),
        (("policies=[{policy: hera, estimators: folder, tiers: all}]",), "know one pair"),
        (("policies=[{policy: hera, tiers: three}]",), "option 'tiers'"),
        (("policies=[{policy: hera, decomposition: some}]",), "option 'decomposition'"),
        (("client.max_branches=0",), "max_branches"),
    ],
)  # fmt: skip
def test_a_scenario_that_cannot_run_is_said(tmp_path: Path, settings: tuple[str, ...], message: str) -> None:
    """One message, before anything runs."""
    with pytest.raises(InputError, match=message):
        expand_cells(three(tmp_path, *settings))


# ----------------------------------------------------------------------------------------------------- the shipped scenario


@pytest.fixture(scope="module")
def branching() -> LoadedScenario:
    """Forty requests that do not meet."""
    settings = [
        "workload.requests=40", "workload.arrivals={kind: constant, rate_per_s: 0.01}", "seeds=[1]", "sweep.client.max_branches=[1,2,null]",
        "policies=[all-slm, all-llm, {policy: random, p: 0.5}]",
    ]  # fmt: skip
    return load_scenario(ROOT / "scenarios/branching.yaml", settings)


def test_branches_change_no_answer_and_no_placement_but_how_long_it_takes(branching: LoadedScenario) -> None:
    """The same cost, score and placements with 1, 2 and all branches at a time; latency falls, and never below the longest branch."""
    records = {(cell.variant, cell.policy.name): run_cell(cell) for cell in expand_cells(branching)}
    for policy in ("all-slm", "all-llm", "random(p=0.5)", "random"):
        found = [record for (_, name), record in records.items() if name == policy]
        if not found:
            continue
        chain, two, fork = found
        for other in (two, fork):
            assert other.requests["score"].tolist() == chain.requests["score"].tolist()
            placed = [
                sorted((r["request"], r["position"], r["tier"], r["completion_tokens"]) for r in rows(t.subtasks))
                for t in (chain, other)
            ]
            assert placed[0] == placed[1]
        assert (two.requests["latency_s"] <= chain.requests["latency_s"] + 1e-9).all()
        assert fork.requests["latency_s"].mean() < 0.85 * chain.requests["latency_s"].mean()
    assert sum(name.startswith("random") for _, name in records) == 3


class BagOfWords:
    """A small similarity: cosine of the counts of words, each counted in one of 64 places."""

    def __init__(self, encoder: str = "") -> None:
        del encoder

    def know(self, texts: Iterable[str]) -> None:
        """Nothing is kept."""

    def embedding(self, text: str) -> FloatArray:
        """Of unit length, shape (64,)."""
        counts = np.zeros(64)
        for word in text.split():
            counts[crc32(word.encode()) % 64] += 1
        return counts / max(1.0, float(np.linalg.norm(counts)))

    def __call__(self, first: str, second: str) -> float:
        return round(float(self.embedding(first) @ self.embedding(second)), 5)


def test_retrieval_on_every_tier_learns_each_pair_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other requests on three models are profiled pair by pair; what is placed is placed on a tier of the model that was looked at."""
    monkeypatch.setattr(hera_policy, "EmbeddingSimilarity", BagOfWords)
    loaded = three(tmp_path, "policies=[{policy: hera, tiers: all, kappa: 0.8}]")
    study = study_of(loaded.scenario, build_workload(loaded.scenario, 1, loaded.path), 1)
    study = study._replace(tasks=study.tasks[:4], training=study._replace(tasks=pair_tasks("validation", 12, 1)))
    placed_on = []
    for options in (HeraOptions(tiers="all"), HeraOptions(tiers="all", components="sse", kappa=1.0)):
        policy = Hera(options)
        policy.prepare(study)
        made = decisions(policy, study)
        assert {request for request, _ in made} == {0, 1, 2, 3}
        placed_on.append({placement.tier for placement in made.values()})
    assert "box" in placed_on[0], "the middle model's twelve requests mostly end as the large one's"
    assert placed_on[1] == {"cloud"}, "nothing is more alike than equal"
    with pytest.raises(InputError, match="nothing to learn from"):
        Hera(HeraOptions(tiers="all")).prepare(study._replace(training=None))
