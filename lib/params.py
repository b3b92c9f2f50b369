"""Parameter files: what a notebook may be given, checked before a kernel starts.

A notebook declares its parameters in the one cell tagged `parameters`, one assignment per line:

    readings: int = 51            # readings per field [1, 1024]
    solver: str = "heun"          # {euler, midpoint, heun}
    worlds: list[str] = ["plane"] # which worlds

The annotation is the type: int, float, bool, str, or a list of one of them. In the comment, [low, high] is the range and
{a, b} the choices, or {worlds.WORLDS} the names in a table of lib; for a list they hold for every element.
params/<profile>/<notebook>.yaml holds what differs from the defaults.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import io
import math
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

import yaml

TYPES = {"int": int, "float": float, "bool": bool, "str": str}
NUMBER = r"[-+]?(?:inf|\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)"
RANGE = re.compile(rf"\[\s*({NUMBER})\s*,\s*({NUMBER})\s*\]")
CHOICES = re.compile(r"\{([^{}]*)\}")
TABLE = re.compile(r"\s*([a-z_]+)\.([A-Z_]+)\s*")


class ParameterError(ValueError):
    """One line: where, which key, what was given, what is allowed."""


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell; `type` is the annotation as written, e.g. "list[int]"."""

    name: str
    type: str
    default: object
    low: float = -math.inf
    high: float = math.inf
    choices: tuple = ()
    comment: str = ""
    table: str = ""

    @property
    def element(self) -> str:
        """The scalar type: of the value, or of each element of a list."""
        return self.type.removeprefix("list[").removesuffix("]")

    @property
    def allowed(self) -> str:
        """What may be given, in words."""
        options = self.options()
        one = f"one of {', '.join(map(str, options))}" if options else self.element
        one += f" from {self.low:g} to {self.high:g}" if (self.low, self.high) != (-math.inf, math.inf) else ""
        return one if self.type == self.element else f"a list, each {one}"

    def options(self) -> tuple:
        """The choices; those of a table are read from its module, which may take seconds to import."""
        if not self.table:
            return self.choices
        module, name = self.table.split(".")
        return tuple(getattr(importlib.import_module(f"lib.{module}"), name))


def effective(notebook: Path, path: Path | None = None, overrides: dict | None = None) -> dict:
    """Every parameter of a notebook: its defaults, then a file's values, then overrides (from --set); ParameterError names the culprit."""
    given = validate(notebook, read(path), shown(path)) if path else {}
    set_by_hand = validate(notebook, overrides or {}, "--set")
    return {name: p.default for name, p in parameters(notebook).items()} | given | set_by_hand


def validate(notebook: Path, given: dict, source: str) -> dict:
    """The given values with their declared types (1 and "1e-4" become floats where a float is declared), or ParameterError."""
    declared = parameters(notebook)
    for name in given:
        if name not in declared:
            hint = suggestion(name, declared)
            raise ParameterError(f"{source}: {Path(notebook).stem} has no parameter {name!r}{hint}; it has: {', '.join(declared)}")
    return {name: _value(declared[name], value, source) for name, value in given.items()}


def read(path: Path) -> dict:
    """The mapping in a YAML file; an empty file is an empty mapping; ParameterError if it is missing, not YAML or not a mapping."""
    path = Path(path)
    if not path.is_file():
        raise ParameterError(f"{shown(path)}: no such parameter file")
    try:
        text = path.read_text(encoding="utf-8")
        given = yaml.safe_load(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}: {error.problem})" if mark else ""
        raise ParameterError(f"{shown(path)}: not a YAML file{where}; write one `key: value` per line") from None
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise ParameterError(f"{shown(path)}: not a mapping of names to values; write one `key: value` per line")
    keys = [key.value for key, _ in root.value]
    for key in keys:
        if keys.count(key) > 1:
            raise ParameterError(f"{shown(path)}: {key!r} is given {keys.count(key)} times; keep one")
    return given


def override(text: str) -> tuple[str, object]:
    """`key=value` of --set, the value read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ParameterError(f"--set {text}: expected key=value, for example --set readings=102")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise ParameterError(f"--set {text}: the value is not YAML; quote it, for example --set \"worlds=['plane']\"") from None


def parameters(notebook: Path) -> dict[str, Parameter]:
    """What a notebook's parameters cell declares; ParameterError where the cell breaks the convention at the top of this file."""
    import nbformat  # here, not above: it takes seconds to import, and a parameter file alone needs none of it

    notebook = Path(notebook)
    try:
        cells = nbformat.read(notebook, 4).cells
    except (OSError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ParameterError(f"{shown(notebook)}: not a readable notebook ({type(error).__name__})") from None
    tagged = [c for c in cells if c.cell_type == "code" and "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ParameterError(f"{shown(notebook)}: needs exactly one cell tagged 'parameters', found {len(tagged)}")
    return declarations(tagged[0].source, shown(notebook))


def declarations(source: str, where: str) -> dict[str, Parameter]:
    """The parameters declared by the lines of a parameters cell."""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise ParameterError(f"{where}: parameters cell, line {error.lineno}: {error.msg}") from None
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    return {p.name: p for p in (_declaration(s, comments.get(s.end_lineno, ""), where) for s in statements)}


def profile_folder(params: Path, profile: str) -> Path:
    """params/<profile>, or ParameterError with the profiles there are."""
    known = sorted(p.name for p in Path(params).iterdir() if p.is_dir()) if Path(params).is_dir() else []
    if profile not in known:
        listed = ", ".join(known) or "none"
        raise ParameterError(f"unknown profile {profile!r}{suggestion(profile, known)}; known: {listed} (the folders of {shown(params)})")
    return Path(params) / profile


def suggestion(name: str, known) -> str:
    """`; did you mean 'x'?`, or nothing when no known name is close."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def shown(path: Path) -> str:
    """A path as a person would type it: relative to the current folder when below it."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _declaration(statement: ast.stmt, comment: str, where: str) -> Parameter:
    """One line of the parameters cell."""
    line = f"{where}: parameters cell, line {statement.lineno}"
    if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value):
        raise ParameterError(f"{line}: expected `name: type = literal  # comment`, got `{ast.unparse(statement)}`")
    name, kind = statement.target.id, ast.unparse(statement.annotation)
    scalar = TYPES.get(re.sub(r"^list\[(\w+)\]$", r"\1", kind))
    if scalar is None:
        raise ParameterError(f"{line}: {name} has type {kind}; allowed: {', '.join(TYPES)} and lists of them, such as list[int]")
    try:
        default = ast.literal_eval(statement.value)
    except ValueError:
        raise ParameterError(f"{line}: the default of {name} must be a plain literal, got `{ast.unparse(statement.value)}`") from None
    limits, choices = RANGE.search(comment), CHOICES.search(comment)
    table = TABLE.fullmatch(choices.group(1)) if choices else None
    choices = None if table else choices
    low, high = map(float, limits.groups()) if limits else (-math.inf, math.inf)
    try:
        options = tuple(scalar(option.strip().strip("\"'")) for option in choices.group(1).split(",")) if choices else ()
    except ValueError:
        raise ParameterError(f"{line}: the choices {{{choices.group(1)}}} of {name} are not {kind}") from None
    parameter = Parameter(name, kind, default, low, high, options, comment, table.group().strip() if table else "")
    _value(parameter, default, line)
    return parameter


def _value(parameter: Parameter, given: object, source: str) -> object:
    """The value with its declared type; ParameterError if it has another, or lies outside range or choices."""
    if parameter.type == parameter.element:
        return _element(parameter, given, source)
    if not isinstance(given, list):
        raise ParameterError(f"{source}: {parameter.name} = {given!r} is {_kind(given)}; allowed: {parameter.allowed}")
    return [_element(parameter, each, source) for each in given]


def _element(parameter: Parameter, given: object, source: str) -> object:
    """One scalar, or one element of a list."""
    value, kind = given, TYPES[parameter.element]
    if kind is float and isinstance(given, (int, str)) and not isinstance(given, bool):
        try:
            value = float(given)  # YAML reads 1e-4 as a string and 1 as an int; both are floats to the person who wrote them
        except ValueError:
            value = given
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ParameterError(f"{source}: {parameter.name} = {given!r} is {_kind(given)}; allowed: {parameter.allowed}")
    if kind in (int, float) and not parameter.low <= value <= parameter.high:  # NaN fails here too
        raise ParameterError(f"{source}: {parameter.name} = {given!r} is out of range; allowed: {parameter.allowed}")
    default = parameter.default if isinstance(parameter.default, list) else [parameter.default]
    known = parameter.choices or (() if value in default else parameter.options())  # defaults are tested; no table is imported for them
    if known and value not in known:
        hint = suggestion(value, map(str, known))
        raise ParameterError(f"{source}: {parameter.name} = {given!r} is not a choice{hint}; allowed: {parameter.allowed}")
    return value


def _kind(given: object) -> str:
    """The type of a given value in words."""
    names = {"NoneType": "empty", "int": "an int", "dict": "a mapping"}
    return names.get(type(given).__name__, f"a {type(given).__name__}")
