"""Malformed inputs as data: what a user got wrong, and what the one message about it must say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

BASE = """\
name: base
workload:
  tasks: {kind: modelled}
  requests: 20
  arrivals:
    kind: poisson
    rate_per_s: 0.05
tiers:
  edge:
    role: slm
    model: llama-3.2-3b-int4
    device: jetson-orin-nx
  cloud:
    role: llm
    model: gpt-4o
    endpoint: gpt-4o-class
links:
  - {between: [home, edge], link: wifi}
  - {between: [edge, cloud], link: wired}
policies:
  - all-slm
  - {policy: random, p: 0.5}
seeds: [1]
"""
"""A valid scenario; the cases below break one thing of it each."""

SCENARIO = "scenario.yaml"


class Case(NamedTuple):
    """One mistake: the files it consists of, the command line, and texts the message must hold.

    `{here}` in arguments and expectations stands for the folder of the files, `{out}` for the results folder.
    """

    name: str
    files: Mapping[str, str | bytes]
    says: tuple[str, ...]
    arguments: tuple[str, ...] = ("run", "{here}/scenario.yaml", "--out", "{out}")


def scenario(name: str, old: str, new: str, *says: str, files: Mapping[str, str | bytes] | None = None) -> Case:
    """The base scenario with one text replaced, or with `new` at its end where `old` is empty."""
    assert BASE.count(old) == 1 or not old, f"{old!r} is not in the base scenario once"
    text = BASE.replace(old, new) if old else BASE + new
    return Case(name, {SCENARIO: text, **(files or {})}, says)


def text(name: str, content: str | bytes, *says: str) -> Case:
    """A scenario file with this content."""
    return Case(name, {SCENARIO: content}, says)


def setting(name: str, *options: str, says: tuple[str, ...], command: str = "run") -> Case:
    """The base scenario with options on the command line."""
    return Case(name, {SCENARIO: BASE}, says, (command, "{here}/scenario.yaml", "--out", "{out}", *options))


def command(name: str, *arguments: str, says: tuple[str, ...], files: Mapping[str, str | bytes] | None = None) -> Case:
    """Any other command line."""
    return Case(name, files or {}, says, arguments)
