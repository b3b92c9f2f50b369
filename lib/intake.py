"""What a reconstruction starts from: readings with every site once, past fields scaled to [0, 1], the grid to answer on.

A longitude is moved by whole turns: readings on both sides of the date line become one range, and all of them the range of a given grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from lib import files, frame, perfield, realworlds, weights


@dataclass(frozen=True, eq=False)
class Sites:
    """Every site once with its value, and what was in the file besides."""

    places: np.ndarray  # (N, 2)
    values: np.ndarray  # (N,)
    names: tuple[str, str]
    units: tuple[str, str, str]  # of the coordinates and the value
    rows: int
    missing: int
    repeated: int

    @property
    def differ(self) -> bool:
        return bool(np.ptp(self.values) > 1e-9 * np.abs(self.values).max())

    @property
    def spread(self) -> float:
        """The readings' standard deviation; where they do not differ their size, or 1, stands in for it."""
        return float(self.values.std(ddof=1)) if self.differ else float(np.abs(self.values).max()) or 1.0

    @property
    def told(self) -> str:
        """One line on what was read."""
        lost = ((self.missing, "without a value"), (self.repeated, "at a site read before, averaged"))
        return "; ".join([f"{len(self.values)} sites from {self.rows} rows", *(f"{n} {what}" for n, what in lost if n)])


@dataclass(frozen=True, eq=False)
class Past:
    """Past fields (n, 1, H, W) scaled to [0, 1], None where only a prior learned from them is kept; their grid, range and unit."""

    fields: Tensor | None
    grid: frame.Grid
    low: float
    high: float
    unit: str
    known: np.ndarray  # (H W,) nodes that have a value in some field


@dataclass(frozen=True)
class Scale:
    """values = low + span * scaled."""

    low: float
    span: float

    @staticmethod
    def of(found: Sites, past: Past | None) -> Scale:
        if past is not None:
            return Scale(past.low, past.high - past.low)
        span = found.spread / perfield.DEFAULT_STD
        return Scale(float(found.values.mean()) - perfield.DEFAULT_MEAN * span, span)

    def down(self, values: np.ndarray) -> np.ndarray:
        return (values - self.low) / self.span

    def up(self, scaled: np.ndarray) -> np.ndarray:
        return self.low + self.span * scaled


def read(path: str | Path, column: str = "value") -> Sites:
    """The readings of a file: sites once each, with the mean of what was read there, longitudes in one piece."""
    table = files.read_table(path, column)
    if table.names == frame.GEOGRAPHIC:
        frame.check(path, table.places)
    held = np.isfinite(table.values)
    places, values = table.places[held], table.values[held]
    if table.names == frame.GEOGRAPHIC:
        places = np.stack([frame.joined(places[:, 0]), places[:, 1]], 1)
    sites, means = perfield.merged(places, values[:, None])
    return Sites(sites, means[:, 0], table.names, table.units, len(held), int((~held).sum()), len(places) - len(sites))


def past_fields(path: str | Path, found: Sites, variable: str | None) -> Past:
    """All past fields of a file or folder, scaled by their range; ValueError where they do not go with the readings."""
    fields = files.read_fields(path, variable)
    grid, turned = frame.of_fields(path, fields.axes, tuple(fields.y.shape[-2:]), found.names)
    if fields.y.shape[1] != 1:
        raise ValueError(f"--data '{path}' has {fields.y.shape[1]} channels, the readings have one; give fields of one channel")
    if fields.unit and found.units[2] not in ("", fields.unit):
        raise ValueError(f"the readings are in {found.units[2]}, the fields of '{path}' in {fields.unit}; convert one of them")
    y = fields.y.mT if turned else fields.y
    pool = realworlds.pool({"train": [y]})
    scaled = ((y.double() - pool.low) / (pool.high - pool.low)).contiguous()
    return Past(scaled, grid, pool.low, pool.high, fields.unit, y.isfinite().any(0).flatten().numpy())


def learned(path: str | Path, found: Sites) -> Past:
    """What a file of weights says of the past fields they were learned from; ValueError where they do not go with the readings."""
    tensors, card = weights.read(path)
    missing = [name for name in ("low", "high", "shape", "axes") if name not in card]
    if missing or "known" not in tensors:
        raise ValueError(f"'{path}' does not say where its past fields lie; give a file that `python -m lib train` wrote")
    channels, *shape = card["shape"]
    if channels != 1:
        raise ValueError(f"'{path}' was learned from {channels} channels, the readings have one; learn from fields of one channel")
    if card.get("unit") and found.units[2] not in ("", card["unit"]):
        raise ValueError(f"the readings are in {found.units[2]}, the fields of '{path}' in {card['unit']}; convert one of them")
    across, down = card["axes"] or ("x", "y")
    axes = ((down, tensors["axis_y"].numpy()), (across, tensors["axis_x"].numpy())) if card["axes"] else ()
    grid, _ = frame.of_fields(path, axes, tuple(shape), found.names)
    return Past(None, grid, card["low"], card["high"], card.get("unit", ""), tensors["known"].bool().numpy())


def target_grid(found: Sites, past: Past | None, words: str | None, like: str | Path | None, path: str) -> tuple[frame.Grid, Sites]:
    """The grid of the answer, and the readings on its side of the date line."""
    if words and like:
        raise ValueError("--grid and --like both name a grid; give one of them")
    shape = frame.shape_of(words) if words else None
    if past is None and like is None:
        if len(found.places) == 1 < found.rows - found.missing:
            x, y = found.places[0]
            raise ValueError(f"'{path}': all readings lie at {x:g}, {y:g}; give readings from two places, or a grid with --like")
        return frame.around(found.places, found.names, shape), found
    target = frame.like(like, found.names) if like else past.grid if shape is None else past.grid.of(shape)
    home = past.grid if past else target
    if home.geographic:
        found = _moved(found, home)
        target = target.moved(home) if like and past else target
    if past:
        for what, places in ((f"'{path}': a reading", found.places), (f"--like '{like}': a node", target.nodes())):
            held = frame.inside(past.grid, places)
            if not held.all():
                (x, y), ends = places[held.argmin()], (past.grid.x.min(), past.grid.x.max(), past.grid.y.min(), past.grid.y.max())
                box = "{} {:g} to {:g}, {} {:g} to {:g}".format(found.names[0], *ends[:2], found.names[1], *ends[2:])
                raise ValueError(f"{what} lies at {x:g}, {y:g}, outside the past fields ({box}); leave it out, or --data")
    return target.sorted(), found


def _moved(found: Sites, grid: frame.Grid) -> Sites:
    return replace(found, places=np.stack([grid.nearest(found.places[:, 0]), found.places[:, 1]], 1))
