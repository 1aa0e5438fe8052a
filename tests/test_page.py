"""`report.html` in a real browser, with JavaScript and without."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from ahf_cli.report.comparison import Comparison
from ahf_cli.report.page import page, save_page
from ahf_cli.report.study_data import load_study, pool
from tests.simulated_studies import simulate_study
from tests.studies import NAN, write_study

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
EVIL = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    study = simulate_study(folder, "made-up", trials=6, points=12, reruns=5, recipes=("hf", "hf_published"))
    manifest = json.loads((study.folder / "manifest.json").read_text())
    manifest["sessions"][0]["command"] = f"ahf search {EVIL}"
    manifest["device"] = EVIL
    (study.folder / "manifest.json").write_text(json.dumps(manifest))
    return save_page(Comparison(load_study(study.folder)), folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "no Chromium: apt-get install chromium"
    with sync_playwright() as tool:
        # Chromium refuses its sandbox to root, as which a container runs.
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        running = tool.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield running
        running.close()


def visit(browser: Browser, report: Path, **options: object) -> tuple[Page, list[str]]:
    """Open the page and return it with a list, which collects errors and requests to other places."""
    context = browser.new_context(**options)  # type: ignore[arg-type]
    opened, wrong = context.new_page(), list[str]()
    opened.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    opened.on("pageerror", lambda e: wrong.append(str(e)))
    opened.on(
        "request", lambda r: None if r.url.startswith(("data:", "file:", "blob:")) else wrong.append(r.url)
    )
    opened.goto(report.as_uri())
    if options.get("java_script_enabled", True):
        opened.wait_for_selector("html.ready", timeout=20_000)
    return opened, wrong


def test_it_loads_sorts_and_hides_without_errors_and_requests(browser: Browser, report: Path) -> None:
    opened, wrong = visit(browser, report)
    assert opened.title() == "made-up: comparison of 2 recipes"
    assert opened.locator(".bk-Figure").count() >= 5
    body = opened.locator("#trials tbody")
    heading = opened.locator("#trials th", has_text="train loss").locator("button")
    column = 1 + opened.locator("#trials th").all_inner_texts().index("train loss")
    for descending in (False, True):
        heading.click()
        found = [float(t) for t in body.locator(f"tr td:nth-child({column})").all_inner_texts() if t != "–"]
        assert len(found) > 2 and found == sorted(found, reverse=descending)
    visible = (
        "Bokeh.documents.flatMap(d => [...d.all_models])"
        ".filter(m => m.type === 'GlyphRenderer' && m.name === 'trials')"
        ".map(m => m.view.filter.booleans.filter(Boolean).length).reduce((a, b) => a + b)"
    )
    before = opened.evaluate(visible)
    opened.locator("input[data-trial='hf/000']").uncheck()
    assert 0 < opened.evaluate(visible) < before
    opened.click("#none")
    assert opened.evaluate(visible) == 0
    opened.click("#all")
    assert opened.evaluate(visible) == before
    assert wrong == []


def test_a_click_on_the_legend_hides_a_recipe_and_hovering_names_a_trial(
    browser: Browser, report: Path
) -> None:
    opened, wrong = visit(browser, report, viewport={"width": 1280, "height": 900})
    plot = opened.locator("#figure2 .bk-Figure").first
    plot.scroll_into_view_if_needed()
    hidden = (
        "Bokeh.documents.flatMap(d => [...d.all_models])"
        ".filter(m => m.type === 'GlyphRenderer' && !m.visible).length"
    )
    box = plot.bounding_box()
    assert box is not None and opened.evaluate(hidden) == 0
    for x in range(20, int(box["width"]), 12):  # the legend is above the panel; its place depends on fonts
        opened.mouse.click(box["x"] + x, box["y"] + 52)
        if opened.evaluate(hidden):
            break
    assert opened.evaluate(hidden) == 3  # centre, band and trials of one recipe
    tip = opened.locator(".bk-Tooltip")
    for y in range(90, 320, 6):
        opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + y)
        opened.wait_for_timeout(40)
        if tip.count():
            break
    said = tip.first.evaluate("element => element.shadowRoot.textContent")
    assert re.search(r"hf(_published)?/\d{3}.*(trained|did not train|diverged)", said, re.S)
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_width_in_both_colour_schemes(
    browser: Browser, report: Path, tmp_path: Path, scheme: str, width: int
) -> None:
    opened, wrong = visit(browser, report, color_scheme=scheme, viewport={"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    ink = opened.evaluate(
        "Bokeh.documents.flatMap(d => [...d.all_models])"
        ".find(m => m.type === 'LinearAxis').axis_label_text_color"
    )
    assert ink == {"light": "#1a1a1a", "dark": "#e8e8e8"}[scheme]
    shot = tmp_path / "shot.png"
    opened.screenshot(path=shot)
    corner = Image.open(shot).convert("L").getpixel((2, 2))
    assert isinstance(corner, int) and (corner > 200) == (scheme == "light")
    assert wrong == []


def test_without_javascript_it_is_a_page_of_images_and_tables(browser: Browser, report: Path) -> None:
    opened, wrong = visit(browser, report, java_script_enabled=False)
    images = opened.locator("figure img")
    assert images.count() >= 8 and all(image.is_visible() for image in images.all())
    assert opened.locator("#trials tbody tr").count() == 12
    assert (
        not opened.locator("#none").is_visible() and "Condition:" in opened.locator("#verdict").inner_text()
    )
    assert wrong == []


def test_texts_from_a_study_are_escaped(browser: Browser, report: Path) -> None:
    opened, _ = visit(browser, report)
    assert "broken" not in opened.title()
    assert EVIL in opened.locator("#commands").inner_text()
    assert opened.locator("img[src=x]").count() == 0


def test_the_same_data_make_the_same_page_but_for_the_numbers_of_models(tmp_path: Path) -> None:
    study = write_study(tmp_path, "s", {"hf": 3}, {"hf": [0.5, 0.7, NAN]})
    comparison = Comparison(load_study(study.folder))
    vars(comparison)["drawn"] = (comparison.drawn[0][:1], {})  # one figure will do
    first, second = page(comparison), page(comparison)
    assert re.sub(r"p\d{4,}", "", first) == re.sub(r"p\d{4,}", "", second)


def test_several_studies_and_one_trial_without_steps_make_a_page(tmp_path: Path) -> None:
    one = write_study(tmp_path, "one", {"hf": 2}, {"hf": [0.5]})
    two = write_study(tmp_path, "two", {"hf": 1}, {"hf": [0.4]})
    for file in tmp_path.rglob("steps.csv.gz"):
        file.unlink()
    both = pool({"a": load_study(one.folder), "b": load_study(two.folder)})
    made = page(Comparison(both))
    assert (
        "a/hf" in made
        and "b/hf" in made
        and "no step records" in made
        and "Not finished: a/hf 1 of 2" in made
    )
