"""Sweeps: every task once however it is disturbed, failures told and skipped, nothing left running, bad input in one line."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import chaos
import filelock
import pytest
import torch
from tiny_notebooks import checkout

from lib import arms, course, crew, folders, study, sweep, turns, workers
from lib.__main__ import main

TINY = {"width": 16, "layers": 1, "heads": 2, "inner": 16, "ffn": 16, "frequencies": 4, "fields": 8, "steps": 3, "batch": 2}
TINY |= {"validation_fields": 2, "test_fields": 2, "solver_steps": 1}


def tiny(**switches):
    return arms.arm("v2-transformer", "plane", **{**TINY, **switches})


def waits(n, seconds=0.0, **more):
    return [(f"wait {i}", turns.Idle(f"{i:012d}", seconds, **more)) for i in range(n)]


def design(tasks, name="test", kind="arms"):
    return SimpleNamespace(name=name, kind=kind, hash="0123456789ab", tasks=tasks)


def orders(tasks):
    return list(sweep.named(design(tasks)).values())


def at(folder, tasks=(), slots=1):
    return course.Course(folder, orders(tasks), slots, lambda done, words: None, engine="local")


@pytest.fixture
def file(tmp_path):
    """A design in a file: two arms of three steps."""
    text = "name: small\narms: {" + ", ".join(f"{k}: {v}" for k, v in ({"version": "v2-transformer", "world": "plane"} | TINY).items())
    path = tmp_path / "small.yaml"
    path.write_text(text + "}\nlist: {plain: {}, residual: {head: residual}}\n")
    return path


def told(words, capsys):
    """Exit code and standard error of the command line."""
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    return code, capsys.readouterr().err


# ---- bad input ----


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--engine", "rai"], "unknown engine 'rai'; did you mean 'ray'?; known: local, ray"),
        (["--address", "auto"], "--address auto is for --engine ray"),
        (["--jobs", "-1"], "--jobs is -1"),
        (["--jobs-per-gpu", "0"], "--jobs-per-gpu 0; give at least 1"),
        (["--resume"], "holds no sweep to continue; leave --resume out"),
        (["--seeds", "0"], "seeds is 0"),
        (["--seeds", "501"], "small has 1,002 arms, more than 1,000; add --yes to run them, --dry-run to see how long they take"),
        (["--set", "stepps=4"], "unknown parameter 'stepps'; did you mean 'steps'?"),
        (["--device", "gpu"], "invalid choice: 'gpu'"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(tmp_path, file, capsys, words, says):
    code, said = told(["sweep", str(file), "--out", str(tmp_path / "out"), *words], capsys)
    assert code == 2 and says in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_design_that_is_empty_or_not_there_is_refused(tmp_path, capsys):
    assert "no such parameter file" in told(["sweep", str(tmp_path / "none.yaml")], capsys)[1]
    with pytest.raises(ValueError, match="test is empty: it has no arms to run"):
        sweep.check(design([]), tmp_path, sweep.Options())


def test_a_folder_that_holds_something_else_is_refused_and_left_as_it_is(tmp_path):
    mine, out = design(waits(1)), tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than a sweep; choose another folder with --out"):
        sweep.run(mine, out, sweep.Options())
    (out / "sweep.json").write_text(json.dumps({"name": "older", "hash": "ba9876543210", "kind": "arms", "tasks": []}))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match=r"holds another design \(older, ba9876543210\) than this one \(test, 0123456789ab\)"):
        sweep.run(mine, out, sweep.Options(resume=True))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_two_sweeps_on_one_folder_are_refused(tmp_path):
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(folders.RunError, match="is in use by another sweep; wait for it to end"):
        sweep.run(design(waits(1)), tmp_path, sweep.Options())
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: pip install -e '\.\[cluster\]', or take --engine local"):
        sweep.check(design(waits(1)), tmp_path, sweep.Options(engine="ray"))


def test_a_dry_run_counts_estimates_and_writes_nothing(tmp_path):
    mine = design([*waits(4), ("the same", turns.Idle("000000000000"))])
    assert sweep.plan(mine, tmp_path / "out", sweep.Options()) == [
        "test: 5 arms, 4 different ones",
        "0 done, 0 failed for good, 4 to do",
        "how long it takes is known once a task has finished",
    ]
    assert not (tmp_path / "out").exists()
    for n, content in enumerate(({"seconds": 30.0}, {"seconds": 50.0, "error": "it diverged"})):
        place = tmp_path / "out" / "arms" / f"{n:012d}"
        place.mkdir(parents=True)
        (place / "row.json").write_text(json.dumps(content))
    (place.parent / "000000000002").mkdir()
    (place.parent / "000000000002" / "error.json").write_text(json.dumps({"error": "MemoryError", "time": 5.0}))
    (tmp_path / "out" / "sweep.json").write_text(json.dumps(sweep.about(mine, orders(mine.tasks))))
    assert sweep.plan(mine, tmp_path / "out", sweep.Options(jobs=2)) == [
        "test: 5 arms, 4 different ones",
        "1 done, 1 failed for good, 2 to do (1 of them failed before)",
        "about 40 s, 2 at a time: 2 finished took 40.0 s each",
    ]


# ---- one task ----


def test_a_task_is_done_once_and_its_journal_says_by_whom(tmp_path):
    order = turns.order("a", turns.Idle("a"))
    first, second = (turns.take(order, str(tmp_path), "cpu", time.time()) for _ in range(2))
    assert first["status"] == second["status"] == "done"
    lines = turns.journal(tmp_path / "arms" / "a")
    assert [line["what"] for line in lines] == ["began", "ended"] and {line["pid"] for line in lines} == {os.getpid()}


def test_a_task_that_another_process_is_at_is_left_to_it(tmp_path):
    order, place = turns.order("a", turns.Idle("a")), tmp_path / "arms" / "a"
    place.mkdir(parents=True)
    with filelock.FileLock(place / "lock"):
        assert turns.take(order, str(tmp_path), "cpu", time.time())["status"] == "busy"
    assert turns.journal(place) == []


def test_a_failure_counts_for_this_sweep_and_not_for_the_next(tmp_path):
    order, since = turns.order("a", turns.Idle("a", fails="no")), time.time()
    for _ in range(2):
        assert turns.take(order, str(tmp_path), "cpu", since)["error"] == "RuntimeError: no"
    assert len(turns.journal(tmp_path / "arms" / "a")) == 2
    turns.take(order, str(tmp_path), "cpu", time.time())
    assert len(turns.journal(tmp_path / "arms" / "a")) == 4


def test_a_row_cut_short_by_a_lost_machine_is_made_again(tmp_path):
    arm = tiny()
    place = tmp_path / "arms" / arm.id
    place.mkdir(parents=True)
    (place / "row.json").write_text('{"psnr": 5.')
    assert turns.take(turns.order("a", arm), str(tmp_path), "cpu", time.time())["status"] == "done"
    assert json.loads((place / "row.json").read_text())["psnr"] > -20 and not list(place.glob("*.pt"))


def test_a_process_with_a_broken_graphics_card_ends_and_its_task_is_answered(tmp_path):
    order, since = turns.order("a", turns.Idle("a", fails="CUDA error: an illegal memory access")), time.time()
    with pytest.raises(SystemExit):
        turns.take(order, str(tmp_path), "cuda", since)
    assert turns.take(order, str(tmp_path), "cuda", since)["status"] == "failed"  # by another process, which need not try


def test_a_full_disk_is_an_answer_of_take_and_stops_the_course(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(turns, "note", full)
    [order] = orders(waits(1))
    answer = turns.take(order, str(tmp_path), "cpu", time.time())
    assert answer["status"] == "failed" and "No space left" in answer["error"]
    with pytest.raises(folders.RunError, match="the disk is full: wait 0 could not write; free some space"):
        at(tmp_path, waits(1)).ended(order, answer)


# ---- the course of many ----


def test_a_task_that_is_lost_goes_to_the_end_of_the_line_so_many_times(tmp_path):
    found = at(tmp_path, waits(2))
    for _ in range(course.RETRIES + 1):
        order = found.next()
        assert order["name"] == "wait 0"
        found.begun(order, "here")
        found.lost(order, "killed")
        other = found.next()
        assert other["name"] == "wait 1"
        found.waiting.append(other)
    assert found.failed == {"000000000000": {"name": "wait 0", "error": "begun 4 times: killed"}} and found.left == 1


def test_a_task_that_is_busy_elsewhere_is_looked_at_again_later(tmp_path, monkeypatch):
    found = at(tmp_path, waits(1))
    order = found.next()
    found.begun(order, "here")
    found.ended(order, {"status": "busy"})
    assert found.next() is None and found.open and found.left == 1
    later = time.monotonic() + course.PAUSE
    monkeypatch.setattr(course.time, "monotonic", lambda: later)
    assert found.next() == order


def test_processes_that_end_one_after_the_other_stop_the_sweep(tmp_path):
    found = at(tmp_path)
    for _ in range(course.DEATHS - 1):
        found.died("no torch")
    with pytest.raises(folders.RunError, match="10 processes ended one after the other before they did anything, the last: no torch"):
        found.died("no torch")


def test_the_time_left_is_the_mean_of_the_finished_shared_by_those_that_run(tmp_path):
    found = at(tmp_path, waits(5), slots=2)
    assert found.seconds_left() is None
    found.ended(found.next(), {"status": "done", "error": "", "psnr": 12.5, "seconds": 30.0})
    assert found.seconds_left() == 60.0 and found.words() == "best 12.50 dB · 60 s left"
    kept = json.loads((tmp_path / "state.json").read_text())
    assert kept["waiting"] == 4 and kept["done"] == 1 and kept["engine"] == "local"


@pytest.mark.parametrize(("seconds", "says"), [(45, "45 s"), (119, "119 s"), (780, "13 min"), (12000, "3 h 20 min"), (187200, "2 d 4 h")])
def test_durations_have_two_units(seconds, says):
    assert course.duration(seconds) == says


def test_processes_take_turns_over_the_graphics_cards(monkeypatch):
    monkeypatch.setattr(crew, "cores", lambda: 3)
    assert crew.places("cpu", 0, 2) == [{}] * 3 and crew.places("cpu", 5, 2) == [{}] * 5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-7")
    cards = [place["CUDA_VISIBLE_DEVICES"] for place in crew.places("cuda", 0, 2)]
    assert cards == ["2", "GPU-7", "2", "GPU-7"] and len(crew.places("cuda", 3, 2)) == 3
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in crew.places("cuda", 3, 2)] == ["0", "1", "0"]


# ---- whole sweeps ----


def test_a_sweep_finishes_what_it_can_and_has_the_numbers_of_a_study(tmp_path, file, capsys):
    """Two arms, one of them under two names, one that cannot be; then again, which redoes only what failed."""
    words = ["sweep", str(file), "--out", str(tmp_path / "out"), "--jobs", "2"]
    file.write_text(file.read_text().replace("plain: {}", "plain: {}, again: {head: attention}, bad: {heads: 3}"))
    assert main(words) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("2 done, 1 failed in") and "bad, seed 0" in said[1] and "16 is not a multiple of 3 heads" in said[1]
    alone = study.run([("plain", tiny()), ("residual", tiny(head="residual"))], show=False).set_index("id")
    table = study.table(tmp_path / "out").set_index("id")
    assert table.psnr.to_dict() == alone.psnr.to_dict() and table.loss.to_dict() == alone.loss.to_dict()
    names = {name for _, name, _ in json.loads((tmp_path / "out" / "sweep.json").read_text())["tasks"]}
    assert names == {"plain = again, seed 0", "residual, seed 0", "bad, seed 0"}
    assert main([*words, "--resume"]) == 1
    begun = {place.name: sum(line["what"] == "began" for line in turns.journal(place)) for place in (tmp_path / "out" / "arms").iterdir()}
    assert sorted(begun.values()) == [1, 1, 2] and all(begun[id] == 1 for id in table.index)


def test_a_sweep_that_is_stopped_saves_leaves_nothing_and_continues(tmp_path):
    path, out, token = chaos.design(tmp_path, arms=4, steps=100000), tmp_path / "out", "stopped"
    driver = chaos.start(path, out, token, "--jobs", "2")
    assert chaos.until(lambda: len(list(out.glob("arms/*/latest.pt"))) == 2)
    with pytest.raises(folders.RunError, match="in use by another sweep"):
        sweep.claim(out).__enter__()
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(60) == 128 + signal.SIGTERM
    assert chaos.marked(token) == chaos.at_work(out) == set()
    assert "stopped with 0 of 4 done; the same command continues" in (tmp_path / "said.txt").read_text()
    assert json.loads((out / "state.json").read_text())["status"] == "stopped"
    saved = {path: steps(path) for path in out.glob("arms/*/latest.pt")}
    again = chaos.start(path, out, token, "--jobs", "2", "--resume")
    assert chaos.until(lambda: all(steps(path) > step for path, step in saved.items()))
    again.kill()
    again.wait()
    assert chaos.until(lambda: chaos.marked(token) == chaos.at_work(out) == set(), 30)
    assert sorted(len(turns.journal(path.parent)) for path in saved) == [2, 2] and len(saved) == 2


def steps(path):
    """How far a training had come when it was saved."""
    return torch.load(path, weights_only=True)["step"]


def test_kills_at_random_moments_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    verdicts = chaos.run("local", rounds=2, arms=4, steps=200, pause=(0.1, 0.8), seed=1)
    assert verdicts and all(map(chaos.held, verdicts)), verdicts


def test_a_sweep_runs_notebooks_and_a_killed_process_takes_its_kernel_along(tmp_path):
    """The first notebook kills the process it runs under, once; its kernel ends, the sweep goes on, and every notebook has its row."""
    fatal = "import os, pathlib, signal, time\nonce = pathlib.Path(folder).parent / 'once'\nif not once.exists():\n"
    fatal += "    once.write_text(str(os.getpid()))\n    os.kill(os.getppid(), signal.SIGKILL)\n    time.sleep(60)"
    report = "display({'application/vnd.sparse-fields.metrics+json': {'psnr': 40.0 + seed}, 'text/plain': 'psnr'}, raw=True)"
    root = checkout(tmp_path, one=[fatal, report])
    (root / "books.yaml").write_text("notebook: 01_one\nseeds: 2\ngrid: {rate: [1.0e-3]}\n")
    code = main(["sweep", str(root / "books.yaml"), "--root", str(root), "--out", str(root / "out"), "--jobs", "1", "--device", "cpu"])
    assert code == 0
    rows = [json.loads(path.read_text()) for path in sorted((root / "out").glob("notebooks/*/row.json"))]
    assert sorted(row["metrics"]["psnr"] for row in rows) == [40.0, 41.0] and {row["parameters"]["rate"] for row in rows} == {1e-3}
    kernels = [int(path.read_text()) for path in (root / "out").glob("notebooks/*/once")]
    assert len(kernels) == 2 and chaos.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in kernels), 20)
    assert all((path / "run" / "run.html").exists() for path in (root / "out" / "notebooks").iterdir())


def test_a_crew_that_cannot_start_ends_the_sweep_in_one_line(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho out of order >&2; exit 7\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(folders.RunError, match="the last: its process ended with code 7: out of order"):
        sweep.run(design(waits(9)), tmp_path / "out", sweep.Options(jobs=2), show=False)


def test_words_of_a_task_do_not_reach_the_answers(tmp_path):
    """A task that prints, and a child of it, write to the log, not to the pipe of the answers."""
    code = "from lib import turns; import os; turns.DOING['idle'] = lambda *given: (print('loud'), os.system('echo louder'), real(*given));"
    process = workers.start(subprocess.DEVNULL, f"turns; real = turns.DOING['idle']; {code} turns.serve()", subprocess.PIPE)
    for line in ({"folder": str(tmp_path), "device": "cpu", "since": 0.0, "keep": False}, orders(waits(1))[0]):
        process.stdin.write(json.dumps(line).encode() + b"\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["status"] == "done"
    process.stdin.close()
    assert process.wait(60) in (0, -signal.SIGTERM)
