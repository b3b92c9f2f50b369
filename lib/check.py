"""Is this machine ready, and what has been run? The two questions of `python -m lib check` and `python -m lib status`."""

from __future__ import annotations

import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from lib import folders, machine, params, run
from lib.params import ParameterError, shown

OLDEST, NEWEST = (3, 11), (3, 13)  # Python
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def environment(root: Path = run.ROOT) -> list[tuple[str, str]]:
    """(ok | note | problem, text) per thing looked at; a note is worth knowing, a problem has to be solved first."""
    return [*python(), *packages(root), *hardware(), *notebooks(root), *browser()]


def python() -> list[tuple[str, str]]:
    given = f"Python {sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return [("ok", given)]
    return [("problem", f"{given}: needs {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}; make a new .venv with one of them")]


def packages(root: Path) -> list[tuple[str, str]]:
    """Each dependency of pyproject.toml against what is installed, each installed version against constraints.txt."""
    tested = constraints(root)
    try:
        wanted = [Requirement(text) for text in metadata.requires("sparse-fields-lab") or []]
    except metadata.PackageNotFoundError:
        return [("problem", "sparse-fields-lab is not installed here; run `make lab`, or pip install -c constraints.txt -e '.[dev]'")]
    missing, untested = [], []
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": "dev"}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(str(requirement.name))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{requirement.name}{requirement.specifier} (installed: {version})")
        elif version.split("+")[0] != (expected := tested.get(normal(requirement.name), "")):
            untested.append(f"{requirement.name} {version} (tested: {expected or 'none'})")
    lines = [("problem", f"missing: {', '.join(missing)}; run pip install -c constraints.txt -e '.[dev]'")] if missing else []
    lines += [("note", f"other versions than the tested ones: {', '.join(untested)}")] if untested else []
    return lines or [("ok", f"{len(wanted)} dependencies, in the tested versions")]


def hardware() -> list[tuple[str, str]]:
    found = machine.hardware()
    threads = f"{found['cpu_count']} cores, {found['threads']} torch threads, {found['memory_gb']} GB"
    return [("ok", f"{found['cpu']}, {threads}"), ("ok", f"device {machine.device()}: {found['gpu'] or 'no CUDA device, the CPU is used'}")]


def notebooks(root: Path) -> list[tuple[str, str]]:
    """Every notebook's parameters cell, every parameter file against its notebook."""
    try:
        found = {path.stem: path for path in run.available(root)}
    except run.RunError as error:
        return [("problem", str(error))]
    lines = []
    files = sorted((Path(root) / "params").glob("*/*.yaml"))
    for path in files:
        if path.stem not in found:
            hint = params.suggestion(path.stem, found)
            lines.append(("problem", f"{shown(path)} belongs to no notebook{hint}; known: {', '.join(found)}"))
    for stem, notebook in found.items():
        for path in [None, *(path for path in files if path.stem == stem)]:
            try:
                params.effective(notebook, path)
            except ParameterError as error:
                lines.append(("problem", str(error)))
    return lines or [("ok", f"{len(found)} notebooks, {len(files)} parameter files")]


def browser() -> list[tuple[str, str]]:
    for name in CHROMIUM:
        if shutil.which(name):
            return [("ok", f"{name} for the browser test")]
    return [("note", "no chromium: the browser test is skipped (Debian: apt-get install chromium)")]


def status(root: Path = run.ROOT, output: Path | None = None) -> list[tuple[str, str, str, str]]:
    """(profile, notebook, status, detail) for every profile and notebook, read from the run folders."""
    profiles = sorted(path.name for path in (Path(root) / "params").glob("*") if path.is_dir())
    rows = []
    for profile in profiles:
        for task in run.plan(profile, root=root, output=output):
            rows.append((profile, task.name, *folders.standing(task.folder, task.fingerprint)))
    return rows


def constraints(root: Path) -> dict[str, str]:
    """name -> tested version, from constraints.txt."""
    path = Path(root) / "constraints.txt"
    lines = re.findall(r"^([\w.-]+)==([^\s;#]+)", path.read_text(), re.MULTILINE) if path.is_file() else []
    return {normal(name): version for name, version in lines}


def normal(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
