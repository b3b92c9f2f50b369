"""The five groups of modules: each imports only from itself and from groups before it, and every file is short enough to read."""

import ast
from pathlib import Path

import pytest

LIB = Path(__file__).parents[1] / "lib"
GROUPS = [
    {"worlds", "realworlds", "gaussian", "files", "layouts", "data", "augment", "weights"},
    {"layers", "shares", "products", "ssm", "scans", "fused", "order", "paths", "encoders", "versions", "model"}
    | {"refined", "basis", "climb", "waves", "posterior", "kernels", "settings", "dictionary", "hybrid"},
    {"ode", "flow", "coupling", "penalties"},
    {
        "baselines",
        "perfield",
        "optimal",
        "oracle",
        "metrics",
        "diagnosis",
        "theme",
        "png",
        "maps",
        "marks",
        "plots",
        "report",
        "widgets",
        "aside",
        "follow",
    }
    | {"v5", "priors", "experts", "dissect", "refine", "claims", "ledger", "suspects", "lineup", "rules"},
    {"checkpoint", "progress", "train", "arms", "bench", "cost", "machine", "params", "folders", "kernel", "page", "run", "refs", "check"}
    | {
        "contest",
        "learn",
        "learning",
        "objective",
        "optimisers",
        "schedules",
        "peers",
        "stopping",
        "publish",
        "jobs",
        "study",
        "workers",
        "attribution",
        "evidence",
        "memory",
        "races",
        "family",
        "answers",
        "inquiry",
        "reconstruct",
        "delivery",
        "intake",
        "frame",
        "showcase",
        "realshow",
        "sweep",
        "turns",
        "course",
        "crew",
        "cluster",
        "board",
        "overhead",
        "pace",
        "playground",
        "view",
        "stories",
        "trained",
        "exactflow",
        "canvas",
        "export",
        "serve",
        "browsing",
        "latency",
        "pictures",
        "design",
        "techniques",
        "synergy",
        "hundred",
    }
    | {"__main__"},
]
PLACE = {name: place for place, group in enumerate(GROUPS) for name in group}
MODULES = sorted(path.stem for path in LIB.glob("*.py") if path.stem != "__init__")


def imported(name):
    """The modules of this library that a module imports, anywhere in its text."""
    for node in ast.walk(ast.parse((LIB / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "lib":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lib."):
            yield node.module.split(".")[1]


def test_every_module_has_a_group():
    assert set(MODULES) == set(PLACE)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_left(name):
    assert {m for m in imported(name) if PLACE[m] > PLACE[name]} == set()


@pytest.mark.parametrize("name", MODULES)
def test_files_are_short_enough_to_read(name):
    assert len((LIB / f"{name}.py").read_text().splitlines()) <= 350


def test_the_package_names_every_module_in_its_reading_order():
    words = (LIB / "__init__.py").read_text()
    assert [name for name in MODULES if not name.startswith("_") and name not in words] == []
