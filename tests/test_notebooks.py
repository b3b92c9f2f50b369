"""What nbval and papermill do not check: a notebook was run, in order, reads well without a kernel, and its parameter files fit."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from lib import params

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FILES = sorted((ROOT / "params").glob("*/*.yaml"))
EXPECTED = ["00_start_here", "01_data_exploration", "02_v1_dt_bug", "03_v2_baseline", "04_fixes", "05_v4_comparison"]
EXPECTED += ["06_noise_suspects", "07_hundred_versions", "08_v5", "09_real_fields", "10_verdicts"]
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def read(path):
    return nbformat.read(path, 4)


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code"]


def outputs(book):
    return [output for cell in code(book) for output in cell.outputs]


def test_the_notebooks_of_the_lab_are_there():
    assert set(EXPECTED) <= {path.stem for path in NOTEBOOKS}
    assert all(re.fullmatch(r"\d\d_\w+", path.stem) for path in NOTEBOOKS)


@every_notebook
def test_it_was_run_from_top_to_bottom_without_an_error(path):
    book = read(path)
    nbformat.validate(book)
    assert [cell.execution_count for cell in code(book)] == list(range(1, len(code(book)) + 1)), "run `make refs`"
    assert not [output.evalue for output in outputs(book) if output.output_type == "error"]
    assert all(cell.source.strip() for cell in book.cells) and all("id" in cell for cell in book.cells)


@every_notebook
def test_it_was_saved_clean(path):
    book = read(path)
    assert book.metadata.kernelspec.name == "python3" and set(book.metadata) == {"kernelspec", "language_info"}
    assert path.stat().st_size < 1_000_000
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in book.cells), "a run's output, not a source"
    assert not any(output.get("name") == "stderr" for output in outputs(book)), "a warning or a progress bar was saved"
    assert not any("/tmp/" in str(output) or str(ROOT) in str(output) for output in outputs(book)), "a path of one machine was saved"


@every_notebook
def test_it_declares_the_parameters_every_notebook_has(path):
    declared = params.parameters(path)
    assert {name: (p.type, p.default) for name, p in declared.items() if name in ("seed", "device", "folder")} == {
        "seed": ("int", 0),
        "device": ("str", "auto"),
        "folder": ("str", ""),
    }
    assert all(p.comment for p in declared.values()), "every parameter has a comment with its unit"


@every_notebook
def test_it_has_the_parts_a_reader_expects(path):
    book = read(path)
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    assert "Check" in headings and "What this shows and what it does not" in headings
    assert len(book.cells) <= 32 and sum(len(cell.source.splitlines()) for cell in code(book)) <= 170


@every_notebook
def test_its_code_is_short_and_imports_modules(path):
    for cell in code(read(path)):
        tree = ast.parse(cell.source)
        for node in ast.walk(tree):
            assert not isinstance(node, ast.ClassDef), "a class belongs in lib/"
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 15, f"{node.name} is long enough for lib/"
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.startswith("lib."), f"from lib import {node.module[4:]}: modules, not names"


@every_notebook
def test_every_figure_is_a_picture_with_a_sentence(path):
    shown = [output for output in outputs(read(path)) if "application/vnd.plotly.v1+json" in output.get("data", {})]
    abouts = [output.metadata.get("sparse_fields", {}) for output in shown]
    assert shown and all("image/png" in output.data for output in shown)
    assert all(about.get("figure") and about.get("says") for about in abouts)
    names = [about["figure"] for about in abouts]
    assert len(names) == len(set(names))


@every_notebook
def test_it_has_an_explorer_that_reads_without_a_kernel(path):
    sources = "\n".join(cell.source for cell in code(read(path)))
    assert "widgets." in sources and "report.explorer(" in sources
    for output in outputs(read(path)):
        assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {}), "a widget without a picture in its place"


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_parameter_file_fits_its_notebook(path):
    notebook = ROOT / "notebooks" / f"{path.stem}.ipynb"
    values = params.effective(notebook, path)
    assert values["folder"] == "" and params.read(path), "a file holds what differs from the defaults"


def test_the_profiles_have_parameter_files():
    assert {"cpu", "gpu"} <= {path.parent.name for path in FILES}
