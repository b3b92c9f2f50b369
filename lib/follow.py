"""One live figure that turns into another: what changed is sent, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go


def sendable(fig: go.Figure) -> go.Figure:
    """A widget sends numbers as JSON, which knows no NaN: nothing stands for a missing value."""
    for trace in fig.data:
        if trace.type == "heatmap" and not np.isfinite(trace.z).all():
            trace.z = np.where(np.isfinite(trace.z), trace.z, None)
    return fig


def content(fig: go.Figure) -> list:
    """Traces and layout as plain data."""
    return [[t.to_plotly_json() for t in fig.data], fig.layout.to_plotly_json()]


def follow(live: go.FigureWidget, shown: Sequence, fig: go.Figure) -> list:
    """Show another figure: the changed properties of the same traces where kinds and counts agree, else new traces; what is shown now."""
    traces, layout = content(fig)
    if _kind(traces, layout) != _kind(*shown):
        live.data = ()
        live.layout = fig.layout
        live.add_traces(fig.data)
    else:
        with live.batch_update():
            for trace, old, new in zip(live.data, shown[0], traces, strict=True):
                trace.update(_changed(old, new))
            live.layout.update(_changed(shown[1], layout))
    return [traces, layout]


def _kind(traces: Sequence[Mapping], layout: Mapping) -> tuple:
    """What must agree for one figure to turn into another in place."""
    return [(t["type"], sorted(t)) for t in traces], sorted(layout), [len(layout.get(part, ())) for part in ("annotations", "shapes")]


def _changed(old: Mapping, new: Mapping) -> dict:
    return {name: part for name, part in new.items() if name not in old or not _equal(old[name], part)}


def _equal(a, b) -> bool:
    """Equality of nested plotly data that may hold arrays."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f" and b.dtype.kind == "f")
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)
