"""The report page in a real browser: headless Chromium opens the file from the disk."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from adjoined.cli import main
from adjoined.training import train
from report_runs import hostile_run
from tiny_runs import QUIET, TINY

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

# What a reader sees: text and the colour behind it, all layers blended; the least contrast of WCAG 2.2 AA is 4.5.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (front, back) => [0, 1, 2].map((i) => front[i] * front[3] + back[i] * (1 - front[3]));
  const behind = (element) => {
    if (!element) return rgba(getComputedStyle(document.body).backgroundColor);
    return [...over(rgba(getComputedStyle(element).backgroundColor), behind(element.parentElement)), 1];
  };
  const light = (colour) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.getClientRects().length) continue;
    if (element.closest("script, style, title, desc")) continue;
    const style = getComputedStyle(element), back = behind(element);
    const front = over(rgba(element instanceof SVGElement ? style.fill : style.color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    seen += 1;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${walker.currentNode.data.trim()}`);
  }
  return { seen, found };
}"""

# Elements that stick out at the right, but for what lies in a box that scrolls by itself.
OVERFLOW = """() => [document.documentElement.scrollWidth - innerWidth, [...document.querySelectorAll("main *")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre, svg, .hidden"))
  .map((e) => e.outerHTML.slice(0, 80))]"""


@dataclass
class Visit:
    """A page in the browser, and what it has asked for and complained about."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH: nothing about the page in a browser is tested")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    contexts = []

    def open_page(file: Path, width: int = 1280, scheme: str = "light", **options: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        found = Visit(context.new_page())
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.on("console", lambda message: found.complaints.append(message.text))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.goto(file.resolve().as_uri())
        return found

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run with hostile names, of a family with benchmark and exports, and of both compared."""
    folder = tmp_path_factory.mktemp("pages")
    hostile, family = hostile_run(folder), folder / "family"
    train(replace(TINY, alpha=[2.0, 4.0], epochs=1), family, console=QUIET)
    assert main(["export", str(family), "--to", "torch-export", "--which", "small-2", "--images", "8"]) == 0
    assert main(["benchmark", str(family), "--runtimes", "eager", "--devices", "cpu", "--seconds", "0.1"]) == 0
    made = {name: folder / f"{name}.html" for name in ("hostile", "family", "comparison")}
    for runs, file in (([hostile], "hostile"), ([family], "family"), ([hostile, family], "comparison")):
        assert main(["report", *map(str, runs), "--out", str(made[file])]) == 0
    return made


KINDS = ("hostile", "family", "comparison")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_is_legible_and_asks_for_nothing(pages: dict[str, Path], visit: Any, kind: str, width: int):
    seen = visit(pages[kind], width)
    backgrounds = set()
    for scheme in ("light", "dark"):
        seen.page.emulate_media(color_scheme=scheme)
        backgrounds.add(seen.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert seen.page.evaluate(OVERFLOW) == [0, []]
        contrast = seen.page.evaluate(CONTRAST)
        assert contrast["seen"] > 60
        assert contrast["found"] == []
    assert len(backgrounds) == 2
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [pages[kind].resolve().as_uri()]
    sizes = seen.page.locator(".chart > svg").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    assert len(sizes) >= 4
    assert seen.page.locator("#benchmark table, #exports table").count() == (4 if kind == "family" else 0)
    assert min(sizes) > 280


def test_all_pictures_are_shown(pages: dict[str, Path], visit: Any):
    images = visit(pages["hostile"]).page.locator("img")
    images.evaluate_all("all => all.forEach(e => e.loading = 'eager')")
    images.last.evaluate("e => e.decode()")
    assert images.count() > 3
    assert min(images.evaluate_all("all => all.map(e => e.naturalWidth)")) == 16


def test_the_checks_can_fail(pages: dict[str, Path], visit: Any, tmp_path: Path):
    text = pages["hostile"].read_text()
    bad = tmp_path / "bad.html"
    bad.write_text(
        text.replace("<main", '<main data-bad="1"')
        .replace("</main>", '<p class="bad">pale</p><img src="https://example.org/x.png" alt="x"></main>')
        .replace("<body>", '<body onload="alert(1)">')
    )
    seen = visit(bad, 360)
    assert any("Content Security Policy" in each for each in seen.complaints)  # the picture and the handler
    assert len(seen.complaints) >= 2
    seen.page.locator(".bad").evaluate(
        "e => Object.assign(e.style, { color: '#aaa', width: '500px', maxWidth: 'none' })"
    )
    assert [each.split()[1] for each in seen.page.evaluate(CONTRAST)["found"]] == ["pale"]
    assert seen.page.evaluate(OVERFLOW)[1] != []


def test_the_keyboard_reaches_everything_in_order_and_changes_the_theme(pages: dict[str, Path], visit: Any):
    page = visit(pages["hostile"]).page
    focused = (
        "document.activeElement.id || document.activeElement.getAttribute('href') || document.activeElement.tagName"
    )

    def tab() -> str:
        page.keyboard.press("Tab")
        return page.evaluate(focused)

    assert tab() == "#main"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0  # the link to skip shows itself
    assert tab() == "theme"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.keyboard.press("Enter")
    dark = page.evaluate(colour)
    assert light != dark
    assert page.get_by_role("button", name="Change to the light theme").is_visible()
    for _ in range(10):  # Chromium keeps it in another process, which a reload may overtake on a busy machine
        page.reload()
        if page.evaluate(colour) == dark:
            break
    assert page.evaluate(colour) == dark  # it is remembered
    reached = []
    for _ in range(120):
        reached.append(tab())
        if reached[-1] in ("BODY", "HTML"):
            break
    links = page.locator("nav a").evaluate_all("all => all.map(e => e.getAttribute('href'))")
    assert [each for each in reached if each in links] == links
    assert reached.count("SUMMARY") == page.locator("summary").count()
    page.locator("summary").first.press("Enter")
    assert page.locator("details[open] table").first.is_visible()


def test_without_scripts_the_page_is_whole_and_follows_the_system(pages: dict[str, Path], visit: Any):
    plain = visit(pages["hostile"], scheme="dark", java_script_enabled=False)
    scripted = visit(pages["hostile"], scheme="dark")
    assert plain.complaints == []
    assert not plain.page.locator("#theme").is_visible()
    without = plain.page.locator("main").inner_text()
    assert without == scripted.page.locator("main").inner_text()
    assert "Calibration" in without
    plain.page.locator("summary").first.click()
    assert plain.page.locator("details[open] table").first.is_visible()


def test_a_screen_reader_finds_regions_headings_and_charts_by_name(pages: dict[str, Path], visit: Any):
    page = visit(pages["hostile"]).page
    for role, name in (("navigation", "On this page"), ("region", "Learning curves"), ("img", "Reliability")):
        assert page.get_by_role(role, name=name, exact=True).count() == 1
    for role in ("banner", "main", "contentinfo"):
        assert page.get_by_role(role).count() == 1
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.get_by_role("table", name="Confidence and accuracy of the networks").count() == 1
