"""What memory training and answering need: peaks of a fresh process or of the GPU, and the largest batch that fits.

Every version is measured in a process of its own, and the peak starts anew before every size: at what is resident then, which may hold
memory that the size before has freed. Hence the ascending order, which is also right where a peak cannot start anew (outside Linux).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch

from lib import cost, model

MOST = 2**17  # fields per batch at which the search for the largest stops


def peak(versions: Sequence[str], sizes: Sequence[int], task: str = "training", device="cpu", **switches) -> list[dict]:
    """Peak memory (MB) that each version adds, weights included, per size in ascending order, 51 readings each.

    task: training (a step on `size` fields, 51 queries) or evaluation (one field on a size x size grid). On a CPU it is the growth of
    the largest resident set of a fresh process, libraries not counted; on CUDA torch.cuda.max_memory_allocated.
    """
    if task not in ("training", "evaluation"):
        raise ValueError(f"unknown task {task!r}; known: training, evaluation")
    sizes = sorted(sizes)
    if torch.device(device).type == "cuda":
        peaks = {version: _peaks(version, sizes, task, switches, device) for version in versions}
    else:
        words = json.dumps([list(versions), sizes, task, switches, torch.get_num_threads()])
        run = "import sys; from lib import memory; memory.report_peaks(sys.argv[1])"
        done = subprocess.run([sys.executable, "-c", run, words], capture_output=True, text=True)
        peaks = dict(json.loads(line) for line in done.stdout.splitlines())
        if lost := [version for version in versions if version not in peaks]:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise ValueError(f"no peak memory of {lost[0]!r} at {sizes}: {last[0]}; smaller sizes may fit")
    return [{"version": v, "task": task, "size": n, "mb": mb / 1e6} for v in versions for n, mb in zip(sizes, peaks[v], strict=True)]


def report_peaks(words: str) -> None:
    """What the fresh process runs: (version, peaks) as a line of JSON for every version, each measured in a fork of its own.

    A fork has a peak of its own and saves importing PyTorch again.
    """
    versions, sizes, task, switches, threads = json.loads(words)
    torch.set_num_threads(threads)
    for version in versions:
        if os.fork() == 0:
            try:
                print(json.dumps([version, _peaks(version, sizes, task, switches, "cpu")]), flush=True)
            except Exception as error:
                print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            finally:
                os._exit(0)
        if code := os.waitstatus_to_exitcode(os.wait()[1]):
            sys.exit(f"the process ended with {code}; -9 is most likely a lack of memory")


def _peaks(version: str, sizes: Sequence[int], task: str, switches: Mapping, device) -> list[int]:
    """Highest use at each size, in bytes above what the process held before the network was built."""
    start, peaks = highest(device, reset=True), []
    network = model.build(version, **switches).to(device)
    for size in sizes:
        highest(device, reset=True)
        call = (
            cost.training_call(network, size, device=device)
            if task == "training"
            else cost.velocity_call(network, cost.empty_field(size, 51, device))
        )
        call(), call()
        peaks.append(highest(device) - start)
        del call
    return peaks


def highest(device="cpu", reset: bool = False) -> int:
    """Bytes of the highest use of CUDA's allocator or of this process's resident set, on Linux and CUDA since the last reset."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        if reset:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        with suppress(OSError), open("/proc/self/clear_refs", "w") as refs:
            refs.write("5")  # VmHWM starts again from what is resident now
    try:  # not getrusage, whose peak a child inherits from its parent
        with open("/proc/self/status") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource  # not on Windows, where there is no such figure

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def largest_batch(version: str, peaks: Sequence[Mapping] = (), device="cpu", available: int | None = None, **switches) -> dict:
    """Most fields per training step that memory holds: {"batch", "how"}.

    CUDA: doubled until it no longer fits, so the truth is below twice the answer. CPU: predicted, not tried, by the straight line through
    the training peaks (rows of `peak`) of the smallest and the largest batch, up to `available` bytes (None: what the system has free now).
    """
    if torch.device(device).type == "cuda":
        return {"batch": _double(version, switches, device), "how": "doubled until it did not fit"}
    rows = sorted((row["size"], row["mb"]) for row in peaks if row["version"] == version and row["task"] == "training")
    if len(rows) < 2:
        raise ValueError(f"the largest batch of {version!r} is predicted from training peaks at two batch sizes; given: {len(rows)}")
    (a, low), (b, high) = rows[0], rows[-1]
    each = max((high - low) / (b - a), 1e-6)
    free = (_available() if available is None else available) / 1e6
    return {"batch": max(0, b + int((free - high) / each)), "how": f"predicted from {a} and {b}, {each:.1f} MB per field"}


def _double(version: str, switches: Mapping, device) -> int:
    fits, size = 0, 32
    while size <= MOST:
        network = model.build(version, **switches)
        try:
            cost.training_call(network, size, device=device)()
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            break
        finally:
            del network
            torch.cuda.empty_cache()
        fits, size = size, 2 * size
    return fits


def _available() -> int:
    """Bytes of memory that are free now."""
    try:
        with open("/proc/meminfo") as found:
            return next(1024 * int(line.split()[1]) for line in found if line.startswith("MemAvailable"))
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
