"""Scenarios broken at random are valid or refused with an InputError; nothing else ever comes out."""

from __future__ import annotations

import copy
import datetime
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.cells import expand_cells
from sim.loading import load_scenario
from sim.yaml_text import dump_yaml, read_yaml
from tests.bad_inputs import SCENARIO
from workloads.errors import InputError

RICH = """\
name: rich
description: Everything a scenario can say, once.
workload:
  tasks: {kind: modelled, mean_subtasks: 5.9, tool_s: 0.1}
  requests: 40
  warmup_requests: 4
  arrivals: {kind: gamma, rate_per_s: 0.05, cv: 2.0}
  homes: 2
tiers:
  edge:
    role: slm
    model: {profile: llama-3.2-3b-int4, quality: 0.1}
    device: jetson-orin-nx
    replicas: 2
  plain: {role: slm, model: llama-3.2-1b-int4, service: {mean_s: 2}}
  cloud: {role: llm, model: gpt-4o, endpoint: {profile: gpt-4o-class, rpm: 500}, balancer: affinity}
links:
  - {between: [home, edge], link: wifi, per_home: true}
  - {between: [edge, cloud], link: {profile: wired, loss: 0.01}}
faults:
  - {target: edge-cloud, at_s: [10, 200], duration_s: 5}
  - {target: cloud, kind: slow, mean_time_between_s: 100}
client: {timeout_s: 100, retries: 2}
sla: {deadline_s: 60}
pricing:
  date: 2026-01-01
  tokens: {cloud: {input_usd_per_mtok: 2.5, output_usd_per_mtok: 10}}
policies:
  - all-slm
  - {policy: random, label: coin, p: [0.1, 0.9], per: request}
  - {policy: fixed, tier: plain}
seeds: [1, 2]
sweep:
  tiers.edge.replicas: [1, 2]
  links.1.link: [wired, 4g, {profile: 4g, loss: 0.1}]
"""
TREE: Mapping[str, Any] = read_yaml(RICH, "rich").value


def validate(text: str | bytes, *options: str) -> int:
    """How many cells the scenario has; raises InputError for one that is not valid."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SCENARIO
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return len(expand_cells(load_scenario(path, options)))


def refuses_at_most(*arguments: Any) -> None:
    """Valid, or refused in the three parts every message has."""
    error = None
    try:
        assert validate(*arguments) > 0
    except InputError as refusal:
        error = refusal
    if error is not None:
        assert all((error.place, error.problem, error.remedy))
        str(error).encode()  # it can be printed


def paths(node: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree."""
    if here:
        yield here
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from paths(value, (*here, key))


def editable(node: Any) -> Any:
    """A copy with lists for tuples."""
    if isinstance(node, dict):
        return {key: editable(value) for key, value in node.items()}
    return [editable(value) for value in node] if isinstance(node, tuple) else node


PLACES = sorted(paths(editable(TREE)), key=str)
WORDS = sorted(
    {str(part) for place in PLACES for part in place} | {"trace", "path", "device", "kind", "options", "home", "x"}
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(WORDS),
    st.dates(),
    st.datetimes(),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def broken_trees(draw: st.DrawFn) -> str:
    """The rich scenario with one to three fields deleted, renamed, moved or replaced."""
    tree = editable(copy.deepcopy(TREE))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(PLACES))
        parent = tree
        for part in place[:-1]:
            parent = parent[part] if _has(parent, part) else None
        if not _has(parent, place[-1]):
            continue
        change = draw(st.sampled_from(("delete", "rename", "replace", "replace", "replace", "wrap")))
        if change == "delete" or (change == "rename" and isinstance(parent, list)):
            del parent[place[-1]]
        elif change == "rename":
            parent[draw(st.sampled_from(WORDS) | st.text(max_size=5))] = parent.pop(place[-1])
        else:
            parent[place[-1]] = draw(VALUES) if change == "replace" else [parent[place[-1]]]
    return dump_yaml(tree)


def _has(node: Any, part: Any) -> bool:
    return (
        part in node
        if isinstance(node, dict)
        else isinstance(node, list) and isinstance(part, int) and part < len(node)
    )


@st.composite
def spliced_texts(draw: st.DrawFn) -> str:
    """The rich scenario's text with pieces cut out, put in, or repeated."""
    text = RICH
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 12)))
        again = draw(st.sampled_from(("", text[start:end] * 2)))
        put = draw(st.text(max_size=6) | st.text(alphabet="\t\n :-[]{}#&*!|>'\"%@`,?0.~<", max_size=6))
        text = text[:start] + again + put + text[end:]
    return text


@st.composite
def options(draw: st.DrawFn) -> str:
    """A `--set` with a path that may exist and a value that may be YAML."""
    known = st.sampled_from(PLACES).map(lambda place: ".".join(map(str, place)))
    path = draw(known | st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(".".join) | st.text(max_size=8))
    value = draw(
        st.text(max_size=8) | st.sampled_from(("", "[", "{}", "[]", "{a: 1}", "-1", ".nan", "1e400", "!!set x", "*a"))
    )
    return draw(st.sampled_from((f"{path}={value}", f"{path}={value}", path)))


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Settings of these tests: no time limit per example, as the first one loads libraries."""
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)


def test_the_rich_scenario_is_valid() -> None:
    """What the tests below break works: 6 sweep points x 4 policies x 2 seeds."""
    assert validate(RICH) == 48


@fuzz(60)
@given(broken_trees())
def test_broken_fields(text: str) -> None:
    """Deleted, renamed and replaced fields never end in anything but an InputError."""
    refuses_at_most(text)


@fuzz(60)
@given(spliced_texts())
def test_broken_text(text: str) -> None:
    """Nor does text cut and pasted at random."""
    refuses_at_most(text)


@fuzz(60)
@given(st.lists(options(), min_size=1, max_size=2))
def test_random_settings(given_options: list[str]) -> None:
    """Nor do options with random paths and values."""
    refuses_at_most(RICH, *given_options)


@fuzz(30)
@given(st.binary(max_size=60))
def test_random_bytes(content: bytes) -> None:
    """Nor do bytes that were never meant to be a scenario."""
    refuses_at_most(content)


@pytest.mark.slow
@fuzz(300)
@given(broken_trees())
def test_broken_fields_at_length(text: str) -> None:
    """The same with 300 examples."""
    refuses_at_most(text)


@pytest.mark.slow
@fuzz(300)
@given(spliced_texts())
def test_broken_text_at_length(text: str) -> None:
    """The same with 300 examples."""
    refuses_at_most(text)


@pytest.mark.slow
@fuzz(300)
@given(st.lists(options(), min_size=1, max_size=2))
def test_random_settings_at_length(given_options: list[str]) -> None:
    """The same with 300 examples."""
    refuses_at_most(RICH, *given_options)


def test_dates_survive_a_dump() -> None:
    """A date in the scenario is a date again after it was written and read."""
    day = datetime.date(2026, 1, 1)
    assert read_yaml(dump_yaml({"date": day}), "x").value == {"date": day}
