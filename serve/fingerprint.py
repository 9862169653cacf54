"""What tells two models of one name apart: a digest of the files that answers depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from serve.deployments import TierDeployment
from serve.generation import ModelSpec
from serve.pair import MODELS, pair_path
from workloads.errors import InputError

_FILES = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab*", "merges.txt", "spiece.model", "chat_template*",
)  # fmt: skip
"""Of a model's folder; a card or a log beside the weights changes no answer."""


def fingerprints(tiers: Mapping[str, TierDeployment]) -> dict[str, str]:
    """Model name -> SHA-256 over configuration, tokenizer, weights and chat template, for models in folders of this machine.

    A model of the hub or behind an API has none. Raises InputError for a file that cannot be read.
    """
    found = {}
    for name, tier in tiers.items():
        folder = _folder(tier.model) if isinstance(tier.model, ModelSpec) else None
        if isinstance(tier.model, ModelSpec) and folder is not None:
            found[name] = _digest(folder, tier.model.chat_template or "")
    return found


def _folder(spec: ModelSpec) -> Path | None:
    """Where the model's files are, if that is a folder of this machine."""
    shipped = spec.source.removeprefix("pair/")
    folder = pair_path(shipped) if shipped in MODELS and shipped != spec.source else Path(spec.source).expanduser()
    return folder if folder.is_dir() else None


def _digest(folder: Path, template: str) -> str:
    """Names and contents, in an order that depends on neither file system nor machine."""
    total = hashlib.sha256(template.encode())
    for path in _files(folder):
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256")
        except OSError as error:
            raise InputError(str(path), f"cannot be read ({error.strerror})", "Give a model's whole folder") from None
        total.update(path.name.encode() + b"\0" + content.digest())
    return f"sha256:{total.hexdigest()}"


def _files(folder: Path) -> Iterator[Path]:
    names = {path.name for pattern in _FILES for path in folder.glob(pattern) if path.is_file()}
    return (folder / name for name in sorted(names))
