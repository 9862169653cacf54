"""Made-up models that answer the embedded tasks, and a process that records them: for tests that kill it.

python -m tests.recording_process SCENARIO OUT DEPTH PAUSE_S
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from rich.console import Console

from sim.loading import load_scenario
from sim.recording_run import record
from workloads.agent import FRAMING_BYTES
from workloads.backend import Handle, ScriptedBackend
from workloads.task import Completion, ModelCall

SCENARIO = """
name: to-record
workload:
  tasks: {kind: pair, distinct_tasks: 30}
  requests: 30
  arrivals: {kind: constant, rate_per_s: 0.1}
inference: {backend: serve}
tiers:
  edge: {role: slm, model: llama-3.2-3b-int4, model_name: little, device: jetson-orin-nx, serve: {source: pair/slm}}
  cloud: {role: llm, model: gpt-4o, model_name: large, endpoint: gpt-4o-class, serve: {source: pair/llm}}
links:
  - {between: [home, edge], link: wifi}
  - {between: [edge, cloud], link: wired}
policies:
  - all-slm
  - all-llm
  - {policy: random, p: 0.5}
seeds: [1, 2]
"""


def made_up(call: ModelCall, model: str) -> Completion:
    """A step in the words of the task, the same one whenever it is asked: the large model knows more and asks less."""
    random = Random(hashlib.sha256(repr((model, call.messages)).encode()).digest())
    words = call.task.prompt.split()
    if random.random() < (0.6 if model == "large" else 0.35):
        known = random.random() < (0.8 if model == "large" else 0.4)
        text = f"answer {call.task.answer if known else random.choice(words)}"
    else:
        text = f"{random.choice(('find', 'note', 'plan'))} {random.choice(words)}"
    took_s = random.random()
    return Completion(
        f"vendor/{model}", text, call.prompt_tokens, 2 + len(text.split()), FRAMING_BYTES + len(text.encode()),
        mean_logprob=-random.random(), prefill_s=took_s / 10, decode_s=took_s, provenance="live",
    )  # fmt: skip


class SlowBackend(ScriptedBackend):
    """Takes its time, as the clock sees it, over every answer."""

    def __init__(self, answer: Callable[[ModelCall, str], Completion], pause_s: float) -> None:
        super().__init__(answer)
        self._pause_s, self.asked = pause_s, 0

    def submit(self, call: ModelCall, model: str) -> Handle:
        """An answer that takes time to collect."""
        self.asked += 1
        return _Late(self._pause_s, super().submit(call, model).result())


class _Late:
    def __init__(self, pause_s: float, answer: Completion) -> None:
        self._pause_s, self._answer = pause_s, answer

    def result(self) -> Completion:
        """The answer, in a while."""
        time.sleep(self._pause_s)
        return self._answer


def main() -> None:
    """Record as `run_sim.py record` does, with made-up models."""
    scenario, out, depth, pause_s, *settings = sys.argv[1:]
    backend = SlowBackend(made_up, float(pause_s))
    summary = record(
        load_scenario(Path(scenario), settings), backend, Path(out), int(depth) or None, console=Console(stderr=True)
    )
    sys.stdout.write(f"{summary.answers} {summary.kept} {backend.asked}\n")


if __name__ == "__main__":
    main()
