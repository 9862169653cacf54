"""What models computed, on disk: the same numbers, and never a reason to fail."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sim.policies.computed_store import VARIABLE, ComputedStore, cache_folder
from sim.policies.features import PACKAGED_ENCODER, TextEncoder

TEXTS = ["Ben has 3 apples .", "Ann is Ben 's aunt .", "3 + 4 = ?"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def _silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: TextEncoder, texts: list[str]) -> None:
        raise AssertionError(f"computed {texts}")

    monkeypatch.setattr(TextEncoder, "_run", never)


@pytest.mark.parametrize("method", ["encode", "encode_together"])
def test_a_second_process_reads_the_very_numbers_of_the_first(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, in whatever order they are asked."""
    computed = getattr(TextEncoder(PACKAGED_ENCODER), method)(TEXTS)
    _silent(monkeypatch)
    again = getattr(TextEncoder(PACKAGED_ENCODER), method)(TEXTS[::-1])[::-1]
    assert again.tobytes() == computed.tobytes()
    assert np.allclose(np.linalg.norm(again, axis=1), 1.0, atol=1e-6)


def test_texts_encoded_together_are_not_taken_for_ones_encoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their last digits differ."""
    TextEncoder(PACKAGED_ENCODER).encode_together(TEXTS)
    _silent(monkeypatch)
    with pytest.raises(AssertionError, match="computed"):
        TextEncoder(PACKAGED_ENCODER).encode(TEXTS[:1])


def test_only_unknown_texts_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The known ones are read."""
    TextEncoder(PACKAGED_ENCODER).encode(TEXTS[:2])
    asked = list[str]()
    run = TextEncoder._run

    def counted(self: TextEncoder, texts: list[str]) -> object:
        asked.extend(texts)
        return run(self, texts)

    monkeypatch.setattr(TextEncoder, "_run", counted)
    TextEncoder(PACKAGED_ENCODER).encode(TEXTS)
    assert asked == TEXTS[2:]


def test_other_encoders_and_versions_share_nothing() -> None:
    """Names keep them apart."""
    ComputedStore("one").keep({"a": b"1234"})
    assert list(ComputedStore("one").find(["a", "b"])) == ["a"]
    assert not ComputedStore("other").find(["a"])


def test_switched_off_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, no folder."""
    monkeypatch.setenv(VARIABLE, "")
    assert cache_folder() is None
    store = ComputedStore("one")
    store.keep({"a": b"1234"})
    assert not store.find(["a"])
    assert not folder.exists()


def test_default_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where users expect such things."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "isthmus"


def test_a_broken_file_or_folder_is_no_reason_to_fail(folder: Path) -> None:
    """Nothing is remembered, and that is all."""
    store = ComputedStore("one")
    store.keep({"a": b"1234"})
    (file,) = folder.iterdir()
    file.write_bytes(b"not a database" * 100)
    assert not store.find(["a"])
    store.keep({"a": b"1234"})
    os.remove(file)
    file.mkdir()
    assert not store.find(["a"])
    store.keep({"a": b"1234"})
