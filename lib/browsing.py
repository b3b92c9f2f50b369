"""A real browser before a real server, for tests and `make bench`: JupyterLab or the page of `make app`, opened in Chromium by Playwright.

Servers run on a free port of this machine with nobody's settings but their own; what a page logs as an error is kept in `page.errors`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

from lib import serve

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OWN = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
WIDTH, HEIGHT = 1280, 1400
IDLE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
SHUT_DOWN = "async () => { await window.jupyterapp?.shell.currentWidget?.sessionContext?.shutdown(); }"
ERRORS = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
    .flatMap(c => (c.outputs || []).filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue))"""


def missing() -> str:
    """What a browser session lacks on this machine, "" for nothing."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (pip install -e .[dev])"
    return "" if chromium() else "no Chromium: apt-get install chromium, or set CHROME_BIN"


def chromium() -> str | None:
    """The browser's path: CHROME_BIN, else the first of BROWSERS that is installed."""
    return os.environ.get("CHROME_BIN") or next(filter(None, map(shutil.which, BROWSERS)), None)


@contextlib.contextmanager
def browser() -> Iterator:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


def page(browser, height: int = HEIGHT, **options):
    """A page of WIDTH pixels; page.errors gathers uncaught exceptions and what is logged as an error."""
    made = browser.new_page(viewport={"width": WIDTH, "height": height}, **options)
    made.errors = []
    made.on("pageerror", lambda error: made.errors.append(str(error)))
    made.on("console", lambda told: made.errors.append(told.text) if told.type == "error" else None)
    return made


@contextlib.contextmanager
def lab(root: Path) -> Iterator[str]:
    """The address of a JupyterLab in this folder, without token."""
    port = _free_port()
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", f"--ServerApp.root_dir={root}"]
    options += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.password=", "--ServerApp.disable_check_xsrf=True"]
    options += ["--LabApp.expose_app_in_browser=True"]
    quiet = root / ".jupyterlab_settings_dir" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True, exist_ok=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with _served(
        [sys.executable, "-m", "jupyter", "lab", *options], dict(os.environ), root, f"http://127.0.0.1:{port}", "/api/status"
    ) as at:
        yield at


@contextlib.contextmanager
def app(root: Path, theme: str = "light") -> Iterator[str]:
    """The address of the playground's own page."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        command, environment = serve.prepared(Path(folder), "127.0.0.1", port, theme)
        with _served(command, environment, root, f"http://127.0.0.1:{port}", "/voila/templates/playground/static/none") as at:
            yield at


def open_notebook(page, address: str, name: str) -> None:
    """Open a notebook of the server in a workspace of its own and wait for its kernel."""
    page.goto(f"{address}/lab/workspaces/{uuid.uuid4().hex[:8]}/tree/{name}?reset", wait_until="domcontentloaded")
    page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-Cell", timeout=90_000)
    page.wait_for_function(IDLE, timeout=90_000)


def run_all(page) -> list[str]:
    """Run every cell; the errors in its outputs."""
    page.evaluate("async () => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    return page.evaluate(ERRORS)


@contextlib.contextmanager
def screenshot(page, path: Path) -> Iterator[None]:
    """Keep what the browser shows when the block fails."""
    try:
        yield
    except BaseException:
        page.screenshot(path=str(path))
        print("screenshot:", path)
        raise


@contextlib.contextmanager
def _served(command: list[str], environment: dict, root: Path, address: str, ready: str) -> Iterator[str]:
    """A server's address once it answers, until the block ends."""
    own = {name: str(root / f".{name.lower()}") for name in OWN}
    environment = environment | own | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(serve.ROOT), environment.get("PYTHONPATH")]))
    log = root / "server.log"
    with open(log, "w") as out:
        server = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        for _ in range(480):
            if server.poll() is not None:
                raise RuntimeError(f"the server ended at once: {log.read_text()[-2000:]}")
            if _answers(address + ready):
                break
            time.sleep(0.25)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _answers(address: str) -> bool:
    """Whether something answers there, be it that the page does not exist."""
    try:
        urllib.request.urlopen(address, timeout=2)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
