"""One notebook in one kernel: papermill with a lean engine, progress cell by cell, and an orderly stop.

Lean: no widget state in the result (5 MB of JavaScript per plotly FigureWidget), ipc instead of TCP (no race for ports), nothing
written to disk (the runner writes once, atomically). Ctrl-C and SIGTERM interrupt the running cell, so that training saves its checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import resource
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import papermill
from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

GRACE = 20.0  # seconds a cell has to save its state after Ctrl-C before its kernel is killed


@dataclass(frozen=True)
class Outcome:
    """How an execution ended: the notebook with its outputs; what failed and where ("" = nothing); the signal that stopped it."""

    notebook: NotebookNode
    seconds: float
    peak_memory: int  # bytes, of the kernel
    error: str = ""
    where: str = ""  # "cell 7 (Train both)"
    signal: int = 0


def execute(notebook: Path, parameters: dict, progress: Progress) -> Outcome:
    """Run a notebook in its own folder with these parameters; a cell that raises ends it and is described in the outcome."""
    watch, started, error = Watch(progress), time.monotonic(), ""
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    with watch.signals():
        try:
            papermill.execute_notebook(
                notebook,
                None,
                parameters,
                engine_name="lean",
                cwd=Path(notebook).parent,
                progress_bar=False,
                autosave_cell_every=0,
                watch=watch,
            )
        except PapermillExecutionError as raised:
            error = f"{raised.ename}: {first_line(raised.evalue)}"
        except DeadKernelError:
            error = watch.death()
        except (Stopped, KeyboardInterrupt):
            error = "stopped"
        except (RuntimeError, NoSuchKernel) as raised:
            error = f"no kernel could be started: {first_line(raised)}"
    error = "stopped" if watch.signal else error
    progress.close()
    seconds = time.monotonic() - started
    return Outcome(watch.notebook, seconds, watch.peak(), error, watch.where if error else "", watch.signal)


class LeanEngine(NBClientEngine):
    """papermill's engine with the settings named at the top of this file; `watch` sees the kernel, every cell and every message."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, watch, start_timeout=60, **unused):
        with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
            cls.execute_in(sockets, nb_man, kernel_name, watch, start_timeout)

    @classmethod
    def execute_in(cls, sockets, nb_man, kernel_name, watch, start_timeout):
        config = Config()
        if os.name == "posix":
            config.KernelManager.transport = "ipc"
            config.KernelManager.ip = f"{sockets}/ipc"  # the default is one name for all kernels of a folder: two would talk to each other
        watch.notebook = nb_man.nb
        client = Client(
            nb_man,
            config=config,
            kernel_name=kernel_name,
            startup_timeout=start_timeout,
            timeout=None,
            store_widget_state=False,
            coalesce_streams=True,
            extra_arguments=["--log-level=50"],  # a kernel reports the interrupt that ends it as an error
            log=logging.getLogger("papermill"),
            on_notebook_start=lambda notebook: watch.kernel_started(client.km.provisioner.process),
            on_cell_start=watch.cell_started,
            on_cell_executed=watch.cell_executed,
        )
        client.watch = watch
        client.execute()


class Client(PapermillNotebookClient):
    """papermill's client, whose messages are also shown to `watch`."""

    def process_message(self, msg, cell, cell_index):
        self.watch.heard(msg)
        return super().process_message(msg, cell, cell_index)


papermill_engines.register("lean", LeanEngine)


class Stopped(Exception):
    """A person asked to stop between two cells."""


class Watch:
    """What the driver knows of a running kernel: its process, the cell it is in, its peak memory, and whether it was asked to stop."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.notebook: NotebookNode | None = None
        self.process = None
        self.where = ""
        self.signal = 0
        self.memory = 0

    def kernel_started(self, process) -> None:
        self.process = process

    def cell_started(self, cell: NotebookNode, cell_index: int) -> None:
        if self.signal:
            raise Stopped
        code = [i for i, c in enumerate(self.notebook.cells) if c.cell_type == "code" and c.source.strip()]
        if cell_index not in code:
            return
        heading = heading_above(self.notebook.cells, cell_index)
        number = code.index(cell_index) + 1
        self.where = f"cell {number}" + (f" ({heading})" if heading else "")
        self.progress.cell(number, len(code), heading)

    def cell_executed(self, cell: NotebookNode, cell_index: int, execute_reply: dict) -> None:
        self.memory = max(self.memory, peak_memory(self.process.pid))

    def heard(self, message: dict) -> None:
        """Printed text, and the progress bar a training shows in a notebook, so that a long cell is not silent."""
        content = message["content"]
        html = content.get("data", {}).get("text/html", "")
        said = content["text"] if message["msg_type"] == "stream" else re.sub(r"<[^>]*>", "", html) if "<progress" in html else ""
        lines = [line.strip() for line in re.split(r"[\r\n]+", plain(said)) if line.strip()]
        if lines:
            self.progress.note(lines[-1])

    def peak(self) -> int:
        """Bytes; where the system does not tell per process, the largest of all children so far."""
        return self.memory or resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def death(self) -> str:
        """Why a kernel is gone, as far as its exit status tells."""
        status = self.process.poll() if self.process else None
        if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return "the kernel was killed, most likely for lack of memory; close other programs or choose smaller parameters"
        return f"the kernel died (exit status {status})"

    @contextlib.contextmanager
    def signals(self):
        """Turn Ctrl-C and SIGTERM into `stop` while a kernel runs (only the main thread may)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self, number: int, frame) -> None:
        """First request: interrupt the cell, which has GRACE seconds to save. Second request: kill the kernel."""
        again, self.signal = bool(self.signal), number
        if self.process is None:
            raise KeyboardInterrupt
        if again:
            self.process.kill()
            return
        self.progress.note("stopping: the running cell may save its state (once more to kill it)", force=True)
        self.process.send_signal(signal.SIGINT)
        timer = threading.Timer(GRACE, self.process.kill)
        timer.daemon = True
        timer.start()


class Progress:
    """Where a run is: one line rewritten in place on a terminal, one line per cell in a log file."""

    def __init__(self, label: str, stream=None, interval: float = 30.0, on_cell=None):
        self.label, self.stream, self.on_cell = label, stream or sys.stdout, on_cell
        self.live = self.stream.isatty()
        self.interval = 0.2 if self.live else interval  # seconds between two notes from inside a cell
        self.line, self.said, self.started = "", time.monotonic(), time.monotonic()

    def cell(self, number: int, total: int, heading: str) -> None:
        """The kernel enters code cell `number` of `total`."""
        bar = "█" * (20 * (number - 1) // total) if self.live else ""
        self.line = f"{self.label}  {bar:<20}  cell {number}/{total}" if self.live else f"{self.label}  cell {number}/{total}"
        self.line += f"  {heading}" if heading else ""
        self._print(self.line)
        if self.on_cell:
            self.on_cell(f"cell {number}/{total}" + (f" ({heading})" if heading else ""))

    def note(self, text: str, force: bool = False) -> None:
        """One line from inside the running cell, at most every `interval` seconds."""
        if force or time.monotonic() - self.said >= self.interval:
            self._print(f"{self.line}  {text}" if self.live else f"{self.label}    {text}")

    def close(self) -> None:
        """Leave the terminal's line."""
        if self.live:
            self._print("")

    def _print(self, text: str) -> None:
        self.said = time.monotonic()
        clock = f"{int(self.said - self.started) // 60}:{int(self.said - self.started) % 60:02d}"
        if self.live:
            width = os.get_terminal_size(self.stream.fileno()).columns - 8
            self.stream.write(f"\r\x1b[K{clock} {text[:width]}" if text else "\r\x1b[K")
        else:
            self.stream.write(f"{clock:>6}  {text}\n")
        self.stream.flush()


def heading_above(cells: list, index: int) -> str:
    """The nearest markdown heading above a cell, "" if there is none."""
    for cell in reversed(cells[:index]):
        headings = re.findall(r"^#+\s+(.+?)\s*$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        if headings:
            return headings[-1]
    return ""


def header(cells: list) -> tuple[str, str]:
    """A notebook's first heading and the text below it in the same cell, "" for what it does not have."""
    first = cells[0].source if cells and cells[0].cell_type == "markdown" else ""
    title, _, text = first.strip().partition("\n")
    return (title.lstrip("# ").replace("`", "").strip(), text.strip()) if title.startswith("#") else ("", first)


def peak_memory(process: int) -> int:
    """Largest resident size of a process so far in bytes (Linux; 0 elsewhere)."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
        return int(found.group(1)) * 1024 if found else 0
    return 0


def first_line(text: str) -> str:
    """The first line that says something, for one-line messages."""
    return next((line.strip() for line in plain(text).splitlines() if line.strip()), "")


def plain(text: str) -> str:
    """Text without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(text))
