"""`report.html` in a real browser, with JavaScript and without."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
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
    data = load_study(study.folder)
    steps = data.steps[data.steps["recipe"] == "hf"]
    vars(data)["prerun"] = (steps.assign(recipe="adaptive_hf"), "l2")
    return save_page(Comparison(data), folder)


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
    policy = opened.locator("meta[http-equiv='Content-Security-Policy']").get_attribute("content")
    assert (
        policy and policy.startswith("default-src 'none'") and "http" not in policy and "eval" not in policy
    )
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


def hover(opened: Page, figure: str) -> tuple[str, str]:
    """Move the pointer over the first plot of a figure until it names a trial; return text and cursor row."""
    plot = opened.locator(f"#{figure} .plot").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box is not None
    said = plot.locator(".readout")
    for y in range(120, 420, 5):
        opened.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + y)
        opened.wait_for_timeout(10)
        if text := said.text_content():
            return text, str(opened.locator(".bk-Tooltip").count())
    return "", ""


def test_the_legend_hides_a_recipe_a_drag_zooms_and_the_pointer_names_a_trial_below_the_plot(
    browser: Browser, report: Path
) -> None:
    opened, wrong = visit(browser, report, viewport={"width": 1280, "height": 900})
    for figure in ("figure2", "equal_cost", "prerun_steps"):
        text, tooltips = hover(opened, figure)
        searched = r"hf(_published)?/\d{3}: .*outcome (trained|stood still|did not train|diverged)"
        assert re.match(r"pre-run adaptive_hf/" if figure == "prerun_steps" else searched, text)
        assert tooltips == "0"
    place = opened.locator("#figure2 .plot").first
    place.scroll_into_view_if_needed()
    drawn, below = place.locator(".drawn").bounding_box(), place.locator(".readout").bounding_box()
    assert drawn and below and below["y"] >= drawn["y"] + drawn["height"] and drawn["height"] >= 360
    hidden = (
        "Bokeh.documents.flatMap(d => [...d.all_models])"
        ".filter(m => m.type === 'GlyphRenderer' && !m.visible).length"
    )
    assert opened.evaluate(hidden) == 0
    for x in range(20, int(drawn["width"]), 12):  # the legend is above the panel; its place depends on fonts
        opened.mouse.click(drawn["x"] + x, drawn["y"] + 52)
        if opened.evaluate(hidden):
            break
    assert opened.evaluate(hidden) == 3  # centre, band and trials of one recipe
    span = (
        "Bokeh.documents[0].roots().find(r => document.querySelector(`#figure2 [data-root-id='${r.id}']`))"
        ".x_range"
    )
    whole = opened.evaluate(f"{span}.end - {span}.start")
    middle = drawn["x"] + drawn["width"] / 2, drawn["y"] + 0.6 * drawn["height"]
    opened.mouse.move(*middle)
    opened.mouse.down()
    opened.mouse.move(middle[0] + 80, middle[1] + 60, steps=3)
    opened.mouse.up()
    assert 0 < opened.evaluate(f"{span}.end - {span}.start") < 0.5 * whole
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_width_and_its_figures_follow_the_colour_scheme(
    browser: Browser, report: Path, tmp_path: Path, scheme: str, width: int
) -> None:
    opened, wrong = visit(browser, report, color_scheme=scheme, viewport={"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    for place in ("body", "#figure2 .drawn", "#distribution img"):
        shot = tmp_path / "shot.png"
        opened.locator(place).first.screenshot(path=shot)
        tints = np.asarray(Image.open(shot).convert("L"))
        paper, (dark, light) = np.median(tints), np.percentile(tints, [0.2, 99.8])
        assert (paper > 220 and dark < 110) if scheme == "light" else (paper < 40 and light > 145), place
    assert wrong == []


def test_each_recipe_is_described_once(report: Path) -> None:
    text = report.read_text()
    known = load_study(report.parent / "made-up").explanations
    assert [text.count(html.escape(known[name], quote=False)) for name in ("hf", "hf_published")] == [1, 1]


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
