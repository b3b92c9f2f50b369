"""A reconstructed field as files: NetCDF by the CF conventions, a picture, and a page to explore; all of them or none.

CF: NetCDF Climate and Forecast Metadata Conventions, version 1.11. The page holds plotly itself (4.5 MB), so that it opens anywhere and can
be sent alone: a script beside it would be lost on the way, a link would need a network.
"""

# ruff: noqa: C408 - options of plotly read as keyword arguments

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import xarray
from plotly.colors import sample_colorscale

from lib import page
from lib.frame import Grid, shortening
from lib.png import png
from lib.theme import SCALES, figure

AXES = {
    "lon": dict(standard_name="longitude", long_name="longitude", units="degrees_east", axis="X"),
    "lat": dict(standard_name="latitude", long_name="latitude", units="degrees_north", axis="Y"),
}
MOST_SHOWN = 160_000  # nodes of one map of the page; a finer grid is thinned there, not in the NetCDF


@dataclass(frozen=True, eq=False)
class Field:
    """The answer in the readings' unit: mean and std (H, W), samples (K, H, W), and the readings with what is said at each without it."""

    grid: Grid
    column: str
    unit: str
    mean: np.ndarray
    std: np.ndarray
    samples: np.ndarray | None
    places: np.ndarray  # (N, 2)
    values: np.ndarray  # (N,)
    left_out: np.ndarray  # (N,)
    method: str
    why: str
    spread: str  # what std is
    units: tuple[str, str] = ("", "")  # of x and y

    def masked(self, without: np.ndarray) -> Field:
        """The same field with NaN at these nodes (H, W)."""
        samples = None if self.samples is None else np.where(without, np.nan, self.samples)
        return replace(self, mean=np.where(without, np.nan, self.mean), std=np.where(without, np.nan, self.std), samples=samples)


def check(out: str | Path) -> Path:
    """The path of the NetCDF file; ValueError where it cannot be written, before anything is computed."""
    out = Path(out)
    if out.suffix.lower() != ".nc":
        raise ValueError(f"--out is '{out}'; give a file that ends in .nc")
    if out.is_dir():
        raise ValueError(f"--out '{out}' is a folder; give a file that ends in .nc")
    if not out.parent.is_dir():
        raise ValueError(f"--out '{out}': the folder '{out.parent}' does not exist; make it, or choose another place")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out '{out}': the folder '{out.parent}' cannot be written; choose another place")
    return out


def write(out: Path, field: Field, lines: Sequence[tuple[str, str]], command: str) -> list[Path]:
    """Write .nc, .png and .html; earlier files of these names are replaced once all three are whole. Returns the paths."""
    fig = maps(field)
    paths = [out, out.with_suffix(".png"), out.with_suffix(".html")]
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as folder:
            parts = [Path(folder) / path.name for path in paths]
            dataset(field, lines, command).to_netcdf(parts[0], engine="h5netcdf", encoding=_encoding(field))
            parts[1].write_bytes(png(fig))
            parts[2].write_text(document(fig, field, lines), encoding="utf-8")
            for part, path in reversed(list(zip(parts, paths, strict=True))):  # the NetCDF last: it stands for the whole
                os.replace(part, path)
    except OSError as error:
        raise ValueError(f"--out '{out}' cannot be written ({error.strerror or error}); choose another place") from error
    return paths


# ---- NetCDF ----


def dataset(field: Field, lines: Sequence[tuple[str, str]], command: str) -> xarray.Dataset:
    """Mean, standard deviation and samples over the grid, the readings beside them, with the attributes of CF."""
    across, down = field.grid.names
    both, unit = (down, across), {"units": field.unit} if field.unit else {}
    at_points = unit | {"cell_methods": "area: point"}
    found = {
        "mean": (both, field.mean, at_points | {"long_name": f"{field.column}: mean given the readings", "ancillary_variables": "std"}),
        "std": (both, field.std, at_points | {"long_name": f"{field.column}: standard deviation", "comment": field.spread}),
    }
    coords = {name: (name, values, axis) for name, values, axis in _axes(field)}
    if field.samples is not None:
        title = f"{field.column}: fields drawn given the readings"
        found["samples"] = (("sample", *both), field.samples, at_points | {"long_name": title})
        coords["sample"] = ("sample", np.arange(len(field.samples), dtype=np.int32), {"standard_name": "realization", "units": "1"})
    for (name, _, axis), values in zip(reversed(_axes(field)), field.places.T, strict=True):
        words = {key: value for key, value in axis.items() if key != "axis"}
        coords[f"reading_{name}"] = ("reading", values, words | {"long_name": f"{name} of the reading"})
    found["reading_value"] = ("reading", field.values, unit | {"long_name": f"{field.column}: mean of the readings at a site"})
    found["reading_left_out"] = ("reading", field.left_out, unit | {"long_name": f"{field.column}: answer at the site without its reading"})
    about = {
        "Conventions": "CF-1.11",
        "title": f"{field.column} reconstructed from {len(field.values)} readings",
        "source": f"Sparse Fields Lab, method {field.method} ({field.why})",
        "history": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {command}",
        "comment": "\n".join(f"{heading}: {words}" for heading, words in lines),
    }
    made = xarray.Dataset(found, coords, about)
    if field.grid.written is None:
        return made
    x, y, columns, rows = field.grid.written
    made = made.isel({across: columns, down: rows})
    return made.assign_coords({across: (across, x, made[across].attrs), down: (down, y, made[down].attrs)})


def _axes(field: Field) -> list[tuple[str, np.ndarray, dict]]:
    """Rows, then columns: name, coordinates, attributes."""
    (across, down), grid = field.grid.names, field.grid
    if grid.geographic:
        return [(down, grid.y, AXES["lat"]), (across, grid.x, AXES["lon"])]
    words = zip((down, across), (grid.y, grid.x), "YX", field.units[::-1], strict=True)
    return [(n, v, dict(long_name=f"{n} coordinate", axis=a) | ({"units": u} if u else {})) for n, v, a, u in words]


def _encoding(field: Field) -> dict:
    """How the variables are stored; coordinates have no missing values by the conventions."""
    coordinates = [*field.grid.names, *(f"reading_{name}" for name in field.grid.names)]
    packed = {name: dict(zlib=True, complevel=4) for name in ("mean", "std")} | {name: dict(_FillValue=None) for name in coordinates}
    small = dict(zlib=True, complevel=4, dtype="float32", _FillValue=np.float32(np.nan))
    return packed if field.samples is None else packed | {"samples": small}


# ---- picture and page ----


def maps(field: Field) -> go.Figure:
    """Mean, standard deviation and one sample as maps, the readings as dots in the colours of their values."""
    panels = [("mean", field.mean, "field"), ("standard deviation", field.std, "std")]
    panels += [] if field.samples is None else [("one sample", field.samples[0], "field")]
    wide, high = _size(field)
    stacked = wide > 2 * high
    width = 420 if not stacked else 760
    tall = int(np.clip(width * high / wide, 160, 760))
    limits = _limits([a for _, a, kind in panels if kind == "field"] + [field.values])
    fig = figure(plot_bgcolor="#D8D8D8", showlegend=False, margin=dict(l=64, r=24, t=44, b=120))
    count, gap, foot = len(panels), 40, 150
    columns, rows = (1, count) if stacked else (count, 1)
    inner = columns * width + (columns - 1) * gap, rows * tall + (rows - 1) * foot
    fig.update_layout(width=inner[0] + 88, height=inner[1] + 164)
    for index, (title, values, kind) in enumerate(panels):
        left, top = (0, index * (tall + foot)) if stacked else (index * (width + gap), 0)
        box = (left / inner[0], (left + width) / inner[0], 1 - (top + tall) / inner[1], 1 - top / inner[1])
        _panel(fig, field, index, title, values, (kind, *(limits if kind == "field" else (0.0, _limits([values])[1]))), box, inner)
    return fig


def _panel(fig: go.Figure, field: Field, index: int, title: str, values: np.ndarray, scale: tuple, box: tuple, inner: tuple) -> None:
    """One map with its dots, axes, title and colour bar; box in fractions of the inner figure, which is `inner` pixels."""
    (kind, low, high), n, (across, down) = scale, "" if index == 0 else str(index + 1), field.grid.names
    unit = f" {field.unit}" * bool(field.unit)
    y, x, shown, std = _thinned(field, values)
    bar = dict(orientation="h", x=(box[0] + box[1]) / 2, y=box[2] - 58 / inner[1], yanchor="top", ypad=0, thickness=10, outlinewidth=0)
    bar |= dict(len=0.86 * (box[1] - box[0]), xanchor="center", nticks=6, tickangle=0, tickfont_size=11)
    paint = dict(colorscale=SCALES[kind], zmin=low, zmax=high, colorbar=bar)
    words = f"{across} %{{x:.4~g}}, {down} %{{y:.4~g}}<br>{title} %{{z:.4~g}}{unit}"
    beside = dict(customdata=std, hovertemplate=f"{words} ± %{{customdata:.2~g}}<extra></extra>") if title == "mean" else {}
    place = dict(xaxis=f"x{n}", yaxis=f"y{n}")
    fig.add_trace(go.Heatmap(x=x, y=y, z=shown, **place, **paint, **(dict(hovertemplate=f"{words}<extra></extra>") | beside)))
    fig.add_trace(_dots(field, scale, unit, n))
    top = dict(showline=False, showgrid=False, constrain="domain", ticklen=3, nticks=6)
    ratio = 1 / shortening(float(np.mean(field.grid.y))) if field.grid.geographic else 1.0
    fig.layout[f"xaxis{n}"] = top | dict(domain=box[:2], anchor=f"y{n}", range=_range(x), title_text=across)
    square = dict(scaleanchor=f"x{n}", scaleratio=ratio)
    fig.layout[f"yaxis{n}"] = top | square | dict(domain=box[2:], anchor=f"x{n}", range=_range(y), title_text=down if box[0] == 0 else "")
    note = dict(xref="paper", yref="paper", showarrow=False, xanchor="center")
    fig.add_annotation(text=title, x=bar["x"], y=box[3], yanchor="bottom", font_size=14, **note)
    fig.add_annotation(
        text=f"{field.column}{f' ({field.unit})' * bool(field.unit)}", x=bar["x"], y=bar["y"], yshift=-26, yanchor="top", **note
    )


def _dots(field: Field, scale: tuple, unit: str, n: str) -> go.Scatter:
    """The readings, coloured like the map where it shows values, else white."""
    kind, low, high = scale
    part = np.clip((field.values - low) / max(high - low, 1e-300), 0, 1)
    colours = sample_colorscale(SCALES["field"], part.tolist()) if kind == "field" else "white"
    words = [f"reading {v:.5g}{unit}<br>without it {w:.4g}{unit}" for v, w in zip(field.values, field.left_out, strict=True)]
    size = 8 if len(words) <= 200 else 4
    look = dict(marker=dict(size=size, color=colours, line=dict(color="black", width=1)), hovertext=words, hoverinfo="text")
    return go.Scatter(x=field.places[:, 0], y=field.places[:, 1], mode="markers", xaxis=f"x{n}", yaxis=f"y{n}", **look)


def document(fig: go.Figure, field: Field, lines: Sequence[tuple[str, str]]) -> str:
    """The figure and what was done, on one page that needs no network."""
    rows = "".join(f"<tr><th>{html.escape(heading)}</th><td>{html.escape(words)}</td></tr>" for heading, words in lines)
    title = html.escape(f"{field.column} from {len(field.values)} readings")
    plot = fig.to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False})
    return (
        f"<!DOCTYPE html><html lang=en><head><meta charset=utf-8><title>{title}</title>"
        f"<style>{page.STYLE}main{{max-width:none}}</style></head>"
        f"<body><main><h1>{title}</h1><table>{rows}</table><div class=scroll>{plot}</div></main></body></html>"
    )


def _thinned(field: Field, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """y rising, x, a map and the standard deviation in float32, at most MOST_SHOWN nodes."""
    step = max(1, int(np.ceil(np.sqrt(values.size / MOST_SHOWN))))
    up = slice(None, None, -step) if field.grid.y[0] > field.grid.y[-1] else slice(None, None, step)
    return field.grid.y[up], field.grid.x[::step], np.float32(values[up, ::step]), np.float32(field.std[up, ::step])


def _size(field: Field) -> tuple[float, float]:
    """Width and height of the map in one unit."""
    wide, high = float(np.ptp(field.grid.x)), float(np.ptp(field.grid.y))
    return (wide * shortening(float(np.mean(field.grid.y))) if field.grid.geographic else wide), high


def _range(nodes: np.ndarray) -> list[float]:
    """From half a step before the first node to half a step behind the last."""
    return [float(1.5 * nodes[0] - 0.5 * nodes[1]), float(1.5 * nodes[-1] - 0.5 * nodes[-2])]


def _limits(arrays: list[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([a[np.isfinite(a)] for a in arrays])
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    return low, high if high > low else low + max(abs(low), 1.0) * 1e-3
