"""One contract for every entry of POLICIES."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from sim.policies import POLICIES
from sim.policies.base import Observation, Placement, RoutingPolicy, Study
from tests.conftest import ROOT
from tests.policies import (
    MADE_FOR_ONE,
    TRAINED,
    check_decisions,
    check_options,
    dialogue_study,
    modelled_study,
    text_study,
)

TMO = {name for name in POLICIES if name.startswith("tmo-")}
"""These choose what goes along with the turns of a dialogue."""
READS_TEXT = {"embedding-router", "nearest-neighbours", *TRAINED} - TMO
"""These load a sentence encoder where tasks have text."""
KNOWS_TRUTH = {"oracle-dialogues"}
"""These plan by the truth behind generated dialogues; there is none behind other tasks."""


def trained_study() -> Study:
    """Tasks with text, and others to learn from."""
    study, others = text_study(), text_study(40)
    return study._replace(training=others._replace(tasks=others.tasks[24:]))


def studies(name: str) -> tuple[Callable[[], Study], ...]:
    """The studies a policy is tried on."""
    if name in KNOWS_TRUTH:
        return (dialogue_study,)
    usual = (trained_study,) if name in TRAINED else (modelled_study, text_study)
    return (*usual, dialogue_study) if name in TMO else usual


CASES = [
    pytest.param(
        name,
        study,
        id=f"{name}-{study.__name__}",
        marks=[pytest.mark.slow] if name in READS_TEXT and study is not modelled_study else [],
    )
    for name in POLICIES
    if name not in MADE_FOR_ONE
    for study in studies(name)
]


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_documents_its_options(name: str) -> None:
    """Every policy has a docstring, and options with docstrings, defaults and a JSON schema."""
    check_options(POLICIES[name])


@pytest.mark.parametrize(("name", "study"), CASES)
def test_a_policy_places_every_subtask(name: str, study: Callable[[], Study]) -> None:
    """Every policy places all subtasks of either kind of task reproducibly, without answer or latent difficulty."""
    check_decisions(POLICIES[name], study())


@pytest.mark.parametrize("name", sorted(POLICIES.keys() - TRAINED - MADE_FOR_ONE))
def test_two_tasks_are_enough(name: str) -> None:
    """No policy needs more than two tasks to prepare."""
    check_decisions(POLICIES[name], dialogue_study(2) if name in KNOWS_TRUTH else modelled_study(2))


def test_reading_the_table_loads_no_model_library() -> None:
    """Importing the policies loads neither torch nor Ray nor scikit-learn, in a fresh process."""
    heavy = "{'torch', 'ray', 'sklearn', 'transformers', 'sentence_transformers'}"
    code = f"import sys, sim.policies; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


class Peeking(RoutingPolicy):
    """Looks at the difficulty that no policy may see."""

    def place(self, seen: Observation) -> Placement:
        """Decide by the latent tolerance."""
        return Placement(seen.small if seen.call.task.latent.tolerance > 0 else seen.large)


class Wavering(RoutingPolicy):
    """Decides by how often it was asked."""

    asked = 0

    def place(self, seen: Observation) -> Placement:
        """Alternate."""
        self.asked += 1
        return Placement(seen.small if self.asked % 2 else seen.large)


class Astray(RoutingPolicy):
    """Names a tier that does not exist."""

    def place(self, seen: Observation) -> Placement:
        """Send everything nowhere."""
        return Placement("nowhere")


@pytest.mark.parametrize(
    ("policy", "words"),
    [(Peeking, "no policy may see"), (Wavering, "asked before"), (Astray, "is not a tier")],
)
def test_the_contract_catches_offenders(policy: type[RoutingPolicy], words: str) -> None:
    """Policies that peek, waver or go astray do not pass, so passing means something."""
    with pytest.raises(AssertionError, match=words):
        check_decisions(policy, modelled_study())
