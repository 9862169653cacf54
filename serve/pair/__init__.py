"""The embedded pair: two small models that ship with the project, and what trained them."""

from __future__ import annotations

from pathlib import Path

from workloads.errors import InputError, suggest

MODELS = ("slm", "llm")
WEIGHTS = Path(__file__).parent / "weights"


def pair_path(model: str) -> Path:
    """Folder of the embedded model `slm` or `llm`, in the layout of Hugging Face; raises InputError for another name."""
    if model not in MODELS:
        raise InputError("embedded pair", f"no model {model!r}", suggest(model, MODELS))
    return WEIGHTS / model
