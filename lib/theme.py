"""How every figure looks: one colour per version and per method, the template, the colour scales of maps.

Versions have strong colours and solid lines, methods muted colours and dashed lines, so that a learned model is never mistaken for a
classical one; within each group any two colours stay apart for readers with protanopia, deuteranopia and tritanopia (the first six are
those of Okabe and Ito, Color Universal Design, 2008). The paper is white in a dark theme too: a card, as in the PNG beside it.
"""

# ruff: noqa: C408 - options of plotly read as keyword arguments

from __future__ import annotations

from collections.abc import Sequence
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


def array(values) -> np.ndarray:
    """A float array on the CPU from a tensor, an array or a list."""
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    return np.asarray(values, dtype=float)
