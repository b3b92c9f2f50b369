"""The playground's maps as a widget of our own: numbers go to the page as bytes, canvas.js draws them, gestures come back.

Why not a plotly FigureWidget: it fires clicks on traces only, knows no drag of a point, and redraws eight traces as text where this sends
16 KB of float32 at 32 x 32 and draws them in a few milliseconds, which is what lets an answer follow a slider within a tenth of a second.
"""

from __future__ import annotations

import re
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from plotly.colors import hex_to_rgb

from lib import realshow, theme, worlds
from lib.data import Batch
from lib.view import Answer, View, shape

KINDS = ("field", "error", "std")
SHORT = ("truth", "reading", "answer", "error", "deviation")


class Canvas(anywidget.AnyWidget):
    """Five maps, the list of methods and a line of words; `on_gesture(dict)` hears what the page's user does to the readings."""

    _esm = Path(__file__).with_name("canvas.js")
    _css = Path(__file__).with_name("canvas.css")
    scene = traitlets.Dict().tag(sync=True)
    pixels = traitlets.Bytes(b"").tag(sync=True)
    sites = traitlets.Bytes(b"").tag(sync=True)
    board = traitlets.List().tag(sync=True)
    busy = traitlets.Unicode("").tag(sync=True)
    drag = traitlets.Dict().tag(sync=True)  # of a reading under the pointer: index, x, y, gesture
    serial = traitlets.Int(0).tag(sync=True)

    def __init__(self, on_gesture):
        super().__init__()
        self.dropped = ""  # the gesture that ended last: what arrives of it later is old
        self.on_gesture = on_gesture
        self.on_msg(lambda _, content, buffers: self.hear(content))
        self.observe(lambda change: self.hear({"do": "drag", **change.new}), names="drag")

    def hear(self, told: dict) -> None:
        """A gesture from the page."""
        if told.get("do") == "drag" and told.get("gesture") in (None, self.dropped):
            return
        if told.get("do") == "drop":
            self.dropped = told.get("gesture", "")
        self.on_gesture(told)

    def save(self, name: str, kind: str, content: bytes) -> None:
        """Hand a file to the user's browser."""
        self.send({"do": "save", "name": name, "type": kind}, buffers=[content])

    def show(self, view: View, asked: Batch, answer: Answer, title: str) -> None:
        """Draw an answer; all parts arrive in one message."""
        maps, scene = pictures(view, asked, answer, title)
        place, site = worlds.get(view.world), np.float32(asked.s_obs[0]).tobytes()
        values = np.float32(_units(place, asked.y_obs[0].double().numpy())).tobytes()
        with self.hold_sync():
            self.scene, self.pixels, self.sites = scene, b"".join(np.float32(a).tobytes() for a in maps), site + values
            self.busy = ""
            self.serial += 1


def pictures(view: View, asked: Batch, answer: Answer, title: str) -> tuple[list[np.ndarray], dict]:
    """The maps (rows columns channels,) in the world's unit, frames of the path after them, and what the page must know about them."""
    place, (rows, columns) = worlds.get(view.world), shape(view)
    truth, shown = asked.y_qry[0].double().numpy(), answer.shown.double().numpy()
    land, channels, span = np.isnan(truth), place.channels, _span(place)
    error = (shown - truth).mean(1) * span
    std = None if answer.std is None else np.where(land, np.nan, answer.std.double().numpy()).mean(1) * span
    maps = [_units(place, truth), _units(place, np.where(land, np.nan, shown)), error, *([] if std is None else [std])]
    times, states = answer.path or ([], ())
    maps += [_units(place, y.double().numpy()) for y in states]
    kinds, counts = ("field", "field", "field", "error", "std"), (channels, 0, channels, 1, int(std is not None))
    doubt = "standard deviation" if std is not None else "no standard deviation"
    names = ("truth", f"{asked.s_obs.shape[1]} readings", title, "error", doubt)
    panels = [dict(zip(("title", "kind", "channels", "short"), row, strict=True)) for row in zip(names, kinds, counts, SHORT, strict=True)]
    known = maps[0][np.isfinite(maps[0])]
    largest = float(np.nanmax(np.abs(error), initial=1e-12))
    limits = {"field": [float(known.min()), float(known.max())], "error": [-largest, largest]}
    limits["std"] = [0.0, 1e-12 if std is None else float(np.nanmax(std, initial=1e-12))]
    scene = {"rows": rows, "columns": columns, "channels": channels, "panels": panels, "limits": limits, "scales": SCALES}
    scene |= {"unit": place.unit if channels == 1 else "", "times": list(map(float, times)), "board": "all methods, PSNR (dB)"}
    return maps, scene | {"words": f"{view.world}, {names[1]}, {title}"}


def _units(place: worlds.World, y: np.ndarray) -> np.ndarray:
    """Values of one channel in the world's unit; colours and formulas stay from 0 to 1."""
    if place.load is None or place.channels > 1:
        return y
    pool = place.load()
    return pool.low + (pool.high - pool.low) * y


def _span(place: worlds.World) -> float:
    return realshow.span(place.name) if place.load is not None and place.channels == 1 else 1.0


def _rgb(colour: str) -> str:
    """A colour of plotly's scales as the page reads it."""
    parts = hex_to_rgb(colour) if colour.startswith("#") else re.findall(r"\d+", colour)
    return f"rgb({', '.join(map(str, parts))})"


SCALES = {kind: [_rgb(colour) for colour in theme.SCALES[kind]] for kind in KINDS}
