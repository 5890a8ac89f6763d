"""The report in a real Chromium, where there is one: it renders, says nothing on the console, and fits a phone."""

from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

import fitkit
from fitkit.after.report.page import table

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

SPECS = Path(__file__).parent.parent / "specs"
WIDE = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
# The contrast (WCAG 2) of every text with the nearest background behind it; SVG text is painted with its fill.
CONTRAST = """(() => {
  const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => {
    paint.clearRect(0, 0, 1, 1); paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
    return paint.getImageData(0, 0, 1, 1).data;
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const found = rgba(getComputedStyle(e).backgroundColor);
      if (found[3] == 255) return found;
    }
    return [255, 255, 255];
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), weak = [];
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, style = getComputedStyle(e);
    if (!walk.currentNode.data.trim() || ["title", "desc"].includes(e.tagName) || !e.getClientRects().length) continue;
    const ink = rgba(e.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) weak.push(walk.currentNode.data.trim() + " " + (a + 0.05) / (b + 0.05));
  }
  return weak;
})()"""


@pytest.fixture(scope="module")
def browser():
    found = Browser()
    yield found
    found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return the report on a classifier, one on a regression, and one that compares two runs, by name."""
    folder = tmp_path_factory.mktemp("pages")
    for name, seed in (("digits", 0), ("diabetes", 0), ("digits", 1)):
        overrides = {"fit.epochs": 9, "fit.compile": False, "seed": seed}
        fitkit.fit(SPECS / f"{name}.yaml", out=folder / (f"{name}-{seed}" if seed else name), overrides=overrides)
    both = fitkit.report([folder / "digits", folder / "digits-1"], folder / "comparison.html")
    return {name: fitkit.report(folder / name) for name in ("digits", "diabetes")} | {"comparison": both}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["digits", "diabetes", "comparison"])
def test_it_renders_without_a_word_on_the_console_and_can_be_read(name, dark, browser, pages):
    browser.open(pages[name], dark=dark)
    assert browser.problems == []
    assert browser.value(
        "[...document.querySelectorAll('svg.plot')].every(e => e.getBoundingClientRect().height > 100)"
    )
    assert browser.value("document.querySelectorAll('svg.plot').length") >= 4
    assert browser.value(CONTRAST) == []


def test_the_contrast_of_texts_is_measured(browser, tmp_path):
    path = tmp_path / "weak.html"
    path.write_text("<body style='background: #fff'><p style='color: #999'>weak</p><p style='color: #555'>strong</p>")
    browser.open(path)
    [found] = browser.value(CONTRAST)
    assert found.startswith("weak 2.8")


def test_drawings_change_with_the_theme(browser, pages):
    found = []
    for dark in (False, True):
        browser.open(pages["digits"], dark=dark)
        found.append(browser.value("getComputedStyle(document.querySelector('svg.plot text')).fill"))
        found.append(browser.value("getComputedStyle(document.documentElement).backgroundColor"))
    assert len(set(found)) == 4


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("name", ["digits", "diabetes", "comparison"])
def test_nothing_is_wider_than_the_screen(name, width, browser, pages):
    browser.open(pages[name], width=width, phone=width < 500)
    assert browser.value(WIDE) == [width, width]


def test_a_wide_table_scrolls_in_its_own_box(browser, pages, tmp_path):
    page = pages["digits"].read_text("utf-8")
    wide = table(["name", *map(str, range(80))], [["w" * 200, *["0.1234"] * 80]], "wide")
    (tmp_path / "wide.html").write_text(page.replace("<footer>", f"{wide}<footer>"), "utf-8")
    browser.open(tmp_path / "wide.html", width=360, phone=True)
    assert browser.value(WIDE) == [360, 360]
    assert browser.value("[...document.querySelectorAll('.wide')].at(-1).scrollWidth") > 2000


def test_a_script_would_not_run(browser, pages, tmp_path):
    page = pages["digits"].read_text("utf-8")
    with_script = page.replace(
        "</main>", "<script>document.title = 'ran'</script><img src='https://x.invalid/a.png'></main>"
    )
    (tmp_path / "script.html").write_text(with_script, "utf-8")
    browser.open(tmp_path / "script.html")
    assert browser.value("document.title") == "digits: report"
    assert any("Content Security Policy" in said for said in browser.problems)


def test_it_prints_on_a_few_pages(browser, pages):
    browser.open(pages["digits"], dark=True)
    printed = browser.pdf()
    assert printed.startswith(b"%PDF") and 3 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") <= 20
