"""Figures: what is drawn is what the tables say, labelled with units, whatever the run looks like."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from sim.figures.cost import draw_ledger
from sim.figures.families import Families, middle_row, mixing_row, representatives
from sim.figures.frontier import draw_cost_frontier, draw_usage_frontier, hull_points, swept_text
from sim.figures.latency import draw_latency_breakdown, draw_latency_distribution
from sim.figures.load import draw_load
from sim.figures.network import draw_variants
from sim.figures.style import money_unit, of_variant, one_line, save_figure, shorten, three_digits
from sim.figures.timeline import draw_timeline
from tests.made_up_run import POLICIES, Policy, Run, drawn_lines, families_of, legend_texts, make_run

ONE_POLICY = (Policy("my-policy", "my-policy", math.nan, 0.4),)


@pytest.fixture(scope="module")
def run() -> Run:
    """A run of one variant under all policies."""
    return make_run()


@pytest.fixture(scope="module")
def swept() -> Run:
    """A run of several variants with fewer policies."""
    return make_run(("link=wired", "link=4g", "link=leo-satellite, rate_per_s=2.5"), POLICIES[:7], requests=40)


def drawings(run: Run) -> dict[str, Callable[[], Figure]]:
    """Every figure of a run."""
    families, first = families_of(run), str(run.summary[0]["variant"])
    chosen = str(mixing_row(run.tables, run.summary, families, first)["policy"])
    seed = run.tables.seeds(first, chosen)[0]
    return {
        "frontier-cost": lambda: draw_cost_frontier(run.summary, families),
        "frontier-usage": lambda: draw_usage_frontier(run.summary, families),
        "latency": lambda: draw_latency_distribution(run.tables, run.summary, families, first),
        "breakdown": lambda: draw_latency_breakdown(run.tables, run.summary, families, first),
        "ledger": lambda: draw_ledger(run.summary, families, first),
        "variants": lambda: draw_variants(run.summary, families),
        "timeline": lambda: draw_timeline(run.tables, first, chosen, seed),
        "load": lambda: draw_load(run.tables, first, chosen, seed),
    }


# ------------------------------------------------------------------------------------------------------------ all figures


def test_every_axis_names_its_quantity_and_unit(run: Run) -> None:
    """Each panel's lowest axis carries a label with a unit in brackets, and every figure has a title."""
    units = ("(%)", "($)", "(m$", "(µ$", "(s)", "(% of", "(min)")
    for name, draw in drawings(run).items():
        figure = draw()
        labels = [axes.get_xlabel() for axes in figure.axes if axes.get_visible()]
        assert figure.get_suptitle(), name
        assert labels[-1], name
        assert all(any(unit in label for unit in units) for label in labels if label), (name, labels)


def test_drawing_leaves_matplotlib_as_it_was(run: Run) -> None:
    """No figure is registered with pyplot and no setting is changed."""
    before = dict(matplotlib.rcParams)
    for draw in drawings(run).values():
        draw()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
def test_no_words_overlap_or_leave_the_figure(run: Run, swept: Run) -> None:
    """Titles, axis labels and legends stay inside each figure, and the legend stays clear of the axes."""
    for one in (run, swept):
        for name, draw in drawings(one).items():
            figure = draw()
            figure.draw_without_rendering()
            frame = figure.bbox
            (legend,) = figure.legends
            title = next(text for text in figure.texts if text.get_text() == figure.get_suptitle())
            box = legend.get_window_extent()
            assert box.x0 >= -1, name
            assert box.x1 <= frame.x1 + 1, name
            assert title.get_window_extent().x1 <= frame.x1 + 1, name
            for axes in (axes for axes in figure.axes if axes.get_visible()):
                tight = axes.get_tightbbox()
                assert tight is not None
                assert tight.x0 >= -1, name
                assert tight.x1 <= frame.x1 + 1, name
                assert tight.y0 >= box.y1 - 1, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "odd",
    [
        make_run(policies=ONE_POLICY, seeds=(1,), requests=8),
        make_run(policies=ONE_POLICY, seeds=(1,), requests=1),
        make_run(policies=POLICIES[:2], seeds=(1, 2), requests=8, endless_slots=True),
        make_run(tuple(f"rate={i}" for i in range(14)), POLICIES[:3], seeds=(1,), requests=6),
    ],
    ids=["one-policy-one-seed", "one-request", "pure-policies", "many-variants"],
)
def test_unusual_runs_are_drawn_without_a_warning(odd: Run, tmp_path) -> None:
    """One policy, one seed, one request or many variants: figures come out, and nothing warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, draw in drawings(odd).items():
            assert save_figure(draw(), tmp_path, name).startswith(b"\x89PNG"), name


def test_numbers_that_were_not_measured_are_left_out(run: Run, tmp_path) -> None:
    """Null and NaN in the summary leave gaps, not crashes and not zeros."""
    hollow = [dict(row) for row in run.summary]
    for row in hollow[::2]:
        row |= dict.fromkeys(("accuracy", "cost_usd", "latency_p50_s", "slm_usage", "accuracy_lo"))
    hollow[1] |= {"cost_usd": math.nan, "latency_p95_s": math.inf}
    families = Families(hollow, run.policies)
    figures = {"a": draw_cost_frontier(hollow, families), "b": draw_ledger(hollow, families, "base")}
    figures |= {"c": draw_variants(hollow, families), "d": draw_usage_frontier(hollow, families)}
    for name, figure in figures.items():
        save_figure(figure, tmp_path, name)
    lines = drawn_lines(figures["a"])
    points = np.concatenate([xy for label, xy in lines.items() if label.partition(" ")[0] in families.names])
    assert len(points) == len(hollow) - len(hollow[::2]) - 1


def test_same_figure_is_the_same_file(run: Run, tmp_path) -> None:
    """Drawing twice gives byte-identical PNG and SVG, and no partial file stays behind."""
    for folder in ("first", "second"):
        save_figure(draw_ledger(run.summary, families_of(run), "base"), tmp_path / folder, "ledger")
    for kind in ("png", "svg"):
        assert (tmp_path / f"first/ledger.{kind}").read_bytes() == (tmp_path / f"second/ledger.{kind}").read_bytes()
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["ledger.png", "ledger.svg"]


def test_names_are_text_and_never_formulas(tmp_path) -> None:
    """Dollar signs, markup, line breaks and a leading underscore in names are drawn as they are."""
    odd = make_run(
        ("_$x^$ <b>\n</b>", "日本 \\frac{1}{2}$"), (Policy("_a$b$_", "all-slm", math.nan, 0.3), *ONE_POLICY), requests=8
    )
    figures = {
        name: draw() for name, draw in drawings(odd).items() if name in ("latency", "ledger", "variants", "timeline")
    }
    for name, figure in figures.items():
        save_figure(figure, tmp_path, name)
    assert " _a$b$_" in legend_texts(figures["latency"])


# --------------------------------------------------------------------------------------------------------------- frontier


def test_frontier_points_are_the_summarys(run: Run) -> None:
    """Every family is in the legend, its curve runs through its rows by knob, in % and the axis's unit of money."""
    families, unit = families_of(run), money_unit(row["cost_usd"] for row in run.summary)
    figure = draw_cost_frontier(run.summary, families)
    lines = drawn_lines(figure)
    for name in families.names:
        label = f"{name} (not deployable)" if families.is_oracle(name) else name
        rows = sorted((row for row in run.summary if row["family"] == name), key=lambda row: row["knob"] or 0)
        expected = [(row["cost_usd"] * unit.factor, row["accuracy"] * 100) for row in rows]
        np.testing.assert_allclose(lines[label], expected)
        assert label in legend_texts(figure)
    assert f"({unit.label})" in figure.axes[0].get_xlabel()


def test_frontier_error_bars_span_the_intervals(run: Run) -> None:
    """Each point carries a horizontal and a vertical bar from its lower to its upper bound."""
    figure = draw_cost_frontier(run.summary, families_of(run))
    unit = money_unit(row["cost_usd"] for row in run.summary)
    drawn = {
        tuple(np.round(segment.ravel(), 9))
        for bars in figure.axes[0].collections
        if isinstance(bars, LineCollection)
        for segment in bars.get_segments()
    }
    for row in run.summary:
        x, y = row["cost_usd"] * unit.factor, row["accuracy"] * 100
        horizontal = (row["cost_usd_lo"] * unit.factor, y, row["cost_usd_hi"] * unit.factor, y)
        vertical = (x, row["accuracy_lo"] * 100, x, row["accuracy_hi"] * 100)
        assert tuple(np.round(horizontal, 9)) in drawn
        assert tuple(np.round(vertical, 9)) in drawn


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), min_size=1, max_size=12), st.booleans())
def test_hull_lies_above_all_points(points: list[tuple[float, float]], more_is_better: bool) -> None:
    """At no point's cost is the hull below its accuracy, in either direction of the x axis."""
    x, y = np.array(points).T
    hull_x, hull_y = hull_points(x, y, more_is_better=more_is_better)
    cost, hull_cost = (x.max() - x, x.max() - hull_x) if more_is_better else (x, hull_x)
    assert np.all(np.interp(cost, hull_cost, hull_y) >= y - 1e-9)
    assert np.all(np.diff(hull_y) > 0)


def test_oracles_stay_outside_the_hull(run: Run) -> None:
    """The hull joins deployable policies only, oracles are dashed, and the coin joins the two models."""
    families = families_of(run)
    figure = draw_cost_frontier(run.summary, families)
    lines = drawn_lines(figure)
    hull = lines["best mixes of deployable policies (hull)"]
    deployable = np.concatenate([xy for label, xy in lines.items() if label in families.names])
    assert all(any(np.allclose(vertex, point) for point in deployable) for vertex in hull)
    oracle = lines["oracle-cost (not deployable)"]
    assert np.any(oracle[:, 1] > np.interp(oracle[:, 0], hull[:, 0], hull[:, 1]))
    (dashed,) = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "--"]
    assert dashed.get_label() == "oracle-cost (not deployable)"
    np.testing.assert_allclose(
        lines["a coin per request: All-SLM or All-LLM"], [lines["all-slm"][0], lines["all-llm"][0]]
    )


def test_models_are_labelled_at_their_points(run: Run) -> None:
    """All-SLM and All-LLM are written beside their points."""
    figure = draw_usage_frontier(run.summary, families_of(run))
    found = {text.get_text(): text.xy for text in figure.axes[0].texts if isinstance(text, Annotation)}
    assert found["All-SLM"][0] == pytest.approx(100)
    assert found["All-LLM"][0] == pytest.approx(0)


def test_swept_points_say_which_they_are(run: Run) -> None:
    """With room for it each point of a sweep carries its value, labels lie apart, and a single policy has none."""
    few = [row for row in run.summary if row["family"] in ("all-slm", "random", "oracle-cost")]
    figure = draw_cost_frontier(few, families_of(run))
    figure.draw_without_rendering()
    labels = [text for text in figure.axes[0].texts if isinstance(text, Annotation) and text.get_text() != "All-SLM"]
    values = {row["policy"].rpartition("=")[2] for row in few if row["family"] != "all-slm"}
    assert {text.get_text() for text in labels} <= values
    assert len(labels) >= 6
    boxes = [text.get_window_extent() for text in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert swept_text({"policy": "hera(components=urc+sse, kappa=0.9)", "family": "hera"}) == "urc+sse, 0.9"
    many = [row | {"policy": f"random p={i}", "knob": i} for i, row in enumerate(run.summary * 3)]
    crowded = draw_cost_frontier([row | {"family": "random"} for row in many], Families(many, run.policies))
    assert not [text for text in crowded.axes[0].texts if "=" in text.get_text() or text.get_text().isdigit()]


def test_points_without_an_order_are_not_joined(run: Run) -> None:
    """A family whose policies share their knob, or have none, is points and no curve."""
    for knobs in ([0.6, 0.6, 0.6, 0.6], [None] * 4, [1, 2, 3, 4]):
        rows = [row for row in run.summary if row["family"] == "random"]
        rows = [row | {"knob": knob} for row, knob in zip(rows, knobs, strict=True)]
        (line,) = [
            line
            for line in draw_cost_frontier(rows, families_of(run)).axes[0].get_lines()
            if line.get_label() == "random"
        ]
        assert (line.get_linestyle() == "None") == (len(set(knobs)) == 1)


def test_each_variant_has_its_panel(swept: Run) -> None:
    """Small multiples share their axes and hold their own variant's points; more than six say so."""
    families = families_of(swept)
    figure = draw_cost_frontier(swept.summary, families)
    titles = [" ".join(axes.get_title(loc="left").split()) for axes in figure.axes]
    assert titles == ["link=wired", "link=4g", "link=leo-satellite, rate_per_s=2.5"]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    for panel, variant in enumerate(dict.fromkeys(row["variant"] for row in swept.summary)):
        (row,) = [row for row in of_variant(swept.summary, variant) if row["policy"] == "all-llm"]
        assert drawn_lines(figure, panel)["all-llm"][0][1] == pytest.approx(row["accuracy"] * 100)
    many = [row | {"variant": f"v{i}"} for i in range(8) for row in swept.summary[:3]]
    crowded = draw_cost_frontier(many, families)
    assert "first 6 of 8 variants" in " ".join(crowded.get_suptitle().split())


# --------------------------------------------------------------------------------------------------- who and how to show


def test_representatives_keep_both_models_and_an_oracle() -> None:
    """With more than six families, All-SLM, All-LLM and an oracle stay and no family appears twice."""
    own = tuple(Policy(f"mine-{i}", f"mine-{i}", math.nan, 0.1 * i) for i in range(1, 7))
    run = make_run(policies=(*POLICIES, *own), seeds=(1,), requests=10)
    shown = [row["family"] for row in representatives(run.summary, families_of(run), "base")]
    assert len(shown) == 6
    assert {"all-slm", "all-llm", "oracle-cost"} < set(shown)
    assert len(set(shown)) == 6


def test_the_middle_of_a_family_mixes_the_models() -> None:
    """A family is shown at half its range of SLM usage, not at the middle of its list of knobs."""
    rows = [{"knob": knob, "slm_usage": usage} for knob, usage in ((1, 1.0), (2, 1.0), (3, 1.0), (4, 0.55), (5, 0.0))]
    assert middle_row(rows)["knob"] == 4
    assert middle_row([{"knob": knob, "slm_usage": None} for knob in (3, 1, 2)])["knob"] == 2


def test_many_families_look_different() -> None:
    """Eighteen routers beside the yardsticks: no two share colour and marker, and none shares a line and a colour."""
    summary = [{"family": f"mine-{i}", "policy": f"mine-{i}", "variant": "base"} for i in range(18)]
    styles = list(Families(summary, {}).style.values())
    assert len({(style.colour, style.marker) for style in styles}) == 18
    assert len({(style.colour, style.line) for style in styles}) == 18


def test_simple_rules_make_room_for_routers(run: Run) -> None:
    """Where not all families fit, a threshold on the prompt's length goes before a router that learned."""
    own = tuple(Policy(f"mine-{i}", f"mine-{i}", math.nan, 0.1 * i) for i in range(1, 4))
    crowded = make_run(policies=(*POLICIES, *own), seeds=(1,), requests=10)
    shown = {row["family"] for row in representatives(crowded.summary, families_of(crowded), "base")}
    assert shown == {"all-slm", "all-llm", "embedding-router", "mine-1", "mine-2", "oracle-cost"}


def test_the_run_that_is_shown_explains_itself() -> None:
    """Of policies that mix the models alike, the one with several kinds of reasons is drawn step by step."""
    policies = (Policy("plain", "plain", math.nan, 0.5), Policy("wordy", "wordy", math.nan, 0.45))
    run = make_run(policies=policies, seeds=(1,), requests=30)

    def subtasks(variant: str, policy: str, seed: int) -> dict[str, Any]:
        table = dict(run.tables.subtasks(variant, policy, seed))
        if policy == "wordy":
            table["reason"] = np.array(["sse 0.9", "large 0.1", "cd k=1"], object)[np.arange(len(table["reason"])) % 3]
        return table

    assert mixing_row(run.tables, run.summary, families_of(run), "base")["policy"] == "plain"
    tables = run.tables._replace(subtasks=subtasks)
    assert mixing_row(tables, run.summary, families_of(run), "base")["policy"] == "wordy"


def test_labels_hide_no_oracle() -> None:
    """A family is an oracle or a yardstick by its policy, whatever its label says."""
    summary = [{"family": name, "policy": name, "variant": "base"} for name in ("mine", "oracle-like", "all-llm")]
    families = Families(summary, {"mine": "oracle-cost", "oracle-like": "random"})
    assert [families.is_oracle(name) for name in families.names] == [True, False, False]
    assert families.is_yardstick("oracle-like")


@pytest.mark.parametrize(
    ("value", "text"), [(0.05219, "0.0522"), (1.4, "1.40"), (110.4, "110"), (12345.6, "12,346"), (0.0, "0")]
)
def test_totals_show_three_digits(value: float, text: str) -> None:
    """Three digits, no exponent, no lost zeros."""
    assert three_digits(value) == text


def test_long_names_keep_both_ends() -> None:
    """A long name is shortened in its middle, control characters and line breaks go."""
    assert shorten("embedding-router(large_share=0.25)", 20) == "embedding-rou…=0.25)"
    assert len(shorten("x" * 500, 40)) == 40
    assert one_line("a\n\tb\x00c") == "a b c"
