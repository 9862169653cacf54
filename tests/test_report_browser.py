"""The report in a real browser: it loads alone, shows everything, and fits the window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sim.report import write_report
from tests.made_up_run import make_run

pytestmark = pytest.mark.browser

CONTRAST = """() => {
  const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number); return 0.2126*channel(r)+0.7152*channel(g)+0.0722*channel(b); };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(c) && c !== 'transparent') return c; } return 'rgb(255, 255, 255)'; };
  const weak = [];
  for (const e of document.body.querySelectorAll('*')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [luminance(getComputedStyle(e).color), luminance(ground(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) weak.push(e.tagName + ': ' + e.textContent.slice(0, 40));
  }
  return weak;
}"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, list[str], list[str]]]:
    """The report of a run with long names in headless Chromium, what its console said, and what it asked the network for."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs an installed Chromium (Debian and Ubuntu: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, part of the dev extra")
    run = make_run(
        ("link=wired", "link=leo-satellite, rate_per_s=2.5"),
        seeds=(1, 2),
        requests=40,
        description="A run.\n" + "long " * 80,
    )
    path: Path = write_report(
        tmp_path_factory.mktemp("report"), run.tables, run.summary, run.frontier, run.scenario, run.manifest
    )
    said: list[str] = []
    asked: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: asked.append(request.url[:60]))
        page.goto(path.as_uri())
        yield page, said, asked
        browser.close()


def test_console_stays_silent(opened) -> None:
    """Nothing is reported: no error, no blocked resource, no warning."""
    page, said, _ = opened
    assert page.title() == "made-up · Isthmus report"
    assert said == []


def test_nothing_is_fetched(opened) -> None:
    """Besides the file itself only data URLs are loaded."""
    _, _, asked = opened
    assert asked[0].startswith("file:")
    assert [url for url in asked[1:] if not url.startswith("data:")] == []


def test_every_image_is_shown(opened) -> None:
    """All eight figures are decoded and visible, in their own proportions."""
    page, _, _ = opened
    images = page.evaluate(
        "() => [...document.images].map(i => [i.complete, i.naturalWidth / i.naturalHeight, i.clientWidth / i.clientHeight])"
    )
    assert len(images) == 8
    for complete, natural, shown in images:
        assert complete
        assert shown == pytest.approx(natural, rel=0.01)


@pytest.mark.parametrize("width", [1280, 900, 420])
def test_the_page_is_never_wider_than_the_window(opened, width: int) -> None:
    """Nothing overflows sideways; wide tables scroll within their own box, at 1280 pixels not even that."""
    page, _, _ = opened
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    if width == 1280:
        hidden = "() => [...document.querySelectorAll('.scroll')].filter(d => d.scrollWidth > d.clientWidth).length"
        assert page.evaluate(hidden) == 0


def test_text_has_contrast(opened) -> None:
    """Every text reaches the contrast of 4.5 : 1 that WCAG 2 asks for (level AA)."""
    page, _, _ = opened
    page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate(CONTRAST) == []
