"""How each kind of plotly trace is drawn with matplotlib: one function per kind, all with the arguments (drawing, ax, trace, colour, z).

drawing is the page of lib/png.py, of which a mark uses along (coordinates as numbers), setting (layout entries), remember (legend) and
colour_bar. colour is the trace's place in the colourway, z its drawing order.
"""

# ruff: noqa: C408 - options of matplotlib read as keyword arguments

from __future__ import annotations

import re
from html import unescape

import numpy as np
import plotly.graph_objects as go
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

DPI = 100
POINT = 72 / DPI  # one pixel of plotly in points of matplotlib
DASHES = {"solid": "-", "dash": (0, (5, 2.5)), "dot": (0, (1, 1.6)), "dashdot": "-.", "longdash": (0, (8, 3))}
SYMBOLS = {"circle": "o", "square": "s", "diamond": "D", "x": "X", "cross": "P", "triangle-up": "^", "triangle-down": "v", "star": "*"}
USUAL = dict(increasing="#3D9970", decreasing="#FF4136", totals="#4499FF")  # plotly's own waterfall


def scatter(drawing, ax, trace, colour: str, z: int) -> None:
    """Line, markers, band (fill toself or tozeroy), error bars and words of a scatter trace."""
    x, y = drawing.along(trace, "x"), drawing.along(trace, "y")
    mode = trace.mode or ("lines+markers" if len(x) < 20 else "lines")
    line = rgba(trace.line.color or (trace.marker.color if isinstance(trace.marker.color, str) else None) or colour)
    if trace.fill in ("toself", "tozeroy"):
        face = rgba(trace.fillcolor) if trace.fillcolor else (*line[:3], 0.5 * line[3])
        corners = (x, y) if trace.fill == "toself" else (np.r_[x[:1], x, x[-1:]], np.r_[0, y, 0])
        ax.fill(*corners, facecolor=face, linewidth=0, zorder=z)
    elif trace.fill not in (None, "none"):
        raise ValueError(f"fill '{trace.fill}' has no PNG; use toself or tozeroy")
    width = (2 if trace.line.width is None else trace.line.width) * POINT
    dash = DASHES.get(trace.line.dash or "solid", "-")
    if "lines" in mode and width > 0:
        steps = {"hv": "steps-post", "vh": "steps-pre", "hvh": "steps-mid"}.get(trace.line.shape, "default")
        ax.plot(x, y, color=line, linestyle=dash, linewidth=width, drawstyle=steps, solid_capstyle="butt", zorder=z)
    dots = _markers(trace, line) if "markers" in mode else {}
    if dots:
        ax.scatter(x, y, **dots, zorder=z + 0.5)
    for direction, error in (("x", trace.error_x), ("y", trace.error_y)):
        _whiskers(ax, x, y, direction, error, line, z)
    if "text" in mode and trace.text is not None:
        for px, py, words in zip(x, y, np.broadcast_to(np.asarray(trace.text), x.shape), strict=True):
            ax.text(px, py, plain(words), ha="center", va="bottom", fontsize=12 * POINT, zorder=z)
    handle = dict(color=line, linestyle=dash if "lines" in mode else "none", linewidth=width)
    drawing.remember(trace, Line2D([], [], **handle, **(dict(marker=dots["marker"], markersize=4.5) if dots else {})))


def bar(drawing, ax, trace, colour: str, z: int) -> None:
    """Bars upright or lying, side by side (group) or over one another (overlay), with whiskers and words at their ends."""
    lying = trace.orientation == "h"
    label, value = ("y", "x") if lying else ("x", "y")
    at, size = drawing.along(trace, label), np.asarray(trace[value], float)
    peers = [t for t in drawing.fig.data if t.type == "bar" and (t.xaxis, t.yaxis) == (trace.xaxis, trace.yaxis) and t.visible is not False]
    mode = drawing.setting("", "barmode", "group")
    if mode not in ("group", "overlay"):
        raise ValueError(f"bars with barmode '{mode}' have no PNG; use group or overlay")
    share = (1 - drawing.setting("", "bargap", 0.2)) / (len(peers) if mode == "group" else 1)
    at = at + (share * (peers.index(trace) - (len(peers) - 1) / 2) if mode == "group" else 0)
    fill = trace.marker.color if trace.marker.color is not None else colour
    fill = rgba(fill) if isinstance(fill, str) else [rgba(c) for c in fill]
    (ax.barh if lying else ax.bar)(at, size, share, color=fill, zorder=z)
    _whiskers(ax, *((size, at) if lying else (at, size)), value, trace[f"error_{value}"], rgba("black"), z)
    _end_words(ax, trace.text, at, size, lying)
    ax.margins(**{value: 0.05 if trace.text is None else 0.1})
    drawing.remember(trace, Patch(color=fill[0] if isinstance(fill, list) else fill))


def waterfall(drawing, ax, trace, colour: str, z: int) -> None:
    """Each bar starts where the last one ended; absolute and total ones start at zero."""
    at, y = drawing.along(trace, "x"), np.asarray(trace.y, float)
    measure = ["relative"] * len(y) if trace.measure is None else list(trace.measure)
    starts, ends, kinds, level = [], [], [], 0.0
    for change, kind in zip(y, measure, strict=True):
        starts.append(level if kind == "relative" else 0.0)
        level = {"relative": level + change, "absolute": change, "total": level}[kind]
        ends.append(level)
        kinds.append("totals" if kind != "relative" else "increasing" if change >= 0 else "decreasing")
    starts, ends = np.array(starts), np.array(ends)
    fills = [rgba(trace[kind].marker.color or USUAL[kind]) for kind in kinds]
    width, line = 1 - drawing.setting("", "bargap", 0.2), trace.connector.line
    ax.bar(at, ends - starts, width, bottom=starts, color=fills, zorder=z)
    ax.hlines(
        ends[:-1],
        at[:-1] + width / 2,
        at[1:] - width / 2,
        color=rgba(line.color or "#444444"),
        linewidth=(line.width or 1) * POINT,
        zorder=z - 0.5,
    )
    _end_words(ax, trace.text, at, ends, False, rising=ends >= starts)
    ax.margins(y=0.1)


def heatmap(drawing, ax, trace, colour: str, z: int) -> None:
    """Cells around (x, y), first row at the first y; NaN stays open; a shared coloraxis of the layout counts as the trace's own scale."""
    values = np.ma.masked_invalid(np.asarray(trace.z, float))
    shared = trace.coloraxis is not None
    scale, letter = (drawing.fig.layout[trace.coloraxis], "c") if shared else (trace, "z")
    low, high, middle = (scale[f"{letter}{end}"] for end in ("min", "max", "mid"))
    low, high = (float(v) if v is not None else float(m) for v, m in ((low, values.min()), (high, values.max())))
    if middle is not None:
        reach = max(high - middle, middle - low)
        low, high = middle - reach, middle + reach
    stops = [(s, rgba(c)) for s, c in scale.colorscale or go.Heatmap(colorscale="Viridis").colorscale]
    stops = [(1 - s, c) for s, c in stops[::-1]] if scale.reversescale else stops
    paint = dict(cmap=LinearSegmentedColormap.from_list("plotly", stops, N=512), norm=Normalize(low, high))
    x, y = (_centres(drawing, trace, d, n) for d, n in (("x", values.shape[1]), ("y", values.shape[0])))
    gap = dict(edgecolors=ax.get_facecolor(), linewidth=trace.xgap * POINT) if trace.xgap else dict(linewidth=0)
    mesh = ax.pcolormesh(_edges(x), _edges(y), values, **paint, **gap, antialiased=bool(trace.xgap), zorder=z)
    if trace.texttemplate:
        _cell_words(ax, trace, mesh, x, y, values)
    if scale.showscale is not False:
        drawing.colour_bar(mesh, scale.colorbar, trace.coloraxis or z)


def image(drawing, ax, trace, colour: str, z: int) -> None:
    """A picture (H, W, 3) of bytes, first row on top."""
    if trace.z is None:
        raise ValueError("an image trace needs z for its PNG, not a source")
    picture = np.asarray(trace.z)[..., :3].astype(float) / 255
    x0, y0, dx, dy = (usual if v is None else v for v, usual in ((trace.x0, 0), (trace.y0, 0), (trace.dx, 1), (trace.dy, 1)))
    h, w = picture.shape[:2]
    box = (x0 - dx / 2, x0 + (w - 0.5) * dx, y0 + (h - 0.5) * dy, y0 - dy / 2)
    ax.imshow(np.clip(picture, 0, 1), extent=box, aspect="auto", interpolation="nearest", zorder=z)


TRACES = {"scatter": scatter, "bar": bar, "waterfall": waterfall, "heatmap": heatmap, "image": image}


def rgba(colour: str) -> tuple[float, float, float, float]:
    """Plotly's colour words: #hex, names, rgb(r, g, b), rgba(r, g, b, a)."""
    if colour.startswith("rgb"):
        r, g, b, *a = (float(v) for v in re.findall(r"[\d.]+", colour))
        return (r / 255, g / 255, b / 255, a[0] if a else 1.0)
    return to_rgba(colour)


def plain(words) -> str:
    """Plotly's markup as text: line breaks kept, other tags dropped, dollar signs left as they are."""
    return unescape(re.sub(r"<[^<>]+>", "", re.sub(r"<br\s*/?>", "\n", str(words)))).replace("$", r"\$")


def _markers(trace, line) -> dict:
    """Markers of a scatter trace in matplotlib's words; one colour, or one per point (words, or numbers on a colour scale)."""
    m = trace.marker
    colours = line if m.color is None else rgba(m.color) if isinstance(m.color, str) else m.color
    one = colours is line or isinstance(m.color, str)
    if not one and isinstance(m.color[0], str):
        colours = [rgba(c) for c in m.color]
    symbol, hollow = str(m.symbol or "circle"), str(m.symbol or "").endswith("-open")
    edge = rgba(m.line.color) if isinstance(m.line.color, str) else line
    paint = dict(facecolors="none", edgecolors=colours) if hollow else dict(c=[colours] if one else colours, edgecolors=edge)
    size = (np.asarray(6 if m.size is None else m.size, float) * POINT) ** 2
    width = (m.line.width or (1.5 if hollow else 0)) * POINT
    return dict(s=size, marker=SYMBOLS.get(symbol.removesuffix("-open"), "o"), linewidths=width, alpha=m.opacity, **paint)


def _whiskers(ax, x, y, direction: str, error, colour, z: int) -> None:
    if error.array is not None and error.visible is not False:
        spread = np.array([error.array if error.arrayminus is None else error.arrayminus, error.array], float)
        look = dict(ecolor=rgba(error.color) if error.color else colour, elinewidth=error.thickness or 1, capsize=3)
        ax.errorbar(x, y, **{f"{direction}err": spread}, fmt="none", zorder=z + 0.6, **look)


def _end_words(ax, text, at, ends, lying: bool, rising=None) -> None:
    """Words just beyond the end of each bar, on the side it points to."""
    texts = () if text is None else np.broadcast_to(np.asarray(text), at.shape)
    for place, end, up, words in zip(at, ends, ends >= 0 if rising is None else rising, texts, strict=False):
        if np.isfinite(end):
            look = dict(textcoords="offset points", fontsize=12 * POINT, annotation_clip=False)
            spot, away = ((end, place), (3 if up else -3, 0)) if lying else ((place, end), (0, 3 if up else -3))
            turn = dict(va="center", ha="left" if up else "right") if lying else dict(ha="center", va="bottom" if up else "top")
            ax.annotate(plain(words), spot, away, **look, **turn)


def _cell_words(ax, trace, mesh, x, y, values) -> None:
    """The number in each cell, black or white by the cell's brightness."""
    for (i, j), v in np.ndenumerate(values.filled(np.nan)):
        words = trace.texttemplate.replace("%{text}", str(trace.text[i][j]) if trace.text is not None else "")
        words = re.sub(r"%\{z:?([^}]*)\}", lambda m, v=v: format(v, m[1] or ".3g"), words)
        dark = np.isfinite(v) and np.dot(mesh.cmap(mesh.norm(v))[:3], (0.299, 0.587, 0.114)) < 0.5
        ax.text(x[j], y[i], plain(words), color="white" if dark else "black", ha="center", va="center", fontsize=12 * POINT, zorder=50)


def _centres(drawing, trace, direction: str, count: int) -> np.ndarray:
    """Where the cells of a heat map are: its x or y, else x0 and dx, else 0, 1, 2 ..."""
    if trace[direction] is not None:
        return drawing.along(trace, direction)
    start, step = trace[f"{direction}0"], trace[f"d{direction}"]
    return np.arange(count) * float(1 if step is None else step) + float(0 if start is None else start)


def _edges(centres: np.ndarray) -> np.ndarray:
    """Borders half-way between neighbours, the outer cells as wide as their inner halves."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    inner = (centres[1:] + centres[:-1]) / 2
    return np.r_[2 * centres[0] - inner[0], inner, 2 * centres[-1] - inner[-1]]
