"""The playground in a real browser: all of notebook 00 in JupyterLab, the page of `make app`, and the HTML report without a network.

Without Chromium or Playwright the tests are skipped, except where the variable CI is set: there they fail. What fails leaves a screenshot.
"""

import os
from pathlib import Path

import nbformat
import pytest
import yaml

from lib import browsing, page, view

ROOT = Path(__file__).parents[1]
MAPS = ".sf-maps"
SERIAL = f"() => Number(document.querySelector('{MAPS}')?.dataset.serial ?? 0)"
LATER = f"before => Number(document.querySelector('{MAPS}').dataset.serial) > before && !document.querySelector('{MAPS}').dataset.busy"
PIXELS = f"""index => {{ const c = document.querySelectorAll('{MAPS} canvas')[index];
    const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    let sum = 0; for (let i = 0; i < d.length; i += 41) sum = (sum * 31 + d[i]) % 1000000007; return sum; }}"""


def need():
    """Skip, or fail under CI, where there is no browser."""
    if what := browsing.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@pytest.fixture(scope="module")
def browser():
    need()
    with browsing.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def notebook(browser, tmp_path_factory):
    """Notebook 00 in JupyterLab, all of it run."""
    root = tmp_path_factory.mktemp("playground")
    text = (ROOT / "notebooks" / "00_start_here.ipynb").read_text()
    assert "past: int = 100" in text
    (root / "00_start_here.ipynb").write_text(text.replace("past: int = 100", "past: int = 40"))  # V5 learns sooner
    with browsing.lab(root) as address:
        tab = browsing.page(browser)
        with browsing.screenshot(tab, root / "failure.png"):
            browsing.open_notebook(tab, address, "00_start_here.ipynb")
            assert browsing.run_all(tab) == []
            tab.wait_for_selector(f"{MAPS}[data-serial]", timeout=60_000)
        tab.root = root
        yield tab
        tab.evaluate(browsing.SHUT_DOWN)
        tab.close()


@pytest.fixture(scope="module")
def served(browser, tmp_path_factory):
    """The page of `make app`, in its dark theme."""
    root = tmp_path_factory.mktemp("app")
    with browsing.app(root, "dark") as address:
        tab = browsing.page(browser)
        tab.root = root
        with browsing.screenshot(tab, root / "failure.png"):
            tab.goto(address, timeout=90_000)
            tab.wait_for_selector(f"{MAPS}[data-serial]", timeout=90_000)
        yield tab
        tab.close()


def after(tab, act) -> None:
    """Do something, and wait until other maps are shown."""
    before = tab.evaluate(SERIAL)
    act()
    tab.wait_for_function(LATER, arg=before, timeout=30_000)


def until(tab, name, value) -> None:
    """Wait until the maps say so of themselves: count of readings, title of the answer."""
    tab.wait_for_function(f"v => document.querySelector('{MAPS}').dataset.{name}.startsWith(v)", arg=str(value), timeout=30_000)


def handle(tab, label):
    slider = tab.locator(".widget-hslider", has=tab.locator(".widget-label", has_text=label)).first
    slider.scroll_into_view_if_needed()
    return slider.locator(".noUi-handle")


def choose(tab, label, value):
    control = tab.locator(".widget-dropdown", has=tab.locator(".widget-label", has_text=label)).first.locator("select")
    after(tab, lambda: control.select_option(label=value))


def press(tab, label, key):
    handle(tab, label).focus()
    tab.keyboard.press(key)


def shown(tab):
    return tab.evaluate(f"() => ({{ ...document.querySelector('{MAPS}').dataset }})")


def core_path(tab):
    """Sliders by keyboard and mouse, clicks and drags on a map, another world and method, undo: each changes what is shown."""
    first = shown(tab)
    assert first["title"].startswith("v5,") and first["count"] == "13"
    press(tab, "readings", "ArrowRight")
    until(tab, "count", 26)
    box, grip = handle(tab, "readings").bounding_box(), tab.mouse
    grip.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    grip.down()
    after(tab, lambda: grip.move(box["x"] + 30, box["y"] + 5, steps=12))
    grip.up()
    tab.wait_for_timeout(500)
    assert int(shown(tab)["count"]) > 26
    press(tab, "readings", "Home")
    until(tab, "count", "1")
    canvas = tab.locator(f"{MAPS} canvas")
    canvas.first.scroll_into_view_if_needed()
    before = tab.evaluate(PIXELS, 2)
    for number, spot in enumerate([(50, 60), (150, 60), (90, 160), (200, 200)]):
        canvas.nth(number).click(position={"x": spot[0], "y": spot[1]})
        until(tab, "count", number + 2)
    assert tab.evaluate(PIXELS, 2) != before
    canvas.nth(3).click(position={"x": 50, "y": 60})
    until(tab, "count", 4)  # a click on a reading removes it
    corner, before = canvas.nth(1).bounding_box(), tab.evaluate(PIXELS, 1)
    grip.move(corner["x"] + 150, corner["y"] + 60)
    grip.down()
    after(tab, lambda: grip.move(corner["x"] + 210, corner["y"] + 110, steps=8))
    grip.up()
    tab.wait_for_timeout(500)
    assert shown(tab)["count"] == "4" and tab.evaluate(PIXELS, 1) != before
    choose(tab, "world", "radial")
    choose(tab, "method", "gp")
    until(tab, "title", "gp,")
    tab.get_by_role("button", name="undo", exact=True).click()
    until(tab, "title", "v5,")


def no_complaint(tab):
    assert tab.locator("text=/Error displaying widget|Loading widget/").count() == 0
    assert tab.locator("text=/Not possible/").count() == 0
    assert tab.errors == []


def test_the_notebook_answers_by_keyboard_and_mouse(notebook):
    with browsing.screenshot(notebook, notebook.root / "failure.png"):
        core_path(notebook)
        assert notebook.evaluate(browsing.ERRORS) == []
        no_complaint(notebook)


def test_maps_zoom_and_are_read_by_keyboard(notebook):
    with browsing.screenshot(notebook, notebook.root / "failure.png"):
        grid = notebook.locator(f"{MAPS} .sf-grid")
        assert "Click a map to add a reading" in grid.get_attribute("aria-label") and grid.get_attribute("role") == "application"
        count = int(shown(notebook)["count"])
        grid.focus()
        for key in ("ArrowRight", "Shift+ArrowUp"):
            notebook.keyboard.press(key)
        assert "truth" in notebook.locator(".sf-say").inner_text()
        notebook.keyboard.press("Enter")
        until(notebook, "count", count + 1)
        notebook.keyboard.press("m")
        after(notebook, lambda: notebook.keyboard.press("ArrowLeft"))
        notebook.keyboard.press("m")
        notebook.wait_for_timeout(500)
        notebook.keyboard.press("Enter")
        until(notebook, "count", count)  # the reading was carried along and is under the cross
        before = notebook.evaluate(PIXELS, 0)
        notebook.keyboard.press("+")
        assert shown(notebook)["zoom"] == "2" and notebook.evaluate(PIXELS, 0) != before
        notebook.keyboard.press("0")
        assert shown(notebook)["zoom"] == "1"
        assert notebook.locator("canvas[aria-hidden=true]").count() == 5
        assert notebook.locator(".sf-maps button:not([aria-label])").count() == 0


def test_stories_and_the_path_play(notebook):
    with browsing.screenshot(notebook, notebook.root / "failure.png"):
        choose(notebook, "story", "a flow forms the field")
        notebook.get_by_label("play the path over flow time").click()
        notebook.wait_for_function(f"() => Number(document.querySelector('{MAPS}').dataset.frame) >= 3", timeout=20_000)
        first = notebook.evaluate(PIXELS, 2)
        notebook.wait_for_function(f"() => Number(document.querySelector('{MAPS}').dataset.frame) === 16", timeout=20_000)
        assert notebook.evaluate(PIXELS, 2) != first
        choose(notebook, "story", "the dt curves")
        notebook.wait_for_selector(".widget-vbox .js-plotly-plot .main-svg", timeout=30_000)
        no_complaint(notebook)


def test_files_are_saved_and_make_the_view_again(notebook):
    with browsing.screenshot(notebook, notebook.root / "failure.png"):
        choose(notebook, "story", "land in the sea")
        kept = {}
        for name in ("picture", "field", "readings", "parameters"):
            with notebook.expect_download(timeout=20_000) as download:
                notebook.get_by_role("button", name=f"save {name}").click()
            kept[download.value.suggested_filename] = Path(download.value.path()).read_bytes()
        assert (
            kept["view.png"].startswith(b"\x89PNG") and kept["view.nc"][1:4] == b"HDF" and kept["readings.csv"].startswith(b"x,y,value [K]")
        )
        values = yaml.safe_load(kept["view.yaml"])
        answer = view.answer(view.View(**{name: value for name, value in values.items() if name != "past"}), values["past"])
        assert f"{answer.psnr:.1f} dB" in shown(notebook)["title"]


def test_a_file_of_ones_own_is_answered(notebook):
    with browsing.screenshot(notebook, notebook.root / "failure.png"):
        path = notebook.root / "mine.csv"
        path.write_text("x,y,value\n" + "".join(f"{i % 5},{i // 5},{(i % 5) * 0.1 + (i // 5) * 0.2}\n" for i in range(25)))
        with notebook.expect_file_chooser() as chooser:
            notebook.get_by_role("button", name="your files").click()
        chooser.value.set_files(str(path))
        notebook.wait_for_function("() => document.body.innerText.includes('25 sites from 25 rows')", timeout=30_000)
        assert notebook.evaluate(browsing.ERRORS) == [] and notebook.errors == []


def test_the_page_of_its_own_answers_too(served):
    with browsing.screenshot(served, served.root / "failure.png"):
        core_path(served)
        no_complaint(served)
        assert served.locator("pre, code").count() == 0, "the page shows no code"
        letters = served.evaluate(f"() => getComputedStyle(document.querySelector('{MAPS}')).color.match(/\\d+/g).slice(0, 3).map(Number)")
        assert min(letters) > 200, "letters are light in the dark theme"


def test_the_report_needs_no_network_and_no_script(browser, tmp_path):
    book = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", 4)
    (tmp_path / "run.html").write_text(page.notebook(book, "Start here"))
    tab, asked = browsing.page(browser), []
    tab.on("request", lambda request: asked.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
    tab.goto((tmp_path / "run.html").as_uri())
    sizes = tab.evaluate("() => Array.from(document.images, i => i.naturalWidth)")
    assert min(sizes) > 0 and sum(size == 840 for size in sizes) >= 6, "every explorer's place and every figure is a picture"
    assert "Error displaying widget" not in tab.inner_text("body")
    assert asked == [] and tab.errors == []
    tab.close()
