"""A small real OpenAI-compatible upstream in a process of its own, told over HTTP how to behave.

    with start_upstream() as upstream:
        upstream.script({"kind": "status", "status": 429, "retry_after": "1", "times": 2}, {"kind": "ok", "text": "4"})
        ...                      # point a client at upstream.url
        assert [call["kind"] for call in upstream.calls()] == ["status", "status", "ok"]

upstream_server.py describes the behaviours.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Behaviour = Mapping[str, Any]

_SERVER = Path(__file__).with_name("upstream_server.py")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Upstream:
    """The test's side of a running upstream. `url` is the base URL for clients, `process` the server's process."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.process = self._launch()

    @property
    def url(self) -> str:
        """The base URL, as an OpenAI client wants it."""
        return f"http://127.0.0.1:{self.port}/v1"

    def script(self, *behaviours: Behaviour, default: Behaviour | None = None) -> None:
        """Replace what is scripted, and the default if given."""
        self._control("script", {"behaviours": behaviours, "default": default})

    def reset(self) -> None:
        """As just started: nothing scripted, no calls remembered."""
        self._control("reset", {})

    def calls(self) -> list[dict[str, Any]]:
        """Every chat call since the process started: kind, body, authorization, connection, at_s, outcome.

        `connection` is the client's address, so equal ones are one TCP connection. `at_s` is the arrival on the
        monotonic clock. `outcome` is open, answered, dropped or hung up (by the client).
        """
        calls: list[dict[str, Any]] = self._control("calls")
        return calls

    def max_in_flight(self) -> int:
        """The most chat calls that were ever being answered at one time."""
        return int(self._control("in_flight")["most"])

    def in_flight(self) -> int:
        """How many chat calls are being answered now."""
        return int(self._control("in_flight")["now"])

    def kill(self) -> None:
        """Kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self._reap()

    def restart(self) -> None:
        """Start again on the same port after `kill`, with nothing scripted and no calls remembered."""
        self.process = self._launch()

    def close(self) -> None:
        """Stop the process, whether it lives or not."""
        self.process.kill()
        self._reap()

    def _reap(self) -> None:
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()

    def _launch(self) -> subprocess.Popen[str]:
        # Keys of the shell that runs the tests are none of the upstream's business.
        environment = {name: value for name, value in os.environ.items() if not name.endswith("_KEY")}
        command, pipe = [sys.executable, str(_SERVER), str(self.port)], subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        assert process.stdout is not None
        line = process.stdout.readline()  # the port, once the socket listens: calls from then on wait, none is refused
        assert line, f"the upstream did not start: exit code {process.wait()}"
        self.port = int(line)
        return process

    def _control(self, name: str, body: Mapping[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/control/{name}",
            data=json.dumps(body).encode() if body is not None else None,
            headers={"content-type": "application/json"},
        )
        with _DIRECT.open(request, timeout=60) as answer:
            return json.load(answer)


@contextmanager
def start_upstream(port: int = 0) -> Iterator[Upstream]:
    """A running upstream on a free port (or `port`); its process ends with the block."""
    upstream = Upstream(port)
    try:
        yield upstream
    finally:
        upstream.close()
