"""The processes of a node are found and ended, and no others: with real processes, without Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serve.nodes.processes import Session, end_sessions, leads, members, program, send_signal, spawn_session
from tests.serve.processes import SLEEP, running, somebody_else, until

CHILD = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)


def start(folder: Path, code: str, **variables: str) -> Session:
    """A Python process as the leader of a session, with its log in the folder."""
    return spawn_session([sys.executable, "-c", code], {**os.environ, **variables}, folder / "log", folder)


@pytest.fixture
def innocent() -> Iterator[subprocess.Popen[str]]:
    """Somebody else's process, a session leader like ours."""
    with somebody_else() as process:
        yield process


def test_a_session_is_ended_with_its_children(tmp_path):
    """The leader and what it started are found, ended by SIGTERM, and gone afterwards."""
    session = start(tmp_path, CHILD)
    until(lambda: len(members([session])) == 2)
    pids = [process.pid for process in members([session])]
    assert leads(session)
    assert program(session.pid).startswith("python")
    assert end_sessions([session], 10.0) == []
    assert not leads(session)
    assert not any(running(pid) for pid in pids)


def test_what_ignores_a_request_is_killed(tmp_path):
    """A process that ignores SIGTERM is gone after the grace period."""
    session = start(tmp_path, STUBBORN)
    until(lambda: (tmp_path / "log").read_text() == "ready\n")
    assert end_sessions([session], 0.3) == []
    assert members([session]) == []


@pytest.mark.parametrize("known_by", ["environment", "open file"])
def test_orphans_of_a_killed_leader_are_found(tmp_path, known_by):
    """A child whose leader was killed is known by the cluster's folder in its environment, or by a file it has open there."""
    log = tmp_path / "log" if known_by == "open file" else Path(os.devnull)
    variables = {"TOKEN_PATH": str(tmp_path / "token")} if known_by == "environment" else {}
    session = spawn_session([sys.executable, "-c", CHILD], {**os.environ, **variables}, log, tmp_path)
    until(lambda: len(members([session])) == 2)
    orphan = members([session])[-1].pid
    os.kill(session.pid, signal.SIGKILL)
    until(lambda: not leads(session))
    assert [process.pid for process in members([session])] == [orphan]
    assert end_sessions([session], 10.0) == []
    assert not running(orphan)


def test_orphans_of_somebody_else_are_left_alone(tmp_path):
    """A session whose leader is gone, and of which nothing points to the cluster's folder, is not the cluster's."""
    session = start(tmp_path, CHILD)
    until(lambda: len(members([session])) == 2)
    orphan = members([session])[-1].pid
    os.kill(session.pid, signal.SIGKILL)
    until(lambda: not leads(session))
    other = replace(session, folder=str(tmp_path / "another"))
    assert members([other]) == []
    assert end_sessions([other], 1.0) == []
    assert [process.pid for process in members([session])] == [orphan]
    assert end_sessions([session], 10.0) == []


@pytest.mark.parametrize("difference", ["start", "boot"])
def test_a_reused_number_is_not_touched(tmp_path, innocent, difference):
    """A pid that belongs to a process started at another time, or after a restart of the machine, is somebody else's."""
    known = start(tmp_path, CHILD)
    reused = replace(known, pid=innocent.pid, start_ticks=known.start_ticks + 1)  # later than the innocent one started
    other = reused if difference == "start" else replace(known, boot_id="another boot")
    assert not leads(other)
    assert members([other]) == []
    assert end_sessions([other], 1.0) == []
    assert innocent.poll() is None
    assert leads(known)
    assert end_sessions([known], 10.0) == []


def test_a_signal_goes_to_the_very_process_or_nowhere(tmp_path):
    """A process that is not the one that was looked up gets no signal; one that is gone is no error."""
    session = start(tmp_path, SLEEP)
    process = members([session])[0]
    assert not send_signal(replace(process, start_ticks=process.start_ticks - 1), signal.SIGKILL)
    assert leads(session)
    assert send_signal(process, signal.SIGKILL)
    until(lambda: not leads(session))
    assert not send_signal(process, signal.SIGKILL)
