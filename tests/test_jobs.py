"""Several notebooks at a time: the same results as one after the other, and nothing left running when one fails or the run is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tiny_notebooks import TRAIN, checkout

from lib import jobs

ROOT = Path(__file__).parents[1]


def start(root, *words):
    command = [sys.executable, "-m", "lib", "run", "--root", str(root), "--jobs", "2", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kernels(root):
    """Processes that were started for this folder."""
    found = subprocess.run(["pgrep", "-f", str(root)], capture_output=True, text=True).stdout.split()
    return [pid for pid in found if int(pid) != os.getpid()]


def test_all_notebooks_are_run_with_their_own_settings_and_one_table_closes(tmp_path):
    root = checkout(tmp_path, one=["seed"], two=["rate"], three=["1"])
    process = start(root, "--set", "seed=7")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    for name in ("01_one", "02_two", "03_three"):
        assert json.loads((root / "outputs" / "cpu" / name / "metrics.json").read_text())["provenance"]["parameters"]["seed"] == 7
        assert name in (root / "outputs" / "cpu" / "index.html").read_text()
    assert said.count("Look at ") == 1 and said.splitlines()[-1].startswith("Look at ")


def test_a_failing_notebook_ends_the_run_and_stops_the_others(tmp_path):
    root = checkout(tmp_path, one=["time = __import__('time'); time.sleep(1); 1 / 0"], two=["__import__('time').sleep(60)"], three=["3"])
    began = time.monotonic()
    process = start(root)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "01_one, cell 3" in said and "ZeroDivisionError" in said
    assert time.monotonic() - began < 50
    assert not (root / "outputs" / "cpu" / "03_three").exists()
    assert kernels(root) == []


def test_a_stopped_run_leaves_nothing_running_and_continues(tmp_path):
    root = checkout(tmp_path, one=[TRAIN], two=["2"])
    process = start(root)
    saved = root / "outputs" / "cpu" / "01_one" / "latest.txt"
    for _ in range(600):
        if saved.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert kernels(root) == []
    again = start(root)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0 and "continues the run" in said, said


def test_how_many_at_a_time(monkeypatch):
    monkeypatch.setattr(jobs.machine, "hardware", lambda: {"cpu_count": 8})
    given = [(0, 5, "cpu"), (0, 5, "cuda"), (3, 5, "cpu"), (9, 5, "cpu"), (0, 1, "cpu")]
    assert [jobs.count(*each) for each in given] == [2, 1, 3, 5, 1]
