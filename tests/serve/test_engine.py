"""Continuous batching: the same answers as alone, whoever joins, leaves, fails or hangs up meanwhile."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from serve.engine.decoding import Row
from serve.engine.engine import Engine
from serve.engine.errors import EngineBusy, EngineClosed, ModelFailed, PromptTooLong
from serve.generation import Generation, ModelSpec, Sampling
from serve.slm import CausalLM
from tests.serve.tiny_models import tiny_model
from workloads.errors import InputError
from workloads.task import Message

HANG_S = 60.0
"""Nothing here takes a second on a quiet machine; whatever takes this long hangs."""
POISON = "\x01"


@cache
def model(architecture: str = "llama", end_share: float = 0.03) -> CausalLM:
    """A tiny model, loaded once; with `end_share` 0 its answers go on until their limit (nearly always)."""
    folder = tiny_model(Path(mkdtemp()) / architecture, architecture, context_tokens=1024, end_share=end_share)
    return CausalLM(ModelSpec(str(folder), device="cpu", threads=1))


def endless() -> CausalLM:
    """A model whose answers are as long as they may be."""
    slm = model("llama", 0.0)
    slm.ends = frozenset()
    return slm


def ask(text: str) -> tuple[Message, ...]:
    """A conversation of one question."""
    return (Message("user", text),)


def alone(slm: CausalLM, text: str, limit: int, sampling: Sampling | None = None) -> str:
    """The model's answer without company."""
    return slm.generate([ask(text)], limit, sampling)[0].text


@contextmanager
def hooked(slm: CausalLM, hook: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Before every forward pass of the model, `hook` sees its token ids [rows, width] and may raise or wait."""
    handle = slm.model.register_forward_pre_hook(lambda _, __, named: hook(named["input_ids"]), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class Gate:
    """Holds every forward pass until opened."""

    def __init__(self) -> None:
        self.open, self.reached = threading.Event(), threading.Event()

    def __call__(self, ids: torch.Tensor) -> None:
        """Called in the engine's thread."""
        self.reached.set()
        assert self.open.wait(HANG_S)


# --------------------------------------------------------------------------------------------------- the same answers


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox", "qwen3", "mistral", "gemma2", "bloom", "mamba"])
@settings(max_examples=3, phases=(Phase.generate,))
@given(seed=st.integers(0, 2**32))
def test_rows_that_come_and_go_get_what_they_get_alone(architecture: str, seed: int) -> None:
    """A random schedule of arrivals, lengths, limits and withdrawals, on slots or in static batches, changes no answer."""
    slm, rng = model(architecture), random.Random(seed)
    decoder = slm.decoder(4)
    asked = [("x" * rng.choice((0, 3, 20, 90)) + str(rng.random()), rng.randint(1, 20)) for _ in range(12)]
    samplings = [Sampling(rng.choice((0.0, 0.0, 1.3)), 0.9, n) for n in range(len(asked))]
    rows = [
        Row(slm.tokens(ask(text)), limit, chosen, slm.ends)
        for (text, limit), chosen in zip(asked, samplings, strict=True)
    ]
    waiting, given_up = list(rows), set()
    with torch.inference_mode():
        while waiting or decoder.rows:
            room = 4 - len(decoder.rows) if decoder.can_join or not decoder.rows else 0
            count = rng.randint(0, room)
            for group in decoder.groups(waiting[:count]):
                decoder.add(group)
            waiting = waiting[count:]
            decoder.take_finished()
            if decoder.rows:
                decoder.step()
            if decoder.rows and rng.random() < 0.05:
                withdrawn = rng.choice(list(decoder.rows))
                if withdrawn.finish_reason is None:
                    withdrawn.finish_reason = "cancelled"
                    given_up.add(withdrawn)
            decoder.take_finished()
    for row, (text, limit), chosen in zip(rows, asked, samplings, strict=True):
        if row not in given_up:
            assert slm.generation(row).text == alone(slm, text, limit, chosen)


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_callers_in_many_threads_get_their_own_answers(architecture: str) -> None:
    """Forty requests from eight threads, more than the batch holds: each future has the answer to its own question."""
    slm = model(architecture)
    questions = [f"{'long ' * (n % 7)}question {n}" for n in range(40)]
    answers: dict[str, Generation] = {}
    with Engine(slm, 8) as engine:

        def caller(first: int) -> None:
            futures = {text: engine.submit(ask(text), 12) for text in questions[first::8]}
            answers.update({text: future.result(HANG_S) for text, future in futures.items()})

        threads = [threading.Thread(target=caller, args=(first,)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_S)
        stats = engine.stats()
    expected = slm.generate([ask(text) for text in questions], 12)
    for text, answer in zip(questions, expected, strict=True):
        assert answers[text].text == answer.text
        assert answers[text].mean_logprob == pytest.approx(answer.mean_logprob, abs=1e-4)
        assert answers[text].finish_reason == answer.finish_reason
    assert (stats.waiting, stats.active, stats.finished, stats.failed) == (0, 0, 40, 0)
    assert stats.prompt_tokens == sum(answer.prompt_tokens for answer in expected)
    assert stats.generated_tokens == sum(answer.completion_tokens for answer in expected)
    if slm.continuous:  # all in one batch at most half of the time would take more steps than this
        assert stats.steps < sum(answer.completion_tokens - 1 for answer in expected) / 2


def test_a_newcomer_joins_a_running_batch_and_leaves_first() -> None:
    """A short request submitted while a long one is decoded does not wait for its end, and neither notices the other."""
    slm, said = endless(), threading.Event()
    with Engine(slm, 2) as engine:
        long = engine.submit(ask("long"), 400, on_text=lambda _: said.set())
        assert said.wait(HANG_S)
        short = engine.submit(ask("short"), 3).result(HANG_S)
        assert not long.done()
        assert short.text == alone(slm, "short", 3)
        assert long.result(HANG_S).text == alone(slm, "long", 400)


def test_a_static_batch_lets_nobody_in() -> None:
    """On a model without slots a newcomer is answered after the batch, correctly."""
    slm = model("bloom", 0.0)
    order: list[str] = []
    with Engine(slm, 4) as engine:
        first = engine.submit(ask("long"), 60)
        first.add_done_callback(lambda _: order.append("first"))
        while engine.stats().steps == 0:
            time.sleep(0.001)
        second = engine.submit(ask("short"), 2)
        second.add_done_callback(lambda _: order.append("second"))
        assert second.result(HANG_S).text == alone(slm, "short", 2)
        assert first.result(HANG_S).text == alone(slm, "long", 60)
    assert order == ["first", "second"]


def _note(order: list[int], number: int, _: Future[Generation]) -> None:
    order.append(number)


def _tell(event: threading.Event, _: str) -> None:
    event.set()


def test_requests_are_served_in_their_order() -> None:
    """With one place, answers end in the order of submission, and waiting is in queue_s: the parts add up to the stay."""
    order: list[int] = []
    with Engine(endless(), 1) as engine:
        began_s = time.perf_counter()
        futures = [engine.submit(ask(str(n)), 20 - n) for n in range(6)]
        for n, future in enumerate(futures):
            future.add_done_callback(partial(_note, order, n))
        answers = [future.result(HANG_S) for future in futures]
        stay_s = time.perf_counter() - began_s
    assert order == sorted(order)
    queues = [answer.queue_s for answer in answers]
    assert queues == sorted(queues)
    last = answers[-1]
    assert last.queue_s >= sum(answer.decode_s for answer in answers[:-1])
    assert last.queue_s + last.prefill_s + last.decode_s <= stay_s


# ------------------------------------------------------------------------------------------------------- leaving early


def test_cancelling_frees_the_place() -> None:
    """A request cancelled while decoded leaves at once, one cancelled while waiting never starts, and others go on."""
    slm, said = endless(), threading.Event()
    with Engine(slm, 1) as engine:
        running = engine.submit(ask("running"), 900, on_text=lambda _: said.set())
        waiting, last = engine.submit(ask("waiting"), 900), engine.submit(ask("last"), 4)
        assert said.wait(HANG_S)
        assert engine.cancel(waiting)
        assert running.cancel()
        assert last.result(HANG_S).text == alone(slm, "last", 4)
        done, _ = wait([running, waiting], HANG_S)
        assert done == {running, waiting}
        for future in done:
            with pytest.raises(CancelledError):
                future.result(0)
        stats = engine.stats()
        assert not engine.cancel(last)
    assert (stats.cancelled, stats.finished, stats.active, stats.waiting) == (2, 1, 0, 0)
    assert stats.generated_tokens < 900


def test_deadlines_hold_while_waiting_and_while_decoding() -> None:
    """Both get a TimeoutError, with how far they came; the place is free for the next."""
    slm, said = endless(), threading.Event()
    with Engine(slm, 1) as engine:
        running = engine.submit(ask("running"), 1000, timeout_s=0.2, on_text=lambda _: said.set())
        waiting = engine.submit(ask("waiting"), 1000, timeout_s=0.01)
        with pytest.raises(TimeoutError, match=r"no answer within 0.01 s \(0 tokens so far\)"):
            waiting.result(HANG_S)
        with pytest.raises(TimeoutError, match=r"no answer within 0.2 s \(\d+ tokens so far\)"):
            running.result(HANG_S)
        assert engine.submit(ask("next"), 3, timeout_s=HANG_S).result(HANG_S).text == alone(slm, "next", 3)
        assert (engine.stats().timed_out, engine.stats().active) == (2, 0)


def test_the_pieces_of_a_stream_make_up_the_answer() -> None:
    """For answers full of broken and many-byte characters, several at once."""
    slm = model("qwen3")
    with Engine(slm, 4) as engine:
        streams = [engine.stream(ask(f"stream {n}"), 40) for n in range(6)]
        for n, stream in enumerate(streams):
            pieces = list(stream)
            assert "".join(pieces) == stream.future.result(HANG_S).text == alone(slm, f"stream {n}", 40)
            assert all(pieces)
            assert list(stream) == []
        assert max(stream.future.result().completion_tokens for stream in streams) > 10


def test_pieces_come_while_the_answer_is_made() -> None:
    """The first piece is there long before the last token."""
    with Engine(endless(), 1) as engine:
        stream = engine.stream(ask("tell me"), 900)
        assert next(iter(stream))
        assert not stream.future.done()
        stream.future.cancel()
        with pytest.raises(CancelledError):
            list(stream)


def test_a_listener_that_raises_ends_its_own_request_only() -> None:
    """What it raised is in its future; its batch mate is answered."""
    slm = endless()

    def refuse(piece: str) -> None:
        raise ConnectionError(f"hung up at {len(piece)}")

    with Engine(slm, 2) as engine:
        mate, refused = engine.submit(ask("mate"), 30), engine.submit(ask("refused"), 900, on_text=refuse)
        with pytest.raises(ConnectionError, match="hung up"):
            refused.result(HANG_S)
        assert mate.result(HANG_S).text == alone(slm, "mate", 30)
        assert (engine.stats().failed, engine.healthy()) == (1, True)


# ------------------------------------------------------------------------------------------------------------ failures


def poisoned(ids: torch.Tensor) -> None:
    """A model that cannot bear one token."""
    if (ids == 263).any():
        raise RuntimeError("poison")


class Poisoned(CausalLM):
    """The tiny model, with POISON tokenized as a token of its own."""

    def __init__(self, inner: CausalLM) -> None:
        self.__dict__.update(inner.__dict__)

    def tokens(self, messages: Any) -> list[int]:
        """As ever, but for POISON."""
        ids = super().tokens(messages)
        return [263, *ids] if POISON in messages[-1].content else ids


@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_a_prompt_the_model_fails_on_fails_alone(architecture: str) -> None:
    """Three requests read together, one raises in the model: the two others are answered as if it had not been there."""
    slm, gate = Poisoned(model(architecture)), Gate()
    with Engine(slm, 4) as engine:
        with hooked(slm, gate):  # collects the three behind a first one
            first = engine.submit(ask("first"), 2)
            assert gate.reached.wait(HANG_S)
            futures = [engine.submit(ask(text), 6) for text in ("good", f"bad{POISON}", "fine")]
            with hooked(slm, poisoned):
                gate.open.set()
                wait([first, *futures], HANG_S)
        assert [alone(slm, text, 6) for text in ("good", "fine")] == [futures[n].result(0).text for n in (0, 2)]
        with pytest.raises(ModelFailed, match="RuntimeError: poison") as caught:
            futures[1].result(0)
        assert caught.value.reason == "bad-answer"
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert engine.healthy()
        assert engine.submit(ask("after"), 5).result(HANG_S).text == alone(slm, "after", 5)


def test_a_failing_step_fails_its_batch_and_the_engine_lives_on() -> None:
    """Those in the step fail, those that wait are answered; a run of failures shows in healthy() until one step succeeds."""
    slm, broken = endless(), threading.Event()

    def hook(ids: torch.Tensor) -> None:
        if broken.is_set():
            raise RuntimeError("device lost")

    with Engine(slm, 1) as engine, hooked(slm, hook):
        for n in range(3):
            assert engine.healthy()
            said = threading.Event()
            running = engine.submit(ask(f"running {n}"), 900, on_text=partial(_tell, said))
            assert said.wait(HANG_S)
            broken.set()
            with pytest.raises(ModelFailed, match="device lost"):
                running.result(HANG_S)
            if n == 0:  # one success in between: only failures in a row count
                broken.clear()
                assert engine.submit(ask("between"), 4).result(HANG_S).text == alone(slm, "between", 4)
            else:
                with pytest.raises(ModelFailed, match="device lost"):
                    engine.submit(ask("still broken"), 4).result(HANG_S)
                broken.clear()
                if n == 1:
                    assert engine.healthy()
        broken.set()
        for _ in range(3):
            with pytest.raises(ModelFailed):
                engine.submit(ask("still broken"), 4).result(HANG_S)
        assert not engine.healthy()
        broken.clear()
        assert engine.submit(ask("healed"), 4).result(HANG_S).text == alone(slm, "healed", 4)
        assert engine.healthy()


def test_what_is_not_a_number_stays_in_its_row(tmp_path: Path) -> None:
    """A token with a broken embedding fails its request; a long-running mate and the next tenants of its slot notice nothing."""
    slm = CausalLM(ModelSpec(str(tiny_model(tmp_path, context_tokens=512)), device="cpu", threads=1))
    slm.ends = frozenset()
    slm.model.get_output_embeddings().weight[263] = 0.0  # never the most likely token
    long, questions = "y" * 120, [f"question {n}" for n in range(4)]
    expected = [alone(slm, long, 150), *(alone(slm, text, 20) for text in questions)]
    slm.model.get_input_embeddings().weight[263] = math.nan
    with Engine(Poisoned(slm), 2) as engine:
        futures, failing = [engine.submit(ask(long), 150)], []
        for text in questions:
            failing.append(engine.submit(ask(f"{'x' * 60}{POISON}"), 30))
            futures.append(engine.submit(ask(text), 20))
        assert [future.result(HANG_S).text for future in futures] == expected
        for future in failing:
            with pytest.raises(ModelFailed, match="not a number"):
                future.result(HANG_S)
        assert engine.healthy()


# -------------------------------------------------------------------------------------------------- limits and the end


def test_a_full_line_refuses_at_once() -> None:
    """One running and two waiting are let in, the fourth is not; what cannot be answered at all is refused before."""
    slm, gate = endless(), Gate()
    with Engine(slm, 1, max_waiting=2) as engine, hooked(slm, gate):
        admitted = [engine.submit(ask(str(n)), 2) for n in range(3)]
        with pytest.raises(EngineBusy, match="wait for model") as caught:
            engine.submit(ask("3"), 2)
        assert caught.value.reason == "overloaded"
        with pytest.raises(PromptTooLong):
            engine.submit(ask("x" * 2000), 2)
        with pytest.raises(InputError, match="max_tokens: found 0"):
            engine.submit(ask("x"), 0)
        gate.open.set()
        assert len(wait(admitted, HANG_S).done) == 3
        assert engine.submit(ask("again"), 2).result(HANG_S).completion_tokens == 2


@pytest.mark.parametrize("arguments", [(0,), (2, -1)])
def test_an_engine_needs_room(arguments: tuple[int, ...]) -> None:
    """No batch and a negative line are refused."""
    with pytest.raises(InputError, match="max_batch from 1, max_waiting from 0"):
        Engine(model(), *arguments)


def test_closing_finishes_what_it_has_time_for() -> None:
    """A generous close answers all, running and waiting; then nothing more is taken."""
    slm = endless()
    engine = Engine(slm, 2)
    futures = [engine.submit(ask(str(n)), 10) for n in range(5)]
    engine.close(HANG_S)
    assert [future.result(0).completion_tokens for future in futures] == [10] * 5
    for _ in range(2):
        with pytest.raises(EngineClosed, match="no longer served"):
            engine.submit(ask("late"), 1)
        engine.close()
    assert not engine.healthy()


def test_closing_at_once_fails_what_is_left() -> None:
    """Nobody is left waiting: every future is done when close returns."""
    engine = Engine(endless(), 1)
    futures = [engine.submit(ask(str(n)), 1000) for n in range(3)]
    engine.close(0.0)
    for future in futures:
        with pytest.raises(EngineClosed, match="closed before the answer was finished"):
            future.result(0)


@pytest.mark.slow
def test_closing_does_not_wait_for_a_stuck_model() -> None:
    """A forward pass that does not return: unhealthy, and close still fails the futures within its bound."""
    slm, gate = endless(), Gate()
    with hooked(slm, gate):
        engine = Engine(slm, 1, stall_s=0.05)
        stuck = engine.submit(ask("stuck"), 5)
        assert gate.reached.wait(HANG_S)
        time.sleep(0.1)
        assert not engine.healthy()
        engine.close(0.0)
        with pytest.raises(EngineClosed):
            stuck.result(0)
        gate.open.set()


def test_a_done_callback_may_submit_again() -> None:
    """Agents go on from where the answer arrives, in the engine's own thread, without a deadlock."""
    chain: list[str] = []
    finished = threading.Event()
    with Engine(model(), 2) as engine:

        def go_on(future: Future[Generation]) -> None:
            chain.append(future.result(0).text)
            if len(chain) < 4:
                engine.submit(ask(chain[-1]), 5).add_done_callback(go_on)
            else:
                finished.set()

        engine.submit(ask("start"), 5).add_done_callback(go_on)
        assert finished.wait(HANG_S)
    assert chain[1] == alone(model(), chain[0], 5)
