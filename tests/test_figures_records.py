"""Figures of single records: latencies, ledger, timelines and load are sums over the very rows of the tables."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import Rectangle

from sim.cost import LEDGER_ITEMS
from sim.figures.cost import draw_ledger, item_name
from sim.figures.latency import answered_within, draw_latency_breakdown, mean_phases
from sim.figures.load import count_over_time, draw_load, load_of_tier, time_edges
from sim.figures.network import draw_variants
from sim.figures.phases import PHASES, boundaries_s
from sim.figures.style import money_unit
from sim.figures.timeline import attempts_of, choose_stories, draw_timeline
from tests.made_up_run import POLICIES, Run, drawn_lines, families_of, legend_texts, make_run


@pytest.fixture(scope="module")
def run() -> Run:
    """A run of one variant under all policies."""
    return make_run()


@pytest.fixture(scope="module")
def swept() -> Run:
    """A run of several variants with fewer policies."""
    return make_run(("link=wired", "link=4g", "link=leo-satellite, rate_per_s=2.5"), POLICIES[:7], requests=40)


# ---------------------------------------------------------------------------------------------------- latency and ledger


def test_distribution_ends_at_the_share_that_was_answered(run: Run) -> None:
    """The curve is the share of all requests completed within a time: those given up never count as answered."""
    own = run.tables.of_policy("base", "all-slm")
    seconds, share = answered_within(own)
    completed = own["status"] == "completed"
    assert share[-1] == pytest.approx(completed.mean())
    for time_s in (5.0, 10.0, 20.0):
        expected = (own["latency_s"][completed] <= time_s).sum() / len(completed)
        assert share[np.searchsorted(seconds, time_s, side="right") - 1] == pytest.approx(expected)


def test_thinned_distribution_keeps_its_shape() -> None:
    """A long table is drawn with at most 800 steps, none of them off the curve."""
    rng = np.random.default_rng(4)
    requests = {"latency_s": rng.exponential(1.0, 50_000), "status": np.full(50_000, "completed", object)}
    seconds, share = answered_within(requests)
    assert len(seconds) <= 800
    exact = np.searchsorted(np.sort(requests["latency_s"]), seconds, side="right") / 50_000
    np.testing.assert_allclose(share, exact)
    assert (seconds[0], seconds[-1]) == (requests["latency_s"].min(), requests["latency_s"].max())


def test_breakdown_adds_up_to_the_mean_latency(run: Run) -> None:
    """The phases of a request, last tool included, sum to its latency, and the bars are as long."""
    figure = draw_latency_breakdown(run.tables, run.summary, families_of(run), "base")
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    for place, policy in enumerate(shown):
        expected = run.tables.of_policy("base", policy)["latency_s"].mean()
        assert sum(mean_phases(run.tables, "base", policy).values()) == pytest.approx(expected)
        bars = [
            bar
            for bar in figure.axes[0].patches
            if isinstance(bar, Rectangle) and bar.get_y() < place < bar.get_y() + bar.get_height()
        ]
        assert sum(bar.get_width() for bar in bars) == pytest.approx(expected)


def test_breakdown_says_where_parallel_branches_are_added_up(run: Run) -> None:
    """Phases of steps side by side take longer together than the request; the axis says so, and only then."""
    label = draw_latency_breakdown(run.tables, run.summary, families_of(run), "base").axes[0].get_xlabel()
    assert "parallel" not in label
    shorter = [{**row, "latency_mean_s": 0.5 * float(row["latency_mean_s"])} for row in run.summary]
    label = draw_latency_breakdown(run.tables, shorter, families_of(run), "base").axes[0].get_xlabel()
    assert label.endswith("parallel branches added up")


def test_breakdown_leaves_out_the_warm_up(run: Run) -> None:
    """Attempts of requests that are not in the request table count nothing."""
    own = run.tables.requests
    late = {name: column[own["request"] >= 60] for name, column in own.items()}
    trimmed = run.tables._replace(requests=late)
    expected = trimmed.of_policy("base", "all-llm")["latency_s"].mean()
    assert sum(mean_phases(trimmed, "base", "all-llm").values()) == pytest.approx(expected)


def test_ledger_bars_are_the_summarys_items(run: Run) -> None:
    """Each bar's parts are the items' means in the axis's unit; items that nobody pays are not in the legend."""
    figure = draw_ledger(run.summary, families_of(run), "base")
    unit = money_unit(row["cost_usd"] for row in run.summary)
    axes = figure.axes[0]
    for container in axes.containers:
        (item,) = [i for i in (*LEDGER_ITEMS, "sla_usd") if item_name(i) == container.get_label()]
        expected = [row[item] * unit.factor for row in run.summary]
        np.testing.assert_allclose([bar.get_width() for bar in container], expected, atol=1e-12)
    assert set(legend_texts(figure)) == {
        "API input",
        "API cached input",
        "API output",
        "electricity",
        "hardware",
        "SLA penalty",
    }


def test_variants_are_drawn_at_their_numbers(swept: Run) -> None:
    """Each policy's dots are its summary rows of every variant, in the order of the variants."""
    figure = draw_variants(swept.summary, families_of(swept))
    for panel, (key, factor) in enumerate(
        (("accuracy", 100), ("cost_usd", 1e3), ("latency_p50_s", 1), ("latency_p95_s", 1))
    ):
        lines = drawn_lines(figure, panel)
        for policy in legend_texts(figure):
            rows = [row for row in swept.summary if row["policy"] == policy]
            np.testing.assert_allclose(lines[policy][:, 0], [row[key] * factor for row in rows])


# ------------------------------------------------------------------------------------------------------ timeline and load


def test_timeline_bars_fill_each_request(run: Run) -> None:
    """The bars of a request lie end to end from its arrival to its end."""
    requests, subtasks = run.tables.of_cell("base", "random p=0.4", 1), run.tables.subtasks("base", "random p=0.4", 1)
    figure = draw_timeline(run.tables, "base", "random p=0.4", 1)
    stories = choose_stories(requests, subtasks)
    assert 1 < len(stories) <= 5
    assert len({story.request for story in stories}) == len(stories)
    for axes, story in zip(figure.axes, stories, strict=True):
        bars = sorted((bar.get_x(), bar.get_width()) for bar in axes.patches if isinstance(bar, Rectangle))
        latency_s = requests["latency_s"][requests["request"] == story.request][0]
        assert sum(width for _, width in bars) == pytest.approx(latency_s)
        starts, widths = np.array(bars).T
        np.testing.assert_allclose(starts, np.concatenate(([0.0], np.cumsum(widths)[:-1])), atol=1e-6)


def test_branches_side_by_side_have_lanes_of_their_own(run: Run) -> None:
    """Every attempt of a request begun at its arrival: no two bars of a lane overlap, and each tier is named once."""
    subtasks = dict(run.tables.subtasks("base", "random p=0.4", 1))
    requests = run.tables.of_cell("base", "random p=0.4", 1)
    arrival_s = dict(zip(requests["request"].tolist(), requests["arrival_s"].tolist(), strict=True))
    moved_s = subtasks["start_s"] - np.array([arrival_s[request] for request in subtasks["request"].tolist()])
    subtasks["start_s"], subtasks["end_s"] = subtasks["start_s"] - moved_s, subtasks["end_s"] - moved_s
    figure = draw_timeline(run.tables._replace(subtasks=lambda *_: subtasks), "base", "random p=0.4", 1)
    most = 0
    for axes in figure.axes:
        lanes: dict[float, list[tuple[float, float]]] = {}
        for bar in axes.patches:
            assert isinstance(bar, Rectangle)
            lanes.setdefault(round(bar.get_y(), 3), []).append((bar.get_x(), bar.get_x() + bar.get_width()))
        for spans in lanes.values():
            assert all(end <= begin + 1e-5 for (_, end), (begin, _) in itertools.pairwise(sorted(spans)))
        most = max(most, len(lanes))
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert len(names) == len(set(names)) <= 3
    assert most > 3


def test_timeline_hatches_failed_attempts(run: Run) -> None:
    """A rejected attempt is hatched, and the figure says what that means."""
    figure = draw_timeline(run.tables, "base", "all-llm", 1)
    assert any(bar.get_hatch() for axes in figure.axes for bar in axes.patches)
    assert "failed attempt" in legend_texts(figure)
    calm = draw_timeline(run.tables, "base", "all-slm", 1)
    assert not any(bar.get_hatch() for axes in calm.axes for bar in axes.patches)


def test_an_answer_that_was_given_up_is_no_failure(run: Run) -> None:
    """A cascade's small answers that were done again are dotted and named so, and the request with most of them is shown."""
    subtasks = dict(run.tables.subtasks("base", "random p=0.4", 1))
    again = (subtasks["tier"] == 0) & (subtasks["position"] % 2 == 0)
    subtasks["status"] = np.where(again, "escalated", "ok").astype(object)
    cascade = run.tables._replace(subtasks=lambda *_: subtasks)
    figure = draw_timeline(cascade, "base", "random p=0.4", 1)
    hatches = {bar.get_hatch() for axes in figure.axes for bar in axes.patches}
    assert hatches == {None, "...."}
    assert "answer given up" in legend_texts(figure)
    assert "failed attempt" not in legend_texts(figure)
    stories = choose_stories(cascade.of_cell("base", "random p=0.4", 1), subtasks)
    assert "most answers given up" in [story.why for story in stories]
    assert "most failed attempts" not in [story.why for story in stories]


def test_phases_end_where_the_attempt_ends(run: Run) -> None:
    """Boundaries run from `start_s` to `end_s`, one attempt after the other."""
    subtasks = run.tables.subtasks("base", "all-llm", 2)
    marks = boundaries_s(subtasks)
    assert marks.shape[1] == len(PHASES) + 1
    np.testing.assert_allclose(marks[:, -1], subtasks["end_s"])
    own = boundaries_s(attempts_of(subtasks, 3))
    np.testing.assert_allclose(own[1:, 0], own[:-1, -1])


@given(
    st.lists(st.tuples(st.floats(0, 9.9), st.floats(0, 5)), max_size=25).map(
        lambda spans: [(start, min(10.0, start + length)) for start, length in spans]
    ),
    st.integers(1, 12),
)
@settings(max_examples=60)
def test_count_over_time_is_exact(spans: list[tuple[float, float]], bins: int) -> None:
    """The mean of a bin is the covered time over its width; the highest is what a dense look at every moment finds."""
    start, end = (np.array([span[i] for span in spans]) for i in (0, 1))
    edges = np.linspace(0, 10, bins + 1)
    found = count_over_time(start, end, edges)
    for number, (left, right) in enumerate(itertools.pairwise(edges)):
        covered = np.maximum(0, np.minimum(end, right) - np.maximum(start, left)).sum()
        assert found.mean[number] == pytest.approx(covered / (right - left), abs=1e-9)
        moments = [left, *(moment for moment in start if left <= moment < right)]
        highest = max(int(((start <= moment) & (moment < end)).sum()) for moment in moments)
        assert found.highest[number] == highest


def test_load_adds_up_to_the_attempts(run: Run) -> None:
    """Busy and waiting time integrated over the bins are the sums of service and queueing at each tier."""
    subtasks = run.tables.subtasks("base", "random p=0.6", 3)
    edges = time_edges(subtasks)
    for tier in (0, 1):
        serving, waiting = load_of_tier(subtasks, tier, edges)
        here = subtasks["tier"] == tier
        assert serving.mean @ np.diff(edges) == pytest.approx(
            (subtasks["prefill_s"] + subtasks["decode_s"])[here].sum()
        )
        assert waiting.mean @ np.diff(edges) == pytest.approx(subtasks["queue_s"][here].sum())


def test_tiers_without_limit_show_counts(run: Run) -> None:
    """Where slots are infinite the panel counts requests in service instead of a share."""
    endless = make_run(policies=POLICIES[:2], seeds=(1,), requests=20, endless_slots=True)
    labels = [axes.get_ylabel() for axes in draw_load(endless.tables, "base", "all-llm", 1).axes]
    assert labels == ["busy (%)", "requests", "requests", "requests"]
