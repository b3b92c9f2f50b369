"""One task of a sweep, taken once: claimed by a lock, tried, answered in its folder and noted in its journal. All engines call `take`.

    <folder>/arms/<id>/        row.json the answer, written last · error.json why it failed · lock · latest.pt while it trains
    <folder>/notebooks/<id>/   the same, and run/ with what the notebook leaves
    .../<id>/journal           a line when the work begins and one when it ends, with host and process: what the task has cost

A task is an arm, a notebook with its parameters, or a wait (`Idle`, for measuring what the machinery itself costs). Orders are plain
mappings, so that they pass through a pipe, a Ray cluster, and into a file.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from lib import arms, workers

PLACES = {"arm": "arms", "idle": "arms", "notebook": "notebooks"}
POISONED = "CUDA error"  # after which a process can compute nothing more on its graphics card


@dataclass(frozen=True)
class Idle:
    """A task that waits; `fails` is the error it ends with."""

    id: str
    seconds: float = 0.0
    fails: str = ""


def order(name: str, task: object, root: Path | None = None) -> dict:
    """A task as a plain mapping: name, id, kind and what it is made of. A notebook's task has `notebook` and `parameters`.

    root: the checkout of the notebooks, None: this one.
    """
    if isinstance(task, arms.Arm):
        settings, kind = arms.settings(task), "arm"
    elif isinstance(task, Idle):
        settings, kind = {"seconds": task.seconds, "fails": task.fails}, "idle"
    else:
        settings, kind = {"notebook": task.notebook, "parameters": dict(task.parameters)}, "notebook"
        settings |= {"root": str(root.absolute())} if root else {}
    return {"name": name, "id": task.id, "kind": kind, "settings": settings}


def label(order: Mapping) -> str:
    """The name of a task with its seed."""
    settings = order["settings"]
    seed = settings.get("seed", settings.get("parameters", {}).get("seed"))
    return order["name"] if seed is None else f"{order['name']}, seed {seed}"


def place(folder: Path | str, order: Mapping) -> Path:
    """The folder of a task."""
    return Path(folder) / PLACES[order["kind"]] / order["id"]


def take(order: Mapping, folder: str, device: str, since: float, keep: bool = False) -> dict:
    """Do a task unless it has an answer, and say how it stands: {"status": done | failed | busy, "seconds", "psnr", "error"}.

    busy: another process is at it. since: failures older than this time are tried again. keep: whether weights stay. SystemExit: the
    process can do no more tasks; this one has its answer, or none where a signal stopped it.
    """
    here, ran = place(folder, order), []

    def work() -> None:
        ran.append(time.perf_counter())
        note(here, "began")
        workers.attempt(here, lambda: DOING[order["kind"]](order["settings"], here, Path(folder), device, keep))
        note(here, "ended")

    try:
        with workers.one_thread():
            held = workers.claimed(here, since, work)
    except OSError as error:  # nothing can be written: a full disk, most likely
        return {"status": "failed", "error": f"{type(error).__name__}: {error}", "psnr": None, "seconds": 0.0}
    if not held:
        return {"status": "busy", "error": "", "psnr": None, "seconds": 0.0}
    found = workers.answer(here, 0.0 if ran else since) or {"error": "its answer is gone"}
    if ran and POISONED in (found.get("error") or ""):
        raise SystemExit(f"{order['name']}: {found['error']}")
    return told(found) | ({"seconds": time.perf_counter() - ran[0]} if ran else {})


def told(answer: Mapping) -> dict:
    """What a sweep needs to know of an answer."""
    error = answer.get("error") or ""
    return {"status": "failed" if error else "done", "error": error, "psnr": score(answer), "seconds": answer.get("seconds") or 0.0}


def score(row: Mapping) -> float | None:
    """The PSNR of a row in dB; None where it has none."""
    found = row.get("psnr", (row.get("metrics") or {}).get("psnr"))
    return float(found) if isinstance(found, int | float) and found == found else None


def note(here: Path, what: str) -> None:
    """A line in a task's journal; only the process that holds the task's lock writes there."""
    line = json.dumps({"what": what, "time": time.time(), "host": socket.gethostname(), "pid": os.getpid()})
    with open(here / "journal", "a") as file:
        file.write(line + "\n")


def journal(here: Path) -> list[dict]:
    """The lines of a task's journal; [] where it was never begun. A line that was cut short by a lost machine is left out."""
    try:
        lines = (Path(here) / "journal").read_text().splitlines()
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def serve() -> None:
    """What a process of crew.py does: the settings come first, then orders, one line each; answers go out the same way."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a task prints
    lines: SimpleQueue = SimpleQueue()

    def listen() -> None:
        workers.end_with_parent(lines.put)

    threading.Thread(target=listen, daemon=True).start()
    settings = json.loads(lines.get())
    while True:
        told = take(json.loads(lines.get()), **settings)
        print(json.dumps(told), file=answers, flush=True)


# ---- what a task is made of ----


def _arm(settings: Mapping, here: Path, folder: Path, device: str, keep: bool) -> None:
    workers.train_and_judge(arms.of(settings), folder, device, keep)


def _notebook(settings: Mapping, here: Path, folder: Path, device: str, keep: bool) -> None:
    """Execute a notebook with its parameters into run/; a stopped one continues from its checkpoints."""
    from lib import folders, params, run  # here: papermill takes seconds to import

    root = Path(settings.get("root", run.ROOT))
    path = root / "notebooks" / f"{settings['notebook']}.ipynb"
    values = params.effective(path, None, dict(settings["parameters"]))
    values.pop("folder", None)
    if "device" in values:
        values["device"] = device
    task = run.Task(path, "sweep", (here / "run").absolute(), values, folders.fingerprint(path, values, root), root)
    try:
        row = run.finish(task, f"{path.stem} {here.name}", force=False, say=lambda text: None)
    except run.Interrupted as stopped:
        raise SystemExit(stopped.exit_code) from None
    workers.write({**settings, **row, **arms.provenance(device)}, here / "row.json")


def _idle(settings: Mapping, here: Path, folder: Path, device: str, keep: bool) -> None:
    time.sleep(settings["seconds"])
    if settings["fails"]:
        raise RuntimeError(settings["fails"])
    workers.write({"seconds": settings["seconds"]}, here / "row.json")


DOING = {"arm": _arm, "notebook": _notebook, "idle": _idle}
