"""The command line: exit codes, and one line for every bad input before a kernel starts."""

import subprocess
import sys

import pytest
from tiny_notebooks import checkout

from lib import jobs, kernel
from lib.__main__ import COMMANDS, main


@pytest.fixture
def root(tmp_path, monkeypatch):
    def never(*given):
        raise AssertionError("a kernel was started")

    monkeypatch.setattr(kernel, "execute", never)
    monkeypatch.setattr(jobs, "count", lambda *given: 1)  # in this process, where the kernel can be replaced
    return checkout(tmp_path, one=["1"], two=["2"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--profile", "cpuu"], "unknown profile 'cpuu'; did you mean 'cpu'?; known: cpu, gpu"),
        (["--only", "07"], "unknown notebook '07'; known: 01_one, 02_two"),
        (
            ["--set", "sede=1"],
            "--set sede: no selected notebook has this parameter; did you mean 'seed'?; known: device, rate, seed, solver, worlds",
        ),
        (["--set", "seed=101"], "--set: seed = 101 is out of range; allowed: int from 0 to 100"),
        (["--set", "seed"], "--set seed: expected key=value"),
        (["--set", "folder=here"], "--set folder: the runner names the folder; choose where with --output"),
        (["--params", "none.yaml", "--only", "1"], "none.yaml: no such parameter file"),
        (["--params", "none.yaml"], "none.yaml: a parameter file belongs to one notebook, 2 are selected; name it with --only"),
        (["--sett", "x"], "unrecognized arguments: --sett x; see python -m lib --help"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(root, capsys, words, says):
    try:
        code = main(["run", "--root", str(root), *words])
    except SystemExit as ended:  # argparse's own way out
        code = ended.code
    said = capsys.readouterr()
    assert code == 2 and says in said.err and said.err.count("\n") == 1 and not said.out
    assert not (root / "outputs").exists()


def test_a_bad_profile_file_stops_every_notebook_before_the_first_kernel(root, capsys):
    (root / "params" / "cpu" / "02_two.yaml").write_text("steps: 3\n")
    assert main(["run", "--root", str(root)]) == 2
    assert "02_two.yaml: 02_two has no parameter 'steps'; it has: seed" in capsys.readouterr().err


def test_a_checkout_without_notebooks_is_named(tmp_path, capsys):
    (tmp_path / "params" / "cpu").mkdir(parents=True)
    assert main(["run", "--root", str(tmp_path)]) == 2
    assert "no notebooks in" in capsys.readouterr().err


def test_a_folder_in_use_or_in_the_way_is_exit_code_2(root, capsys):
    (root / "outputs").write_text("a file")
    assert main(["run", "--root", str(root)]) == 2
    assert "choose another folder with --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "where", "code"), [("ValueError: no", "cell 3 (Work)", 1), ("OSError: [Errno 28] No space left", "cell 3", 2)]
)
def test_a_failing_cell_is_exit_code_1_and_a_full_disk_2(root, capsys, monkeypatch, error, where, code):
    import nbformat

    outcome = kernel.Outcome(nbformat.v4.new_notebook(), 1.0, 10**8, error, where)
    monkeypatch.setattr(kernel, "execute", lambda *given: outcome)
    assert main(["run", "--root", str(root), "--only", "1"]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"01_one, {where}" in said


def test_set_reaches_only_the_notebooks_that_have_the_parameter(root, monkeypatch):
    import nbformat

    given = {}

    def execute(notebook, parameters, progress):
        given[notebook.stem] = parameters
        return kernel.Outcome(nbformat.v4.new_notebook(), 1.0, 10**8)

    path = root / "notebooks" / "02_two.ipynb"
    path.write_text(path.read_text().replace("seed: int = 0", "start: int = 0"))
    monkeypatch.setattr(kernel, "execute", execute)
    assert main(["run", "--root", str(root), "--set", "seed=7", "rate=1e-5"]) == 0
    assert given["01_one"]["seed"] == 7 and "seed" not in given["02_two"] and given["02_two"]["rate"] == 1e-5


def test_status_names_every_notebook_of_every_profile(root, capsys):
    assert main(["status", "--root", str(root)]) == 0
    assert capsys.readouterr().out == "cpu  01_one  not run\ncpu  02_two  not run\ngpu  01_one  not run\ngpu  02_two  not run\n"


def test_check_finds_parameter_files_that_do_not_fit(root, capsys):
    (root / "params" / "gpu" / "03_three.yaml").write_text("seed: 1\n")
    (root / "params" / "gpu" / "02_two.yaml").write_text("seed: x\n")
    assert main(["check", "--root", str(root)]) == 2
    said = capsys.readouterr().out
    assert "03_three.yaml belongs to no notebook; known: 01_one, 02_two" in said
    assert "02_two.yaml: seed = 'x' is a str; allowed: int from 0 to 100" in said
    for path in (root / "params" / "gpu").iterdir():
        path.unlink()
    assert main(["check", "--root", str(root)]) == 0
    assert "2 notebooks, 0 parameter files" in capsys.readouterr().out


def test_an_error_of_ours_is_not_dressed_up_as_bad_input(root, monkeypatch):
    monkeypatch.setattr(kernel, "execute", lambda *given: {}["missing"])
    with pytest.raises(KeyError):
        main(["run", "--root", str(root)])


def test_help_comes_from_a_program_that_starts_and_names_every_command():
    done = subprocess.run([sys.executable, "-m", "lib", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS)
