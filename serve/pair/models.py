"""The shapes of the pair: two Llama-style decoders over the same small vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from serve.pair.tokenizer import END, PAD, pieces
from workloads.tasks.problem import Style

MAX_POSITIONS = 512
ROPE_THETA = 100.0
"""Far below the usual 10,000: conversations are short, and what matters is which of a few words back."""


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
    "slm": Recipe("fine", layers=2, width=64, heads=4, inner=160, steps=3000),
    "llm": Recipe("coarse", layers=4, width=128, heads=4, inner=352, steps=4500, batch=32, rate=2e-3, muon_rate=0.01),
}


def new_model(recipe: Recipe, seed: int) -> Any:
    """A LlamaForCausalLM with fresh weights drawn from `seed`, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    table = pieces()
    config = LlamaConfig(
        vocab_size=len(table),
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=table[END],
        pad_token_id=table[PAD],
        initializer_range=recipe.width**-0.5,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)
