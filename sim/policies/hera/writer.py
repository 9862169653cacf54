"""A small decoder, fine-tuned by a low-rank adapter, that continues a conversation: HERA's SP_SLM, SP_LLM and SD."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sim.policies.computed_store import Remembered
from sim.policies.hera.adapters import (
    OnStep,
    load_base,
    minimise,
    save_adapter,
    weights_store,
    with_adapter,
)
from sim.policies.threads import one_thread
from workloads.task import Message

BATCH = 64


class Writer:
    """A decoder that continues a conversation with a text. `folder`: where a trained one lies."""

    def __init__(self, decoder: str, folder: Path | None = None, seed: int = 0, max_tokens: int = 80) -> None:
        import torch

        torch.manual_seed(seed)
        self._base = decoder
        base, self._tokenizer = load_base("AutoModelForCausalLM", decoder)
        self._tokenizer.padding_side = "left"
        self.model = with_adapter(base, folder)
        self._max_tokens = max_tokens
        store = weights_store(decoder, folder, f"{max_tokens} tokens")
        self._known = Remembered[tuple[Message, ...], str](store, str.encode, bytes.decode)
        self._merged = False

    def fit(
        self, rows: Sequence[tuple[tuple[Message, ...], str]], epochs: int, rate: float, seed: int, on_step: OnStep
    ) -> list[float]:
        """Minimise the cross-entropy of the texts' tokens with AdamW; returns the mean loss of each epoch."""
        self._apart()
        encoded = [self._encoded(messages, text) for messages, text in rows]
        parameters = list(self.model.parameters())
        self.model.train()
        losses = minimise(parameters, encoded, lambda row: len(row[0]), BATCH, self._loss, epochs, rate, seed, on_step)
        self.model.eval()
        self._known.forget()
        return losses

    def _apart(self) -> None:
        """The adapter beside its base again, to be trained or saved."""
        if self._merged:
            self.model.unmerge_adapter()
            self._merged = False

    def _prompt(self, messages: tuple[Message, ...]) -> list[int]:
        chat = [{"role": message.role, "content": message.content} for message in messages]
        text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _encoded(self, messages: tuple[Message, ...], text: str) -> tuple[list[int], int]:
        """Ids of conversation and text, and how many of them are the conversation's."""
        prompt = self._prompt(messages)
        written = self._tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        return [*prompt, *written, self._tokenizer.eos_token_id], len(prompt)

    def _loss(self, batch: Sequence[tuple[list[int], int]]) -> Any:
        import torch

        longest = max(len(ids) for ids, _ in batch)
        ids = torch.full((len(batch), longest), self._tokenizer.pad_token_id)
        labels, mask = torch.full((len(batch), longest), -100), torch.zeros((len(batch), longest), dtype=torch.long)
        for row, (tokens, given) in enumerate(batch):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
            labels[row, given : len(tokens)] = torch.tensor(tokens[given:])
        return self.model(input_ids=ids, attention_mask=mask, labels=labels).loss

    def know(self, conversations: Sequence[tuple[Message, ...]]) -> None:
        """Write for many conversations at once, which is many times as fast as one by one."""
        asked = {messages: self._prompt(messages) for messages in conversations if messages not in self._known}
        self._known.know(
            {messages: str(prompt) for messages, prompt in asked.items()},
            lambda part: self._generated([asked[messages] for messages in part]), BATCH,
            order=lambda messages: (len(asked[messages]), messages),
        )  # fmt: skip

    def _generated(self, prompts: list[list[int]]) -> list[str]:
        import torch

        if not self._merged:  # a matrix less for each layer of a small model: half the time
            self.model.merge_adapter()
            self._merged = True
        batch = self._tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        with one_thread(), torch.inference_mode():
            found = self.model.generate(
                **batch, max_new_tokens=self._max_tokens, do_sample=False, pad_token_id=self._tokenizer.pad_token_id
            )
        texts = self._tokenizer.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def write(self, messages: tuple[Message, ...]) -> str:
        """Write after this conversation whether or not that is known."""
        return self._generated([self._prompt(messages)])[0]

    def __call__(self, messages: tuple[Message, ...]) -> str:
        """What is written after this conversation."""
        self.know([messages])
        return self._known[messages]

    def save(self, folder: Path) -> None:
        """The adapter."""
        self._apart()
        save_adapter(self.model, self._base, folder)
