"""The engine's benchmark compares ways that give the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.engine import WAYS, measure, summarise
from benchmarks.side_by_side import ratio
from serve.generation import ModelSpec
from serve.slm import CausalLM
from tests.serve.tiny_models import tiny_model
from workloads.task import Message


def test_all_ways_answer_alike_and_are_timed(tmp_path: Path) -> None:
    """Engine, direct calls and transformers' own loop on a tiny model: equal answers, a rate for each repeat, ratios of these."""
    model = CausalLM(ModelSpec(str(tiny_model(tmp_path)), device="cpu", threads=1))
    rates = measure(model, [(Message("user", f"question {n}"),) for n in range(5)], batch=2, max_tokens=6, repeats=2)
    assert list(rates) == list(WAYS)
    assert all(len(values) == 2 and min(values) > 0 for values in rates.values())
    row = summarise({2: rates}, {"model": "tiny"})["batches"]["2"]
    low, high = sorted(a / b for a, b in zip(rates["engine"], rates["direct"], strict=True))
    assert low <= row["engine_to_direct"] <= high
    assert ratio(rates, "direct", "direct") == pytest.approx(1.0)


def test_a_way_that_answers_otherwise_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed at the price of the answers is an error."""
    model = CausalLM(ModelSpec(str(tiny_model(tmp_path)), device="cpu", threads=1))
    monkeypatch.setitem(WAYS, "sloppy", lambda model, asked, batch, limit: [("", 1)] * len(asked))
    with pytest.raises(RuntimeError, match="sloppy at batch 1 gave 2 other answers than engine"):
        measure(model, [(Message("user", f"question {n}"),) for n in range(2)], batch=1, max_tokens=6, repeats=1)
