"""Loading a causal language model and its tokenizer: whatever is wrong with them is one InputError, before the first request."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from serve.engine.source import locate
from serve.generation import ModelSpec
from workloads.errors import InputError

_LOG = logging.getLogger(__name__)
_NO_GPU = "Use device: cpu (in a scenario with num_gpus: 0), or a driver and a torch build for the GPU"
_STRETCHED = ("dynamic", "longrope")
"""Rotary embeddings that change for the whole batch once one row is longer than the model was trained for."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to answer. `ends` are the tokens that end a turn, `context_tokens` the limit on prompt and answer."""

    model: Any
    tokenizer: Any
    ends: frozenset[int]
    context_tokens: int


def load_model(spec: ModelSpec) -> LoadedModel:
    """Load what the spec names; raises InputError for everything that cannot be loaded."""
    place = f"model {spec.source!r}"
    device = _device(spec)
    _check_quantisation(spec, device)
    transformers_logging.disable_progress_bar()
    source, local = locate(spec)
    options: dict[str, Any] = {"revision": spec.revision, "local_files_only": local, "trust_remote_code": False}
    config = _config(place, source, options)
    tokenizer = _tokenizer(place, source, options)
    model = _weights(place, source, config, spec, device, options)
    ends = _ends(place, model, tokenizer)
    _check_tokenizer(place, tokenizer, model)
    return LoadedModel(model, tokenizer, ends, _context_tokens(place, spec, model.config, tokenizer))


def _device(spec: ModelSpec) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if spec.device == "auto":
        return torch.device("cuda:0" if count else "cpu")
    device = torch.device("cuda:0" if spec.device == "cuda" else spec.device)
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"{count} GPUs" if count else "no GPU that torch can use"
        raise InputError("model device", f"{spec.device!r} asked for, found {found}", _NO_GPU)
    return device


def _check_quantisation(spec: ModelSpec, device: torch.device) -> None:
    place = "model quantisation"
    if spec.quantisation == "int8" and device.type != "cpu":
        raise InputError(place, "int8 is for the CPU", "On a GPU use bnb-8bit or bnb-4bit")
    if spec.quantisation not in ("bnb-8bit", "bnb-4bit"):
        return
    if device.type != "cuda":
        raise InputError(place, f"{spec.quantisation} needs a GPU, found {device.type}", "On the CPU use int8")
    absent = [name for name in ("bitsandbytes", "accelerate") if importlib.util.find_spec(name) is None]
    if absent:
        remedy = f"Install it: pip install {' '.join(absent)}"
        raise InputError(place, f"{spec.quantisation} needs {' and '.join(absent)}", remedy)


def _config(place: str, source: str, options: dict[str, Any]) -> Any:
    remedy = "Name a decoder such as Llama, Qwen, Gemma or GPT-2 that transformers knows"
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(place, f"config.json cannot be used ({_first_line(error)})", remedy) from None
    names = getattr(config, "architectures", None) or []
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if getattr(config, "is_encoder_decoder", False) or (names and not known.intersection(names)):
        found = ", ".join(names) or config.model_type
        raise InputError(place, f"{found} is not a causal language model", remedy)
    return config


def _tokenizer(place: str, source: str, options: dict[str, Any]) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source, **options)
    except Exception as error:  # the tokenizer library raises bare Exception
        remedy = "Save the model's own tokenizer beside it (tokenizer.json, tokenizer_config.json)"
        raise InputError(place, f"its tokenizer cannot be read ({_first_line(error)})", remedy) from None


def _weights(
    place: str, source: str, config: Any, spec: ModelSpec, device: torch.device, options: dict[str, Any]
) -> Any:
    more: dict[str, Any] = {"dtype": spec.dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)}
    if spec.attention is not None:
        more["attn_implementation"] = spec.attention
    if spec.quantisation in ("bnb-8bit", "bnb-4bit"):
        from transformers import BitsAndBytesConfig

        eight = spec.quantisation == "bnb-8bit"
        more["quantization_config"] = BitsAndBytesConfig(load_in_8bit=eight, load_in_4bit=not eight)
        more["device_map"] = {"": device}
    remedy = "Save or download the model again; config and weights must belong together"
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source, config=config, use_safetensors=True, output_loading_info=True, **more, **options
        )
        if "device_map" not in more:
            model = model.to(device)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError, ImportError) as error:
        raise InputError(place, f"its weights cannot be loaded ({_first_line(error)})", remedy) from None
    missing = sorted(found.get("missing_keys") or [])
    if missing:  # transformers would go on with random numbers
        raise InputError(place, f"its weights lack {len(missing)} tensors such as {missing[0]}", remedy)
    model.eval().requires_grad_(requires_grad=False)
    if spec.quantisation == "int8":
        quantise_int8(model)
    return model


def _ends(place: str, model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a turn: those of the generation settings, or else of the config, and the tokenizer's own."""
    settings = getattr(model, "generation_config", None)
    ends = _tokens(getattr(settings, "eos_token_id", None)) or _tokens(model.config.eos_token_id)
    ends |= _tokens(tokenizer.eos_token_id)
    if not ends:
        remedy = "Set eos_token in tokenizer_config.json"
        raise InputError(place, "neither tokenizer nor config names an end-of-turn token", remedy)
    return ends


def _tokens(entry: Any) -> frozenset[int]:
    """A setting that holds no token, one, or several."""
    return frozenset() if entry is None else frozenset(entry if isinstance(entry, list) else [entry])


def _check_tokenizer(place: str, tokenizer: Any, model: Any) -> None:
    """Raise InputError for a tokenizer of another model, whose prompts this one cannot read even where all its tokens exist."""
    remedy = "Use the tokenizer the model was trained with"
    known, embedded = max(tokenizer.get_vocab().values(), default=-1) + 1, model.get_input_embeddings().num_embeddings
    if known == 0 or known > embedded:
        raise InputError(place, f"its tokenizer has {known} tokens, the model's embedding {embedded}", remedy)
    settings, end = getattr(model, "generation_config", None), tokenizer.eos_token_id
    ends = _tokens(getattr(settings, "eos_token_id", None)) | _tokens(model.config.eos_token_id)
    if end is not None and ends and end not in ends:
        problem = (
            f"its tokenizer ends a turn with {tokenizer.eos_token!r}, token {end}, the model with "
            f"{', '.join(map(str, sorted(ends)))}"
        )
        raise InputError(place, problem, f"{remedy}; if that is the one, add {end} to generation_config.json")


def _context_tokens(place: str, spec: ModelSpec, config: Any, tokenizer: Any) -> int:
    text = config.get_text_config(decoder=True)
    named = (getattr(text, name, None) for name in ("max_position_embeddings", "seq_length"))
    limit = next(filter(None, named), None) or getattr(tokenizer, "model_max_length", None) or 2**20
    limit = min(int(limit), 2**20)  # tokenizers without a limit say 1e30
    rope = getattr(text, "rope_parameters", None) or {}
    trained = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
    if rope.get("rope_type") in _STRETCHED and trained and spec.context_tokens is None:
        _LOG.info(
            "%s: answers stay within the %d tokens it was trained for; context_tokens allows more", place, trained
        )
        return min(limit, int(trained))
    if spec.context_tokens is not None and spec.context_tokens > limit:
        raise InputError("context_tokens", f"found {spec.context_tokens}", f"{place} holds {limit}")
    return spec.context_tokens or limit


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights and one scale per output: a quarter of float32's memory, read out at every use.

    Activations stay as they are, so a row's result does not depend on the rest of its batch.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """weight: [outputs, inputs]."""
        super().__init__()
        scale = weight.abs().amax(dim=1).clamp_(min=1e-12) / 127.0
        self.register_buffer("weight", (weight / scale[:, None]).round_().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs: [..., inputs]; returns [..., outputs]."""
        outputs = nn.functional.linear(inputs, self.weight.to(inputs.dtype)) * self.scale
        return outputs if self.bias is None else outputs + self.bias


def quantise_int8(model: nn.Module) -> int:
    """Replace the linear layers inside the model (not its output layer, often tied to the embedding); returns how many."""
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is output or not isinstance(child, (nn.Linear, Conv1D)):
                continue
            weight = child.weight.T if isinstance(child, Conv1D) else child.weight
            setattr(parent, name, Int8Linear(weight.detach(), child.bias))
            count += 1
    return count


def _first_line(error: BaseException) -> str:
    """What an exception says, short enough for a message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
