"""The suspects in pictures: measured effect beside the prior of its author, how far priors can be trusted, and an explorer.

rows: one per suspect with name, prior, cause (None: not decided), and for each base gain and speckle as (value, low, high).
"""

# ruff: noqa: C408 - options of plotly read as keyword arguments

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import plotly.graph_objects as go

from lib import plots, suspects, widgets

PAINT = {suspects.AWAKE: "#7A0B3B", suspects.DESCRIBED: "#8A8A8A"}
PROVED, NOT = "#D55E00", "#0072B2"


def ranking(rows: Sequence[Mapping], score: str = "gain", title: str = "best gain in PSNR (dB)") -> go.Figure:
    """Suspects ranked by their effect on the base that learns: left the prior and what came of it, right the effects on both bases.

    The distance between the two marks on the left, squared and averaged, is the Brier score.
    """
    order = sorted(rows, key=lambda row: row[suspects.AWAKE][score][0] * (-1 if score == "gain" else 1))
    names = [row["name"] for row in order]
    rows_high = max(24 * len(names), 120)
    height = dict(height=rows_high + 124)  # beside() takes 24 above and 100 below
    left, right = plots.figure(**height), plots.figure(**height)
    for row in order:  # a line from the prior to what happened
        ends = dict(x=[row["prior"], float(bool(row["cause"]))], y=[row["name"]] * 2)
        left.add_scatter(**ends, mode="lines", line=dict(color="#C8C8C8", width=2), showlegend=False, name="")
    left.add_scatter(
        x=[row["prior"] for row in order], y=names, mode="markers", marker=dict(color=plots.INK, symbol="diamond", size=9), name="prior"
    )
    for word, colour, some in (("a cause here", PROVED, True), ("no cause here", NOT, False)):
        chosen = [row["name"] for row in order if bool(row["cause"]) is some]
        if chosen:
            left.add_scatter(x=[float(some)] * len(chosen), y=chosen, mode="markers", marker=dict(color=colour, size=9), name=word)
    for base, colour in PAINT.items():
        some = [row for row in order if base in row]
        value, low, high = zip(*(row[base][score] for row in some), strict=True)
        above, below = ([abs(end - v) for end, v in zip(ends, value, strict=True)] for ends in (high, low))
        whisker = dict(type="data", array=above, arrayminus=below, color=colour, thickness=1.5, width=3)
        at = dict(x=value, y=[row["name"] for row in some], error_x=whisker)
        right.add_scatter(**at, mode="markers", marker=dict(color=colour, size=8), name=f"{base}: effect")
    rule = suspects.GAIN if score == "gain" else suspects.HALF
    dotted = dict(mode="lines", line=dict(color=plots.INK, width=1.2, dash="dot"), name="a cause beyond this")
    right.add_scatter(x=[rule] * len(names), y=names, **dotted)
    left.update_xaxes(title_text="likelihood of being a cause", range=[-0.06, 1.06])
    right.update_xaxes(title_text=title)
    axis = dict(type="category", categoryorder="array", categoryarray=names, autorange="reversed", ticks="")
    left.update_yaxes(**axis)
    right.update_yaxes(**axis, showticklabels=False)
    fig = plots.beside(left, right, gap=0.06)
    return fig.update_layout(legend_y=-52 / rows_high)  # below the titles of the axes


def calibration(priors: Sequence[float], proved: Sequence[bool], groups: int = 3) -> go.Figure:
    """Stated likelihood against the share that proved a cause, suspects in equal groups by prior; on the diagonal a prior is honest."""
    said, came, counts = zip(*suspects.shares(priors, proved, groups), strict=True)
    name = f"groups of {min(counts)} to {max(counts)} suspects" if len(set(counts)) > 1 else f"groups of {counts[0]} suspects"
    lines = {name: (said, came), "honest": ([0.0, 1.0], [0.0, 1.0])}
    fig = plots.curves(lines, "mean prior of the author", "share that proved a cause")
    fig.data[1].update(mode="lines", line=dict(color="#8A8A8A", dash="dot"))
    fig.update_xaxes(range=[-0.03, 1.03])
    return fig.update_yaxes(range=[-0.03, 1.03])


def controls(
    table: Sequence[Mapping], priors: Mapping[str, float], answers: Mapping, truth, sensors
) -> tuple[dict[str, ipywidgets.Widget], Callable[..., tuple[go.Figure, str]]]:
    """What widgets.explorer needs for a choice of base, suspect and value: scores beside the base's, the answer to one field where kept.

    table: one row per base, suspect and value ("the base itself" without a suspect), with psnr, speckle and gain as (value, low, high) and
    size. answers: (base, suspect, value) -> (H, W), the base's own under (base, "", ""); truth (H, W), sensors (N, 2).
    """
    rows = {(row["base"], row["suspect"], row["value"]): row for row in table}
    names = list(dict.fromkeys(row["suspect"] for row in table if row["suspect"]))
    offered = {name: list(dict.fromkeys(row["value"] for row in table if row["suspect"] == name)) for name in names}
    lists = {
        "suspect": widgets.choice("suspect", names),
        "value": widgets.choice("value", offered[names[0]]),
        "base": widgets.choice("base", sorted({row["base"] for row in table}, key=lambda base: base != suspects.AWAKE)),
    }
    lists["suspect"].observe(lambda change: setattr(lists["value"], "options", offered[change["new"]]), names="value")

    def update(suspect, value, base):
        value = value if value in offered[suspect] else offered[suspect][0]  # while the list of values follows the suspect
        own, row = rows[base, "", ""], rows.get((base, suspect, value))
        if row is None:
            raise ValueError(f"{suspect}, {value} was not tried on the base {base!r}; choose another base or the suspect's first value")
        heights = {"the base itself": own["psnr"], f"{suspect}: {value}": row["psnr"]}
        images = {f"truth, {len(sensors)} readings": truth}
        for word, key in (("the base itself", (base, "", "")), (value, (base, suspect, value))):
            if key in answers:
                images[word] = answers[key]
        limits = dict(low=plots.array(truth).min(), high=plots.array(truth).max(), columns=3)
        fig = plots.above(plots.field_maps(images, {next(iter(images)): sensors}, **limits), plots.bars(heights, "PSNR (dB)"))
        fig.update_layout(plot_bgcolor="white")
        return fig, _told(row, own, suspect, base, priors)

    return lists, update


def _told(row: Mapping, own: Mapping, suspect: str, base: str, priors: Mapping[str, float]) -> str:
    """The numbers of one value in words."""
    gain, low, high = row["gain"]
    words = f"PSNR <b>{row['psnr'][0]:.1f} dB</b>, {gain:+.2f} dB [{low:.2f}, {high:.2f}] over the base {html.escape(base)}"
    words += f" · speckle <b>{row['speckle'][0]:.1f} dB</b>, the base {own['speckle'][0]:.1f} dB"
    words += f" · its author: a cause with {100 * priors[suspect]:.0f} %" if suspect in priors else ""
    return f"{words}<br>{html.escape(row['size'])}" if row.get("size") else words
