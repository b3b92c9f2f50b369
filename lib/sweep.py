"""Sweeps: every task of a design, once, on this machine or on a cluster; `python -m lib sweep`.

    check (design, size, engine, folder) -> claim the folder -> what is already answered -> the engine -> what failed

A sweep's folder holds sweep.json (which design, which tasks), state.json (how far it is), and a folder per task (turns.py). The same
command continues a sweep that was stopped: finished tasks stay as they are, begun ones go on from their checkpoints, failed ones are tried
again (not those whose training diverged: it would again).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lib import course, crew, folders, progress, turns, workers
from lib.folders import RunError
from lib.params import shown, suggestion

ENGINES = ("local", "ray")
LIMIT = 1000  # tasks that run without being asked for twice
ABOUT = "sweep.json"
NAMED = 10  # failures that are named at the end


class Stopped(RuntimeError):
    """A signal ended the sweep; the exit code is the shell's, 128 + signal."""

    def __init__(self, text: str, code: int):
        super().__init__(text)
        self.exit_code = code


@dataclass(frozen=True)
class Options:
    """How a sweep runs. jobs: tasks at a time, 0: as many as there is room for; per_gpu: how many share a graphics card."""

    engine: str = "local"
    address: str | None = None  # of a Ray cluster; "auto": the one running here; None: one of our own
    jobs: int = 0
    per_gpu: int = 2
    device: str = "auto"
    resume: bool = False  # there must be something to continue
    yes: bool = False  # also beyond LIMIT tasks
    keep: bool = False  # weights stay
    root: Path | None = None  # the checkout whose notebooks are run; None: this one


def run(design, folder: Path | str, options: Options, say: Callable[[str], None] = print, show: bool | None = None) -> dict:
    """Bring a design to its end in a folder; {"done", "failed", "seconds"}.

    design has name, kind, hash and tasks ((name, task), ...). ValueError: nothing was changed. Stopped: by a signal. RunError: it cannot
    go on.
    """
    folder = Path(folder)
    check(design, folder, options)
    with _engine(options) as (device, slots), claim(folder):
        orders = list(named(design, options.root).values())
        folders.write_json(folder / ABOUT, about(design, orders))
        began = time.time()
        at = _course(folder, orders, slots, show, engine=options.engine, device=device)
        settings = {"folder": str(folder.absolute()), "device": device, "since": began, "keep": options.keep}
        status = "stopped"
        try:
            _go(at, settings, options)
            status = "ended"
        except (KeyboardInterrupt, SystemExit) as stop:
            code = stop.code if isinstance(stop, SystemExit) and isinstance(stop.code, int) else 130
            raise Stopped(f"stopped with {at.done} of {len(orders)} done; the same command continues", code) from None
        finally:
            with contextlib.suppress(RunError):  # a full disk is told by what met it first
                at.beat(force=True, status=status)
    for line in closing(at, folder, time.time() - began):
        say(line)
    return {"done": at.done, "failed": len(at.failed), "seconds": time.time() - began}


def plan(design, folder: Path | str, options: Options) -> list[str]:
    """What a sweep would do, in lines, without doing any of it: how many tasks, how many are answered, how long the rest may take."""
    folder = Path(folder)
    check(design, folder, options, dry=True)
    orders = list(named(design).values())
    rows = [row for order in orders if (row := _row(folder, order))]
    failed = sum(bool(row.get("error")) for row in rows)
    again = sum(workers.answer(turns.place(folder, order), 0.0) is not None for order in orders) - len(rows)
    left, several = len(orders) - len(rows), f"{len(design.tasks):,} {design.kind}"
    lines = [f"{design.name}: {several}" + (f", {len(orders):,} different ones" if len(orders) < len(design.tasks) else "")]
    lines += [f"{len(rows) - failed} done, {failed} failed for good, {left} to do" + (f" ({again} of them failed before)" if again else "")]
    spent = [row["seconds"] for row in rows if row.get("seconds")]
    if not left:
        return [*lines, "nothing is left to do"]
    if not spent:
        return [*lines, "how long it takes is known once a task has finished"]
    slots = _slots(options)
    wait = course.remaining(left, sum(spent) / len(spent), slots)
    return [*lines, f"about {course.duration(wait)}, {slots} at a time: {len(spent)} finished took {sum(spent) / len(spent):.1f} s each"]


def _row(folder: Path, order: dict) -> dict | None:
    """The kept row of a task; None while it has none, or only a failure that is tried again."""
    return workers.answer(turns.place(folder, order), float("inf"))


def _slots(options: Options) -> int:
    """How many tasks at a time on this machine; on a cluster that is not connected, --jobs or one."""
    if options.engine != "local":
        return options.jobs or 1
    from lib import machine

    return len(crew.places(machine.device(options.device), options.jobs, options.per_gpu))


# ---- before anything runs ----


def check(design, folder: Path, options: Options, dry: bool = False) -> None:
    """ValueError in one line where a sweep cannot start; nothing is changed."""
    if options.engine not in ENGINES:
        raise ValueError(f"unknown engine {options.engine!r}{suggestion(options.engine, ENGINES)}; known: {', '.join(ENGINES)}")
    if options.jobs < 0 or options.per_gpu < 1:
        raise ValueError(f"--jobs is {options.jobs}, --jobs-per-gpu {options.per_gpu}; give at least 1 (--jobs 0: what there is room for)")
    if options.address is not None and options.engine != "ray":
        raise ValueError(f"--address {options.address} is for --engine ray; leave it out with {options.engine}")
    if not design.tasks:
        raise ValueError(f"{design.name} is empty: it has no {design.kind} to run; add variants or seeds")
    if len(design.tasks) > LIMIT and not options.yes and not dry:
        few = f"{design.name} has {len(design.tasks):,} {design.kind}, more than {LIMIT:,}"
        raise ValueError(f"{few}; add --yes to run them, --dry-run to see how long they take")
    belongs(design, folder, options.resume)
    if not dry and folders.in_use(folder):
        raise _taken(folder)
    if options.engine == "ray":
        from lib import cluster

        cluster.check(options.address)


def belongs(design, folder: Path, resume: bool) -> None:
    """ValueError where a folder holds something else than a sweep of this design, or nothing although it is to be resumed."""
    held = folders.read_json(folder / ABOUT)
    if held and (held.get("hash"), held.get("kind")) != (design.hash, design.kind):
        which = f"another design ({held.get('name')}, {held.get('hash')}) than this one ({design.name}, {design.hash})"
        raise ValueError(f"{shown(folder)} holds {which}; choose another folder with --out, or delete it")
    if not held and folder.exists() and (not folder.is_dir() or any(path.name != ".lock" for path in folder.iterdir())):
        raise ValueError(f"{shown(folder)} holds something else than a sweep; choose another folder with --out")
    if resume and not held:
        raise ValueError(f"--resume: {shown(folder)} holds no sweep to continue; leave --resume out, or name another folder with --out")


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold a sweep's folder; RunError if it cannot be written or another sweep holds it. A killed sweep holds nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=1)
        lock.acquire()
    except Timeout:
        raise _taken(folder) from None
    except OSError as error:
        raise RunError(folders.unwritable(folder, error).replace("--output", "--out")) from None
    try:
        yield
    finally:
        lock.release()


def _taken(folder: Path) -> RunError:
    return RunError(f"{shown(folder)} is in use by another sweep; wait for it to end, or write elsewhere with --out")


def named(design, root: Path | None = None) -> dict[str, dict]:
    """The orders of a design by id, in its order; tasks that are the same are one, with all their names."""
    found: dict[str, dict] = {}
    for name, task in design.tasks:
        order = turns.order(name, task, root)
        if order["id"] in found and name not in found[order["id"]]["name"].split(" = "):
            order["name"] = f"{found[order['id']]['name']} = {name}"
        found.setdefault(order["id"], order)["name"] = order["name"]
    return found


def about(design, orders: Sequence[dict]) -> dict:
    """Which design a folder belongs to, and what its tasks are called."""
    listed = [[order["id"], turns.label(order), turns.PLACES[order["kind"]]] for order in orders]
    return {"name": design.name, "kind": design.kind, "hash": design.hash, "tasks": listed}


# ---- while it runs ----


@contextlib.contextmanager
def _engine(options: Options) -> Iterator[tuple[str, int]]:
    """The device and how many tasks at a time; with Ray, the connection to the cluster."""
    if options.engine == "local":
        from lib import machine

        device = machine.device(options.device)
        yield device, len(crew.places(device, options.jobs, options.per_gpu))
        return
    from lib import cluster

    with cluster.connected(options.address, options.jobs):
        device, slots = cluster.slots(options.per_gpu)
        if options.device == "cuda" and device != "cuda":
            raise ValueError("device is cuda, but no node of this Ray cluster has a GPU; leave --device out")
        yield options.device if options.device == "cpu" else device, max(1, min(slots, options.jobs or slots))


def _course(folder: Path, orders: Sequence[dict], slots: int, show: bool | None, **about: object) -> course.Course:
    """The course of a sweep in which what has a row is known already."""
    rows = {order["id"]: _row(folder, order) for order in orders}
    fresh = [order for order in orders if rows[order["id"]] is None]
    bar = progress.bar(len(orders), start=len(orders) - len(fresh), label="tasks", show=show if fresh else False)
    at = course.Course(folder, fresh, slots, bar, **about)
    for order in orders:
        if rows[order["id"]] is not None:
            at.known(order, turns.told(rows[order["id"]]))
    return at


def _go(at: course.Course, settings: dict, options: Options) -> None:
    if options.engine == "local":
        crew.run(at, settings, crew.places(settings["device"], options.jobs, options.per_gpu))
        return
    from lib import cluster

    cluster.run(at, settings, options.per_gpu, options.jobs)


def closing(at: course.Course, folder: Path, seconds: float) -> list[str]:
    """What a sweep says at its end: how many, what failed and why, where to look."""
    best = f", best {at.best[0]:.2f} dB ({at.best[1]})" if at.best else ""
    lines = [f"{at.done} done, {len(at.failed)} failed in {course.duration(seconds)}{best}"]
    lines += [f"failed: {one['name']} ({id}): {one['error']}"[:300] for id, one in list(at.failed.items())[:NAMED]]
    if len(at.failed) > NAMED:
        lines.append(f"and {len(at.failed) - NAMED} more, see error.json in their folders")
    return [*lines, f"Look at {shown(folder)}; python -m lib status {shown(folder)}"]
