"""Sweeps on Ray: what is lost is begun again, what is not there is said in one line, and a Ray of our own ends with the sweep."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import chaos
import pytest

from lib import arms, cluster, course, sweep, turns

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray, the extra `cluster`, is not installed")


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.fixture
def closed():
    """A port of this machine at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"127.0.0.1:{port}"


def test_an_address_where_nothing_listens_is_told(installed, closed):
    with pytest.raises(ValueError, match=f"no Ray cluster at {closed}: Connection refused; start one with `ray start --head") as told:
        cluster.check(closed)
    assert "\n" not in str(told.value)


def test_an_address_where_something_else_listens_is_told(installed):
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *given: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(ValueError, match="what listens there is not Ray"):
        cluster.check(f"127.0.0.1:{server.server_port}")
    server.shutdown()


@pytest.mark.parametrize("address", ["here", ":6379", "here:there"])
def test_an_address_is_a_host_and_a_port(installed, address):
    with pytest.raises(ValueError, match="give host:port, or auto"):
        cluster.check(address)


def test_an_unreachable_cluster_changes_nothing(tmp_path, installed, closed):
    design = SimpleNamespace(name="test", kind="arms", hash="0", tasks=[("wait", turns.Idle("a"))])
    with pytest.raises(ValueError, match="no Ray cluster"):
        sweep.run(design, tmp_path / "out", sweep.Options(engine="ray", address=closed))
    assert not (tmp_path / "out").exists()


class FakeRay:
    """As much of Ray as cluster.run uses, in this process: tasks run when they are waited for, and `fate` says what becomes of each try."""

    class exceptions:
        RayError = type("RayError", (Exception,), {})
        NodeDiedError = type("NodeDiedError", (RayError,), {})
        RayTaskError = type("RayTaskError", (RayError,), {})

    def __init__(self, fate, resources):
        self.fate, self.resources, self.tries, self.shares, self.most, self.open = fate, resources, {}, [], 0, set()

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return self.resources

    def remote(self, function):
        self.function = function
        return SimpleNamespace(options=self.options)

    def options(self, **share):
        self.shares.append(share)
        return SimpleNamespace(remote=self.submit)

    def submit(self, order, **settings):
        ref = (order["id"], self.tries.setdefault(order["id"], 0), json.dumps([order, settings]))
        self.tries[order["id"]] += 1
        self.open.add(ref)
        self.most = max(self.most, len(self.open))
        return ref

    def wait(self, refs, num_returns, timeout):
        return refs[:num_returns], refs[num_returns:]

    def get(self, ref):
        self.open.discard(ref)
        id, tried, text = ref
        if raised := self.fate(id, tried, self.exceptions):
            raise raised
        order, settings = json.loads(text)
        return self.function(order, **settings)

    def cancel(self, ref, force):
        self.open.discard(ref)


def driven(folder, monkeypatch, fate, tasks=4, resources=None, **how):
    """A course of tasks that wait no time, brought to its end on a fake Ray."""
    ray = FakeRay(fate, resources or {"CPU": 2.0})
    monkeypatch.setitem(sys.modules, "ray", ray)
    design = SimpleNamespace(tasks=[(f"wait {n}", turns.Idle(f"{n:012d}")) for n in range(tasks)])
    at = course.Course(folder, list(sweep.named(design).values()), 1, lambda done, words: None)
    device, _ = cluster.slots(how.get("per_gpu", 2))
    cluster.run(at, {"folder": str(folder), "device": device, "since": time.time(), "keep": False}, **{"per_gpu": 2, **how})
    return ray, at


def test_every_task_is_done_once_with_as_many_at_a_time_as_there_is_room_for(tmp_path, monkeypatch):
    ray, at = driven(tmp_path, monkeypatch, lambda *given: None, tasks=7)
    assert at.done == 7 and not at.failed and ray.most == 2
    assert ray.shares == [{"max_retries": 0, "scheduling_strategy": "SPREAD", "num_cpus": 1}]
    assert all(len(turns.journal(place)) == 2 for place in (tmp_path / "arms").iterdir())
    assert driven(tmp_path / "one", monkeypatch, lambda *given: None, jobs=1)[0].most == 1


def test_a_graphics_card_is_shared(tmp_path, monkeypatch):
    ray, at = driven(tmp_path, monkeypatch, lambda *given: None, tasks=20, resources={"CPU": 8.0, "GPU": 2.0}, per_gpu=4)
    assert at.done == 20 and ray.most == 8 and ray.shares[0]["num_gpus"] == 0.25 and ray.shares[0]["num_cpus"] == 0


def test_what_a_lost_node_was_at_is_begun_again(tmp_path, monkeypatch):
    def dies(id, tried, exceptions):
        return exceptions.NodeDiedError("the node\nis gone") if id.endswith("1") and tried < 2 else None

    ray, at = driven(tmp_path, monkeypatch, dies)
    assert at.done == 4 and ray.tries["000000000001"] == 3 and at.tries["000000000001"] == 2


def test_a_task_that_takes_its_node_along_every_time_is_given_up(tmp_path, monkeypatch):
    def dies(id, tried, exceptions):
        return exceptions.NodeDiedError("the node\nis gone") if id.endswith("1") else None

    _, at = driven(tmp_path, monkeypatch, dies)
    assert at.done == 3 and at.failed["000000000001"]["error"] == "begun 4 times: NodeDiedError: the node"


def test_nodes_without_the_library_stop_the_sweep(tmp_path, monkeypatch):
    def missing(id, tried, exceptions):
        return exceptions.RayTaskError("Traceback\nModuleNotFoundError: No module named 'lib'")

    with pytest.raises(ValueError, match="the last: ModuleNotFoundError: No module named 'lib'"):
        driven(tmp_path, monkeypatch, missing)


@needs_ray
def test_a_sweep_on_a_ray_of_its_own_has_the_same_numbers_and_leaves_nothing(tmp_path):
    path, token, out = chaos.design(tmp_path, arms=4, steps=20), "a ray of its own", tmp_path / "out"
    driver = chaos.start(path, out, token, "--engine", "ray", "--jobs", "2")
    assert driver.wait(240) == 0, (tmp_path / "said.txt").read_text()
    assert chaos.until(lambda: not chaos.marked(token) and not chaos.at_work(out), 30)
    rows = {place.parent.name: json.loads(place.read_text()) for place in out.glob("arms/*/row.json")}
    assert len(rows) == 4 and all(len(turns.journal(out / "arms" / id)) == 2 for id in rows)
    row = rows[min(rows)]
    alone = arms.run(arms.of(row), None, show=False)
    assert alone["psnr"] == row["psnr"] and alone["loss"] == row["loss"]


@needs_ray
def test_a_killed_driver_takes_its_ray_along(tmp_path):
    """Also while Ray is still starting; its processes are those of the session of the process that holds it."""
    path, token, out = chaos.design(tmp_path, arms=4, steps=20), "a killed ray", tmp_path / "out"
    driver = chaos.start(path, out, token, "--engine", "ray", "--jobs", "2")
    assert chaos.until(lambda: len(chaos.marked(token) - {driver.pid}) >= 2, 120)
    held = {leader for pid in chaos.marked(token) - {driver.pid} for leader in _session(pid)}
    driver.kill()
    driver.wait()
    assert chaos.until(lambda: not chaos.marked(token) and not any(map(chaos.session, held - {_own()})), 60)


def _session(pid):
    found = subprocess.run(["ps", "-o", "sid=", "-p", str(pid)], capture_output=True, text=True).stdout.split()
    return {int(word) for word in found}


def _own():
    return os.getsid(0)


def test_the_processes_of_a_session_are_found():
    leader = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
    try:
        assert chaos.until(lambda: len(cluster.session(leader.pid)) == 2, 10) and leader.pid in cluster.session(leader.pid)
        assert Path(f"/proc/{leader.pid}").exists()
    finally:
        chaos.kill(cluster.session(leader.pid))
        leader.wait()
