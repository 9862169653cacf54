"""The serving benchmark compares ways that give the same answers, on a real cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serving import WAYS, Timed, as_object, as_table, measure, summarise, the_model, ways


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_all_ways_answer_alike_and_are_timed(cluster, tmp_path: Path) -> None:
    """The engine in this process, bulk and single calls to the deployed model: equal texts, wall and CPU time of each repeat."""
    spec, asked = the_model("random", tmp_path, calls=10, width=32, max_tokens=40)
    with ways(spec, asked, batch=4) as prepared:
        runs = measure(prepared, repeats=2)
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
    assert as_table({"random": result}).row_count == 1


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
