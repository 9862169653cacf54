"""The scenarios that come with Isthmus: each is valid, and a scaled-down run of it answers the question it asks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.cells import expand_cells, run_cell
from sim.loading import data_path, load_scenario
from sim.metrics import with_shares
from sim.records import Columns
from sim.statistics import mean_interval
from sim.study import roofline_of
from tests.conftest import ROOT

SharedData = Callable[[str], Path]
SCENARIOS = sorted((ROOT / "scenarios").glob("*.yaml"))
NAMES = [path.stem for path in SCENARIOS]


def recorded_files(name: str) -> list[str]:
    """The files a scenario takes from $ISTHMUS_DATA, relative to it."""
    text = (ROOT / "scenarios" / f"{name}.yaml").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"\$ISTHMUS_DATA/([^\s,}]+)", text)))


@pytest.fixture
def need(shared_data: SharedData) -> Callable[[str], Path]:
    """Path of a scenario whose recorded files are there; skips where one is missing."""

    def find(name: str) -> Path:
        for file in recorded_files(name):
            shared_data(file)
        return ROOT / "scenarios" / f"{name}.yaml"

    return find


def runs(path: Path, settings: list[str], **only: Any) -> dict[tuple[str, str], Columns]:
    """The request tables of a run by (variant, policy family); `variant` and `family` say which cells to run."""
    tables: dict[tuple[str, str], list[Columns]] = {}
    loaded = load_scenario(path, settings)
    for cell in expand_cells(loaded):
        variant = cell.variant
        if variant not in only.get("variant", (variant,)) or cell.policy.family not in only.get(
            "family", (cell.policy.family,)
        ):
            continue
        records = run_cell(cell)
        table = with_shares({**records.requests}, loaded.scenario.workload.warmup_requests)
        tables.setdefault((variant, cell.policy.family), []).append(table)
    return {key: joined(parts) for key, parts in tables.items()}


def joined(tables: list[Columns]) -> dict[str, Any]:
    """The tables of several seeds under one another."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def mean(table: Columns, column: str) -> float:
    """Mean of a column."""
    return float(table[column].mean())


def p95(table: Columns) -> float:
    """95th percentile of latency, s; a request that was given up counts with the time until then."""
    return float(np.quantile(table["latency_s"], 0.95))


@pytest.mark.parametrize("name", NAMES)
def test_every_scenario_and_every_point_of_its_sweep_is_valid(name: str, need: SharedData) -> None:
    """Policies, prices, profiles and recorded files exist for every cell, and the file is named after its scenario."""
    path = need(name)
    loaded = load_scenario(path)
    assert loaded.scenario.name == name
    assert loaded.scenario.description
    assert expand_cells(loaded)
    for file in recorded_files(name):
        assert data_path(f"$ISTHMUS_DATA/{file}", path).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_every_scenario_opens_with_its_question_and_is_documented(name: str) -> None:
    """The opening comment asks a question and says how to run it and what to look at; docs/scenarios.md has its section."""
    text = (ROOT / "scenarios" / f"{name}.yaml").read_text(encoding="utf-8")
    opening = "".join(line for line in text.splitlines(keepends=True)[:40] if line.startswith("#"))
    assert "?" in opening.split("\n#\n")[0]
    assert f"run_sim.py run scenarios/{name}.yaml" in opening
    assert "Look at" in opening
    assert re.search(r"[Tt]akes about .* on 2 cores", opening.replace("\n# ", " "))
    assert f"\n## {name}\n" in (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")


def test_every_recorded_file_is_documented() -> None:
    """docs/data.md has an entry for each recorded file, or for its folder of traces."""
    documented = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    for file in {file for name in NAMES for file in recorded_files(name)}:
        entry = file.rsplit("/", 1)[0] + "/" if file.startswith("network/") else file
        assert f"`{entry}`" in documented


def test_models_fit_into_the_memory_of_their_devices() -> None:
    """No scenario runs a model on hardware that could not load it."""
    for path in SCENARIOS:
        for tier in load_scenario(path).scenario.tiers.values():
            if tier.device is not None:
                roofline = roofline_of(tier)
                assert roofline is not None
                assert roofline.kv_capacity_tokens is None or roofline.kv_capacity_tokens > 10_000


def test_quickstart_replays_the_shipped_recording_exactly() -> None:
    """Every policy's answers are in the recording, of 15 MB at most; the oracle keeps steps small at the large model's accuracy."""
    policies = (
        "policies=[all-slm, all-llm, {policy: random, p: 0.5}, {policy: embedding-router, large_share: 0.5}, "
        "{policy: prompt-length, threshold_tokens: 32}, {policy: oracle-slm-usage, accuracy_share: 1.0}]"
    )
    found = runs(ROOT / "scenarios/quickstart.yaml", ["workload.requests=200", "seeds=[1]", policies])
    assert {kind for table in found.values() for kind in table["provenance"]} == {"exact"}
    small, large, oracle = (found["base", name] for name in ("all-slm", "all-llm", "oracle-slm-usage"))
    assert 0.3 < mean(small, "score") < 0.7 < 0.85 < mean(large, "score") <= mean(oracle, "score")
    assert mean(oracle, "slm_usage") > 0.3
    assert mean(small, "total_usd") < mean(oracle, "total_usd") < mean(large, "total_usd")
    assert (ROOT / "scenarios/recordings/pair.jsonl.gz").stat().st_size < 15e6


def test_modelled_the_oracle_needs_the_large_model_less_than_a_coin_does() -> None:
    """For 90 % of All-LLM's accuracy the oracle keeps half of the steps small; a coin that keeps half loses most of the gain."""
    policies = "policies=[all-slm, all-llm, {policy: random, p: 0.5}, {policy: oracle-slm-usage, accuracy_share: 0.9}]"
    found = runs(ROOT / "scenarios/modelled.yaml", ["workload.requests=150", "seeds=[1]", policies])
    oracle, coin, large = (found["base", name] for name in ("oracle-slm-usage", "random", "all-llm"))
    assert mean(oracle, "score") >= 0.9 * mean(large, "score")
    assert mean(oracle, "slm_usage") > mean(coin, "slm_usage")
    assert mean(coin, "score") < 0.7 * mean(large, "score")
    assert mean(found["base", "all-slm"], "total_usd") < mean(oracle, "total_usd") < mean(large, "total_usd")


def test_gsm8k_accuracies_are_those_of_the_recording(need: SharedData) -> None:
    """On all 1,319 questions Mixtral has 63.8 % right and GPT-4 85.7 %, and every placement is an exact replay."""
    policies = "policies=[all-slm, all-llm, {policy: random, p: 0.5}, {policy: oracle-cost, accuracy_share: 1.0}]"
    found = runs(need("gsm8k_mixtral_gpt4"), ["seeds=[1]", policies], variant=("broadband",))
    small, large = found["broadband", "all-slm"], found["broadband", "all-llm"]
    assert (small["score"].sum(), large["score"].sum(), len(small["score"])) == (842, 1130, 1319)
    assert mean(found["broadband", "oracle-cost"], "score") >= mean(large, "score")
    assert mean(found["broadband", "oracle-cost"], "total_usd") < mean(found["broadband", "random"], "total_usd")
    for table in found.values():
        assert set(table["provenance"]) == {"exact"}


def test_intercode_whole_episodes_are_exact_and_mixed_ones_modelled(need: SharedData) -> None:
    """GPT-4 solves 73.7 % of the tasks and GPT-3.5 47.3 %; whoever changes model on the way gets modelled answers."""
    policies = (
        "policies=[all-slm, all-llm, {policy: random, label: request, per: request}, "
        "{policy: random, label: step, per: subtask}]"
    )
    found = runs(need("intercode_sql"), ["seeds=[1]", policies])
    solved = {name: float((table["score"] == 1).mean()) for (_, name), table in found.items()}
    assert solved["all-llm"] == pytest.approx(0.737, abs=5e-4)
    assert solved["all-slm"] == pytest.approx(0.473, abs=5e-4)
    for name in ("all-slm", "all-llm", "request"):
        assert set(found["base", name]["provenance"]) == {"exact"}
    assert float((found["base", "step"]["provenance"] == "modelled").mean()) > 0.5


def test_networks_latency_rises_from_line_to_3g(need: SharedData) -> None:
    """What runs in the cloud gets slower from wired over 4G and 3G to a recorded 3G; what stays on board does not notice."""
    names = ("wired", "4g", "3g", "3g-ferry")
    settings = ["workload.requests=60", "seeds=[1]", "policies=[all-slm, all-llm]"]
    found = runs(need("networks"), settings, variant=names)
    cloud = [mean(found[name, "all-llm"], "latency_s") for name in names]
    assert cloud == sorted(cloud)
    assert cloud[-1] > 1.3 * cloud[0]
    assert len({mean(found[name, "all-slm"], "latency_s") for name in names}) == 1
    assert mean(found["wired", "all-llm"], "latency_s") < mean(found["wired", "all-slm"], "latency_s")


def test_prices_move_no_event() -> None:
    """Seven lists: the same end of every request, other bills, and in the last one the edge is the dear end."""
    settings = ["workload.requests=60", "seeds=[1]", "policies=[all-slm, all-llm, {policy: random, p: 0.5}]"]
    found = runs(ROOT / "scenarios/prices.yaml", settings)
    lists = list(dict.fromkeys(variant for variant, _ in found))
    assert len(lists) == 7
    for family in ("all-slm", "all-llm", "random"):
        for name in lists[1:]:
            np.testing.assert_array_equal(found[name, family]["end_s"], found[lists[0], family]["end_s"])
    assert len({mean(found[name, "random"], "total_usd") for name in lists}) == len(lists)
    cost = {
        name: (mean(found[name, "all-slm"], "total_usd"), mean(found[name, "all-llm"], "total_usd")) for name in lists
    }
    assert cost["2025-06-01"][1] == pytest.approx(5 * cost["2025-07-01"][1], rel=0.1)
    assert all(small < large for name, (small, large) in cost.items() if name != "cheap-api-idle-hardware")
    assert cost["cheap-api-idle-hardware"][0] > cost["cheap-api-idle-hardware"][1]


def test_saturation_takes_off_beyond_the_knee() -> None:
    """At the highest load p95 is many times that of the lowest; half of the work in the cloud carries a load that saturates."""
    low, middle, high = (f"rate_per_s={rate}" for rate in (0.05, 0.4, 0.8))
    settings = ["workload.requests=350", "workload.warmup_requests=50", "seeds=[1]"]
    policies = "policies=[all-slm, all-llm, {policy: random, p: 0.5}]"
    found = runs(ROOT / "scenarios/saturation.yaml", [*settings, policies], variant=(low, middle, high))
    assert p95(found[high, "all-slm"]) > 5 * p95(found[low, "all-slm"])
    assert mean(found[low, "all-slm"], "completed") == 1
    assert mean(found[high, "all-slm"], "completed") < 0.9
    assert p95(found[middle, "random"]) < p95(found[middle, "all-slm"]) / 2
    assert p95(found[high, "all-llm"]) == pytest.approx(p95(found[low, "all-llm"]), rel=0.1)


FAULTS = {
    "link-outage": "random",
    "api-outage": "random",
    "api-slow": "random",
    "device-crash": "all-slm",
    "none": "all-llm",
}
"""The fault and a policy that it hits; under `none` the rate limit hits all-llm."""


def outages() -> Iterator[tuple[str, Mapping[bool, Columns]]]:
    """Per fault, the policy it hits with and without fail-over."""
    settings = ["workload.requests=150", "seeds=[1]", "policies=[all-slm, all-llm, {policy: random, p: 0.5}]"]
    for fault, family in FAULTS.items():
        names = {on: f"{fault}, fail_over={str(on).lower()}" for on in (True, False)}
        found = runs(ROOT / "scenarios/outage.yaml", settings, variant=tuple(names.values()), family=(family,))
        yield fault, {on: found[name, family] for on, name in names.items()}


def test_outage_fail_over_completes_more() -> None:
    """Whatever breaks, more requests complete when the client may turn to the other tier."""
    for fault, tables in outages():
        assert mean(tables[False], "completed") < 0.97, fault
        assert mean(tables[True], "completed") > mean(tables[False], "completed"), fault


def erlang_c(load: float, servers: int) -> float:
    """P(wait) of M/M/c (Erlang 1917), `load` per server."""
    offered = load * servers
    full = offered**servers / math.factorial(servers) / (1 - load)
    return full / (sum(offered**k / math.factorial(k) for k in range(servers)) + full)


def expected_latency_s(queue: str, load: float) -> float:
    """Mean time in the system where all servers together serve one job per second."""
    if queue == "M-D-1":
        return 1 + load / (2 * (1 - load))
    servers = int(queue[-1])
    return servers + erlang_c(load, servers) / (1 - load)


@pytest.mark.slow
@pytest.mark.parametrize("queue", ["M-M-1", "M-D-1", "M-M-4"])
def test_theory_mean_latency_agrees_with_the_textbook(queue: str) -> None:
    """Over ten seeds the textbook value lies within the 99.9 % interval of the simulated means, and that is narrow.

    95 % would fail one of six comparisons for every fourth set of seeds by chance alone.
    """
    for load in (0.5, 0.8):
        variant = f"{queue}, rate_per_s={load}"
        settings = ["workload.requests=4000", "workload.warmup_requests=1000", f"seeds={list(range(11, 21))}"]
        found = runs(ROOT / "scenarios/theory.yaml", settings, variant=(variant,))
        by_seed = found[variant, "all-slm"]["latency_s"].reshape(10, 3000).mean(axis=1)
        interval = mean_interval(by_seed, confidence=0.999)
        assert interval.lo < expected_latency_s(queue, load) < interval.hi
        assert interval.hi - interval.lo < 0.3 * interval.estimate


def test_tmo_reading_the_associations_beats_sending_everything() -> None:
    """Greedy is better than every fixed action at less than the dearest one's price, and the oracle better still for less."""
    policies = (
        "policies=[all-slm, all-llm, tmo-cloud, {policy: tmo-fixed, label: text, action: 1}, {policy: tmo-fixed, label: pair, action: 5}, "
        "tmo-greedy, {policy: oracle-dialogues, budget: 1.0}]"
    )
    found = runs(ROOT / "scenarios/tmo.yaml", ["workload.requests=150", "seeds=[1]", policies])
    score = {family: mean(table, "score") for (_, family), table in found.items()}
    cost = {family: mean(table, "total_usd") for (_, family), table in found.items()}
    assert score["all-slm"] < score["text"] < score["tmo-cloud"] < score["all-llm"] < score["tmo-greedy"]
    assert score["tmo-greedy"] < score["oracle-dialogues"]
    assert cost["oracle-dialogues"] < cost["tmo-greedy"] < cost["all-llm"]
    assert {kind for table in found.values() for kind in table["provenance"]} == {"modelled"}


def test_tmo_budgets_are_kept_and_each_further_dollar_buys_less() -> None:
    """The oracle spends its budget in the mean, or less with every dialogue, and beats greedy where greedy spends as much."""
    policies = (
        "policies=[{policy: oracle-dialogues, budget: [0.002, 0.005, 0.008]}, {policy: oracle-dialogues, label: each, keeps: each, "
        "budget: 0.005}, {policy: tmo-greedy, association: 0.0, latency: 0.0, usage: 2.0}]"
    )
    path, settings = ROOT / "scenarios/tmo_budgets.yaml", ["workload.requests=200", "seeds=[1]", policies]
    records = {cell.policy.name: run_cell(cell).requests for cell in expand_cells(load_scenario(path, settings))}
    curve = []
    for budget in (0.002, 0.005, 0.008):
        table = records[f"oracle-dialogues(budget={budget:g})"]
        assert 0.98 * budget < mean(table, "total_usd") <= 1.001 * budget
        curve.append((mean(table, "total_usd"), mean(table, "score")))
    gains = np.diff([score for _, score in curve]) / np.diff([cost for cost, _ in curve])
    assert gains[0] > gains[1] > 0
    over = records["each"]["total_usd"] > 0.005 * 1.001
    assert over.mean() < 0.02
    assert mean(records["each"], "score") < curve[1][1]
    greedy = mean(records["tmo-greedy"], "total_usd"), mean(records["tmo-greedy"], "score")
    assert greedy[1] < np.interp(greedy[0], [cost for cost, _ in curve], [score for _, score in curve])
