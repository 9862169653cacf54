"""The report: one HTML file that needs nothing else, says what was measured and lets nothing through unescaped."""

from __future__ import annotations

import base64
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sim.figures.families import Families
from sim.figures.style import Unit, money_unit
from sim.report import write_report
from sim.report_tables import (
    assignment_table,
    column_decimals,
    decision_table,
    fixed,
    frontier_table,
    ledger_table,
    provenance_badge,
    provenance_shares,
    share_text,
    summary_table,
)
from tests.made_up_run import POLICIES, Run, make_run

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)> & {{ 7*7 }}'
VOID = {"meta", "link", "br", "img", "wbr", "input", "hr"}


class Page(HTMLParser):
    """A parsed page: its elements with attributes, the text of each kind of element, and whether tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every element of this kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def write(run: Run, folder: Path) -> Path:
    """Write a run's report."""
    return write_report(folder, run.tables, run.summary, run.frontier, run.scenario, run.manifest, run.wrong)


@pytest.fixture(scope="module")
def run() -> Run:
    """A run of two variants."""
    return make_run(("link=wired", "link=4g"), POLICIES[:9], seeds=(1, 2), requests=40)


@pytest.fixture(scope="module")
def report(run: Run, tmp_path_factory) -> Path:
    """Its report."""
    return write(run, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    """Its report, parsed."""
    return Page(report.read_text(encoding="utf-8"))


def test_report_is_one_file_that_needs_nothing(report: Path, page: Page) -> None:
    """No attribute points outside, there is no script, and the page's own policy forbids both."""
    outside = [
        (tag, name, value)
        for tag, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster") and not re.match(r"data:|#", value or "")
    ]
    assert outside == []
    assert not page.all("script")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "@import" not in page.texts["style"][0]
    assert "url(" not in page.texts["style"][0]
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert report.stat().st_size < 5_000_000


def test_html_is_well_formed(page: Page) -> None:
    """Every element is closed in order, ids are unique, and links within the page lead somewhere."""
    assert page.open == []
    ids = [str(attributes["id"]) for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(a["href"])[1:] for a in page.all("a")} <= set(ids)
    assert page.all("html")[0]["lang"] == "en"


def test_figures_are_in_the_report_and_beside_it(report: Path, page: Page) -> None:
    """Each PNG beside the report is embedded byte for byte, with a text for those who cannot see it and an SVG twin."""
    files = {path.name for path in (report.parent / "figures").iterdir()}
    keys = {name.removesuffix(".png") for name in files if name.endswith(".png")}
    assert keys == {
        "frontier-cost", "frontier-usage", "latency", "latency-breakdown", "ledger", "variants", "timeline", "load",
    }  # fmt: skip
    assert files == {f"{key}.{kind}" for key in keys for kind in ("png", "svg")}
    embedded = {base64.b64decode(str(image["src"]).partition("base64,")[2]) for image in page.all("img")}
    assert embedded == {(report.parent / f"figures/{key}.png").read_bytes() for key in keys}
    assert all(len(image["alt"] or "") > 30 for image in page.all("img"))
    assert len(page.texts["figcaption"]) == len(keys)


def test_report_leaves_no_partial_files(report: Path) -> None:
    """After writing there is the report and the figures, nothing else."""
    assert sorted(path.name for path in report.parent.iterdir()) == ["figures", "report.html"]


@pytest.mark.slow
def test_same_run_same_report(run: Run, report: Path, tmp_path: Path) -> None:
    """Writing the report again gives the same bytes."""
    assert write(run, tmp_path).read_bytes() == report.read_bytes()


def test_numbers_of_the_summary_are_in_the_table(run: Run, page: Page) -> None:
    """Each policy's row under each variant holds its accuracy and interval, in percent."""
    rows = page.texts["tr"]
    for row in run.summary:
        interval = f"{row['accuracy_lo'] * 100:.1f} to {row['accuracy_hi'] * 100:.1f}"
        expected = f"{row['accuracy'] * 100:.1f}{interval}".replace("0.00", "00")
        own = [text for text in rows if text.strip().startswith(row["policy"])]
        assert any(expected in text for text in own), (row["policy"], expected)
    assert len([caption for caption in page.texts["caption"] if "link=4g" in caption]) == 4  # the run has no oracle


def test_run_and_inputs_are_named(run: Run, page: Page) -> None:
    """Run id, date, versions, seeds, number of requests, the resolved scenario and the manifest are there."""
    facts = " ".join(page.texts["dl"])
    for fact in (
        run.manifest["run_id"],
        run.manifest["created"],
        "Isthmus 0.1.0",
        "numpy 2.4.1",
        "1, 2",
        "80 per policy",
    ):
        assert fact in facts
    scenario, manifest = page.texts["pre"]
    assert "penalty_usd" in scenario  # a default that nobody wrote
    assert run.manifest["run_id"] in manifest


def test_nothing_a_user_writes_becomes_markup(tmp_path: Path) -> None:
    """A scenario, description, variant, policy, tier or manifest full of markup appears as text."""
    evil = make_run((f"v {EVIL}", "w"), (POLICIES[0]._replace(name=EVIL), POLICIES[1]), (1,), 6, EVIL, f"About {EVIL}")
    evil = evil._replace(
        tables=evil.tables._replace(tiers=(EVIL, "cloud")),
        manifest={"run_id": EVIL, "created": EVIL, "packages": {EVIL: EVIL}},
        frontier={evil.summary[0]["variant"]: {EVIL: {"apgr": 0.5}}},
    )
    text = write(evil, tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("script")
    assert all(str(image["src"]).startswith("data:image/png") for image in page.all("img"))
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert page.texts["h1"] == [EVIL]
    assert EVIL in page.texts["title"][0]
    assert "49" not in page.texts["h1"][0]


def test_modelled_answers_are_announced_loudly(run: Run, page: Page) -> None:
    """A share of modelled answers turns the badge into a warning that names it; without any it does not warn."""
    badges = [a for a in page.all("div") if "badge" in str(a.get("class"))]
    assert [badge["class"] for badge in badges] == ["badge warn"]
    shares = provenance_shares(run.summary)
    assert f"{shares['modelled'] * 100:.1f} % of the requests rest on modelled answers" in " ".join(page.texts["p"])


def test_real_answers_are_not_called_modelled() -> None:
    """Where every answer is exact or live the badge says so, weighted by requests, and does not warn."""
    shares = ({"n": 300, "exact_share": 1.0, "live_share": 0.0}, {"n": 100, "exact_share": 0.0, "live_share": 1.0})
    badge = provenance_badge([row | {"modelled_share": 0.0} for row in shares])
    assert not badge["warn"]
    assert badge["headline"] == "Every answer was given by a real language model."
    assert "exact 75.0 %" in badge["detail"]
    assert "live 25.0 %" in badge["detail"]
    assert "modelled 0 %" in badge["detail"]


def test_a_bare_run_still_has_a_report(tmp_path: Path) -> None:
    """No manifest, no frontier metrics, one policy, one seed, missing numbers: the report leaves out what is not known."""
    run = make_run(policies=POLICIES[:1], seeds=(1,), requests=5)
    for row in run.summary:
        row |= dict.fromkeys(("accuracy_lo", "accuracy_hi", "latency_p95_s", "energy_j", "exact_share"))
    bare = run._replace(manifest={}, frontier={})
    page = Page(write(bare, tmp_path).read_text(encoding="utf-8"))
    headings = page.texts["h2"]
    assert "Frontier metrics" not in headings
    assert "The variants of the scenario" not in headings
    assert "It is unknown where the answers come from." in " ".join(page.texts["p"])
    words = " ".join([*page.texts["td"], *page.texts["dd"], *(str(image["alt"]) for image in page.all("img"))])
    assert not re.search(r"\b(None|nan|inf)\b", words)


def test_a_report_about_nothing_is_refused(run: Run, tmp_path: Path) -> None:
    """Without a row of summary there is nothing to report, and nothing is written."""
    with pytest.raises(ValueError, match="at least one row"):
        write_report(tmp_path, run.tables, [], {}, run.scenario, {})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ its tables


def test_oracles_are_marked_in_every_table(run: Run) -> None:
    """Oracles carry the remark that they cannot be deployed; nobody else does."""
    full = make_run(seeds=(1,), requests=6)
    families, money = Families(full.summary, full.policies), Unit(1e3, "m$")
    tables = [
        summary_table(full.summary, families, "base", money),
        ledger_table(full.summary, families, "base", money),
        frontier_table(full.frontier["base"], families),
    ]
    for table in tables:
        assert {row.name for row in table.rows if row.note} == {
            row.name for row in table.rows if row.name.startswith("oracle")
        }
        assert all(len(row.cells) == len(table.head) for row in table.rows)


def test_what_deciding_takes_is_a_table(run: Run, tmp_path: Path) -> None:
    """The share of latency with its interval and the joules, for policies that take time to decide; nothing where none does."""
    families = Families(run.summary, run.policies)
    table = decision_table(run.summary, families, "link=4g")
    rows = [row for row in run.summary if row["variant"] == "link=4g"]
    assert [row.name for row in table.rows] == [row["policy"] for row in rows]
    assert [unit for _, unit in table.head] == ["%", "mJ", "J"]
    for shown, row in zip(table.rows, rows, strict=True):
        assert shown.cells[0].text == f"{100 * row['decision_share']:.1f}"
        assert shown.cells[0].interval
        assert float(shown.cells[1].text) == pytest.approx(1000 * row["decision_j"], rel=0.01)
    free = [row | {"decision_share": 0.0, "decision_j": 0.0} for row in run.summary]
    assert not decision_table(free, families, "link=4g").rows
    page = Page(write(run._replace(summary=free), tmp_path).read_text(encoding="utf-8"))
    assert not any("What deciding takes" in caption for caption in page.texts["caption"])


def test_wrong_assignments_are_a_section_of_their_own(tmp_path: Path) -> None:
    """With an oracle the report has the shares against each of its points, split for the nearest to HERA's, and what they leave out."""
    full = make_run(seeds=(1,), requests=30)
    page = Page(write(full, tmp_path).read_text(encoding="utf-8"))
    assert "Wrong assignments" in page.texts["h2"]
    assert any("share a number and no text" in text for text in page.texts["p"])
    table = assignment_table(full.wrong, Families(full.summary, full.policies), full.summary, "base")
    main = "oracle-cost accuracy_share=0.9"
    assert table.head[0] == (f"Other than {main}", "%")
    assert len(table.head) == 6 + 3  # the split, the count, and three other points of the oracle
    assert [row.name for row in table.rows] == [row["policy"] for row in full.summary]
    for row, summary in zip(table.rows, full.summary, strict=True):
        whole, small, large = (cell.text for cell in row.cells[:3])
        if row.name == main:
            assert whole == small == large == "–"
        else:
            assert float(small) + float(large) == pytest.approx(float(whole), abs=0.11)
            assert whole == f"{100 * summary['wrong']:.1f}"


def test_ledger_items_add_up_to_the_total(run: Run) -> None:
    """What the ledger table shows sums to the total it shows, up to rounding."""
    table = ledger_table(run.summary, Families(run.summary, run.policies), "link=4g", Unit(1e6, "µ$"))
    for row in table.rows:
        *items, total = (float(cell.text.replace(",", "")) for cell in row.cells)
        assert sum(items) == pytest.approx(total, abs=0.6 * len(items))


def test_frontier_table_shows_what_is_null_as_a_dash(run: Run) -> None:
    """A threshold that is never reached is a dash; a family without any metric has no row."""
    metrics: dict[str, Any] = {"random": {"apgr": 0.5, "cpt80": None}, "empty": {"apgr": None}}
    table = frontier_table(metrics, Families(run.summary, run.policies))
    (row,) = table.rows
    assert row.name == "random"
    assert [cell.text for cell in row.cells] == ["0.500", "–", "–", "–", "–", "–"]


@pytest.mark.parametrize(
    ("values", "decimals"),
    [([7.466, 0.0522], 3), ([258.2, 0.15], 1), ([12.1, 24.0], 1), ([0, 0], 0), ([math.nan, 1234.5], 0), ([1e-7], 9)],
)
def test_columns_show_three_or_four_digits(values: list[float], decimals: int) -> None:
    """The largest number of a column decides how many decimals all of it has."""
    assert column_decimals(values, Unit(1.0, "s")) == min(decimals, 4)


@pytest.mark.parametrize(
    ("value", "decimals", "text"), [(0.00001, 2, "<0.01"), (0.0, 3, "0"), (1234.56, 1, "1,234.6"), (-0.001, 1, ">−0.1")]
)
def test_small_numbers_are_never_shown_as_zero(value: float, decimals: int, text: str) -> None:
    """Only 0 is shown as 0."""
    assert fixed(value, decimals) == text


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0 %"), (1.0, "100 %"), (0.0004, "<0.1 %"), (0.9999, ">99.9 %"), (0.115, "11.5 %")]
)
def test_shares_are_whole_only_when_they_are(share: float, text: str) -> None:
    """A trace of modelled answers is not rounded away."""
    assert share_text(share) == text


def test_money_has_a_readable_unit() -> None:
    """The unit follows the largest amount; without any amount it is the dollar."""
    assert [money_unit(values).symbol for values in ([2.0, 0.001], [0.007], [3e-6], [], [math.nan])] == [
        "$",
        "m$",
        "µ$",
        "$",
        "$",
    ]
