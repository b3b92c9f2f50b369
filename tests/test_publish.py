"""Reference results: only finished runs are published, and the README's numbers are those of the reference."""

import json
from pathlib import Path

import pytest

from lib import publish
from lib.folders import RunError

ROOT = Path(__file__).parents[1]


def a_project(folder: Path, finished=True) -> Path:
    """A project with one notebook, a README with marks, and a run of the notebook."""
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "03_v2_baseline.ipynb").write_text("{}")
    (folder / "README.md").write_text(f"above\n{publish.BEGIN}\nold\n{publish.END}\nbelow\n")
    run = folder / "outputs" / "cpu" / "03_v2_baseline"
    (run / "figures").mkdir(parents=True)
    (run / "figures" / "splits.png").write_bytes(b"picture")
    (run / "run.ipynb").write_text("{}")
    if finished:
        parameters = {"steps": 1600, "batch": 32, "seed": 0}
        where = {"profile": "cpu", "parameters": parameters, "gpu": None, "device": "cpu", "cpu": "a processor", "threads": 2}
        content = {"metrics": {"constant": 6.04, "psnr_global": 5.4}, "provenance": where | {"seconds": 120.0, "date": "2030-01-01T00:00"}}
        (run / "metrics.json").write_text(json.dumps(content))
    return folder


def test_a_finished_run_becomes_the_reference_and_fills_the_readme(tmp_path):
    root = a_project(tmp_path)
    publish.publish("cpu", root=root, say=lambda text: None)
    reference = root / "outputs" / "reference" / "03_v2_baseline"
    assert sorted(str(p.relative_to(reference)) for p in reference.rglob("*") if p.is_file()) == ["figures/splits.png", "metrics.json"]
    text = (root / "README.md").read_text()
    assert text.startswith("above\n") and text.endswith("\nbelow\n") and "old" not in text
    assert "| none | 6.0 |" in text and "| 1,600 x 32 | 5.4 |" in text
    assert "steps 1,600, batch 32, one seed" in text and "a processor" in text


def test_an_unfinished_run_is_refused_and_nothing_changes(tmp_path):
    root = a_project(tmp_path, finished=False)
    with pytest.raises(RunError, match="no finished run in outputs/cpu"):
        publish.publish("cpu", root=root, say=lambda text: None)
    assert "old" in (root / "README.md").read_text() and not (root / "outputs" / "reference").exists()


def test_the_readme_shows_the_reference_as_it_is():
    text = (ROOT / "README.md").read_text()
    assert publish.fill(text) == text, "run `python -m lib publish`"


def test_a_readme_without_marks_is_named():
    with pytest.raises(RunError, match="no place for results"):
        publish.fill("nothing")
