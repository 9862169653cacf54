"""The serving benchmark compares ways that give the same answers, on a real cluster."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.serving import WAYS, Timed, as_object, as_table, measure, summarise, the_model, ways


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_all_ways_answer_alike_and_are_timed(cluster, tmp_path: Path) -> None:
    """The engine in this process, bulk and single calls to the deployed model: equal texts, wall and CPU time of each repeat."""
    spec, asked = the_model("random", tmp_path, calls=10, width=32, max_tokens=40)
    answered: list[str] = []
    with ways(spec, asked, batch=4) as prepared:
        runs = measure(prepared, 2, lambda: answered.append("all"))
    assert len(answered) == 3 * len(WAYS), "the first repeat, which is not counted, is waited for as well"
    assert list(runs) == list(WAYS)
    assert all(len(each) == 2 for each in runs.values())
    timed = [run for each in runs.values() for run in each]
    (tokens,) = {run.tokens for run in timed}
    assert 100 < tokens <= 400
    assert min(run.wall_s for run in timed) > 0
    assert min(run.cpu_s for run in timed) >= 0  # counted in hundredths of a second
    result = summarise(runs, spec)
    assert (result["same_answers"], result["tokens"]) == (True, tokens)
    assert as_object({"random": result}, 10, 4)["models"]["random"] is result
    assert as_table({"random": result}).row_count == len(WAYS)


def test_ratios_are_taken_within_a_repeat(tmp_path: Path) -> None:
    """By hand: a machine that is twice as slow in the second repeat changes no ratio; other answers are told."""
    spec, _ = the_model("random", tmp_path, calls=1, width=32, max_tokens=4)
    right = [("a", 60), ("b", 40)]
    runs = {
        "direct": [Timed(right, 1.0, 1.0), Timed(right, 2.0, 2.0)],
        "bulk": [Timed(right, 1.25, 1.0), Timed(right, 2.5, 2.0)],
        "single": [Timed(right, 2.0, 4.0), Timed([("a", 60), ("c", 40)], 4.0, 8.0)],
    }
    result = summarise(runs, spec)
    assert (result["ratio_bulk"], result["cpu_ratio_bulk"]) == (pytest.approx(0.8), pytest.approx(1.0))
    assert (result["ratio_single"], result["cpu_ratio_single"]) == (pytest.approx(0.5), pytest.approx(0.25))
    assert result["tokens_per_s"]["direct"] == pytest.approx(75.0)
    assert result["same_answers"] is False


def test_the_table_fits_a_terminal(tmp_path: Path) -> None:
    """80 columns hold every number of a large model whole, each way with its ratios to the direct one."""
    each = {"direct": 123_456.0, "bulk": 111_111.0, "single": 99_999.0}
    result = {
        "tokens_per_s": each, "tokens": 1_234_567, "parameters": 15_728_640, "ratio_bulk": 0.9, "ratio_single": 0.81,
        "cpu_ratio_bulk": 0.95, "cpu_ratio_single": 0.85,
    }  # fmt: skip
    console = Console(width=80, file=StringIO(), record=True)
    console.print(as_table({"some/folder/a-model-with-a-name": result, "slm": result}))
    text = console.export_text()
    for number in ("123,456", "111,111", "99,999", "1,234,567", "15,728,640", "0.90", "0.81", "0.95", "0.85"):
        assert text.count(number) >= 2, number
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
