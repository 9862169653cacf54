"""Mistakes on the command line."""

from __future__ import annotations

import json

from tests.bad_inputs import BASE, SCENARIO, Case, command, setting

_ROWS = [{"variant": "base", "policy": "all-slm", "family": "all-slm", "accuracy": 0.5, "cost_usd": None}]
_RUN = {"run/manifest.json": "{}", "run/summary.json": json.dumps(_ROWS)}

_LIVE = """\
name: live
workload:
  tasks: {kind: pair, distinct_tasks: 4}
inference: {backend: serve}
tiers:
  edge:
    role: slm
    model: {}
    device: {memory_gbytes: 8.0, step_times: {decode_base_s: 0.01}}
    serve: {source: pair/llm}
links:
  - {between: [home, edge], shared: false, link: {up_mbps: 50.0, down_mbps: 50.0, propagation_s: 0.01}}
policies: [all-slm]
"""


def measuring(name: str, verb: str, *options: str, says: tuple[str, ...], scenario: str = _LIVE) -> Case:
    """A command that measures a live model."""
    return command(name, verb, "{here}/scenario.yaml", *options, says=says, files={SCENARIO: scenario})


CASES: list[Case] = [
    setting("--set without =", "--set", "workload.requests", says=("--set workload.requests", "no '='", "path=value")),
    setting("--set without a path", "--set", "=5", says=("--set =5", "not a path")),
    setting("--set with a gap in the path", "--set", "workload..requests=5", says=("--set workload..requests=5", "not a path")),
    setting("--set of an unknown field", "--set", "workload.request=5", says=("--set workload.request=5", "Did you mean 'requests'")),
    setting("--set of an unknown section", "--set", "wrkload.requests=5", says=("error: --set wrkload.requests=5", "'workload'")),
    setting("--set of an unknown tier", "--set", "tiers.egde.replicas=2", says=("--set tiers.egde", "no tier 'egde'", "'edge'")),
    setting("--set into a number", "--set", "workload.requests.x=5", says=("--set workload.requests.x=5", "is 20, which has no fields")),
    setting("--set into a name", "--set", "name.x=5", says=("--set name.x=5", "is 'base', which has no fields")),
    setting("--set of an entry that is not there", "--set", "links.2.link=wifi", says=("--set links.2.link", "no entry '2'", "0 to 1")),
    setting("--set with a word for an index", "--set", "links.first.link=wifi", says=("links has no entry 'first'", "0 to 1")),
    setting("--set of a last entry that is not there", "--set", "seeds.1=5", says=("--set seeds.1=5", "no entry '1'", "0 to 0")),
    setting("--set of the wrong type", "--set", "workload.requests=many", says=("--set workload.requests=many:", "'many'", "whole number")),
    setting("--set of nothing", "--set", "workload.requests=", says=("--set workload.requests=:", "found nothing")),
    setting("--set of broken YAML", "--set", "seeds=[1", says=("--set seeds=[1:", "a bracket is never closed")),
    setting("--set of a tag", "--set", "name=!!python/name:os.system x", says=("--set name=", "not allowed")),
    setting("--set of a model too large", "--set", "tiers.edge.device.memory_gbytes=1", says=("(with --set tiers.edge", "GB", "1 GB")),
    setting("--set of an empty sweep", "--set", "sweep={workload.requests: []}", says=("--set sweep=", "empty list")),
    setting("negative seed", "--seed", "-1", says=("--seed", "greater than or equal to 0")),
    setting("seed of words", "--seed", "one", says=("--seed", "integer")),
    setting("no workers", "--workers", "0", says=("--workers", "greater than or equal to 1")),
    setting("no cluster at the address", "--address", "127.0.0.1:1",
            says=("--address 127.0.0.1:1", "no Ray cluster answers", "ray status")),
    setting("an address that is none", "--address", "nowhere", says=("--address nowhere", "not an address", "auto")),
    setting("option of the command line that is none", "--worker", "1", says=("--worker",)),
    setting("validate knows no --out", says=("--out",), command="validate"),
    command("out is a file", "run", "{here}/scenario.yaml", "--out", "{here}/scenario.yaml", says=("scenario.yaml", "cannot be written", "--out"),
            files={SCENARIO: BASE}),
    command("out below a device", "run", "{here}/scenario.yaml", "--out", "/dev/null/x", says=("/dev/null/x", "cannot be written"),
            files={SCENARIO: BASE}),
    command("scenario missing", "run", "{here}/scenaro.yaml", "--out", "{out}", says=("scenaro.yaml", "no such file", "scenario.yaml"),
            files={SCENARIO: BASE}),
    command("scenario is a folder", "run", "{here}", "--out", "{out}", says=("is a folder", "Name a scenario")),
    command("scenario below a file", "validate", "{here}/scenario.yaml/x", says=("scenario.yaml/x", "cannot be read"), files={SCENARIO: BASE}),
    command("no scenario", "run", says=("SCENARIO",)),
    command("unknown command", "simulate", says=("simulate",)),
    command("list of an unknown kind", "list", "policy", says=("list policy", "Did you mean 'policies'")),
    command("frontier of nothing", "frontier", "{here}/none", says=("none", "no finished run", "result folder")),
    command("frontier of a folder of runs", "frontier", "{here}", says=("no finished run", "run"), files=_RUN),
    command("frontier of a broken summary", "frontier", "{here}/run", says=("summary.json", "not the summary"), files={"run/summary.json": "["}),
    command("frontier of another summary", "frontier", "{here}/run", says=("summary.json", "not the summary"), files={"run/summary.json": "{}"}),
    command("frontier of an unknown field", "frontier", "{here}/run", "--x", "acuracy", says=("field 'acuracy'", "'accuracy'"), files=_RUN),
    command("frontier of a field that is text", "frontier", "{here}/run", "--x", "accuracy", "--y", "policy", says=("field 'policy'", "not a number"), files=_RUN),
    command("frontier to an unknown format", "frontier", "{here}/run", "--x", "accuracy", "--out", "{out}/f.docx", says=("--out", ".docx", ".svg"),
            files=_RUN),
    command("frontier below a file", "frontier", "{here}/run", "--x", "accuracy", "--out", "{here}/run/summary.json/f.png", says=("cannot be written",),
            files=_RUN),
    command("compare with nothing", "compare", "{here}/a", "{here}/b", says=("a", "no finished run")),
    command("compare with an unfinished run", "compare", "{here}/run", "{here}/run", says=("run", "no finished run"),
            files={"run/requests/00000.parquet": b"PAR1"}),
    command("compare with a broken run", "compare", "{here}/run", "{here}/run", says=("requests", "cannot be read", "Run the scenario again"),
            files={"run/requests/00000.parquet": b"PAR1", "run/manifest.json": "{}"}),
    measuring("calibrate without a live tier", "calibrate", says=("field tiers", "no tier has a live model", "pair/llm"), scenario=BASE),
    measuring("fidelity without a live tier", "fidelity", says=("field tiers", "no tier has a live model"), scenario=BASE),
    measuring("calibrate of a tier that is none", "calibrate", "--tier", "egde", says=("--tier", "no tier 'egde'", "'edge'")),
    measuring("calibrate of an unknown model", "calibrate", "--set", "tiers.edge.serve.source=pair/lmm",
              says=("tiers.edge.serve.source", "'pair/lmm'", "Did you mean 'pair/slm' or 'pair/llm'")),
    measuring("calibrate with no cluster there", "calibrate", "--address", "127.0.0.1:1",
              says=("--address 127.0.0.1:1", "no Ray cluster answers")),
    measuring("calibrate of no pass", "calibrate", "--passes", "0", says=("--passes", "greater than or equal to 1")),
    measuring("calibrate in no time", "calibrate", "--cell-seconds", "0", says=("--cell-seconds 0", "above 0")),
    measuring("fidelity over a shared link", "fidelity", "--set", "links.0.shared=true",
              says=("field links.0.shared", "calls would delay each other", "Set shared: false")),
    measuring("fidelity of an unknown model", "fidelity", "--set", "tiers.edge.serve.source=pair/lmm", says=("tiers.edge.serve.source", "'pair/llm'")),
    measuring("fidelity with no cluster there", "fidelity", "--address", "127.0.0.1:1", says=("--address 127.0.0.1:1", "no Ray cluster answers")),
    measuring("fidelity at no address", "fidelity", "--address", "nowhere", says=("--address nowhere", "not an address")),
    measuring("fidelity beyond capacity", "fidelity", "--load", "0.3", "--load", "1.2", says=("--load 1.2", "above 0 and below 1")),
    measuring("fidelity at a load that is no number", "fidelity", "--load", "nan", says=("--load nan", "above 0 and below 1")),
    measuring("fidelity at a load in words", "fidelity", "--load", "high", says=("--load", "valid number")),
    measuring("fidelity of no run", "fidelity", "--runs", "0", says=("--runs", "greater than or equal to 1")),
    measuring("fidelity in no time", "fidelity", "--seconds", "-1", says=("--seconds -1", "above 0")),
]  # fmt: skip
