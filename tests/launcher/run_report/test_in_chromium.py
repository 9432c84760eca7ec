"""The page in a real browser: keyboard, mouse, dark mode, narrow windows, paper; and that it loads nothing."""

import os
import re
import shutil

import pytest

from launcher.run_report.page import write_page
from launcher.run_report.run_record import read_run, with_timelines
from tests.launcher.run_report.made_runs import LARGE, MEDIUM, SMALL, made_steps, write_run
from tests.launcher.run_report.test_page import FAILED

playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright, which is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: tests/launcher/run_report/install_chromium.sh"),
]
RUNS = {
    "small": {"config": SMALL, "steps": made_steps(300, restart_at=200)},
    "failed": {"config": SMALL, "report": FAILED},
    "medium": {"config": MEDIUM, "steps": made_steps(10_000), "micro_batches": 16},
    "large": {"config": LARGE, "steps": made_steps(200)},
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of each run, written once."""
    written = {}

    def page_of(name):
        if name not in written:
            run_dir, plan = write_run(tmp_path_factory.mktemp(name), **RUNS[name])
            written[name] = write_page(with_timelines(read_run(run_dir, plan, {}), run_dir), run_dir.page_file)
        return written[name].as_uri()

    return page_of


@pytest.fixture(scope="module")
def browser():
    # Chromium refuses its sandbox to root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, pages):
    """A function that opens the page of a run; at the end, nothing may have been logged, requested or thrown."""
    contexts, troubles = [], []

    def open_page(name, **settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.partition("#")[0] == pages(name) or troubles.append(request.url))
        page.goto(pages(name))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def chosen(page):
    return page.locator(".timeline .details").first.text_content()


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def test_the_keyboard_reads_a_timeline_span_by_span(opened):
    page = opened("small")
    page.locator(".scroller").focus()
    press(page, "ArrowRight")
    assert chosen(page) == "rank 0 (vision.dp0): data; 2 ms, from 0 us on"
    press(page, "ArrowRight")
    assert chosen(page).startswith("rank 0 (vision.dp0): forward vision.0, micro-batch 0; 3 ms, from 3 ms on")
    press(page, "ArrowRight")
    assert "send activations" in chosen(page)
    press(page, "ArrowLeft", "ArrowDown")
    assert chosen(page).startswith("rank 1 (vision.dp1): forward vision.0, micro-batch 0")
    press(page, "End", "ArrowRight")
    assert "rank 1 (vision.dp1): optimizer" in chosen(page)
    press(page, "ArrowDown", "ArrowDown", "ArrowDown", "End")
    assert chosen(page).startswith("rank 3 (language.pp1): optimizer, failed;")
    press(page, "Home")
    assert "rank 3 (language.pp1): data" in chosen(page)
    assert page.locator(".labels .chosen").text_content().startswith("3 language.pp1")


def test_enter_leads_from_a_wait_to_the_rank_that_sends(opened):
    page = opened("small")
    page.locator(".scroller").focus()
    press(page, "ArrowDown", "ArrowDown", "ArrowDown", "Home", "ArrowRight")
    assert re.match(r"rank 2 \(language.pp0\): wait for activations .*, micro-batch 0, from rank 0;", chosen(page))
    press(page, "Enter")
    assert chosen(page).startswith("rank 0 (vision.dp0)")
    press(page, "Home", "Enter")
    assert chosen(page) == "this span waits for no message"


def test_a_click_and_the_mouse_find_the_same_span_as_the_keyboard(opened):
    page = opened("small")
    second_row = {"x": 2, "y": 24 + 22 + 11}
    page.locator(".picture").hover(position=second_row)
    assert page.locator(".tip").text_content().startswith("rank 1 (vision.dp1): data")
    page.locator(".picture").click(position=second_row)
    assert chosen(page).startswith("rank 1 (vision.dp1): data")
    page.mouse.move(5, 5)
    assert page.locator(".tip").is_hidden()


def test_zoom_keeps_the_chosen_span_in_view(opened):
    page = opened("medium")
    page.locator(".scroller").focus()
    press(page, "ArrowDown", "End", "+", "+", "+")
    picture, scroller = page.locator(".picture").bounding_box(), page.locator(".scroller").bounding_box()
    span = page.locator(".chosen-span").bounding_box()
    assert picture["width"] == pytest.approx(8 * scroller["width"], rel=0.02)
    assert scroller["x"] - 1 <= span["x"] <= scroller["x"] + scroller["width"]
    page.get_by_role("button", name="show the whole step").click()
    assert page.locator(".picture").bounding_box()["width"] <= scroller["width"]


def test_the_slider_reads_all_curves_at_a_step(opened):
    page = opened("small")
    slider = page.get_by_label("Values at step")
    slider.focus()
    press(page, "Home")
    assert page.locator(".at-step").text_content() == "0"
    first = page.locator(".reading").first.text_content()
    press(page, "ArrowRight", "ArrowRight", "ArrowRight")
    assert page.locator(".at-step").text_content() == "3"
    assert page.locator(".reading").first.text_content() != first
    chart = page.locator(".chart svg").first
    chart.hover(position={"x": chart.bounding_box()["width"] - 3, "y": 50})
    assert page.locator(".at-step").text_content() == "299"


def test_tab_reaches_everything_in_order_with_a_visible_focus(opened):
    page = opened("failed")
    seen, outlines = [], set()
    for _ in range(60):
        press(page, "Tab")
        found = page.evaluate(
            "(({tagName, className, textContent}) => [tagName, String(className), textContent.trim().slice(0, 30)])"
            "(document.activeElement)"
        )
        if found[0] == "BODY":
            break
        seen.append(found)
        outlines.add(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
    kinds = [tag for tag, _, _ in seen]
    assert kinds[: kinds.index("SUMMARY")] == ["A"] * kinds.index("SUMMARY")
    assert {"A", "SUMMARY", "BUTTON"} <= set(kinds)
    assert [each for each in seen if each[1] == "scroller"]
    assert outlines == {"solid"}


def test_a_section_folds_away_and_a_link_opens_it_again(opened):
    page = opened("failed")
    page.locator("#layout > summary").click()
    assert page.locator(".layout").is_hidden()
    page.get_by_role("link", name="Layout").click()
    assert page.locator(".layout").is_visible()
    page.get_by_text("Traceback of the rank that failed first").click()
    assert page.get_by_text("<img src=x onerror=alert(1)>").first.is_visible()
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("name", RUNS)
def test_no_text_is_illegible_in_light_or_dark(opened, name):
    """The contrast of text and ground is 4.5 at least, as WCAG 2.2, 1.4.3 asks for."""
    for scheme in ("light", "dark"):
        page = opened(name, color_scheme=scheme)
        assert page.evaluate(CONTRASTS) == [], scheme


CONTRASTS = """() => {
  const parse = (color) => color.match(/[0-9.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const behind = (text) => {
    const box = text.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
    const boxes = [...text.ownerSVGElement.querySelectorAll("rect")].filter((rect) => {
      const { left, right, top, bottom } = rect.getBoundingClientRect();
      return left <= x && x <= right && top <= y && y <= bottom && rect.compareDocumentPosition(text) & 4;
    });
    return boxes.length ? parse(getComputedStyle(boxes.at(-1)).fill) : ground(text.ownerSVGElement);
  };
  const found = new Set();
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.getClientRects().length || ["SCRIPT", "STYLE", "title"].includes(element.tagName)) continue;
    const isDrawn = element instanceof SVGElement;
    const color = parse(isDrawn ? getComputedStyle(element).fill : getComputedStyle(element).color);
    const [low, high] = [luminance(color), luminance(isDrawn ? behind(element) : ground(element))].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) found.add(`${element.tagName} ${element.textContent.slice(0, 40)} ${color}`);
  }
  return [...found];
}"""


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("width", [360, 800, 1600])
def test_the_window_never_scrolls_sideways(opened, name, width):
    page = opened(name, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", ["small", "large"])
def test_the_page_prints(opened, name):
    page = opened(name)
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_without_scripts_everything_is_there_but_the_reading(opened):
    page = opened("small", java_script_enabled=False)
    assert page.locator(".bars path").count() > 3
    assert page.locator(".chart .line").count() >= 6
    assert page.locator(".labels li").count() == 4
