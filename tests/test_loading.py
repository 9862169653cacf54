"""Scenarios from file to values: lines, overrides, sweeps, and what is written back."""

from __future__ import annotations

import datetime
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cells import expand_cells, resolved
from sim.loading import DATA_VARIABLE, LoadedScenario, data_path, dump_yaml, load_scenario
from sim.profiles import named_profiles
from sim.scenario import Scenario
from sim.validation import models_at
from sim.yaml_text import read_yaml
from tests.bad_inputs import BASE, SCENARIO
from tests.conftest import ROOT
from tests.test_bad_input_fuzz import RICH
from workloads.errors import InputError

SCENARIOS = sorted((ROOT / "scenarios").glob("*.yaml"))


def load(folder: Path, text: str, *options: str) -> LoadedScenario:
    """The scenario this text describes."""
    path = folder / SCENARIO
    path.write_text(text, encoding="utf-8")
    return load_scenario(path, options)


def refused(folder: Path, text: str, *options: str) -> InputError:
    """The error this text ends in."""
    with pytest.raises(InputError) as caught:
        load(folder, text, *options)
    return caught.value


# --------------------------------------------------------------------------------------------------------------- lines

SPREAD = """\
# a comment

name: spread   # another
description: >-
  folded text
  over lines

workload:
  tasks:
    kind: modelled
    tool_s: 0
  requests: 20

tiers:
  edge: {role: slm, model: llama-3.2-1b-int4,
         device: jetson-nano, replicas: 1}
  cloud:
    role: llm
    model: gpt-4o
    endpoint:
      profile: gpt-4o-class
      rpm: 100
policies:
- all-slm
- policy: random
  p: 0.5
- {policy: fixed,
   tier: cloud}
seeds:
  - 1
  -
    2
"""


@pytest.mark.parametrize(
    ("found", "broken", "line", "field"),
    [
        ("name: spread", "name: a b", 3, "name"),
        ("description: >-", "description: [1]\nx: >-", 5, "x"),
        ("tool_s: 0", "tool_s: -1", 11, "workload.tasks.tool_s"),
        ("requests: 20", "requests: x", 12, "workload.requests"),
        ("role: slm", "role: small", 15, "tiers.edge.role"),
        ("replicas: 1", "replicas: 0", 16, "tiers.edge.replicas"),
        ("rpm: 100", "rpm: 0", 22, "tiers.cloud.endpoint.rpm"),
        ("profile: gpt-4o-class", "profile: none", 20, "tiers.cloud.endpoint"),
        ("    role: llm\n", "", 17, "tiers.cloud.role"),
        ("    2\n", "    two\n", 32, "seeds.1"),
        ("- policy: random", "- polic: random", 25, "policies.1.policy"),
    ],
)
def test_an_error_names_its_line_and_field(tmp_path: Path, found: str, broken: str, line: int, field: str) -> None:
    """Comments, blank lines, folded text and mappings over several lines do not confuse the count."""
    assert SPREAD.count(found) == 1
    assert refused(tmp_path, SPREAD.replace(found, broken)).place == f"{tmp_path / SCENARIO}:{line}: field {field}"


def test_errors_found_after_reading_have_lines_too(tmp_path: Path) -> None:
    """Policies and prices are looked up later, and still their place is file, line and field."""
    for found, broken, place in (
        ("tier: cloud", "tier: sky", ":27: field policies.2: policy 'fixed', option 'tier'"),
        ("model: gpt-4o\n", "model: {profile: gpt-4o, price_name: a/b}\n", ":19: field tiers.cloud.model.price_name"),
    ):
        with pytest.raises(InputError) as caught:
            expand_cells(load(tmp_path, SPREAD.replace(found, broken)))
        assert caught.value.place == f"{tmp_path / SCENARIO}{place}"


def test_the_first_of_several_problems_is_told_and_the_others_counted(tmp_path: Path) -> None:
    """A misspelt field comes first, as it explains why another is missing."""
    error = refused(tmp_path, BASE.replace("requests: 20", "requests: 0").replace("role: slm", "rol: slm"))
    assert error.place.endswith(":10: field tiers.edge.rol")
    assert error.remedy.endswith("(2 more after this one)")


# ----------------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("workload.requests=50", "workload.requests", 50),
        (" workload.requests = 50", "workload.requests", 50),
        ("workload.arrivals.rate_per_s=2", "workload.arrivals.rate_per_s", 2),
        ("name='2024'", "name", "2024"),
        ("description=a=b", "description", "a=b"),
        ("workload.shuffle=false", "workload.shuffle", False),
        ("sla.deadline_s=3.5", "sla.deadline_s", 3.5),
        ("pricing.date=2025-02-03", "pricing.date", datetime.date(2025, 2, 3)),
        ("pricing.other.carbon_g_per_kwh=300", "pricing.other.carbon_g_per_kwh", 300),
        ("tiers.edge.device.memory_gbytes=8", "tiers.edge.device.memory_gbytes", 8),
        ("tiers.cloud.endpoint.rpm=null", "tiers.cloud.endpoint.rpm", None),
        ("links.1.link=4g", "links.1.link.up_mbps", named_profiles()["links"]["4g"]["up_mbps"]),
        ("links.0.link.loss=0.2", "links.0.link.loss", 0.2),
        ("policies.0.label=small", "policies.0.label", "small"),
        ("policies.1.p=0.9", "policies.1.options.p", 0.9),
        ("seeds=[4, 5]", "seeds", (4, 5)),
        ("seeds.0=7", "seeds", (7,)),
        ("workload.arrivals={kind: closed, users: 3}", "workload.arrivals.users", 3),
        ("tiers.spare={role: slm, model: llama-3.2-1b-int4, service: {}}", "tiers.spare.role", "slm"),
        ("pricing.tokens.cloud={input_usd_per_mtok: 1, output_usd_per_mtok: 2}", "pricing.tokens.cloud.input_usd_per_mtok", 1),
    ],
)  # fmt: skip
def test_an_option_sets_its_field_and_no_other(tmp_path: Path, option: str, field: str, value: Any) -> None:
    """`--set` reaches nested fields, entries of lists, and single fields of a profile given by name."""
    before = flat(load(tmp_path, BASE).scenario.model_dump())
    after = flat(load(tmp_path, BASE, option).scenario.model_dump())
    assert {key.removeprefix(f"{field}."): v for key, v in after.items() if key.startswith(field)}.get(
        field, after.get(field)
    ) == value or [v for key, v in after.items() if key.startswith(f"{field}.")] == list(value or ())
    root = option.partition("=")[0].strip()
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert all(key.startswith((root, root.replace("policies.1.p", "policies.1.options.p"))) for key in changed)


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """A tree as {dotted path: leaf}."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, tuple | list) else None
    if items is None:
        return {path: node}
    return {k: v for key, value in items for k, v in flat(value, f"{path}.{key}" if path else str(key)).items()}


def test_a_changed_profile_keeps_its_other_fields(tmp_path: Path) -> None:
    """Halving a device's memory leaves its power, price and speed."""
    named = named_profiles()["devices"]["jetson-orin-nx"]
    device = load(tmp_path, BASE, "tiers.edge.device.memory_gbytes=8").scenario.tiers["edge"].device
    assert device is not None
    changed = {key for key, value in named.items() if getattr(device, key) != value}
    assert changed == {"memory_gbytes"}


def test_later_options_win(tmp_path: Path) -> None:
    """Options are applied in order, each on what the one before left."""
    loaded = load(tmp_path, BASE, "seeds=[1, 2, 3]", "seeds.1=9", "workload.requests=5", "workload.requests=6")
    assert (loaded.scenario.seeds, loaded.scenario.workload.requests) == ((1, 9, 3), 6)


def test_names_may_hold_dots(tmp_path: Path) -> None:
    """A tier called `llama-3.2` can be reached although dots separate names."""
    text = BASE.replace("edge", "llama-3.2")
    assert load(tmp_path, text, "tiers.llama-3.2.replicas=3").scenario.tiers["llama-3.2"].replicas == 3
    assert "llama-3.2.replica" in str(refused(tmp_path, text, "tiers.llama-3.2.replica=3"))


def test_a_sweep_can_be_set(tmp_path: Path) -> None:
    """What follows `sweep.` is one swept path, dots and all."""
    loaded = load(tmp_path, BASE, "sweep.workload.requests=[5, 6]")
    assert [v.scenario.workload.requests for v in loaded.variants] == [5, 6]


def test_an_error_names_the_option_only_where_the_option_is_to_blame(tmp_path: Path) -> None:
    """The file keeps the blame for its own mistakes, whatever options are given."""
    broken = BASE.replace("requests: 20", "requests: 0")
    assert refused(tmp_path, broken, "seeds=[3]").place.endswith(f"{SCENARIO}:4: field workload.requests")
    assert refused(tmp_path, BASE, "seeds=[3]", "workload.requests=0").place == "--set workload.requests=0"
    assert load(tmp_path, broken, "workload.requests=1").scenario.workload.requests == 1
    inside = refused(tmp_path, BASE, "workload.arrivals={kind: gamma, cv: -1}").place
    assert inside == "--set workload.arrivals={kind: gamma, cv: -1}: field workload.arrivals.cv"


# -------------------------------------------------------------------------------------------------------------- sweeps


def test_a_sweep_is_a_grid_in_the_order_written(tmp_path: Path) -> None:
    """The last field varies fastest, and every point differs from the base in the swept fields only."""
    loaded = load(tmp_path, BASE + "sweep:\n  workload.requests: [5, 6]\n  tiers.edge.replicas: [1, 2, 3]\n")
    found = [(v.scenario.workload.requests, v.scenario.tiers["edge"].replicas) for v in loaded.variants]
    assert found == list(itertools.product([5, 6], [1, 2, 3]))
    assert [v.label for v in loaded.variants][:2] == ["requests=5, replicas=1", "requests=5, replicas=2"]
    base = loaded.scenario.model_copy(update={"sweep": {}})
    undone = [v.scenario.model_copy(update={"workload": base.workload, "tiers": base.tiers}) for v in loaded.variants]
    assert all(scenario == base for scenario in undone)


def test_without_a_sweep_there_is_one_point(tmp_path: Path) -> None:
    """It is called base and is the scenario itself."""
    loaded = load(tmp_path, BASE)
    assert [(v.label, v.settings) for v in loaded.variants] == [("base", {})]
    assert loaded.variants[0].scenario == loaded.scenario


@pytest.mark.parametrize(
    ("sweep", "labels"),
    [
        ("workload.arrivals: [{kind: poisson}, {kind: gamma, cv: 3}]", ["arrivals=poisson", "arrivals=gamma"]),
        ("workload.arrivals: [{kind: gamma, cv: 2}, {kind: gamma, cv: 3}]", ["arrivals=kind=gamma cv=2", "arrivals=kind=gamma cv=3"]),
        ("links.0.link: [wifi, {profile: wifi, loss: 0.1}]", ["link=wifi", "link=profile=wifi loss=0.1"]),
        ("links.0.link: [wifi, {profile: 4g, loss: 0.1}]", ["link=wifi", "link=4g"]),
        ("links.0.link: [wifi, {label: bad day, profile: wifi, loss: 0.1}]", ["link=wifi", "bad day"]),
        ("links.0: [{between: [home, edge], link: 4g}, {label: none, between: [home, edge], link: 3g}]",
         ["links.0=between=(home edge) link=4g", "none"]),
        ("policies.0: [all-slm, {policy: all-llm, label: big}]", ["policies.0=all-slm", "big"]),
        ("links.0.between: [[home, edge], [home, cloud]]", ["between=(home edge)", "between=(home cloud)"]),
        ("client.fail_over: [true, false]", ["fail_over=true", "fail_over=false"]),
        ("sla: [{}, {deadline_s: 3}]", ["sla=", "sla=deadline_s=3"]),
        ("tiers.edge.replicas: [1, 2]\n  tiers.cloud.replicas: [1]",
         ["edge.replicas=1, cloud.replicas=1", "edge.replicas=2, cloud.replicas=1"]),
    ],
)  # fmt: skip
def test_points_have_short_names_that_differ(tmp_path: Path, sweep: str, labels: list[str]) -> None:
    """A name shows as little as tells the points apart: whole mappings and lists can be swept too."""
    text = BASE.replace("  - {between: [edge, cloud], link: wired}\n", "") + f"sweep:\n  {sweep}\n"
    assert [v.label for v in load(tmp_path, text).variants] == labels


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(
        st.integers(1, 9) | st.floats(1, 9) | st.booleans() | st.text("ab1", max_size=2), min_size=1, max_size=5
    )
)
def test_no_two_points_share_a_name(values: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the values: names are unique, or the value that repeats is refused."""
    text = BASE + dump_yaml(
        {"sweep": {"description": [str(v) for v in values], "sla": [{"deadline_s": 1}, {"deadline_s": 2}]}}
    )
    folder = tmp_path_factory.mktemp("points")
    if len({str(v) for v in values}) < len(values):
        assert "given twice" in str(refused(folder, text))
    else:
        labels = [v.label for v in load(folder, text).variants]
        assert len(set(labels)) == len(labels) == 2 * len(values)


def test_a_sweep_value_that_breaks_something_else_is_named(tmp_path: Path) -> None:
    """A value that does not fit the rest of the scenario is named although the error lies elsewhere."""
    text = (
        BASE + "sweep:\n  tiers.edge.device:\n    - jetson-orin-nx\n    - {profile: jetson-orin-nx, memory_gbytes: 1}\n"
    )
    error = refused(tmp_path, text)
    assert error.place.startswith(f"{tmp_path / SCENARIO}:9: field tiers.edge (with {tmp_path / SCENARIO}:27: ")


# -------------------------------------------------------------------------------------------------------- written back


@pytest.mark.parametrize("text", [BASE, RICH, *(p.read_text(encoding="utf-8") for p in SCENARIOS)],
                         ids=["base", "rich", *(p.stem for p in SCENARIOS)])  # fmt: skip
def test_a_resolved_scenario_reads_back_as_itself(tmp_path: Path, text: str) -> None:
    """What a run writes as scenario.yaml is plain YAML, holds no names of profiles, and describes the same scenario."""
    scenario = load(tmp_path, text).scenario
    written = dump_yaml(scenario.model_dump())
    assert "!!" not in written
    assert "profile: " not in "".join(written.split("sweep:")[:-1])
    assert load(tmp_path, written).scenario == scenario
    assert [v.label for v in load(tmp_path, written).variants] == [v.label for v in load(tmp_path, text).variants]
    assert dump_yaml(load(tmp_path, written).scenario.model_dump()) == written


PRINTABLE = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\n\t"), max_size=30)
LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.dates() | PRINTABLE
)
PLAIN = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PRINTABLE, inner, max_size=4), max_leaves=12
)


@settings(deadline=None)
@given(st.dictionaries(PRINTABLE, PLAIN, max_size=4))
def test_whatever_is_written_reads_back(value: dict[str, Any]) -> None:
    """Numbers, dates and text that looks like numbers, dates, lists or comments come back as what they were."""
    assert read_yaml(dump_yaml(value), "dump").value == as_tuples(value)


def as_tuples(node: Any) -> Any:
    """Lists as the reader gives them."""
    if isinstance(node, dict):
        return {key: as_tuples(value) for key, value in node.items()}
    return tuple(as_tuples(value) for value in node) if isinstance(node, list) else node


@pytest.mark.parametrize(
    "word", ["yes", "no", "on", "null", "~", "", " ", "1e3", "0x1f", "017", "2024-01-01", "a: b", "#x", "- x", "'", '"', "%a", "*a"]
)  # fmt: skip
def test_words_that_look_like_something_else_stay_words(word: str) -> None:
    """YAML's traps are quoted when written."""
    assert read_yaml(dump_yaml({"a": word, "b": [word], word: 1}), "dump").value == {"a": word, "b": (word,), word: 1}


def test_numbers_keep_their_kind(tmp_path: Path) -> None:
    """YAML 1.2: 1e-05 is a number, 017 is seventeen, yes and 12:30 are text."""
    text = "{a: 1e-05, b: 017, c: yes, d: 12:30, e: 1_000, f: .5, g: -.inf}"
    assert read_yaml(text, "text").value == {
        "a": 1e-05,
        "b": 17,
        "c": "yes",
        "d": "12:30",
        "e": 1000,
        "f": 0.5,
        "g": -math.inf,
    }


# --------------------------------------------------------------------------------------------------------------- schema


def test_every_field_says_what_it_means() -> None:
    """In the JSON Schema every property has a description, and a default unless it is required."""
    schema = Scenario.model_json_schema()

    def described(spec: dict[str, Any]) -> bool:
        named = schema["$defs"].get(spec.get("$ref", "").rpartition("/")[2], {})
        return bool(spec.get("description") or spec.get("const") or named.get("description"))

    mute = [
        f"{name}.{field}"
        for name, model in {"Scenario": schema, **schema["$defs"]}.items()
        for field, spec in model.get("properties", {}).items()
        if not described(spec) or not (field in model.get("required", ()) or "default" in spec)
    ]
    assert mute == []
    assert all(model.get("description") for model in schema["$defs"].values())
    assert all(model.get("additionalProperties") is False for model in schema["$defs"].values())


def test_the_schema_is_one() -> None:
    """It keeps the rules of JSON Schema itself."""
    jsonschema = pytest.importorskip("jsonschema", reason="comes with Ray")
    jsonschema.Draft202012Validator.check_schema(Scenario.model_json_schema())


@pytest.mark.parametrize("text", [BASE, RICH, *(p.read_text(encoding="utf-8") for p in SCENARIOS)],
                         ids=["base", "rich", *(p.stem for p in SCENARIOS)])  # fmt: skip
def test_resolved_scenarios_keep_the_schema(tmp_path: Path, text: str) -> None:
    """A scenario written out in full passes the schema that `run_sim.py schema` prints."""
    jsonschema = pytest.importorskip("jsonschema", reason="comes with Ray")
    jsonschema.validate(dict(resolved(load(tmp_path, text).scenario)), Scenario.model_json_schema())


def test_models_are_found_by_location() -> None:
    """The walk that suggests field names passes through mappings, lists, optional fields and unions."""
    assert [m.__name__ for m in models_at(("tiers", "x", "device"))] == ["DeviceProfile"]
    assert [m.__name__ for m in models_at(("links", 3, "up_trace"))] == ["BandwidthFile"]
    assert [m.__name__ for m in models_at(("workload", "tasks", "routellm"))] == ["RouteLLM"]
    assert models_at(("workload", "requests")) == models_at(("nothing",)) == []


# ----------------------------------------------------------------------------------------------------------------- data


def test_data_lies_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$ISTHMUS_DATA/... is looked up in the folder the variable names, and beside the checkout without it."""
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert data_path("$ISTHMUS_DATA/a/b.csv", Path("x/s.yaml")) == tmp_path / "a" / "b.csv"
    for unset in (None, ""):
        monkeypatch.delenv(DATA_VARIABLE) if unset is None else monkeypatch.setenv(DATA_VARIABLE, unset)
        assert data_path("$ISTHMUS_DATA/a.csv", Path("s.yaml")) == ROOT.parent / "shared" / "data" / "a.csv"


def test_other_paths_are_relative_to_the_scenario(tmp_path: Path) -> None:
    """A scenario can be run from anywhere: its files lie beside it unless their path is absolute."""
    assert data_path("a.csv", tmp_path / "s.yaml") == tmp_path / "a.csv"
    assert data_path(str(tmp_path / "a.csv"), Path("s.yaml")) == tmp_path / "a.csv"
    assert data_path("$OTHER/a.csv", tmp_path / "s.yaml") == tmp_path / "$OTHER" / "a.csv"
