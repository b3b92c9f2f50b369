"""How far a sweep is: what waits, runs, is done and has failed; kept in the sweep's folder, so that `status` can read it from anywhere.

An engine asks `next` for orders and says `begun`, `ended` or `lost`. A task whose process or node dies goes to the end of the line, at most
RETRIES times; one that another process is at is looked at again after PAUSE seconds.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lib import folders, turns

RETRIES = 3  # how often a task is begun again after its process died
PAUSE = 0.5  # seconds until a task that another process is at is looked at again
BEAT = 1.0  # seconds between two states that are kept
DEATHS = 10  # processes that end one after the other without having done anything, before the sweep gives up
STATE = "state.json"
FULL = "No space left"


class Course:
    """The state of one sweep; `update(finished, text)` shows it."""

    def __init__(self, folder: Path, orders: Sequence[Mapping], slots: int, update: Callable[[int, str], None], **about: object):
        self.folder, self.update, self.about = folder, update, about
        self.waiting, self.later = deque(orders), deque()
        self.running: dict[str, dict] = {}
        self.done, self.failed = 0, {}
        self.tries, self.deaths = Counter(), 0
        self.slots, self.seconds, self.ended_here = slots, 0.0, 0
        self.best: tuple[float, str] | None = None
        self.started, self.beaten = time.time(), 0.0

    def known(self, order: Mapping, told: Mapping) -> None:
        """A task that an earlier run has answered."""
        self._answered(order, told)

    def next(self) -> Mapping | None:
        """The next order, None when there is none now."""
        while self.later and self.later[0][0] <= time.monotonic():
            self.waiting.append(self.later.popleft()[1])
        return self.waiting.popleft() if self.waiting else None

    def begun(self, order: Mapping, where: str) -> None:
        """Somebody was given this order."""
        self.running[order["id"]] = {"name": turns.label(order), "id": order["id"], "where": where, "since": time.time()}
        self.beat()

    def ended(self, order: Mapping, told: Mapping) -> None:
        """An order came back as `turns.take` tells it. OSError-like ends that concern all tasks stop the sweep: folders.RunError."""
        self.running.pop(order["id"], None)
        self.deaths = 0
        if told["status"] == "busy":
            self.later.append((time.monotonic() + PAUSE, order))
            return
        self.seconds, self.ended_here = self.seconds + told["seconds"], self.ended_here + 1
        self._answered(order, told)
        if FULL in told["error"]:
            raise folders.RunError(f"the disk is full: {order['name']} could not write; free some space and run the same command again")
        self.beat()

    def lost(self, order: Mapping, why: str) -> None:
        """The process or node that had this order is gone."""
        self.running.pop(order["id"], None)
        self.tries[order["id"]] += 1
        if self.tries[order["id"]] > RETRIES:
            self._answered(order, {"status": "failed", "error": f"begun {RETRIES + 1} times: {why}", "psnr": None})
        else:
            self.waiting.append(order)
        self.beat()

    def died(self, why: str) -> None:
        """A process ended of itself without having done anything; RunError when that goes on."""
        self.deaths += 1
        if self.deaths >= DEATHS:
            raise folders.RunError(f"{DEATHS} processes ended one after the other before they did anything, the last: {why}")

    @property
    def open(self) -> bool:
        """Whether anything is left to do or to wait for."""
        return bool(self.waiting or self.later or self.running)

    @property
    def left(self) -> int:
        """How many tasks have no answer yet."""
        return len(self.waiting) + len(self.later) + len(self.running)

    def seconds_left(self) -> float | None:
        """How long the rest takes at the mean of the tasks that ended here, `slots` at a time; None before one has."""
        return remaining(self.left, self.seconds / self.ended_here, self.slots) if self.ended_here else None

    def beat(self, force: bool = False, status: str = "running") -> None:
        """Show how it stands, and keep it, at most every BEAT seconds."""
        if not force and time.monotonic() - self.beaten < BEAT:
            return
        self.beaten = time.monotonic()
        self.update(self.done + len(self.failed), self.words())
        state = {"status": status, "started": self.started, "time": time.time(), "slots": self.slots, **self.about}
        state |= {"done": self.done, "waiting": len(self.waiting) + len(self.later), "running": list(self.running.values())}
        folders.write_json(self.folder / STATE, state | {"failed": self.failed, "seconds_left": self.seconds_left(), "best": self.best})

    def words(self) -> str:
        """Failures, the best score and the time left, in a line."""
        parts = [f"{len(self.failed)} failed"] if self.failed else []
        parts += [f"best {self.best[0]:.2f} dB"] if self.best else []
        left = self.seconds_left()
        return " · ".join(parts + ([f"{duration(left)} left"] if left and self.left else []))

    def _answered(self, order: Mapping, told: Mapping) -> None:
        if told["status"] == "failed":
            self.failed[order["id"]] = {"name": turns.label(order), "error": told["error"]}
        else:
            self.done += 1
        if told["psnr"] is not None and (self.best is None or told["psnr"] > self.best[0]):
            self.best = (told["psnr"], turns.label(order))


def remaining(tasks: int, mean: float, slots: int) -> float:
    """Seconds for so many tasks of a mean duration, `slots` at a time."""
    return mean * tasks / max(1, slots)


def duration(seconds: float) -> str:
    """A length of time in the two units that matter: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    whole = round(seconds)
    for unit, size, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {below}"
    return f"{whole // 60} min" if whole >= 120 else f"{whole} s"
