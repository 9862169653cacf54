"""Any causal language model by Hugging Face name or path: batches of conversations in, answers with their measurements out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from serve.engine.chat import ChatFormat
from serve.engine.decoding import Decoder, Row, SlotDecoder
from serve.engine.errors import ModelFailed, PromptTooLong
from serve.engine.loading import load_model
from serve.engine.padded import PaddedDecoder
from serve.generation import Generation, ModelSpec, Sampling
from workloads.errors import InputError
from workloads.task import Message

_LOG = logging.getLogger(__name__)


class CausalLM:
    """A loaded model. InputError where the spec cannot be loaded.

    One thread at a time may generate; `tokens` may be called from any. `context_tokens` is the limit on prompt and answer.
    """

    def __init__(self, spec: ModelSpec) -> None:
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        loaded = load_model(spec)
        self.spec, self.model = spec, loaded.model
        self.chat = ChatFormat(loaded.tokenizer, spec.chat_template)
        self.ends, self.context_tokens = loaded.ends, loaded.context_tokens
        self.device = str(loaded.model.device)
        self._windows = _slot_windows(loaded.model)
        if not self._windows:
            _LOG.info("model %r does not fit slots: batches start and end together", spec.source)

    @property
    def continuous(self) -> bool:
        """Whether requests can join a running batch."""
        return bool(self._windows)

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's token ids; InputError for a conversation that cannot be rendered, PromptTooLong for one without room."""
        ids = self.chat.tokens(messages)
        if len(ids) >= self.context_tokens:
            raise PromptTooLong(len(ids), self.context_tokens)
        return ids

    def limit(self, prompt_tokens: int, max_tokens: int | None) -> int:
        """How many tokens an answer may have; InputError for a limit below 1."""
        asked: Any = self.spec.max_tokens if max_tokens is None else max_tokens
        if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
            raise InputError("max_tokens", f"found {max_tokens!r}", "Allowed: a whole number from 1")
        return min(asked, self.context_tokens - prompt_tokens)

    def decoder(self, max_rows: int) -> Decoder:
        """A new, empty batch of up to `max_rows` conversations on this model."""
        if self._windows:
            return SlotDecoder(self.model, self._windows, max_rows)
        return PaddedDecoder(self.model)

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        max_tokens: int | Sequence[int] | None = None,
        sampling: Sampling | Sequence[Sampling] | None = None,
    ) -> list[Generation]:
        """Answer all conversations in one batch, in their order.

        max_tokens and sampling are for all or for each; None is the spec's. A greedy answer does not depend on the other
        conversations, a sampled one only on its own seed. Raises PromptTooLong, InputError or ModelFailed for the whole batch.
        """
        count = len(conversations)
        limits, samplings = _each("max_tokens", max_tokens, count), _each("sampling", sampling, count)
        rows = []
        for messages, limit, chosen in zip(conversations, limits, samplings, strict=True):
            ids = self.tokens(messages)
            rows.append(Row(ids, self.limit(len(ids), limit), chosen or self.spec.sampling, self.ends))
        with torch.inference_mode():
            decoder = self.decoder(max(1, count))
            for group in decoder.groups(rows):
                decoder.add(group)
            decoder.take_finished()
            while decoder.rows:
                decoder.step()
                decoder.take_finished()
        return [self.generation(row) for row in rows]

    def generation(self, row: Row, text: str | None = None) -> Generation:
        """The measurements of a finished row, with its text unless that is known; ModelFailed for one that broke off."""
        if row.finish_reason not in ("stop", "length"):
            raise ModelFailed(f"model {self.spec.source!r} computed a probability that is not a number")
        return Generation(
            text=self.chat.decode(row.answer()) if text is None else text,
            prompt_tokens=len(row.prompt),
            completion_tokens=len(row.tokens),
            mean_logprob=row.logprob_sum / len(row.tokens),
            prefill_s=row.prefilled_s - row.started_s,
            decode_s=row.decoded_s - row.prefilled_s,
            finish_reason=row.finish_reason,
        )


def _each(name: str, value: Any, count: int) -> list[Any]:
    """One value per conversation."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise InputError(
            name, f"found {len(value)} values for {count} conversations", "Give one for all or one for each"
        )
    return list(value)


def _slot_windows(model: Any) -> list[int | None]:
    """The sliding window of each layer, None for full attention; empty where the model needs something else.

    First by what transformers' own cache would keep per layer, then by trial: a padded batch decoded on slots must come to
    what the model computes without any cache.
    """
    config = model.config.get_text_config(decoder=True)
    named = set(getattr(config, "layer_types", None) or ())
    if getattr(model, "_is_stateful", False) or named - {"full_attention", "sliding_attention"}:
        return []
    layers = DynamicCache(config=model.config).layers
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return []
    windows = [getattr(layer, "sliding_window", None) for layer in layers]
    if len(set(windows) - {None}) > 1 or getattr(config, "attention_chunk_size", None):
        return []
    try:
        return windows if _agrees(model, windows) else []
    except Exception as error:  # any architecture may take offence at a mask or a cache it did not make
        _LOG.debug("slots do not work for %s: %s", type(model).__name__, error)
        return []


def _agrees(model: Any, windows: list[int | None]) -> bool:
    top = model.get_input_embeddings().num_embeddings
    prompts = [[(7 * index + 3 * length) % top for index in range(length)] for length in (3, 9)]
    rows = [Row(prompt, 3, Sampling(), frozenset()) for prompt in prompts]
    with torch.inference_mode():
        decoder = SlotDecoder(model, windows, 2)
        decoder.add(rows)
        while decoder.rows:
            decoder.step()
            decoder.take_finished()
        return all(_same(model, row) for row in rows)


def _same(model: Any, row: Row) -> bool:
    """Whether the row's mean log-probability is the model's own, to the accuracy of its dtype."""
    ids = torch.tensor([[*row.prompt, *row.tokens]], device=model.device)
    logprobs = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1].float().log_softmax(dim=-1)
    expected = logprobs.gather(1, ids[0, len(row.prompt) :, None]).sum().item()
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    return bool(abs(expected - row.logprob_sum) <= tolerance * (1.0 + abs(expected)))
