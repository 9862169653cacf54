"""The example clusters in deploy/ parse, use known fields and carry the tags that tiers are placed by. They were not run."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from ruamel.yaml import YAML

from serve.nodes.start import TIER_LABEL
from serve.replicas.placement import EDGE_RESOURCE
from serve.replicas.placement import TIER_LABEL as PLACED_BY

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def document(name: str) -> Any:
    """The one YAML document of an example."""
    return YAML(typ="safe").load(DEPLOY / name)


def node_groups() -> list[tuple[str, dict[str, Any]]]:
    """(name, group) for the groups of nodes of both examples."""
    kuberay, ray_up = document("kuberay.yaml")["spec"], document("ray_up.yaml")
    workers = [(f"kuberay {group['groupName']}", group) for group in kuberay["workerGroupSpecs"]]
    machines = [(f"ray up {name}", group) for name, group in ray_up["available_node_types"].items()]
    return [("kuberay head cloud", kuberay["headGroupSpec"]), *workers, *machines]


def test_the_tag_is_the_one_tiers_are_placed_by():
    """Local clusters, the examples and the placement of tiers speak of the same label and resource."""
    assert TIER_LABEL == PLACED_BY
    assert EDGE_RESOURCE == "isthmus_edge"


@pytest.mark.parametrize(("name", "group"), node_groups(), ids=[name for name, _ in node_groups()])
def test_every_group_is_tagged(name, group):
    """A group's label and custom resource both say its tier, and nothing says the other one."""
    tier = name.split()[-1]
    assert group["labels"] == {TIER_LABEL: tier}
    assert [key for key in group["resources"] if key.startswith("isthmus_")] == [f"isthmus_{tier}"]
    assert int(group["resources"][f"isthmus_{tier}"]) == 1000


def test_kuberay_edge_has_a_gpu_and_no_key():
    """Edge containers ask for one GPU, which Ray is told of; the upstream's key comes from a secret and stays in the cloud."""
    groups = {group["groupName"]: group for group in document("kuberay.yaml")["spec"]["workerGroupSpecs"]}
    edge, cloud = (groups[tier]["template"]["spec"]["containers"][0] for tier in ("edge", "cloud"))
    assert edge["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert groups["edge"]["resources"]["GPU"] == "1"
    assert "OPENAI_API_KEY" not in [variable["name"] for variable in edge["env"]]
    key = next(variable for variable in cloud["env"] if variable["name"] == "OPENAI_API_KEY")
    assert "value" not in key
    assert key["valueFrom"]["secretKeyRef"]["name"]


def test_both_ask_for_a_token():
    """Neither cluster takes commands from everyone who reaches its ports."""
    assert document("kuberay.yaml")["spec"]["authOptions"] == {"mode": "token"}
    ray_up = document("ray_up.yaml")
    assert any("RAY_AUTH_MODE=token" in command for command in ray_up["initialization_commands"])
    assert any(path.endswith("/.ray/auth_token") for path in ray_up["file_mounts"])


def test_ray_up_fits_the_schema_of_ray():
    """Every field is one that the installed Ray's cluster launcher knows, with a value of its type."""
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    schema = json.loads((Path(ray.origin).parent / "autoscaler/ray-schema.json").read_text())
    config = document("ray_up.yaml")
    jsonschema.validate(config, schema)
    assert config["available_node_types"]["edge"]["min_workers"] <= config["max_workers"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "surprise": 1}, schema)


def test_releases_agree_and_files_say_that_they_were_not_run():
    """The Ray release is the tested one, and nobody can take the examples for tested files."""
    tested = re.search(r"^ray==(\S+)$", (DEPLOY.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert tested is not None
    assert document("kuberay.yaml")["spec"]["rayVersion"] == tested[1]
    for name in ("kuberay.yaml", "ray_up.yaml"):
        assert "NOT RUN HERE" in (DEPLOY / name).read_text()
    assert "Neither was run here" in (DEPLOY / "README.md").read_text()
