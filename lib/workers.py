"""Arms run one after another or side by side: each is claimed by a lock in its folder, so no two processes do the same one.

A worker is a process that does what this one would: go over the arms, take what nobody has, leave row.json or error.json. It shares nothing
with its parent but the folder, and ends when its parent does, however that happens: its standard input closes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import torch

from lib import arms, train

GRACE = 20.0  # seconds a worker has to save its training before it is killed
PAUSE = 0.1  # seconds between two looks at what other processes have finished


def work(todo: Sequence[arms.Arm], folder: Path, device: str, since: float, keep: bool, seen: Callable[[], None] = lambda: None) -> None:
    """Run arms in this process until every one has an answer; one that another process has claimed is left to it, and looked at again.

    since: failures older than this time are tried again. keep: whether weights stay. seen() is called after every arm.
    """
    waiting = list(todo)
    with one_thread():
        while waiting:
            left = [arm for arm in waiting if not _settle(arm, folder, device, since, keep, seen)]
            if len(left) == len(waiting):
                time.sleep(PAUSE)
            waiting = left


def _settle(arm: arms.Arm, folder: Path, device: str, since: float, keep: bool, seen) -> bool:
    """True when the arm has an answer, by this call or another process; False when another process is at it."""
    place = folder / "arms" / arm.id
    if not claimed(place, since, lambda: attempt(place, lambda: train_and_judge(arm, folder, device, keep))):
        return False
    seen()
    return True


def claimed(place: Path, since: float, work: Callable[[], None]) -> bool:
    """Do the work of a folder, unless it has an answer; False when another process is at it."""
    place.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(place / "lock")
    try:
        with lock.acquire(blocking=False):
            if answer(place, since) is None:
                (place / "row.json").unlink(missing_ok=True)  # if there is one, it cannot be read
                work()
    except filelock.Timeout:
        return False
    return True


def attempt(place: Path, work: Callable[[], None]) -> None:
    """Do what leaves row.json in a folder, or leave error.json if it raises."""
    try:
        work()
    except Exception as error:
        write({"error": f"{type(error).__name__}: {error}", "time": time.time()}, place / "error.json")


def train_and_judge(arm: arms.Arm, folder: Path, device: str, keep: bool) -> None:
    """Run one arm in its place in the folder; keep: whether its weights stay."""
    place = folder / "arms" / arm.id
    try:
        arms.run(arm, folder, device, show=False)
    except train.TrainingDiverged as error:  # the same again at every attempt: an answer, kept like a score
        write({**arms.settings(arm), "error": str(error), **arms.provenance(device)}, place / "row.json")
    for file in place.glob("previous.pt" if keep else "*.pt"):  # the checkpoint before the last is of no use to a finished arm
        file.unlink()


def answer(place: Path, since: float) -> dict | None:
    """An arm's row, or why it failed since a time; None while there is neither (a file that a lost machine cut short is none)."""
    for file in (place / "row.json", place / "error.json"):
        with suppress(OSError, ValueError):
            found = json.loads(file.read_text())
            if file.name == "row.json" or found["time"] >= since:
                return found
    return None


def write(what: dict, path: Path) -> None:
    """Keep an answer as JSON, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(what))
    os.replace(temporary, path)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside torch, as many as before after it: sums depend on how they are split."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- several processes ----


def side_by_side(todo: list[arms.Arm], folder: Path, device: str, since: float, keep: bool, jobs: int, seen: Callable) -> str:
    """Run arms in `jobs` processes; returns why a process ended early, "" if none did."""
    orders = {"arms": [arms.settings(arm) for arm in todo], "folder": str(folder.resolve()), "device": device, "since": since, "keep": keep}
    line = json.dumps(orders).encode() + b"\n"
    workers: list[subprocess.Popen] = []
    with terminated_as_interrupted(), tempfile.TemporaryFile("w+") as said:
        try:
            for _ in range(jobs):
                workers.append(start(said))
            for worker in workers:
                with suppress(BrokenPipeError):  # it ended at once; its exit code tells
                    worker.stdin.write(line)
                    worker.stdin.flush()
            while any(worker.poll() is None for worker in workers):
                time.sleep(PAUSE)
                seen()
        finally:
            stop(workers)
        codes = [worker.returncode for worker in workers if worker.returncode]
        said.seek(0)
        words = [line.strip() for line in said if line.strip()]
    if not codes:
        return ""
    if -signal.SIGKILL in codes:
        words.append("it was killed, most likely for lack of memory; use fewer jobs")
    return ": ".join([f"its process ended with code {codes[0]}", *words[-1:]])


def start(said, program: str = "workers.worker()", heard: int = subprocess.DEVNULL, **more: str) -> subprocess.Popen:
    """A process of this library with one thread, in a group of its own, so that Ctrl-C reaches it through `stop` alone.

    heard: where its standard output goes; more: what stands in its environment.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, "-P", "-c", f"from lib import {program.partition('.')[0]}; {program}"]
    environment = os.environ | threads | {"PYTHONPATH": path} | more
    streams = {"stdin": subprocess.PIPE, "stdout": heard, "stderr": said}
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)


def stop(workers: list[subprocess.Popen]) -> None:
    """End the workers that still run: they save their training first, and are killed if that takes too long."""
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    until = time.monotonic() + GRACE
    for worker in workers:
        try:
            worker.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        with suppress(BrokenPipeError):
            worker.stdin.close()


def worker() -> None:
    """What a worker process does: read its orders from the standard input, work, and end when the process that started it does."""
    orders = b""
    while not orders.endswith(b"\n"):
        orders += os.read(0, 1 << 20) or sys.exit(1)
    threading.Thread(target=end_with_parent, daemon=True).start()
    orders = json.loads(orders)
    work([arms.of(row) for row in orders.pop("arms")], Path(orders.pop("folder")), **orders)


def end_with_parent(hear: Callable[[bytes], None] = lambda line: None) -> None:
    """Hear every line until the other end of the standard input closes, which happens however the parent ends; then save and end."""
    rest = b""
    while found := os.read(0, 1 << 16):  # not sys.stdin, whose lock a thread of this kind would hold while the program ends
        *lines, rest = (rest + found).split(b"\n")
        for line in lines:
            hear(line)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)


@contextmanager
def terminated_as_interrupted() -> Iterator[list[int]]:
    """SIGTERM ends the program in order, as Ctrl-C does; only the main thread may listen. Yields the signals heard so far."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def end(number: int, _frame) -> None:
        heard.append(number)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGTERM, before)
