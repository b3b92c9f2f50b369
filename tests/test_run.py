"""The runner: what a run leaves, what it skips, how it fails, stops and continues."""

import base64
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_output
from tiny_notebooks import PNG, REPORT, TRAIN, checkout, write

from lib import folders, kernel, page, refs, run
from lib.folders import RunError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A checkout whose two notebooks have been run once, with what was said meanwhile."""
    root = checkout(tmp_path_factory.mktemp("finished"), report=[REPORT], plain=["print(seed, rate)"])
    (root / "params" / "cpu" / "02_plain.yaml").write_text("seed: 5\nrate: 1e-4\n")
    said = []
    rows = run.execute("cpu", root=root, say=said.append)
    return root, rows, "\n".join(said)


@pytest.fixture
def canned(monkeypatch):
    """Replace kernels by a prepared outcome; the list of the parameters that executions were given."""
    calls = []

    def execute(notebook, parameters, progress):
        calls.append(parameters)
        return kernel.Outcome(nbformat.read(notebook, 4), 1.0, 10**8)

    monkeypatch.setattr(kernel, "execute", execute)
    return calls


def test_a_run_folder_holds_notebook_page_parameters_figures_and_numbers(finished):
    root, rows, _ = finished
    folder = root / "outputs" / "cpu" / "01_report"
    assert {p.name for p in folder.iterdir()} == {".lock", "params.yaml", "run.ipynb", "run.html", "figures", "state.json", "metrics.json"}
    assert (folder / "figures" / "two_lines.png").read_bytes() == PNG
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["metrics"] == {"psnr": 43.25, "by_world": {"plane": 1.5}}
    assert metrics["figures"] == [{"name": "two_lines", "says": "Up & down.", "size": [1, 1]}]
    assert [(row["notebook"], row["status"], row["metrics"]) for row in rows] == [
        ("01_report", "done", metrics["metrics"]),
        ("02_plain", "done", {}),
    ]


def test_numbers_carry_where_they_come_from(finished):
    root, *_ = finished
    origin = json.loads((root / "outputs" / "cpu" / "02_plain" / "metrics.json").read_text())["provenance"]
    named = {"cpu", "cpu_count", "threads", "memory_gb", "gpu", "system", "python", "torch", "device", "commit", "date", "seconds"}
    assert set(origin) == named | {"peak_memory_mb", "profile", "parameters", "continued_from"}
    assert origin["parameters"] == {"seed": 5, "rate": 1e-4, "solver": "heun", "worlds": ["plane"], "device": "auto"}
    assert 20 < origin["peak_memory_mb"] < 4000 and 0 < origin["seconds"] < 120


def test_the_notebook_saw_the_profile_and_its_run_folder(finished):
    root, *_ = finished
    folder = root / "outputs" / "cpu" / "02_plain"
    cells = nbformat.read(folder / "run.ipynb", 4).cells
    assert cells[-1].outputs[0].text == "5 0.0001\n"
    assert f'folder = "{folder}"' in cells[2].source


def test_the_pages_need_no_network(finished):
    root, *_ = finished
    for path in ("index.html", "01_report/run.html"):
        text = (root / "outputs" / "cpu" / path).read_text()
        assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(?:https?:)?//", text)
        assert "cdn" not in text.lower()


def test_the_index_shows_every_figure_and_number_with_its_caption(finished):
    root, *_ = finished
    text = (root / "outputs" / "cpu" / "index.html").read_text()
    assert "src='01_report/figures/two_lines.png'" in text and "<figcaption>Up &amp; down.</figcaption>" in text
    assert "<span>psnr</span><b>43.25</b>" in text and "<span>by_world.plane</span><b>1.5</b>" in text
    assert "href='#02_plain'" in text and "href='02_plain/run.html'" in text and "Is it small?" in text


def test_the_closing_table_names_status_seconds_and_numbers(finished):
    *_, said = finished
    assert re.search(r"notebook +status +seconds +numbers\n01_report +done +\d+ +psnr 43\.25 · by_world\.plane 1\.5\n02_plain +done", said)
    assert said.endswith(os.path.join("outputs", "cpu", "index.html"))


def test_a_finished_notebook_is_skipped_until_something_it_depends_on_changes(tmp_path, canned):
    root = checkout(tmp_path, plain=["print(seed)"])
    folder = root / "outputs" / "cpu" / "01_plain"

    def statuses(**overrides):
        return [row["status"] for row in run.execute("cpu", overrides=overrides, root=root, say=lambda _: None)]

    def standing():
        return folders.standing(folder, run.plan("cpu", root=root)[0].fingerprint)

    assert standing() == ("not run", "")
    assert statuses() == ["done"] and standing() == ("done", "")
    assert statuses() == ["unchanged"]
    assert statuses(seed=1) == ["done"] and standing() == ("stale", "changed: parameters")
    assert statuses() == ["done"]
    (root / "lib" / "thing.py").write_text("answer = 43\n")
    assert standing() == ("stale", "changed: lib") and statuses() == ["done"]
    write(root / "notebooks" / "01_plain.ipynb", ["print(rate)"])
    assert standing() == ("stale", "changed: notebook") and statuses() == ["done"]
    assert len(canned) == 5
    run.execute("cpu", root=root, force=True, say=lambda _: None)
    assert len(canned) == 6


def test_a_finished_folder_is_emptied_before_it_is_run_again_and_a_stopped_one_kept(tmp_path, canned):
    root = checkout(tmp_path, plain=[])
    folder = root / "outputs" / "cpu" / "01_plain"
    run.execute("cpu", root=root, say=lambda _: None)
    (folder / "latest.pt").write_text("trained by an older library")
    run.execute("cpu", root=root, overrides={"seed": 1}, say=lambda _: None)
    assert not (folder / "latest.pt").exists()
    (folder / "latest.pt").write_text("half trained")
    (folder / "metrics.json").unlink()
    run.execute("cpu", root=root, overrides={"seed": 1}, say=lambda _: None)
    assert (folder / "latest.pt").exists()
    assert json.loads((folder / "metrics.json").read_text())["provenance"]["continued_from"]["started"]


def test_a_failing_cell_ends_the_run_and_keeps_what_there_is(tmp_path):
    root = checkout(tmp_path, broken=[REPORT, "print('so far')\n\n1 / 0", "print('never')"], after=["print(1)"])
    with pytest.raises(run.NotebookFailed, match=r"01_broken, cell 4 \(Work\): ZeroDivisionError: division by zero; see .*run\.html"):
        run.execute("cpu", root=root, say=lambda _: None)
    folder = root / "outputs" / "cpu" / "01_broken"
    outputs = [cell.get("outputs", []) for cell in nbformat.read(folder / "run.ipynb", 4).cells]
    assert any(output.get("text") == "so far\n" for cell in outputs for output in cell)
    assert (folder / "run.html").exists() and (folder / "figures" / "two_lines.png").exists()
    assert not (folder / "metrics.json").exists() and not (root / "outputs" / "cpu" / "02_after" / "state.json").exists()
    index = (root / "outputs" / "cpu" / "index.html").read_text()
    assert "cell 4 (Work): ZeroDivisionError: division by zero" in index and "two_lines.png" in index
    assert folders.standing(folder, {})[0] == "failed"


def test_a_killed_kernel_is_reported_as_such(tmp_path):
    write(tmp_path / "01_kill.ipynb", ["import os; os.kill(os.getpid(), 9)"])
    outcome = kernel.execute(tmp_path / "01_kill.ipynb", {}, kernel.Progress("", io.StringIO()))
    assert "killed, most likely for lack of memory" in outcome.error and outcome.where == "cell 2 (Work)"


@pytest.mark.parametrize(("number", "code", "saved"), [(signal.SIGKILL, -9, "7"), (signal.SIGTERM, 143, "9"), (signal.SIGINT, 130, "9")])
def test_a_stopped_run_continues_from_what_its_cells_saved(tmp_path, number, code, saved):
    root = checkout(tmp_path, train=[TRAIN])
    folder = root / "outputs" / "cpu" / "01_train"
    command = [sys.executable, "-m", "lib", "run", "--root", root]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(folder / "latest.txt")
    assert folders.standing(folder, {})[0] == "running"
    driver.send_signal(number)
    said, _ = driver.communicate(timeout=30)
    assert driver.returncode == code, said
    assert code < 0 or "01_train was stopped in cell 3 (Work); the same command continues it" in said
    assert folders.standing(folder, {})[0] == "interrupted" and not (folder / "metrics.json").exists()
    [row] = run.execute("cpu", root=root, say=lambda _: None)
    assert row["status"] == "done" and (folder / "latest.txt").read_text() == saved
    assert nbformat.read(folder / "run.ipynb", 4).cells[-1].outputs[0].text == f"step {saved}\n"


def wait_for(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_a_folder_in_use_is_refused_before_anything_runs(tmp_path, canned):
    root = checkout(tmp_path, one=[], two=[])
    with folders.claim(root / "outputs" / "cpu" / "02_two"), pytest.raises(RunError, match="02_two is in use by another run; wait for it"):
        run.execute("cpu", root=root, say=lambda _: None)
    assert not canned
    run.execute("cpu", root=root, say=lambda _: None)
    assert len(canned) == 2


def test_an_output_that_cannot_be_written_is_refused_before_anything_runs(tmp_path, canned):
    root = checkout(tmp_path, one=[])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write .*file.*: .*; choose another folder with --output"):
        run.execute("cpu", root=root, output=tmp_path / "file", say=lambda _: None)
    assert not canned


def full_disk(monkeypatch, name):
    """From now on a write to a file of this name finds the disk full after three bytes."""

    class Full(io.FileIO):
        def write(self, data):
            super().write(data[:3])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "open", lambda path, mode: (Full if name in path.name else open)(path, mode), raising=False)


def test_a_full_disk_leaves_the_old_file_and_no_half_written_one(tmp_path, monkeypatch):
    folders.write(tmp_path / "metrics.json", "old")
    full_disk(monkeypatch, "metrics.json")
    with pytest.raises(RunError, match=r"the disk is full: .*metrics\.json was not written") as caught:
        folders.write(tmp_path / "metrics.json", "new and longer")
    assert "\n" not in str(caught.value)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("metrics.json", "old")]


def test_a_run_on_a_full_disk_is_not_taken_for_a_finished_one(tmp_path, canned, monkeypatch):
    root = checkout(tmp_path, one=[])
    full_disk(monkeypatch, "run.html")
    with pytest.raises(RunError, match="the disk is full"):
        run.execute("cpu", root=root, say=lambda _: None)
    folder = root / "outputs" / "cpu" / "01_one"
    assert not (folder / "metrics.json").exists() and not list(root.rglob("*.tmp")) and not (folder / "run.html").exists()
    monkeypatch.undo()
    assert folders.standing(folder, {})[0] == "interrupted"


def test_a_log_file_gets_one_line_per_cell_and_no_carriage_return(capsys, tmp_path):
    write(tmp_path / "01_talk.ipynb", ["import sys\nfor i in range(3):\n    print(f'\\rstep {i}', end='', flush=True)\nprint()"])
    kernel.execute(tmp_path / "01_talk.ipynb", {}, kernel.Progress("[1/1] 01_talk", interval=0))
    said = capsys.readouterr().out
    assert "\r" not in said and "\x1b" not in said
    assert re.search(r"^ *0:\d\d  \[1/1\] 01_talk  cell 1/2  Is it small\?$", said, re.MULTILINE)
    assert re.search(r"\[1/1\] 01_talk  cell 2/2  Work$", said, re.MULTILINE) and "step 2\n" in said


def test_a_terminal_gets_one_line_rewritten(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

        def fileno(self):
            return 1

    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((60, 20)))
    stream = Terminal()
    progress = kernel.Progress("[2/5] 02_train", stream)
    progress.cell(3, 10, "Train both models " * 5)
    progress.close()
    text = stream.getvalue()
    assert "\n" not in text and text.endswith("\r\x1b[K")
    assert all(len(line) <= 60 for line in re.split(r"\r(?:\x1b\[K)?", text))


def test_only_selects_by_number_or_name_and_keeps_the_order(tmp_path):
    found = run.available(checkout(tmp_path, one=[], two=[], three=[]))
    assert [p.stem for p in run.select(found, ["3", "01", "02_two"])] == ["01_one", "02_two", "03_three"]
    with pytest.raises(RunError, match=r"unknown notebook '03_tree'; did you mean '03_three'\?; known: 01_one, 02_two, 03_three"):
        run.select(found, ["03_tree"])


def test_figures_and_numbers_reported_twice_keep_the_last():
    def shown(name, says):
        about = {"sparse_fields": {"figure": name, "says": says}}
        return new_output("display_data", {"image/png": base64.b64encode(PNG).decode()}, metadata=about)

    numbers = [new_output("display_data", {run.METRICS: {"a": a, "b": 1}}) for a in (1, 2)]
    cell = nbformat.v4.new_code_cell("", outputs=[shown("x", "first"), *numbers, shown("../y", "other"), shown("x", "last")])
    figures, found = run.collect(nbformat.v4.new_notebook(cells=[new_markdown_cell("# t"), cell]))
    assert [(f["name"], f["says"], f["png"]) for f in figures] == [("x", "last", PNG), ("y", "other", PNG)]
    assert found == {"a": 2, "b": 1}


@pytest.mark.parametrize("text", ["`$a$`", "```\n$a$\n```", "costs $5 and $6", r"\$a\$", "$\\undefinedmacro$", "a $ b $ c"])
def test_what_is_not_an_equation_stays_as_written(text):
    assert page.draw_equations(text) == text


def test_equations_become_pictures_that_say_what_they_are():
    drawn = page.draw_equations("the state $h_k = e^{A}$ and\n$$y_t = (1 - t)\\,y_0$$")
    assert drawn.count("<img") == 2 and 'alt="h_k = e^{A}"' in drawn and "$" not in drawn


def test_links_between_notebooks_lead_to_their_pages(tmp_path, canned):
    root = checkout(tmp_path, one=[])
    path = root / "notebooks" / "01_one.ipynb"
    path.write_text(path.read_text().replace("It is, with", "See [the next](02_two.ipynb) and [this](../README.md), with"))
    run.execute("cpu", root=root, say=lambda _: None)
    index, book = (root / "outputs" / "cpu" / name for name in ("index.html", "01_one/run.html"))
    assert 'href="#02_two"' in index.read_text() and 'href="../02_two/run.html"' in book.read_text()
    assert 'href="../README.md"' in book.read_text()


def test_numbers_that_json_lacks_become_null(tmp_path):
    folders.write_json(tmp_path / "m.json", {"a": float("nan"), "b": [float("inf"), 1.5], "c": None, "d": True})
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": None, "b": [None, 1.5], "c": None, "d": True}


def test_refreshed_references_are_byte_identical_and_hold_nothing_that_varies(tmp_path):
    varies = "import ipywidgets, time\nfrom IPython.display import display\n"
    varies += "display(ipywidgets.IntSlider(description='n'))\nprint(1)\ntime.sleep(0.01)\nprint(2)"
    root = checkout(tmp_path, vary=[varies, "{'uid': '01234567-89ab-cdef-0123-456789abcdef'}"])
    path = root / "notebooks" / "01_vary.ipynb"
    assert refs.refresh(root=root, say=lambda _: None) == ["01_vary"]
    first = path.read_bytes()
    assert refs.refresh(root=root, say=lambda _: None) == [] and path.read_bytes() == first
    book = nbformat.read(path, 4)
    assert set(book.metadata) == {"kernelspec", "language_info"} and b"model_id" not in first and b"iopub" not in first
    assert [cell.execution_count for cell in book.cells if cell.cell_type == "code"] == [1, 2, 3]
    assert book.cells[-1].outputs[0].data["text/plain"] == "{'uid': 'UID'}"


def test_a_failing_notebook_keeps_its_references(tmp_path):
    root = checkout(tmp_path, broken=["1 / 0"])
    before = (root / "notebooks" / "01_broken.ipynb").read_bytes()
    with pytest.raises(run.NotebookFailed, match="saved outputs are unchanged"):
        refs.refresh(root=root, say=lambda _: None)
    assert (root / "notebooks" / "01_broken.ipynb").read_bytes() == before
