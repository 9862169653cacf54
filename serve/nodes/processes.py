"""The processes of nodes started here: finding them, and ending only them.

Every node is started as the leader of a session of its own, and what Ray starts below it stays in that session. A process is
one of a node's if it is in that session and the leader is still the process that was started (its start time says so), or,
once the leader is gone, if it carries the cluster's folder in its environment or has a file open in it. A number that the
kernel gave to another process in the meantime fails both. Reads `/proc`, so this needs Linux, as Ray's clusters of several
nodes do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workloads.errors import InputError

_PROC = Path("/proc")
_POLL_S = 0.1
_KILL_WAIT_S = 10.0
_FIRST_FIELD = 3  # of /proc/PID/stat after the command's name in brackets, see proc_pid_stat(5)


@dataclass(frozen=True, slots=True)
class Session:
    """A node's session: its leader's pid, that process's start in clock ticks since `boot_id`, and the cluster's folder."""

    pid: int
    start_ticks: int
    boot_id: str
    folder: str


@dataclass(frozen=True, slots=True)
class Process:
    """A living process."""

    pid: int
    session: int
    start_ticks: int
    rss_bytes: int


def boot_id() -> str:
    """Names this run of the machine: after a restart the same pid and ticks are another process."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        raise InputError("cluster", "this system has no /proc", "Start local clusters on Linux") from None


def spawn_session(command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path) -> Session:
    """Start a detached process that leads a session of its own; its output goes to `log`, its input is empty."""
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    boot = boot_id()
    # Not subprocess.Popen: the process outlives this one on purpose, and Popen warns about that.
    pid = os.posix_spawn(command[0], list(command), dict(environment), file_actions=files, setsid=True)
    process = _process(pid)
    return Session(pid, process.start_ticks if process else 0, boot, str(folder))


def leads(session: Session) -> bool:
    """Whether the process that was started still runs (not another one with its number)."""
    _reap(session)
    process = _process(session.pid) if session.boot_id == boot_id() else None
    return process is not None and process.start_ticks == session.start_ticks


def members(sessions: Iterable[Session]) -> list[Process]:
    """All living processes of these sessions, in order of their start."""
    asked = {session.pid: (session, leads(session)) for session in sessions if session.boot_id == boot_id()}
    found = []
    for name in os.listdir(_PROC):
        process = _process(int(name)) if name.isdecimal() else None
        if process is None or process.session not in asked:
            continue
        session, led = asked[process.session]
        if led or (process.start_ticks >= session.start_ticks and _uses(process.pid, session.folder)):
            found.append(process)
    return sorted(found, key=lambda process: (process.start_ticks, process.pid))


def program(pid: int) -> str:
    """The file name of what a process runs, such as `raylet`; empty if it is gone."""
    with contextlib.suppress(OSError):
        return Path(os.readlink(_PROC / str(pid) / "exe")).name
    return ""


def end_sessions(sessions: Sequence[Session], grace_s: float) -> list[int]:
    """End all processes of these sessions and wait until they are gone; returns the pids of those that would not go.

    SIGTERM goes to the leaders, which end what they started, and then to what has no leader any more; what is left after
    `grace_s` gets SIGKILL. Members are looked up each time: one that ends may just have started another.
    """
    asked: set[tuple[int, int]] = set()
    start = time.monotonic()
    while left := members(sessions):
        late = time.monotonic() - start - grace_s
        if late > _KILL_WAIT_S:
            break
        leaders = {session.pid for session in sessions if leads(session)}
        for process in left:
            name = (process.pid, process.start_ticks)
            if late > 0:
                send_signal(process, signal.SIGKILL)
            elif name not in asked and (process.pid in leaders or process.session not in leaders):
                send_signal(process, signal.SIGTERM)
                asked.add(name)
        time.sleep(_POLL_S)
    return [process.pid for process in left]


def send_signal(process: Process, number: signal.Signals) -> bool:
    """Send a signal to exactly this process; False if it is gone. A pidfd cannot come to mean another process."""
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        now = _process(process.pid)
        if now is None or now.start_ticks != process.start_ticks:
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def _process(pid: int) -> Process | None:
    """The living process with this number; a zombie holds nothing any more and counts as gone."""
    state, process = _stat(pid)
    return None if state in "ZXx" else process


def _stat(pid: int) -> tuple[str, Process | None]:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return "X", None
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    session, start, pages = (int(fields[number - _FIRST_FIELD]) for number in (6, 22, 24))
    return fields[0], Process(pid, session, start, pages * os.sysconf("SC_PAGE_SIZE"))


def _uses(pid: int, folder: str) -> bool:
    """Whether a process was started with the folder in its environment or has a file in it open.

    Ray's agents overwrite their environment with a title of their own, but keep their log open.
    """
    with contextlib.suppress(OSError):
        if folder.encode() in (_PROC / str(pid) / "environ").read_bytes():
            return True
    with contextlib.suppress(OSError):
        for number in os.listdir(files := _PROC / str(pid) / "fd"):
            with contextlib.suppress(OSError):
                if os.readlink(files / number).startswith(folder + "/"):
                    return True
    return False


def _reap(session: Session) -> None:
    """Take note of the leader's end if it was a child of this process, so that it does not stay as a zombie."""
    state, process = _stat(session.pid)
    if state == "Z" and process and process.start_ticks == session.start_ticks:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(session.pid, os.WNOHANG)
