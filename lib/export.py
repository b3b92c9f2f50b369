"""A view of the playground as files: picture, field, readings, and the parameter file that makes the same view in batch."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import xarray
import yaml

from lib import realshow, widgets, worlds
from lib.data import Batch, Prediction
from lib.png import png
from lib.view import Answer, View, shape

NOTEBOOK = "00_start_here"


def figure(view: View, asked: Batch, answer: Answer) -> go.Figure:
    """Truth with readings, answer, error and deviation as one figure, values from 0 to 1."""
    found = Prediction(answer.shown[None], None if answer.std is None else answer.std[None])
    return widgets.comparison(asked, found, shape(view), title(view, answer))


def title(view: View, answer: Answer) -> str:
    """The answer's name and score."""
    how = ", a sample" * (view.show == "sample") + ", clamped" * view.clamp
    return f"{view.method}{how}, {answer.psnr:.1f} dB"


def picture(view: View, asked: Batch, answer: Answer, past: int) -> bytes:
    """PNG."""
    return png(figure(view, asked, answer))


def field(view: View, asked: Batch, answer: Answer, past: int) -> bytes:
    """NetCDF 4: truth, answer, error and deviation on the grid, the readings beside them, in the world's unit; colours as a channel."""
    place, rows = worlds.get(view.world), shape(view)
    scale = realshow.span(view.world) if place.load is not None else 1.0
    zero = float(place.to_units(asked.y_qry.new_zeros(()).double()))
    (down, across), ends = (("y", "x"), [np.linspace(-1, 1, n) for n in rows]) if not place.axes() else zip(*place.axes(), strict=True)
    dims = (down, across, "channel")

    def grid(y, offset: float) -> tuple:
        return dims, (offset + scale * y.double().numpy()).reshape(*rows, -1), {"units": place.unit or "1"}

    found = {"truth": grid(asked.y_qry[0], zero), "answer": grid(answer.shown, zero)}
    found["error"] = grid(answer.shown.double() - asked.y_qry[0].double(), 0.0)
    if answer.std is not None:
        found["std"] = grid(answer.std, 0.0)
    s = asked.s_obs[0].double().numpy()
    found |= {f"reading_s{d + 1}": (("reading",), s[:, d], {"long_name": "site in [-1, 1]"}) for d in range(2)}
    found["reading_value"] = (("reading", "channel"), zero + scale * asked.y_obs[0].double().numpy(), {"units": place.unit or "1"})
    about = {"title": title(view, answer), "psnr_db": answer.psnr, "view": json.dumps(view.told()), "past_fields": past}
    made = xarray.Dataset(found, {down: ends[0], across: ends[1]}, about | {"source": "Sparse Fields Lab, playground"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "field.nc"
        made.to_netcdf(path, engine="h5netcdf")
        return path.read_bytes()


def readings(view: View, asked: Batch, answer: Answer, past: int) -> bytes:
    """CSV with the columns x, y, value of one-channel readings, y downwards; ValueError for colours."""
    place = worlds.get(view.world)
    if place.channels > 1:
        raise ValueError(f"readings of '{view.world}' are colours, and a table of readings has one value each; export the field instead")
    y = place.to_units(asked.y_obs[0, :, 0].double())
    unit = f" [{place.unit}]" if place.unit else ""
    rows = zip(*asked.s_obs[0].double().T.tolist(), y.tolist(), strict=True)
    return "\n".join([f"x,y,value{unit}", *(f"{a:.6g},{b:.6g},{v:.8g}" for a, b, v in rows), ""]).encode()


def parameters(view: View, asked: Batch, answer: Answer, past: int) -> bytes:
    """YAML: `python -m lib run --only 00 --params view.yaml` shows this view again."""
    head = f"# A view of the playground, {answer.psnr:.2f} dB. Again in batch: python -m lib run --only 00 --params view.yaml\n"
    return (head + yaml.safe_dump(view.told() | {"past": past}, sort_keys=False, width=140)).encode()


# button -> (file name, type, what makes it)
FILES = {
    "picture": ("view.png", "image/png", picture),
    "field": ("view.nc", "application/x-netcdf", field),
    "readings": ("readings.csv", "text/csv", readings),
    "parameters": ("view.yaml", "application/yaml", parameters),
}
