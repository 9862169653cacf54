"""Counterfactual expansion: the whole tree of placements, each answer once, nothing else."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.agent import Agent, AgentRun
from workloads.asking import AnswersInMemory
from workloads.backend import Handle, ScriptedBackend
from workloads.errors import BackendError, InputError, ModelUnavailable, RecordingMiss
from workloads.expansion import TaskTree, TooManyAnswers, expand
from workloads.recording import Recording, ReplayBackend
from workloads.task import Completion, Message, ModelCall, Outcome, Task
from workloads.trial import Trial, run_trial

Reply = Callable[[ModelCall, str], Completion]


def scripted_agent(longest: int, window: int | None = None) -> Agent:
    """Goes on until a model says "end"; sees the last `window` messages only, where that is given."""

    def run(task: Task) -> AgentRun:
        messages: tuple[Message, ...] = (Message("user", task.prompt),)
        for position in range(longest):
            shown = messages if window is None else messages[-window:]
            completion = yield ModelCall(task, position, shown, len(shown), 100 * len(shown))
            if completion.text == "end":
                return Outcome(float(len(messages) % 3 == 0), completion.text)
            messages += (
                Message("assistant", completion.text.strip()),
                Message("tool", f"seen {completion.text.strip()}"),
            )
        return Outcome(0.5)

    return run


def reply_of(seed: int, words: Sequence[str]) -> Reply:
    """Models whose answers are words drawn by what was asked: few words make equal conversations."""

    def reply(call: ModelCall, model: str) -> Completion:
        asked = repr((seed, model, call.messages)).encode()
        text = words[hashlib.sha256(asked).digest()[0] % len(words)]
        return Completion(model, text, len(call.messages), len(text), 300 + len(text))

    return reply


def unlike(call: ModelCall, model: str) -> Completion:
    """Models that never say the same and never end a request."""
    return Completion(model, f"{model} {len(call.messages)}", 1, 1, 301)


def placed(sequence: Sequence[str], depth: int) -> Callable[[ModelCall], str]:
    """A placement by position; beyond `depth` it stays on the model before."""
    return lambda call: sequence[min(call.position, depth - 1)]


def recorded(trees: Sequence[TaskTree], models: Sequence[str]) -> Recording:
    """Expanded trees as a recording."""
    recording = Recording(models)
    for tree in trees:
        recording.tasks.append(tree.task)
        for messages, answers in tree.conversations():
            for answer in answers:
                recording.add(tree.task.id, messages, answer)
    return recording


def plain(trial: Trial) -> Trial:
    """A trial whose answers can be compared: what was not measured is NaN, which equals nothing."""
    return trial._replace(
        completions=tuple(c._replace(mean_logprob=0, prefill_s=0, decode_s=0, score=0) for c in trial.completions)
    )


# ------------------------------------------------------------------------------------------------ the tree, by brute force


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6), depth=st.integers(1, 6), longest=st.integers(1, 6), window=st.none() | st.integers(1, 4),
    models=st.sampled_from(("ab", "abc", "a")), words=st.sampled_from((("go", "on", "end"), ("go", "end"), ("go", "go ", "up", "on", "end"))),
    tasks=st.integers(1, 3), in_flight=st.sampled_from((1, 2, 7, 256)),
)  # fmt: skip
def test_every_placement_replays_exactly_and_nothing_else_is_recorded(
    seed: int,
    depth: int,
    longest: int,
    window: int | None,
    models: str,
    words: tuple[str, ...],
    tasks: int,
    in_flight: int,
) -> None:
    """Random agents and models: all placements, one by one, replay as they would have run, and ask all that was recorded."""
    agent, reply = scripted_agent(longest, window), reply_of(seed, words)
    live = ScriptedBackend(reply)
    asked = [Task(f"t{number}", f"task {number}") for number in range(tasks)]
    trees = list(expand(agent, asked, live, models, depth, in_flight=in_flight))
    replay = ReplayBackend(recorded(trees, models))
    for task, tree in zip(asked, trees, strict=True):
        needed: set[tuple[str, tuple[Message, ...]]] = set()
        for sequence in itertools.product(models, repeat=min(depth, longest)):
            choose = placed(sequence, depth)
            true, again = run_trial(agent, task, live, choose), run_trial(agent, task, replay, choose)
            assert plain(again) == plain(true)
            needed |= set(zip(true.models, (call.messages for call in true.calls), strict=True))
        held = {(answer.model, messages) for messages, answers in tree.conversations() for answer in answers}
        assert held == needed
        assert tree.answer_count() == len(needed)
        assert tree.task is task
        for model in models:
            assert tree.alone(model) == Outcome(*run_outcome(agent, task, live, model))


def run_outcome(agent: Agent, task: Task, backend: ScriptedBackend, model: str) -> tuple[float, str]:
    """Score and answer of one model alone."""
    trial = run_trial(agent, task, backend, lambda call: model)
    return trial.score, trial.answer


@pytest.mark.parametrize(("depth", "answers"), [(1, 2 + 2 * 4), (3, 2 + 4 + 8 + 8 * 2), (5, 2 + 4 + 8 + 16 + 32)])
def test_beyond_the_depth_requests_stay_where_they_are(depth: int, answers: int) -> None:
    """A tree of five steps that share nothing branches `depth` times; its branches then go on alone."""
    (tree,) = expand(scripted_agent(5), [Task("t", "go")], ScriptedBackend(unlike), "ab", depth)
    assert tree.answer_count() == answers


def test_equal_conversations_are_one() -> None:
    """Models that say the same make a chain, not 2^15 branches: two answers a step."""
    same = ScriptedBackend(lambda call, model: Completion(model, "go", 1, 1, 302))
    (tree,) = expand(scripted_agent(15), [Task("t", "go")], same, "ab")
    assert len(tree.nodes) == 15
    assert tree.answer_count() == 30


def test_a_task_that_asks_nothing_has_an_empty_tree() -> None:
    """Its agent may answer at once, without a model."""

    def silent(task: Task) -> AgentRun:
        yield from ()
        return Outcome(1.0, task.prompt)

    (tree,) = expand(silent, [Task("t", "hi")], ScriptedBackend(unlike), "ab")
    assert (tree.conversations(), tree.alone("a"), tree.answer_count()) == ([], Outcome(1.0, "hi"), 0)


# ------------------------------------------------------------------------------------------------------------- asking


class CountingBackend(ScriptedBackend):
    """Counts what it is asked, and how much of it is not yet collected."""

    def __init__(self, answer: Reply) -> None:
        super().__init__(answer)
        self.asked: Counter[tuple[str, tuple[Message, ...]]] = Counter()
        self.under_way = self.most = 0

    def submit(self, call: ModelCall, model: str) -> Handle:
        """A handle that knows when it is collected."""
        self.asked[model, call.messages] += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return _Counted(self, super().submit(call, model))


class _Counted:
    def __init__(self, backend: CountingBackend, handle: Handle) -> None:
        self._backend, self._handle = backend, handle

    def result(self) -> Completion:
        self._backend.under_way -= 1
        return self._handle.result()


class BatchingBackend(CountingBackend):
    """Takes many calls in one message."""

    def __init__(self, answer: Reply) -> None:
        super().__init__(answer)
        self.batches: list[int] = []

    def submit_many(self, calls: Sequence[tuple[ModelCall, str]]) -> list[Handle]:
        """All of them."""
        self.batches.append(len(calls))
        return [self.submit(call, model) for call, model in calls]


TASKS = [Task(f"t{number}", f"task {number}") for number in range(40)]
AGENT = scripted_agent(4)
REPLY = reply_of(1, ("go", "on", "up", "end"))


@pytest.mark.parametrize("in_flight", [1, 3, 16, 1000])
def test_many_calls_are_under_way_but_not_too_many(in_flight: int) -> None:
    """The limit is used to the full and never exceeded; nothing is asked twice."""
    backend = CountingBackend(REPLY)
    list(expand(AGENT, TASKS, backend, "ab", in_flight=in_flight))
    assert min(in_flight, 80) <= backend.most <= in_flight
    assert set(backend.asked.values()) == {1}


def test_calls_travel_together() -> None:
    """A backend that takes many calls in one message gets few messages, and the same trees come of it."""
    backend = BatchingBackend(REPLY)
    trees = list(expand(AGENT, TASKS, backend, "ab", in_flight=64))
    assert max(backend.batches) <= 64
    assert sum(backend.batches) > 8 * len(backend.batches)
    alone = expand(AGENT, TASKS, CountingBackend(REPLY), "ab", in_flight=1)
    assert [said(tree) for tree in trees] == [said(tree) for tree in alone]


def said(tree: TaskTree) -> list[tuple[tuple[Message, ...], list[str]]]:
    """A tree's conversations with the texts of the answers."""
    return [(messages, [answer.text for answer in answers]) for messages, answers in tree.conversations()]


class ThreadedBackend:
    """Answers on threads, each call after a random pause."""

    def __init__(self, pool: ThreadPoolExecutor, seed: int) -> None:
        self._pool, self._random = pool, Random(seed)

    def submit(self, call: ModelCall, model: str) -> Future[Completion]:
        """A future: a handle as others make them."""
        return self._pool.submit(self._answer, call, model, self._random.random() / 500)

    @staticmethod
    def _answer(call: ModelCall, model: str, delay_s: float) -> Completion:
        time.sleep(delay_s)
        return REPLY(call, model)


def test_the_order_in_which_models_answer_does_not_matter() -> None:
    """Threads that answer in any order, with few and with many calls under way, give the same trees in the same order."""
    expected = [said(tree) for tree in expand(AGENT, TASKS, ScriptedBackend(REPLY), "ab")]
    for seed in range(3):
        with ThreadPoolExecutor(8) as pool:
            trees = expand(AGENT, TASKS, ThreadedBackend(pool, seed), "ab", in_flight=5 + 20 * seed)
            assert [said(tree) for tree in trees] == expected


def test_answers_in_hand_are_not_asked_again() -> None:
    """A second expansion over the same store asks nothing, also to a smaller depth."""
    store = AnswersInMemory()
    first = [said(tree) for tree in expand(AGENT, TASKS, CountingBackend(REPLY), "ab", answers=store)]
    backend = CountingBackend(REPLY)
    assert [said(tree) for tree in expand(AGENT, TASKS, backend, "ab", answers=store)] == first
    list(expand(AGENT, TASKS, backend, "ab", 2, answers=store))
    assert not backend.asked


def test_tasks_with_the_same_question_share_its_answers() -> None:
    """Even at the same time; each has the whole tree."""
    backend = CountingBackend(REPLY)
    twins = [Task("one", "the same"), Task("two", "the same")]
    one, two = expand(AGENT, twins, backend, "ab")
    assert said(one) == said(two)
    assert set(backend.asked.values()) == {1}


def test_a_few_tasks_are_held_at_a_time() -> None:
    """Memory is bounded: of endless tasks, no more are begun than calls may be under way (or eight)."""
    begun = []

    def endless() -> object:
        for number in itertools.count():
            begun.append(number)
            yield Task(f"t{number}", f"task {number}")

    trees = expand(AGENT, endless(), ScriptedBackend(REPLY), "ab", in_flight=4)  # type: ignore[arg-type]
    for count, _ in enumerate(trees, start=1):
        assert len(begun) <= count + 8
        if count == 50:
            break


def test_each_answer_is_told_of() -> None:
    """For a progress bar."""
    told = []
    trees = list(expand(AGENT, TASKS, ScriptedBackend(REPLY), "ab", on_answer=lambda: told.append(1)))
    assert len(told) == sum(tree.answer_count() for tree in trees)


# ----------------------------------------------------------------------------------------------------------- trouble


class FailingBackend(ScriptedBackend):
    """Fails the first `failures` tries at every call; `at_once` fails it when it is submitted."""

    def __init__(self, error: BackendError, failures: int, *, at_once: bool = False) -> None:
        super().__init__(REPLY)
        self.tries: Counter[tuple[str, tuple[Message, ...]]] = Counter()
        self._error, self._failures, self._at_once = error, failures, at_once

    def submit(self, call: ModelCall, model: str) -> Handle:
        """An answer, or trouble."""
        self.tries[model, call.messages] += 1
        if self.tries[model, call.messages] > self._failures:
            return super().submit(call, model)
        if self._at_once:
            raise self._error
        failed: Future[Completion] = Future()
        failed.set_exception(self._error)
        return failed


@pytest.mark.parametrize("at_once", [False, True])
def test_a_call_that_fails_is_tried_again(at_once: bool) -> None:
    """After a pause; others go on meanwhile, and the trees are those of models that never fail."""
    backend = FailingBackend(ModelUnavailable("overloaded", retry_after_s=0.1), 1, at_once=at_once)
    trees = list(expand(scripted_agent(1), TASKS, backend, "ab"))
    assert set(backend.tries.values()) == {2}
    alone = expand(scripted_agent(1), TASKS, ScriptedBackend(REPLY), "ab")
    assert [said(tree) for tree in trees] == [said(tree) for tree in alone]


def test_a_call_that_keeps_failing_stops_it() -> None:
    """With a message that names model, subtask, task and reason."""
    backend = FailingBackend(ModelUnavailable("timeout", "60 s"), 9)
    with pytest.raises(BackendError, match=r"'a' failed 2 times on subtask 0 of task 't0': timeout: 60 s"):
        list(expand(AGENT, TASKS[:1], backend, "a", retries=1))


@pytest.mark.parametrize(
    "error",
    [
        ModelUnavailable("budget", "5 USD are spent"),
        ModelUnavailable("prompt-too-long", "9 tokens leave no room in 8"),
        RecordingMiss("not recorded"),
    ],
)
def test_what_trying_again_cannot_mend_stops_it_at_once(error: BackendError) -> None:
    """A budget that is spent stays spent, a prompt does not shrink, and a recording does not learn."""
    backend = FailingBackend(error, 9)
    with pytest.raises(BackendError, match=str(error)) as stopped:
        list(expand(AGENT, TASKS, backend, "ab"))
    assert max(backend.tries.values()) == 1
    assert isinstance(error, RecordingMiss) or "on subtask 0 of task 't0'" in str(stopped.value)


def test_what_is_under_way_when_it_stops_is_kept() -> None:
    """One call of twenty fails for good: the other nineteen answers are in the store."""

    class OneRefused(ScriptedBackend):
        def submit(self, call: ModelCall, model: str) -> Handle:
            if call.task.id == "t3" and model == "a":
                raise ModelUnavailable("refused", "no")
            return super().submit(call, model)

    store = AnswersInMemory()
    with pytest.raises(BackendError, match="refused"):
        list(expand(scripted_agent(1), TASKS[:10], OneRefused(REPLY), "ab", answers=store))
    assert len(store) == 19


def test_too_many_answers_stop_it() -> None:
    """The guard counts what is asked, and what is under way is still kept."""
    store = AnswersInMemory()
    with pytest.raises(TooManyAnswers, match="beyond 100 answers"):
        list(expand(scripted_agent(15), TASKS[:1], ScriptedBackend(unlike), "ab", answers=store, max_answers=100))
    assert 40 <= len(store) <= 100


@pytest.mark.parametrize("depth", [0, -1, 16])
def test_a_depth_out_of_range_is_refused(depth: int) -> None:
    """Before anything is asked."""
    with pytest.raises(InputError, match="Allowed: 1 to 15"):
        expand(AGENT, TASKS, ScriptedBackend(REPLY), "ab", depth)


def test_an_agent_that_goes_on_differently_is_refused() -> None:
    """Its tree cannot be recorded: the same answers must lead to the same calls."""
    numbers = itertools.count()

    def fickle(task: Task) -> AgentRun:
        messages: tuple[Message, ...] = (Message("user", f"{task.prompt} {next(numbers)}"),)
        for position in range(2):
            completion = yield ModelCall(task, position, messages, 1, 1)
            messages += (Message("assistant", completion.text),)
        return Outcome(1.0)

    with pytest.raises(InputError, match="went on differently"):
        list(expand(fickle, TASKS[:1], ScriptedBackend(unlike), "ab"))


def test_an_agent_without_conversation_is_refused() -> None:
    """Statistical agents say nothing, so all their calls would look the same."""

    def mute(task: Task) -> AgentRun:
        yield ModelCall(task, 0, (), 1, 1)
        return Outcome(1.0)

    with pytest.raises(InputError, match="asks without a conversation"):
        list(expand(mute, TASKS[:1], ScriptedBackend(unlike), "ab"))


def test_the_time_a_tool_took_makes_no_difference() -> None:
    """An agent that measures its tools asks the same, whatever the clock says."""
    clock = itertools.count()

    def measuring(task: Task) -> AgentRun:
        messages: tuple[Message, ...] = (Message("user", task.prompt),)
        for position in range(3):
            completion = yield ModelCall(task, position, messages, 1, 1, tool_s=next(clock) / 1000)
            messages += (Message("assistant", completion.text[:1]),)
        return Outcome(1.0)

    same = ScriptedBackend(lambda call, model: Completion(model, "x", 1, 1, 301))
    (tree,) = expand(measuring, TASKS[:1], same, "ab")
    assert len(tree.nodes) == 3
