"""The shapes of the pair: two Qwen3-style decoders over the same small vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serve.pair.tokenizer import END, PAD, pieces
from workloads.tasks.problem import Style

MAX_POSITIONS = 512
ROPE_THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model's shape and how it is trained; `rate` is AdamW's peak, `muon_rate` Muon's."""

    style: Style
    layers: int
    width: int
    heads: int
    inner: int
    steps: int
    batch: int = 64
    rate: float = 3e-3
    muon_rate: float = 0.02


RECIPES = {
    "slm": Recipe("fine", layers=2, width=48, heads=4, inner=128, steps=4000),
    "llm": Recipe("coarse", layers=4, width=64, heads=4, inner=176, steps=9000, batch=32),
}


def new_model(recipe: Recipe, seed: int) -> Any:
    """A Qwen3ForCausalLM with fresh weights drawn from `seed`, in float32: Llama with normalised queries and keys."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    table = pieces()
    config = Qwen3Config(
        vocab_size=len(table),
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.width // recipe.heads,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=table[END],
        pad_token_id=table[PAD],
        initializer_range=recipe.width**-0.5,
        attn_implementation="eager",
    )
    return Qwen3ForCausalLM(config)
