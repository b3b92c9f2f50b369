"""The board: counts that agree with the folder, read without changing it, on the terminal and in a notebook."""

import json
import re
import time

import filelock
import pytest

from lib import board, course
from lib.__main__ import main

TASKS = [[f"{n:012d}", f"task {n}", "arms"] for n in range(6)]


@pytest.fixture
def folder(tmp_path):
    """A sweep of six tasks: three done, one diverged, one failed, one begun."""
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "small", "kind": "arms", "hash": "1", "tasks": TASKS}))
    state = {"status": "ended", "engine": "local", "device": "cpu", "slots": 2, "failed": {}, "running": []}
    (tmp_path / course.STATE).write_text(json.dumps(state))
    rows = [
        {"psnr": 12.0, "seconds": 10.0},
        {"psnr": 15.5, "seconds": 20.0},
        {"psnr": float("nan"), "seconds": 30.0},
        {"error": "diverged"},
    ]
    for n, row in enumerate(rows):
        put(tmp_path, n, "row.json", row)
    put(tmp_path, 4, "error.json", {"error": "MemoryError: no", "time": 5.0})
    put(tmp_path, 5, "journal", {"what": "began"})
    return tmp_path


def put(folder, n, name, content):
    place = folder / "arms" / f"{n:012d}"
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(json.dumps(content))


def state(folder, **more):
    (folder / course.STATE).write_text(json.dumps(json.loads((folder / course.STATE).read_text()) | more))


def test_a_sweep_that_ended_is_counted_from_its_folder(folder):
    now = board.read(folder)
    assert (now.status, len(now.done), now.waiting, now.begun, now.running) == ("ended", 3, 1, 1, [])
    assert now.failed == {"000000000003": "diverged", "000000000004": "MemoryError: no"}
    assert now.best == (15.5, "task 1") and now.left == 20.0 / 2
    said = "\n".join(board.lines(now))
    assert "small: ended\n" in said and "best       15.50 dB, task 1" in said and "failed     task 4: MemoryError: no" in said
    assert "waiting    1, 1 of them begun" in said and "time left  about 10 s" in said


def test_a_sweep_that_runs_names_what_runs(folder):
    where = {"id": "000000000005", "name": "task 5", "where": "process 1", "since": time.time() - 30}
    state(folder, status="running", running=[where], failed={"000000000004": {"name": "task 4", "error": "MemoryError: no"}})
    with filelock.FileLock(folder / ".lock"):
        now = board.read(folder)
    assert (now.status, len(now.running), now.waiting, now.begun) == ("running", 1, 0, 0)
    said = board.lines(now)
    assert said[0] == "small: running on local (cpu), 2 at a time" and any(
        re.match(r"running    task 5  process 1  3\d s", s) for s in said
    )
    assert board.read(folder).status == "stopped"  # the same files, but nobody holds the folder


def test_a_long_list_is_cut_and_says_so(folder):
    tasks = [[f"{n:012d}", f"task {n}", "arms"] for n in range(30)]
    (folder / "sweep.json").write_text(json.dumps({"name": "small", "kind": "arms", "hash": "1", "tasks": tasks}))
    for n in range(10, 30):
        put(folder, n, "error.json", {"error": "no", "time": 1.0})
    said = "\n".join(board.lines(board.read(folder)))
    assert said.count("failed     ") == board.LISTED + 1 and "and 14 more" in said


def test_rows_that_were_read_are_not_read_again(folder):
    known = {}
    before = board.read(folder, known)
    for path in folder.glob("arms/*/row.json"):
        path.write_text("{}")
    assert board.read(folder, known) == before and len(known) == 4


def test_looking_changes_nothing(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    board.read(folder), board.table(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_graphics_cards_are_those_of_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert board.cards() == [] and ("GPU", "none") in board.rows(board.Standing("a", "ended", {}))
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '0, NVIDIA H200, 87, 12034, 143771'\necho 'a warning'\n")
    program.chmod(0o755)
    assert board.cards() == ["0 NVIDIA H200: 87 %, 12034 of 143771 MiB"]


def test_the_notebook_view_shows_the_same_and_looks_again(folder):
    box = board.view(folder)
    assert "15.50 dB, task 1" in box.words.value and [len(trace.x) for trace in box.figure.data] == [2, 2]
    assert list(box.figure.data[0].y) == [12.0, 15.5]
    put(folder, 5, "row.json", {"psnr": 20.0, "seconds": 5.0})
    box.controls["again"].value = True
    assert "20.00 dB, task 5" in box.words.value and len(box.figure.data[0].x) == 3 and box.trouble.value == ""
    table = board.table(folder).set_index("what")["value"]
    assert table["done"].startswith("4 of 6") and table["best"] == "20.00 dB, task 5" and table["status"] == "ended"


def test_a_sweep_without_scores_has_a_view(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "new", "kind": "arms", "hash": "1", "tasks": TASKS}))
    assert "none yet" in board.view(tmp_path).words.value and board.read(tmp_path).status == "not begun"


def test_status_on_the_command_line(folder, capsys):
    assert main(["status", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("small: ended\n")
    assert main(["status", "--watch", str(folder)]) == 0  # it has ended, so there is nothing to watch
    assert main(["status", str(folder / "none")]) == 2
    said = capsys.readouterr().err
    assert "holds no sweep; begin one with" in said and said.count("\n") == 1


def test_sweeps_stand_below_the_notebooks(folder, tmp_path_factory):
    from tiny_notebooks import checkout

    root = checkout(tmp_path_factory.mktemp("root"), one=["1"])
    place = root / "outputs" / "sweep"
    place.mkdir(parents=True)
    (place / "small").symlink_to(folder)
    assert board.everything(root, None)[-1] == "sweep  small   ended    3 of 6 done · 2 failed · best 15.50 dB"
