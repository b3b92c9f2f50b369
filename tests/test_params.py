"""Parameter files: what is accepted, with which type, and the one line that says why something is not."""

import math

import nbformat
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook
from tiny_notebooks import write

from lib import params
from lib.params import Parameter, ParameterError


@pytest.fixture
def notebook(tmp_path):
    write(tmp_path / "01_tiny.ipynb", [])
    return tmp_path / "01_tiny.ipynb"


@pytest.fixture
def file(tmp_path):
    def write_file(text):
        path = tmp_path / "01_tiny.yaml"
        path.write_text(text)
        return path

    return write_file


def test_a_parameters_cell_is_read_with_types_ranges_and_choices(notebook):
    found = params.parameters(notebook)
    assert list(found) == ["seed", "rate", "solver", "worlds", "device", "folder"]
    assert found["seed"] == Parameter("seed", "int", 0, 0.0, 100.0, (), "of every draw [0, 100]")
    assert found["solver"].choices == ("euler", "midpoint", "heun")
    assert (found["worlds"].type, found["worlds"].element, found["worlds"].default) == ("list[str]", "str", ["plane"])


def test_defaults_give_way_to_the_file_and_the_file_to_set(notebook, file):
    values = params.effective(notebook, file("seed: 3\nrate: 0.5\n"), {"rate": 0.25})
    assert values == {"seed": 3, "rate": 0.25, "solver": "heun", "worlds": ["plane"], "device": "auto", "folder": ""}


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "'0.0001'"])
def test_every_way_to_write_a_small_float_is_that_float(notebook, file, text):
    assert params.effective(notebook, file(f"rate: {text}"))["rate"] == 1e-4


def test_an_int_is_a_float_where_a_float_is_declared(notebook, file):
    rate = params.effective(notebook, file("rate: 1"))["rate"]
    assert rate == 1.0 and isinstance(rate, float)


def test_an_empty_file_changes_nothing(notebook, file):
    assert params.effective(notebook, file("# nothing yet\n")) == params.effective(notebook)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sede: 1", "01_tiny has no parameter 'sede'; did you mean 'seed'?; it has: seed, rate"),
        ("seed: many", "seed = 'many' is a str; allowed: int from 0 to 100"),
        ("seed: true", "seed = True is a bool; allowed: int from 0 to 100"),
        ("seed: 1.0", "seed = 1.0 is a float; allowed: int from 0 to 100"),
        ("seed: '1'", "seed = '1' is a str; allowed: int from 0 to 100"),
        ("seed:", "seed = None is empty; allowed: int from 0 to 100"),
        ("seed: [1]", "seed = [1] is a list; allowed: int from 0 to 100"),
        ("seed: 101", "seed = 101 is out of range; allowed: int from 0 to 100"),
        ("rate: 0", "rate = 0 is out of range; allowed: float from 1e-06 to 1"),
        ("rate: .nan", "rate = nan is out of range; allowed: float from 1e-06 to 1"),
        ("rate: true", "rate = True is a bool; allowed: float from 1e-06 to 1"),
        ("rate: fast", "rate = 'fast' is a str; allowed: float from 1e-06 to 1"),
        ("solver: huen", "solver = 'huen' is not a choice; did you mean 'heun'?; allowed: one of euler, midpoint, heun"),
        ("solver: 1", "solver = 1 is an int; allowed: one of euler, midpoint, heun"),
        ("worlds: plane", "worlds = 'plane' is a str; allowed: a list, each one of plane, radial"),
        ("worlds: [plane, sphere]", "worlds = 'sphere' is not a choice; allowed: a list, each one of plane, radial"),
        ("worlds: [1]", "worlds = 1 is an int; allowed: a list, each one of plane, radial"),
        ("seed: 1\nrate: 1\nseed: 2", "'seed' is given 2 times; keep one"),
        ("[1, 2]", "not a mapping of names to values; write one `key: value` per line"),
        ("seed", "not a mapping of names to values; write one `key: value` per line"),
        ("1: 2", "not a mapping of names to values; write one `key: value` per line"),
        ("seed: [1", "not a YAML file (line 1: "),
        ("seed: 1\n  rate: 2", "not a YAML file (line 2: mapping values are not allowed here); write one `key: value` per line"),
    ],
)
def test_a_bad_file_is_one_line_with_file_key_and_what_is_allowed(notebook, file, text, says):
    path = file(text)
    with pytest.raises(ParameterError) as caught:
        params.effective(notebook, path)
    line = str(caught.value)
    assert line.startswith(f"{path}: {says}")
    assert "\n" not in line


def test_a_file_that_is_not_there_or_not_text_is_named(notebook, tmp_path):
    with pytest.raises(ParameterError, match=r"none\.yaml: no such parameter file$"):
        params.effective(notebook, tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ParameterError, match=r"binary\.yaml: not a YAML file; write"):
        params.effective(notebook, tmp_path / "binary.yaml")


@settings(max_examples=60)
@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()), max_size=4))
def test_whatever_yaml_holds_is_accepted_or_refused_in_one_line(tmp_path_factory, values):
    folder = tmp_path_factory.getbasetemp()
    notebook, path = folder / "09_any.ipynb", folder / "09_any.yaml"
    if not notebook.exists():
        write(notebook, [])
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    try:
        accepted = params.effective(notebook, path)
    except ParameterError as refused:
        assert str(refused).startswith(str(path)) and len(str(refused).splitlines()) == 1
    else:
        assert isinstance(accepted["seed"], int) and 0 <= accepted["seed"] <= 100
        assert isinstance(accepted["rate"], float) and 1e-6 <= accepted["rate"] <= 1


@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.floats())
def test_a_value_is_accepted_exactly_when_it_lies_in_the_range(low, high, value):
    parameter = Parameter("rate", "float", 0.0, low, high)
    inside = not math.isnan(value) and low <= value <= high
    try:
        assert params._value(parameter, value, "here") == value and inside
    except ParameterError:
        assert not inside


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("seed = 1", "line 1: expected `name: type = literal  # comment`, got `seed = 1`"),
        ("seed: int", "line 1: expected `name: type = literal"),
        ("import os", "line 1: expected `name: type = literal"),
        ("a: int = 1\nb: dict = {}", "line 2: b has type dict; allowed: int, float, bool, str and lists of them"),
        ("a: int = 1 + x", "line 1: the default of a must be a plain literal, got `1 + x`"),
        ("a: int = 5  # [0, 4]", "line 1: a = 5 is out of range; allowed: int from 0 to 4"),
        ("a: int = 'x'", "line 1: a = 'x' is a str; allowed: int"),
        ("a: int = 1  # {one, two}", "line 1: the choices {one, two} of a are not int"),
        ("a: int = = 1", "line 1: invalid syntax"),
    ],
)
def test_a_parameters_cell_against_the_convention_is_refused_by_line(source, says):
    with pytest.raises(ParameterError) as caught:
        params.declarations(source, "nb")
    assert str(caught.value).startswith(f"nb: parameters cell, {says}")


def test_a_notebook_needs_exactly_one_parameters_cell(tmp_path):
    path = tmp_path / "01_none.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("seed: int = 1")]), path)
    with pytest.raises(ParameterError, match="needs exactly one cell tagged 'parameters', found 0"):
        params.parameters(path)
    path.write_text("not json")
    with pytest.raises(ParameterError, match="not a readable notebook"):
        params.parameters(path)


def test_set_reads_its_value_as_yaml():
    assert params.override("seed=3") == ("seed", 3)
    assert params.override("worlds=[plane, radial]") == ("worlds", ["plane", "radial"])
    assert params.override("note=a=b") == ("note", "a=b")
    for text in ("seed", "=3", "seed=[1"):
        with pytest.raises(ParameterError, match=r"^--set "):
            params.override(text)


def test_choices_may_be_the_names_of_a_table_and_defaults_import_nothing(monkeypatch):
    declared = params.declarations(
        'method: str = "gp"  # how {baselines.METHODS}\nrules: list[str] = ["length"]  # {encoders.STEPS}', "here"
    )
    assert declared["method"].choices == () and declared["method"].table == "baselines.METHODS"
    assert params._value(declared["method"], "oi", "--set") == "oi"
    with pytest.raises(ParameterError, match=r"--set: method = 'nearestt' is not a choice; did you mean 'nearest'.*one of constant"):
        params._value(declared["method"], "nearestt", "--set")
    with pytest.raises(ParameterError, match=r"rules = 'fixd' is not a choice; did you mean 'fixed'"):
        params._value(declared["rules"], ["length", "fixd"], "--set")
    monkeypatch.setattr(params.importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
    assert params._value(declared["rules"], ["length"], "--set") == ["length"]
