"""Kill the sweep, one of its processes, or a Ray node at random moments, again and again, and see that every arm is finished exactly once.

    python tests/chaos.py --engine local --rounds 20        40 short arms, two at a time; exit code 0 when everything held
    python tests/chaos.py --engine ray --rounds 20          the same on three Ray nodes of this machine: a head and two that compute

Afterwards every arm has one row, which has not changed since it was first seen and holds the very numbers of a sweep that nobody
disturbed; no journal has a second end, or a beginning after the row; and no process of any of the sweeps is left.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = "width: 16, layers: 1, heads: 2, inner: 16, ffn: 16, frequencies: 4, fields: 8, batch: 2, validation_fields: 2, test_fields: 2"
DESIGN = """name: chaos
arms: {{version: v2-transformer, world: plane, {tiny}, solver_steps: 1, steps: {steps}, checkpoint_every: 20, validate_every: 20}}
grid: {{rate: [1.0e-3, 2.0e-3, 3.0e-3, 4.0e-3]}}
seeds: {seeds}
"""
PATIENCE = 120.0  # seconds until what was killed must be gone
WORKING = 0.8  # share of the kills that wait until somebody is at an arm
MARK = "SWEEP_UNDER_TEST"


def design(folder: Path, arms: int, steps: int) -> Path:
    """A design of arms that train for so many steps: four rates, as many seeds as it takes."""
    path = folder / "chaos.yaml"
    path.write_text(DESIGN.format(tiny=TINY, steps=steps, seeds=arms // 4))
    return path


def undisturbed(path: Path) -> dict[str, dict]:
    """The row of every arm of a design, computed here one after the other."""
    import torch

    from lib import arms
    from lib import design as designs

    torch.set_num_threads(1)
    return {arm.id: arms.run(arm, None, show=False) for _, arm in designs.load(path).tasks}


def start(path: Path, out: Path, token: str, *words: str) -> subprocess.Popen:
    """`python -m lib sweep`, marked so that all its descendants are found."""
    command = [sys.executable, "-m", "lib", "sweep", str(path), "--out", str(out), "--device", "cpu", *words]
    with open(out.parent / "said.txt", "a") as said:
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | {MARK: token}, stdout=said, stderr=said, start_new_session=True)


def marked(token: str) -> set[int]:
    """Processes that descend from a marked one: the mark stands in their environment."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={token}".encode() in path.read_bytes():
                found.add(int(path.parent.name))
    return found - {os.getpid()}


def at_work(out: Path) -> set[int]:
    """Processes with an open file below a folder: each task's lock is open in the process that is at it."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(path).startswith(str(out)):
                found.add(int(path.parts[2]))
    return found - {os.getpid()}


def session(leader: int) -> set[int]:
    """The processes of a session."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if path.read_text().rpartition(")")[2].split()[3] == str(leader):
                found.add(int(path.parent.name))
    return found


def until(condition, seconds: float = PATIENCE) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def kill(processes) -> None:
    for process in processes:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)


class Cluster:
    """A Ray cluster on this machine: a head without CPUs and two nodes with one each, every node in a session of its own."""

    def __init__(self, place: Path):
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        self.place, self.address = place, f"{socket.gethostbyname(socket.gethostname())}:{port}"
        self.head = self._node("--head", f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={place}/r")
        assert until(lambda: self._listens(port)), "the head does not listen"
        self.nodes = [self.node(), self.node()]
        assert until(lambda: self.mend() or all(map(self._runs, self.nodes)), 600), "the nodes do not start"

    def mend(self) -> None:
        """Start nodes again that ended of themselves: Ray gives one 30 seconds to start, which a busy machine may not have."""
        self.nodes = [node if node.poll() is None else self.node() for node in self.nodes]

    def node(self) -> subprocess.Popen:
        return self._node(f"--address={self.address}", "--num-cpus=1")

    def _node(self, *words: str) -> subprocess.Popen:
        command = [str(Path(sys.executable).parent / "ray"), "start", *words, "--object-store-memory=80000000", "--block"]
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
        with tempfile.NamedTemporaryFile("w", dir=self.place, prefix="node-", delete=False) as said:
            node = subprocess.Popen(command, env=os.environ | quiet, stdout=said, stderr=said, start_new_session=True)
        node.said = Path(said.name)
        return node

    def _runs(self, node: subprocess.Popen) -> bool:
        return "Ray runtime started" in node.said.read_text()

    def _listens(self, port: int) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.address.split(":")[0], port), timeout=1):
            return True
        return False

    def kill_node(self, chance: random.Random) -> None:
        """A node dies with all its processes, as a machine does; another takes its place."""
        place = chance.randrange(len(self.nodes))
        kill(session(self.nodes[place].pid))
        self.nodes[place].wait()
        self.nodes[place] = self.node()

    def workers(self) -> list[int]:
        """Processes of the nodes that run tasks or wait for some."""
        found = []
        for process in set().union(*(session(node.pid) for node in self.nodes)):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{process}/cmdline").read_bytes().startswith((b"ray::IDLE", b"ray::take")):
                    found.append(process)
        return sorted(found)

    def stop(self) -> bool:
        """End all nodes; True when nothing is left of them."""
        leaders = [node.pid for node in (*self.nodes, self.head)]
        for node in (*self.nodes, self.head):
            node.terminate()
        gone = until(lambda: not set().union(*map(session, leaders)), 60)
        kill(set().union(*map(session, leaders)))
        return gone


class Trial:
    """One disturbed sweep: its folder, its driver, and the rows seen so far."""

    def __init__(self, place: Path, path: Path, words: tuple[str, ...], cluster: Cluster | None, chance: random.Random):
        self.out, self.path, self.words, self.cluster, self.chance = place / f"sweep-{uuid.uuid4().hex[:6]}", path, words, cluster, chance
        self.token, self.seen, self.changed, self.stayed = uuid.uuid4().hex, {}, [], []
        self.driver = start(path, self.out, self.token, *words)

    def look(self) -> int:
        """Remember every row's digest at first sight, and which rows differ from it now; how many rows there are."""
        for row in self.out.glob("arms/*/row.json"):
            digest = hashlib.sha256(row.read_bytes()).hexdigest()
            if self.seen.setdefault(row.parent.name, digest) != digest:
                self.changed.append(row.parent.name)
        return len(self.seen)

    def strike(self) -> str:
        """Kill something, at random; what it was."""
        victims = ["driver", "worker"] + (["node"] if self.cluster else [])
        victim = self.chance.choice(victims)
        if victim == "worker":
            workers = self.cluster.workers() if self.cluster else sorted(marked(self.token) - session(self.driver.pid))
            if workers:
                kill([self.chance.choice(workers)])
                return victim
            victim = "driver"
        if victim == "node":
            self.cluster.kill_node(self.chance)
            return victim
        self.driver.kill()
        self.driver.wait()
        if not until(lambda: not marked(self.token) and not at_work(self.out)):
            self.stayed.append(sorted(marked(self.token) | at_work(self.out)))
        self.driver = start(self.path, self.out, self.token, *self.words)
        return victim

    def finish(self, seconds: float) -> int | None:
        """Let the sweep come to its end; the driver's exit code, None where it takes too long."""
        until(lambda: (self.cluster and self.cluster.mend()) or self.driver.poll() is not None, seconds)
        if self.driver.poll() is None:
            self.driver.kill()
            return None
        return self.driver.returncode

    def verdict(self, code: int | None, expected: dict[str, dict], arms: int) -> dict:
        """Everything that must hold, counted."""
        self.look()
        if not until(lambda: not marked(self.token) and not at_work(self.out), 30):
            self.stayed.append(sorted(marked(self.token) | at_work(self.out)))
        rows = {p.parent.name: json.loads(p.read_text()) for p in self.out.glob("arms/*/row.json")}
        journals = {p.parent.name: [json.loads(x) for x in p.read_text().splitlines()] for p in self.out.glob("arms/*/journal")}
        ends = {id: [one for one in lines if one["what"] == "ended"] for id, lines in journals.items()}
        kept = {id: (self.out / "arms" / id / "row.json").stat().st_mtime for id in rows}
        late = [id for id, lines in journals.items() for one in lines if one["what"] == "began" and one["time"] > kept[id]]
        same = [id for id, row in rows.items() if all(row[key] == expected[id][key] for key in ("psnr", "loss", "psnr_fields"))]
        return {
            "exit code": code, "arms": arms, "rows": len(rows), "rows as undisturbed": len(same), "rows that changed": len(self.changed),
            "ended twice": sum(len(found) > 1 for found in ends.values()), "begun after the end": len(late),
            "beginnings": sum(one["what"] == "began" for lines in journals.values() for one in lines),
            "processes left": self.stayed,
        }  # fmt: skip


def held(verdict: dict) -> bool:
    """Whether nothing was lost, done twice or left behind."""
    whole = verdict["arms"] == verdict["rows"] == verdict["rows as undisturbed"] and verdict["exit code"] == 0
    return whole and not any(verdict[key] for key in ("rows that changed", "ended twice", "begun after the end", "processes left"))


def run(engine: str, rounds: int, arms: int, steps: int, pause: tuple[float, float], seed: int = 0, say=print) -> list[dict]:
    """Sweeps under fire until so many kills have struck, the first when an arm has finished; a verdict each. pause: seconds between."""
    chance = random.Random(seed)
    place = Path(tempfile.mkdtemp(prefix="chaos-"))
    cluster, verdicts, struck = None, [], 0
    try:
        path = design(place, arms, steps)
        expected = undisturbed(path)
        cluster = Cluster(place) if engine == "ray" else None
        words = ("--engine", "ray", "--address", cluster.address) if cluster else ("--jobs", "2")
        while struck < rounds:
            trial = Trial(place, path, words, cluster, chance)
            until(lambda trial=trial: trial.look() or trial.driver.poll() is not None, 600)
            while struck < rounds and trial.driver.poll() is None:
                if chance.random() < WORKING:  # else it may strike while the driver still starts
                    until(lambda trial=trial: at_work(trial.out) - {trial.driver.pid} or trial.driver.poll() is not None)
                time.sleep(chance.uniform(*pause))
                if cluster is not None:
                    cluster.mend()
                if trial.driver.poll() is None:
                    before, what = trial.look(), trial.strike()
                    struck += 1
                    say(f"kill {struck}: {what}, with {before} of {arms} arms finished", flush=True)
            verdicts.append(trial.verdict(trial.finish(900), expected, arms))
            say(json.dumps(verdicts[-1]), flush=True)
            if not held(verdicts[-1]):
                say((place / "said.txt").read_text()[-2000:], flush=True)
    finally:
        if cluster is not None:
            gone = cluster.stop()
            say(f"nodes ended: {gone}", flush=True)
        if verdicts and all(map(held, verdicts)):
            shutil.rmtree(place)
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--arms", type=int, default=40)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    verdicts = run(given.engine, given.rounds, given.arms, given.steps, (0.5, 8.0), given.seed)
    good = all(map(held, verdicts))
    print(f"{given.engine}: {given.rounds} kills, {len(verdicts)} sweeps, {time.monotonic() - began:.0f} s: {'held' if good else 'BROKEN'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
