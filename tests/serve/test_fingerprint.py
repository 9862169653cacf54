"""Two models of one name are told apart by what their answers depend on, and only by that."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from run_sim import deployments
from serve.cloud import UpstreamSpec
from serve.deployments import TierDeployment
from serve.fingerprint import fingerprints
from serve.generation import ModelSpec
from sim.recording_run import record
from tests.helpers import load_text
from tests.recording_process import SCENARIO, made_up
from tests.serve.tiny_models import edit_json, tiny_model
from workloads.backend import ScriptedBackend
from workloads.errors import InputError, IsthmusError, ModelUnavailable
from workloads.task import Completion, ModelCall


def of(source: str, chat_template: str | None = None) -> str | None:
    """The fingerprint of a model that a tier hosts."""
    return fingerprints({"m": TierDeployment("edge", "edge", ModelSpec(source, chat_template=chat_template))}).get("m")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model."""
    return tiny_model(tmp_path_factory.mktemp("models") / "model")


def test_it_is_the_same_wherever_the_model_lies(folder: Path, tmp_path: Path) -> None:
    """Another folder, another time, a card beside the weights: the answers are the same, and so is the fingerprint."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("# A model")
    found = of(str(folder))
    assert found is not None
    assert found.startswith("sha256:")
    assert found == of(str(copy)) == of(str(copy) + "/")


def test_every_file_that_answers_depend_on_counts(folder: Path, tmp_path: Path) -> None:
    """Weights trained again, another tokenizer, another end of a turn, another chat template."""

    def changed(name: str) -> Path:
        return shutil.copytree(folder, tmp_path / name)

    weights = changed("weights") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        edit_json(changed(name) / name, lambda fields: fields.update(another=1))
    fewer = changed("fewer")
    (fewer / "generation_config.json").unlink()
    found = [of(str(path)) for path in (folder, *tmp_path.iterdir())] + [
        of(str(folder), chat_template="{{ messages }}")
    ]
    assert len(found) == len(set(found)) == 8


def test_models_of_elsewhere_have_none() -> None:
    """What the hub or an API answers with is not on this machine."""
    assert of("owner/model") is None
    spec = UpstreamSpec("http://127.0.0.1:9/v1", "m", None)
    assert fingerprints({"m": TierDeployment("api", "cloud", spec)}) == {}


def test_a_recording_does_not_go_on_with_other_weights(folder: Path, tmp_path: Path) -> None:
    """The model was trained again under the same name: old and new answers are not mixed, and the message says which model."""
    model = shutil.copytree(folder, tmp_path / "model")
    settings = [f"tiers.edge.serve.source={model}", "workload.tasks.distinct_tasks=2", "workload.requests=2"]
    loaded, out = load_text(tmp_path, SCENARIO, settings), tmp_path / "r.jsonl"
    tiers = deployments(loaded.scenario, loaded.path)
    with pytest.raises(IsthmusError, match="kept"):
        record(loaded, ScriptedBackend(refused), out, fingerprints=fingerprints(tiers))
    shutil.rmtree(model)
    tiny_model(model, seed=2)
    with pytest.raises(
        InputError, match=r"its 'behind\.little\.fingerprint' is \"sha256:\w+\", now it is \"sha256:\w+\""
    ):
        record(loaded, ScriptedBackend(made_up), out, fingerprints=fingerprints(tiers))


def refused(call: ModelCall, model: str) -> Completion:
    """Stops a recording at once."""
    raise ModelUnavailable("refused")
