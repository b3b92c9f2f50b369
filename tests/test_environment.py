"""The files that describe the environment agree with each other, and with what is installed."""

import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lib import check

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]
TESTED = check.constraints(ROOT)
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("requirement", WANTED, ids=lambda r: r.name)
def test_every_dependency_has_a_tested_version_that_satisfies_it(requirement):
    assert requirement.specifier.contains(TESTED[check.normal(requirement.name)])


def test_what_the_dependencies_bring_along_has_a_tested_version_too():
    waiting, seen, missing = [(r.name, "") for r in WANTED], set(), set()
    waiting += [(r.name, extra) for r in WANTED for extra in r.extras]
    while waiting:
        name, extra = waiting.pop()
        if (check.normal(name), extra) in seen:
            continue
        seen.add((check.normal(name), extra))
        if check.normal(name) not in TESTED:
            missing.add(name)
        try:
            needs = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        needs = [r for r in needs if not r.marker or r.marker.evaluate({"extra": extra})]
        waiting += [(r.name, e) for r in needs for e in ["", *r.extras]]
    # torch pins the packages of a graphics card itself
    assert not {name for name in missing if not name.startswith(("nvidia", "cuda", "triton"))}


def test_constraints_are_plain_versions_from_no_particular_place():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert lines == sorted(lines, key=str.lower) and len(lines) == len(TESTED)


def test_conda_installs_the_same_list_through_pip():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    [pip] = [part["pip"] for part in conda["dependencies"] if isinstance(part, dict)]
    assert pip == ["-c constraints.txt", "-e .[dev]"]
    assert [part for part in conda["dependencies"] if isinstance(part, str)] == [f"python{PROJECT['requires-python']}", "pip"]
    assert conda["name"] == PROJECT["name"]


def test_everybody_names_the_same_python_versions():
    supported = SpecifierSet(PROJECT["requires-python"])
    versions = [(3, minor) for minor in range(8, 20) if f"3.{minor}" in supported]
    assert (versions[0], versions[-1]) == (check.OLDEST, check.NEWEST)
    assert f"{check.OLDEST} <= sys.version_info[:2] <= {check.NEWEST}" in MAKEFILE
    tried = re.findall(r"python(3\.\d+)", MAKEFILE.split("for python in")[1].split(";")[0])
    assert tried == [f"3.{minor}" for _, minor in reversed(versions)]


def test_what_belongs_to_the_repository_is_not_ignored_by_git():
    paths = ["lib/run.py", "notebooks/01_data_exploration.ipynb", "outputs/reference/01_data_exploration/metrics.json"]
    done = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True)
    assert done.returncode in (1, 128) and not done.stdout  # 128: not a git checkout


@pytest.mark.parametrize("target", ["run", "test", "lab", "app", "sweep", "bench", "chaos", "refs"])
def test_every_make_target_sets_up_the_environment(target):
    assert re.search(rf"^{target}: \.venv/installed$", MAKEFILE, re.MULTILINE)


def test_the_setup_is_repeated_when_the_dependencies_change():
    assert re.search(r"^\.venv/installed: pyproject\.toml constraints\.txt$", MAKEFILE, re.MULTILINE)


def test_the_machine_that_checks_runs_the_readers_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text and text.endswith("\nmake test\n")
    subprocess.run(["bash", "-n", script], check=True)


def test_this_environment_is_ready():
    assert [line for line in check.environment(ROOT) if line[0] == "problem"] == []
