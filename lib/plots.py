"""Arrays in, plotly figures out: curves with intervals, bars, waterfalls, spectra, tables as heat maps.

A figure carries one message; axes have titles with units; a name has the colour of lib/theme.py wherever it appears. Maps of fields are
in lib/maps.py and are called from here, as plots.field_maps.
"""

# ruff: noqa: C408 - options of plotly read as keyword arguments

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from lib.maps import field_maps
from lib.theme import COLOURS, INK, METHODS, SCALES, WIDTH, array, colours, figure

__all__ = [
    "COLOURS",
    "INK",
    "WIDTH",
    "above",
    "array",
    "bars",
    "beside",
    "colours",
    "curves",
    "field_maps",
    "figure",
    "matrix",
    "promised",
    "spectrum",
    "waterfall",
]


DASHES = ("solid", "dot", "dashdot", "longdash")  # of lines that must share a colour; methods are "dash"


def curves(
    series: Mapping, x_title: str, y_title: str, log_x=False, log_y=False, title: str = "", levels: Mapping | None = None
) -> go.Figure:
    """Lines by name: (x, y), or (x, y, low, high) with the interval as a band. levels: name -> height of a dotted reference line."""
    fig = figure(title=title, hovermode="x unified")
    used = Counter()
    for (name, values), colour in zip(series.items(), colours(list(series)).values(), strict=True):
        if len(values) not in (2, 4):
            raise ValueError(f"curve '{name}' has {len(values)} arrays; give (x, y) or (x, y, low, high)")
        x, y, *interval = (_vector(name, v) for v in values)
        if interval:
            around = dict(x=np.concatenate([x, x[::-1]]), y=np.concatenate([interval[1], interval[0][::-1]]))
            band = dict(fill="toself", fillcolor=_faded(colour), line_width=0, mode="lines", showlegend=False, hoverinfo="skip")
            fig.add_trace(go.Scatter(**around, **band, name=name, legendgroup=name))
        line = dict(color=colour, width=2, dash="dash" if name in METHODS else DASHES[used[colour] % len(DASHES)])
        used[colour] += 1
        mode = "lines+markers" if len(x) <= 12 else "lines"
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


def beside(left: go.Figure, right: go.Figure, gap: float = 0.14) -> go.Figure:
    """Two figures with one pair of axes each as one figure of two panels."""
    below = dict(orientation="h", x=0, y=-0.2, yanchor="top")
    height = max(left.layout.height, right.layout.height)
    fig = figure(height=height, showlegend=True, hovermode="closest", legend=below, margin=dict(t=24, b=100))
    for index, (part, domain) in enumerate(((left, [0, (1 - gap) / 2]), (right, [(1 + gap) / 2, 1]))):
        n = str(index + 1) if index else ""
        for trace in part.data:
            fig.add_trace(trace)
            fig.data[-1].update(xaxis=f"x{n}", yaxis=f"y{n}", legendgroup=f"{n}{trace.legendgroup or trace.name}")
        fig.layout[f"xaxis{n}"] = part.layout.xaxis.to_plotly_json() | dict(domain=domain, anchor=f"y{n}")
        fig.layout[f"yaxis{n}"] = part.layout.yaxis.to_plotly_json() | dict(anchor=f"x{n}")
        for item in (*part.layout.shapes, *part.layout.annotations):
            for d in "xy":
                ref = item[f"{d}ref"] or d
                item[f"{d}ref"] = f"{d}{n} domain" if ref == "paper" else ref.replace(d, f"{d}{n}", 1)
        fig.layout.shapes += part.layout.shapes
        fig.layout.annotations += part.layout.annotations
    return fig


def above(top: go.Figure, bottom: go.Figure, height: int = 170) -> go.Figure:
    """A figure of any panels above one of a single pair of axes, which gets `height` pixels; the panels keep their size."""
    edge, foot = top.layout.margin, bottom.layout.margin.b or bottom.layout.template.layout.margin.b
    inner, n = top.layout.height - edge.t - edge.b, 1 + len({trace.xaxis for trace in top.data})
    total = inner + edge.b + height
    fig = go.Figure(top)
    fig.update_layout(height=edge.t + total + foot, margin_b=foot)
    for axis in fig.select_yaxes():
        axis.domain = [1 - (1 - y) * inner / total for y in axis.domain]
    for note in fig.layout.annotations:
        note.y = 1 - (1 - note.y) * inner / total
    for trace in fig.data:
        if "colorbar" in trace and trace.colorbar.y is not None:
            trace.colorbar.y = 1 - (1 - trace.colorbar.y) * inner / total
    for trace in bottom.data:
        fig.add_trace(trace)
        fig.data[-1].update(xaxis=f"x{n}", yaxis=f"y{n}")
    fig.layout[f"xaxis{n}"] = bottom.layout.xaxis.to_plotly_json() | dict(anchor=f"y{n}")
    fig.layout[f"yaxis{n}"] = bottom.layout.yaxis.to_plotly_json() | dict(domain=[0, height / total], anchor=f"x{n}")
    return fig


def spectrum(fields: Mapping, title: str = "") -> go.Figure:
    """Mean power per ring of wave numbers, of fields (H, W) or (n, H, W) by name; a Hann window keeps the edges from leaking."""
    return curves({n: _rings(n, f) for n, f in fields.items()}, "cycles per domain", "power (value²)", log_x=True, log_y=True, title=title)


VERDICTS = {  # colour and symbol of what was measured
    "confirmed": ("#009E73", "circle"),
    "partly": ("#E69F00", "diamond"),
    "refuted": ("#D55E00", "square"),
    "not testable here": ("#8A8A8A", "x"),
}


def promised(rows: Sequence[Mapping], unit: str = "dB", log_x=False, title: str = "") -> go.Figure:
    """One line per claim: the promised range as a bar, what was measured as a mark with its interval, coloured by verdict.

    rows: claim, verdict, low, high, value, value_low, value_high, None where there is none (lib/claims.py, table); an open end of a range
    reaches to the end of the figure. Rows without a promised number are left out.
    """
    rows = [row for row in rows if row["low"] is not None or row["high"] is not None]
    legend = dict(orientation="h", x=0, y=1.0, yanchor="bottom")
    fig = figure(title=title, height=110 + 21 * max(len(rows), 2), legend=legend, margin=dict(t=44))
    if not rows:
        nothing = dict(text="none of these claims promises a number in this unit", showarrow=False)
        return fig.add_annotation(**nothing, x=0.5, y=0.5, xref="paper", yref="paper")
    ends = [row[name] for row in rows for name in ("low", "high", "value", "value_low", "value_high") if row[name] is not None]
    least, most = min(ends), max(ends)
    thick = dict(width=9, color="rgba(87,90,104,0.35)")
    for row in rows:  # a trace each: gaps in one line would be numbers that JSON lacks
        x = [least if row["low"] is None else row["low"], most if row["high"] is None else row["high"]]
        first = row is rows[0]
        fig.add_scatter(x=x, y=[row["claim"]] * 2, mode="lines", line=thick, name="promised", legendgroup="promised", showlegend=first)
    for verdict, (colour, symbol) in VERDICTS.items():
        some = [row for row in rows if row["verdict"] == verdict and row["value"] is not None]
        if some:
            low, high = ([abs(row[n] - row["value"]) if row[n] is not None else 0.0 for row in some] for n in ("value_low", "value_high"))
            whisker = dict(type="data", array=high, arrayminus=low, color=colour, thickness=1.5, width=4)
            at = dict(x=[row["value"] for row in some], y=[row["claim"] for row in some], error_x=whisker)
            fig.add_scatter(**at, mode="markers", marker=dict(color=colour, symbol=symbol, size=9), name=f"measured: {verdict}")
    fig.update_xaxes(title_text=unit, **(_log_axis([ends]) if log_x else {}))
    return fig.update_yaxes(autorange="reversed", showgrid=True, ticks="", type="category")


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
    ticks = v if v.size <= 8 and np.all(v[1:] > 1.3 * v[:-1]) else np.outer(10.0**powers, (1, 2, 5) if len(powers) <= 3 else (1,)).ravel()
    inside = ticks[(ticks >= v[0] / 1.5) & (ticks <= v[-1] * 1.5)]
    return dict(type="log", tickvals=inside, ticktext=[f"{t:,.0f}" if 1e4 <= t < 1e7 else f"{t:.4g}" for t in inside])


def _levels(fig: go.Figure, levels: Mapping | None, log: bool) -> None:
    """Dotted reference lines with their name at the right end."""
    for name, height in (levels or {}).items():
        colour, y = COLOURS.get(name, INK), math.log10(height) if log else height
        fig.add_shape(type="line", xref="paper", x0=0, x1=1, y0=height, y1=height, line=dict(color=colour, width=1.5, dash="dot"))
        words = dict(text=f"{name} {height:.3g}", font_size=12, showarrow=False, bgcolor="rgba(255,255,255,0.75)", borderpad=1)
        fig.add_annotation(xref="paper", x=1, y=y, xanchor="right", yanchor="bottom", **words)
    if levels:
        fig.update_yaxes(autorangeoptions_include=list(levels.values()))  # a line outside the data's range must still be seen


def _interval(entry) -> tuple[float, float, float]:
    """(value, distance below, distance above) of a bar; nothing for a missing one."""
    if entry is None:
        return (math.nan, 0.0, 0.0)
    value, low, high = (float(v) for v in entry) if isinstance(entry, tuple | list) else (float(entry),) * 3
    return (value, value - low, high - value)


def _faded(colour: str) -> str:
    return f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.18)"


def _vector(name: str, values) -> np.ndarray:
    a = array(values)
    if a.ndim != 1:
        raise ValueError(f"curve '{name}' has an array of shape {a.shape}; a curve needs one axis")
    return a
