"""Checkpoints that survive: written atomically, read without running code, named when they are broken."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch

FORMAT = "sparse-fields-lab checkpoint 1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the text names the file and says what to do."""


def save(state: dict, path: Path, keep: Path | None = None) -> None:
    """Write `state` so that `path` is at every moment there and whole: to a temporary file, then renamed over it; `keep` gets the old one.

    OSError (disk full, no permission) leaves the old checkpoint as it was and no half-written file.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            _second_name(path, keep)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None  # torch.save wraps a full disk
        raise


def _second_name(path: Path, keep: Path) -> None:
    """Let `keep` be what `path` is. Moving it there would leave a moment without `path`: killed in it, a training would begin again."""
    linked = keep.with_name(keep.name + ".link")
    linked.unlink(missing_ok=True)
    try:
        os.link(path, linked)
    except OSError:  # a file system without hard links
        try:
            shutil.copy2(path, linked)
        except BaseException:
            linked.unlink(missing_ok=True)
            raise
    os.replace(linked, keep)


def load(path: Path, device="cpu") -> dict:
    """Read a checkpoint of this lab; CheckpointError when it is missing, truncated, corrupt or foreign."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; train first, or name an existing .pt file")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # zip, pickle and end-of-file errors have no common base
        kind = type(error).__name__
        raise CheckpointError(f"{path} is truncated, corrupt or not a checkpoint ({kind}); {_way_out(path, device)}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a PyTorch file, but not a checkpoint of this lab ({FORMAT!r}); {_way_out(path, device)}")
    return state


def _way_out(path: Path, device) -> str:
    """What to do about a bad checkpoint: the newest intact one beside it, if there is one."""
    for other in sorted(path.parent.glob("*.pt"), key=lambda p: p.stat().st_mtime, reverse=True):
        if other != path:
            try:
                step = torch.load(other, map_location=device, weights_only=True)["step"]
            except Exception:
                continue
            return f"{other.name} (step {step}) is intact: move it to {path.name} to continue from there"
    return f"delete {path.name} to start again"
