"""A cluster address where something else listens is one clear message within seconds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc  # type: ignore[import-untyped]
import pytest

from serve.cluster import check_address
from workloads.errors import InputError


@contextmanager
def silent() -> Iterator[int]:
    """Accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def web() -> Iterator[int]:
    """An HTTP server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def other_service() -> Iterator[int]:
    """A gRPC server without Ray's services."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


def problem_at(port: int) -> str:
    """What is said about this port of the machine."""
    with pytest.raises(InputError) as refused:
        check_address(f"127.0.0.1:{port}")
    assert refused.value.place == f"--address 127.0.0.1:{port}"
    return refused.value.problem


@pytest.mark.slow
def test_what_listens_there_is_no_ray_cluster() -> None:
    """A server that says nothing, one that speaks HTTP, one that speaks gRPC, and a port where nobody listens any more."""
    with silent() as mute, web() as http, other_service() as other, ThreadPoolExecutor(4) as pool:
        begun_s = time.monotonic()
        with silent() as free:
            pass
        problems = list(pool.map(problem_at, (mute, http, other, free)))
    assert time.monotonic() - begun_s < 30.0
    said = "no Ray cluster answers (something listens there, but it did not speak gRPC within 10 s)"
    assert problems[:2] == [said, said]
    assert problems[2] == "no Ray cluster answers (another service listens there)"
    assert "refused" in problems[3]
