"""A slow computation beside the kernel's loop, so that the next move of a slider is heard; that move ends it.

It runs in a thread that prints nothing (a kernel loses what other threads print), and its result is handed over inside the loop. To end it,
`Moved` is raised in it between two of its bytecodes: a loop of Python ends at once, a single long call into a library when it returns.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import warnings
from collections.abc import Callable

from sklearn.exceptions import ConvergenceWarning


class Moved(BaseException):
    """Nobody waits for this answer any more."""


def loop() -> asyncio.AbstractEventLoop | None:
    """The loop that runs this very call, as in a kernel; None in a plain script or test."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class Aside:
    """At most one computation at a time; `key` says which one runs, None for none."""

    def __init__(self):
        self.key: object = None
        self._thread: threading.Thread | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, key, job: Callable[[], object], done: Callable[[object, Exception | None], None], wait: float = 0.0) -> None:
        """End what runs; after `wait` seconds run job() and, unless it is ended too, call done(result, error) in the loop."""
        here = loop()
        if here is None:
            raise RuntimeError("a computation beside the loop needs a running loop; call the job itself")
        warnings.filterwarnings("ignore", category=ConvergenceWarning)  # filters are shared by threads: a catch here may end too early
        self.cancel()
        self.key = key

        def run() -> None:
            result, error = None, None
            try:
                result = job()
            except Moved:
                return
            except Exception as raised:
                error = raised
            if not here.is_closed():
                here.call_soon_threadsafe(over, threading.current_thread(), result, error)

        def over(thread: threading.Thread, result, error) -> None:
            if thread is self._thread:
                self.key = self._thread = None
                done(result, error)

        def begin() -> None:
            self._timer, self._thread = None, threading.Thread(target=run, name=f"aside {key}", daemon=True)
            self._thread.start()

        if wait:
            self._timer = here.call_later(wait, begin)
        else:
            begin()

    def cancel(self) -> None:
        """End what runs or waits; its `done` is not called."""
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None and self._thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(Moved))
        self.key = self._thread = self._timer = None
