"""The notebooks' saved outputs, made again: what nbval compares and what a reader sees on a code-hosting page.

Each notebook runs with its default parameters and is written back in place. Whatever differs between two runs of the same code
(timings, widget state and model ids, plotly's random uids, the interpreter's version) is left out: an unchanged notebook stays
byte-identical.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from lib import folders, kernel, run

UID = re.compile(r"'uid': '[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'")
WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def refresh(wanted: list[str] | None = None, *, root: Path = run.ROOT, say: Callable[[str], None] = print) -> list[str]:
    """Execute notebooks in place; the names of those whose text changed. NotebookFailed leaves the failing one as it was."""
    changed = []
    chosen = run.select(run.available(root), wanted)
    for number, path in enumerate(chosen, 1):
        label = f"[{number}/{len(chosen)}] {path.stem}"
        outcome = kernel.execute(path, {}, kernel.Progress(label))
        if outcome.signal:
            raise run.Interrupted(f"{path.stem} was stopped in {outcome.where}; it is unchanged", outcome.signal)
        if outcome.error:
            raise run.NotebookFailed(f"{path.stem}, {outcome.where}: {outcome.error}; its saved outputs are unchanged")
        text = nbformat.writes(steady(outcome.notebook)) + "\n"
        if text != path.read_text():
            folders.write(path, text)
            changed.append(path.stem)
        say(f"{label}  {'changed' if path.stem in changed else 'unchanged'}, {outcome.seconds:.0f} s")
    return changed


def steady(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what differs between two runs of the same code."""
    for name in ("widgets", "papermill"):
        notebook.metadata.pop(name, None)
    notebook.metadata.update(kernelspec=KERNEL, language_info={"name": "python"})
    for cell in notebook.cells:
        for name in ("execution", "papermill"):
            cell.metadata.pop(name, None)
        if not cell.metadata.get("tags", True):  # papermill gives every cell an empty list
            del cell.metadata["tags"]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if len(data) > 1:
                data.pop(WIDGET, None)
            if "text/plain" in data:
                data["text/plain"] = UID.sub("'uid': 'UID'", data["text/plain"])
    nbformat.validate(notebook)
    return notebook
