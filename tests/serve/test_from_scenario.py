"""From a scenario to what is deployed: upstreams with their limits and prices, devices, and what travels to other machines."""

from __future__ import annotations

from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import run_sim
from serve.cloud import UpstreamSpec
from serve.deployments import TierDeployment
from serve.generation import ModelSpec
from sim.loading import dump_yaml, load_scenario
from sim.scenario_serving import UpstreamApi
from tests.test_cli import command
from workloads.errors import InputError

SCENARIO: dict[str, Any] = {
    "name": "served",
    "workload": {"tasks": {"kind": "pair", "distinct_tasks": 4}, "requests": 2},
    "inference": {"backend": "serve"},
    "tiers": {
        "edge": {"role": "slm", "model": "llama-3.2-3b-int4", "model_name": "small", "device": "jetson-orin-nx"},
        "cloud": {"role": "llm", "model": "gpt-4o", "model_name": "large", "endpoint": "gpt-4o-class"},
    },
    "pricing": {"date": date(2026, 1, 1)},
    "policies": ["all-llm"],
    "seeds": [1],
}
API = {"base_url": "http://localhost:9/v1", "model": "m", "api_key_env": None}


def written(folder: Path, edge: dict[str, Any] | None = None, cloud: dict[str, Any] | None = None, **more: Any) -> Path:
    """A scenario file whose tiers serve this."""
    tiers = {name: dict(tier) for name, tier in SCENARIO["tiers"].items()}
    tiers["edge"]["serve"] = edge or {"source": "pair/slm"}
    tiers["cloud"] |= {"serve": cloud or {"upstream": API}, **more}
    path = folder / "scenario.yaml"
    path.write_text(dump_yaml(SCENARIO | {"tiers": tiers}), encoding="utf-8")
    return path


def deployed(path: Path, *settings: str) -> dict[str, TierDeployment]:
    """What a scenario file deploys, by model name."""
    loaded = load_scenario(path, list(settings))
    return run_sim.deployments(loaded.scenario, loaded.path)


def upstream(path: Path, *settings: str) -> UpstreamSpec:
    """The upstream of the tier `cloud`."""
    model = deployed(path, *settings)["large"].model
    assert isinstance(model, UpstreamSpec)
    return model


def hosted(path: Path, *settings: str) -> ModelSpec:
    """The model of the tier `edge`."""
    model = deployed(path, *settings)["small"].model
    assert isinstance(model, ModelSpec)
    return model


# ------------------------------------------------------------------------------------------------------------ upstreams


def test_all_of_an_upstream_can_be_written_in_a_scenario(tmp_path: Path) -> None:
    """Every field of the spec is a field of `serve.upstream` with the same default; the answer's limit is the served model's."""
    assert {field.name for field in fields(UpstreamSpec)} - {"max_tokens"} == UpstreamApi.model_fields.keys()
    plain = UpstreamApi(base_url="http://localhost/v1", model="m").model_dump()
    assert UpstreamSpec(**plain) == UpstreamSpec("http://localhost/v1", "m")
    given = {
        "timeout_s": 7.0, "connect_timeout_s": 1.0, "max_retries": 2, "first_backoff_s": 0.1, "max_backoff_s": 0.2, "concurrency": 5,
        "requests_per_min": 60.0, "tokens_per_min": 1000.0, "max_usd": 2.0, "stream": True, "logprobs": True,
        "limit_field": "max_completion_tokens", "tool_role": "tool",
    }  # fmt: skip
    path = written(tmp_path, cloud={"upstream": API | given, "max_tokens": 99})
    spec = upstream(path)
    assert {name: getattr(spec, name) for name in given} == given
    assert spec.max_tokens == 99
    tier = deployed(path)["large"]
    assert (tier.where, tier.max_batch, tier.bulk_calls, tier.bulk_requests) == ("cloud", 5, 1, 5)


def test_as_many_calls_are_on_their_way_as_a_limit_lets_pass(tmp_path: Path) -> None:
    """More would only wait in the proxy, with their time running."""
    path = written(tmp_path)
    limit = "tiers.cloud.serve.upstream.requests_per_min"
    assert [deployed(path, f"{limit}={per_min}")["large"].bulk_requests for per_min in (0.5, 3, 3000)] == [1, 3, 32]
    assert deployed(path, "tiers.edge.max_batch=4", "tiers.edge.replicas=2")["small"].bulk_requests == 6


def test_a_call_has_time_for_a_second_try(tmp_path: Path) -> None:
    """Unless the scenario says otherwise, an upstream that is slow once does not fail the call."""
    path = written(tmp_path)
    assert deployed(path)["large"].request_timeout_s == 180.0
    assert deployed(path, "tiers.cloud.serve.upstream.timeout_s=20")["large"].request_timeout_s == 60.0
    assert deployed(path, "tiers.cloud.serve.request_timeout_s=30")["large"].request_timeout_s == 30.0
    assert deployed(path)["small"].request_timeout_s == 60.0


def test_prices_are_the_tiers_unless_the_upstream_has_its_own(tmp_path: Path) -> None:
    """What is simulated as one model may be asked of another."""
    path, api = written(tmp_path), "tiers.cloud.serve.upstream"
    spec = upstream(path)
    assert (spec.input_usd_per_mtok, spec.cached_input_usd_per_mtok, spec.output_usd_per_mtok) == pytest.approx(
        (2.5, 1.25, 10.0)  # of gpt-4o
    )
    own = upstream(path, f"{api}.input_usd_per_mtok=0.1", f"{api}.output_usd_per_mtok=0.4")
    assert (own.input_usd_per_mtok, own.cached_input_usd_per_mtok, own.output_usd_per_mtok) == (0.1, None, 0.4)
    for lonely in ("input", "output", "cached_input"):
        with pytest.raises(InputError, match="input_usd_per_mtok and output_usd_per_mtok"):
            upstream(path, f"{api}.{lonely}_usd_per_mtok=1")


@pytest.mark.parametrize("command_line", [("run", "--out"), ("record", "--out")])
def test_a_limit_that_would_never_be_reached_is_refused_before_anything_is_written(
    tmp_path: Path, command_line: tuple[str, str]
) -> None:
    """A tier whose model has no price costs nothing by our count, so that no limit would bind."""
    path = written(tmp_path, cloud={"upstream": API | {"max_usd": 1.0}}, model="llama-3.2-3b-int4")
    result = command(command_line[0], path, command_line[1], tmp_path / "out.jsonl", code=2)
    assert "tiers.cloud.serve.upstream.max_usd: a limit on dollars without prices (input 0, output 0" in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


# --------------------------------------------------------------------------------------------------------- own models


@pytest.mark.parametrize(
    ("device", "num_gpus", "expected"),
    [
        ("auto", 0, "cpu"),  # Ray leaves the node's GPUs visible to a replica that reserved none
        ("auto", 1, "cuda"),
        ("auto", 0.5, "cuda"),
        ("cpu", 1, "cpu"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_a_gpu_is_used_where_the_scenario_says_so(tmp_path: Path, device: str, num_gpus: float, expected: str) -> None:
    """`auto` follows num_gpus, not what the process can see."""
    assert (
        hosted(written(tmp_path, edge={"source": "pair/slm", "device": device, "num_gpus": num_gpus})).device
        == expected
    )


def test_a_gpu_that_nobody_reserved_is_refused(tmp_path: Path) -> None:
    """It may belong to another replica."""
    path = written(tmp_path, edge={"source": "pair/slm", "device": "cuda"})
    with pytest.raises(
        InputError, match=r"tiers\.edge\.serve\.device: found 'cuda', but num_gpus is 0\. .*num_gpus: 1"
    ):
        hosted(path)


def test_what_ships_with_the_project_is_found_where_it_is_used(tmp_path: Path) -> None:
    """The nodes of a cluster have their checkouts elsewhere: the name travels, not a path of this machine."""
    path = written(tmp_path)
    assert hosted(path).source == "pair/slm"
    with pytest.raises(InputError, match=r"tiers\.edge\.serve\.source: found 'pair/smm'. Did you mean 'pair/slm'"):
        hosted(path, "tiers.edge.serve.source=pair/smm")


def test_a_chat_template_travels_as_text(tmp_path: Path) -> None:
    """It is a file beside the scenario, on this machine only; one that is not there is said here."""
    (tmp_path / "mine.jinja").write_text("{{ messages }}", encoding="utf-8")
    path = written(tmp_path, edge={"source": "pair/slm", "chat_template": "mine.jinja"})
    assert hosted(path).chat_template == "{{ messages }}"
    (tmp_path / "mine.jinja").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"tiers\.edge\.serve\.chat_template: .*not UTF-8"):
        hosted(path)
    (tmp_path / "mine.jinja").unlink()
    with pytest.raises(
        InputError, match=r"tiers\.edge\.serve\.chat_template: 'mine.jinja' cannot be read \(No such file"
    ):
        hosted(path)
