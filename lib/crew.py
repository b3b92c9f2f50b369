"""Sweeps on this machine: a crew of processes that live as long as the sweep, each given one task at a time.

Orders go out through a pipe, one line each, and answers come back the same way. A process that dies is replaced and its task given to
another; when the sweep itself dies the pipes close, on which every process saves its training and ends. On a graphics card several
processes share it (`per_gpu`), which keeps it busy while one of them waits for its CPU.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack

from lib import course, workers

LOOK = 0.2  # seconds between two looks at what is due, when nothing comes in


def places(device: str, jobs: int, per_gpu: int) -> list[dict[str, str]]:
    """What each process finds in its environment: nothing on a CPU, else the one graphics card it computes on, the cards taking turns.

    jobs: how many processes; 0: as many as there are cores, or per_gpu on each card.
    """
    if device != "cuda":
        return [{}] * (jobs or cores())
    cards = visible_cards()
    return [{"CUDA_VISIBLE_DEVICES": cards[n % len(cards)]} for n in range(jobs or len(cards) * per_gpu)]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_cards() -> list[str]:
    """The graphics cards of this machine as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]


def run(at: course.Course, settings: Mapping, where: list[dict[str, str]]) -> None:
    """Bring a sweep to its end, one process per entry of `where`; settings are those of `turns.take` besides the order.

    Ctrl-C and SIGTERM stop the processes, which save first, and go on as KeyboardInterrupt and SystemExit.
    """
    with workers.terminated_as_interrupted(), ExitStack() as held:
        crew: dict[int, Worker] = {}  # by their place
        selector = held.enter_context(selectors.DefaultSelector())
        held.callback(lambda: workers.stop([one.process for one in crew.values()]))
        while at.open:
            for n, environment in enumerate(where):
                if n not in crew and at.waiting:
                    crew[n] = Worker(settings, environment)
                    selector.register(crew[n].process.stdout, selectors.EVENT_READ, n)
            for n in [n for n, one in crew.items() if one.order is None]:
                if (order := at.next()) is None:
                    break
                crew[n].give(order)
                at.begun(order, _where(n, where[n]))
            for key, _ in selector.select(LOOK):
                one = crew[key.data]
                if not one.hear(at):
                    selector.unregister(key.fileobj)
                    del crew[key.data]
                    one.bury(at)
            at.beat()


class Worker:
    """A process of the crew, the order it is at, and what it has said so far."""

    def __init__(self, settings: Mapping, environment: Mapping[str, str]):
        self.said = tempfile.TemporaryFile("w+")
        self.process = workers.start(self.said, "turns.serve()", subprocess.PIPE, **environment)
        self.order: Mapping | None = None
        self.heard, self.answers = b"", 0
        self._tell(settings)

    def give(self, order: Mapping) -> None:
        """Hand over an order; if the process is gone, its pipe says so at the next look."""
        self.order = order
        self._tell(order)

    def hear(self, at: course.Course) -> bool:
        """Take in what it says; False when it has ended."""
        found = os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self.heard = (self.heard + found).split(b"\n")
        for line in lines:
            order, self.order = self.order, None
            self.answers += 1
            at.ended(order, json.loads(line))
        return bool(found)

    def bury(self, at: course.Course) -> None:
        """What is left to do for a process that has ended: its order goes to another."""
        workers.stop([self.process])
        why = self._why()
        if not self.answers and self.process.returncode >= 0:
            at.died(why)
        if self.order is not None:
            at.lost(self.order, why)

    def _tell(self, what: Mapping) -> None:
        try:
            self.process.stdin.write(json.dumps(what).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def _why(self) -> str:
        """Why it ended: its code, and its last words."""
        code = self.process.returncode
        self.said.seek(0)
        words = [line.strip() for line in self.said if line.strip()]
        if code == -signal.SIGKILL:
            words = ["it was killed, most likely for lack of memory; use fewer jobs"]
        return ": ".join([f"its process ended with code {code}", *words[-1:]])


def _where(n: int, environment: Mapping[str, str]) -> str:
    card = environment.get("CUDA_VISIBLE_DEVICES")
    return f"process {n + 1}" + (f", GPU {card}" if card else "")
