"""What a sweep costs beyond its tasks: tasks that do nothing, so that all the time is the machinery's; a section of `make bench`."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from lib import sweep, turns

MANY = 10_000  # tasks, to which the measured cost is extrapolated
AT_A_TIME = 2


@dataclass(frozen=True)
class Nothing:
    """A design of tasks that do nothing."""

    tasks: list[tuple[str, turns.Idle]]
    name: str = "nothing"
    kind: str = "arms"
    hash: str = "000000000000"


def measure(device: str = "cpu", tasks: int = 1000, few: int = 10) -> dict:
    """Figures of every engine that is installed: per task, to start, for so many tasks, and extrapolated to MANY."""
    found = engine("local", tasks, few)
    return found | (engine("ray", tasks, few) if importlib.util.find_spec("ray") else {})


def engine(name: str, tasks: int, few: int) -> dict:
    """<name>_start: seconds until a sweep of `few` tasks has ended · <name>_seconds: of each further task · <name>_minutes: of all."""
    start, whole = _seconds(name, few), _seconds(name, tasks)
    each = max(0.0, whole - start) / (tasks - few)
    figures = {"start": start, "seconds": each, "minutes": whole / 60, f"minutes_{MANY}": (start + each * MANY) / 60}
    return {f"{name}_{figure}": value for figure, value in figures.items()} | {"tasks": tasks}


def _seconds(name: str, tasks: int) -> float:
    with tempfile.TemporaryDirectory(prefix="sweep-") as place:
        design = Nothing([(f"nothing {n}", turns.Idle(f"{n:012d}")) for n in range(tasks)])
        began = time.perf_counter()
        options = sweep.Options(engine=name, jobs=AT_A_TIME, device="cpu", yes=True)
        done = sweep.run(design, Path(place) / "out", options, say=lambda line: None, show=False)["done"]
        spent = time.perf_counter() - began
    if done != tasks:
        raise RuntimeError(f"{name}: {done} of {tasks} tasks that do nothing were done")
    return spent


SECTIONS = {"sweep": measure}
