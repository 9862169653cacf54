"""What tests of Ray Serve share: models that answer for as long as wanted, deployments of them, and streams of calls."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from serve.backend import RayServeBackend
from serve.deployments import TierDeployment
from serve.generation import ModelSpec
from serve.replicas.asking import ReplicaStats
from tests.serve.tiny_models import tiny_model
from workloads.errors import ModelUnavailable
from workloads.task import Completion, Message, ModelCall, Task

PATIENCE_S = 600.0
"""How long tests wait for what must happen; machines are shared and slow, so this says nothing about speed."""


def endless_model(folder: Path, context_tokens: int = 2048) -> Path:
    """A tiny model that never ends its turn: an answer has as many tokens as its call allows."""
    from safetensors.torch import load_file, save_file

    path = tiny_model(folder, end_share=0.0, context_tokens=context_tokens) / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"][1] = 0.0  # of 262 random scores the highest is never 0
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def hosting(name: str, where: str, folder: Path, **fields: object) -> TierDeployment:
    """A tier that hosts the model in `folder` on half a logical CPU and one thread a replica."""
    spec = ModelSpec(str(folder), threads=1, max_tokens=4096)
    return TierDeployment(name, where, spec, **{"num_cpus": 0.5, "request_timeout_s": PATIENCE_S} | fields)  # type: ignore[arg-type]


def question(text: str, max_tokens: int = 12) -> ModelCall:
    """A model call that asks `text`."""
    return ModelCall(Task(text, text), 0, (Message("user", text),), 8, 400, max_tokens=max_tokens)


def until(true: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> float:
    """Wait until `true()`; returns the seconds it took."""
    begun_s = time.monotonic()
    while not true():
        assert time.monotonic() - begun_s < patience_s, f"not within {patience_s:g} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - begun_s


def load_of(backend: RayServeBackend, model: str) -> tuple[int, int]:
    """Calls (waiting, being answered) in the replicas of a model."""
    stats = backend.client(model).stats()
    return sum(s.queued for s in stats), sum(s.active for s in stats)


def replicas_of(backend: RayServeBackend, model: str) -> list[ReplicaStats]:
    """The replicas of a model that answer now; none while one of them is dying."""
    try:
        return backend.client(model).stats()
    except ModelUnavailable:
        return []


def kill(replica: ReplicaStats) -> None:
    """Kill -9 of a replica's process; it must be on this machine and what it says it is."""
    title = (
        Path(f"/proc/{replica.pid}/cmdline").read_bytes().strip(b"\0")
    )  # Ray's, which also says what it does just now
    assert re.match(rb"ray::.*\b%b:(EdgeSLM|CloudProxy)" % replica.tier.encode(), title), title
    os.kill(replica.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Ended:
    """How one call of a stream ended: with an answer or a failure, seconds from the stream's start."""

    number: int
    answer: Completion | None
    failure: ModelUnavailable | None
    sent_s: float
    ended_s: float


class CallStream:
    """Calls at a steady rate, each in a thread of its own, in the background; `ended` collects each call as often as it ends."""

    def __init__(self, backend: RayServeBackend, model: str, count: int, per_s: float, max_tokens: int = 12) -> None:
        self.ended: list[Ended] = []
        self.begun_s = time.monotonic()
        self._backend, self._model, self._max_tokens = backend, model, max_tokens
        self._threads: list[Thread] = []
        self._sender = Thread(target=self._send, args=(count, per_s))
        self._sender.start()

    def now(self) -> float:
        """Seconds since the stream began."""
        return time.monotonic() - self.begun_s

    def finish(self) -> list[Ended]:
        """Wait until all calls have ended; in order of their numbers."""
        self._sender.join()
        for thread in self._threads:
            thread.join(PATIENCE_S * 2)
        assert not any(thread.is_alive() for thread in self._threads), "calls that never end"
        return sorted(self.ended, key=lambda ended: ended.number)

    def _send(self, count: int, per_s: float) -> None:
        for number in range(count):
            time.sleep(max(0.0, number / per_s - self.now()))
            thread = Thread(target=self._call, args=(number,))
            thread.start()
            self._threads.append(thread)

    def _call(self, number: int) -> None:
        sent_s = self.now()
        answer, failure = None, None
        try:
            answer = self._backend.submit(question(f"question {number}", self._max_tokens), self._model).result()
        except ModelUnavailable as error:
            failure = error
        self.ended.append(Ended(number, answer, failure, sent_s, self.now()))


def reasons(ended: list[Ended]) -> Counter[str]:
    """How many calls ended how: "ok", or the reason of the failure."""
    return Counter(e.failure.reason if e.failure else "ok" for e in ended)


def recovered_s(ended: list[Ended], fault_s: float) -> float:
    """Seconds from a fault to the first answer to a call that was sent after the last failed one."""
    last = max((e.sent_s for e in ended if e.failure is not None), default=fault_s)
    return min(e.ended_s for e in ended if e.failure is None and e.sent_s >= last and e.ended_s > fault_s) - fault_s


def each_once(ended: list[Ended], count: int) -> Iterator[str]:
    """What is wrong with how a stream's calls ended, if anything: each must have ended exactly once, in one way."""
    numbers = Counter(e.number for e in ended)
    yield from (f"call {n} ended {numbers[n]} times" for n in range(count) if numbers[n] != 1)
    yield from (f"call {e.number} ended both ways" for e in ended if (e.answer is None) == (e.failure is None))
