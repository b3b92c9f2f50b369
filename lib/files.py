"""The user's own files: fields from .npy .npz .nc .csv or a folder of pictures, and scattered readings from a .csv.

Everything wrong with a file is a ValueError of one line: what was given, what is allowed, what to do. Values stay in the file's unit here;
`worlds.open_fields` scales them to [0, 1]. Infinite values count as NaN, which marks sites without a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas
import torch
import xarray
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lib import data
from lib.realworlds import SPLITS, Pool, pool

PICTURES = (".png", ".jpg", ".jpeg")
ALLOWED = "a file (.npy .npz .nc .csv .png .jpg) or a folder of pictures (.png .jpg)"
T = TypeVar("T")
NEEDED = "x, y, value (or lon, lat, value)"
HEADER = re.compile(r"(.*?)\s*(?:\[([^\[\]]*)\]|\(([^()]*)\))?", re.DOTALL)  # a column's name and its unit: `value [K]`, `value (K)`


@dataclass(frozen=True, eq=False)
class Fields:
    """Fields as they stand in a file: y (n, C, H, W), the unit, and the coordinate along rows and columns where the file has them."""

    y: Float[Tensor, "n C H W"]
    unit: str = ""
    axes: tuple[tuple[str, np.ndarray], ...] = ()


def read_fields(path: str | Path, variable: str | None = None) -> Fields:
    """The fields of a file or of a folder of pictures; `variable` picks one where the file holds several."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"'{path}' does not exist; give {ALLOWED}")
    if path.is_dir():
        return _checked(path, _pictures(path))
    if path.suffix.lower() not in READERS:
        raise ValueError(f"'{path}' ends in '{path.suffix}'; give {ALLOWED}")
    return _checked(path, READERS[path.suffix.lower()](path, variable))


def split(fields: Fields, seed: int = 0) -> Pool:
    """80 % of the fields for training, 10 % for validation, 10 % for the test, drawn by the seed; one or two fields are in every part."""
    n = len(fields.y)
    if n < 3:
        return pool({name: [fields.y] for name in SPLITS}, axes=fields.axes)
    order, held = torch.randperm(n, generator=data.generator(seed, "split")), max(1, round(0.1 * n))
    parts = {"train": order[2 * held :], "validation": order[:held], "test": order[held : 2 * held]}
    return pool({name: [fields.y[index]] for name, index in parts.items()}, axes=fields.axes)


def _read(path: Path, call: Callable[[], T]) -> T:
    """What a library's reader returns; whatever it raises becomes the one line that names the file."""
    try:
        return call()
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"'{path}' cannot be read as {path.suffix} ({why}); write it again or convert it") from error


def _checked(path: Path, fields: Fields) -> Fields:
    y = fields.y
    if not y.isfinite().any():
        raise ValueError(f"'{path}' holds no number: every value is NaN or infinite; give fields with values")
    if min(y.shape[-2:]) < 2 or not y.shape[1]:
        raise ValueError(f"'{path}' holds fields of {y.shape[-2]} x {y.shape[-1]} sites; give at least 2 x 2")
    return Fields(y.masked_fill(~y.isfinite(), torch.nan), fields.unit, fields.axes)


# ---- one reader per format: (path, variable) -> Fields ----


def _array(path: Path, a: np.ndarray) -> Float[Tensor, "n C H W"]:
    """An array with two to four axes as fields."""
    if a.dtype.kind not in "biuf":
        raise ValueError(f"'{path}' holds {a.dtype}; give real numbers")
    if a.ndim not in (2, 3, 4):
        raise ValueError(f"'{path}' has shape {a.shape}; give (H, W), (fields, H, W) or (fields, channels, H, W)")
    shape = {2: (1, 1, *a.shape), 3: (a.shape[0], 1, *a.shape[1:]), 4: a.shape}[a.ndim]
    return torch.from_numpy(a.reshape(shape).astype(np.float32))


def _pick(path: Path, names: list[str], variable: str | None) -> str:
    if variable is None and len(names) == 1:
        return names[0]
    if variable not in names:
        given = "names no variable" if variable is None else f"asks for '{variable}'"
        raise ValueError(f"'{path}' holds {', '.join(names) or 'no fields'}, and the call {given}; choose one with variable=NAME")
    return variable


def _npy(path: Path, variable: str | None) -> Fields:
    return Fields(_array(path, _read(path, lambda: np.load(path, allow_pickle=False))))


def _npz(path: Path, variable: str | None) -> Fields:
    with _read(path, lambda: np.load(path, allow_pickle=False)) as file:
        name = _pick(path, file.files, variable)
        return Fields(_array(path, _read(path, lambda: file[name])))


def open_netcdf(path: Path) -> xarray.Dataset:
    """A NetCDF 4 or classic NetCDF file, open: for use in a `with`."""
    with path.open("rb") as stream:
        engine = "scipy" if stream.read(3) == b"CDF" else "h5netcdf"
    return _read(path, lambda: xarray.open_dataset(path, engine=engine))


def _nc(path: Path, variable: str | None) -> Fields:
    """A variable (y, x) or (time, y, x); NetCDF 4 and classic NetCDF."""
    with open_netcdf(path) as file:
        bounds = {v.attrs.get("bounds") or v.encoding.get("bounds") for v in file.variables.values()}
        names = [str(n) for n, v in file.data_vars.items() if v.ndim in (2, 3) and v.dtype.kind in "iuf" and n not in bounds]
        if variable in file.data_vars and variable not in names:
            a = file[variable]
            raise ValueError(f"'{path}': {variable} has dimensions {a.dims} and type {a.dtype}; give numbers over (y, x) or (time, y, x)")
        name = _pick(path, names, variable)
        a = _read(path, lambda: file[name].load())
    axes = tuple((str(d), a[d].values if d in a.coords else np.arange(a.sizes[d])) for d in a.dims[-2:])
    return Fields(_array(path, a.values), str(a.attrs.get("units", "")), axes)


def _csv(path: Path, variable: str | None) -> Fields:
    """A long table on a complete regular grid: one row per site and field."""
    table, (across, down), units = _table(path)
    places = [across, down, *(["field"] if "field" in table else [])]
    twice = table.duplicated(places)
    if twice.any():
        raise ValueError(
            f"'{path}' line {int(twice.argmax()) + 2} repeats a place ({', '.join(places)}); give one value per site and field"
        )
    columns, rows = (np.unique(table[name].to_numpy()) for name in (across, down))
    fields = np.unique(table["field"].to_numpy()) if "field" in table else np.zeros(1)
    if len(table) != len(rows) * len(columns) * len(fields):
        raise ValueError(
            f"'{path}' has {len(table)} rows, but {len(columns)} {across} x {len(rows)} {down} x {len(fields)} fields need "
            f"{len(rows) * len(columns) * len(fields)}; fill the grid (an empty value marks a masked site), or use it as readings"
        )
    for name, values in ((across, columns), (down, rows)):
        step = np.diff(values)
        if len(step) and not np.allclose(step, step.mean(), rtol=1e-3, atol=0):
            raise ValueError(
                f"'{path}': the steps of {name} vary from {step.min():g} to {step.max():g}; give a regular grid, or use it as readings"
            )
    table = table.sort_values([*places[2:], down, across])
    y = table["value"].to_numpy().reshape(len(fields), len(rows), len(columns))
    if down == "lat":  # north at the top
        y, rows = y[:, ::-1], rows[::-1]
    return Fields(_array(path, y), units["value"], axes=((down, rows), (across, columns)))


def _picture(path: Path, variable: str | None = None) -> Fields:
    with _read(path, lambda: Image.open(path)) as picture:
        grey = picture.mode in ("1", "L", "LA", "I", "I;16", "F")
        mode = picture.mode if picture.mode in ("I", "I;16", "F") else "L" if grey else "RGB"
        a = _read(path, lambda: np.array(picture if picture.mode == mode else picture.convert(mode)))
    return Fields(torch.from_numpy(np.atleast_3d(a).astype(np.float32)).movedim(-1, 0)[None])


def _pictures(folder: Path) -> Fields:
    """The pictures of a folder in the order of their names, all of one size and either all grey or all in colour."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in PICTURES)
    if not files:
        raise ValueError(f"folder '{folder}' holds no pictures; put {' '.join(PICTURES)} files of one size there")
    stack: list[Tensor] = []
    for file in files:
        y = _picture(file).y
        if stack and y.shape != stack[0].shape:
            sizes = " but ".join(
                f"{f.name} is {t.shape[-1]} x {t.shape[-2]} with {t.shape[1]} channels" for f, t in ((files[0], stack[0]), (file, y))
            )
            raise ValueError(f"pictures in '{folder}' differ: {sizes}; make them alike")
        stack.append(y)
    return Fields(torch.cat(stack))


READERS = {".npy": _npy, ".npz": _npz, ".nc": _nc, ".csv": _csv, **dict.fromkeys(PICTURES, _picture)}


# ---- scattered readings ----


@dataclass(frozen=True, eq=False)
class Table:
    """Scattered readings as they stand in a file: places (N, 2), first the coordinate to the right, and values (N,), NaN where missing.

    Both in float64. units: of the two coordinates and of the values, "" where the header names none.
    """

    places: np.ndarray
    values: np.ndarray
    names: tuple[str, str]
    units: tuple[str, str, str]


def read_table(path: str | Path, column: str = "value") -> Table:
    """The rows of a CSV of readings; a unit may stand behind a column's name, as in `value [K]`. Infinite values count as missing."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"'{path}' is not a file; give a .csv with the columns {NEEDED}")
    table, names, units = _table(path, column)
    if not np.isfinite(table["value"]).any():
        raise ValueError(f"'{path}' has no valid reading: every value is empty or NaN; give at least one number")
    values = table["value"].to_numpy(np.float64, copy=True)
    values[~np.isfinite(values)] = np.nan
    return Table(table[list(names)].to_numpy(np.float64), values, names, tuple(units[name] for name in (*names, "value")))


@dataclass(frozen=True, eq=False)
class Readings:
    """Scattered readings: sites in the square [-1, 1]^2, values in their own unit (NaN where missing), and the box the square stands for.

    names and box: first the coordinate to the right, then the other. Row 0 of a grid is the smallest y, or the northernmost lat.
    """

    s_obs: Float[Tensor, "1 N 2"]
    y_obs: Float[Tensor, "1 N 1"]
    names: tuple[str, str]
    box: tuple[tuple[float, float], tuple[float, float]]

    def batch(self, resolution: data.Resolution) -> data.Batch:
        """These readings with every site of a regular grid over the box as a query."""
        return data.readings(self.s_obs, self.y_obs, data.grid(resolution)[None])

    def axes(self, resolution: data.Resolution) -> tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]:
        """The coordinates of that grid: along the rows, then along the columns."""
        rows, columns = data.shape_of(resolution)
        (across, down), (horizontal, vertical) = self.names, self.box
        vertical = vertical[::-1] if down == "lat" else vertical
        return (down, np.linspace(*vertical, rows)), (across, np.linspace(*horizontal, columns))


def read_readings(path: str | Path, box: tuple[tuple[float, float], tuple[float, float]] | None = None) -> Readings:
    """Readings from a CSV with columns x, y, value or lon, lat, value; an empty or NaN value is a missing reading.

    box = ((left, right), (low, high)) in the file's coordinates, by default the smallest around all rows; each side becomes [-1, 1].
    """
    found = read_table(path)
    places, names = found.places, found.names
    box = tuple((float(low), float(high)) for low, high in (box if box is not None else zip(places.min(0), places.max(0), strict=True)))
    for name, (low, high), column in zip(names, box, places.T, strict=True):
        if not low < high:
            raise ValueError(
                f"'{path}': {name} runs from {low:g} to {high:g}; the box needs an extent, give box=((left, right), (low, high))"
            )
        if column.min() < low or column.max() > high:
            raise ValueError(
                f"'{path}': {name} runs from {column.min():g} to {column.max():g}, outside the box {low:g} to {high:g}; widen it"
            )
    low, high = np.array(box).T
    s = 2 * (places - low) / (high - low) - 1
    s[:, 1] *= -1 if names[1] == "lat" else 1
    return Readings(torch.from_numpy(s).float()[None], torch.from_numpy(found.values).float()[None, :, None], names, box)


def _table(path: Path, column: str = "value") -> tuple[pandas.DataFrame, tuple[str, str], dict[str, str]]:
    """A CSV with the columns of a place and a value, all numbers, the names of its coordinates, and the unit in each column's header."""
    if path.stat().st_size == 0:
        raise ValueError(f"'{path}' is empty; give a .csv with the columns {NEEDED}")
    table = _read(path, lambda: pandas.read_csv(path, skipinitialspace=True, encoding="utf-8-sig"))
    known = {"longitude": "lon", "latitude": "lat", "value": "another value", column.strip().lower(): "value"}
    headers = [HEADER.fullmatch(str(c).strip()).groups("") for c in table.columns]
    table.columns = [known.get(name.lower(), name.lower()) for name, _, _ in headers]
    units = {name: square or curved for name, (_, square, curved) in zip(table.columns, headers, strict=True)}
    names = next((pair for pair in (("x", "y"), ("lon", "lat")) if {*pair, "value"} <= set(table.columns)), None)
    if names is None:
        chosen = "" if column == "value" else f", where {column} stands for value"
        raise ValueError(f"'{path}' has the columns {', '.join(table.columns)}; it needs {NEEDED}: rename them in the first line{chosen}")
    if table.columns.duplicated().any():
        raise ValueError(f"'{path}' has two columns named '{table.columns[table.columns.duplicated()][0]}'; keep one")
    if table.empty:
        raise ValueError(f"'{path}' has a header and no rows; give one row per reading")
    for name in (*names, "value", *(["field"] if "field" in table else [])):
        numbers = pandas.to_numeric(table[name], errors="coerce").astype(np.float64)
        wrong = numbers.isna() & table[name].notna() if name == "value" else ~np.isfinite(numbers)
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"'{path}' line {row + 2}: {name} is '{table[name].iloc[row]}'; give a number" + (" or leave it empty" * (name == "value"))
            )
        table[name] = numbers
    return table, names, units
