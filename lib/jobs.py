"""Several notebooks at a time: one process each, as many as there are cores to keep busy.

A notebook keeps one core busy, so two cores finish a run in about half the time. Each process is the plain command for one notebook; this
file only starts them, passes their lines on, and stops the others when one fails or the run is stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from lib import machine


def count(wanted: int, notebooks: int, device: str) -> int:
    """How many at a time: as wanted, or (0) up to two on a CPU and one on a GPU, never more than there are notebooks."""
    automatic = 1 if device == "cuda" else min(2, machine.hardware()["cpu_count"])
    return max(1, min(wanted or automatic, notebooks))


def execute(names: list[str], jobs: int, words: Callable[[str], list[str]], say: Callable[[str], None] = print) -> int:
    """Run `python -m lib run --only NAME` with words(NAME) for every name, `jobs` at a time.

    Returns 0, or the first exit code that is not; after that none is started and the running ones are stopped.

    SIGINT and SIGTERM are passed on to the running ones, which save and end.
    """
    waiting, running, code = list(names), {}, 0
    ended = threading.Condition()

    def watch(name: str, process: subprocess.Popen) -> None:
        for line in process.stdout:
            say(line.rstrip("\n"))
        process.wait()
        with ended:
            ended.notify()

    def stop(number: int, _frame=None) -> None:
        nonlocal code
        code = code or 128 + number
        waiting.clear()
        for process, _ in running.values():
            process.send_signal(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                running[name] = _start(name, words(name), watch)
            with ended:
                ended.wait(timeout=0.5)
            for name, (process, reader) in list(running.items()):
                if process.poll() is not None and not reader.is_alive():
                    del running[name]
                    if process.returncode and not code:
                        code = process.returncode
                        stop(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code


def _start(name: str, words: list[str], watch) -> tuple[subprocess.Popen, threading.Thread]:
    """One notebook's process, in a group of its own so that Ctrl-C reaches it through `stop` alone, and the thread that reads it."""
    command = [sys.executable, "-m", "lib", "run", "--only", name, "--jobs", "1", "--brief", *words]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    reader = threading.Thread(target=watch, args=(name, process), daemon=True)
    reader.start()
    return process, reader
