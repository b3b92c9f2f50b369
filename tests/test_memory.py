"""Memory: peaks of a fresh process against what a training must keep, errors in one line, the largest batch from two peaks."""

import mmap
import sys
from types import SimpleNamespace

import pytest

from lib import memory, model


def test_peak_memory_holds_weights_gradients_and_moments_and_grows_with_the_batch():
    small, large = memory.peak(["v1-mamba"], [64, 2], width=64)
    weights = 4e-6 * model.parameters(model.build("v1-mamba", width=64))
    assert (small["size"], large["size"]) == (2, 64) and 4 * weights < small["mb"] < large["mb"]
    kept = 64 * 102 * 128 * 4e-6 * 4  # one activation as wide as the scan in each of four blocks
    assert large["mb"] - small["mb"] > kept


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process start its peak anew")
def test_a_peak_holds_what_was_freed_until_it_starts_anew():
    start = memory.highest(reset=True)
    with mmap.mmap(-1, 200_000_000) as room:  # pages of its own: a tensor may lie in what the process has freed before
        for page in range(0, len(room), mmap.PAGESIZE):
            room[page] = 1
    assert memory.highest() - start > 180e6
    assert memory.highest(reset=True) - start < 50e6


def test_an_unknown_task_and_a_process_that_fails_are_reported_in_one_line(monkeypatch):
    with pytest.raises(ValueError, match="unknown task 'sleep'; known: training, evaluation"):
        memory.peak(["v1-mamba"], [1], "sleep")
    failed = SimpleNamespace(stdout="", stderr="Traceback\nRuntimeError: -1", returncode=0)
    monkeypatch.setattr(memory.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ValueError, match=r"no peak memory of 'v1-mamba' at \[-1\]: \w+: [^\n]+; smaller sizes may fit"):
        memory.peak(["v1-mamba"], [-1])


def test_the_largest_batch_is_where_the_line_through_two_peaks_meets_the_free_memory():
    peaks = [{"version": "v5", "task": "training", "size": n, "mb": 100 + 2.5 * n} for n in (8, 32)]
    assert memory.largest_batch("v5", peaks, available=1_180_000_000)["batch"] == 32 + 400
    assert memory.largest_batch("v5", peaks)["batch"] > 32
    with pytest.raises(ValueError, match="two batch sizes"):
        memory.largest_batch("v5", peaks[:1])
