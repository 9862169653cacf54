"""What the README and the documentation show must work as shown."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from run_sim import app
from sim.cells import expand_cells
from sim.loading import load_scenario
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAM = ".venv/bin/python run_sim.py "
LIVE, LEARNED = (
    README.partition(f"## {title}")[2].partition("\n## ")[0] for title in ("Real models", "Learned routing")
)
LONG_COMMANDS, COMMANDS = (
    [line.split("  #")[0].removeprefix(PROGRAM) for line in text.splitlines() if line.startswith(PROGRAM)]
    for text in (LIVE + LEARNED, README.replace(LIVE, "").replace(LEARNED, ""))
)


def in_checkout(words: list[str]) -> list[str]:
    """Relative paths of the command line as paths of the checkout."""
    return [str(ROOT / word) if (ROOT / word.partition(":")[0]).exists() else word for word in words]


def test_the_readme_shows_every_kind_of_command() -> None:
    """The commands are found at all: the tests below would pass on an empty list."""
    assert {shlex.split(command)[0] for command in COMMANDS} == {"list", "validate", "run", "compare", "frontier"}


@pytest.mark.slow
def test_the_commands_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Callable[[str], Path]
) -> None:
    """In the README's order, in an empty folder, with runs cut down to few requests and one seed."""
    shared_data("network/norway_hsdpa")
    monkeypatch.chdir(tmp_path)
    small = ["--set", "workload.requests=12", "--set", "workload.warmup_requests=0", "--seed", "1", "--workers", "1"]
    quickstart = ["run", str(ROOT / "scenarios/quickstart.yaml"), *small]
    assert CliRunner().invoke(app, quickstart).exit_code == 0  # what `make demo` leaves behind
    for command in COMMANDS:
        words = in_checkout(shlex.split(command))
        if words[0] == "run":
            words = [word for word in words if word not in ("--seed", "1")] + small
        if words[0] == "frontier":
            words = [found for word in words for found in (map(str, Path().glob(word)) if "*" in word else [word])]
        outcome = CliRunner().invoke(app, words)
        assert outcome.exit_code == 0, f"{command}\n{outcome.output}"


@pytest.mark.parametrize("command", LONG_COMMANDS)
def test_the_long_commands_of_the_readme_exist(command: str) -> None:
    """Command and options are known, the scenario is valid; tests/serve runs them on smaller models."""
    asked = shlex.split(command)
    name, words = asked[: 2 if asked[0] == "cluster" else 1], in_checkout(asked)
    known = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "200"})
    assert known.exit_code == 0
    assert all(word in known.output for word in words if word.startswith("--"))
    assert all(load_scenario(Path(word)) for word in words if word.endswith(".yaml"))


def test_the_scenario_of_the_readme_is_valid(tmp_path: Path) -> None:
    """The YAML block can be saved and run."""
    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block is not None
    path = tmp_path / "scenario.yaml"
    path.write_text(block[1], encoding="utf-8")
    (tmp_path / "recordings").symlink_to(ROOT / "scenarios" / "recordings")  # as beside the scenarios that ship
    assert len(expand_cells(load_scenario(path))) == 5 * 5


def test_the_plug_in_example_is_printed_as_it_is() -> None:
    """docs/extending.md shows the very file that the plug-in test runs."""
    example = (ROOT / "docs/examples/long_history.py").read_text(encoding="utf-8")
    assert example.strip() in (ROOT / "docs/extending.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in sorted(ROOT.glob("docs/*.md")))]
)
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link and figure of a page exists."""
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    assert [target for target in targets if not ((ROOT / page).parent / target).exists()] == []
