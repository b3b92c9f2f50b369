"""Arrays in, plotly figures out: maps of fields, curves with intervals, bars, waterfalls, spectra, tables as heat maps.

One colour per version and per method, the same in every figure. Versions have strong colours and solid lines, methods muted colours and
dashed lines, so that a learned model is never mistaken for a classical one; within each group any two colours stay apart for readers
with protanopia, deuteranopia and tritanopia (the first six are those of Okabe and Ito, Color Universal Design, 2008).
The paper is white in a dark theme too: a card, as in the PNG beside it.
"""

# ruff: noqa: C408 - options of plotly read as keyword arguments

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import plotly.graph_objects as go
from plotly.colors import diverging, sequential

VERSIONS = {
    "v1-mamba": "#D55E00",
    "v2-transformer": "#0072B2",
    "v2-fixed": "#56B4E9",
    "v2-bimamba": "#E69F00",
    "v3-morton": "#CC79A7",
    "v4-transformer": "#009E73",
    "v1-large": "#7A0B3B",
    "v5": "#5A03ED",
}
METHODS = {
    "constant": "#B79F89",
    "nearest": "#6D5E50",
    "linear": "#A17638",
    "thin_plate": "#4D8E9C",
    "gp": "#264785",
    "oi": "#653112",
    "pod": "#B1BAF9",
    "biharmonic": "#7AD4C7",
    "oracle": "#3B3533",
    "convcnp": "#575A68",
}
COLOURS = VERSIONS | METHODS
WIDTH = 840  # fits beside the file list of a JupyterLab window of 1280 pixels
INK, FAINT = "#2A2A2A", "#E4E4E4"
FONT = "Open Sans, Helvetica, Arial, sans-serif"
SCALES = {"field": sequential.Viridis, "error": diverging.RdBu_r, "std": sequential.Purples}
SCALE_TITLES = {"field": "value", "error": "answer - truth", "std": "standard deviation"}
_AXIS = dict(showline=True, linecolor=INK, ticks="outside", tickcolor=INK, ticklen=4, gridcolor=FAINT, zeroline=False)
_AXIS |= dict(title=dict(standoff=8, font_size=13), automargin=True)
TEMPLATE = go.layout.Template(
    layout=dict(
        font=dict(family=FONT, size=13, color=INK),
        title=dict(x=0.0, xanchor="left", xref="container", pad=dict(l=14), font_size=15),
        paper_bgcolor="white",
        plot_bgcolor="white",
        colorway=list(VERSIONS.values()),
        xaxis=_AXIS,
        yaxis=_AXIS,
        legend=dict(bgcolor="rgba(255,255,255,0)", font_size=12, tracegroupgap=0),
        margin=dict(l=70, r=20, t=48, b=56),
        hoverlabel=dict(font_family=FONT),
        bargap=0.25,
    )
)


def figure(traces=(), width: int = WIDTH, height: int = 380, title: str = "", **layout) -> go.Figure:
    """A figure in the lab's template; `layout` holds plotly layout entries."""
    top = {} if title or "margin" in layout else {"margin_t": 24}
    return go.Figure(list(traces), go.Layout(template=TEMPLATE, width=width, height=height, title_text=title, **top, **layout))


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour per name: the fixed one of a version or method, else the next one that nobody in this figure has."""
    taken = {COLOURS[n] for n in names if n in COLOURS}
    spare = cycle([c for c in VERSIONS.values() if c not in taken] or list(VERSIONS.values()))
    return {n: COLOURS[n] if n in COLOURS else next(spare) for n in names}


def field_maps(
    images: Mapping, sensors=None, low=None, high=None, columns: int = 4, kinds: Mapping | None = None, unit: str = ""
) -> go.Figure:
    """A grid of maps on [-1, 1]^2 with y downwards: (H, W) as colours, (H, W, 3) in [0, 1] as a picture; NaN stays grey.

    sensors: (n, 2) sites for all maps, or a dict title -> sites. kinds: title -> "field", "error" (diverging around 0) or "std" (from 0);
    the maps of one kind share one colour scale and one colour bar. low, high: limits of the kind "field", measured where not given.
    """
    arrays = {title: _image(title, image) for title, image in images.items()}
    kinds = {title: (kinds or {}).get(title, "field") for title in arrays}
    limits = {kind: _limits(kind, [a for t, a in arrays.items() if kinds[t] == kind and a.ndim == 2], low, high) for kind in SCALES}
    grid = _Grid(len(arrays), columns, next(iter(arrays.values())).shape, any(a.ndim == 2 for a in arrays.values()))
    traces, axes, notes = [], {}, []
    for index, (title, a) in enumerate(arrays.items()):
        sites = sensors.get(title) if isinstance(sensors, Mapping) else sensors
        traces += [_panel(a, kinds[title], limits[kinds[title]], index), _markers(sites, index)]
        axes |= _axes(grid, index, a.shape, len(arrays))
        notes.append(_title(grid, index, title))
    shown = {kind: [i for i, t in enumerate(arrays) if kinds[t] == kind and arrays[t].ndim == 2] for kind in SCALES}
    for kind, centre, length in grid.bars({kind: panels for kind, panels in shown.items() if panels}):
        bar = dict(orientation="h", x=centre, y=-grid.drop, len=length, xanchor="center", yanchor="top", ypad=0, thickness=10)
        traces[2 * shown[kind][0]] |= dict(showscale=True, colorbar=bar | dict(outlinewidth=0, tickfont_size=11, nticks=6))
        words = SCALE_TITLES[kind] + (f" ({unit})" if unit else "")
        notes.append(dict(text=words, x=centre, y=-grid.drop, yanchor="top", yshift=-28, font_size=12) | _CENTRED)
    return figure(traces, height=grid.height, plot_bgcolor="#D8D8D8", showlegend=False, margin=grid.margin, annotations=notes, **axes)


def curves(
    series: Mapping, x_title: str, y_title: str, log_x=False, log_y=False, title: str = "", levels: Mapping | None = None
) -> go.Figure:
    """Lines by name: (x, y), or (x, y, low, high) with the interval as a band. levels: name -> height of a dotted reference line."""
    fig = figure(title=title, hovermode="x unified")
    for (name, values), colour in zip(series.items(), colours(list(series)).values(), strict=True):
        if len(values) not in (2, 4):
            raise ValueError(f"curve '{name}' has {len(values)} arrays; give (x, y) or (x, y, low, high)")
        x, y, *interval = (_vector(name, v) for v in values)
        if interval:
            around = dict(x=np.concatenate([x, x[::-1]]), y=np.concatenate([interval[1], interval[0][::-1]]))
            band = dict(fill="toself", fillcolor=_faded(colour), line_width=0, mode="lines", showlegend=False, hoverinfo="skip")
            fig.add_trace(go.Scatter(**around, **band, name=name, legendgroup=name))
        line = dict(color=colour, width=2, dash="dash" if name in METHODS else "solid")
        mode = "lines+markers" if len(x) <= 16 else "lines"
        fig.add_trace(go.Scatter(x=x, y=y, mode=mode, line=line, marker_size=6, name=name, legendgroup=name))
    fig.update_xaxes(title_text=x_title, **(_log_axis([v[0] for v in series.values()]) if log_x else {}))
    fig.update_yaxes(title_text=y_title, **(_log_axis([a for v in series.values() for a in v[1:]]) if log_y else {}))
    _levels(fig, levels, log_y)
    fig.layout.showlegend = len(series) > 1
    return fig


def bars(values: Mapping, y_title: str, x_title: str = "", title: str = "", horizontal=False, levels: Mapping | None = None) -> go.Figure:
    """Bars by name: value or (value, low, high). A dict of dicts gives groups: values[group][name], one colour per name."""
    grouped = any(isinstance(v, Mapping) for v in values.values())
    groups = {str(g): dict(row) for g, row in values.items()} if grouped else {}
    names = list(dict.fromkeys(n for row in groups.values() for n in row)) if grouped else list(values)
    colour = colours(names)
    fig = figure(title=title, barmode="group", showlegend=grouped)
    rows = [(n, list(groups), [row.get(n) for row in groups.values()], colour[n]) for n in names]
    if not grouped:
        rows = [("", names, list(values.values()), [colour[n] for n in names])]
    for name, labels, entries, fill in rows:
        value, below, above = np.array([_interval(entry) for entry in entries]).T
        along, across = ("x", "y") if horizontal else ("y", "x")
        whisker = dict(
            type="data", array=above, arrayminus=below, color=INK, thickness=1.2, width=4, visible=bool(np.any(above + below > 0))
        )
        texts = [] if grouped or whisker["visible"] else ["" if math.isnan(v) else f"{v:.3g}" for v in value]
        data = {across: labels, along: value, f"error_{along}": whisker, "orientation": "h" if horizontal else "v"}
        fig.add_trace(go.Bar(**data, name=name, marker_color=fill, text=texts or None, textposition="outside", cliponaxis=False))
    fig.update_layout(**{f"{along}axis_title_text": y_title, f"{across}axis_title_text": x_title, f"{across}axis_ticks": ""})
    fig.update_layout(yaxis_autorange="reversed") if horizontal else _levels(fig, levels, False)
    return fig


def waterfall(steps: Sequence[tuple[str, float]], y_title: str, total: str = "together", title: str = "") -> go.Figure:
    """The first step's value, what each further step adds or takes, and the sum as the last bar."""
    names, values = [n for n, _ in steps], [float(v) for _, v in steps]
    measure = ["absolute"] + ["relative"] * (len(values) - 1) + ["total"]
    texts = [f"{values[0]:.3g}"] + [f"{v:+.3g}" for v in values[1:]] + [f"{sum(values):.3g}"]
    paint = dict(increasing=dict(marker_color="#009E73"), decreasing=dict(marker_color="#D55E00"), totals=dict(marker_color="#575A68"))
    trace = go.Waterfall(
        x=[*names, total], y=[*values, 0.0], measure=measure, text=texts, textposition="outside", cliponaxis=False, **paint
    )
    trace.connector.line.update(color=INK, width=1)
    fig = figure([trace], title=title, showlegend=False)
    return fig.update_xaxes(ticks="").update_yaxes(title_text=y_title)


def matrix(values, rows: Sequence[str], columns: Sequence[str], unit: str, digits: int = 1, title: str = "", centre: float | None = None):
    """A table of numbers as a heat map (rows, columns); centre: the value that is neither good nor bad, for differences."""
    values = np.asarray(values, float)
    span = np.nanmax(np.abs(values - (centre or 0.0)), initial=1e-12)
    scale = dict(colorscale=SCALES["field"]) if centre is None else dict(colorscale=SCALES["error"], zmin=centre - span, zmax=centre + span)
    words = [["" if math.isnan(v) else f"{v:.{digits}f}" for v in row] for row in values]
    heat = go.Heatmap(z=values, x=list(columns), y=list(rows), text=words, texttemplate="%{text}", xgap=2, ygap=2, **scale)
    heat.colorbar.update(title_text=unit, thickness=12, outlinewidth=0)
    fig = figure([heat], title=title, height=100 + 30 * len(rows), margin_b=44)
    fig.update_xaxes(showline=False, ticks="", showgrid=False)
    return fig.update_yaxes(showline=False, ticks="", showgrid=False, autorange="reversed")


def beside(left: go.Figure, right: go.Figure, gap: float = 0.1) -> go.Figure:
    """Two figures with one pair of axes each as one figure of two panels."""
    fig = figure(height=max(left.layout.height, right.layout.height), showlegend=True, hovermode="closest")
    for index, (part, domain) in enumerate(((left, [0, (1 - gap) / 2]), (right, [(1 + gap) / 2, 1]))):
        n = str(index + 1) if index else ""
        for trace in part.data:
            fig.add_trace(trace)
            fig.data[-1].update(xaxis=f"x{n}", yaxis=f"y{n}", legendgroup=f"{n}{trace.legendgroup or trace.name}")
        fig.layout[f"xaxis{n}"] = part.layout.xaxis.to_plotly_json() | dict(domain=domain, anchor=f"y{n}")
        fig.layout[f"yaxis{n}"] = part.layout.yaxis.to_plotly_json() | dict(anchor=f"x{n}")
        for item in (*part.layout.shapes, *part.layout.annotations):
            item.update(xref=f"x{n} domain" if item.xref == "paper" else f"x{n}", yref=f"y{n} domain" if item.yref == "paper" else f"y{n}")
        fig.layout.shapes += part.layout.shapes
        fig.layout.annotations += part.layout.annotations
    return fig


def spectrum(fields: Mapping, title: str = "") -> go.Figure:
    """Mean power per ring of wave numbers, of fields (H, W) or (n, H, W) by name; a Hann window keeps the edges from leaking."""
    return curves({n: _rings(n, f) for n, f in fields.items()}, "cycles per domain", "power (value²)", log_x=True, log_y=True, title=title)


class _Grid:
    """Where the panels of field_maps lie, in fractions of the inner figure; sizes are pixels, so that the maps' pixels come out square."""

    def __init__(self, count: int, columns: int, shape: tuple[int, ...], scale: bool, width: int = WIDTH):
        self.columns, self.margin = max(1, min(columns, count)), dict(l=58, r=16, t=34, b=104 if scale else 52)
        rows, gap, head, inner = math.ceil(count / self.columns), 16, 34, width - 58 - 16
        w = min((inner - gap * (self.columns - 1)) / self.columns, 330)
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


def _title(grid: _Grid, index: int, title: str) -> dict:
    (x0, x1), (_, top) = grid.domain(index)
    return dict(text=title, x=(x0 + x1) / 2, y=top, yanchor="bottom", font_size=13) | _CENTRED


def _limits(kind: str, arrays: list[np.ndarray], low, high) -> tuple[float, float]:
    """One colour scale for a kind: symmetric for errors, from zero for deviations, as given or measured for fields."""
    values = np.concatenate([a[np.isfinite(a)] for a in arrays] or [np.zeros(0)])
    bottom, top = (values.min(), values.max()) if values.size else (0.0, 1.0)
    if kind == "error":
        return (-max(abs(bottom), abs(top), 1e-12), max(abs(bottom), abs(top), 1e-12))
    if kind == "std":
        return (0.0, max(top, 1e-12))
    return (float(bottom if low is None else low), float(top if high is None else high))


def _rings(name: str, fields) -> tuple[np.ndarray, np.ndarray]:
    """Wave numbers 1 ... half the grid and the mean power of |F|^2 at round(|k|)."""
    a = array(fields)
    if a.ndim not in (2, 3):
        raise ValueError(f"'{name}' has shape {a.shape}; a spectrum needs (H, W) or (n, H, W)")
    a = a.reshape(-1, *a.shape[-2:])
    a = np.nan_to_num(a - np.nanmean(a, axis=(1, 2), keepdims=True))
    window = np.outer(np.hanning(a.shape[1] + 2)[1:-1], np.hanning(a.shape[2] + 2)[1:-1])
    power = (np.abs(np.fft.fft2(a * window)) ** 2).mean(0) / (window**2).sum() / window.size
    ky, kx = (np.fft.fftfreq(n, 1 / n) for n in a.shape[1:])
    ring = np.hypot(ky[:, None], kx[None, :]).round().astype(int)
    top = min(a.shape[1:]) // 2
    count = np.bincount(ring.ravel())[1 : top + 1]
    return np.arange(1, top + 1), np.bincount(ring.ravel(), power.ravel())[1 : top + 1] / count


def _log_axis(values: Sequence) -> dict:
    """Ticks of a logarithmic axis in plain numbers: the values themselves where they are few, else 1, 2, 5 or whole powers of ten."""
    v = np.unique(np.concatenate([array(a).ravel() for a in values]))
    v = v[np.isfinite(v) & (v > 0)]
    if not v.size:
        raise ValueError("a logarithmic axis needs positive values; none were given")
    powers = np.arange(math.floor(math.log10(v[0])), math.ceil(math.log10(v[-1])) + 1)
    ticks = v if v.size <= 8 and np.all(v[1:] > 1.3 * v[:-1]) else np.outer(10.0**powers, (1, 2, 5) if len(powers) <= 4 else (1,)).ravel()
    inside = ticks[(ticks >= v[0] / 1.5) & (ticks <= v[-1] * 1.5)]
    return dict(type="log", tickvals=inside, ticktext=[f"{t:.4g}" for t in inside])


def _levels(fig: go.Figure, levels: Mapping | None, log: bool) -> None:
    """Dotted reference lines with their name at the right end."""
    for name, height in (levels or {}).items():
        colour, y = COLOURS.get(name, INK), math.log10(height) if log else height
        fig.add_shape(type="line", xref="paper", x0=0, x1=1, y0=height, y1=height, line=dict(color=colour, width=1.5, dash="dot"))
        words = dict(text=f"{name} {height:.3g}", font_size=12, showarrow=False, bgcolor="rgba(255,255,255,0.75)", borderpad=1)
        fig.add_annotation(xref="paper", x=1, y=y, xanchor="right", yanchor="bottom", **words)


def _interval(entry) -> tuple[float, float, float]:
    """(value, distance below, distance above) of a bar; nothing for a missing one."""
    if entry is None:
        return (math.nan, 0.0, 0.0)
    value, low, high = (float(v) for v in entry) if isinstance(entry, tuple | list) else (float(entry),) * 3
    return (value, value - low, high - value)


def _faded(colour: str) -> str:
    return f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.18)"


def array(values) -> np.ndarray:
    """A float array on the CPU from a tensor, an array or a list."""
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    return np.asarray(values, dtype=float)


def _vector(name: str, values) -> np.ndarray:
    a = array(values)
    if a.ndim != 1:
        raise ValueError(f"curve '{name}' has an array of shape {a.shape}; a curve needs one axis")
    return a


def _image(title: str, image) -> np.ndarray:
    """(H, W) or (H, W, 3) for a panel; one channel is taken off."""
    a = array(image)
    a = a[..., 0] if a.ndim == 3 and a.shape[-1] == 1 else a
    if a.ndim not in (2, 3) or (a.ndim == 3 and a.shape[-1] != 3):
        raise ValueError(f"map '{title}' has shape {a.shape}; a map is (H, W) or (H, W, 3)")
    return a
