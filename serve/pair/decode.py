"""Greedy decoding of many conversations at once, for evaluation: left-padded batches with a KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from serve.pair.tokenizer import END, PAD, encode, encode_message, pieces
from workloads.errors import InputError
from workloads.task import Message

_BATCH = 128


class GreedyDecoder:
    """One of the pair's models, loaded from its folder of safetensors onto the CPU."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        if not (folder / "model.safetensors").exists():
            raise InputError(str(folder), "no model.safetensors", "Train it with `python -m serve.pair.train`")
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32
        ).eval()
        self._words = {number: piece for piece, number in pieces().items()}

    def complete(self, conversations: Sequence[tuple[Message, ...]], max_tokens: int) -> list[str]:
        """The next message of each conversation."""
        prompts = [
            [i for m in messages for i in encode_message(m)] + encode("<assistant>") for messages in conversations
        ]
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        texts = [""] * len(prompts)
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            for number, ids in zip(chosen, self._decode([prompts[n] for n in chosen], max_tokens), strict=True):
                texts[number] = self._text(ids)
        return texts

    @torch.inference_mode()
    def _decode(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        longest, end = max(map(len, prompts)), pieces()[END]
        ids = torch.full((len(prompts), longest), pieces()[PAD])
        mask = torch.zeros((len(prompts), longest), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        cache, positions = None, (mask.cumsum(1) - 1).clamp_min(0)
        done, found = torch.zeros(len(prompts), dtype=torch.bool), []
        for _ in range(max_tokens):
            out = self._model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            cache, best = out.past_key_values, out.logits[:, -1].argmax(-1)
            best = torch.where(done, end, best)
            found.append(best)
            done |= best == end
            if bool(done.all()):
                break
            ids, positions = best[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones((len(prompts), 1), dtype=torch.long)], 1)
        rows: list[list[int]] = torch.stack(found, 1).tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]

    def _text(self, ids: list[int]) -> str:
        return " ".join(self._words[i] for i in ids).replace(" ##", "")
