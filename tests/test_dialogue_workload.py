"""Generated dialogues in the simulation: what the records say of their turns, and what stays the same under every policy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.cells import expand_cells
from sim.policies import POLICIES
from sim.policies.base import RoutingPolicy
from sim.records import Records
from sim.scenario import Scenario
from sim.workload import BuiltWorkload, build_workload
from tests.conftest import ROOT
from tests.helpers import NOWHERE, load_text, rows, run_built, scenario
from workloads.dialogue import turns_of
from workloads.dialogue_truth import latent_of
from workloads.errors import InputError

TIERS = {
    "local": {"role": "slm", "model": "llama-3.2-3b-int4", "device": "jetson-orin-nx"},
    "cloud": {"role": "llm", "model": "gpt-4o", "endpoint": "gpt-4o-class"},
}
LINKS = ({"between": ("home", "cloud"), "link": "wifi"},)


def world(requests: int = 40, client: dict[str, Any] | None = None, **tasks: Any) -> Scenario:
    """A phone-like device on board, an API over WiFi, one dialogue after another."""
    arrivals = {"kind": "constant", "rate_per_s": 0.01}
    workload = {"tasks": {"kind": "dialogues", **tasks}, "requests": requests, "arrivals": arrivals}
    return scenario(TIERS, links=LINKS, workload=workload, client=client or {})


def policy(name: str, **options: Any) -> RoutingPolicy:
    """A policy of the table."""
    return POLICIES[name](POLICIES[name].Options(**options))


def of_kind(built: BuiltWorkload) -> list[tuple[Any, ...]]:
    """What was drawn: turns, needs, sizes."""
    return [(turns_of(task), latent_of(task), task.attachments) for task in built.tasks]


def test_a_requests_score_is_the_mean_of_its_turns_scores() -> None:
    """One row per turn, graded; the requests' grades follow from them; everything is labelled modelled."""
    records = run_built(world(), policy("tmo-random"))
    by_request: dict[int, list[float]] = {}
    for row in rows(records.subtasks):
        by_request.setdefault(row["request"], []).append(row["score"])
    assert 2 <= min(map(len, by_request.values())) <= max(map(len, by_request.values())) <= 5
    for row in rows(records.requests):
        assert row["score"] == pytest.approx(np.mean(by_request[row["request"]]), rel=1e-12)
        assert row["provenance"] == "modelled"
        assert row["task_family"] in {"kitchen", "workshop", "clinic", "farm", "warehouse", "classroom"}


def test_uploads_and_prompts_are_those_of_the_actions() -> None:
    """Each fixed action sends exactly its modalities with every turn, and their tokens are in the prompt."""
    built = build_workload(world(), 1, NOWHERE)
    alone = run_built(world(), policy("tmo-fixed", action=1)).subtasks
    for action, chosen in ((2, [0]), (4, [2]), (7, [1, 2]), (8, [0, 1, 2])):
        sent = run_built(world(), policy("tmo-fixed", action=action)).subtasks
        attached = [[built.requests[request].attachments[i] for i in chosen] for request in sent["request"]]
        np.testing.assert_array_equal(
            sent["upload_bytes"] - alone["upload_bytes"], [sum(a.size_bytes for a in of) for of in attached]
        )
        np.testing.assert_array_equal(
            sent["prompt_tokens"] - alone["prompt_tokens"], [sum(a.tokens for a in of) for of in attached]
        )


def test_the_documented_means_are_those_of_the_truth() -> None:
    """docs/dialogues.md: bytes and tokens of a picture; scores on board, with the text alone, with everything, at best."""
    told = " ".join((ROOT / "docs/dialogues.md").read_text(encoding="utf-8").split())
    built = build_workload(world(1500, noise=0.0), 1, NOWHERE)
    sizes = np.array([a.size_bytes for task in built.tasks for a in task.attachments])
    tokens = np.array([a.tokens for task in built.tasks for a in task.attachments])
    kilobytes, median = re.search(r"has (\d+) kB in the mean \(median (\d+) kB\)", told).groups()  # type: ignore[union-attr]
    assert sizes.mean() / 1e3 == pytest.approx(float(kilobytes), rel=0.02)
    assert np.median(sizes) / 1e3 == pytest.approx(float(median), rel=0.02)
    assert tokens.mean() == pytest.approx(float(re.search(r"kB\) and (\d+) tokens", told)[1]), rel=0.02)  # type: ignore[index]
    pattern = r"(0\.\d+) on board, (0\.\d+) in the cloud with the text alone, (0\.\d+) with everything, (0\.\d+) with the best"
    stated = list(map(float, re.search(pattern, told).groups()))  # type: ignore[union-attr]
    small = world(400, noise=0.0)
    policies = [policy("tmo-fixed", action=action) for action in (0, 1, 8)] + [policy("oracle-dialogues", budget=1.0)]
    found = [run_built(small, each).requests["score"].mean() for each in policies]
    assert found == pytest.approx(stated, abs=0.015)


def test_what_is_sent_along_makes_answers_better_and_turns_slower_and_dearer() -> None:
    """Text alone, one picture, all of them: scores, seconds on the uplink, dollars and the API's prefill rise."""
    found = [run_built(world(80), policy("tmo-fixed", action=action)) for action in (1, 2, 8)]
    for table, column in (
        ("requests", "score"),
        ("subtasks", "uplink_s"),
        ("requests", "total_usd"),
        ("subtasks", "prefill_s"),
    ):
        means = [getattr(records, table)[column].mean() for records in found]
        assert means == sorted(means), column


def turn_scores(records: Records) -> dict[tuple[int, int], float]:
    """Scores by (request, position)."""
    return {(row["request"], row["position"]): row["score"] for row in rows(records.subtasks)}


def test_the_same_action_after_the_same_history_gets_the_same_score() -> None:
    """Common random numbers: whoever takes the action, and whenever; another action or another seed gets another score."""
    always, sometimes = (run_built(world(), policy(name)) for name in ("all-llm", "tmo-cloud"))
    one, other = turn_scores(always), turn_scores(sometimes)
    everything = [
        key for key, row in zip(other, rows(sometimes.subtasks), strict=True)
        if key[1] == 0 and row["upload_bytes"] == rows(always.subtasks)[list(one).index(key)]["upload_bytes"]
    ]  # fmt: skip
    assert everything
    assert all(one[key] == other[key] for key in everything)
    assert sum(one[key] == other[key] for key in one) < len(one) / 2
    assert turn_scores(run_built(world(), policy("all-llm"))) == one
    assert turn_scores(run_built(world(), policy("all-llm"), seed=2)) != one


def test_splits_and_seeds_share_no_dialogue() -> None:
    """Dialogues to learn from are others than those to be judged on, and as the other split draws them."""
    test, train = (build_workload(world(split=split), 1, NOWHERE) for split in ("test", "train"))
    assert test.training is not None
    assert {task.id for task in test.training.tasks}.isdisjoint(task.id for task in test.tasks)
    assert {latent_of(t).key for t in test.training.tasks}.isdisjoint(latent_of(t).key for t in test.tasks)
    assert of_kind(test._replace(tasks=list(test.training.tasks)[:40])) == of_kind(train)
    assert of_kind(build_workload(world(), 2, NOWHERE)) != of_kind(test)
    assert build_workload(world(training_dialogues=0), 1, NOWHERE).training is None


def test_the_scenario_says_what_dialogues_are_drawn() -> None:
    """Modalities, categories, turns, domains and sizes reach the tasks; few distinct ones repeat."""
    tasks = build_workload(
        world(30, modalities=5, kinds=7, turns=(1,), domains=("farm",), distinct_tasks=10), 1, NOWHERE
    )
    assert len(tasks.tasks) == 10
    assert len(tasks.requests) == 30
    for task in tasks.tasks:
        assert (len(task.attachments), len(turns_of(task)), task.family) == (5, 1, "farm")
    blind = run_built(world(20, noise=0.0, distraction=0.0), policy("all-llm")).subtasks["score"]
    noisy = run_built(world(20, noise=0.9, distraction=0.0), policy("all-llm")).subtasks["score"]
    assert blind.std() < 0.03 < noisy.std()


def test_kept_attachments_travel_once_and_are_seen_again() -> None:
    """Where the cloud keeps them, always sending everything uploads less and is answered as well; sending once is nearly as good."""
    anew = run_built(world(), policy("all-llm"))
    kept = run_built(world(client={"keep_attachments": True}), policy("all-llm"))
    assert kept.requests["score"].tolist() == anew.requests["score"].tolist()
    assert kept.subtasks["upload_bytes"].sum() < 0.5 * anew.subtasks["upload_bytes"].sum()
    later = kept.subtasks["position"] > 0
    assert kept.subtasks["upload_bytes"][later].max() < 20_000


BAD = {
    "modalities: -1": "modalities",
    "modalities: 40": "modalities",
    "kinds: 0": "kinds",
    "turns: []": "turns",
    "turns: [0, 3]": "turns",
    "domains: [kitchn]": "kitchen",
    "size_scale: 0": "size_scale",
    "size_scale: .inf": "size_scale",
    "association_error: 2": "association_error",
    "memory: 1.5": "memory",
    "noise: -0.5": "noise",
    "split: exam": "split",
    "modality: 3": "modalities",
}


@pytest.mark.parametrize("line", BAD)
def test_what_cannot_be_drawn_is_one_message(line: str, tmp_path: Path) -> None:
    """Every impossible key of the tasks is refused when the scenario is read, with its line and what is allowed."""
    text = (
        "name: d\nworkload:\n  tasks:\n    kind: dialogues\n    "
        + line
        + "\ntiers:\n  cloud: {role: llm, model: gpt-4o, "
        "endpoint: gpt-4o-class}\npolicies: [all-llm]\n"
    )
    with pytest.raises(InputError) as found:
        load_text(tmp_path, text)
    assert f"{tmp_path / 'scenario.yaml'}:5" in str(found.value)
    assert BAD[line] in str(found.value)
    assert "\n" not in str(found.value)


def test_a_recording_is_not_for_dialogues(tmp_path: Path) -> None:
    """They bring their own answers; a live model cannot be asked what nobody can show it."""
    text = (
        "name: d\nworkload: {tasks: {kind: dialogues}}\ntiers:\n  cloud: {role: llm, model: gpt-4o, endpoint: gpt-4o-class}\n"
        "policies: [all-llm]\ninference: {backend: serve}\n"
    )
    with pytest.raises(InputError, match="bring their own answers"):
        load_text(tmp_path, text)


def test_a_sweep_over_the_tasks_changes_them(tmp_path: Path) -> None:
    """`--set` and sweeps reach the fields of dialogues as any others."""
    text = (
        "name: d\nworkload: {tasks: {kind: dialogues}, requests: 5}\ntiers:\n  cloud: {role: llm, model: gpt-4o, endpoint: gpt-4o-class}\n"
        "policies: [tmo-cloud]\nseeds: [1]\nsweep: {workload.tasks.modalities: [0, 6]}\n"
    )
    cells = expand_cells(load_text(tmp_path, text))
    counts = [len(build_workload(cell.scenario, 1, NOWHERE).tasks[0].attachments) for cell in cells]
    assert counts == [0, 6]
