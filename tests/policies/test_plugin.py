"""A policy of the user's own, in one file beside the scenario."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sim.policies import POLICIES, build_policy, policy_class
from tests.conftest import ROOT
from tests.policies import check_decisions, check_options, decisions, modelled_study, text_study
from workloads.errors import InputError

EXAMPLES = ROOT / "docs" / "examples"
HEADER = "from sim.policies.base import Placement, PolicyOptions, RoutingPolicy\n"
GOOD = HEADER + "class Mine(RoutingPolicy):\n    def place(self, seen):\n        return Placement(seen.small)\n"


def refused(name: str, base_dir: Path) -> InputError:
    """The error that loading the policy ends in."""
    with pytest.raises(InputError) as caught:
        policy_class(name, base_dir)
    return caught.value


def test_the_example_keeps_the_contract() -> None:
    """The example in the documentation is a policy like any other, in less than 40 lines."""
    policy = policy_class("long_history.py:LongHistory", EXAMPLES)
    assert len((EXAMPLES / "long_history.py").read_text(encoding="utf-8").splitlines()) < 40
    check_options(policy)
    check_decisions(policy, modelled_study())
    check_decisions(policy, text_study())


def test_the_example_moves_late_subtasks_to_the_large_model() -> None:
    """A longer allowance keeps more subtasks small, and a request never returns to the small model."""
    study = modelled_study()
    used = []
    for after_tokens in (100, 400, 1600):
        policy = build_policy("long_history.py:LongHistory", {"after_tokens": after_tokens}, EXAMPLES)
        policy.prepare(study)
        made = decisions(policy, study)
        used.append(sum(placement.tier == "edge" for placement in made.values()) / len(made))
        for (request, position), placement in made.items():
            if placement.tier == "cloud":
                assert made.get((request, position + 1), placement).tier == "cloud"
    assert used == sorted(used)
    assert used[0] < used[-1]


def test_a_named_policy_is_found_without_a_file() -> None:
    """A name in POLICIES needs no folder."""
    assert policy_class("random", Path("/nowhere")) is POLICIES["random"]


def test_an_unknown_name_suggests_the_nearest() -> None:
    """A misspelt name is answered with the nearest one and with the way to load one's own."""
    error = refused("promt-length", Path())
    assert "'prompt-length'" in error.remedy
    assert "file.py:ClassName" in error.remedy


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is named in full."""
    assert str(tmp_path / "absent.py") in refused("absent.py:Mine", tmp_path).problem


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("x = 1\ny = (\n", 2, "SyntaxError"),
        ("x = 1\n\nx.nothing\n", 3, "AttributeError"),
        ("import there_is_no_such_module\n", 1, "ModuleNotFoundError"),
        ("def f():\n    raise ValueError('bad luck')\nf()\n", 2, "ValueError: bad luck"),
        ("\nraise SystemExit(3)\n", 2, "SystemExit"),
        ("x = 1\n\0", None, "SyntaxError"),
        ("x = '\udcff'\n", None, "SyntaxError"),
    ],
)
def test_a_broken_file_gives_its_line(tmp_path: Path, text: str, line: int | None, problem: str) -> None:
    """A file that fails to run gives one error with file, line and reason."""
    path = tmp_path / "mine.py"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    error = refused("mine.py:Mine", tmp_path)
    assert error.place.startswith(f"{path}:{'' if line is None else line}")
    assert error.problem.startswith(problem)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "there is no class 'Mine'"),
        ("class Mine:\n    pass\n", "'Mine' is not a RoutingPolicy"),
        (GOOD.replace("Mine", "Main"), "'Main'"),
        (HEADER + "class Mine(RoutingPolicy):\n    pass\n", "it decides nothing"),
        (GOOD + "    Options = dict\n", "not PolicyOptions"),
        (GOOD + "    knob = 'decisions'\n", "'decision_s'"),
    ],
)
def test_what_is_no_policy_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """A file without a usable policy of that name is refused in words that say why."""
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    assert words in str(refused("mine.py:Mine", tmp_path))


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    """A file changed within the same process, even to one of equal length, is not taken from memory."""
    study, path, tiers = modelled_study(2), tmp_path / "mine.py", []
    for nanoseconds, role in enumerate(("small", "large")):
        path.write_text(GOOD.replace("small", role), encoding="utf-8")
        os_times = (1_700_000_000_000_000_000 + nanoseconds,) * 2
        os.utime(path, ns=os_times)
        policy = build_policy("mine.py:Mine", {}, tmp_path)
        tiers.append({placement.tier for placement in decisions(policy, study).values()})
    assert tiers == [{"edge"}, {"cloud"}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.py"]  # and no byte code is left behind


def test_an_unknown_option_suggests_the_nearest() -> None:
    """An option that does not exist is refused with the nearest that does."""
    with pytest.raises(InputError, match=r"no option 'threshold'.*'threshold_tokens'"):
        build_policy("prompt-length", {"threshold": 3}, Path())


def test_an_option_out_of_range_is_refused() -> None:
    """A value that an option does not allow is refused with the option's name, the value and the rule."""
    with pytest.raises(InputError, match=r"option 'p': 1\.5 is not allowed.*less than or equal to 1"):
        build_policy("random", {"p": 1.5}, Path())
