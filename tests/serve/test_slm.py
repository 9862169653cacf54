"""Any causal language model: its answers against transformers' own, alone and in company."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from serve.engine.errors import ModelFailed, PromptTooLong
from serve.engine.loading import Int8Linear
from serve.engine.sampling import choose
from serve.generation import ModelSpec, Sampling
from serve.slm import CausalLM
from tests.serve.tiny_models import ARCHITECTURES, edit_json, tiny_model
from workloads.errors import InputError
from workloads.task import Message

ON_SLOTS = {"llama", "gpt2", "qwen2", "qwen3", "neox", "mistral", "gemma2"}
texts = st.text(st.characters(codec="utf-8"), max_size=25)


@cache
def model(architecture: str = "llama") -> CausalLM:
    """A tiny model, loaded once."""
    folder = tiny_model(Path(mkdtemp()) / architecture, architecture, context_tokens=192)
    return CausalLM(ModelSpec(str(folder), device="cpu", threads=1))


def ask(text: str) -> tuple[Message, ...]:
    """A conversation of one question."""
    return (Message("user", text),)


def reference(slm: CausalLM, messages: tuple[Message, ...], limit: int) -> tuple[str, int, str, float]:
    """(text, tokens, why it ended, mean log-probability) as transformers' own `generate` has them for this conversation alone."""
    ids = torch.tensor([slm.tokens(messages)])
    wide = slm.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, pad_token_id=0,
        eos_token_id=sorted(slm.ends), output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    tokens = wide.sequences[0, ids.shape[1] :].tolist()
    logprobs = [float(step[0].log_softmax(-1)[token]) for step, token in zip(wide.logits, tokens, strict=True)]
    ended = tokens[-1] in slm.ends
    text = slm.chat.decode(tokens[:-1] if ended else tokens)
    return text, len(tokens), "stop" if ended else "length", sum(logprobs) / len(tokens)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=3, phases=(Phase.generate,))  # shrinking would take minutes
@given(data=st.data())
def test_a_batch_answers_what_transformers_answers_one_by_one(architecture: str, data: st.DataObject) -> None:
    """Rotary, learned and no positions, grouped keys, windows and recurrence: no answer depends on its batch mates."""
    slm = model(architecture)
    asked = data.draw(st.lists(st.tuples(texts, st.integers(1, 16)), min_size=2, max_size=5))
    answers = slm.generate([ask(text) for text, _ in asked], [limit for _, limit in asked])
    for (text, limit), answer in zip(asked, answers, strict=True):
        expected = reference(slm, ask(text), limit)
        assert (answer.text, answer.completion_tokens, answer.finish_reason) == expected[:3]
        assert answer.mean_logprob == pytest.approx(expected[3], abs=1e-3)
        assert answer.prompt_tokens == len(slm.tokens(ask(text)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_joins_running_batches_where_slots_suit_it(architecture: str) -> None:
    """Slots are used where they agree with the model, and not for distance biases or recurrent layers."""
    assert model(architecture).continuous == (architecture in ON_SLOTS)


def test_seconds_and_reasons_are_measured() -> None:
    """An answer that ends its turn says stop and counts the closing token; one that is cut says length."""
    slm = model()
    answers = slm.generate([ask(f"question {n}") for n in range(12)], 150)
    reasons = {answer.finish_reason for answer in answers}
    assert "stop" in reasons
    for answer in answers:
        assert answer.prefill_s > 0
        assert (answer.decode_s > 0) == (answer.completion_tokens > 1)
        assert answer.mean_logprob < 0
    cut = slm.generate([ask("question 0")], answers[0].completion_tokens - 1)[0]
    assert cut.finish_reason == "length"
    assert answers[0].text.startswith(cut.text.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_a_measurement_can_ask_for_answers_of_a_known_length() -> None:
    """A model that ends its turn goes on to the limit where the end is to be ignored, with the same tokens up to there."""
    slm = model()
    asked = [ask(f"question {n}") for n in range(12)]
    ended = slm.generate(asked, 150)
    whole = slm.generate(asked, 150, Sampling(ignore_end=True))
    assert "stop" in {answer.finish_reason for answer in ended}
    for short, long in zip(ended, whole, strict=True):
        assert (long.completion_tokens, long.finish_reason) == (150, "length")
        assert long.text.startswith(short.text.rstrip("\N{REPLACEMENT CHARACTER}"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_answer_ends_where_the_context_does(architecture: str) -> None:
    """Prompt and answer fill the context to its last position, which learned positions would not survive to overstep."""
    slm = model(architecture)
    messages = ask("x" * 180)
    cut = [answer for answer in slm.generate([messages, ask("y" * 181)], 1000) if answer.finish_reason == "length"]
    assert all(answer.prompt_tokens + answer.completion_tokens == 192 for answer in cut)
    with pytest.raises(PromptTooLong, match=r"has 193 tokens, the model's context holds 192") as caught:
        slm.tokens(ask("x" * 190))
    assert (caught.value.reason, caught.value.prompt_tokens) == ("prompt-too-long", 193)


@settings(max_examples=6, phases=(Phase.generate,))
@given(mates=st.lists(texts, max_size=5), seed=st.integers(0, 2**40), top_p=st.sampled_from([0.3, 0.9, 1.0]))
def test_a_sampled_answer_depends_on_its_own_seed_alone(mates: list[str], seed: int, top_p: float) -> None:
    """The same seed gives the same answer in any company, greedy or sampled."""
    slm = model()
    sampling = Sampling(1.2, top_p, seed)
    alone = slm.generate([ask("roll the dice")], 12, sampling)[0]
    others = [Sampling(0.7 * (n % 3), 0.8, n) for n in range(len(mates))]
    together = slm.generate([*map(ask, mates), ask("roll the dice")], 12, [*others, sampling])[-1]
    assert together.text == alone.text
    assert together.mean_logprob == pytest.approx(alone.mean_logprob, abs=1e-4)


def test_different_seeds_give_different_answers() -> None:
    """A seed matters: fifty of them find many answers at high temperature, and one at a tiny nucleus."""
    slm = model("qwen3")
    spread = {slm.generate([ask("roll")], 8, Sampling(1.5, 1.0, seed))[0].text for seed in range(20)}
    narrow = {slm.generate([ask("roll")], 8, Sampling(1.5, 1e-6, seed))[0].text for seed in range(5)}
    assert len(spread) > 10
    assert narrow == {slm.generate([ask("roll")], 8)[0].text}


@settings(max_examples=40)
@given(
    logits=st.lists(st.floats(-8, 8), min_size=1, max_size=12),
    temperature=st.floats(0.1, 2.0),
    top_p=st.floats(0.01, 1.0),
)
def test_draws_follow_the_nucleus_probabilities(logits: list[float], temperature: float, top_p: float) -> None:
    """Over evenly spread draws every token comes up as often as its share of the nucleus says; the log-probability is the model's."""
    count = 400
    row = torch.tensor([logits], dtype=torch.float32)
    draws = [(index + 0.5) / count for index in range(count)]
    chosen, found = choose(row.expand(count, -1), [Sampling(temperature, top_p)] * count, draws)
    tokens, logprobs = chosen.tolist(), found.tolist()
    weights = (row[0].double() / temperature).softmax(-1).tolist()
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    kept, above = [], 0.0
    for token in order:
        assume(abs(above - top_p) > 1e-5)  # a tie may go either way
        if above < top_p:
            kept.append(token)
        above += weights[token]
    total = sum(weights[token] for token in kept)
    for token in kept:
        assert abs(tokens.count(token) / count - weights[token] / total) <= 2.5 / count + 1e-3
    log_softmax = row[0].log_softmax(-1)
    assert logprobs == pytest.approx([float(log_softmax[token]) for token in tokens], abs=1e-5)


def test_int8_halves_the_weights_and_keeps_the_answers_close(tmp_path: Path) -> None:
    """Weight-only quantisation: nearly the same probabilities, independent of the batch, at a fraction of the bytes."""
    for architecture, layers in (("llama", 14), ("gpt2", 8)):
        folder = str(tiny_model(tmp_path / architecture, architecture))
        plain = CausalLM(ModelSpec(folder, device="cpu"))
        small = CausalLM(ModelSpec(folder, device="cpu", quantisation="int8"))
        quantised = [part for part in small.model.modules() if isinstance(part, Int8Linear)]
        assert len(quantised) == layers
        assert small.continuous
        ids = torch.tensor([small.tokens(ask("how close?"))])
        exact, rounded = (slm.model(ids).logits.log_softmax(-1) for slm in (plain, small))
        assert 0 < (exact - rounded).abs().mean() < 0.1 * exact.std()
        together = small.generate([ask("a"), ask("how close?")], 10)[1]
        assert together.text == small.generate([ask("how close?")], 10)[0].text


def test_dtype_is_what_was_asked_or_stored(tmp_path: Path) -> None:
    """Auto keeps what is stored; bfloat16 generates, in slots as well."""
    folder = str(tiny_model(tmp_path, dtype="bfloat16"))
    assert CausalLM(ModelSpec(folder, device="cpu")).model.dtype == torch.bfloat16
    slm = CausalLM(ModelSpec(folder, device="cpu", dtype="float32", attention="eager"))
    assert slm.model.dtype == torch.float32
    assert slm.model.config._attn_implementation == "eager"
    stored = CausalLM(ModelSpec(folder, device="cpu"))
    assert stored.continuous
    assert stored.generate([ask("hi"), ask("longer than hi")], 5)[0].completion_tokens <= 5


def test_weights_that_are_no_numbers_fail_the_call(tmp_path: Path) -> None:
    """Not-a-number probabilities are an error with the model's name, not an answer."""
    slm = CausalLM(ModelSpec(str(tiny_model(tmp_path)), device="cpu"))
    slm.model.get_output_embeddings().weight.fill_(math.nan)
    with pytest.raises(ModelFailed, match="computed a probability that is not a number"):
        slm.generate([ask("hi")], 5)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"max_tokens": 0}, "max_tokens: found 0. Allowed: a whole number from 1"),
        ({"max_tokens": [1, 2]}, "max_tokens: found 2 values for 1 conversations"),
        ({"sampling": [Sampling()] * 3}, "sampling: found 3 values for 1 conversations"),
    ],
)
def test_limits_are_checked(arguments: dict[str, Any], problem: str) -> None:
    """A limit that cannot be, or not one per conversation."""
    with pytest.raises(InputError, match=problem):
        model().generate([ask("hi")], **arguments)


def test_stretched_positions_stay_within_what_was_trained(tmp_path: Path) -> None:
    """Rotary scaling that changes with the longest row of a batch would let one answer change another's; asking for more is allowed."""
    folder = tiny_model(tmp_path)
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    edit_json(folder / "config.json", lambda fields: fields.update(rope_parameters=rope))
    assert CausalLM(ModelSpec(str(folder), device="cpu")).context_tokens == 64
    assert CausalLM(ModelSpec(str(folder), device="cpu", context_tokens=128)).context_tokens == 128
