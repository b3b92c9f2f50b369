"""Notebooks in batch: each one executed with the parameters of a profile, into a run folder that says where its numbers come from.

    plan (validate everything) -> per notebook: claim the folder, execute, collect figures and numbers -> write, metrics.json last -> index

A notebook whose parameters, cells and library are unchanged is skipped. A stopped one runs again in the same folder, so that its
trainings continue from their checkpoints; a finished one that is out of date, or --force, starts with an empty folder.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

from lib import folders, kernel, machine, page, params
from lib.folders import RunError
from lib.params import ParameterError, shown

ROOT = Path(__file__).resolve().parents[1]
METRICS = "application/vnd.sparse-fields.metrics+json"
VERDICT = "application/vnd.sparse-fields.verdict+json"


class NotebookFailed(RuntimeError):
    """A cell raised; one line that names notebook, cell and error."""

    exit_code = 1


class Interrupted(RuntimeError):
    """A signal stopped the run; the exit code is the shell's, 128 + signal."""

    def __init__(self, text: str, signal: int):
        super().__init__(text)
        self.exit_code = 128 + signal


@dataclass(frozen=True)
class Task:
    """One notebook to run: with which parameters, into which folder, and the hashes its result will carry."""

    notebook: Path
    profile: str
    folder: Path
    parameters: dict
    fingerprint: dict
    root: Path

    @property
    def name(self) -> str:
        return self.notebook.stem


def execute(
    profile: str,
    notebooks: list[str] | None = None,
    overrides: dict | None = None,
    *,
    root: Path = ROOT,
    output: Path | None = None,
    force: bool = False,
    file: Path | None = None,
    brief: bool = False,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """Run the notebooks of a profile one after the other and return a row per notebook.

    notebooks: numbers or names, None for all; overrides: parameter values on top of the profile's; file: a parameter file in place of
    the profile's, for a single notebook. ParameterError and RunError: nothing ran. NotebookFailed: a cell raised, its run.ipynb is kept.
    """
    tasks = plan(profile, notebooks, overrides, root=root, output=output, file=file)
    rows: list[dict] = []
    with contextlib.ExitStack() as held:
        for task in tasks:
            held.enter_context(folders.claim(task.folder))
        index = tasks[0].folder.parent / "index.html"
        for number, task in enumerate(tasks, 1):
            label = f"[{number}/{len(tasks)}] {task.name}"
            try:
                rows.append(finish(task, label, force, say))
            finally:
                folders.write(index, page.index(index.parent, profile))
    if not brief:
        say("\n" + table(rows) + f"\n\nLook at {shown(index)}")
    return rows


def summary(tasks: list[Task], say: Callable[[str], None] = print) -> int:
    """Print the closing table of tasks that other processes have finished, and write the index over all of them; 0."""
    found = {task.name: folders.read_json(task.folder / "metrics.json") for task in tasks}
    rows = [
        {"notebook": name, "status": "done", "seconds": content["provenance"]["seconds"], "metrics": content["metrics"]}
        for name, content in found.items()
    ]
    index = tasks[0].folder.parent / "index.html"
    folders.write(index, page.index(index.parent, tasks[0].profile))
    say("\n" + table(rows) + f"\n\nLook at {shown(index)}")
    return 0


def plan(
    profile: str,
    notebooks: list[str] | None = None,
    overrides: dict | None = None,
    *,
    root: Path = ROOT,
    output: Path | None = None,
    file: Path | None = None,
) -> list[Task]:
    """Every notebook with its validated parameters, before anything is started or written; ParameterError or RunError in one line."""
    files = params.profile_folder(Path(root) / "params", profile)
    chosen = select(available(root), notebooks)
    if file and len(chosen) != 1:
        raise ParameterError(f"{shown(file)}: a parameter file belongs to one notebook, {len(chosen)} are selected; name it with --only")
    given = _shared_out(overrides or {}, chosen)
    tasks = []
    for notebook in chosen:
        own = files / f"{notebook.stem}.yaml"
        values = params.effective(notebook, file or (own if own.exists() else None), given[notebook])
        values.pop("folder", None)
        folder = Path(output or Path(root) / "outputs").absolute() / profile / notebook.stem
        tasks.append(Task(notebook, profile, folder, values, folders.fingerprint(notebook, values, root), Path(root)))
    return tasks


def available(root: Path = ROOT) -> list[Path]:
    """The numbered notebooks of a checkout, in order."""
    found = sorted((Path(root) / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise RunError(f"no notebooks in {shown(Path(root) / 'notebooks')}; run from a checkout of the repository")
    return found


def select(found: list[Path], wanted: list[str] | None) -> list[Path]:
    """Notebooks by number ("02"), name or file name, in their own order; RunError for one that does not exist."""
    if not wanted:
        return found
    names = {key: path for path in found for key in (path.stem, path.name, path.stem[:2], str(int(path.stem[:2])))}
    for name in wanted:
        if name not in names:
            hint = params.suggestion(name, [path.stem for path in found])
            raise RunError(f"unknown notebook {name!r}{hint}; known: {', '.join(path.stem for path in found)}")
    return [path for path in found if path in {names[name] for name in wanted}]


def collect(notebook: NotebookNode) -> tuple[list[dict], dict]:
    """The figures (name, says, png bytes) and the numbers that a notebook's outputs carry, in order; of two with one name, the last."""
    figures, numbers = {}, {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data, about = output.get("data", {}), output.get("metadata", {}).get("sparse_fields", {})
            numbers |= data.get(METRICS, {})
            if "image/png" in data and about.get("figure"):
                name = re.sub(r"[^\w.-]+", "_", about["figure"]).strip("._") or "figure"
                figures[name] = {"name": name, "says": about.get("says", ""), "png": base64.b64decode(data["image/png"])}
    return list(figures.values()), numbers


def verdicts(notebook: NotebookNode) -> dict[str, dict]:
    """The verdicts that a notebook's outputs carry, by claim; of two on one claim, the last."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            found |= output.get("data", {}).get(VERDICT, {})
    return found


def arms_table(folder: Path) -> str:
    """The finished arms of a run folder (arms/*/row.json) as CSV: a column per key, lists as JSON; "" where none has finished."""
    rows = [row for path in sorted(Path(folder).glob("arms/*/row.json")) if (row := folders.read_json(path))]
    text = io.StringIO()
    lines = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    lines.writeheader()
    nested = lambda value: json.dumps(value) if isinstance(value, list | dict) else value  # noqa: E731
    lines.writerows({key: nested(value) for key, value in row.items()} for row in rows)
    return text.getvalue() if rows else ""


def table(rows: list[dict], width: int = 140) -> str:
    """Notebook, status, seconds and the first numbers, one line each."""
    cells = [("notebook", "status", "seconds", "numbers")]
    cells += [(row["notebook"], row["status"], f"{row['seconds']:.0f}", page.in_short(row["metrics"])) for row in rows]
    wide = [max(len(line[i]) for line in cells) for i in range(3)]
    return "\n".join(f"{a:<{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}  {d}"[:width].rstrip() for a, b, c, d in cells)


def provenance(task: Task, outcome: kernel.Outcome, continued: dict) -> dict:
    """Where the numbers come from: machine, versions, commit, time, and the run this one continued, if any."""
    return {
        **machine.hardware(),
        "device": machine.device(task.parameters.get("device", "auto")),
        "commit": machine.commit(task.root),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(outcome.seconds, 1),
        "peak_memory_mb": round(outcome.peak_memory / 1e6),
        "profile": task.profile,
        "parameters": task.parameters,
        "continued_from": continued or None,
    }


def finish(task: Task, label: str, force: bool, say: Callable[[str], None]) -> dict:
    """Run one notebook unless its folder already holds this very result; its row."""
    before = folders.read_json(task.folder / "metrics.json")
    if before.get("fingerprint") == task.fingerprint and not force:
        say(f"{label}  unchanged since {before['provenance']['date']}")
        return {"notebook": task.name, "status": "unchanged", "seconds": before["provenance"]["seconds"], "metrics": before["metrics"]}
    state = _start(task, force, label, say)
    progress = kernel.Progress(label, on_cell=lambda where: folders.write_json(task.folder / "state.json", state | {"where": where}))
    outcome = kernel.execute(task.notebook, task.parameters | {"folder": str(task.folder)}, progress)
    if outcome.signal:
        folders.write_json(task.folder / "state.json", state | {"status": "interrupted", "where": outcome.where})
        raise Interrupted(f"{task.name} was stopped in {outcome.where or 'its start'}; the same command continues it", outcome.signal)
    numbers = _record(task, outcome, state)
    if outcome.error:
        if "Errno 28" in outcome.error:
            raise RunError(f"the disk is full: {task.name}, {outcome.where} could not write; free some space and run again to continue")
        raise NotebookFailed(f"{task.name}, {outcome.where}: {outcome.error}; see {shown(task.folder / 'run.html')}")
    say(f"{label}  done in {outcome.seconds:.0f} s, {outcome.peak_memory / 1e9:.1f} GB")
    return {"notebook": task.name, "status": "done", "seconds": outcome.seconds, "metrics": numbers}


def _start(task: Task, force: bool, label: str, say: Callable[[str], None]) -> dict:
    """Prepare the folder and write its state: emptied for a fresh start, kept for an interrupted run."""
    finished, before = (task.folder / "metrics.json").exists(), folders.read_json(task.folder / "state.json")
    if before and (finished or force):
        _empty(task.folder)
        before = {}
    if before:
        say(f"{label}  continues the run of {before.get('started')}, stopped in {before.get('where') or 'its start'}")
        changed = [name for name, value in task.fingerprint.items() if before.get("fingerprint", {}).get(name) != value]
        if changed:
            say(f"{label}  changed since then: {', '.join(changed)}; what was trained before is kept (--force trains afresh)")
    first = before.get("first") or {"commit": machine.commit(task.root), "started": datetime.now(UTC).isoformat(timespec="seconds")}
    title, about = kernel.header(nbformat.read(task.notebook, 4).cells)
    state = {"status": "running", "title": title or task.name, "about": about, "started": datetime.now(UTC).isoformat(timespec="seconds")}
    state |= {"where": "", "fingerprint": task.fingerprint, "first": first, "continued": bool(before)}
    folders.write_json(task.folder / "state.json", state)
    return state


def _record(task: Task, outcome: kernel.Outcome, state: dict) -> dict:
    """Write everything a run leaves, metrics.json last and only if no cell failed; the numbers."""
    figures, numbers = collect(outcome.notebook)
    folders.write(task.folder / "params.yaml", yaml.safe_dump(task.parameters, sort_keys=False))
    folders.write(task.folder / "run.ipynb", nbformat.writes(outcome.notebook))
    folders.write(task.folder / "run.html", page.notebook(outcome.notebook, state["title"]))
    for figure in figures:
        folders.write(task.folder / "figures" / f"{figure['name']}.png", figure["png"])
    if arms := arms_table(task.folder):
        folders.write(task.folder / "arms.csv", arms)
    captions = [{"name": f["name"], "says": f["says"], "size": struct.unpack(">II", f["png"][16:24])} for f in figures]
    content = {"notebook": task.name, "title": state["title"], "metrics": numbers, "figures": captions}
    content["verdicts"] = verdicts(outcome.notebook)
    content |= {"provenance": provenance(task, outcome, state["first"] if state["continued"] else {}), "fingerprint": task.fingerprint}
    ending = {"status": "failed" if outcome.error else "done", "where": outcome.where, "error": outcome.error}
    folders.write_json(task.folder / "state.json", state | content | ending)
    if not outcome.error:
        folders.write_json(task.folder / "metrics.json", content)
    return numbers


def _empty(folder: Path) -> None:
    """Remove what a run left, except the lock that is being held."""
    try:
        for path in folder.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise RunError(folders.unwritable(folder, error)) from error


def _shared_out(overrides: dict, chosen: list[Path]) -> dict[Path, dict]:
    """Each override for the notebooks that have the parameter; ParameterError for one that none has."""
    declared = {notebook: params.parameters(notebook) for notebook in chosen}
    known = sorted({name for names in declared.values() for name in names} - {"folder"})
    for name in overrides:
        if name == "folder":
            raise ParameterError("--set folder: the runner names the folder; choose where with --output")
        if name not in known:
            hint = params.suggestion(name, known)
            raise ParameterError(f"--set {name}: no selected notebook has this parameter{hint}; known: {', '.join(known)}")
    return {notebook: {name: value for name, value in overrides.items() if name in names} for notebook, names in declared.items()}
