"""Parallel branches of a request by hand and by theory: what runs beside what, what it costs, and how it ends."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.policies.base import Observation, Placement
from sim.records import Records
from sim.scenario import Scenario
from tests.helpers import PHASES, Chosen, Step, always, api, device, link, rows, run, scenario, slots
from workloads.agent import Agent, Branch, Run, branches_of, in_turn
from workloads.backend import ScriptedBackend
from workloads.errors import InputError
from workloads.task import Completion, ModelCall, Outcome, Task
from workloads.trial import enumerate_trials, run_trial


class Fork(NamedTuple):
    """Parallel lists of steps, each of which may itself hold forks; `single`: the branches are calls and not runs."""

    branches: tuple[tuple[Any, ...], ...]
    last_tool_s: tuple[float, ...] = ()


def made_of(*steps: Step | Fork, score: float = 1.0) -> Task:
    """A request of these steps and forks."""
    return Task("t", latent=(steps, score))


def numbered(steps: Sequence[Any], taken: list[Step]) -> list[Any]:
    """The steps with positions in the order in which they are written, branch after branch."""
    found: list[Any] = []
    for step in steps:
        if isinstance(step, Fork):
            found.append(([numbered(branch, taken) for branch in step.branches], step.last_tool_s))
        else:
            found.append(len(taken))
            taken.append(step)
    return found


def forking_agent(task: Task) -> Run:
    """Makes the calls of a made-up request; a branch of one step is a call, a longer one a run."""
    steps, score = task.latent
    taken: list[Step] = []
    plan = numbered(steps, taken)

    def call(position: int, branch: int) -> ModelCall:
        step = taken[position]
        return ModelCall(task, position, (), step.prompt_tokens, step.upload_bytes, step.tool_s, branch=branch)

    def follow(plan: list[Any], branch: int, last_tool_s: float = 0.0) -> Run:
        for item in plan:
            if isinstance(item, int):
                yield call(item, branch)
                continue
            forks, tools = item
            branches: list[Branch] = []
            for number, inner in enumerate(forks):
                alone = len(inner) == 1 and isinstance(inner[0], int) and not tools
                below = 10 * branch + number + 1
                branches.append(call(inner[0], below) if alone else follow(inner, below, *tools[number : number + 1]))
            results = yield branches
            assert len(results) == len(branches)
            assert all(isinstance(result, Completion | Outcome) for result in results)
        return Outcome(score, "", last_tool_s)

    return (yield from follow(plan, 0))


def steps_of(task: Task) -> list[Step]:
    """All steps by position."""
    taken: list[Step] = []
    numbered(task.latent[0], taken)
    return taken


def answer(call: ModelCall, model: str) -> Completion:
    """The answer to a step."""
    step = steps_of(call.task)[call.position]
    return Completion(model, "", call.prompt_tokens, step.output_tokens, step.download_bytes)


def chain_of(task: Task) -> Run:
    """The same request with its branches one after another."""
    return in_turn(forking_agent(task))


def went(world: Scenario, tasks: Sequence[Task], policy: Any, agent: Agent = forking_agent, **fields: Any) -> Records:
    """Simulate such requests."""
    return run(world, tasks, policy, agent=agent, backend=ScriptedBackend(answer), **fields)


def spans(records: Records, request: int = 0) -> list[tuple[int, float, float, str]]:
    """(position, start, end, status) of a request's rows."""
    return [
        (row["position"], round(row["start_s"], 6), round(row["end_s"], 6), row["status"])
        for row in rows(records.subtasks)
        if row["request"] == request
    ]


WIDE = {"edge": slots(slots=100)}
SECONDS = {"cloud": api(concurrency=100)}
"""0.4 s and a tenth of a second for each token after the first."""


# ------------------------------------------------------------------------------------------------------------- by hand


def test_branches_run_side_by_side_and_are_joined_by_the_slowest() -> None:
    """Without contention: one call of 2.4 s, branches of 1.4, 3 x 0.9 and 2.4 s, one call of 0.4 s."""
    short, long = Step(output_tokens=6), Step(output_tokens=21)
    task = made_of(long, Fork(((Step(output_tokens=11),), (short, short, short), (long,))), Step(output_tokens=1))
    records = went(scenario(SECONDS), [task], always("cloud"), arrival_s=[1.0])
    assert spans(records) == [
        (0, 1.0, 3.4, "ok"), (2, 3.4, 4.3, "ok"), (1, 3.4, 4.8, "ok"), (3, 4.3, 5.2, "ok"), (5, 3.4, 5.8, "ok"), (4, 5.2, 6.1, "ok"),
        (6, 6.1, 6.5, "ok"),
    ]  # fmt: skip
    (request,) = rows(records.requests)
    assert request["latency_s"] == pytest.approx(2.4 + 3 * 0.9 + 0.4)
    assert (request["status"], request["subtasks"], request["score"]) == ("completed", 7, 1.0)


def test_one_after_another_costs_the_same_and_takes_the_sum() -> None:
    """The chain asks the same calls at the same positions: equal cost, the latency is the sum instead of the longest."""
    branches = tuple((Step(output_tokens=n),) for n in (11, 21, 31))
    world = scenario(SECONDS, pricing={"tokens": {"cloud": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 3.0}}})
    fork, chain = (
        rows(went(world, [made_of(Fork(branches))], always("cloud"), agent).requests)[0]
        for agent in (forking_agent, chain_of)
    )
    assert fork["latency_s"] == pytest.approx(3.4)
    assert chain["latency_s"] == pytest.approx(1.4 + 2.4 + 3.4)
    assert fork["total_usd"] == pytest.approx(chain["total_usd"])
    assert fork["total_usd"] > 0
    assert fork["subtasks"] == chain["subtasks"] == 3


def test_branches_share_what_is_scarce() -> None:
    """One slot of 2 s serves three branches in turn, so that the fork gains nothing."""
    task = made_of(Fork(((Step(),), (Step(),), (Step(),))))
    records = went(scenario({"edge": slots()}), [task], always("edge"))
    assert spans(records) == [(0, 0, 2, "ok"), (1, 0, 4, "ok"), (2, 0, 6, "ok")]
    assert [row["queue_s"] for row in rows(records.subtasks)] == [0, 2, 4]


def test_branches_fork_again() -> None:
    """A fork in a branch: 1 + max(2, 1 + max(3, 1)) + 1 services of 1 s."""
    one = Step()
    inner = Fork(((one, one, one), (one,)))
    task = made_of(one, Fork(((one, one), (one, inner))), one)
    records = went(scenario({"edge": slots(mean_s=1.0, slots=9)}), [task], always("edge"))
    assert rows(records.requests)[0]["latency_s"] == pytest.approx(6.0)
    assert sorted(row["position"] for row in rows(records.subtasks)) == list(range(9))


def test_a_fork_of_nothing_takes_no_time() -> None:
    """The results of no branches are there at once."""
    records = went(scenario(WIDE), [made_of(Fork(()), Step())], always("edge"))
    assert spans(records) == [(0, 0, 2, "ok")]


def test_tools_of_branches_take_their_time_in_them() -> None:
    """A tool before a branch's call, and one after a branch's last answer, whose row has no position among the subtasks."""
    task = made_of(Fork(((Step(tool_s=1.5),), (Step(), Step())), last_tool_s=(0.0, 0.5)), Step())
    records = went(scenario(WIDE), [task], always("edge"))
    assert spans(records) == [
        (1, 0.0, 2.0, "ok"), (0, 0.0, 3.5, "ok"), (2, 2.0, 4.0, "ok"), (-1, 4.0, 4.5, "ok"), (3, 4.5, 6.5, "ok")
    ]  # fmt: skip
    assert rows(records.requests)[0]["subtasks"] == 4


def test_the_first_token_of_a_request_is_its_earliest() -> None:
    """The branch that answers last begins to answer first."""
    tiers = {"edge": api("slm", ttft_median_s=1.0), "cloud": api()}
    policy = Chosen(lambda seen: "edge" if seen.call.position else "cloud")
    records = went(
        scenario(tiers, client={"stream": True}), [made_of(Fork(((Step(output_tokens=99),), (Step(),))))], policy
    )
    assert [row["position"] for row in rows(records.subtasks)] == [1, 0]
    assert rows(records.requests)[0]["ttft_s"] == pytest.approx(0.4)


def test_branches_are_conversations_of_their_own_for_a_prompt_cache() -> None:
    """What one branch said is no prefix of another's prompt, but of its own next one."""
    steps = (Step(prompt_tokens=1600), Step(prompt_tokens=3200))
    world = scenario(
        {
            "cloud": {
                **api(),
                "prefix_cache": True,
                "endpoint": {**api()["endpoint"], "cache_lifetime_s": 300.0, "concurrency": 9},
            }
        }
    )
    records = went(world, [made_of(Fork((steps, steps)))], always("cloud"))
    cached = {row["position"]: row["cached_tokens"] for row in rows(records.subtasks)}
    assert cached[0] == cached[2] == 0
    assert cached[1] == cached[3] > 0


# ------------------------------------------------------------------------------------------------ how it ends otherwise


def test_a_timeout_takes_every_branch_along() -> None:
    """Interrupted at 2.5 s in a queue, in service and on the way up; every row ends then, and phases add up."""
    tiers = {"edge": slots()}
    task = made_of(Fork(((Step(),), (Step(),), (Step(),), (Step(upload_bytes=9_000_000),))), Step())
    world = scenario(tiers, links=(link("home", "edge", shared=False),), client={"timeout_s": 2.5, "stream": False})
    records = went(world, [task], always("edge"))
    assert spans(records) == [(p, 0.0, 2.5, "timeout") for p in range(4)]
    assert rows(records.requests)[0]["status"] == "timeout"
    check_phases(records)
    after = went(world, [task, made_of(Step(0, 0))], always("edge"), arrival_s=[0.0, 4.0])
    assert spans(after, 1)[0][3] == "ok", "the slot is free again"


def test_a_branch_that_ended_is_not_touched_by_a_timeout() -> None:
    """The short one has its answer, the long one is cut short, and no next step is asked."""
    task = made_of(Fork(((Step(output_tokens=1),), (Step(output_tokens=99),))), Step())
    world = scenario(SECONDS, client={"timeout_s": 2.5, "stream": False})
    records = went(world, [task], always("cloud"))
    assert spans(records) == [(0, 0.0, 0.4, "ok"), (1, 0.0, 2.5, "timeout")]
    assert rows(records.requests)[0]["subtasks"] == 1


def test_a_timeout_reaches_forks_in_branches() -> None:
    """Two levels down."""
    inner = Fork(((Step(),), (Step(), Step())))
    task = made_of(Fork(((inner, Step()), (Step(), Step(), Step()))))
    world = scenario(WIDE, client={"timeout_s": 3.0, "stream": False})
    records = went(world, [task], always("edge"))
    ended = {position: (end, status) for position, _, end, status in spans(records)}
    assert ended == {0: (2, "ok"), 1: (2, "ok"), 2: (3, "timeout"), 4: (2, "ok"), 5: (3, "timeout")}


def test_an_attempt_that_takes_too_long_is_tried_again_in_its_own_branch() -> None:
    """The watchdog of attempts interrupts the branch and not its request or its neighbour."""
    task = made_of(Fork(((Step(output_tokens=99),), (Step(output_tokens=6),))))
    client = {"attempt_timeout_s": 1.0, "retries": 1, "backoff_s": 0.0, "fail_over": True, "stream": False}
    world = scenario({**SECONDS, "edge": slots(mean_s=0.5)}, client=client)
    records = went(world, [task], always("cloud"))
    assert spans(records) == [
        (1, 0.0, 0.9, "ok"), (0, 0.0, 1.0, "attempt-timeout"), (0, 1.0, 2.0, "attempt-timeout"), (0, 2.0, 2.5, "ok")
    ]  # fmt: skip
    assert rows(records.requests)[0]["status"] == "completed"


def test_a_branch_that_fails_ends_the_request_at_once() -> None:
    """A branch too large for the only tier fails at 1 s; its neighbours are taken back then and the slots are free."""
    oversized = Step(prompt_tokens=10**9)
    small = {**device(), "model": {"parameters_b": 1e-9, "weight_gbytes": 0.05, "kv_bytes_per_token": 1e6}}
    task = made_of(Fork(((Step(output_tokens=19), oversized), (Step(output_tokens=99),), (Step(tool_s=9.0),))), Step())
    records = went(scenario({"edge": small}, client={"retries": 0, "stream": False}), [task], always("edge"))
    ended = {position: (end, status) for position, _, end, status in spans(records)}
    failed_s = ended[0][0]
    assert ended[1] == (failed_s, "oversized")
    assert ended[2] == (failed_s, "abandoned")
    assert ended[3] == (failed_s, "abandoned")
    (request,) = rows(records.requests)
    assert (request["status"], request["end_s"]) == ("failed", pytest.approx(failed_s, abs=1e-6))
    assert "oversized" in request["reason"]
    check_phases(records)


# --------------------------------------------------------------------------------------------------------------- bad input


def test_positions_that_are_given_twice_are_refused() -> None:
    """Rows and draws could not be told apart."""

    def careless(task: Task) -> Run:
        call = ModelCall(task, 0, (), 1, 1)
        yield call, call
        return Outcome(1.0)

    with pytest.raises(InputError, match="gave position 0 to 2 subtasks of parallel branches"):
        went(scenario(WIDE), [made_of(Step())], always("edge"), careless)


@pytest.mark.parametrize("nonsense", ["a string", 7, None, ("no", "calls"), {"a": 1}])
def test_what_is_neither_call_nor_fork_is_refused(nonsense: Any) -> None:
    """With what may be yielded, wherever agents are driven."""

    def odd(task: Task) -> Run:
        yield nonsense
        return Outcome(1.0)

    with pytest.raises(InputError, match=r"the agent: yielded .*tuple of branches"):
        went(scenario(WIDE), [made_of(Step())], always("edge"), odd)
    with pytest.raises(InputError, match="Yield a ModelCall"):
        run_trial(odd, made_of(Step()), ScriptedBackend(answer), lambda call: "m")
    with pytest.raises(InputError, match="Yield a ModelCall"):
        branches_of(nonsense)


def test_what_goes_wrong_in_a_branch_stops_the_run() -> None:
    """A policy's mistake there is told as anywhere else."""
    task = made_of(Fork(((Step(),), (Step(),))))
    with pytest.raises(InputError, match="chose 'moon', which is no tier"):
        went(scenario(WIDE), [task], always("moon"))


# -------------------------------------------------------------------------------------------------- what always holds


def check_phases(records: Records) -> None:
    """Phases of every row sum to its duration, and no row is outside its request."""
    ends = {row["request"]: (row["arrival_s"], row["end_s"]) for row in rows(records.requests)}
    for row in rows(records.subtasks):
        assert sum(row[phase] for phase in PHASES) == pytest.approx(row["end_s"] - row["start_s"], abs=1e-9)
        assert all(row[phase] >= -1e-12 for phase in PHASES)
        begun, ended = ends[row["request"]]
        assert begun <= row["start_s"] <= row["end_s"] <= ended + 1e-9


STEPS = st.builds(
    Step, upload_bytes=st.integers(0, 10**6), download_bytes=st.integers(0, 10**5), output_tokens=st.integers(1, 40),
    prompt_tokens=st.integers(1, 300), tool_s=st.sampled_from((0.0, 0.3)), prefill_s=st.just(math.nan), decode_s=st.just(math.nan),
)  # fmt: skip
BRANCHES = st.recursive(
    st.lists(STEPS, min_size=1, max_size=3).map(tuple),
    lambda inner: st.tuples(
        STEPS, st.lists(inner, min_size=1, max_size=3).map(lambda found: Fork(tuple(found))), STEPS
    ),
    max_leaves=6,
)
REQUESTS = BRANCHES.map(lambda steps: made_of(*steps))


def duration_s(steps: Sequence[Any], seconds: dict[int, float], counter: list[int]) -> float:
    """How long steps take when nobody contends: the sum along a branch, the longest of the branches of a fork."""
    total_s = 0.0
    for step in steps:
        if isinstance(step, Fork):
            total_s += max(duration_s(branch, seconds, counter) for branch in step.branches)
        else:
            total_s += seconds[counter[0]]
            counter[0] += 1
    return total_s


@settings(max_examples=60, deadline=None)
@given(task=REQUESTS)
def test_latency_is_the_longest_way_and_cost_the_sum(task: Task) -> None:
    """Theory without contention: unshared links and enough slots make the latency the longest way through the workflow."""
    prices = {"tokens": {"cloud": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 3.0}}}
    world = scenario(
        {"cloud": api(concurrency=1000)},
        links=(link("home", "cloud", shared=False),),
        pricing=prices,
        client={"stream": False},
    )
    fork, chain = (went(world, [task], always("cloud"), agent) for agent in (forking_agent, chain_of))
    check_phases(fork)
    seconds = {row["position"]: row["end_s"] - row["start_s"] for row in rows(fork.subtasks)}
    assert rows(fork.requests)[0]["latency_s"] == pytest.approx(duration_s(task.latent[0], seconds, [0]))
    assert rows(chain.requests)[0]["latency_s"] == pytest.approx(math.fsum(seconds.values()))
    assert fork.requests["total_usd"].tolist() == pytest.approx(chain.requests["total_usd"].tolist())
    assert seconds == pytest.approx({row["position"]: row["end_s"] - row["start_s"] for row in rows(chain.subtasks)})


@settings(max_examples=40, deadline=None)
@given(
    tasks=st.lists(REQUESTS, min_size=1, max_size=4),
    seed=st.integers(0, 99),
    timeout_s=st.sampled_from((1.0, 4.0, 300.0)),
)
def test_phases_add_up_whatever_happens(tasks: list[Task], seed: int, timeout_s: float) -> None:
    """A crowded system with timeouts of attempts and requests, 429s and jitter: each row adds up, and the same run is the same."""
    tiers = {"edge": device(max_batch=2), "cloud": api(concurrency=2, ttft_sigma=0.5)}
    jittery = link("home", "cloud", jitter_s=0.1, loss=0.05)
    client = {"timeout_s": timeout_s, "attempt_timeout_s": 3.0, "retries": 1}
    world = scenario(tiers, links=(jittery,), client=client)
    policy = Chosen(lambda seen: ("edge", "cloud")[seen.call.position % 2])
    first, again = (went(world, tasks, policy, seed=seed) for _ in range(2))
    check_phases(first)
    assert [repr(rows(table)) for table in first] == [repr(rows(table)) for table in again]
    asked = Counter((row["request"], row["position"], row["attempt"]) for row in rows(first.subtasks))
    assert max(asked.values()) == 1


def test_the_same_subtask_meets_the_same_chance_under_every_policy() -> None:
    """Common random numbers: service drawn by (request, position) is the same in fork and chain, and whoever else is placed where."""
    task = made_of(Step(), Fork(((Step(), Step()), (Step(),), (Step(), Step()))), Step())
    tiers = {"edge": slots(mean_s=1.0, slots=50), "cloud": api(concurrency=99, ttft_sigma=0.8, tokens_per_s_sigma=0.5)}
    world = scenario(tiers)

    def served(policy: Any, agent: Agent) -> dict[tuple[int, int], tuple[float, float]]:
        table = rows(went(world, [task] * 20, policy, agent).subtasks)
        return {(r["request"], r["position"]): (r["prefill_s"], r["decode_s"]) for r in table if r["tier"] == 1}

    some = served(Chosen(lambda seen: ("edge", "cloud")[(seen.request + seen.call.position) % 2]), forking_agent)
    all_of_them, chained = served(always("cloud"), forking_agent), served(always("cloud"), chain_of)
    assert len(some) == 70
    for key, times in some.items():
        assert times == pytest.approx(all_of_them[key])
        assert times == pytest.approx(chained[key])


def test_a_policy_sees_the_attempts_of_all_branches() -> None:
    """What a request has spent is known in every branch, as it is."""
    seen_attempts: list[tuple[int, int]] = []

    def look(seen: Observation) -> Placement:
        seen_attempts.append((seen.call.position, len(seen.attempts)))
        return Placement("edge")

    task = made_of(Fork(((Step(), Step()), (Step(tool_s=1.0),))), Step())
    went(scenario(WIDE), [task], Chosen(look))
    assert seen_attempts == [(0, 0), (2, 0), (1, 1), (3, 3)]


# ------------------------------------------------------------------------------------------------------------ without time


def test_off_line_the_branches_follow_one_another() -> None:
    """A trial asks the same calls, in the order of positions; every placement is tried exactly once."""
    task = made_of(Step(), Fork(((Step(), Step()), (Step(),))), Step())
    trial = run_trial(forking_agent, task, ScriptedBackend(answer), lambda call: "ab"[call.branch % 2])
    assert [call.position for call in trial.calls] == [0, 1, 2, 3, 4]
    assert "".join(trial.models) == "abbaa"
    trials = list(enumerate_trials(forking_agent, task, ScriptedBackend(answer), "ab"))
    assert len({trial.models for trial in trials}) == len(trials) == 2**5
