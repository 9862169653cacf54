"""Whole runs on live models: the command line on a real cluster, what it leaves there, and faults that reach the records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from run_sim import deployments
from serve.app import deployed
from serve.backend import RayServeBackend
from serve.cloud import UpstreamSpec
from serve.deployments import TierDeployment
from serve.fingerprint import fingerprints
from serve.live import open_backend
from serve.replicas.asking import ReplicaStats
from serve.replicas.tier_client import TierClient
from sim.cells import expand_cells, run_cell
from sim.loading import LoadedScenario
from sim.records import Records, read_columns
from sim.text_tasks import text_tasks
from tests.conftest import ROOT
from tests.helpers import load_text, rows
from tests.serve.ray_cluster import PATIENCE_S, endless_model, kill, load_of, question, replicas_of, until
from tests.serve.tiny_models import tiny_model
from tests.serve.upstream import Upstream, start_upstream
from workloads.errors import ModelUnavailable
from workloads.recording import read_recording
from workloads.remembering import RememberingBackend

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

SCENARIO = """
name: live
workload:
  tasks: {kind: pair, distinct_tasks: 4}
  requests: 6
  arrivals: {kind: poisson, rate_per_s: 0.5}
inference: {backend: serve, recording: answers.jsonl.gz}
tiers:
  edge: {role: slm, model: llama-3.2-3b-int4, model_name: little, device: jetson-orin-nx, serve: {source: slm, num_cpus: 0.5}}
  cloud: {role: llm, model: gpt-4o, model_name: large, endpoint: gpt-4o-class, serve: {source: llm, num_cpus: 0.5}}
links:
  - {between: [home, edge], link: wifi}
  - {between: [edge, cloud], link: wired}
policies:
  - all-slm
  - {policy: random, p: 0.5}
seeds: [1]
"""

FAULT = """
name: fault
workload:
  tasks: {kind: pair, distinct_tasks: 60}
  requests: 60
  shuffle: false
  arrivals: {kind: constant, rate_per_s: 20}
inference: {backend: serve}
tiers:
  edge: {role: slm, model: llama-3.2-3b-int4, model_name: little, device: jetson-orin-nx, replicas: 2, max_batch: 4, serve: {source: slm, num_cpus: 0.5, max_tokens: 50000}}
  cloud:
    role: llm
    model: gpt-4o
    model_name: large
    endpoint: gpt-4o-class
    replicas: 2
    serve: {num_cpus: 0.25, upstream: {base_url: "URL", model: m, api_key_env: null, concurrency: 3, max_retries: 0}}
links:
  - {between: [home, edge], link: wifi}
  - {between: [home, cloud], link: wired}
client: {retries: 0, fail_over: false, timeout_s: 1000000}
policies: [{policy: random, p: 0.5, per: request}]
seeds: [1]
"""


# ----------------------------------------------------------------------------------------------- what is left on a cluster


def proxy() -> dict[str, TierDeployment]:
    """A tier that takes no time to come up; nobody asks it."""
    return {"m": TierDeployment("api", "cloud", UpstreamSpec("http://127.0.0.1:9/v1", "m", None), num_cpus=0.1)}


def test_the_first_error_is_the_one_that_is_told(cluster) -> None:
    """Serve is gone when the tiers are to be taken down: what went wrong before that reaches the caller."""
    from ray import serve

    def run() -> None:
        with deployed(proxy(), app_name="first"):
            serve.shutdown()
            raise ValueError("the first")

    with pytest.raises(ValueError, match="the first"):
        run()


def test_the_last_run_leaves_no_serve_on_a_cluster(cluster) -> None:
    """Serve goes when the runs that started it have gone, and not while another one is there."""
    from ray import serve

    serve.shutdown()
    with open_backend(proxy(), cluster.address):
        with open_backend(proxy(), cluster.address):
            pass
        assert _serve_runs()
    assert not _serve_runs()


def _serve_runs() -> bool:
    import ray

    names = ray.util.list_named_actors(all_namespaces=True)
    return any(actor["name"].startswith("SERVE_CONTROLLER") for actor in names)


def test_replicas_find_the_project_from_any_folder(cluster, tmp_path) -> None:
    """A driver that was started elsewhere, and is no script of the checkout: the nodes know where the checkout is."""
    code = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "import json, os, ray\n"
        "from serve.pair import pair_path\n"
        "ray.init(address=sys.argv[1], log_to_driver=False)\n"
        "print(json.dumps([os.getcwd(), str(ray.get(ray.remote(pair_path).remote('slm'), timeout=240))]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | cluster.environment
    command = [sys.executable, "-c", code, cluster.address]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    here, there = json.loads(done.stdout)
    assert (here, there) == (str(tmp_path), str(ROOT / "serve" / "pair" / "weights" / "slm"))


# ---------------------------------------------------------------------------------------------------------- the command line


def command_line(cluster, folder: Path, *arguments: str) -> str:
    """What `run_sim.py` prints, started elsewhere than in the checkout."""
    command = [sys.executable, str(ROOT / "run_sim.py"), *arguments]
    environment = {**os.environ, **cluster.environment}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def tables(folder: Path) -> list[list[dict[str, str]]]:
    """Requests and subtasks of a run in a form in which NaN equals NaN, but for where the answers came from."""
    (latest,) = folder.glob("*/latest")
    return [
        [
            {name: repr(value) for name, value in row.items() if name != "provenance"}
            for row in rows(read_columns(sorted((latest / table).glob("*.parquet"))))
        ]
        for table in ("requests", "subtasks")
    ]


def provenances(folder: Path) -> set[str]:
    """Where the answers of a run came from."""
    (latest,) = folder.glob("*/latest")
    return set(read_columns(sorted((latest / "requests").glob("*.parquet")))["provenance"])


def test_what_is_recorded_is_what_runs_live_and_what_is_replayed(cluster, tmp_path) -> None:
    """`record`, a live `run` and a `run` that replays: the same rows, answer for answer, and nothing left on the cluster."""
    from ray import serve

    for number, name in enumerate(("slm", "llm")):
        tiny_model(tmp_path / name, seed=number, context_tokens=4096)
    loaded = load_text(tmp_path, SCENARIO)
    before = set(serve.status().applications)
    told = command_line(
        cluster, tmp_path, "record", "scenario.yaml", "--out", "answers.jsonl.gz", "--address", cluster.address
    )
    recording = read_recording(tmp_path / "answers.jsonl.gz")
    assert f"{len(recording.tasks)} tasks, {len(recording.answers)} answers" in told
    weights = fingerprints(deployments(loaded.scenario, loaded.path))
    assert {name: facts["fingerprint"] for name, facts in recording.made["behind"].items()} == weights
    command_line(cluster, tmp_path, "run", "scenario.yaml", "--out", "live", "--address", cluster.address)
    replay = "inference.backend=replay"
    command_line(cluster, tmp_path, "run", "scenario.yaml", "--set", replay, "--out", "replay")
    live, replayed = tables(tmp_path / "live"), tables(tmp_path / "replay")
    assert live == replayed
    assert (len(live[0]), provenances(tmp_path / "live"), provenances(tmp_path / "replay")) == (12, {"live"}, {"exact"})
    assert {row["tier"] for row in live[1]} == {"0", "1"}
    assert len({row["completion_tokens"] for row in live[1]}) > 5  # answers that could differ
    assert set(serve.status().applications) == before


# ---------------------------------------------------------------------------------------------------------------- faults


class Served(NamedTuple):
    """What both tests of faults use: a scenario, its tiers as they are served, and the upstream behind the large model."""

    loaded: LoadedScenario
    tiers: dict[str, TierDeployment]
    clients: dict[str, TierClient]
    upstream: Upstream


@pytest.fixture(scope="module")
def served(cluster, tmp_path_factory) -> Iterator[Served]:
    """Two replicas of a model whose answers are as long as they may be, and two proxies of an upstream that takes its time."""
    folder = tmp_path_factory.mktemp("fault")
    endless_model(folder / "slm", context_tokens=65536)
    with start_upstream() as upstream:
        upstream.script(default={"kind": "ok", "text": "answer 7", "delay_s": 0.3})
        loaded = load_text(folder, FAULT.replace("URL", upstream.url))
        tiers = deployments(loaded.scenario, loaded.path)
        with deployed(tiers, app_name="fault", timeout_s=PATIENCE_S) as clients:
            yield Served(loaded, tiers, clients, upstream)


def test_killed_replicas_lose_no_request_and_count_none_twice(served) -> None:
    """A model's replica and a proxy are killed under a simulation: the records hold what replicas and upstream say they did."""
    (cell,) = expand_cells(served.loaded)
    seen, victims = dict[str, int](), dict[str, ReplicaStats]()
    with RayServeBackend(served.clients) as backend, ThreadPoolExecutor(1) as running:
        simulated = running.submit(run_cell, cell, None, RememberingBackend(backend))
        for model in ("little", "large"):
            victims[model] = _at_work(backend, model)
            kill(victims[model])
            seen[model] = victims[model].answered
        records = simulated.result(PATIENCE_S)
        until(lambda: all(len(replicas_of(backend, model)) == 2 for model in victims), "new replicas")
        stats = {model: replicas_of(backend, model) for model in victims}
    assert all(victims[model].pid not in {replica.pid for replica in stats[model]} for model in stats)
    _check_requests(records)
    by_tier = {tier: [row for row in rows(records.subtasks) if row["tier"] == tier] for tier in (0, 1)}
    # Whoever lives has answered nothing that is not in the records, and nothing twice; nor had the killed one.
    answered = sum(row["status"] == "ok" for row in by_tier[0])
    assert answered >= sum(replica.answered for replica in stats["little"]) + seen["little"]
    _check_upstream(served.loaded, by_tier[1], served.upstream.calls())


def _at_work(backend: RayServeBackend, model: str) -> ReplicaStats:
    """Wait for a replica that has answered calls and is answering others."""
    found: list[ReplicaStats] = []

    def look() -> bool:
        found[:] = [r for r in replicas_of(backend, model) if r.active > 0 and r.answered > 0]
        return bool(found)

    until(look, "a replica at work")
    return max(found, key=lambda replica: replica.active)


def _check_requests(records: Records) -> None:
    """Every request ends once, completed or with the reason of the attempt that failed it, and some of them met the fault."""
    requests = rows(records.requests)
    assert sorted(row["request"] for row in requests) == list(range(60))
    failed = {row["request"]: row["reason"] for row in requests if row["status"] == "failed"}
    assert {row["status"] for row in requests} == {"completed", "failed"}
    last = {row["request"]: row for row in rows(records.subtasks)}
    for request, row in last.items():
        expected = f"{row['status']} at {('edge', 'cloud')[row['tier']]} after 1 attempts of subtask {row['position']}"
        assert failed.get(request, expected) == expected
        assert (row["status"] == "ok") == (request not in failed)
    assert {row["status"] for row in last.values()} == {"ok", "live-replica-died"}
    placed = [(row["request"], row["position"]) for row in rows(records.subtasks)]
    assert len(placed) == len(set(placed))


def _check_upstream(loaded: LoadedScenario, attempts, calls) -> None:
    """What the upstream was asked, by question, is what the records say was tried: no answer twice, none that nobody asked for."""
    tasks = text_tasks(loaded.scenario, loaded.path).tasks
    asked = Counter(call["body"]["messages"][0]["content"] for call in calls)
    tried = {tasks[row["request"]].prompt: row["status"] for row in attempts}
    assert set(asked) <= set(tried)
    assert set(asked.values()) == {1}
    answered = {call["body"]["messages"][0]["content"] for call in calls if call["outcome"] == "answered"}
    ok = {prompt for prompt, status in tried.items() if status == "ok"}
    died = {prompt for prompt, status in tried.items() if status == "live-replica-died"}
    assert ok <= answered
    assert answered - ok <= died
    assert set(tried) == ok | died


def test_closing_a_backend_waits_for_nothing(served) -> None:
    """Calls that would take long end at once as cancelled, single ones and those that travel together; their slots are free."""
    backend = RayServeBackend(served.clients)
    asked = [question(f"question {number}", 50_000) for number in range(16)]
    handles = [backend.submit(asked[0], "little"), *backend.submit_many([(call, "little") for call in asked[1:]])]
    until(lambda: load_of(backend, "little")[1] >= 4, "calls being answered, and others that wait")
    backend.close()
    for handle in handles:
        with pytest.raises(ModelUnavailable, match="cancelled"):
            handle.result()
    until(lambda: load_of(backend, "little") == (0, 0), "free slots")
