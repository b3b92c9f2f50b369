"""The playground as a page of its own, by Voila: `make app`. Only this machine can open it unless another address is asked for.

The page runs one cell; Voila lets a visitor move widgets and run nothing else. A kernel is kept warm, so that a page opens at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
HERE = ("127.0.0.1", "localhost", "::1")
TEMPLATES = Path(__file__).with_name("share")
THEMES = ("light", "dark")
CELL = "from lib import playground\n\nbox = playground.box()\nbox"


def run(host: str = "127.0.0.1", port: int = 8866, theme: str = "light") -> int:
    """Serve until Ctrl-C; Voila's exit code."""
    with tempfile.TemporaryDirectory(prefix="playground-") as folder:
        command, environment = prepared(Path(folder), host, port, theme)
        for line in told(host, port):
            print(line, flush=True)
        try:
            return subprocess.run(command, env=environment, check=False).returncode
        except KeyboardInterrupt:
            return 0


def told(host: str, port: int) -> list[str]:
    """The address, and a warning where others can reach it."""
    shown = f"[{host}]" if ":" in host else host
    lines = [f"The playground: http://{shown}:{port}/ (ready in about ten seconds; Ctrl-C ends it)"]
    if host not in HERE:
        lines.append(
            f"WARNING: bound to {host}: whoever reaches this machine can open the page and use its processor, and there is no password. "
            f"Leave --host out and tunnel instead: ssh -L {port}:localhost:{port} this-machine"
        )
    return lines


def prepared(folder: Path, host: str, port: int, theme: str) -> tuple[list[str], dict]:
    """Write the notebook of one cell into the folder; Voila's command and environment. ValueError without Voila or for an unknown theme."""
    if theme not in THEMES:
        raise ValueError(f"unknown theme '{theme}'; choose one of: {', '.join(THEMES)}")
    try:
        import voila  # noqa: F401
    except ImportError:
        raise ValueError("Voila is not installed; `pip install voila` brings it, or use `make lab`") from None
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / "Sparse Fields Lab.ipynb"
    nbformat.write(book, path)
    options = ["--no-browser", f"--Voila.ip={host}", f"--port={port}", f"--theme={theme}", "--template=playground"]
    options += ["--preheat_kernel=True", "--pool_size=1", "--show_tracebacks=True", "--Voila.log_level=WARN"]
    paths = {"JUPYTER_PATH": str(TEMPLATES), "PYTHONPATH": str(ROOT)}
    environment = dict(os.environ) | {k: os.pathsep.join([v, *filter(None, [os.environ.get(k)])]) for k, v in paths.items()}
    return [sys.executable, "-m", "voila", str(path), *options], environment | {"OMP_NUM_THREADS": "1"}
