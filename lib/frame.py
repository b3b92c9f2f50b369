"""Where readings and the nodes of a grid lie on the square [-1, 1]^2, in which every method works.

Two maps. `even` keeps distances: one factor for both coordinates, longitudes shortened by the cosine of the mean latitude, the longer side
from -1 to 1. `indexed` is that of the fields a method has learned from: from the first node to the last, whatever the steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib import files

GEOGRAPHIC = ("lon", "lat")
NODES = 4096  # of a grid nobody chose: a Gaussian process draws coherent samples on as many at once
MOST_NODES = 4_000_000
MARGIN = 0.05  # of the readings' extent, added on each side
STEEPEST = 0.05  # cosine of the mean latitude below which a map by longitude and latitude no longer keeps distances

Place = Callable[[np.ndarray], np.ndarray]  # (n, 2) coordinates -> (n, 2) sites


@dataclass(frozen=True, eq=False)
class Grid:
    """Nodes x (W,) to the right and y (H,) along the rows, in the readings' coordinates, and the names of the two in a file."""

    x: np.ndarray
    y: np.ndarray
    names: tuple[str, str]
    written: tuple[np.ndarray, ...] | None = None  # x and y of a file, and the places of its columns and rows among the sorted ones

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return len(self.y), len(self.x)

    @property
    def geographic(self) -> bool:
        return _plain(self.names) == GEOGRAPHIC

    def sorted(self) -> Grid:
        """The same nodes with x to the right and rows from the top: north first, or the smallest y."""
        columns, rows = np.argsort(self.x), np.argsort(-self.y if self.geographic else self.y)
        written = (*(self.written or (self.x, self.y)), np.argsort(columns), np.argsort(rows))
        return Grid(self.x[columns], self.y[rows], self.names, written)

    def moved(self, home: Grid) -> Grid:
        """The same nodes on another grid's side of the date line; a file gets the longitudes as they were."""
        return Grid(home.nearest(self.x), self.y, self.names, (self.x, self.y)) if self.geographic else self

    def nodes(self) -> np.ndarray:
        """Coordinates (H W, 2) of all nodes, row by row."""
        return np.stack([a.ravel() for a in np.meshgrid(self.x, self.y)], 1)

    def of(self, shape: tuple[int, int]) -> Grid:
        """Another number of rows and columns, evenly over the same extent."""
        return Grid(np.linspace(self.x[0], self.x[-1], shape[1]), np.linspace(self.y[0], self.y[-1], shape[0]), self.names)

    def nearest(self, longitudes: np.ndarray) -> np.ndarray:
        """Longitudes moved by whole turns to the side of the date line on which this grid lies."""
        middle = (self.x.min() + self.x.max()) / 2
        return (longitudes - middle + 180) % 360 - 180 + middle


# ---- grids ----


def shape_of(text: str) -> tuple[int, int]:
    """(rows, columns) of words like 256x256."""
    found = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", str(text))
    shape = tuple(int(n) for n in found.groups()) if found else (0, 0)
    if min(shape) < 2 or shape[0] * shape[1] > MOST_NODES:
        raise ValueError(f"--grid is '{text}'; give ROWSxCOLUMNS, each at least 2 and together up to {MOST_NODES:,} nodes, like 256x256")
    return shape


def around(places: np.ndarray, names: tuple[str, str], shape: tuple[int, int] | None = None) -> Grid:
    """A grid over the box of the readings and a margin; without a shape about NODES nodes that are as far apart both ways."""
    low, high = places.min(0), places.max(0)
    extent = high - low
    flat = extent.max() if extent.max() > 0 else 1.0  # one reading: a box of one unit around it; all on one line: a square
    extent = np.where(extent > 1e-9 * flat, extent, flat)
    middle = (low + high) / 2
    low, high = (middle + sign * (0.5 + MARGIN) * extent for sign in (-1, 1))
    if names == GEOGRAPHIC:
        low[1], high[1] = max(low[1], -90.0), min(high[1], 90.0)
        if high[0] - low[0] > 360:
            low[0], high[0] = middle[0] - 180, middle[0] + 180
    if shape is None:
        wide = (high[0] - low[0]) * (shortening(middle[1]) if names == GEOGRAPHIC else 1.0) / (high[1] - low[1])
        rows = int(np.clip(np.sqrt(NODES / wide), 8, NODES / 8))
        shape = rows, NODES // rows
    y = np.linspace(low[1], high[1], shape[0])
    return Grid(np.linspace(low[0], high[0], shape[1]), y[::-1] if names == GEOGRAPHIC else y, names)


def like(path: str | Path, names: tuple[str, str]) -> Grid:
    """The grid of a NetCDF file: its longitudes and latitudes, or its x and y, each along a dimension of its own."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"--like '{path}' is not a file; give a NetCDF file with the coordinates {' and '.join(names)}")
    with files.open_netcdf(path) as file:
        found = {_plain((name,))[0]: (name, v.values) for name, v in file.variables.items() if v.dims == (name,) and v.dtype.kind in "iuf"}
    if not set(names) <= set(found):
        has = ", ".join(str(name) for name, _ in found.values()) or "none"
        raise ValueError(
            f"--like '{path}' has the coordinates {has}; the readings need {' and '.join(names)}, one value per column and row"
        )
    return _checked(str(path), *(found[name][1] for name in names), tuple(str(found[name][0]) for name in names))


def of_fields(path: str | Path, axes, shape: tuple[int, int], names: tuple[str, str]) -> tuple[Grid, bool]:
    """The grid of past fields, and whether their rows and columns must change places for it.

    Fields without coordinates cover the square itself, x and y from -1 to 1 and y downwards.
    """
    if not axes:
        if names == GEOGRAPHIC:
            raise ValueError(
                f"'{path}' has no coordinates to place lon and lat on; give the past fields as NetCDF or .csv with coordinates"
            )
        return Grid(np.linspace(-1, 1, shape[1]), np.linspace(-1, 1, shape[0]), names), False
    (down, rows), (across, columns) = axes
    plain = _plain((across, down))
    turned = plain in (("lat", "lon"), ("y", "x"))
    if turned:
        (down, rows), (across, columns), plain = (across, columns), (down, rows), plain[::-1]
    if (names == GEOGRAPHIC) != (plain == GEOGRAPHIC):
        raise ValueError(f"'{path}' lies over {across} and {down}, the readings over {' and '.join(names)}; give both in one system")
    return _checked(str(path), columns, rows, (across, down)), turned


def _checked(path: str, x: np.ndarray, y: np.ndarray, names: tuple[str, str]) -> Grid:
    """A grid whose coordinates rise or fall all the way."""
    for name, values in zip(names, (x, y), strict=True):
        steps = np.diff(np.asarray(values, np.float64))
        if len(values) < 2 or not (np.all(steps > 0) or np.all(steps < 0)):
            raise ValueError(f"'{path}': {name} has {len(values)} values that do not rise or fall all the way; give at least two that do")
    return Grid(np.asarray(x, np.float64), np.asarray(y, np.float64), names)


def _plain(names: tuple) -> tuple[str, ...]:
    """Names of coordinates without their variants."""
    return tuple({"longitude": "lon", "latitude": "lat"}.get(str(name).lower(), str(name).lower()) for name in names)


# ---- longitudes ----


def check(path: str | Path, places: np.ndarray) -> None:
    """ValueError for a longitude or a latitude that is none."""
    for name, column, most in (("lon", places[:, 0], 360), ("lat", places[:, 1], 90)):
        worst = column[np.abs(column).argmax()]
        if abs(worst) > most:
            raise ValueError(f"'{path}': {name} is {worst:g}; give degrees from -{most} to {most}, or name the columns x and y")


def joined(longitudes: np.ndarray) -> np.ndarray:
    """Longitudes on both sides of the date line made one range: those west of it grow by 360, where that makes all span less than 180."""
    turned = longitudes % 360
    return turned if np.ptp(longitudes) > 180 > np.ptp(turned) else longitudes


def shortening(latitude: float) -> float:
    """How many degrees of latitude a degree of longitude is as long as."""
    return max(float(np.cos(np.radians(latitude))), STEEPEST)


# ---- onto the square ----


def even(grid: Grid, places: np.ndarray) -> Place:
    """The map that keeps distances: grid and readings together fill [-1, 1] along their longer side."""
    corners = np.array([[grid.x.min(), grid.y.min()], [grid.x.max(), grid.y.max()]])
    low, high = (np.concatenate([corners, places]).min(0), np.concatenate([corners, places]).max(0))
    middle = (low + high) / 2
    factor = np.array([shortening(middle[1]), -1.0]) if grid.geographic else np.ones(2)  # north is up, s downwards
    half = np.abs((high - low) * factor).max() / 2
    return lambda p: (p - middle) * factor / half


def indexed(grid: Grid) -> Place:
    """The map of fields on this grid: node i of n lies at 2 i / (n - 1) - 1, linear in between, the border beyond."""

    def along(values: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        s = np.linspace(-1, 1, len(nodes))
        return np.interp(values, nodes, s) if nodes[0] < nodes[-1] else np.interp(values, nodes[::-1], s[::-1])

    return lambda p: np.stack([along(p[:, 0], grid.x), along(p[:, 1], grid.y)], 1)


def inside(grid: Grid, places: np.ndarray) -> np.ndarray:
    """Which places lie on the grid: at most half a step beyond its outer nodes."""
    held = np.ones(len(places), bool)
    for values, nodes in zip(places.T, (np.sort(grid.x), np.sort(grid.y)), strict=True):
        first, last = (nodes[1] - nodes[0]) / 2, (nodes[-1] - nodes[-2]) / 2
        held &= (values >= nodes[0] - first - 1e-9) & (values <= nodes[-1] + last + 1e-9)
    return held


def on_grid(shape: tuple[int, int], s: np.ndarray) -> np.ndarray:
    """The index (n,) of the node nearest to each site s (n, 2) of a grid over the square, row by row."""
    row, column = (np.rint((np.clip(s[:, axis], -1, 1) + 1) / 2 * (size - 1)).astype(int) for axis, size in ((1, shape[0]), (0, shape[1])))
    return row * shape[1] + column
