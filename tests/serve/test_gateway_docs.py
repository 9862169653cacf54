"""docs/gateway.md: its example runs, its tables are the code's, and `run_sim.py serve` does on a real cluster what it says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

import serve.gateway
from serve.gateway import metrics
from serve.gateway.http_proxy import check_port
from serve.gateway.openai_answers import unavailable
from serve.nodes.local_cluster import LocalCluster
from serve.nodes.start import free_port
from sim.placing import PolicyPlacer
from tests.conftest import ROOT
from tests.helpers import load_text
from tests.serve.gateway_server import QUESTION, start_gateway, until
from tests.serve.processes import ended
from tests.serve.ray_cluster import PATIENCE_S
from tests.serve.upstream import start_upstream
from workloads.errors import ModelUnavailable

PAGE = (ROOT / "docs/gateway.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TABLES = [line for line in PAGE.splitlines() if line.startswith("|")]

SCENARIO = """
name: documented
workload: {tasks: {kind: modelled}, requests: 10}
tiers:
  edge: {role: slm, model: llama-3.2-3b-int4, model_name: isthmus-slm, device: jetson-orin-nx, SLM}
  cloud: {role: llm, model: gpt-4o, model_name: isthmus-llm, endpoint: gpt-4o-class, LLM}
links:
  - {between: [home, edge], link: wifi}
  - {between: [edge, cloud], link: wired}
client: {attempt_timeout_s: 2.0}
policies: [all-slm, all-llm, {policy: random, p: [0.25, 0.75]}, {policy: prompt-length, threshold_tokens: [40, 60]}]
"""


def scenario(slm: str = "", llm: str = "") -> str:
    """The scenario, with the models behind its tiers."""
    return SCENARIO.replace(", SLM", slm).replace(", LLM", llm)


def test_the_example_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it is printed, against a gateway with a scenario's policies; only the address is another."""
    loaded = load_text(tmp_path, scenario())
    placer = PolicyPlacer(loaded.scenario, loaded.path)
    with start_gateway(None, placer) as gateway:
        assert "http://127.0.0.1:8000" in EXAMPLE
        exec(EXAMPLE.replace("http://127.0.0.1:8000", gateway.url), {})  # noqa: S102 - our own page
        names = re.findall(
            r"`(isthmus[^`]*|edge|cloud)`", "\n".join(line for line in TABLES if "| to " in line or "where" in line)
        )
        assert len(names) >= 8
        unknown = [name for name in names if "embedding" not in name and gateway.chat(model=name).status != 200]
        assert unknown == []
    answer, placed, stream = capsys.readouterr().out.splitlines()
    assert answer.endswith("heard: What is 6 times 7? 12")
    assert placed.split()[0] in ("edge", "cloud")
    assert stream == "huge heard: What is 6 times 7?12 cloud"


def test_the_tables_are_complete() -> None:
    """Every code, field, header and metric of the gateway is on the page."""
    told = "\n".join(TABLES)
    folder = Path(serve.gateway.__path__[0])
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    errors = told[told.index("| status |") : told.index("| metric |")]
    named = set(re.findall(r"`([a-z]+_[a-z_]+|overloaded|unavailable|timeout)`", errors)) - {"max_usd"}
    assert named <= set(re.findall(r'"([a-z_]+)"', code))
    assert set(re.findall(r'code="([a-z_]+)"', code)) <= named
    reasons = (
        "timeout",
        "rate-limited",
        "own-limit",
        "overloaded",
        "budget",
        "refused",
        "bad-answer",
        "prompt-too-long",
        "?",
    )
    assert {unavailable({"edge": ModelUnavailable(reason)}).code for reason in reasons} <= named
    series = set(re.findall(r"isthmus_gateway_[a-z_]+", str(metrics.__doc__)))
    assert set(re.findall(r"isthmus_gateway_[a-z_]+", told)) == series
    with start_gateway() as gateway:
        response = gateway.chat(messages=QUESTION)
    fields = told[told.index("| `isthmus` |") : told.index("| status |")]
    assert set(re.findall(r"`([a-z_]+)`", fields)) - {"isthmus"} >= set(response.document["isthmus"])
    sent = {name.lower() for name in response.headers if name.lower().startswith("x-isthmus")}
    assert {name.lower() for name in re.findall(r"`(X-Isthmus[A-Za-z-]+)`", fields)} == sent


# ------------------------------------------------------------------------------------------------------ on a cluster


def metric(pages: list[str], name: str, **labels: str) -> float:
    """The sum of a counter over nodes, for series with these labels."""
    total = 0.0
    for page in pages:
        with urllib.request.urlopen(page, timeout=30) as answer:  # noqa: S310 - our own nodes
            lines = answer.read().decode().splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        found = [line for line in lines if line.startswith(f"ray_{name}{{") and all(label in line for label in wanted)]
        total += sum(float(line.rsplit(" ", 1)[1]) for line in found)
    return total


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_the_command(local_nodes: LocalCluster, tmp_path: Path) -> None:
    """It announces itself, asks for the key, fails over after the scenario's time for an attempt, counts that, and ends at Ctrl-C."""
    import ray

    with local_nodes.connect():
        rows: Any = ray.nodes()
        pages = [
            f"http://{row['NodeManagerAddress']}:{row['MetricsExportPort']}/metrics" for row in rows if row["Alive"]
        ]
    with start_upstream() as hanging, start_upstream() as answering:
        hanging.script(default={"kind": "hang"})
        served = [
            f", serve: {{where: cloud, num_cpus: 0.25, upstream: {{base_url: '{upstream.url}', model: m, api_key_env: null}}}}"
            for upstream in (hanging, answering)
        ]
        path = load_text(tmp_path, scenario(*served)).path
        port = free_port()
        command = [sys.executable, str(ROOT / "run_sim.py"), "serve", str(path), "--port", str(port)]
        environment = {**os.environ, **local_nodes.environment, "ISTHMUS_GATEWAY_KEY": "sesame"}
        pipe = subprocess.PIPE
        with ended(
            subprocess.Popen(
                [*command, "--address", local_nodes.address],
                cwd=tmp_path,
                env=environment,
                stdout=pipe,
                stderr=pipe,
                text=True,
            )
        ) as process:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{port}"
            assert process.stdout.readline() == f"serving {url}/v1 (Ctrl-C ends it)\n"
            assert process.stdout.readline().startswith(
                "models: isthmus/all-slm, isthmus/all-llm, isthmus/random@0.25,"
            )
            with urllib.request.urlopen(f"{url}/healthz", timeout=PATIENCE_S) as health:  # noqa: S310 - our own gateway
                assert health.status == 200
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
                with pytest.raises(openai.AuthenticationError):
                    client.models.list()
                ours = client.with_options(api_key="sesame")
                raw = ours.chat.completions.with_raw_response.create(model="isthmus/all-slm", messages=QUESTION)
            assert raw.parse().choices[0].message.content == "You said: how are you today"
            assert raw.headers["x-isthmus-reason"] == "fail-over from edge: timeout"
            unconfirmed = {"model": "isthmus/all-slm", "tier": "edge", "reason": "timeout"}
            until(lambda: metric(pages, "isthmus_gateway_unconfirmed_total", **unconfirmed) == 1, PATIENCE_S)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE_S)  # Ray has a word to say about a Serve that is stopped
        assert process.returncode == 0, err
        check_port("127.0.0.1", port)
