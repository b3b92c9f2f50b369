"""Studies: the same numbers however many arms run at a time, every arm once, failures reported, nothing left running, honest intervals."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lib import arms, study, train, workers

ROOT = Path(__file__).parents[1]
TINY = {"width": 16, "layers": 1, "heads": 2, "inner": 16, "ffn": 16, "frequencies": 4, "fields": 8, "steps": 3, "batch": 2}
TINY |= {"validation_fields": 2, "test_fields": 2, "solver_steps": 1}
TWO = {"as described": {}, "residual": {"head": "residual"}}
NOT_NUMBERS = ["ms_per_field", "seconds_training", "seconds", "date", "commit"]


def tiny(seeds=(0,), variants=TWO, **switches):
    return study.design("v2-transformer", "plane", list(seeds), variants, **{**TINY, **switches})


def alive(folder):
    """Processes that work on this folder: its locks are open in them, or its name stands in their command."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = [os.readlink(f) for f in (process / "fd").iterdir()]
            words = (process / "cmdline").read_text()
        except OSError:
            continue
        if int(process.name) != os.getpid() and (str(folder) in words or any(f.startswith(str(folder)) for f in files)):
            found.append(int(process.name))
    return found


def children(parent):
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in listed]


def started(folder, jobs=2, **switches):
    """A study of four arms in a program of its own."""
    text = f"""
from lib import study
if __name__ == "__main__":
    design = study.design("v2-transformer", "plane", [0, 1], {TWO!r}, **{ {**TINY, **switches}!r})
    study.run(design, {str(folder)!r}, jobs={jobs}, show=False)
"""
    return subprocess.Popen([sys.executable, "-c", text], cwd=ROOT)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


# ---- designs and tables ----


def test_a_design_is_every_variant_with_every_seed():
    found = tiny([0, 1], {**TWO, "other": {"version": "v1-mamba", "world": "radial"}})
    assert [(name, arm.train.seed) for name, arm in found] == [(n, s) for s in (0, 1) for n in ("as described", "residual", "other")]
    assert found[1][1].model.head == "residual" and found[1][1].train.steps == 3
    assert (found[2][1].version, found[2][1].world) == ("v1-mamba", "radial")
    assert len({arm.id for _, arm in found}) == 6


def test_a_smoke_study_is_one_tidy_table(tmp_path):
    torch.set_num_threads(2)
    try:
        table = study.run(tiny(), tmp_path, show=False)
        assert torch.get_num_threads() == 2  # one thread per arm, and the caller's afterwards
    finally:
        torch.set_num_threads(1)
    assert list(table.columns) == study.columns and list(table.name) == list(TWO) and (table.error == "").all()
    assert table.psnr.between(-20, 20).all() and [len(f) for f in table.psnr_fields] == [2, 2]
    assert list(table["head"]) == ["attention", "residual"] and (table.threads == 1).all() and (table.seconds > 0).all()
    kept = json.loads((tmp_path / "arms" / table.id[0] / "row.json").read_text())
    assert {"commit", "cpu", "gpu", "threads", "date", "torch"} <= set(kept)
    again = study.run(tiny(), tmp_path, show=False)  # read, not run: the dates are those of the first time
    pd.testing.assert_frame_equal(again, table)
    read = study.table(tmp_path).set_index("id")
    pd.testing.assert_series_equal(read.psnr, table.set_index("id").psnr.sort_index())
    assert not list(tmp_path.glob("arms/*/previous.pt")) and len(list(tmp_path.glob("arms/*/latest.pt"))) == 2


def test_an_older_row_without_a_switch_reads_as_its_default(tmp_path):
    (name, arm), *_ = tiny()
    row = {k: v for k, v in {**arms.settings(arm), "psnr": 5.0, "id": "old"}.items() if k != "compile"}
    place = tmp_path / "arms" / arm.id
    place.mkdir(parents=True)
    (place / "row.json").write_text(json.dumps(row))
    read = study.table(tmp_path)
    assert read.id[0] == arm.id and not read.compile[0] and study.run([(name, arm)], tmp_path, show=False).psnr[0] == 5.0


def test_an_empty_folder_is_an_empty_table(tmp_path):
    assert list(study.table(tmp_path).columns) == study.columns and len(study.table(tmp_path)) == 0


def test_no_score_has_the_name_of_a_switch():
    assert len(study.columns) == len(set(study.columns))


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert study.run(tiny()[:1], show=False).psnr.notna().all()
    assert list(tmp_path.iterdir()) == []


def test_jobs_are_at_least_one():
    with pytest.raises(ValueError, match="jobs=0"):
        study.run([], jobs=0)


# ---- running ----


def test_two_at_a_time_give_the_same_numbers_and_failures_are_rows(tmp_path):
    variants = {**TWO, "diverges": {"rate": 1e30, "steps": 3}, "impossible": {"heads": 3}}
    one = study.run(tiny(variants=variants), tmp_path / "one", show=False)
    two = study.run(tiny(variants=variants), tmp_path / "two", jobs=2, show=False)
    assert alive(tmp_path) == []
    pd.testing.assert_frame_equal(one.drop(columns=NOT_NUMBERS), two.drop(columns=NOT_NUMBERS), check_exact=True)
    for table in (one, two):
        assert list(table.psnr.isna()) == [False, False, True, True]
        assert list(table.error[:2]) == ["", ""] and "lower the rate" in table.error[2]
        assert table.error[3].startswith("ValueError: attention width 16 is not a multiple of 3 heads")
    assert (tmp_path / "two" / "arms" / two.id[2] / "row.json").exists()  # diverged: an answer
    assert not (tmp_path / "two" / "arms" / two.id[3] / "row.json").exists()  # anything else is tried again


def test_a_failure_is_tried_again_by_the_next_run_and_a_divergence_is_not(tmp_path, monkeypatch):
    tried = []

    def fails(arm, *_, **__):
        tried.append(arm.id)
        raise (train.TrainingDiverged if arm.model.head == "residual" else MemoryError)("no")

    monkeypatch.setattr(arms, "run", fails)
    design = tiny()
    ids = [arm.id for _, arm in design]
    assert list(study.run(design, tmp_path, show=False).error) == ["MemoryError: no", "no"] and tried == ids
    assert list(study.run(design, tmp_path, show=False).error) == ["MemoryError: no", "no"] and tried == [*ids, ids[0]]
    assert list(study.table(tmp_path).id) == [ids[1]] and np.isnan(study.table(tmp_path).psnr[0])
    monkeypatch.undo()
    assert list(study.run(design, tmp_path, show=False).error) == ["", "no"]


def test_a_worker_that_dies_is_told(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho out of order >&2; exit 7\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    table = study.run(tiny(), tmp_path, jobs=2, show=False)
    assert list(table.error) == ["its process ended with code 7: out of order"] * 2 and table.psnr.isna().all()


def test_a_killed_study_leaves_no_process_and_is_finished_by_the_next(tmp_path):
    process = started(tmp_path, steps=40)
    until(lambda: len(list(tmp_path.glob("arms/*/row.json"))) >= 1)
    workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 20)
    assert alive(tmp_path) == []
    before = {row: row.read_text() for row in tmp_path.glob("arms/*/row.json")}
    table = study.run(tiny([0, 1], steps=40), tmp_path, show=False)
    assert len(before) < 4 and table.psnr.notna().all() and table.id.is_unique and len(table) == 4
    assert all(row.read_text() == text for row, text in before.items())  # finished arms are not run again
    assert len(list(tmp_path.glob("arms/*"))) == 4
    alone = study.run(tiny([1], {"residual": TWO["residual"]}, steps=40), show=False)
    assert alone.psnr[0] == table.psnr[3]


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_stopped_study_stops_its_workers(tmp_path, monkeypatch, number, raised):
    sent = []

    def stop():
        until(lambda: len(list(tmp_path.glob("arms/*/lock"))) >= 2)
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)

    monkeypatch.setattr(workers, "GRACE", 120)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is started deaf to it
    threading.Thread(target=stop).start()
    try:
        with pytest.raises(raised):
            study.run(tiny([0, 1], steps=100000), tmp_path, jobs=2, show=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - sent[0] < 60  # asked to end, not killed after the time of grace
    assert alive(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_two_runs_on_one_folder_share_the_work(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        workers.arms, "run", lambda arm, *rest, original=arms.run, **more: ran.append(arm.id) or original(arm, *rest, **more)
    )
    other = started(tmp_path, jobs=1, steps=60)
    until(lambda: list(tmp_path.glob("arms/*/lock")))
    table = study.run(tiny([0, 1], steps=60), tmp_path, show=False)
    assert other.wait(timeout=60) == 0
    assert table.psnr.notna().all() and 0 < len(ran) < 4 and len(set(ran)) == len(ran)


def test_an_arm_that_another_process_is_at_is_waited_for(tmp_path):
    (_, arm), *_ = design = tiny()[:1]
    code = f"import filelock, json, pathlib, time; p = pathlib.Path({str(tmp_path / 'arms' / arm.id)!r}); p.mkdir(parents=True)\n"
    code += "with filelock.FileLock(p / 'lock'):\n    print('held', flush=True); time.sleep(1.5)\n"
    code += f"    (p / 'row.json').write_text(json.dumps({ {**arms.settings(arm), 'psnr': 1.5}!r}))\n"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    assert study.run(design, tmp_path, show=False).psnr[0] == 1.5  # the other's answer: this process computed nothing
    other.communicate(timeout=10)


# ---- means and gains ----


def scored(values, name="a", world="plane", **more):
    """A table with one row per seed of lists of field scores."""
    rows = [
        {"name": name, "id": f"{name}{s}", "seed": s, "world": world, "psnr": np.mean(v), "psnr_fields": v} for s, v in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(**more)


def test_a_mean_has_its_interval_over_seeds_and_fields():
    found = study.means(scored([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])).iloc[0]
    assert (found["name"], found["mean"], found.seeds, found.fields) == ("a", 2.5, 2, 6)
    assert 1 <= found.low < 2.5 < found.high <= 4
    one = study.means(scored([[1.0, 2.0, 3.0]])).iloc[0]
    assert one.seeds == 1 and one.low < one["mean"] < one.high
    pd.testing.assert_frame_equal(study.means(scored([[1.0, 5.0]])), study.means(scored([[1.0, 5.0]])))  # the same draws at every call


def test_a_score_without_fields_has_an_interval_over_seeds():
    found = study.means(scored([[1.0], [2.0], [3.0]], ssim=[0.1, 0.2, 0.6]), value="ssim").iloc[0]
    assert (
        found["mean"] == pytest.approx(0.3) and found.low == pytest.approx(0.1) and found.high == pytest.approx(0.6) and found.fields == 3
    )


def test_a_gain_is_paired_by_seed_and_field():
    levels = np.random.default_rng(0).normal(10, 5, (3, 8))
    table = pd.concat([scored((levels + 0.7).tolist(), "better"), scored(levels.tolist(), "base").iloc[::-1]])
    found = study.gains(table, "base")
    assert list(found.columns) == ["name", "gain", "low", "high", "seeds"] and len(found) == 1
    assert found.loc[0, ["gain", "low", "high"]].tolist() == pytest.approx([0.7] * 3) and found.seeds[0] == 3


def test_a_gain_counts_only_seeds_that_both_finished():
    table = pd.concat([scored([[1.0, 2.0], [3.0, 4.0]], "a"), scored([[0.0, 1.0]], "b")])
    assert study.gains(table, "b").seeds[0] == 1 and study.gains(table, "b").gain[0] == 1.0
    table.loc[table.name == "b", "psnr"] = np.nan
    assert study.gains(table, "b").seeds[0] == 0 and np.isnan(study.gains(table, "b").gain[0])


def test_what_does_not_pair_is_refused():
    with pytest.raises(ValueError, match="no name 'c' in this table; there are a"):
        study.gains(scored([[1.0]]), "c")
    with pytest.raises(ValueError, match="'a' has 2 fields and 'b' 3"):
        study.gains(pd.concat([scored([[1.0, 2.0]], "a"), scored([[1.0, 2.0, 3.0]], "b")]), "b")
    with pytest.raises(ValueError, match="two arms of world 'plane' and seed 0"):
        study.means(pd.concat([scored([[1.0]], "a"), scored([[1.0]], "b")]), by="world")
    with pytest.raises(ValueError, match="no column 'pnsr'"):
        study.means(scored([[1.0]]), value="pnsr")


@pytest.mark.parametrize(("between", "within", "least", "most"), [(0.0, 1.0, 0.93, 1.0), (1.0, 0.0, 0.6, 0.9), (0.3, 1.0, 0.85, 1.0)])
def test_how_often_an_interval_of_three_seeds_holds_the_truth(between, within, least, most):
    generator = np.random.default_rng(1)
    held = []
    for _ in range(200):
        groups = between * generator.normal(size=(3, 1)) + within * generator.normal(size=(3, 16))
        _, low, high = study.interval(list(groups), resamples=400)
        held.append(low <= 0 <= high)
    assert least <= np.mean(held) <= most
