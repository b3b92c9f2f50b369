"""Which machine, versions and commit a result comes from."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from pathlib import Path


@functools.cache
def hardware() -> dict:
    """Processor, cores this process may use, threads torch uses, memory, graphics card, versions."""
    import torch  # here, not above: a mistyped parameter is reported before two seconds of import

    return {
        "cpu": processor(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(total_memory() / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def device(wanted: str = "auto") -> str:
    """The device "auto" stands for on this machine: cuda when there is one, otherwise cpu; ValueError for a cuda that is not there."""
    if wanted == "cuda" and not hardware()["gpu"]:
        raise ValueError("device is cuda, but PyTorch finds no CUDA device here; set device to cpu or auto")
    return wanted if wanted not in ("", "auto") else "cuda" if hardware()["gpu"] else "cpu"


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def total_memory() -> int:
    """Bytes of memory of this machine, 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def commit(root: Path) -> str | None:
    """The git commit of a checkout, with "+changes" when files differ from it; None outside git."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    return head and head + ("+changes" if git("status", "--porcelain") else "")
