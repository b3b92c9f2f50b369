"""A checkout in miniature for the tests of the runner: notebooks that run in a second, parameter files, a library."""

import base64
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = """seed: int = 0  # of every draw [0, 100]
rate: float = 1e-3  # learning rate [1e-06, 1]
solver: str = "heun"  # {euler, midpoint, heun}
worlds: list[str] = ["plane"]  # which worlds {plane, radial}
device: str = "auto"  # {auto, cpu, cuda}
folder: str = ""  # where trainings keep their checkpoints, "" = nowhere"""

# the smallest PNG there is: one pixel, one by one
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg==")

REPORT = f"""from IPython.display import display
picture = "{base64.b64encode(PNG).decode()}"
bundle = {{"image/png": picture, "text/plain": "figure"}}
display(bundle, raw=True, metadata={{"sparse_fields": {{"figure": "two lines", "says": "Up & down."}}}})
numbers = {{"psnr": 43.25, "by_world": {{"plane": 1.5}}}}
display({{"application/vnd.sparse-fields.metrics+json": numbers, "text/plain": "psnr 43.2"}}, raw=True)"""

# waits in its folder until somebody kills it; the second time it finds what it saved
TRAIN = """import pathlib, time
saved = pathlib.Path(folder) / "latest.txt"
print("step", saved.read_text() if saved.exists() else 0)
if not saved.exists():
    saved.write_text("7")
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        saved.write_text("9")
        raise"""


def checkout(root: Path, **notebooks: list[str]) -> Path:
    """A folder with notebooks nn_<name> (in the order given) made of these code cells, an empty cpu profile and one library file."""
    for folder in ("notebooks", "params/cpu", "params/gpu", "lib"):
        (root / folder).mkdir(parents=True)
    (root / "lib" / "thing.py").write_text("answer = 42\n")
    for number, (name, cells) in enumerate(notebooks.items(), 1):
        write(root / "notebooks" / f"{number:02d}_{name}.ipynb", cells)
    return root


def write(path: Path, cells: list[str]) -> None:
    """A notebook with a header, the parameters cell, a heading and code cells."""
    header = new_markdown_cell("# Is it small?\n\nIt is, with $y_t$ and one `$code$`.")
    parameters = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    book = new_notebook(cells=[header, parameters, new_markdown_cell("## Work"), *map(new_code_cell, cells)])
    book.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nbformat.write(book, path)
