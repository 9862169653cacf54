"""What tests of real processes share: waiting, looking, and starting Python programs that have the checkout's modules."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve.nodes.start import ROOT

PATIENCE_S = 60.0
"""How long a test waits before it calls something hung, on a machine that others use too."""
SLEEP = "import time; time.sleep(600)"


def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition; fails if it does not come true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def running(pid: int) -> bool:
    """Whether a process does anything any more: one that nobody has taken note of yet keeps its number for a while."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def python(code: str, *arguments: str) -> list[str]:
    """The command for a program that has the checkout's modules."""
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", *arguments]


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed at the end of the block, also if the test fails there: `with Popen` alone would wait for it."""
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def somebody_else() -> Iterator[subprocess.Popen[str]]:
    """A process that nobody here may end: a session leader like ours, which sleeps."""
    with ended(subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True, text=True)) as process:
        yield process
