"""Measured against simulated: with a system whose step times are known the errors must be almost nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from serve.calibration import grid, measure
from sim.fidelity import Fidelity, Plan, checked, fit_grid, run_calibration, run_fidelity
from sim.fidelity_report import calibration_notes, fidelity_json, fidelity_table, step_times_fields
from sim.fidelity_subject import Subject, subject_of
from sim.loading import dump_yaml
from sim.profiles import StepTimesProfile
from sim.scenario import Scenario
from sim.step_fit import fit_step_times
from sim.step_times import StepTimes
from sim.twin import LinkDelays, Twin
from sim.workload import load_trace
from tests.helpers import NOWHERE, device, link, load_text, scenario
from tests.simulated_system import Delay, SimulatedSystem
from workloads.agent import Agent, AgentRun
from workloads.call_mix import CallMix
from workloads.errors import InputError
from workloads.task import ModelCall, Outcome, Task
from workloads.timed_calls import Measurement, TimedRequest, all_calls

TRUE = StepTimes(
    prefill_base_s=0.004, prefill_s_per_prompt=0.0008, prefill_s_per_token=1e-4, prefill_s_per_pair=1e-7,
    decode_base_s=0.0018, decode_s_per_sequence=0.0003, decode_s_per_kv_token=5e-7, call_overhead_s=0.006,
)  # fmt: skip
MAX_BATCH = 6
WORLD = scenario(
    {"edge": device(max_batch=MAX_BATCH)},
    links=(link("home", "edge", shared=False, jitter_s=0.02, jitter="exponential"),),
)


def three_calls(task: Task) -> AgentRun:
    """An agent whose conversation grows by each answer."""
    tokens = task.prompt_tokens
    for position in range(3):
        completion = yield ModelCall(task, position, (), tokens, 4 * tokens, 0.01 * position, max_tokens=30)
        tokens += completion.completion_tokens
    return Outcome(1.0, "", 0.02)


def tasks(first: int) -> list[Task]:
    """Prompts of 20 to 200 tokens."""
    sizes = np.random.default_rng(first).integers(20, 200, 30)
    return [Task(f"t{first + i}", prompt_tokens=int(size)) for i, size in enumerate(sizes)]


def subject(*, whole_runs: bool = False, world: Scenario = WORLD) -> Subject:
    """The tier `edge`, asked with answers of up to 80 tokens."""
    mixes = [CallMix(tasks(first), three_calls, 80) for first in (0, 100)]
    return Subject(world, "edge", mixes[0], mixes[1], lambda file: load_trace(file, NOWHERE), whole_runs)


def compared(system: SimulatedSystem, *, whole_runs: bool = False, runs: int = 2) -> Fidelity:
    """Everything the command does, against a system in virtual time."""
    asked, rng = subject(whole_runs=whole_runs), np.random.default_rng(1)

    def one_pass(first: bool) -> Sequence[Measurement]:
        return measure(system, asked.calibration, grid(MAX_BATCH), seconds=2.0, rng=rng, warm_up=first)

    return run_fidelity(asked, system, one_pass, Plan(runs=runs, seconds=10.0), lambda text: None)


@pytest.mark.parametrize("whole_runs", [False, True])
def test_a_system_that_is_as_the_model_says_is_predicted(whole_runs):
    """Fitted to its answers alone, the twin meets throughput, median and 95th percentile within 1 % at every load."""
    found = compared(SimulatedSystem(WORLD, "edge", TRUE), whole_runs=whole_runs)
    assert [comparison.load for comparison in found.comparisons] == [0.3, 0.3, 0.6, 0.6, 0.85, 0.85]
    for comparison in found.comparisons:
        throughput, p50, p95 = comparison.errors
        assert abs(throughput) < 0.01
        assert abs(p50) < 0.01
        assert abs(p95) < 0.01
    for check in found.calibration.checks:
        assert check.simulated_per_s == pytest.approx(check.measured_per_s, rel=0.03)
    higher = [comparison.measured.p50_s for comparison in found.comparisons[::2]]
    assert higher == sorted(higher)  # the loads are loads


def test_calibration_recovers_the_true_step_times():
    """From measurements with 3 % of noise every iteration's time is within 5 % over the whole range that was measured."""
    system, asked = SimulatedSystem(WORLD, "edge", TRUE, noise=0.03), subject()
    rng = np.random.default_rng(3)
    found = run_calibration(
        asked, lambda first: measure(system, asked.calibration, grid(MAX_BATCH), seconds=3.0, rng=rng, warm_up=first), 2,
        lambda text: None,
    )  # fmt: skip
    fitted = found.fit.times
    for batch in (1, 3, MAX_BATCH):
        kv = batch * 150
        assert fitted.decode_step_s(batch, kv) == pytest.approx(TRUE.decode_step_s(batch, kv), rel=0.05)
    for tokens in (30, 100, 190):
        assert fitted.prefill_s(tokens) == pytest.approx(TRUE.prefill_s(tokens), rel=0.05)
    assert fitted.call_overhead_s == pytest.approx(0.006, rel=0.2)
    assert found.fit.prefill.median == pytest.approx(0.03 * 0.6745, rel=0.5)  # the noise's own median
    assert found.fit.decode.median < 0.05


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_noise_does_not_make_the_system_look_faster(seed: int):
    """With 15 % of noise prefill comes out within 3 % and decoding in a half-full batch within 5 %, neither one low in sum."""
    system, asked = SimulatedSystem(WORLD, "edge", TRUE, noise=0.15), subject()
    rng = np.random.default_rng(seed)
    fit = fit_grid(measure(system, asked.calibration, grid(MAX_BATCH), seconds=6.0, rng=rng, warm_up=False))
    for tokens in (30, 100, 190):
        assert fit.times.prefill_s(tokens) == pytest.approx(TRUE.prefill_s(tokens), rel=0.03)
    assert fit.times.decode_step_s(3, 450) == pytest.approx(TRUE.decode_step_s(3, 450), rel=0.05)
    assert fit.prefill.bias > -0.02
    assert fit.decode.bias > -0.02


def test_what_a_call_costs_the_engine_besides_its_iterations_is_found():
    """Where every newcomer stops the others for 3 ms that no prefill time reports, the fit charges those to its prompt."""
    hidden_s = 0.003
    system = SimulatedSystem(WORLD, "edge", StepTimes(**{**vars(TRUE), "prefill_s_per_prompt": 0.0008 + hidden_s}))
    asked, rng = subject(), np.random.default_rng(4)
    measured = measure(system, asked.calibration, grid(MAX_BATCH), seconds=3.0, rng=rng, warm_up=False)

    def silent(request: TimedRequest) -> TimedRequest:
        (call,) = request.calls
        answer = call.completion
        # The stop comes before the prefill as the engine reports it, so it looks like waiting to the newcomer.
        return request._replace(
            calls=(call._replace(completion=answer._replace(prefill_s=answer.prefill_s - hidden_s)),)
        )

    loads = {number: [*all_calls(silent(r) for r in m.requests)] for number, m in enumerate(measured)}
    alone = [call for number, load in loads.items() if measured[number].callers == 1 for call in load]
    fit = fit_step_times(list(loads.values()), alone)
    assert fit.join_s == pytest.approx(hidden_s, rel=0.25)


def test_the_twin_is_asked_exactly_what_the_real_system_was():
    """On the true step times the twin ends every request at the same moment, open and closed loop, links and tools included."""
    system, asked = SimulatedSystem(WORLD, "edge", TRUE), subject(whole_runs=True)
    requests = asked.requests(asked.comparison, 40, np.random.default_rng(2))
    due_s = np.cumsum(np.random.default_rng(3).exponential(0.2, 40))
    twin = Twin(WORLD, "edge", TRUE, 1, asked.load_trace)
    opened = system.open_loop(requests, asked.agent, due_s.tolist())
    measured = [request._replace(last_tool_s=0.02) for request in opened]
    assert twin.open_loop(measured).ended_s == pytest.approx([request.ended_s for request in opened], abs=1e-9)
    closed = system.closed_loop(requests, asked.agent, 4, 1e9)
    measured = [request._replace(last_tool_s=0.02) for request in closed]
    assert twin.closed_loop(measured, 4).ended_s == pytest.approx([request.ended_s for request in closed], abs=1e-9)


def test_a_twin_that_is_too_fast_is_found_out():
    """Simulated twice as fast as it was measured, a closed loop completes twice as many calls, as callers never run out of them."""
    system, asked = SimulatedSystem(WORLD, "edge", TRUE), subject()
    cells = [cell for cell in grid(MAX_BATCH) if cell.callers in (1, 8)]
    measured = measure(system, asked.calibration, cells, seconds=4.0, rng=np.random.default_rng(0), warm_up=False)
    hasty = StepTimes(**{name: value and value / 2 for name, value in vars(TRUE).items()})
    for check in checked(measured, Twin(WORLD, "edge", hasty, 1, asked.load_trace)):
        assert check.simulated_per_s / check.measured_per_s == pytest.approx(2.0, rel=0.1)


class Noted(SimulatedSystem):
    """Keeps the arrival times it was given."""

    def open_loop(
        self, requests: Sequence[Task], agent: Agent, due_s: Sequence[float], delay_s: Delay | None = None
    ) -> list[TimedRequest]:
        """The requests."""
        self.due_s = [*getattr(self, "due_s", []), due_s]
        return super().open_loop(requests, agent, due_s, delay_s)


def test_a_run_has_the_load_it_is_said_to_have():
    """However short it is: as many requests as its rate says are due within its time, so that 85 % is not by chance 110 %."""
    system = Noted(WORLD, "edge", TRUE)
    found = compared(system, runs=1)
    rates = {comparison.requests: comparison.offered_per_s for comparison in found.comparisons}
    for due_s in system.due_s:
        assert len(due_s) == max(20, round(10.0 * rates[len(due_s)]))
        assert 0.0 < due_s[0] < due_s[-1] < len(due_s) / rates[len(due_s)]
        assert list(due_s) == sorted(due_s)


class Failing(SimulatedSystem):
    """Every fourth request fails, and its generator is a little late."""

    def open_loop(
        self, requests: Sequence[Task], agent: Agent, due_s: Sequence[float], delay_s: Delay | None = None
    ) -> list[TimedRequest]:
        """The requests, some of them without calls."""
        ran = super().open_loop(requests, agent, due_s, delay_s)
        late = [request._replace(begun_s=request.due_s + 0.001) for request in ran]
        return [r._replace(calls=(), failure="timeout") if i % 4 == 3 else r for i, r in enumerate(late)]


def test_failed_requests_are_counted_and_left_out_of_both_sides():
    """They are in the table, no percentile holds them, and the others keep their own draws of jitter."""
    found = compared(Failing(WORLD, "edge", TRUE), runs=1)
    for comparison in found.comparisons:
        assert comparison.failed == comparison.requests // 4
        assert comparison.lateness_p99_s == pytest.approx(0.001)
        assert comparison.measured.throughput_per_s < comparison.offered_per_s


def test_the_report_is_complete():
    """Plain JSON with all loads, runs and errors; a table with a line per load; fitted times that a scenario takes as they are."""
    found = compared(SimulatedSystem(WORLD, "edge", TRUE))
    values = json.loads(json.dumps(fidelity_json(found), allow_nan=False))
    assert (values["tier"], values["requests"], values["seed"]) == ("edge", "single calls", 1)
    assert [load["load"] for load in values["loads"]] == [0.3, 0.6, 0.85]
    assert values["capacity"]["simulated_per_s"] == pytest.approx(values["capacity"]["measured_per_s"], rel=0.03)
    for load in values["loads"]:
        assert len(load["runs"]) == 2
        for name in ("measured", "simulated", "errors"):
            assert set(load[name]) == {"throughput_per_s", "p50_s", "p95_s"}
        errors = [run["simulated"]["p50_s"] / run["measured"]["p50_s"] - 1 for run in load["runs"]]
        assert load["errors"]["p50_s"] == pytest.approx(np.median(errors))
    assert {check["callers"] for check in values["calibration"]["checks"]} == {1, 2, 4, 6, 8}
    assert fidelity_table(found).row_count == 9
    lines = dump_yaml({"step_times": step_times_fields(found.calibration.fit)})
    assert StepTimesProfile(**step_times_fields(found.calibration.fit)).decode_base_s == pytest.approx(0.0018, rel=0.1)
    assert "decode_base_s:" in lines
    notes = calibration_notes(found.calibration)
    assert any(note.startswith("    6 callers: ") for note in notes)


def test_injected_delays_are_those_of_the_simulated_links():
    """Two hops with jitter: what the generator sleeps is what the simulator takes for the same bytes of the same call."""
    far = scenario(
        {"edge": device()},
        links=(
            link("home", "gate", shared=False, jitter_s=0.05, jitter="exponential"),
            link("gate", "edge", shared=False, loss=0.1),
        ),
    )  # fmt: skip
    asked = subject(whole_runs=True, world=far)
    system = SimulatedSystem(far, "edge", TRUE)
    requests = asked.requests(asked.comparison, 10, np.random.default_rng(0))
    measured = system.open_loop(requests, asked.agent, [float(i) for i in range(10)])
    delays = LinkDelays(far, "edge", 1, asked.load_trace)
    for number, request in enumerate(measured):
        first = request.calls[0]
        assert delays(True, number, 0, first.upload_bytes) == pytest.approx(first.sent_s - request.due_s, abs=1e-9)
        last = request.calls[-1]
        down_s = delays(False, number, 2, last.completion.download_bytes)
        assert request.ended_s - 0.02 - last.answered_s == pytest.approx(down_s, abs=1e-9)
    assert LinkDelays(scenario({"edge": device()}), "edge", 1, asked.load_trace)(True, 0, 0, 1e9) == 0.0


@pytest.mark.parametrize(
    ("hop", "says"),
    [
        ({}, "links.0.shared: calls would delay each other on it"),
        ({"shared": False, "bandwidth_cv": 0.3}, "links.0.link.bandwidth_cv: its bandwidth changes over time"),
    ],
)
def test_links_whose_delay_depends_on_more_than_the_call_are_refused(hop, says):
    """A shared link and one of varying bandwidth cannot be injected call by call."""
    world = scenario({"edge": device()}, links=(link("home", "edge", **hop),))
    with pytest.raises(InputError, match=says):
        LinkDelays(world, "edge", 1, lambda file: load_trace(file, NOWHERE))


SERVED = """
name: served
workload:
  tasks: {kind: pair, distinct_tasks: 10}
inference: {backend: serve}
tiers:
  edge: {role: slm, model: {}, device: {memory_gbytes: 8.0, step_times: {decode_base_s: 0.01}}, serve: {source: pair/llm}}
  cloud: {role: llm, model: gpt-4o, endpoint: gpt-4o-class, serve: {upstream: {base_url: "http://x/v1", model: m}}}
policies: [all-slm]
"""


def test_calibration_and_comparison_ask_different_tasks(tmp_path: Path):
    """No question that was measured for the fit is asked again when it is judged."""
    loaded = load_text(tmp_path, SERVED)
    found = subject_of(loaded.scenario, loaded.path, "edge")
    assert len(found.calibration.tasks) == len(found.comparison.tasks) == 5
    assert not {task.prompt for task in found.calibration.tasks} & {task.prompt for task in found.comparison.tasks}
    for mix in (found.calibration, found.comparison):  # the families take turns in the task set
        assert {task.family for task in mix.tasks} == {"hops", "sums"}
    assert list(found.alone.tiers) == ["edge"]
    assert found.model_name == "edge"


@pytest.mark.parametrize(
    ("tier", "change", "says"),
    [
        (None, (), "--tier: is missing, and 2 tiers have live models. Allowed: cloud, edge"),
        ("egde", (), "no tier 'egde'. Did you mean 'edge'?"),
        ("cloud", (), "tiers.cloud.serve: names no model of our own"),
        ("edge", ("tiers.edge.replicas=2",), "tiers.edge.replicas: nobody knows which of several replicas answered"),
        ("edge", ("workload.tasks.distinct_tasks=1",), "workload.tasks: holds one task only"),
    ],
)
def test_what_cannot_be_measured_is_one_message(tmp_path: Path, tier, change, says):
    """Field, problem and remedy, before anything is started."""
    loaded = load_text(tmp_path, SERVED, change)
    with pytest.raises(InputError) as error:
        subject_of(loaded.scenario, loaded.path, tier)
    assert says in str(error.value)


def test_too_few_answers_are_no_calibration():
    """Nothing is fitted to a handful of calls, and answers without times cannot be fitted."""
    system, asked = SimulatedSystem(WORLD, "edge", TRUE), subject()
    requests = tuple(system.closed_loop(asked.calibration.draw(5, np.random.default_rng(0)), asked.agent, 1, 9.0))
    with pytest.raises(InputError, match="fewer than 20 calls"):
        fit_grid([Measurement(1, 9.0, requests)])
    call = requests[0].calls[0]
    untimed = call._replace(completion=call.completion._replace(prefill_s=float("nan")))
    with pytest.raises(InputError, match="without prefill and decode times"):
        fit_step_times([[untimed] * 30], [untimed])
