"""What the command line says and keeps of dollars: a recording that stops for want of them, a run of several groups of cells."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.upstream.spending import spending_path
from sim.loading import dump_yaml
from tests.serve.upstream import Upstream, start_upstream
from tests.test_cli import command

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

TOKENS = 4
"""Of each answer, at a dollar each."""


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """An API whose answers cost four dollars."""
    with start_upstream() as running:
        running.script(default={"kind": "ok", "text": "a b c d"})
        yield running


@pytest.fixture
def scenario(tmp_path: Path, upstream: Upstream) -> Path:
    """A scenario both of whose tiers stand before that API, the large one with a limit of its own."""

    def tier(role: str, **limits: float) -> dict[str, Any]:
        api = {"base_url": upstream.url, "model": role, "api_key_env": None, "max_retries": 0, **limits}
        prices = {"input_usd_per_mtok": 1e-6, "output_usd_per_mtok": 1e6}
        serve = {"upstream": api | prices, "where": "cloud", "num_cpus": 0.25, "max_tokens": TOKENS}
        return {"role": role, "model_name": role, "model": "gpt-4o", "endpoint": "gpt-4o-class", "serve": serve}

    path = tmp_path / "scenario.yaml"
    written = {
        "name": "dollars",
        "workload": {"tasks": {"kind": "pair", "distinct_tasks": 6}, "requests": 6},
        "inference": {"backend": "serve"},
        "client": {"retries": 0, "fail_over": False},
        "tiers": {"edge": tier("slm"), "cloud": tier("llm", max_usd=18.0)},
        "policies": ["all-llm"],
        "seeds": [1],
    }
    path.write_text(dump_yaml(written), encoding="utf-8")
    return path


def billed(upstream: Upstream, model: str) -> float:
    """What the API asks for the answers of one model, in dollars."""
    return float(TOKENS * sum(call["body"]["model"] == model for call in upstream.calls()))


def test_a_recording_without_dollars_stops_and_goes_on_with_more(
    cluster, scenario: Path, upstream: Upstream, tmp_path: Path
) -> None:
    """What was spent counts when it goes on; every answer is paid for once, and the file goes with the journal."""
    out = tmp_path / "answers.jsonl"
    arguments = ["record", scenario, "--out", out, "--counterfactual", "1", "--address", cluster.address]
    stopped = command(*arguments, code=2)
    assert "budget" in stopped.stderr
    assert "upstream of tier cloud: 16.0000 USD; 0 retries; limit 18 USD" in stopped.stdout
    assert billed(upstream, "llm") == 16.0
    assert not out.exists()
    again = command(*arguments, code=2)  # with nothing left
    assert "upstream of tier cloud: 16.0000 USD" in again.stdout
    assert billed(upstream, "llm") == 16.0
    assert spending_path(out).exists()
    finished = command(*arguments, "--set", "tiers.cloud.serve.upstream.max_usd=1000")
    whole_usd = float(re.findall(r"tier cloud: ([\d.]+) USD", finished.stdout)[0])
    asked = [str(call["body"]["messages"]) for call in upstream.calls() if call["body"]["model"] == "llm"]
    assert whole_usd == pytest.approx(billed(upstream, "llm"), abs=0.001)
    assert len(asked) == len(set(asked)) > 4
    assert out.exists()
    assert not spending_path(out).exists()


def test_a_run_of_several_groups_has_one_limit(cluster, scenario: Path, upstream: Upstream, tmp_path: Path) -> None:
    """Cells with other models bring them up anew, and find what is left; what it came to is beside the records."""
    sweep = "sweep={tiers.cloud.max_batch: [1, 2, 3]}"
    run = command(
        "run", scenario, "--out", tmp_path, "--set", sweep, "--set", "policies=[all-slm, all-llm]", "--address", cluster.address
    )  # fmt: skip
    assert "upstream of tier cloud: 16.0000 USD; 0 retries; limit 18 USD" in run.stdout
    assert billed(upstream, "llm") == 16.0
    assert billed(upstream, "slm") > 16.0
    book = (tmp_path / "dollars" / "latest" / "spending.jsonl").read_text(encoding="utf-8")
    assert '{"tier": "cloud", "confirmed_usd": 16.0' in book.splitlines()[-1] + book.splitlines()[-2]
