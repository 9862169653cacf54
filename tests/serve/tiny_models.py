"""Random tiny causal language models with a tokenizer, as Hugging Face folders: real in every part but what they say.

    folder = tiny_model(tmp_path / "slm", "llama")
    CausalLM(ModelSpec(str(folder)))

A folder takes about 0.1 s to make. The tokenizer works on bytes, so it reads any text; the weights are drawn wide enough for
greedy answers that differ from prompt to prompt. `end_share` of the vocabulary ends a turn, which makes answers of different
lengths: about 1 / end_share tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ARCHITECTURES = ("llama", "gpt2", "qwen2", "qwen3", "neox", "mistral", "gemma2", "bloom", "mamba")
"""Rotary, learned positions, grouped keys with bias, normed queries, parallel blocks, sliding windows (mistral, gemma2), ALiBi, no
attention at all (mamba)."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]


def tiny_model(
    folder: Path, architecture: str = "llama", *, seed: int = 0, width: int = 32, layers: int = 2, context_tokens: int = 256,
    end_share: float = 0.03, chat_template: str | None = CHAT_TEMPLATE, dtype: str = "float32",
) -> Path:  # fmt: skip
    """Write config, weights and tokenizer of a random model into `folder` (made if absent) and return it."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = (
        tiny_tokenizer(folder, chat_template) + 2
    )  # some tokenizer classes add a token of their own when loaded
    config = _CONFIGS[architecture](vocabulary, width, layers, context_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).eval()
    model.config.pad_token_id, model.config.eos_token_id = 0, 1
    ends = [1, *range(len(_SPECIAL), len(_SPECIAL) + round(end_share * vocabulary))]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=0)
    model.save_pretrained(folder)
    return folder


def tiny_encoder(folder: Path, seed: int = 0) -> Path:
    """Write a random BERT of 13 thousand weights with the same tokenizer into `folder` (made if absent) and return it."""
    import torch
    from transformers import AutoModel, BertConfig

    folder.mkdir(parents=True, exist_ok=True)
    config = BertConfig(
        vocab_size=tiny_tokenizer(folder), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=256, initializer_range=0.4,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModel.from_config(config).save_pretrained(folder)
    return folder


def tiny_tokenizer(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> int:
    """Write a byte-level tokenizer into `folder`; returns the size of its vocabulary (262)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_SPECIAL[0], eos_token=_SPECIAL[1])
    if chat_template is not None:
        fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return len(vocabulary)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file of a model folder in place, to spoil it."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    change(fields)
    path.write_text(json.dumps(fields), encoding="utf-8")


def _llama(vocabulary: int, width: int, layers: int, context: int, **fields: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**_decoder(vocabulary, width, layers, context), **fields)


def _decoder(vocabulary: int, width: int, layers: int, context: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": context, "initializer_range": 0.4,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip


def _qwen2(*sizes: int) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**_decoder(*sizes))


def _qwen3(*sizes: int) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**_decoder(*sizes), head_dim=8)


def _mistral(*sizes: int) -> Any:
    from transformers import MistralConfig

    return MistralConfig(**_decoder(*sizes), sliding_window=12)


def _gemma2(*sizes: int) -> Any:
    from transformers import Gemma2Config

    return Gemma2Config(**_decoder(*sizes), head_dim=8, sliding_window=12)


def _gpt2(vocabulary: int, width: int, layers: int, context: int) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=4, n_positions=context, initializer_range=0.4,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip


def _neox(vocabulary: int, width: int, layers: int, context: int) -> Any:
    from transformers import GPTNeoXConfig

    fields = _decoder(vocabulary, width, layers, context)
    del fields["num_key_value_heads"]
    return GPTNeoXConfig(**fields)


def _bloom(vocabulary: int, width: int, layers: int, context: int) -> Any:
    from transformers import BloomConfig

    return BloomConfig(
        vocab_size=vocabulary, hidden_size=width, n_layer=layers, n_head=4, initializer_range=0.4, seq_length=context,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip


def _mamba(vocabulary: int, width: int, layers: int, context: int) -> Any:
    from transformers import MambaConfig

    del context
    return MambaConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, state_size=8, initializer_range=0.4,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip


_CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": _llama, "gpt2": _gpt2, "qwen2": _qwen2, "qwen3": _qwen3, "neox": _neox, "mistral": _mistral, "gemma2": _gemma2,
    "bloom": _bloom, "mamba": _mamba,
}  # fmt: skip
