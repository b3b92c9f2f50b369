"""A plotly figure as PNG through matplotlib's Agg: no browser, no display, the same bytes for the same figure.

Draws what lib/plots.py makes and what plotly's make_subplots adds: heat maps, pictures, scatter lines, markers, bands and error bars,
bars, waterfalls, colour bars, legends, annotations and shapes on linear, log and category axes. Positions are plotly's: axes by their
domain inside the margins, in pixels; margins grow where labels, legends or colour bars need room. Settings come from the figure, then
from its template. A trace that cannot be drawn raises ValueError.
"""

# ruff: noqa: C408 - options of matplotlib read as keyword arguments

from __future__ import annotations

import io
import re
from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import blended_transform_factory
from plotly.basedatatypes import BaseFigure

from lib.marks import DASHES, DPI, POINT, TRACES, plain, rgba

WAY = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def png(fig: BaseFigure, width: int | None = None, height: int | None = None) -> bytes:
    """PNG of exactly width x height pixels (the figure's own size, else 840 x 450); ValueError for a trace that cannot be drawn."""
    width, height = (int(given or own or usual) for given, own, usual in ((width, fig.layout.width, 840), (height, fig.layout.height, 450)))
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 13 * POINT, "axes.linewidth": 0.8})
        page = FigureCanvasAgg(Figure(figsize=(width / DPI, height / DPI), dpi=DPI)).figure
        _Drawing(fig, page, width, height).draw()
        buffer = io.BytesIO()
        page.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None}, facecolor=page.get_facecolor())
    return buffer.getvalue()


class _Drawing:
    """One page in the making: its axes by name, the categories of each axis, and how each frame follows from the margins."""

    def __init__(self, fig: BaseFigure, page: Figure, width: int, height: int):
        self.fig, self.page, self.width, self.height = fig, page, width, height
        self.axes: dict[tuple[str, str], Axes] = {}
        self.categories: dict[str, list[str]] = {}
        self.frames: list[tuple[Axes, Callable]] = []
        self.scales: set = set()
        self.entries: list[tuple[str, object]] = []
        self.margin = {side: self.setting("margin", side, usual) for side, usual in dict(l=80, r=80, t=100, b=80).items()}
        page.set_facecolor(rgba(self.setting("", "paper_bgcolor", "white")))
        self.paper = self.frame(lambda: (0, 1, 0, 1), zorder=9)  # plotly's paper coordinates, for notes and legends
        self.paper.set_axis_off()

    def setting(self, group: str, path: str, usual=None):
        """layout.group.path of the figure, else of its template (xaxis3 falls back to the template's xaxis), else `usual`."""
        for layout, name in ((self.fig.layout, group), (self.fig.layout.template.layout, re.sub(r"\d+$", "", group))):
            value = layout[name] if name else layout
            for part in path.split("."):
                value = None if value is None else value[part]
            if value is not None:
                return value
        return usual

    def frame(self, box: Callable, **look) -> Axes:
        """New axes whose box() = (left, right, bottom, top) is in fractions of the figure inside its margins."""
        ax = self.page.add_axes((0, 0, 1, 1), label=str(len(self.frames)), **look)
        self.frames.append((ax, box))
        return ax

    def axis(self, trace) -> Axes:
        """The axes of a trace, made on first use."""
        names = tuple(_axis_name(trace[f"{d}axis"] or d) for d in "xy")
        if names not in self.axes:
            x, y = (self.setting(name, "domain", (0.0, 1.0)) for name in names)
            self.axes[names] = self.frame(lambda: (*x, *y), facecolor=rgba(self.setting("", "plot_bgcolor", "white")))
        return self.axes[names]

    def along(self, trace, direction: str) -> np.ndarray:
        """Coordinates of a trace as numbers: words become places in their axis' list of categories."""
        values = trace[direction]
        values = np.arange(len(trace["y" if direction == "x" else "x"])) if values is None else np.asarray(values)
        if values.dtype.kind in "fiub":
            return values.astype(float)
        known = self.categories.setdefault(_axis_name(trace[f"{direction}axis"] or direction), [])
        known.extend(dict.fromkeys(str(v) for v in values.tolist() if str(v) not in known))
        return np.array([known.index(str(v)) for v in values.tolist()], float)

    def remember(self, trace, handle) -> None:
        """Keep a trace for the legend."""
        if trace.name and trace.showlegend is not False:
            self.entries.append((plain(trace.name), handle))

    def colour_bar(self, mesh, bar, key) -> None:
        """One bar per colour scale, where plotly puts it: right of the figure, or lying at the given place."""
        if key not in self.scales:
            self.scales.add(key)
            _colour_bar(self, mesh, bar)

    def draw(self) -> None:
        """Traces, axes, notes, legend, title; then once more with the margins that the labels turned out to need."""
        way = self.setting("", "colorway", WAY)
        for index, trace in enumerate(self.fig.data):
            if trace.type not in TRACES:
                raise ValueError(f"a {trace.type} trace has no PNG; use one of {', '.join(TRACES)}")
            if trace.visible not in (False, "legendonly"):
                TRACES[trace.type](self, self.axis(trace), trace, way[index % len(way)], index + 1)
        for (x, y), ax in self.axes.items():
            _dress(self, ax, ax.xaxis, x)
            _dress(self, ax, ax.yaxis, y)
            ax.autoscale_view()  # notes and shapes read data coordinates before anything is drawn
            if self.setting(y, "scaleanchor") or ax.images:
                ax.set_aspect(self.setting(y, "scaleratio", 1.0), adjustable="box", anchor="C")
        for shape in self.fig.layout.shapes:
            _shape(self, shape)
        for note in self.fig.layout.annotations:
            _note(self, note)
        _legend(self)
        _title(self)
        self.arrange()
        box = self.page.get_tightbbox(self.page.canvas.get_renderer()).transformed(self.page.dpi_scale_trans)
        lack = dict(l=-box.x0, r=box.x1 - self.width, b=-box.y0, t=box.y1 - self.height)
        self.margin = {side: self.margin[side] + (more + 6 if more > 0.5 else 0.0) for side, more in lack.items()}
        self.arrange()

    def arrange(self) -> None:
        """Put every frame where its box says, inside the present margins."""
        m = self.margin
        w, h = max(20.0, self.width - m["l"] - m["r"]), max(20.0, self.height - m["t"] - m["b"])
        for ax, box in self.frames:
            left, right, bottom, top = box()
            spot = (m["l"] + left * w, m["b"] + bottom * h, (right - left) * w, (top - bottom) * h)
            ax.set_position((spot[0] / self.width, spot[1] / self.height, spot[2] / self.width, spot[3] / self.height))


def _dress(drawing: _Drawing, ax: Axes, axis, name: str) -> None:
    """Range, scale, ticks, grid, spine and title of one axis."""
    d, near = name[0], {"x": "bottom", "y": "left"}[name[0]]
    setting = {path: drawing.setting(name, path) for path in AXIS_SETTINGS}
    labels, log, shown = drawing.categories.get(name), setting["type"] == "log", setting["visible"] is not False
    if log:
        (ax.set_xscale if d == "x" else ax.set_yscale)("log")
        axis.set_minor_formatter(NullFormatter())
    limits = setting["range"] or ([-0.5, len(labels) - 0.5] if labels else None)
    if limits is not None:
        (ax.set_xlim if d == "x" else ax.set_ylim)([10.0**v for v in limits] if log else list(limits))
    included = setting["autorangeoptions"].include if limits is None and setting["autorangeoptions"] is not None else None
    if included is not None:
        low, high = ax.get_ylim() if d == "y" else ax.get_xlim()
        margin = 0.06 * (max(high, *included) - min(low, *included)) if not log else 0
        low, high = (min([low, *(v - margin for v in included if v < low)]), max([high, *(v + margin for v in included if v > high)]))
        (ax.set_xlim if d == "x" else ax.set_ylim)(low, high)
    if setting["autorange"] == "reversed" or (setting["range"] is None and d == "y" and ax.images):
        axis.set_inverted(True)
    _ticks(drawing, ax, axis, d, setting, labels)
    length = {"outside": 1, "inside": -1}.get(setting["ticks"], 0) * (setting["ticklen"] or 5) * POINT
    ax.tick_params(axis=d, length=length, color=rgba(setting["tickcolor"] or "black"), labelsize=(setting["tickfont.size"] or 12) * POINT)
    ax.tick_params(axis=d, which="minor", length=length / 2)
    ax.tick_params(axis=d, which="both", **{f"label{near}": shown and setting["showticklabels"] is not False})
    ax.spines[[near, "top", "right"]].set_visible(False)
    if setting["showline"] and shown:
        ax.spines[near].set(visible=True, color=rgba(setting["linecolor"] or "black"))
    grid = setting["showgrid"] if setting["showgrid"] is not None else not labels
    ax.set_axisbelow(True)
    if grid and shown:
        ax.grid(True, axis=d, color=rgba(setting["gridcolor"] or "#E5E5E5"), linewidth=0.8)
    axis.set_label_text(plain(setting["title.text"] or ""), fontsize=(setting["title.font.size"] or 13) * POINT)


AXIS_SETTINGS = (
    "type",
    "visible",
    "range",
    "autorange",
    "autorangeoptions",
    "tickvals",
    "ticktext",
    "tickformat",
    "nticks",
    "ticks",
    "ticklen",
    "tickcolor",
)
AXIS_SETTINGS += ("tickfont.size", "showticklabels", "showline", "linecolor", "showgrid", "gridcolor", "title.text", "title.font.size")


def _ticks(drawing: _Drawing, ax: Axes, axis, d: str, setting: dict, labels: list[str] | None) -> None:
    """Where the numbers or words of an axis stand; words that would touch are turned."""
    if setting["tickvals"] is not None:
        words = setting["ticktext"]
        axis.set_minor_locator(NullLocator())
        axis.set_ticks(list(setting["tickvals"]), labels=None if words is None else [plain(w) for w in words])
    elif labels:
        axis.set_ticks(range(len(labels)), labels=[plain(w) for w in labels])
        if d == "x" and max(map(len, labels)) * len(labels) * 8 > drawing.width * 0.85:
            for label in ax.get_xticklabels():
                label.set(rotation=30, ha="right", rotation_mode="anchor")
    elif setting["type"] != "log":
        axis.set_major_locator(MaxNLocator(setting["nticks"] or 7, steps=[1, 2, 5, 10]))
        if setting["tickformat"]:
            axis.set_major_formatter(FuncFormatter(lambda v, _: format(v, setting["tickformat"].replace("~", ""))))


def _colour_bar(drawing: _Drawing, mesh, bar) -> None:
    lying = bar.orientation == "h"

    def box():
        w, h = (drawing.width - drawing.margin["l"] - drawing.margin["r"]), (drawing.height - drawing.margin["t"] - drawing.margin["b"])
        thick, long = bar.thickness or 30, 1.0 if bar.len is None else bar.len
        wide, tall = (long, thick / h) if lying else (thick / w, long)
        x = ((0.5 if lying else 1.02) if bar.x is None else bar.x) - wide * SHIFT[bar.xanchor or ("center" if lying else "left")]
        y = ((1.02 if lying else 0.5) if bar.y is None else bar.y) - tall * SHIFT[bar.yanchor or ("bottom" if lying else "middle")]
        return x, x + wide, y, y + tall

    cax = drawing.frame(box)
    drawn = drawing.page.colorbar(mesh, cax=cax, orientation="horizontal" if lying else "vertical")
    drawn.outline.set_visible(bar.outlinewidth != 0)
    if bar.tickvals is not None:
        drawn.set_ticks(list(bar.tickvals), labels=None if bar.ticktext is None else [plain(t) for t in bar.ticktext])
    else:
        drawn.locator = MaxNLocator(bar.nticks or 7, steps=[1, 2, 2.5, 5, 10])
        if not 1e-4 <= max(map(abs, mesh.get_clim())) < 1e6:  # each number with its power: one power for all would meet the title
            drawn.formatter = FuncFormatter(lambda v, _: re.sub(r"e([+-])0*", lambda its: f"e{its[1].strip('+')}", f"{v:.3g}"))
        drawn.update_ticks()
    cax.tick_params(labelsize=(bar.tickfont.size or 12) * POINT, length=2, pad=2)
    put = cax.set_xlabel if lying and bar.title.side == "bottom" else cax.set_title
    put(plain(bar.title.text or ""), fontsize=(bar.title.font.size or 12) * POINT)


SHIFT = {"left": 0.0, "bottom": 0.0, "center": 0.5, "middle": 0.5, "right": 1.0, "top": 1.0}


def _axis_name(short: str) -> str:
    """x3 is the axis layout.xaxis3."""
    return f"{short[0]}axis{short[1:]}"


def _place(drawing: _Drawing, item, ends: str = ""):
    """The transform that reads an annotation's or shape's coordinates: paper, an axis' domain, or data."""
    parts = []
    for d in "xy":
        ref = item[f"{d}ref"] or d
        name = _axis_name(ref.removesuffix(" domain"))
        ax = drawing.paper if ref == "paper" else next((a for names, a in drawing.axes.items() if name in names), None)
        if ax is None:
            raise ValueError(f"an annotation or a shape refers to axis '{ref}', which no trace uses")
        parts.append(ax.transAxes if ref == "paper" or ref.endswith("domain") else ax.transData)
    return blended_transform_factory(*parts)


def _coordinate(drawing: _Drawing, item, d: str, value, powers: bool) -> float:
    """A data coordinate as a number: words by their category, annotations on a log axis by their power of ten."""
    ref = item[f"{d}ref"] or d
    if ref == "paper" or ref.endswith("domain"):
        return float(value)
    name = _axis_name(ref)
    value = drawing.categories[name].index(value) if isinstance(value, str) else float(value)
    return 10.0**value if powers and drawing.setting(name, "type") == "log" else value


def _note(drawing: _Drawing, note) -> None:
    """Words, with plotly's anchors; an arrow where one is asked for."""
    x, y = (_coordinate(drawing, note, d, note[d], True) for d in "xy")
    arrow = note.showarrow is not False and note.arrowhead != 0
    shift = ((note.ax or 0) * POINT, -(note.ay if note.ay is not None else -30) * POINT) if arrow else (0, 0)
    shift = (shift[0] + (note.xshift or 0) * POINT, shift[1] + (note.yshift or 0) * POINT)
    anchors = {"auto": "center", None: "center", "middle": "center"}
    colour = rgba(note.font.color or drawing.setting("font", "color", "black"))
    look = dict(fontsize=(note.font.size or 12) * POINT, color=colour, rotation=-(note.textangle or 0), annotation_clip=False)
    look |= dict(ha=anchors.get(note.xanchor, note.xanchor), va=anchors.get(note.yanchor, note.yanchor))
    line = dict(arrowstyle="->", color=colour, linewidth=1) if arrow else None
    look |= dict(bbox=dict(facecolor=rgba(note.bgcolor), linewidth=0, pad=1)) if note.bgcolor else {}
    coordinates = dict(xycoords=_place(drawing, note), textcoords="offset points", arrowprops=line)
    drawing.paper.annotate(plain(note.text), (x, y), shift, **coordinates, **look)


def _shape(drawing: _Drawing, shape) -> None:
    """A line or a rectangle."""
    (x0, x1), (y0, y1) = ([_coordinate(drawing, shape, d, shape[f"{d}{i}"], False) for i in (0, 1)] for d in "xy")
    place, line = _place(drawing, shape), shape.line
    style = dict(linestyle=DASHES.get(line.dash or "solid", "-"), linewidth=(2 if line.width is None else line.width) * POINT)
    style |= dict(transform=place, alpha=shape.opacity, zorder=0 if shape.layer == "below" else 40)
    if shape.type == "line":
        [artist] = drawing.paper.plot([x0, x1], [y0, y1], color=rgba(line.color or "black"), **style)
    elif shape.type == "rect":
        face = rgba(shape.fillcolor) if shape.fillcolor else "none"
        box = Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor=face, edgecolor=rgba(line.color or "black"), **style)
        artist = drawing.paper.add_patch(box)
    else:
        raise ValueError(f"a shape of type '{shape.type}' has no PNG; use line or rect")
    inside = [
        a for names, a in drawing.axes.items() if {_axis_name((shape[f"{d}ref"] or d).removesuffix(" domain")) for d in "xy"} & set(names)
    ]
    artist.set(clip_path=None, clip_on=bool(inside), clip_box=inside[0].bbox if inside else None)


def _legend(drawing: _Drawing) -> None:
    """Right of the figure from the top, as plotly does, or at the place the layout names; only for more than one entry unless asked for."""
    wanted = drawing.setting("", "showlegend")
    if wanted is False or not drawing.entries or (wanted is None and len(drawing.entries) < 2):
        return
    lying = drawing.setting("legend", "orientation") == "h"
    spot = (drawing.setting("legend", "x", 0.0 if lying else 1.02), drawing.setting("legend", "y", -0.1 if lying else 1.0))
    across, down = drawing.setting("legend", "xanchor", "left"), drawing.setting("legend", "yanchor", "top")
    corner = f"{ {'top': 'upper', 'bottom': 'lower'}.get(down, 'center') } { {'center': 'center', 'auto': 'left'}.get(across, across) }"
    names, handles = zip(*drawing.entries, strict=True)
    look = dict(frameon=False, fontsize=12 * POINT, borderaxespad=0.0, handlelength=2.2)
    room = (drawing.width - drawing.margin["l"] - drawing.margin["r"]) / (max(map(len, names)) * 7 + 60)
    look |= dict(ncols=max(1, min(len(names), int(room))) if lying else 1)
    drawing.paper.legend(handles, names, loc="center" if corner == "center center" else corner, bbox_to_anchor=spot, **look)


def _title(drawing: _Drawing) -> None:
    """The figure's title at the left edge, in the middle of the top margin."""
    words = drawing.fig.layout.title.text
    if words:
        size = (drawing.setting("title", "font.size") or 17) * POINT
        left = (drawing.setting("title", "pad.l") or 0) / drawing.width + drawing.setting("title", "x", 0.05)
        top = 1 - min(drawing.margin["t"], 100) / 2 / drawing.height
        drawing.page.text(left, top, plain(words), fontsize=size, ha="left", va="center")
