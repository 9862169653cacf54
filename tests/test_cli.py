"""The command line as a user meets it: help, names, schema, a small run, and what can be done with its results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner, Result

import run_sim
from sim.loading import load_scenario
from sim.policies import POLICIES
from sim.profiles import KINDS, named_profiles
from sim.scenario import Scenario
from sim.tables import READERS
from tests.bad_inputs import BASE, SCENARIO
from tests.conftest import ROOT

COMMANDS = ("run", "calibrate", "fidelity", "validate", "schema", "frontier", "compare", "list")
LINE_100 = BASE.replace("name: base", "name: base\ndescription: '[red]:100: [/nothing]'")
"""Text that rich would take for markup and symbols."""
_TINY = LINE_100.replace("  - all-slm\n", "  - all-slm\n  - all-llm\n")


def command(*arguments: str | Path, code: int = 0, columns: int = 80) -> Result:
    """Run the command line in this process and expect this exit code."""
    result = CliRunner(env={"COLUMNS": str(columns), "TERM": "dumb"}).invoke(
        run_sim.app, [str(a) for a in arguments], prog_name="run_sim.py"
    )
    assert result.exit_code == code, result.stdout + result.stderr + repr(result.exception)
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Result]:
    """(scenario, results folder, what was printed) of a run of 20 requests under three policies and one seed."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / SCENARIO).write_text(_TINY, encoding="utf-8")
    result = command("run", folder / SCENARIO, "--out", folder / "out", "--seed", "7", "--workers", "1")
    return folder / SCENARIO, folder / "out", result


@pytest.fixture(scope="module")
def other(finished: tuple[Path, Path, Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the same scenario under another seed, 15 of its 20 requests being warm-up."""
    out = tmp_path_factory.mktemp("other")
    command("run", finished[0], "--out", out, "--seed", "8", "--workers", "1", "--set", "workload.warmup_requests=15")
    return (out / "base" / "latest").resolve()


# ---------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_terminal(name: str) -> None:
    """80 columns suffice, and the first lines say how to call the command and what it is for."""
    result = command(*([name] if name else []), "--help")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"Usage: run_sim.py {name}".rstrip())
    assert result.stderr == ""


def test_every_command_argument_and_option_is_documented() -> None:
    """Nothing has to be guessed."""
    group: Any = typer.main.get_command(run_sim.app)
    assert set(COMMANDS) <= set(group.commands)
    for name, entry in group.commands.items():
        assert entry.help, name
        for parameter in entry.params:
            assert getattr(parameter, "help", None), f"{name}: {parameter.name}"


def test_without_a_command_there_is_help() -> None:
    """Typing the bare program name explains it."""
    result = CliRunner().invoke(run_sim.app, [], prog_name="run_sim.py")
    assert "Commands:" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


# --------------------------------------------------------------------------------------------------------------- names


def test_list_names_everything_a_scenario_can_use() -> None:
    """Every policy, profile and reader is in the one list."""
    words = set(re.split(r"[\s│┃]+", command("list").stdout))
    names = {*POLICIES, *READERS, *(name for kind in KINDS for name in named_profiles()[kind])}
    assert names - words == set()


@pytest.mark.parametrize("kind", ["policies", *KINDS, "readers"])
def test_list_of_one_kind(kind: str) -> None:
    """One table, with its title, within 80 columns."""
    lines = command("list", kind).stdout.splitlines()
    assert lines[0].strip() == kind
    assert max(map(len, lines)) <= 80


def test_the_schema_is_json_and_the_scenario_s() -> None:
    """What is printed is the schema of the model that validates scenarios."""
    schema = json.loads(command("schema").stdout)
    assert schema == Scenario.model_json_schema()
    assert {"name", "workload", "tiers", "policies"} <= set(schema["required"])


# ------------------------------------------------------------------------------------------------------------ validate


def test_validate_counts_without_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells and requests of the whole grid, options applied; nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / SCENARIO).write_text(BASE, encoding="utf-8")
    options = ["--set", "seeds=[1, 2, 3]", "--set", "sweep={workload.requests: [10, 30]}"]
    result = command("validate", tmp_path / SCENARIO, *options)
    assert re.search(r"valid\. 12 cells, 240 requests, run id [0-9a-f]{12}\n$", result.stdout)
    assert result.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == [SCENARIO]


def test_the_run_id_follows_what_the_results_depend_on(tmp_path: Path) -> None:
    """The same command gives the same id, comments and all; another value or seed gives another."""
    (tmp_path / SCENARIO).write_text(BASE, encoding="utf-8")
    (tmp_path / "same.yaml").write_text("# the same\n" + BASE.replace("[1]", "\n- 1"), encoding="utf-8")

    def run_id(name: str, *options: str) -> str:
        return command("validate", tmp_path / name, *options).stdout.split()[-1]

    first = run_id(SCENARIO)
    assert run_id(SCENARIO) == run_id("same.yaml") == run_id(SCENARIO, "--set", "workload.requests=20") == first
    others = {
        run_id(SCENARIO, "--set", setting) for setting in ("workload.requests=21", "seeds=[2]", "policies.1.p=0.6")
    }
    assert len(others | {first}) == 4


# ----------------------------------------------------------------------------------------------------------------- run


def test_a_run_prints_its_summary_and_where_everything_is(finished: tuple[Path, Path, Result]) -> None:
    """The table and the two paths go to stdout, progress to stderr only."""
    _, out, result = finished
    lines = result.stdout.splitlines()
    assert max(map(len, lines[:-2])) <= 80
    for policy in ("all-slm", "all-llm", "random"):
        assert any(line.split()[:1] == [policy] for line in lines)
    folder = Path(lines[-2].removeprefix("results: "))
    assert folder.parent == out / "base"
    assert Path(lines[-1].removeprefix("report:  ")).is_file()
    assert "requests" not in result.stdout
    assert "requests" in result.stderr


def test_a_run_writes_what_it_promises(finished: tuple[Path, Path, Result]) -> None:
    """Resolved scenario, manifest, summary and frontier; `latest` points at the run."""
    scenario, out, _ = finished
    latest = out / "base" / "latest"
    names = {path.name for path in latest.iterdir()}
    assert {"scenario.yaml", "manifest.json", "summary.json", "summary.csv", "frontier.json", "report.html"} <= names
    summary = json.loads((latest / "summary.json").read_text(encoding="utf-8"))
    assert [row["policy"] for row in summary] == ["all-slm", "all-llm", "random"]
    assert {row["n"] for row in summary} == {20}
    resolved = load_scenario(latest / "scenario.yaml").scenario
    assert resolved == load_scenario(scenario, ["seeds=[7]"]).scenario
    assert not list(out.rglob("*.partial"))


def test_the_same_command_again_keeps_every_cell(finished: tuple[Path, Path, Result]) -> None:
    """Nothing is simulated twice, and the records do not change."""
    scenario, out, first = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    again = command("run", scenario, "--out", out, "--seed", "7", "--workers", "1")
    assert "3 of 3 cells are finished from before and kept" in again.stderr
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")} == before


def test_a_run_in_which_nothing_completes_fails(tmp_path: Path) -> None:
    """Exit code 2 and the reason, not a table of zeros."""
    (tmp_path / SCENARIO).write_text(BASE + "client: {timeout_s: 0.001}\n", encoding="utf-8")
    result = command("run", tmp_path / SCENARIO, "--out", tmp_path / "out", code=2)
    assert result.stdout == ""
    assert "error: no request completed (timeout)" in result.stderr


@pytest.mark.slow
def test_a_real_process_separates_results_from_progress(tmp_path: Path) -> None:
    """Piping stdout gives results only, without colours; the exit code is 0."""
    (tmp_path / SCENARIO).write_text(BASE, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, ROOT / "run_sim.py", "run", SCENARIO, "--workers", "1", "--set", "workload.requests=5"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "\x1b" not in run.stdout + run.stderr
    assert run.stdout.splitlines()[-2].startswith("results: results/base/")
    assert "cells" in run.stderr
    assert "cells" not in run.stdout


# ------------------------------------------------------------------------------------------------ compare and frontier


def rows_of(output: str) -> list[list[str]]:
    """The rows of a printed table, cell by cell."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if line.startswith("│")
    ]


def compared(a: str | Path, b: str | Path) -> list[list[str]]:
    """The rows that `compare` prints."""
    return rows_of(command("compare", a, b, columns=200).stdout)


def test_a_run_compared_with_itself_shows_no_difference(finished: tuple[Path, Path, Result]) -> None:
    """Every paired difference is zero with an interval of width zero, and every request has its partner."""
    latest = finished[1] / "base" / "latest"
    rows = compared(latest, latest)
    assert {row[1] for row in rows} == {"all-slm", "all-llm", "random"}
    for row in rows:
        assert row[3:] == ["+0", "[+0, +0]", "1", "20"], row


def test_two_policies_of_one_run_are_compared_request_by_request(finished: tuple[Path, Path, Result]) -> None:
    """The large model costs more in every pair; turned round, every difference changes its sign."""
    latest = finished[1] / "base" / "latest"
    there = {row[2]: float(row[3]) for row in compared(f"{latest}:all-llm", f"{latest}:all-slm")}
    back = {row[2]: float(row[3]) for row in compared(f"{latest}:all-slm", f"{latest}:all-llm")}
    assert there["cost, $"] > 0
    assert there["SLM usage"] == -1
    assert back == {measure: -value for measure, value in there.items()}
    wrong = command("compare", f"{latest}:all-lm", latest, code=2).stderr
    assert "policy 'all-lm'" in wrong
    assert "'all-llm'" in wrong


@pytest.mark.slow
def test_runs_without_anything_in_common_are_not_compared(finished: tuple[Path, Path, Result], other: Path) -> None:
    """Other seeds share no request: the message says which runs can be compared."""
    result = command("compare", finished[1] / "base" / "latest", other, code=2)
    assert "same seeds" in result.stderr


@pytest.mark.slow
def test_warm_up_is_left_out_of_comparisons(other: Path) -> None:
    """As it is left out of the summary."""
    assert {row[6] for row in compared(other, other)} == {"5"}


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_frontier_draws_and_names_the_best(finished: tuple[Path, Path, Result], tmp_path: Path, suffix: str) -> None:
    """The figure is written in any of three formats; cheap and good ends of the curve are both in the table."""
    figure = tmp_path / f"f{suffix}"
    result = command("frontier", finished[1] / "base" / "latest", "--out", figure)
    assert figure.stat().st_size > 1000
    assert f"figure: {figure}" in result.stdout
    best = [row[2] for row in rows_of(result.stdout)]
    assert best[0] == "all-slm"
    assert best[-1] == "all-llm"


def test_frontier_knows_which_fields_are_better_small(finished: tuple[Path, Path, Result], tmp_path: Path) -> None:
    """Of latency and cost the least count, of accuracy the most, on either axis."""
    latest = finished[1] / "base" / "latest"
    result = command("frontier", latest, "--x", "accuracy", "--y", "cost_usd", "--out", tmp_path / "f.png")
    assert "most accuracy, least cost_usd" in result.stdout
    same = command("frontier", latest, "--out", tmp_path / "g.png")
    assert {row[2] for row in rows_of(result.stdout)} == {row[2] for row in rows_of(same.stdout)}


@pytest.mark.slow
def test_frontier_tells_runs_of_one_scenario_apart(
    finished: tuple[Path, Path, Result], other: Path, tmp_path: Path
) -> None:
    """Two runs of one scenario carry their ids."""
    runs = [(finished[1] / "base" / "latest").resolve(), other]
    result = command("frontier", *runs, "--out", tmp_path / "f.png", columns=200)
    assert {row[0] for row in rows_of(result.stdout)} <= {f"base/{run.name}" for run in runs}
