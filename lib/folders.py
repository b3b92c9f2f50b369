"""Run folders: written whole or not at all, locked while in use, and able to say whether what they hold is still current.

outputs/<profile>/<notebook>/ holds params.yaml, run.ipynb, run.html, figures/, state.json (how far the run is) and metrics.json.
metrics.json is written last: a folder that has one holds a finished run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lib.params import shown


class RunError(ValueError):
    """One line: why a run cannot start, or cannot write what it found."""


def write(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: readers see the old content or the new; on a full disk the old one stays and RunError says so."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two runs may write the index at the same time
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise RunError(unwritable(path, error)) from error


def write_json(path: Path, content: dict) -> None:
    """`write` a mapping as JSON; NaN and infinities, which JSON lacks, become null."""
    write(path, json.dumps(jsonable(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict:
    """The mapping in a JSON file; {} if there is none or it cannot be read (a run is then repeated, not refused)."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def jsonable(value: object) -> object:
    """Nested plain values; what JSON cannot hold becomes null (not finite) or its text."""
    if isinstance(value, dict):
        return {str(key): jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
    """Hold a run folder; RunError if it cannot be written or another run holds it. The system frees the lock when a run is killed."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock = FileLock(Path(folder) / ".lock", timeout=1)
        lock.acquire()
    except Timeout:
        raise RunError(f"{shown(folder)} is in use by another run; wait for it to end, or write elsewhere with --output") from None
    except OSError as error:
        raise RunError(unwritable(folder, error)) from error
    try:
        yield
    finally:
        lock.release()


def in_use(folder: Path) -> bool:
    """Whether a run holds this folder now."""
    if not (Path(folder) / ".lock").exists():
        return False
    try:
        with FileLock(Path(folder) / ".lock", timeout=0):
            return False
    except (Timeout, OSError):
        return True


def fingerprint(notebook: Path, parameters: dict, root: Path) -> dict[str, str]:
    """What a result depends on, as short hashes: its parameters, the notebook's cells, the library, the published run it quotes.

    A notebook whose cells name verdicts.json quotes the published verdicts and the ledger too.
    """
    import nbformat  # here, not above: it takes seconds to import, and most users of this file need none of it

    cells = [[c.cell_type, c.source] for c in nbformat.read(notebook, 4).cells]
    library = {path.name: path.read_bytes() for path in sorted((Path(root) / "lib").glob("*.py"))}
    quoted = [Path(root) / "outputs" / "reference" / Path(notebook).stem / "metrics.json"]
    if any("verdicts.json" in source for _, source in cells):
        quoted += [Path(root) / "outputs" / "reference" / "verdicts.json", Path(root) / "params" / "claims.yaml"]
    parts = {
        "parameters": parameters,
        "notebook": cells,
        "lib": library,
        "reference": b"".join(path.read_bytes() for path in quoted if path.is_file()),
    }
    return {name: hashlib.sha256(repr(part).encode()).hexdigest()[:16] for name, part in parts.items()}


def standing(folder: Path, now: dict[str, str]) -> tuple[str, str]:
    """(status, detail) of a run folder: running, done, stale (and what changed), failed, interrupted, or not run."""
    state, metrics = read_json(Path(folder) / "state.json"), read_json(Path(folder) / "metrics.json")
    if in_use(folder):
        return "running", state.get("where", "")
    if metrics:
        then = metrics.get("fingerprint", {})
        changes = [name for name, value in now.items() if then.get(name) != value]
        return ("stale", f"changed: {', '.join(changes)}") if changes else ("done", "")
    if state.get("status") == "failed":
        return "failed", f"{state.get('where', '')}: {state.get('error', '')}"
    return ("interrupted", state.get("where", "")) if state else ("not run", "")


def unwritable(path: Path, error: OSError) -> str:
    """One line on why a path cannot be written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full: {shown(path)} was not written (nothing is left half-written); free some space and run again"
    return f"cannot write {shown(path)}: {error.strerror or error}; choose another folder with --output"
