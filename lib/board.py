"""How a sweep stands: what is done, runs, waits and has failed, the best so far, memory, graphics cards and the time left.

    python -m lib status outputs/sweep/hundred_versions --watch        a table on the terminal, again every two seconds
    board.view("../outputs/sweep/hundred_versions")                    the same in a notebook, with a figure and a button to look again

All of it is read from the sweep's folder, by any machine that sees it; looking changes nothing there.
"""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from lib import course, folders, turns
from lib.params import shown

EVERY = 2.0  # seconds between two looks of --watch
LISTED = 8  # running and failed tasks that are named
CELLS = 24  # of the bar
QUERY = "--query-gpu=index,name,utilization.gpu,memory.used,memory.total"


@dataclass
class Standing:
    """A sweep at one moment. done: id -> (when it ended, PSNR or None, seconds), in the order of their ends; failed: id -> why."""

    name: str
    status: str  # running | stopped | ended | not begun
    names: dict[str, str]
    done: dict[str, tuple] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    running: list[dict] = field(default_factory=list)
    begun: int = 0  # of those that wait, how many were begun and stopped
    about: dict = field(default_factory=dict)  # engine, device, slots

    @property
    def waiting(self) -> int:
        """Tasks that nobody is at and that have no answer."""
        return len(self.names) - len(self.done) - len(self.failed) - len(self.running)

    @property
    def best(self) -> tuple[float, str] | None:
        """The highest PSNR in dB, and whose it is."""
        found = [(psnr, self.names[id]) for id, (_, psnr, _) in self.done.items() if psnr is not None]
        return max(found) if found else None

    @property
    def left(self) -> float | None:
        """Seconds until the rest is done, at the mean of the finished ones; None where that is not known."""
        spent = [seconds for _, _, seconds in self.done.values() if seconds]
        tasks = self.waiting + len(self.running)
        return course.remaining(tasks, sum(spent) / len(spent), self.about.get("slots", 1)) if spent and tasks else None


def read(folder: Path | str, known: dict[str, dict] | None = None) -> Standing:
    """The standing of a sweep's folder; ValueError where there is no sweep. known: rows that were read before, filled here."""
    folder, known = Path(folder), {} if known is None else known
    about, state = folders.read_json(folder / "sweep.json"), folders.read_json(folder / course.STATE)
    if not about:
        raise ValueError(f"{shown(folder)} holds no sweep; begin one with python -m lib sweep params/sweep.yaml --out {shown(folder)}")
    alive = folders.in_use(folder)
    now = Standing(about["name"], "running" if alive else "not begun", {id: name for id, name, _ in about["tasks"]})
    now.about = {key: state[key] for key in ("engine", "device", "slots") if key in state}
    if not alive and state:
        now.status = "ended" if state["status"] == "ended" else "stopped"
    ends = []
    for id, _, place in about["tasks"]:
        here = folder / place / id
        row = known.get(id) or _row(here)
        if row is not None:
            known[id] = row
            ends.append((row["end"], id, row))
        elif (here / "error.json").exists() and not alive:
            now.failed[id] = folders.read_json(here / "error.json").get("error", "")
        else:
            now.begun += (here / "journal").exists()
    for end, id, row in sorted(ends, key=lambda one: one[:2]):
        if row["error"]:
            now.failed[id] = row["error"]
        else:
            now.done[id] = (end, row["psnr"], row["seconds"])
    if alive:
        now.failed |= {id: one["error"] for id, one in state.get("failed", {}).items() if id not in now.done}
        now.running = [one for one in state.get("running", []) if one["id"] not in now.done and one["id"] not in now.failed]
    now.begun = max(0, now.begun - len(now.running) - len(now.failed)) if alive else now.begun
    return now


def lines(now: Standing, width: int = 120) -> list[str]:
    """A standing as the lines of a table for the terminal."""
    found = [f"{now.name}: {now.status}{_how(now)}", ""]
    found += [f"{name:<10} {value}" for name, value in rows(now)]
    if now.running:
        found += ["", *(f"running    {one['name']}  {one['where']}  {_since(one)}" for one in now.running[:LISTED])]
        found += [f"           and {len(now.running) - LISTED} more"] if len(now.running) > LISTED else []
    if now.failed:
        found += ["", *(f"failed     {now.names[id]}: {why}" for id, why in list(now.failed.items())[:LISTED])]
        found += [f"           and {len(now.failed) - LISTED} more"] if len(now.failed) > LISTED else []
    return [line[:width].rstrip() for line in found]


def rows(now: Standing) -> list[tuple[str, str]]:
    """(what, how much) of a standing and of the machine that looks."""
    share = (len(now.done) + len(now.failed)) / max(1, len(now.names))
    bar = "█" * int(CELLS * share) + "░" * (CELLS - int(CELLS * share))
    waiting = str(now.waiting) + (f", {now.begun} of them begun" if now.begun else "")
    found = [("done", f"{len(now.done)} of {len(now.names)}  {bar}"), ("running", str(len(now.running))), ("waiting", waiting)]
    found += [("failed", str(len(now.failed))), ("best", f"{now.best[0]:.2f} dB, {now.best[1]}" if now.best else "none yet")]
    over = not now.waiting and not now.running
    found += [("time left", "none" if over else f"about {course.duration(now.left)}" if now.left else "unknown")]
    return [*found, ("memory", memory()), *(("GPU", card) for card in cards() or ["none"])]


def memory() -> str:
    """Memory in use on this machine, as far as the system tells."""
    try:
        found = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
        total, free = (int(found[key].split()[0]) * 1024 / 1e9 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return "unknown"
    return f"{total - free:.1f} of {total:.1f} GB"


def cards() -> list[str]:
    """Use and memory of each graphics card of this machine, by nvidia-smi; none where that is absent."""
    if not shutil.which("nvidia-smi"):
        return []
    try:
        said = subprocess.run(["nvidia-smi", QUERY, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = [[part.strip() for part in line.split(",")] for line in said.stdout.splitlines()]
    return [f"{n} {name}: {busy} %, {used} of {total} MiB" for n, name, busy, used, total in (one for one in found if len(one) == 5)]


def show(folder: Path | None, root: Path | None, output: Path | None, watch: bool, say=print) -> int:
    """`python -m lib status`: of one sweep, or of all notebooks and sweeps of a checkout; watch: until the sweep ends or Ctrl-C. 0."""
    known: dict[str, dict] = {}
    while True:
        if folder is None:
            found, over = everything(root, output), False
        else:
            now = read(folder, known)
            found, over = lines(now), now.status != "running"
        if watch and sys.stdout.isatty():
            say("\x1b[H\x1b[2J", end="")
        say("\n".join(found))
        if not watch or over:
            return 0
        time.sleep(EVERY)


def everything(root: Path | None, output: Path | None) -> list[str]:
    """A line per profile and notebook, and one per sweep below the outputs."""
    from lib import check, run  # here: a sweep's standing needs no notebooks, which take seconds to import

    listed = check.status(root or run.ROOT, output)
    for path in sorted(Path(output or (root or run.ROOT) / "outputs").glob("sweep/*/sweep.json")):
        now = read(path.parent)
        best = [f"best {now.best[0]:.2f} dB"] if now.best else []
        failed = [f"{len(now.failed)} failed"] if now.failed else []
        listed.append(("sweep", path.parent.name, now.status, " · ".join([f"{len(now.done)} of {len(now.names)} done", *failed, *best])))
    wide = [max(len(row[i]) for row in listed) for i in range(3)] if listed else [0, 0, 0]
    return [f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c:<{wide[2]}}  {d}".rstrip() for a, b, c, d in listed]


# ---- in a notebook ----


def table(folder: Path | str):
    """The standing as a pandas table with the columns `what` and `value`."""
    import pandas as pd

    now = read(folder)
    return pd.DataFrame([("sweep", now.name), ("status", now.status + _how(now)), *rows(now)], columns=["what", "value"])


def figure(now: Standing):
    """The PSNR of every finished task in the order of their ends, and the best so far."""
    from lib import plots

    scores = [psnr for _, psnr, _ in now.done.values() if psnr is not None]
    best = [max(scores[: n + 1]) for n in range(len(scores))]
    order = list(range(1, len(scores) + 1))
    title = f"{now.name}: {len(now.done)} of {len(now.names)} done" + (f", best {now.best[0]:.2f} dB" if now.best else "")
    fig = plots.curves({"best so far": (order, best), "each task": (order, scores)}, "finished tasks", "PSNR [dB]", title=title)
    fig.data[-1].mode = "markers"
    return fig


def view(folder: Path | str):
    """The standing as a widget: a figure, a table in words, and a button that looks again; figure and words as in widgets.explorer."""
    import ipywidgets

    from lib import widgets

    def update(again: bool):
        now = read(folder)
        cells = "".join(f"<tr><td>{html.escape(what)}</td><td>{html.escape(value)}</td></tr>" for what, value in rows(now))
        return figure(now), f"<b>{html.escape(now.name)}: {now.status}{html.escape(_how(now))}</b><table>{cells}</table>"

    return widgets.explorer({"again": ipywidgets.ToggleButton(description="look again")}, update)


def _row(here: Path) -> dict | None:
    """What is shown of a task's row, None where it has none."""
    path = here / "row.json"
    try:
        row, end = json.loads(path.read_text()), path.stat().st_mtime
    except (OSError, ValueError):
        return None
    return {"end": end, "psnr": turns.score(row), "seconds": row.get("seconds"), "error": row.get("error") or ""}


def _how(now: Standing) -> str:
    about = now.about
    return f" on {about['engine']} ({about['device']}), {about['slots']} at a time" if now.status == "running" and about else ""


def _since(one: dict) -> str:
    return course.duration(max(0.0, time.time() - one["since"]))
