"""Whatever is wrong with an input ends in one message that says where and what to do, exit code 2, and nothing written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import run_sim
from tests.bad_inputs import BASE, SCENARIO, Case, command_line, fields, recorded, yaml_text
from tests.conftest import ROOT

CASES = [*yaml_text.CASES, *fields.CASES, *recorded.CASES, *command_line.CASES]
REAL_PROCESS = {"python object", "line 100 is shown as a number", "no workers"}


def lay_out(case: Case, folder: Path) -> tuple[list[str], list[str], Path]:
    """Write the case's files; returns the command line, the texts the message must hold and the results folder."""
    here, out = folder / "here", folder / "out"
    here.mkdir()
    for name, content in case.files.items():
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    names = {"{here}": str(here), "{out}": str(out)}

    def filled(text: str) -> str:
        for mark, value in names.items():
            text = text.replace(mark, value)
        return text

    return [filled(a) for a in case.arguments], [filled(s) for s in case.says], out


def assert_refused(code: int, stdout: str, stderr: str, says: list[str]) -> None:
    """Exit code 2, one message, nothing of a traceback, nothing on stdout, and the expected texts."""
    assert code == 2, (code, stdout, stderr)
    assert stdout == ""
    assert "Traceback" not in stderr
    assert len(re.findall(r"(?mi)^error: ", stderr)) == 1, stderr
    for said in says:
        assert said in stderr, f"{said!r} is not in: {stderr}"


def command(*arguments: str | Path) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(run_sim.app, [str(a) for a in arguments], prog_name="run_sim.py")


def test_every_case_has_a_name_of_its_own() -> None:
    """Names identify cases, and there are at least 60 of them."""
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) > 60


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_mistake_is_one_clear_message(case: Case, tmp_path: Path) -> None:
    """One line names place and remedy, the exit code is 2, and the results folder is not even made."""
    arguments, says, out = lay_out(case, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = command(*arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert_refused(result.exit_code, result.stdout, result.stderr, says)
    assert not out.exists()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("case", [c for c in CASES if c.name in REAL_PROCESS], ids=lambda case: case.name)
def test_a_real_process_says_the_same(case: Case, tmp_path: Path) -> None:
    """The program started as a user starts it exits with 2 and the same message on stderr."""
    arguments, says, out = lay_out(case, tmp_path)
    run = subprocess.run(
        [sys.executable, ROOT / "run_sim.py", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert_refused(run.returncode, run.stdout, run.stderr, says)
    assert not out.exists()
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + BASE.encode(),
        BASE.replace("\n", "\r\n").encode(),
        b"%YAML 1.2\n---\n" + BASE.encode() + b"...\n",
        BASE.replace("link: wifi", "link: &hop wifi").replace("link: wired", "link: *hop").encode(),
        BASE.replace("  cloud:\n    role: llm", "  cloud:\n    <<: {replicas: 2}\n    role: llm").encode(),
        BASE.replace("shuffle", "x").replace("requests: 20", "requests: &n 20\n  shuffle: &yes true").encode(),
        BASE.replace("name: base", "name: bäse".replace("ä", "a") + "\ndescription: Größe, 日本語, 🙂").encode(),
    ],
    ids=["byte order mark", "CRLF", "directive", "alias", "merge key", "anchored scalars", "any script"],
)
def test_what_is_merely_unusual_is_accepted(content: bytes, tmp_path: Path) -> None:
    """Byte order marks, Windows line ends and every legal way to write the same YAML are no mistakes."""
    path = tmp_path / SCENARIO
    path.write_bytes(content)
    result = command("validate", path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "valid. 2 cells, 40 requests" in result.stdout
