"""Reference results: the runs that README and notebooks quote, copied from their run folders with their provenance.

outputs/reference/<notebook>/ holds metrics.json and figures/ of one finished run, nothing else; the README's table of results is written
from there, between two marks, so that no number in it was typed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from lib import folders, run
from lib.folders import RunError

BEGIN, END = "<!-- results: written by `python -m lib publish` -->", "<!-- end of results -->"

ROWS = [  # what the README shows: words, notebook, name of the number
    ("knowing nothing: the constant 0.5", "03_v2_baseline", "constant"),
    ("V1 as described, `dt = 1/length`", "02_v1_dt_bug", "psnr_length"),
    ("V1 with `dt = 1/1024`; promised 31 to 36", "02_v1_dt_bug", "psnr_fixed"),
    ("V1 with a learned `dt`; promised 31 to 36", "02_v1_dt_bug", "psnr_learned"),
    ("V2 as described, 51 sites fixed for all fields, at those sites", "03_v2_baseline", "psnr_alone_global"),
    ("the same V2 on the whole field; promised 35", "03_v2_baseline", "psnr_global"),
    ("V2 as described, 51 sites fixed per field, whole field", "03_v2_baseline", "psnr_field"),
    ("V2 as described, sites redrawn at every step, whole field; promised 25 to 30", "03_v2_baseline", "psnr_step"),
    ("V2 with all fixes of the documents; promised 28 to 35", "04_fixes", "psnr_documents, all"),
    ("V2 with redrawn sites and a residual head", "04_fixes", "psnr_ladder: residual head"),
    ("the same with measured scaling and harmonic features", "04_fixes", "psnr_ladder: harmonic features"),
    ("the same, predicting the data instead of the velocity", "04_fixes", "psnr_ladder: predict data"),
    ("thin plate, no training", "01_data_exploration", "psnr_separable_thin_plate"),
    ("Gaussian process, no training", "01_data_exploration", "psnr_separable_gp_rbf"),
    ("optimal interpolation, no training", "01_data_exploration", "psnr_separable_oi"),
]


def publish(profile: str | None, wanted: list[str] | None = None, *, root: Path = run.ROOT, say: Callable[[str], None] = print) -> None:
    """Make the finished runs of a profile the reference and rewrite the README's table; RunError if one is not finished.

    Without a profile only the table is written again.
    """
    chosen = run.select(run.available(root), wanted) if profile else []
    for notebook in chosen:
        source = root / "outputs" / profile / notebook.stem
        if not (source / "metrics.json").exists():
            raise RunError(f"{notebook.stem} has no finished run in outputs/{profile}; run `python -m lib run --profile {profile}` first")
    for notebook in chosen:
        source, place = root / "outputs" / profile / notebook.stem, root / "outputs" / "reference" / notebook.stem
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source / "figures", place / "figures")
        shutil.copy(source / "metrics.json", place / "metrics.json")  # last: a folder without it is no reference
        say(f"{notebook.stem}: outputs/reference holds the run of {folders.read_json(place / 'metrics.json')['provenance']['date']}")
    readme = root / "README.md"
    folders.write(readme, fill(readme.read_text(), root))


def fill(text: str, root: Path = run.ROOT) -> str:
    """The README with the table of results between its marks; RunError if the marks are not there."""
    if BEGIN not in text or END not in text:
        raise RunError(f"README.md has no place for results; it needs the lines {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{results(root)}\n{END}{rest.split(END, 1)[1]}"


def results(root: Path) -> str:
    """The table in Markdown: what, PSNR, where from; and a line of provenance for every notebook quoted."""
    found = {
        name: folders.read_json(root / "outputs" / "reference" / name / "metrics.json") for name in dict.fromkeys(n for _, n, _ in ROWS)
    }
    lines = ["| system, world `separable`, 51 of 1,024 values known | training steps x batch | PSNR (dB) | notebook |", "|---|---|---|---|"]
    for words, notebook, key in ROWS:
        value = found[notebook].get("metrics", {}).get(key)
        if value is not None:
            trained = _training(found[notebook]["provenance"]["parameters"]) if key.startswith("psnr_") else "none"
            lines.append(f"| {words} | {trained} | {value:.1f} | [{notebook[:2]}](notebooks/{notebook}.ipynb) |")
    lines.append("")
    for notebook, content in found.items():
        if content:
            lines.append(f"- {notebook[:2]}: {_origin(content['provenance'])}")
    return "\n".join(lines)


def _training(parameters: dict) -> str:
    return f"{parameters['steps']:,} x {parameters['batch']}" if "steps" in parameters else "none"


def _origin(p: dict) -> str:
    sizes = {name: p["parameters"][name] for name in ("steps", "batch", "fields", "train_fields", "test_fields") if name in p["parameters"]}
    where = p["gpu"] if p["device"] == "cuda" else f"{p['cpu']}, {p['threads']} thread(s)"
    told = ", ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in sizes.items())
    spent = "continued from an earlier run" if p.get("continued_from") else f"{p['seconds'] / 60:.0f} min"
    return f"profile `{p['profile']}` ({told}, one seed), {where}, {spent}, {p['date'][:10]}"
