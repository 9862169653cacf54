"""Where a model's files are: a folder, this machine's Hugging Face cache, or the hub, which is never waited for in vain."""

from __future__ import annotations

import json
import re
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from serve.generation import ModelSpec
from workloads.errors import InputError, suggest

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_REACH_S = 5.0
_FIRST_FILE_S = 30.0
_HEADER_BYTES = 100_000_000
"""The most that the safetensors format allows for its header."""

Answer = TypeVar("Answer")


def locate(spec: ModelSpec) -> tuple[str, bool]:
    """(folder or hub name, whether to stay on this machine); InputError where there is nothing to load."""
    folder = Path(spec.source).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder), True
    if folder.exists() or not _HUB_NAME.fullmatch(spec.source):
        raise InputError(f"model {spec.source!r}", "not a folder and not a Hugging Face name", _near(folder))
    return spec.source, _on_hub(spec, _near(folder))


def _near(folder: Path) -> str:
    """What lies beside a folder that is not there."""
    parent = folder.parent
    names = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    names = [name for name in names if not name.startswith(".")]
    if not names or len(names) > 40:
        return "Give a folder with config.json, or a Hugging Face name such as owner/name"
    return f"{suggest(folder.name, names)} (the folders of {parent})"


def _check_folder(folder: Path) -> None:
    place = f"model {str(folder)!r}"
    if not (folder / "config.json").is_file():
        raise InputError(place, "has no config.json", "Give the folder that `save_pretrained` wrote")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        other = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
        found = f"only {', '.join(sorted(other)[:3])}, which may run code when loaded" if other else "no weights"
        raise InputError(place, f"holds {found}", "Isthmus loads safetensors: model.safetensors or its shards")
    for path in weights:
        _check_safetensors(path)


def _check_safetensors(path: Path) -> None:
    """The file is as long as its header says: a broken copy is found before anything is loaded."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if not 0 < length <= min(_HEADER_BYTES, size - 8):
                raise ValueError(f"its header would be {length} bytes of {size}")
            header = json.loads(file.read(length))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        if size != 8 + length + end:
            raise ValueError(f"it has {size} bytes where its header promises {8 + length + end}")
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error) as error:
        problem = f"not a whole safetensors file ({getattr(error, 'strerror', None) or error})"
        raise InputError(str(path), problem, "Copy or download it again") from None


def _on_hub(spec: ModelSpec, near: str) -> bool:
    """Whether to use only what is cached; InputError unless the model's config is at hand, here or on the hub."""
    from huggingface_hub import constants, errors, hf_hub_download

    place = f"model {spec.source!r}"
    local = spec.local_files_only or constants.is_offline_mode()
    why = "the hub is not asked" if local else "the hub does not answer"
    local = local or not _reachable(constants.ENDPOINT)
    try:
        _within(
            _FIRST_FILE_S,
            lambda: hf_hub_download(spec.source, "config.json", revision=spec.revision, local_files_only=local),
        )
    except errors.GatedRepoError:
        raise InputError(place, "is gated on the hub", "Accept its terms there and set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise InputError(
            place, f"has no revision {spec.revision!r} on the hub", "Name a branch, tag or commit"
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(place, "neither a folder here nor a model on the hub (or a private one)", near) from None
    except (errors.LocalEntryNotFoundError, TimeoutError):
        raise InputError(place, f"neither a folder here nor in the Hugging Face cache, and {why}", near) from None
    except errors.EntryNotFoundError:
        raise InputError(place, "has no config.json on the hub", "Name a model for transformers") from None
    except (OSError, ValueError) as error:
        raise InputError(place, f"cannot be fetched from the hub ({type(error).__name__})", near) from None
    return local


def _reachable(endpoint: str) -> bool:
    """One short try: the hub's own client would repeat it for half a minute."""
    from huggingface_hub import get_session

    try:
        _within(2 * _REACH_S, lambda: get_session().head(endpoint, timeout=_REACH_S))
    except Exception:
        return False
    return True


def _within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """The call's answer, or TimeoutError: name look-ups have no time limit of their own."""
    answers: list[Answer] = []
    failures: list[Exception] = []

    def attempt() -> None:
        try:
            answers.append(call())
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=attempt, daemon=True, name="hub")
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not answers:
        raise TimeoutError
    return answers[0]
