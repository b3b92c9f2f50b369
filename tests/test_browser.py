"""An explorer in a real JupyterLab and a real browser: the slider moves by keyboard and the plot follows.

JupyterLab runs on a free port with its own empty settings; Debian's Chromium is driven through Playwright. Without Chromium or Playwright
the test is skipped, except where the variable CI is set: there it fails. A screenshot is kept when the test fails.
"""

import os

import nbformat
import pytest

from lib import browsing
from lib.browsing import ERRORS, screenshot

CELLS = (
    "from lib import plots, report, widgets",
    "report.explorer(widgets.world_explorer(['plane'], train=20, method='linear'))",
    "report.show(plots.bars({'gp': 18.3, 'oi': 43.3}, 'PSNR (dB)'), 'bars', 'OI wins')",
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A notebook with an explorer and a figure, all cells run, in a JupyterLab with nobody's settings but its own."""
    if what := browsing.missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(what)
    root = tmp_path_factory.mktemp("lab")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, root / "tiny.ipynb")
    with browsing.browser() as browser, browsing.lab(root) as address:
        page = browsing.page(browser)
        with screenshot(page, root / "failure.png"):
            browsing.open_notebook(page, address, "tiny.ipynb")
            assert browsing.run_all(page) == []
        page.root = root
        yield page
        page.evaluate(browsing.SHUT_DOWN)
        page.close()


def test_slider_moves_plot_by_keyboard(page):
    with screenshot(page, page.root / "failure.png"):
        plot = ".jp-OutputArea .widget-vbox .js-plotly-plot"
        page.wait_for_selector(f"{plot} .main-svg", timeout=60_000)
        title = f"document.querySelector('{plot}').layout.annotations?.[0]?.text"
        data = f"() => Array.from(document.querySelector('{plot}').data[2].z[16])"
        page.wait_for_function(f"() => {title} === 'truth, 51 readings'", timeout=20_000)
        before = page.evaluate(data)
        assert len(before) == 32
        slider = page.locator(".widget-hslider", has=page.locator(".widget-label", has_text="readings")).first
        slider.locator(".noUi-handle").scroll_into_view_if_needed()
        slider.locator(".noUi-handle").focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function(f"() => {title} === 'truth, 102 readings'", timeout=20_000)
        assert slider.locator(".widget-readout").inner_text() == "102"
        assert page.evaluate(data) != before
        assert page.evaluate(ERRORS) == []
        assert page.locator("text=/Error displaying widget|Loading widget/").count() == 0


def test_shown_figure_turns_from_picture_to_plot(page):
    with screenshot(page, page.root / "failure.png"):
        picture = page.locator(".jp-RenderedPlotly img.plot-img")
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("i => [i.naturalWidth, i.naturalHeight]") == [840, 380]
        picture.dispatch_event("mouseenter")
        page.wait_for_selector(".jp-RenderedPlotly .main-svg", timeout=20_000)
        names = (
            "() => Array.from(document.querySelector('.jp-RenderedPlotly .js-plotly-plot, .jp-RenderedPlotly.js-plotly-plot').data[0].x)"
        )
        assert page.evaluate(names) == ["gp", "oi"]
