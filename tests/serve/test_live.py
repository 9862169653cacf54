"""Bringing live models up and down: what is wrong is one clear message, runs do not meet."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from serve.app import deployed
from serve.cloud import UpstreamSpec
from serve.deployments import TierDeployment
from serve.live import open_backend
from tests.serve.ray_cluster import PATIENCE_S, endless_model, hosting, question
from tests.serve.tiny_models import tiny_model
from workloads.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model."""
    return endless_model(tmp_path_factory.mktemp("models") / "endless")


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [("missing", "model '{}': "), ("truncated", "{}/model.safetensors: not a whole safetensors file ")],
    ids=["missing", "truncated"],
)
def test_a_model_that_cannot_be_loaded_is_one_clear_message(cluster, tmp_path, spoilt, told) -> None:
    """The replica's own words reach the caller, long before any timeout, and nothing stays behind."""
    from ray import serve

    folder = tmp_path / "model"
    if spoilt == "truncated":
        weights = tiny_model(folder) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    begun_s = time.monotonic()
    with (
        pytest.raises(InputError) as failure,
        deployed({"bad": hosting("bad", "edge", folder)}, app_name="bad", timeout_s=10 * PATIENCE_S),
    ):
        pass
    assert str(failure.value).startswith(f"tier 'bad': {told.format(folder)}")
    assert "Traceback" not in str(failure.value)
    assert time.monotonic() - begun_s < PATIENCE_S
    assert "bad.bad" not in serve.status().applications


def test_one_broken_tier_takes_the_others_down_with_it(cluster, folder, tmp_path) -> None:
    """All tiers are deployed or none."""
    from ray import serve

    tiers = {"good": hosting("good", "edge", folder), "bad": hosting("bad", "cloud", tmp_path / "nothing")}
    with pytest.raises(InputError, match="tier 'bad'"), deployed(tiers, app_name="half", timeout_s=PATIENCE_S):
        pass
    assert not [name for name in serve.status().applications if name.startswith("half.")]


def test_a_tier_that_finds_no_free_cpus_is_late_not_hanging(cluster, folder) -> None:
    """The nodes could hold it, but somebody else has their CPUs: after the time given, the message says what is missing."""
    import ray

    class Holder:
        def here(self) -> bool:
            return True

    held: Any = ray.remote(Holder).options(num_cpus=3.5, label_selector={"isthmus-tier": "edge"})
    holders = [held.remote() for node in cluster.nodes if node.tier == "edge"]
    assert all(ray.get([holder.here.remote() for holder in holders], timeout=PATIENCE_S))
    tiers = {"late": hosting("late", "edge", folder, num_cpus=3.0)}
    with (
        pytest.raises(InputError, match="0 of 1 replicas of tier 'late'"),
        deployed(tiers, app_name="l", timeout_s=5.0),
    ):
        pass
    for holder in holders:
        ray.kill(holder)


def test_a_key_that_is_not_set_where_the_proxy_runs_is_named(cluster) -> None:
    """The proxy's process reads the key, so its message is the one that counts."""
    spec = UpstreamSpec("http://127.0.0.1:9/v1", "m", "ISTHMUS_TEST_UNSET_KEY")
    tiers = {"api": TierDeployment("api", "cloud", spec, num_cpus=0.25)}
    with pytest.raises(InputError, match="ISTHMUS_TEST_UNSET_KEY"), deployed(tiers, app_name="k", timeout_s=PATIENCE_S):
        pass


# -------------------------------------------------------------------------------------------------------------- runs


def test_runs_share_a_cluster(cluster, folder) -> None:
    """`open_backend` takes down what is its own and leaves the other run's models answering."""
    from ray import serve

    tiers = {"shared": hosting("shared", "cloud", folder, num_cpus=0.25)}
    before = set(serve.status().applications)
    with open_backend(tiers, cluster.address, timeout_s=PATIENCE_S) as first:
        with open_backend(tiers, cluster.address, timeout_s=PATIENCE_S) as second:
            assert second.submit(question("hello"), "shared").result().text
            assert len(set(serve.status().applications) - before) == 2
        answer = first.submit(question("hello"), "shared").result()
    assert not math.isnan(answer.mean_logprob)
    assert set(serve.status().applications) == before


def test_an_address_where_nobody_answers_is_refused(cluster) -> None:
    """At once, by name; being connected to another cluster changes nothing."""
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1: no Ray cluster answers"), open_backend({}, "127.0.0.1:1"):
        pass
