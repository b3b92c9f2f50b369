"""An explorer in a real JupyterLab and a real browser: the slider moves by keyboard and the plot follows.

JupyterLab runs on a free port with its own empty settings; Debian's Chromium is driven through Playwright. Without Chromium or Playwright
the test is skipped, except where the variable CI is set: there it fails. A screenshot is kept when the test fails.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CELLS = (
    "from lib import plots, report, widgets",
    "report.explorer(widgets.world_explorer(['plane'], train=20, method='linear'))",
    "report.show(plots.bars({'gp': 18.3, 'oi': 43.3}, 'PSNR (dB)'), 'bars', 'OI wins')",
)
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
    .flatMap(c => (c.outputs || []).filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue))"""
IDLE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
SHUT_DOWN = "async () => { await window.jupyterapp?.shell.currentWidget?.sessionContext?.shutdown(); }"


def need(found, what: str):
    """What was found; else skip, or fail under CI."""
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(what)
    return found


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        need(None, "playwright is not installed (pip install -e .[dev])")
    path = os.environ.get("CHROME_BIN") or next(filter(None, map(shutil.which, BROWSERS)), None)
    need(path, "no Chromium: apt-get install chromium, or set CHROME_BIN")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address and root folder of a JupyterLab with nobody's settings but its own."""
    root = tmp_path_factory.mktemp("lab")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    own = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    env = os.environ | {name: str(root / f".{name.lower()}") for name in own} | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", f"--ServerApp.root_dir={root}"]
    options += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.password=", "--ServerApp.disable_check_xsrf=True"]
    options += ["--LabApp.expose_app_in_browser=True"]
    quiet = root / ".jupyterlab_settings_dir" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with open(root / "lab.log", "w") as log:
        command = [sys.executable, "-m", "jupyter", "lab", *options]
        server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            assert server.poll() is None, (root / "lab.log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"{address}/api/status", timeout=2)
                break
            except OSError:
                time.sleep(0.25)
        yield address, root
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


@pytest.fixture(scope="module")
def page(browser, lab):
    """A notebook with an explorer and a figure, all cells run."""
    address, root = lab
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, root / "tiny.ipynb")
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    try:
        with screenshot(page, root):
            page.goto(f"{address}/lab/workspaces/{uuid.uuid4().hex[:8]}/tree/tiny.ipynb?reset", wait_until="domcontentloaded")
            page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-Cell", timeout=60_000)
            page.wait_for_function(IDLE, timeout=60_000)
            page.evaluate("async () => window.jupyterapp.commands.execute('notebook:run-all-cells')")
            assert page.evaluate(ERRORS) == []
        page.root = root
        yield page
    finally:
        page.evaluate(SHUT_DOWN)
        page.close()


@contextmanager
def screenshot(page, root: Path):
    """Keep what the browser shows when the block fails."""
    try:
        yield
    except BaseException:
        page.screenshot(path=str(root / "failure.png"))
        print("screenshot:", root / "failure.png")
        raise


def test_slider_moves_plot_by_keyboard(page):
    with screenshot(page, page.root):
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
    with screenshot(page, page.root):
        picture = page.locator(".jp-RenderedPlotly img.plot-img")
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("i => [i.naturalWidth, i.naturalHeight]") == [840, 380]
        picture.dispatch_event("mouseenter")
        page.wait_for_selector(".jp-RenderedPlotly .main-svg", timeout=20_000)
        names = (
            "() => Array.from(document.querySelector('.jp-RenderedPlotly .js-plotly-plot, .jp-RenderedPlotly.js-plotly-plot').data[0].x)"
        )
        assert page.evaluate(names) == ["gp", "oi"]
