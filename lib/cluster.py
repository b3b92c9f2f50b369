"""Sweeps on a Ray cluster: tasks go to whatever node has room, a graphics card shared by several; the results meet in the shared folder.

Ray (Moritz et al., Ray: A Distributed Framework for Emerging AI Applications, 2018) is the extra `cluster`. Every node sees the sweep's
folder under the same path and has this library. A task whose process or node dies goes back to the line; should it still run
somewhere, the lock in its folder keeps a second one from starting. Without an address, a Ray of our own is started here and ended with us.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from lib import course, crew, turns, workers
from lib.folders import RunError

LOOK = 0.2  # seconds between two looks at what is due, when nothing comes in
COUNT = 5.0  # seconds between two counts of what the cluster has
REACH = 5.0  # seconds to wait for an address
START = 120.0  # seconds to wait for a Ray of our own
STORE = 80 * 2**20  # bytes of Ray's object store: orders and answers are small
TRIES = 3  # Ray gives its first process 30 seconds, which a busy machine may need more than once
# HTTP/2's opening words and empty settings, which Ray answers with its own settings (type 4); RFC 9113, section 3.4
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def check(address: str | None) -> None:
    """ValueError in one line where Ray is not installed, or nothing listens at the address; nothing is started or changed."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError("engine ray needs Ray, which is not installed: pip install -e '.[cluster]', or take --engine local")
    if address in (None, "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--address is {address!r}; give host:port, or auto for the cluster that runs on this machine")
    try:
        with socket.create_connection((host, int(port)), timeout=REACH) as line:
            line.sendall(GREETING)
            if line.recv(9)[3:4] != b"\x04":
                raise ConnectionError("what listens there is not Ray")
    except (OSError, OverflowError) as error:
        raise ValueError(_unreachable(address, getattr(error, "strerror", "") or str(error))) from None


@contextlib.contextmanager
def connected(address: str | None, jobs: int) -> Iterator[None]:
    """This process as a driver of the cluster at an address, "auto": the one that runs on this machine, None: one of our own, started here.

    jobs: CPUs of our own cluster, 0: the cores of this machine. ValueError where there is none.
    """
    check(address)
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)} if address is None else {}
    os.environ |= {name: os.environ.get(name, value) for name, value in {**QUIET, **own}.items()}
    import ray  # reads its settings from the environment now

    with _own(jobs or crew.cores()) if address is None else contextlib.nullcontext(address) as found:
        try:
            with workers.terminated_as_interrupted(), _hushed():
                ray.init(address=found, log_to_driver=False, logging_level=logging.CRITICAL)
        except Exception as error:  # ConnectionError, RuntimeError for another version, and more
            raise ValueError(_unreachable(found, " ".join(str(error).split())[:200])) from None
        try:
            yield
        finally:
            ray.shutdown()


def slots(per_gpu: int) -> tuple[str, int]:
    """What the connected cluster computes on now, and how many tasks at a time: ("cuda", per_gpu to a card) or ("cpu", one to a core)."""
    import ray

    has = ray.cluster_resources()
    return ("cuda", round(has["GPU"] * per_gpu)) if has.get("GPU") else ("cpu", int(has.get("CPU", 0)))


def run(at: course.Course, settings: Mapping, per_gpu: int, jobs: int = 0) -> None:
    """Bring a sweep to its end on the connected cluster; settings are those of `turns.take` besides the order; jobs: at most so many.

    Ctrl-C and SIGTERM stop the tasks, which save first, and go on as KeyboardInterrupt and SystemExit.
    """
    import ray

    share = {"num_cpus": 0, "num_gpus": 1 / per_gpu} if settings["device"] == "cuda" else {"num_cpus": 1}
    take = ray.remote(turns.take).options(max_retries=0, scheduling_strategy="SPREAD", **share)
    pending: dict = {}
    counted = -COUNT
    with workers.terminated_as_interrupted() as heard:
        try:
            while at.open:
                if time.monotonic() - counted > COUNT:
                    counted, room = time.monotonic(), slots(per_gpu)[1]
                    at.slots = max(1, min(room, jobs or room))
                while len(pending) < at.slots and (order := at.next()) is not None:
                    pending[take.remote(order, **settings)] = order
                    at.begun(order, "Ray")
                for ref in _ready(ray, pending):
                    _answer(ray, ref, pending.pop(ref), at)
                at.beat()
        except SystemExit as stop:  # Ray may pass it on with a code of its own
            raise SystemExit(128 + heard[-1] if heard else stop.code) from None
        finally:
            _cancel(ray, pending)


def _ready(ray, pending: Mapping) -> list:
    """The tasks that have ended: as soon as one has, or after LOOK seconds."""
    if not pending:
        time.sleep(LOOK)
        return []
    ready, rest = ray.wait(list(pending), num_returns=1, timeout=LOOK)
    more = ray.wait(rest, num_returns=len(rest), timeout=0)[0] if ready and rest else []
    return [*ready, *more]


def _answer(ray, ref, order: Mapping, at: course.Course) -> None:
    try:
        at.ended(order, ray.get(ref))
    except ray.exceptions.RayTaskError as error:  # raised on the node: the library is not there, or not the same
        why = str(error).strip().splitlines()[-1]
        at.lost(order, why)
        at.died(why)
    except ray.exceptions.RayError as error:  # the process or its node is gone
        at.lost(order, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")


def _cancel(ray, pending: Mapping) -> None:
    """Ask what still runs to save and end, and wait for it."""
    if not pending or not ray.is_initialized():
        return
    for ref in pending:
        with contextlib.suppress(Exception):
            ray.cancel(ref, force=False)
    with contextlib.suppress(Exception):
        ray.wait(list(pending), num_returns=len(pending), timeout=workers.GRACE)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Nothing reaches the standard error meanwhile, not even from C: what goes wrong is raised, and said in one line."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _unreachable(address: str | None, why: str) -> str:
    start = "start one with `ray start --head --port=6379`, or leave --address out to have one started here"
    return f"no Ray cluster at {address}: {why.rstrip('.')}; {start}"


# ---- a Ray of our own ----


@contextlib.contextmanager
def _own(cpus: int) -> Iterator[str]:
    """The address of a cluster of one node that ends when this process does, however that happens; nobody else knows its token."""
    with tempfile.TemporaryFile("w+") as said:
        host = workers.start(said, "cluster.host()", subprocess.PIPE)
        try:
            host.stdin.write(json.dumps({"cpus": cpus}).encode() + b"\n")
            host.stdin.flush()
            address = host.stdout.readline().decode().strip()
            if not address:
                said.seek(0)
                last = [line.strip() for line in said if line.strip()][-1:] or ["it says nothing"]
                raise RunError(f"Ray did not start: {last[0]}")
            yield address
        finally:
            host.stdin.close()  # it ends its Ray, then itself
            with contextlib.suppress(subprocess.TimeoutExpired):
                host.wait(workers.GRACE)
            workers.stop([host])


def host() -> None:
    """What the process that holds a Ray of our own does: start it, say its address, wait for its parent to end, end all of it."""
    import ray

    given = json.loads(os.read(0, 1 << 16))
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.CRITICAL}
        for left in reversed(range(TRIES)):
            try:
                ray.init(address="local", num_cpus=given["cpus"], object_store_memory=STORE, **quiet)
                break
            except Exception:
                if not left:
                    raise
                ray.shutdown()
        print(ray.get_runtime_context().gcs_address, file=told, flush=True)
        while os.read(0, 1024):
            pass
    finally:
        ray.shutdown()
        for process in session(os.getsid(0)):
            if process != os.getpid():
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)


def session(leader: int) -> list[int]:
    """The processes of a session (Linux; none elsewhere)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(path.read_text().rpartition(")")[2].split()[3]) == leader:
                found.append(int(path.parent.name))
    return found
