"""`calibrate` and `fidelity` from the command line to what they print: with a made-up tier, and with a real model on Ray Serve."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from serve.calibration import grid, measure
from sim.fidelity import Plan
from sim.fidelity_report import calibration_text, fidelity_table, fidelity_text
from sim.fidelity_run import LiveTier, OnCell, calibrate, compare
from sim.fidelity_subject import Subject
from sim.loading import LoadedScenario
from sim.step_times import StepTimes
from tests.conftest import ROOT
from tests.helpers import load_text
from tests.serve.tiny_models import tiny_model
from tests.simulated_system import SimulatedSystem
from workloads.errors import InputError

SERVED = """
name: served
workload:
  tasks: {{kind: pair, distinct_tasks: 20}}
inference: {{backend: serve, local_cluster: {{edge: 1, cloud: 1}}}}
tiers:
  edge:
    role: slm
    model: {{kv_bytes_per_token: 0.0}}
    device: {{memory_gbytes: 8.0, step_times: {{decode_base_s: 0.01}}}}
    max_batch: 2
    serve: {{source: {source}, max_tokens: 30}}
links:
  - {{between: [home, edge], shared: false, link: {{up_mbps: 50.0, down_mbps: 50.0, propagation_s: 0.01}}}}
policies: [all-slm]
"""
TRUE = StepTimes(
    prefill_base_s=0.004, prefill_s_per_token=1e-4, decode_base_s=0.002, decode_s_per_sequence=0.0003, call_overhead_s=0.006
)  # fmt: skip


class Opened:
    """Opens a tier in virtual time and notes what happened to it."""

    def __init__(self) -> None:
        self.subjects: list[Subject] = []
        self.closed = 0

    @contextmanager
    def __call__(self, subject: Subject, cell_s: float, on_cell: OnCell) -> Iterator[LiveTier]:
        """The tier as the model says it is."""
        self.subjects.append(subject)
        system, cells = SimulatedSystem(subject.alone, subject.tier, TRUE), grid(subject.spec.max_batch)
        rng = subject.rng("calibration")

        def one_pass(first: bool):
            return measure(system, subject.calibration, cells, seconds=cell_s, rng=rng, warm_up=first, on_cell=on_cell)

        try:
            yield LiveTier(system, one_pass, len(cells))
        finally:
            self.closed += 1


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedScenario:
    """A scenario with one live tier."""
    return load_text(tmp_path, SERVED.format(source="pair/llm"))


def shown() -> Console:
    """A console whose output can be read."""
    return Console(file=io.StringIO(), width=80)


def test_a_calibration_prints_what_a_scenario_takes(loaded: LoadedScenario, tmp_path: Path) -> None:
    """The printed text is YAML with the fit's errors as comments; set into the scenario it gives the true step times."""
    opened, console = Opened(), shown()
    subject, found = calibrate(loaded, None, Plan(runs=2, cell_s=2.0), opened, console)
    text = calibration_text(subject, found)
    assert "\n# prefill error: median 0.0%" in text
    assert text.startswith("# tier edge: pair/llm, up to 2 calls in a batch\n# fitted to ")
    lines = text[text.index("step_times:") + len("step_times:") :].split()
    printed = dict(zip(lines[::2], lines[1::2], strict=True))
    settings = [f"tiers.edge.device.step_times.{name.rstrip(':')}={value}" for name, value in printed.items()]
    device = load_text(tmp_path, SERVED.format(source="pair/llm"), settings).scenario.tiers["edge"].device
    assert device is not None
    assert device.step_times is not None
    assert device.step_times.decode_base_s == pytest.approx(TRUE.decode_base_s, rel=0.05)
    assert device.step_times.call_overhead_s == pytest.approx(TRUE.call_overhead_s, rel=0.05)
    assert opened.closed == 1
    assert "100%" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_comparison_prints_a_table_that_fits_a_terminal(loaded: LoadedScenario) -> None:
    """Title, a table of three lines per load and notes, all within 80 columns; the bar has come to its end."""
    opened, console, table = Opened(), shown(), shown()
    found = compare(loaded, "edge", Plan((0.3, 0.6), 2, 5.0, 1.0), opened, console)
    title, notes = fidelity_text(found)
    table.print(fidelity_table(found))
    lines = table.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, [*lines, *notes])) <= 80
    assert not [line for line in lines if "…" in line]
    assert [line.split()[0] for line in lines if "done/s" in line] == ["30%", "60%"]
    assert sum("p95 ms" in line for line in lines) == 2
    assert title == "tier edge: pair/llm on Ray Serve, asked single calls in open loop over home-edge"
    assert any(note.startswith("capacity (4 callers, closed loop): ") for note in notes)
    assert "100%" in console.file.getvalue()  # type: ignore[attr-defined]
    assert opened.closed == 1


def test_what_cannot_be_compared_starts_nothing(loaded: LoadedScenario, tmp_path: Path) -> None:
    """A wrong load, a wrong tier and a shared link are refused before any model is brought up."""
    shared = load_text(tmp_path, SERVED.format(source="pair/llm"), ["links.0.shared=true"])
    opened = Opened()
    for scenario, tier, plan, says in (
        (loaded, None, Plan(loads=(0.3, 1.0)), "--load 1: "),
        (loaded, None, Plan(loads=(float("nan"),)), "--load nan: "),
        (loaded, None, Plan(seconds=0.0), "--seconds 0: "),
        (loaded, None, Plan(cell_s=float("inf")), "--cell-seconds inf: "),
        (loaded, "egde", Plan(), "no tier 'egde'. Did you mean 'edge'?"),
        (shared, None, Plan(), "links.0.shared: calls would delay each other on it"),
    ):
        with pytest.raises(InputError) as error:
            compare(scenario, tier, plan, opened, shown())
        assert says in str(error.value)
    assert opened.subjects == []


# ----------------------------------------------------------------------------------------------- real models, real clock


def run_sim(folder: Path, *arguments: str) -> str:
    """What a real process prints to stdout; its progress must be on stderr."""
    scenario = folder / "scenario.yaml"
    tiny_model(folder / "model", context_tokens=2048)
    scenario.write_text(SERVED.format(source=folder / "model"), encoding="utf-8")
    command = [sys.executable, str(ROOT / "run_sim.py"), arguments[0], str(scenario), *arguments[1:]]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "100%" in run.stderr
    return run.stdout


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_real_model_is_calibrated(tmp_path: Path) -> None:
    """A local cluster comes and goes, every call is answered, and the printed step times are above 0."""
    text = run_sim(tmp_path, "calibrate", "--passes", "1", "--cell-seconds", "1.5")
    assert " calls; 0 more failed\n" in text
    times = dict(line.split(": ") for line in text.splitlines() if line.startswith("        "))
    values = {name.strip(): float(value) for name, value in times.items()}
    assert values["decode_base_s"] + values["decode_s_per_sequence"] > 0.0
    assert values["call_overhead_s"] > 0.0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_real_model_is_compared(tmp_path: Path) -> None:
    """JSON alone on stdout: every request answered at both loads, and no figure further off than a busy machine explains."""
    loads = ("--load", "0.6", "--load", "0.3")
    sizes = ("--runs", "1", "--seconds", "4", "--cell-seconds", "1.5")
    found = json.loads(run_sim(tmp_path, "fidelity", *loads, *sizes, "--json"))
    assert found["capacity"]["measured_per_s"] > 0.0
    assert found["calibration"]["calls"]["failed"] == 0
    assert [load["load"] for load in found["loads"]] == [0.3, 0.6]
    for load in found["loads"]:
        (run,) = load["runs"]
        assert run["failed"] == 0
        assert run["measured"]["p50_s"] > 0.02  # the link alone, there and back
        assert run["lateness_p99_s"] < run["measured"]["p95_s"]
        for error in run["errors"].values():
            assert 1 / 5 < 1 + error < 5
