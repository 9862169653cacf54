"""The gateway's placements are the simulator's: the same policies on what can be read from a stateless call."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.cells import expand_cells, run_cell
from sim.loading import LoadedScenario, load_scenario
from sim.placing import PolicyPlacer
from sim.workload import build_workload
from tests.conftest import ROOT
from tests.helpers import load_text, rows
from workloads.agent import conversation_agent, in_turn
from workloads.backend import ScriptedBackend
from workloads.errors import InputError
from workloads.placing import FIRST_UNNUMBERED, TierLoad, call_of, earlier_calls, request_number
from workloads.recording import Recording, RecordingBackend, write_recording
from workloads.task import Completion, Message, ModelCall, Task
from workloads.trial import enumerate_trials

IDLE: Mapping[str, TierLoad] = {}

ALTERNATE = '''
"""A policy of one's own."""

from sim.policies.base import Observation, Placement, RoutingPolicy


class Alternate(RoutingPolicy):
    """Every other subtask runs large."""

    def place(self, seen: Observation) -> Placement:
        """Look at the position."""
        return Placement(seen.large if seen.call.position % 2 else seen.small, "every other")
'''

SCENARIO = """
name: gateway
workload:
  tasks: {kind: recording, path: answers.jsonl.gz}
  requests: 30
  arrivals: {kind: constant, rate_per_s: 1000}
tiers:
  edge: {role: slm, model: llama-3.2-3b-int4, model_name: small-model, device: jetson-orin-nx, replicas: 2}
  cloud: {role: llm, model: gpt-4o, model_name: large-model, endpoint: gpt-4o-class}
links:
  - {between: [home, edge], link: {up_mbps: 8.0, down_mbps: 8.0, propagation_s: 0.1}}
  - {between: [edge, cloud], link: wired}
policies:
  - all-slm
  - all-llm
  - {policy: random, p: [0.3, 0.5]}
  - {policy: random, label: coin-per-request, p: 0.5, per: request}
  - {policy: prompt-length, threshold_tokens: [20, 40]}
  - {policy: prompt-length, label: each-prompt, threshold_tokens: 60, per: subtask}
  - {policy: 'alternate.py:Alternate', label: alternate}
  - {policy: oracle-slm-usage, accuracy_share: 0.9}
  - {policy: fixed, tier: cloud}
seeds: [7]
"""


def answer(call: ModelCall, model: str) -> Completion:
    """Three steps a task; the small model gets every other question wrong."""
    right = model == "large-model" or int(call.task.id) % 2 == 0
    text = f"{model} thinks about step {call.position}"
    tool = "go on, please" if call.position < 2 else None
    return Completion(model, text, call.prompt_tokens, 7 + len(model), 60, tool_text=tool, score=float(right))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedScenario:
    """A scenario whose recording holds every placement, and a policy of its own beside it."""
    folder = tmp_path_factory.mktemp("placing")
    tasks = [Task(str(i), f"Question {i}: " + "why? " * (4 * i)) for i in range(12)]
    recording = Recording(("small-model", "large-model"))
    recording.tasks += tasks
    backend = RecordingBackend(ScriptedBackend(answer), recording)
    for task in tasks:
        list(enumerate_trials(conversation_agent(), task, backend, recording.models))
    write_recording(recording, folder / "answers.jsonl.gz")
    (folder / "alternate.py").write_text(ALTERNATE, encoding="utf-8")
    return load_text(folder, SCENARIO)


@pytest.fixture(scope="module")
def placer(loaded: LoadedScenario) -> PolicyPlacer:
    """The scenario's policies, prepared."""
    return PolicyPlacer(loaded.variants[0].scenario, loaded.path)


def live_tiers(placer: PolicyPlacer, loaded: LoadedScenario, name: str, requests: int) -> dict[tuple[int, int], str]:
    """(request, position) -> tier, from an agent that asks a gateway: all it sends are the messages and the request's number."""
    scenario = loaded.variants[0].scenario
    workload = build_workload(scenario, 7, loaded.path)
    made = {}
    for request in range(requests):
        run = in_turn(workload.agent(workload.requests[request]))
        call = next(run)
        while True:
            decision = placer.place(name, request, call_of(call.messages), IDLE)
            made[request, call.position] = decision.tier
            model = scenario.tiers[decision.tier].model_name
            assert model is not None
            try:
                call = run.send(workload.backend.submit(call, model).result())
            except StopIteration:
                break
    return made


def test_placements_are_the_simulators(placer: PolicyPlacer, loaded: LoadedScenario) -> None:
    """Every policy places every subtask of every request as in the simulation with the same seed."""
    both = False
    for cell in expand_cells(loaded):
        table = rows(run_cell(cell).subtasks)
        tiers = list(cell.scenario.tiers)
        simulated = {(row["request"], row["position"]): tiers[row["tier"]] for row in table}
        assert len(simulated) == 30 * 3
        assert live_tiers(placer, loaded, f"isthmus/{cell.policy.name}", 30) == simulated, cell.policy.name
        both |= set(simulated.values()) == {"edge", "cloud"}
    assert both


@pytest.mark.slow
def test_learned_placements_are_the_simulators(tmp_path: Path, loaded: LoadedScenario) -> None:
    """A learned router decides about a recorded question as it did out of fold in the simulation, known by its prompt alone."""
    start, end = SCENARIO.index("policies:"), SCENARIO.index("seeds:")
    text = SCENARIO[:start] + "policies:\n  - {policy: embedding-router, large_share: 0.5, folds: 3}\n" + SCENARIO[end:]
    path = loaded.path.with_name("learned.yaml")
    path.write_text(text, encoding="utf-8")
    learned = load_scenario(path, ())
    (cell,) = expand_cells(learned)
    table = rows(run_cell(cell).subtasks)
    simulated = {(row["request"], row["position"]): list(cell.scenario.tiers)[row["tier"]] for row in table}
    placer = PolicyPlacer(learned.variants[0].scenario, learned.path)
    assert live_tiers(placer, learned, "isthmus/embedding-router@0.5", 30) == simulated
    assert set(simulated.values()) == {"edge", "cloud"}
    new = call_of((Message("user", "A question nobody has recorded?"),))
    assert placer.place("isthmus/embedding-router@0.5", 99, new, IDLE).tier in cell.scenario.tiers
    assert placer.place("isthmus/embedding-router@1", 99, new, IDLE).tier == "cloud"  # trained when asked for
    assert placer.place("isthmus/embedding-router@0", 99, new, IDLE).tier == "edge"


def test_names(placer: PolicyPlacer) -> None:
    """Every policy is listed once, by its short name where that is unambiguous, and then the tiers and their models."""
    assert placer.names() == (
        "isthmus/all-slm", "isthmus/all-llm", "isthmus/random@0.3", "isthmus/random@0.5", "isthmus/coin-per-request",
        "isthmus/prompt-length@20", "isthmus/prompt-length@40", "isthmus/each-prompt", "isthmus/alternate",
        "isthmus/oracle-slm-usage", "isthmus/fixed", "edge", "cloud", "small-model", "large-model",
    )  # fmt: skip
    for name in placer.names():
        assert placer.check(name) == name
    assert placer.check("isthmus/random(p=0.5)") == placer.check("isthmus/random@0.50") == "isthmus/random@0.5"
    assert placer.check("isthmus/fixed@cloud") == "isthmus/fixed"
    assert placer.check("isthmus/random@0.77") == "isthmus/random@*"


def test_a_value_that_is_not_listed(placer: PolicyPlacer) -> None:
    """Any value of the knob places by it: the coins of more requests fall on the large tier as p grows."""
    call = call_of((Message("user", "hello"),))

    def large(p: str) -> set[int]:
        return {n for n in range(300) if placer.place(f"isthmus/random@{p}", n, call, IDLE).tier == "cloud"}

    shares = [large(p) for p in ("0", "0.25", "0.3", "0.6123", "1")]
    assert shares[0] < shares[1] < shares[2] < shares[3] < shares[4] == set(range(300))
    assert 0.5 < len(shares[3]) / 300 < 0.72
    assert placer.place("isthmus/prompt-length@1000", 1, call, IDLE).tier == "edge"
    assert placer.place("isthmus/prompt-length@1", 1, call, IDLE).tier == "cloud"
    assert placer.place("isthmus/fixed@edge", 1, call, IDLE).tier == "edge"


@pytest.mark.parametrize(
    ("name", "problem", "remedy"),
    [
        ("isthmus/randm@0.5", "no model 'isthmus/randm@0.5'", "isthmus/random@0.5"),
        ("random@0.5", "no model 'random@0.5'", "isthmus/random@0.5"),
        ("gpt-4o", "no model 'gpt-4o'", "Allowed: "),
        ("Edge", "no model 'Edge'", "'edge'"),
        ("", "no model ''", "Allowed: "),
        ("isthmus/random@1.5", "'random' does not allow p = 1.5", "Allowed: a number from 0 to 1"),
        ("isthmus/random@nan", "p = nan", "Allowed: a number from 0 to 1"),
        ("isthmus/random@often", "p = 'often'", "Allowed: a number from 0 to 1"),
        ("isthmus/random@", "p = ''", "Allowed: a number from 0 to 1"),
        ("isthmus/prompt-length@-1", "threshold_tokens = -1", "Allowed: a whole number from 0"),
        ("isthmus/prompt-length@2.5", "threshold_tokens = 2.5", "Allowed: a whole number from 0"),
        ("isthmus/all-slm@3", "has no value to choose", "isthmus/all-slm"),
        ("isthmus/fixed@moon", "tier = 'moon'", "cloud, edge"),
        ("isthmus/random@" + "9" * 5000, "p = ", "Allowed: a number from 0 to 1"),
    ],
)
def test_wrong_names(placer: PolicyPlacer, name: str, problem: str, remedy: str) -> None:
    """A name that stands for nothing, or a value out of range, is one clear message with what is allowed."""
    for ask in (
        placer.check,
        placer.prepare,
        lambda name: placer.place(name, 1, call_of((Message("user", "x"),)), IDLE),
    ):
        with pytest.raises(InputError) as error:
            ask(name)
        assert problem in error.value.problem
        assert remedy in error.value.remedy


def test_direct_access(placer: PolicyPlacer) -> None:
    """A tier's name, or its model's, goes there and nowhere else; a policy's decision comes with the other tiers to try."""
    call = call_of((Message("user", "hello"),))
    for name, tier in (("edge", "edge"), ("large-model", "cloud")):
        decision = placer.place(name, 1, call, IDLE)
        assert (decision.tier, decision.reason, decision.fall_backs) == (tier, "asked for by name", ())
    decision = placer.place("isthmus/all-slm", 1, call, IDLE)
    assert (decision.tier, decision.reason, decision.fall_backs) == ("edge", "always small", ("cloud",))


def test_a_request_goes_on_where_it_began(placer: PolicyPlacer, loaded: LoadedScenario) -> None:
    """A policy that decides once for a request decides alike on another replica that sees the request in the middle."""
    other = PolicyPlacer(loaded.variants[0].scenario, loaded.path)
    short, long = Message("user", "hi"), Message("user", "word " * 60)
    for first in (short, long):
        talk = (first, Message("assistant", "and?"), Message("user", "long " * 100))
        began = placer.place("isthmus/prompt-length@40", 1001, call_of(talk[:1]), IDLE)
        assert placer.place("isthmus/prompt-length@40", 1001, call_of(talk), IDLE).tier == began.tier
        assert other.place("isthmus/prompt-length@40", 1002, call_of(talk), IDLE).tier == began.tier
        assert began.tier == ("edge" if first is short else "cloud")
        other = pickle.loads(cloudpickle.dumps(placer))  # noqa: S301 - made in this test


def test_travels_to_another_process(placer: PolicyPlacer, loaded: LoadedScenario, tmp_path: Path) -> None:
    """A placer arrives trained in a process that has seen nothing of it, a policy from a file included."""
    call = call_of((Message("user", "Question 3: why? "),))
    names = [*placer.names(), "isthmus/random@0.456"]
    here = [[placer.place(name, number, call, IDLE).tier for number in range(40)] for name in names]
    (tmp_path / "placer.pkl").write_bytes(cloudpickle.dumps((placer, names, call)))
    code = (
        "import pickle, sys\n"
        "placer, names, call = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print([[placer.place(name, number, call, {}).tier for number in range(40)] for name in names])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "placer.pkl")]
    there = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=240)
    assert there.stdout.strip() == repr(here)


LEARNS = '''
"""A policy of one's own that learns."""

from sim.policies.base import Observation, Placement, PolicyOptions, RoutingPolicy, Study


class Options(PolicyOptions):
    """What can be set."""

    share: float = 0.5


class Learns(RoutingPolicy):
    """Runs large what it has studied."""

    Options = Options
    knob = "share"

    def prepare(self, study: Study) -> None:
        """Look into the recording."""
        self.known = len(study.tasks)

    def place(self, seen: Observation) -> Placement:
        """Large."""
        return Placement(seen.large if self.known == 12 else seen.small)
'''


def test_travels_to_a_machine_without_the_scenarios_files(tmp_path: Path, loaded: LoadedScenario) -> None:
    """A policy's file goes along; one that must be trained anew says that it cannot be, and what to ask for instead."""
    folder = tmp_path / "here"
    shutil.copytree(loaded.path.parent, folder)
    (folder / "learns.py").write_text(LEARNS, encoding="utf-8")
    start, end = SCENARIO.index("policies:"), SCENARIO.index("seeds:")
    policies = "policies: ['alternate.py:Alternate', {policy: 'learns.py:Learns', share: [0.5, 1.0]}]\n"
    scenario = load_text(folder, SCENARIO[:start] + policies + SCENARIO[end:])
    placer = PolicyPlacer(scenario.variants[0].scenario, scenario.path)
    assert placer.place("isthmus/Learns@0.7", 1, call_of((Message("user", "hi"),)), IDLE).tier == "cloud"
    (tmp_path / "placer.pkl").write_bytes(cloudpickle.dumps(placer))
    shutil.rmtree(folder)
    code = (
        "import cloudpickle, pickle, sys\n"
        "from workloads.errors import InputError\n"
        "from workloads.placing import call_of\n"
        "from workloads.task import Message\n"
        "placer = pickle.loads(cloudpickle.dumps(pickle.load(open(sys.argv[1], 'rb'))))\n"
        "for name in sys.argv[2:]:\n"
        "    try:\n"
        "        print(placer.place(name, 1, call_of((Message('user', 'hi'),)), {}).tier)\n"
        "    except InputError as error:\n"
        "        print(error)\n"
    )
    names = ["isthmus/Alternate", "isthmus/Learns@1", "isthmus/Learns@0.7", "isthmus/Alternate@2"]
    command = [sys.executable, "-c", code, str(tmp_path / "placer.pkl"), *names]
    there = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert not there.returncode, there.stderr
    own, listed, unlisted, valueless = there.stdout.splitlines()
    assert (own, listed) == ("edge", "cloud")
    assert unlisted == (
        "policy: 'Learns@0.7' is not trained, and what it would learn from cannot be read where the gateway runs. "
        "Ask for isthmus/Learns(share=0.5) or isthmus/Learns(share=1), or list the value in the scenario's policies"
    )
    assert "has no value to choose" in valueless


def test_signals(loaded: LoadedScenario) -> None:
    """A policy sees queues as the load says and links as they are when idle."""
    seen_by = loaded.path.with_name("watching.py")
    seen_by.write_text(
        ALTERNATE.replace("class Alternate", "class Watching").replace(
            "        return Placement(",
            "        s = seen.signals\n"
            "        facts = (s.wait_s('edge'), s.transfer_s('edge', 1e6, 0.0), s.service_s('edge', 100, 2), seen.remaining_s,\n"
            "                 seen.spent_usd, len(seen.attempts), seen.call.task.id, seen.home)\n"
            "        return Placement(seen.small, repr(facts))\n"
            "        return Placement(",
        ),
        encoding="utf-8",
    )
    text = SCENARIO[: SCENARIO.index("policies:")] + "policies: ['watching.py:Watching']\nseeds: [7]\n"
    path = loaded.path.with_name("watching.yaml")
    path.write_text(text, encoding="utf-8")
    scenario = load_scenario(path, ()).variants[0].scenario
    placer = PolicyPlacer(scenario, path)
    (name, *_) = placer.names()
    call = call_of((Message("user", "Question 3"),))

    def facts(load: Mapping[str, TierLoad], call: ModelCall = call) -> tuple[Any, ...]:
        reason = placer.place(name, 5, call, load).reason
        value: tuple[Any, ...] = eval(reason, {})  # noqa: S307 - written by this test's policy
        return value

    wait_s, transfer_s, service_s, remaining_s, spent_usd, attempts, task_id, home = facts({"edge": TierLoad(0, 3, 4)})
    assert wait_s == 0.0
    assert transfer_s == pytest.approx(0.1 + 1.0 + 0.1)
    assert service_s > 0.0
    assert 290 < remaining_s <= 300
    assert (spent_usd, attempts, home) == (0.0, 0, 0)
    assert task_id == call.task.id
    full = [facts({"edge": TierLoad(waiting, 4, 4)})[0] for waiting in (0, 1, 9)]
    assert 0 < full[0] < full[1] < full[2] == pytest.approx(10 * full[0])
    completion = Completion("small-model", "a", 100, 21, 50, provenance="live")
    charge = placer.charge("edge", completion, 400, 300, 0.5, 0.5, model_name=name, request=5, position=0)
    later = call_of((*call.messages, Message("assistant", "a"), Message("user", "b")))
    assert facts({}, later)[4:6] == (pytest.approx(charge.cost_usd), 1)
    assert facts({})[4:6] == (0.0, 0)  # position 0 again: a new request that asks the same


def test_requests_are_forgotten(loaded: LoadedScenario) -> None:
    """A policy is told of requests that have been left behind, so what it remembers of them does not grow for ever."""
    counting = ALTERNATE.replace("class Alternate", "class Counting").replace(
        "    def place(",
        "    ended = 0\n\n    def learn(self, row):\n        self.ended += row.status == 'unknown'\n\n    def place(",
    )
    counting = counting.replace('"every other"', "str(self.ended)")
    loaded.path.with_name("counting.py").write_text(counting, encoding="utf-8")
    text = SCENARIO[: SCENARIO.index("policies:")] + "policies: ['counting.py:Counting']\nseeds: [7]\n"
    path = loaded.path.with_name("counting.yaml")
    path.write_text(text, encoding="utf-8")
    placer = PolicyPlacer(load_scenario(path, ()).variants[0].scenario, path)
    (name, *_) = placer.names()
    call = call_of((Message("user", "Question 3"),))
    told = [int(placer.place(name, number, call, IDLE).reason) for number in range(10_500)]
    assert told[9_999] == 0
    assert told[-1] == 500
    again = placer.place(name, 10_499, call, IDLE)  # asked anew: its first time has ended
    assert int(again.reason) == 501


def test_charges_are_the_ledgers(placer: PolicyPlacer, loaded: LoadedScenario) -> None:
    """An answer costs what the simulator's ledger books for the same call: tokens, bytes, nominal device time."""
    cells = {cell.policy.name: cell for cell in expand_cells(loaded)}
    for name, tier in (("all-slm", "edge"), ("all-llm", "cloud")):
        cell = cells[name]
        alone = cell._replace(scenario=cell.scenario.model_copy(update={
            "workload": cell.scenario.workload.model_copy(update={"requests": 1}),
            "client": cell.scenario.client.model_copy(update={"stream": False}),
        }))  # fmt: skip
        for row in rows(run_cell(alone).subtasks):
            completion = Completion("m", "", row["prompt_tokens"], row["completion_tokens"], 0, row["cached_tokens"])
            sent = (row["upload_bytes"], row["download_bytes"])
            charge = placer.charge(tier, completion, *sent, float("nan"), float("nan"))
            if row["position"] == 0:  # later ones found their prefix in the cache and took less device time
                assert charge.cost_usd == pytest.approx(row["total_usd"])
                assert charge.energy_j == pytest.approx(row["energy_j"])
            assert charge.cost_usd > 0


def conversations() -> st.SearchStrategy[tuple[Message, ...]]:
    """Conversations of any shape."""
    roles = st.sampled_from(["system", "user", "assistant", "tool"])
    return st.lists(st.builds(Message, roles, st.text(max_size=20)), min_size=1, max_size=8).map(tuple)


@given(conversations())
def test_identity_of_a_request(messages: tuple[Message, ...]) -> None:
    """What follows the first user message changes no request's number; numbers fit beside those a caller gives."""
    number = request_number(messages)
    assert FIRST_UNNUMBERED <= number < 2**52
    call = call_of(messages)
    assert call.position == sum(message.role == "assistant" for message in messages)
    if any(message.role == "user" for message in messages):
        assert request_number((*messages, Message("assistant", "so?"), Message("user", "more"))) == number
    earlier = list(earlier_calls(call))
    assert [each.position for each in earlier] == list(range(call.position))
    assert all(each.task is call.task and call.messages[: len(each.messages)] == each.messages for each in earlier)


def distinct() -> Iterator[tuple[Message, ...]]:
    """Beginnings that are easily mistaken for each other."""
    yield (Message("user", "ab"),)
    yield (Message("system", "a"), Message("user", "b"))
    yield (Message("system", "ab"), Message("user", ""))
    yield (Message("system", ""), Message("user", "ab"))
    yield (Message("user", "ab "),)


def test_different_beginnings_are_different_requests() -> None:
    """Where a message ends counts, and so does its role."""
    assert len({request_number(messages) for messages in distinct()}) == len(list(distinct()))
