"""Maps of fields on [-1, 1]^2 in a grid of panels, with readings as dots and one colour scale for all maps of a kind."""

# ruff: noqa: C408 - options of plotly read as keyword arguments

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from lib.theme import SCALE_TITLES, SCALES, WIDTH, array, figure

LETTER = 7.0  # pixels of a letter of a title, on average


def field_maps(
    images: Mapping, sensors=None, low=None, high=None, columns: int = 4, kinds: Mapping | None = None, unit: str = ""
) -> go.Figure:
    """A grid of maps on [-1, 1]^2 with y downwards: (H, W) as colours, (H, W, 3) in [0, 1] as a picture; NaN stays grey.

    sensors: (n, 2) sites for all maps, or a dict title -> sites. kinds: title -> "field", "error" (diverging around 0) or "std" (from 0);
    the maps of one kind share one colour scale and one colour bar. low, high: limits of the kind "field", measured where not given.
    """
    arrays = {title: _image(title, image) for title, image in images.items()}
    if not arrays or not set((kinds or {}).values()) <= set(SCALES):
        given = sorted({str(kind) for kind in (kinds or {}).values()})
        raise ValueError(f"{len(arrays)} maps of kinds {given}; give at least one map, of the kinds {', '.join(SCALES)}")
    kinds = {title: (kinds or {}).get(title, "field") for title in arrays}
    limits = {kind: _limits(kind, [a for t, a in arrays.items() if kinds[t] == kind and a.ndim == 2], low, high) for kind in SCALES}
    grid = _Grid(list(arrays), columns, next(iter(arrays.values())).shape, any(a.ndim == 2 for a in arrays.values()))
    traces, axes, notes = [], {}, []
    for index, (title, a) in enumerate(arrays.items()):
        sites = sensors.get(title) if isinstance(sensors, Mapping) else sensors
        traces += [_panel(a, kinds[title], limits[kinds[title]], index), _markers(sites, index)]
        axes |= _axes(grid, index, a.shape, len(arrays))
        notes.append(_title(grid, index))
    shown = {kind: [i for i, t in enumerate(arrays) if kinds[t] == kind and arrays[t].ndim == 2] for kind in SCALES}
    for kind, centre, length in grid.bars({kind: panels for kind, panels in shown.items() if panels}):
        bar = dict(orientation="h", x=centre, y=-grid.drop, len=length, xanchor="center", yanchor="top", ypad=0, thickness=10)
        bar |= dict(outlinewidth=0, tickfont_size=11, tickangle=0, nticks=4 if length < 0.3 else 7)
        known = any(np.isfinite(traces[2 * i]["z"]).any() for i in shown[kind])
        traces[2 * shown[kind][0]] |= dict(showscale=known, colorbar=bar)
        words = SCALE_TITLES[kind] + (f" ({unit})" if unit else "") if known else ""
        notes.append(dict(text=words, x=centre, y=-grid.drop, yanchor="top", yshift=-28, font_size=12) | _CENTRED)
    return figure(traces, height=grid.height, plot_bgcolor="#D8D8D8", showlegend=False, margin=grid.margin, annotations=notes, **axes)


class _Grid:
    """Where the panels of field_maps lie, in fractions of the inner figure; sizes are pixels, so that the maps' pixels come out square."""

    def __init__(self, titles: list[str], columns: int, shape: tuple[int, ...], scale: bool, width: int = WIDTH):
        self.columns, gap, inner = max(1, min(columns, len(titles))), 16, width - 58 - 16
        rows, w = math.ceil(len(titles) / self.columns), min((inner - gap * (self.columns - 1)) / self.columns, 330)
        titles = [t.replace(" dB", "\N{NO-BREAK SPACE}dB") for t in titles]
        self.titles = ["<br>".join(part for line in t.split("<br>") for part in textwrap.wrap(line, int(w / LETTER))) for t in titles]
        head = 16 + 18 * max(1 + t.count("<br>") for t in self.titles)
        self.margin = dict(l=58, r=16, t=head, b=104 if scale else 52)
        total = rows * w * shape[0] / shape[1] + (rows - 1) * head
        self.height = round(total + self.margin["t"] + self.margin["b"])
        self.w, self.h = w / inner, (total - (rows - 1) * head) / rows / total
        self.across, self.down = (w + gap) / inner, self.h + head / total
        self.drop = 44 / total

    def domain(self, index: int) -> tuple[list[float], list[float]]:
        row, column = divmod(index, self.columns)
        x, top = column * self.across, 1 - row * self.down
        return [x, min(1.0, x + self.w)], [max(0.0, top - self.h), top]

    def bars(self, shown: Mapping[str, list[int]]):
        """Centre and length of each kind's colour bar: below the kind's columns, or side by side where kinds share a column."""
        columns = {kind: {i % self.columns for i in panels} for kind, panels in shown.items()}
        apart = sum(map(len, columns.values())) == len(set().union(*columns.values()))
        end = self.domain(self.columns - 1)[0][1]
        for slot, (kind, own) in enumerate(columns.items()):
            start, stop = (min(own) * self.across, max(own) * self.across + self.w) if apart else (slot * end / 3, (slot + 1) * end / 3)
            yield kind, (start + stop) / 2, min(stop - start, 1.6 * self.w) * 0.9


_CENTRED = dict(xref="paper", yref="paper", xanchor="center", showarrow=False)


def _panel(image: np.ndarray, kind: str, limits: tuple[float, float], index: int) -> dict:
    h, w = image.shape[:2]
    place = dict(xaxis=f"x{index + 1}", yaxis=f"y{index + 1}", x0=-1.0, y0=-1.0, dx=2 / max(w - 1, 1), dy=2 / max(h - 1, 1))
    if image.ndim == 3:
        return dict(type="image", z=np.uint8(np.clip(np.nan_to_num(image), 0, 1) * 255 + 0.5), **place)
    words = "s₁ %{x:.2f}, s₂ %{y:.2f}: %{z:.3g}<extra></extra>"
    scale = dict(zmin=limits[0], zmax=limits[1], colorscale=SCALES[kind], showscale=False)
    return dict(type="heatmap", z=np.float32(image), hovertemplate=words, **scale, **place)


def _markers(sites, index: int) -> dict:
    sites = np.zeros((0, 2)) if sites is None else array(sites)
    dot = dict(size=5, color="white", line=dict(color="black", width=1))
    place = dict(xaxis=f"x{index + 1}", yaxis=f"y{index + 1}", x=np.float32(sites[:, 0]), y=np.float32(sites[:, 1]))
    return dict(type="scatter", mode="markers", marker=dot, hoverinfo="skip", showlegend=False, **place)


def _axes(grid: _Grid, index: int, shape: tuple[int, ...], count: int) -> dict:
    """Axes of one panel: s2 grows downwards, half a pixel of room around the outer nodes, numbers on the outer panels only."""
    across, up = grid.domain(index)
    rx, ry = (1 + 1 / max(n - 1, 1) for n in (shape[1], shape[0]))
    first, last, n = index % grid.columns == 0, index + grid.columns >= count, index + 1
    look = dict(tickvals=[-1, 0, 1], showline=False, showgrid=False, ticklen=3, constrain="domain", title_standoff=2)
    square = dict(scaleanchor=f"x{n}", scaleratio=(shape[0] - 1) / max(shape[1] - 1, 1))
    x = dict(domain=across, anchor=f"y{n}", range=[-rx, rx], showticklabels=last, title_text="s₁" if last else "", **look)
    y = dict(domain=up, anchor=f"x{n}", range=[ry, -ry], showticklabels=first, title_text="s₂" if first else "", **square, **look)
    return {f"xaxis{n}": x, f"yaxis{n}": y}


def _title(grid: _Grid, index: int) -> dict:
    (x0, x1), (_, top) = grid.domain(index)
    return dict(text=grid.titles[index], x=(x0 + x1) / 2, y=top, yanchor="bottom", font_size=13) | _CENTRED


def _limits(kind: str, arrays: list[np.ndarray], low, high) -> tuple[float, float]:
    """One colour scale for a kind: symmetric for errors, from zero for deviations, as given or measured for fields."""
    values = np.concatenate([a[np.isfinite(a)] for a in arrays] or [np.zeros(0)])
    bottom, top = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if kind == "error":
        return (-max(abs(bottom), abs(top), 1e-12), max(abs(bottom), abs(top), 1e-12))
    if kind == "std":
        return (0.0, max(top, 1e-12))
    return (float(bottom if low is None else low), float(top if high is None else high))


def _image(title: str, image) -> np.ndarray:
    """(H, W) or (H, W, 3) for a panel; one channel is taken off."""
    a = array(image)
    a = a[..., 0] if a.ndim == 3 and a.shape[-1] == 1 else a
    if a.ndim not in (2, 3) or (a.ndim == 3 and a.shape[-1] != 3):
        raise ValueError(f"map '{title}' has shape {a.shape}; a map is (H, W) or (H, W, 3)")
    return a
