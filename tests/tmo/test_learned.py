"""Trained policies on file and at work: what fits, what does not, and where they run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.loading import LoadedScenario, load_scenario
from sim.placing import PolicyPlacer
from sim.policies import build_policy
from sim.policies.base import Placement
from sim.policies.tmo.learned import shown_budgets
from sim.simulation import simulate
from sim.study import rates_of, study_of, tier_views
from sim.tmo.actions import Action
from sim.tmo.card import CARD, WEIGHTS, card_of, read_policy, write_policy
from sim.tmo.command import parsed_budget, parsed_reward
from sim.tmo.environment import view_of
from sim.tmo.observing import Budget, View
from sim.tmo.reward import Reward
from sim.workload import build_workload, load_trace
from tests.conftest import ROOT
from tests.helpers import load_text
from tests.tmo.dialogue_world import WORLD, dialogues, random_network, untrained, written
from workloads.errors import InputError
from workloads.task import ModelCall

RANGE, SINGLE = Budget("total_usd", 0.004, 0.016), Budget("latency_s", 20.0, 20.0)


def trained(folder: Path, loaded: LoadedScenario, *budgets: Budget) -> Path:
    """A policy for the scenario."""
    return written(folder / "policy", view_of(loaded.scenario, loaded.path, budgets=budgets))


def test_a_policy_comes_back_from_its_folder(tmp_path: Path) -> None:
    """Card and network, to the bit; nothing but safetensors and JSON is written."""
    folder = trained(tmp_path, dialogues(tmp_path), RANGE, SINGLE)
    card, network = read_policy(folder)
    assert card == untrained(card.view)
    assert card == card_of(card.as_json(), "card")
    for ours, theirs in zip(network.layers, random_network(card.view).layers, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert sorted(path.name for path in folder.iterdir()) == [CARD, WEIGHTS]


def test_budgets_are_those_it_was_trained_for(tmp_path: Path) -> None:
    """A value within the range, by the one option or by item; the middle of the range unless told."""
    loaded = dialogues(tmp_path)
    folder = str(trained(tmp_path, loaded, RANGE))
    assert build_policy("tmo", {"weights": folder}, tmp_path)._budgets == (pytest.approx(0.008),)  # type: ignore[attr-defined]
    assert build_policy("tmo", {"weights": folder, "budget": 0.01}, tmp_path)._budgets == (0.01,)  # type: ignore[attr-defined]
    by_item = {"weights": folder, "budgets": {"total_usd": 0.004}}
    assert build_policy("tmo", by_item, tmp_path)._budgets == (0.004,)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.1}, "total_usd = 0.1: trained for 0.004 to 0.016"),
        ({"budget": 0.001}, "total_usd = 0.001: trained for 0.004 to 0.016"),
        ({"budgets": {"latency_s": 3.0}}, "was not trained to keep 'latency_s'"),
        ({"budget": -1.0}, "is not allowed"),
        ({"weights": "nowhere"}, "there is no policy.json"),
    ],
)
def test_budgets_and_folders_that_do_not_fit(tmp_path: Path, options: dict[str, object], message: str) -> None:
    """One message each."""
    folder = str(trained(tmp_path, dialogues(tmp_path), RANGE))
    with pytest.raises(InputError, match=message):
        build_policy("tmo", {"weights": folder, **options}, tmp_path)


def test_a_policy_is_shown_the_budget_at_which_it_spends_what_is_asked_for(tmp_path: Path) -> None:
    """By what was measured, linear between; beyond that, the nearest; more shown is never taken for less spent."""
    loaded = dialogues(tmp_path)
    view = view_of(loaded.scenario, loaded.path, budgets=(Budget("total_usd", 0.004, 0.016),))
    measured = [[0.004, 0.005], [0.008, 0.007], [0.012, 0.006], [0.016, 0.011]]
    card = replace(untrained(view), spends=measured)
    for asked, shown in ((0.005, 0.004), (0.006, 0.006), (0.009, 0.014), (0.004, 0.004), (0.016, 0.016)):
        assert list(shown_budgets(card, [asked])) == [pytest.approx(shown)]
    write_policy(tmp_path / "policy", card, random_network(view))
    built = build_policy("tmo", {"weights": str(tmp_path / "policy"), "budget": 0.006}, tmp_path)
    assert built._budgets == (pytest.approx(0.006),)  # type: ignore[attr-defined]
    assert read_policy(tmp_path / "policy")[0].spends == measured
    spoilt = card.as_json().replace(json.dumps(measured[0], indent=1).replace("\n", "\n  "), "0.004")
    assert spoilt != card.as_json()
    with pytest.raises(InputError, match="cannot be read"):
        card_of(spoilt, "here")


def test_two_budgets_need_their_names(tmp_path: Path) -> None:
    """`budget` alone would not say which."""
    folder = str(trained(tmp_path, dialogues(tmp_path), RANGE, SINGLE))
    with pytest.raises(InputError, match="the policy has 2 budgets"):
        build_policy("tmo", {"weights": folder, "budget": 0.01}, tmp_path)


@pytest.mark.parametrize(
    "setting", ["workload.tasks.modalities=3", "tiers.cloud.multimodal=false", "tiers.local.role=llm"]
)
def test_a_policy_for_other_actions_is_refused(tmp_path: Path, setting: str) -> None:
    """More modalities, a cloud that sees none, a local model that does: the message lists both sets of actions."""
    folder = trained(tmp_path, dialogues(tmp_path))
    other = dialogues(tmp_path / "other", setting)
    policy = build_policy("tmo", {"weights": str(folder)}, tmp_path)
    study = study_of(other.scenario, build_workload(other.scenario, 1, other.path), 1)
    with pytest.raises(InputError, match=r"trained for the actions local, cloud, cloud\+overview"):
        policy.prepare(study)


def test_another_tier_is_refused_by_validate(tmp_path: Path) -> None:
    """Before anything runs, with the line of the scenario."""
    folder = trained(tmp_path, dialogues(tmp_path))
    text = WORLD.replace("cloud", "datacentre").replace("[all-slm]", f"[{{policy: tmo, weights: {folder}}}]")
    loaded = load_text(tmp_path / "other", text)
    policy = build_policy("tmo", {"weights": str(folder)}, tmp_path)
    with pytest.raises(InputError, match="the scenario's are local, datacentre"):
        policy.check(tier_views(loaded.scenario, rates_of(loaded.scenario)))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (CARD, "{", "cannot be read"),
        (CARD, "{}", "cannot be read"),
        (WEIGHTS, "not tensors", "cannot be read"),
        (WEIGHTS, None, f"there is no {WEIGHTS}"),
        (CARD, None, f"there is no {CARD}"),
    ],
)
def test_a_damaged_folder_is_one_message(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    """Whatever is missing or broken."""
    folder = trained(tmp_path, dialogues(tmp_path))
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(InputError, match=message):
        read_policy(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": ["kind", "weather"]}, "there is no part 'weather'"),
        ({"parts": ["kind"]}, "its card says 3 numbers"),
        ({"budgets": [["karma", 1.0, 1.0]]}, "there is no cost 'karma'"),
        ({"budgets": [["total_usd", 2.0, 1.0]]}, "found 2 to 1"),
    ],
)
def test_a_card_that_does_not_fit_its_network(tmp_path: Path, change: dict[str, object], message: str) -> None:
    """Unknown observation parts and costs, and a width that is not the network's."""
    folder = trained(tmp_path, dialogues(tmp_path))
    card = json.loads((folder / CARD).read_text())
    card["view"].update(change)
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(InputError, match=message):
        read_policy(folder)


def test_it_places_behind_the_gateway_as_in_a_run(tmp_path: Path) -> None:
    """The same object answers live calls: the first turn's placement is the simulation's."""
    folder = trained(tmp_path, dialogues(tmp_path), RANGE)
    text = WORLD.replace("[all-slm]", f"[{{policy: tmo, weights: {folder}, budget: 0.01}}]")
    loaded = load_text(tmp_path / "served", text)
    placer = PolicyPlacer(loaded.scenario, loaded.path)
    assert "isthmus/tmo" in placer.names()
    task = build_workload(loaded.scenario, 1, loaded.path).tasks[0]
    call = next(build_workload(loaded.scenario, 1, loaded.path).agent(task))
    assert isinstance(call, ModelCall)
    decision = placer.place("isthmus/tmo@0.01", 0, call, {})
    assert decision.tier in loaded.scenario.tiers
    assert decision.reason in {str(action) for action in view_of(loaded.scenario, loaded.path).actions}
    with pytest.raises(InputError, match="does not allow budget = 1"):
        placer.place("isthmus/tmo@1", 0, call, {})


def test_actions_are_placements(tmp_path: Path) -> None:
    """A placement names its tier and exactly the modalities of its action."""
    policy = build_policy("tmo", {"weights": str(trained(tmp_path, dialogues(tmp_path)))}, tmp_path)
    action = Action("cloud", ("overview",))
    assert Placement("cloud", "cloud+overview", ("overview",)) in policy._placements  # type: ignore[attr-defined]
    assert action in policy.card.view.actions  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------- the command's words


def test_words_become_budgets_and_rewards() -> None:
    """Values, ranges and weights; with budgets latency and usage weigh nothing unless asked."""
    assert parsed_budget("latency_s=20") == SINGLE
    assert parsed_budget("total_usd=0.004:0.016") == RANGE
    assert parsed_reward([], constrained=False) == Reward()
    assert parsed_reward(["association=0", "usage_range=0:2"], constrained=True) == Reward(
        0.0, 0.0, 0.0, usage_range=(0.0, 2.0)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("speed=3", "there is no 'speed'"),
        ("latency_s", "not a number"),
        ("latency_s=0", "not a positive"),
        ("latency_s=9:3", "not a positive"),
    ],
)
def test_words_that_are_no_budget(text: str, message: str) -> None:
    """One message each."""
    with pytest.raises(InputError, match=message):
        parsed_budget(text)


@pytest.mark.parametrize("text", ["karma=3", "association=much", "association=-1", "usage_item=karma", "usage_range=3"])
def test_words_that_are_no_reward(text: str) -> None:
    """Unknown weights, wrong numbers, unknown costs."""
    with pytest.raises(InputError):
        parsed_reward([text], constrained=True)


def test_a_view_refuses_two_budgets_for_one_item(tmp_path: Path) -> None:
    """They would share one account."""
    loaded = dialogues(tmp_path)
    view: View = view_of(loaded.scenario, loaded.path)
    with pytest.raises(InputError, match="occurs twice"):
        View(view.actions, view.kinds, budgets=(SINGLE, SINGLE))


@pytest.mark.parametrize("budget", [0.004, 0.008])
def test_the_policy_that_ships_keeps_its_budget_in_the_mean(budget: float) -> None:
    """On the scenario it was trained for, under a seed of its own: within the budget, and better than what never leaves home."""
    path = ROOT / "scenarios" / "tmo.yaml"
    loaded = load_scenario(path, ["workload.requests=300"])

    def ran(name: str, **options: Any) -> Any:
        policy = build_policy(name, options, path.parent)
        return simulate(
            loaded.scenario, build_workload(loaded.scenario, 4, path), policy, 4, lambda file: load_trace(file, path)
        ).requests

    learned, local = ran("tmo", budget=budget), ran("all-slm")
    assert learned["total_usd"].mean() < 1.05 * budget
    assert learned["score"].mean() > 1.4 * local["score"].mean()
