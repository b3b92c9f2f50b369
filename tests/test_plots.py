"""Figures say what the arrays say, and their PNG shows it: orientation, colours, positions, sizes."""

# ruff: noqa: C408 - options of plotly read as keyword arguments

import io
import itertools

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image
from plotly.subplots import make_subplots
from skimage.color import deltaE_ciede2000, rgb2lab

from lib import plots, theme
from lib.marks import rgba
from lib.png import png

# Machado, Oliveira and Fernandes (2009), A Physiologically-based Model for Simulation of Color Vision Deficiency, table 1, severity 1.0
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def picture(fig, **size):
    """(H, W, 3) bytes of the figure's PNG."""
    return np.asarray(Image.open(io.BytesIO(png(fig, **size))).convert("RGB")).astype(int)


def near(pixels, colour, tolerance=12):
    """Where a picture has a colour."""
    return np.abs(pixels - np.array([round(255 * c) for c in rgba(colour)[:3]])).max(-1) <= tolerance


def bare(trace, **layout):
    """A trace that fills the whole picture, one unit per 10 pixels of its heat map."""
    axis = dict(visible=False, showgrid=False)
    layout = (
        dict(
            margin=dict(l=0, r=0, t=0, b=0), xaxis=axis, yaxis=axis | dict(autorange="reversed"), width=100, height=60, plot_bgcolor="white"
        )
        | layout
    )
    return go.Figure([trace], layout)


@pytest.mark.parametrize("group", ["VERSIONS", "METHODS"])
@pytest.mark.parametrize("vision", VISION)
def test_colours_of_a_group_stay_apart_for_every_colour_vision(group, vision):
    rgb = np.array([rgba(c)[:3] for c in getattr(theme, group).values()])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]
    for i, j in itertools.combinations(range(len(lab)), 2):
        assert deltaE_ciede2000(lab[i], lab[j]) > 10, (list(getattr(theme, group))[i], list(getattr(theme, group))[j])


def test_a_name_has_its_colour_in_every_kind_of_figure():
    x = np.arange(3.0)
    line = plots.curves({"mine": (x, x), "v1-mamba": (x, x, x - 1, x + 1)}, "x", "y")
    single, grouped = plots.bars({"mine": 1.0, "v1-mamba": 2.0}, "dB"), plots.bars({"plane": {"v1-mamba": 2.0, "mine": 1.0}}, "dB")
    colours = {line.data[-1].line.color, single.data[0].marker.color[1], grouped.data[0].marker.color}
    assert colours == {plots.COLOURS["v1-mamba"]} and line.data[0].line.color not in colours


def test_no_two_of_many_lines_look_alike():
    x = np.arange(3.0)
    fig = plots.curves({f"{i}": (x, i * x) for i in range(20)} | {"oi": (x, x)}, "x", "y")
    assert len({(t.line.color, t.line.dash) for t in fig.data}) == 21


def test_maps_share_one_scale_per_kind_and_errors_are_symmetric():
    a = torch.linspace(0, 1, 12).reshape(3, 4)
    fig = plots.field_maps(
        {"truth": a, "answer": 2 * a, "error": a - 0.25, "std": a}, kinds={"error": "error", "std": "std"}, sensors={"truth": [[0.5, -1.0]]}
    )
    heat = [t for t in fig.data if t.type == "heatmap"]
    assert [(t.zmin, t.zmax) for t in heat] == [(0, 2), (0, 2), (-0.75, 0.75), (0, 1)]
    assert [bool(t.showscale) for t in heat] == [True, False, True, True]
    assert [len(t.x) for t in fig.data if t.type == "scatter"] == [1, 0, 0, 0]
    assert (fig.data[1].x[0], fig.data[1].y[0]) == (0.5, -1.0)
    assert fig.layout.yaxis.range[0] > fig.layout.yaxis.range[1]  # s2 grows downwards


def test_maps_put_the_first_row_on_top_with_readings_on_their_pixels():
    field = np.zeros((5, 5))
    field[0, 0] = 1.0
    fig = plots.field_maps({"truth": field}, sensors=[[1.0, 0.5]])
    pixels = picture(fig)[: fig.layout.height - 104]
    dark, bright = (near(pixels, theme.SCALES["field"][i]) for i in (0, -1))
    rows, columns = (dark | bright).any(1).nonzero()[0], (dark | bright).any(0).nonzero()[0]
    down, right = (np.linspace(a[0], a[-1], 11).round().astype(int)[1::2] for a in (rows, columns))  # centres of the five cells
    expected = np.zeros((5, 5), bool)
    expected[0, 0] = True
    assert (bright[np.ix_(down, right)] == expected).all()
    expected = np.zeros((5, 5), bool)
    expected[3, 4] = True  # s = (1, 0.5): last column, fourth row
    assert (near(pixels, "white")[np.ix_(down, right)] == expected).all()


def test_pixels_of_maps_are_square_also_on_oblong_grids():
    fig = plots.field_maps({"a": np.arange(12.0).reshape(2, 6) * 0 + [[0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0]]})
    lit = near(picture(fig)[: fig.layout.height - 90], theme.SCALES["field"][-1])
    rows, columns = lit.any(1).nonzero()[0], lit.any(0).nonzero()[0]
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    assert abs(height / 2 - width / 6) <= 1


def test_titles_of_maps_do_not_run_into_each_other():
    words = "a longer title of one of these maps: 105.2 dB"
    fig = plots.field_maps({f"{i} {words}": np.eye(4) for i in range(5)}, columns=5)
    panel = (fig.layout.width - fig.layout.margin.l - fig.layout.margin.r) / 5
    lines = fig.layout.annotations[0].text.split("<br>")
    assert " ".join(lines).replace("\N{NO-BREAK SPACE}", " ") == f"0 {words}" and lines[-1].endswith("105.2\N{NO-BREAK SPACE}dB")
    assert max(map(len, lines)) * 7 <= panel
    assert fig.layout.margin.t >= 18 * len(lines)


def test_missing_sites_stay_grey():
    field = np.ones((4, 4))
    field[1:3, 1:3] = np.nan
    grey = near(picture(plots.field_maps({"sea": field}, low=0, high=1)), "#D8D8D8", 2)
    assert grey.sum() > 5000


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (2, 4, 4, 3)])
def test_a_map_of_another_shape_is_refused_by_name(shape):
    with pytest.raises(ValueError, match=r"'odd'.*\(H, W\) or \(H, W, 3\)"):
        plots.field_maps({"odd": np.zeros(shape)})


def test_bars_keep_values_and_both_sides_of_their_interval():
    fig = plots.bars({"gp": (3.0, 1.0, 4.0), "oi": 5.0}, "PSNR (dB)", levels={"constant": 2.0})
    assert list(fig.data[0].y) == [3, 5] and list(fig.data[0].error_y.array) == [1, 0] and list(fig.data[0].error_y.arrayminus) == [2, 0]
    assert fig.layout.shapes[0].y0 == 2.0 and fig.layout.yaxis.title.text == "PSNR (dB)"


def test_grouped_bars_leave_a_gap_for_a_missing_entry():
    fig = plots.bars({"plane": {"gp": 1.0, "oi": 2.0}, "radial": {"oi": 3.0}}, "dB")
    assert [t.name for t in fig.data] == ["gp", "oi"] and np.isnan(fig.data[0].y[1]) and list(fig.data[1].y) == [2, 3]


def test_a_logarithmic_axis_writes_numbers_out():
    fig = plots.curves({"a": ([1024, 4096, 16384], [0.0002, 1, 10])}, "x", "y", log_x=True, log_y=True)
    assert list(fig.layout.xaxis.ticktext) == ["1024", "4096", "16,384"]
    assert list(fig.layout.yaxis.ticktext) == ["0.0002", "1", "10"]


def test_a_logarithmic_axis_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match="positive"):
        plots.curves({"a": ([0.0, -1.0], [1.0, 2.0])}, "x", "y", log_x=True)


def test_spectrum_finds_the_wave_number_and_the_power_of_a_wave():
    x = np.arange(64) / 64
    wave = np.sin(2 * np.pi * 9 * x)[None, :] * np.ones((64, 1))
    fig = plots.spectrum({"wave": wave, "twice": 2 * wave})
    k, power = fig.data[0].x, fig.data[0].y
    assert k[np.argmax(power)] == 9
    np.testing.assert_allclose(fig.data[1].y[8] / power[8], 4.0, rtol=1e-6)


def test_beside_keeps_both_figures_apart():
    x = np.arange(1.0, 4)
    left = plots.curves({"a": (x, x)}, "x", "y", levels={"floor": 1.0})
    left.add_vrect(1, 2)
    fig = plots.beside(left, plots.curves({"b": (x, 10 * x)}, "m", "n", log_y=True))
    assert [t.xaxis for t in fig.data] == ["x", "x2"] and fig.layout.xaxis2.title.text == "m" and fig.layout.yaxis2.type == "log"
    assert fig.layout.xaxis.domain[1] < fig.layout.xaxis2.domain[0] and fig.layout.shapes[0].xref == "x domain"
    assert (fig.layout.shapes[1].xref, fig.layout.shapes[1].yref) == ("x", "y domain")
    assert picture(fig).std() > 1


def test_a_note_stands_at_its_data_and_takes_no_room_from_the_axes():
    x = np.linspace(0.0, 1000.0, 50)
    fig = plots.curves({"oi": (x, 50 + x / 25)}, "x", "y")
    before = near(picture(fig), plots.COLOURS["oi"])
    fig.add_annotation(x=500, y=55, text="■", font=dict(color="#ff0000", size=20), showarrow=False)
    after = picture(fig)
    assert (near(after, plots.COLOURS["oi"]) == before).all()
    left, right = before.any(0).nonzero()[0][[0, -1]]
    assert near(after, "#ff0000").any(0).nonzero()[0].mean() == pytest.approx((left + right) / 2, abs=4)


def test_a_shape_stays_inside_its_axes():
    fig = plots.curves({"a": ([0.0, 1.0], [5.0, 6.0])}, "x", "y")
    alone = picture(fig)
    fig.add_shape(type="rect", x0=0.5, x1=9, y0=-100, y1=5.5, xref="x", yref="y", fillcolor="#ff0000", line_width=0)
    fig.update_layout(xaxis_range=[0, 1], yaxis_range=[5, 6])
    red = near(picture(fig), "#ff0000")
    margin = fig.layout.template.layout.margin
    inner = (fig.layout.width - margin.l - margin.r) * (fig.layout.height - fig.layout.margin.t - margin.b)
    assert picture(fig).shape == alone.shape and red.sum() == pytest.approx(inner / 4, rel=0.03)  # half of each axis


def test_png_has_the_size_asked_for_and_the_same_bytes_again():
    fig = plots.bars({"gp": 1.0}, "dB")
    data = png(fig)
    assert data == png(fig) and Image.open(io.BytesIO(data)).size == (fig.layout.width, fig.layout.height)
    assert Image.open(io.BytesIO(png(fig, 321, 123))).size == (321, 123)


@pytest.mark.parametrize("kind", ["heatmap", "image"])
def test_png_keeps_the_orientation_of_grids(kind):
    values = np.zeros((6, 10))
    values[0, 0], values[5, 9] = 255, 128
    rgb = np.repeat(values[..., None], 3, 2).astype(np.uint8)
    trace = go.Image(z=rgb) if kind == "image" else go.Heatmap(z=values, colorscale=["black", "white"], showscale=False)
    pixels = picture(bare(trace))[..., 0]
    np.testing.assert_allclose(pixels[5::10, 5::10], values, atol=4)


def test_png_draws_a_heat_map_upwards_where_plotly_does():
    fig = bare(go.Heatmap(z=[[0, 0], [0, 1]], colorscale=["black", "white"], showscale=False), yaxis=dict(visible=False))
    pixels = picture(fig)[..., 0]
    assert pixels[10, 90] > 250 and pixels[50, 90] < 5  # the last row is on top


def test_png_draws_lines_markers_bands_and_whiskers_in_their_colours_at_their_places():
    limits = dict(range=[0, 10], visible=False)
    square = dict(width=200, height=200, xaxis=limits, yaxis=limits, showlegend=False)
    line = picture(bare(go.Scatter(x=[0, 10], y=[5, 5], mode="lines", line=dict(color="#ff0000", width=6)), **square))
    assert near(line, "#ff0000")[98:102, 20:180].all() and not near(line, "#ff0000")[:90].any()
    dot = picture(bare(go.Scatter(x=[2], y=[8], mode="markers", marker=dict(color="#0000ff", size=20)), **square))
    assert near(dot, "#0000ff")[40, 40] and near(dot, "#0000ff").sum() == pytest.approx(np.pi * 100, rel=0.15)
    band = go.Scatter(x=[0, 10, 10, 0], y=[4, 4, 6, 6], fill="toself", fillcolor="rgba(0,128,0,0.5)", line_width=0, mode="lines")
    assert near(picture(bare(band, **square)), "#7fbf7f", 4)[85:115, 10:190].all()
    whisker = go.Scatter(x=[5], y=[5], mode="markers", error_y=dict(array=[3], arrayminus=[1], color="#ff00ff", thickness=4))
    column = near(picture(bare(whisker, **square)), "#ff00ff")[:, 98:102].any(1).nonzero()[0]
    assert abs(column[0] - 40) <= 4 and abs(column[-1] - 120) <= 4


def test_png_draws_bars_to_their_height_side_by_side_and_lying():
    clear = dict(width=200, height=100, bargap=0, yaxis=dict(range=[0, 10], visible=False), xaxis=dict(visible=False), showlegend=False)
    fig = bare(go.Bar(x=["a", "b"], y=[10, 5], marker_color="#ff0000"), **clear)
    fig.add_trace(go.Bar(x=["a", "b"], y=[2, 8], marker_color="#0000ff"))
    pixels = picture(fig)
    red, blue = (near(pixels, colour).sum(0) for colour in ("#ff0000", "#0000ff"))
    np.testing.assert_allclose(red[[5, 45, 105, 145]], [100, 100, 50, 50], atol=2)  # each group of two fills 100 pixels
    np.testing.assert_allclose(blue[[55, 95, 155, 195]], [20, 20, 80, 80], atol=2)
    lying = bare(go.Bar(y=["a", "b"], x=[10, 5], orientation="h", marker_color="#ff0000"))
    lying.update_layout(bargap=0, xaxis_range=[0, 10])
    np.testing.assert_allclose(near(picture(lying), "#ff0000")[[15, 45]].sum(1), [100, 50], atol=2)


def test_png_draws_each_step_of_a_waterfall_where_the_last_one_ended():
    fig = plots.waterfall([("start", 5.0), ("up", 3.0), ("down", -2.0)], "dB")
    pixels = picture(fig)
    grey, up, down = (near(pixels, colour) for colour in ("#575A68", "#009E73", "#D55E00"))
    unit = grey[:, : pixels.shape[1] // 3].sum(0).max() / 5
    assert [up.sum(0).max(), down.sum(0).max()] == pytest.approx([3 * unit, 2 * unit], abs=2)
    assert up.any(1).nonzero()[0][0] == pytest.approx(down.any(1).nonzero()[0][0], abs=2)
    assert grey[:, -150:].sum(0).max() == pytest.approx(6 * unit, abs=3)  # the total


def test_png_places_a_logarithmic_axis_by_powers():
    axis = dict(type="log", range=[0, 4], visible=False)
    dots = go.Scatter(x=[10, 1000], y=[1, 1], mode="markers", marker=dict(color="#ff0000", size=8))
    columns = near(picture(bare(dots, width=400, xaxis=axis)), "#ff0000").any(0).nonzero()[0]
    assert columns.min() == pytest.approx(100, abs=6) and columns.max() == pytest.approx(300, abs=6)


def test_png_shows_subplots_titles_legends_colour_bars_notes_and_shapes():
    fig = make_subplots(1, 2, subplot_titles=("left $x$", "right<br><b>bold</b>"))
    fig.add_trace(go.Heatmap(z=[[1, 2], [3, None]], colorbar_title="K"), 1, 1)
    fig.add_trace(go.Scatter(x=["a", "b"], y=[1, 2], name="line"), 1, 2)
    plain = picture(fig)
    steps = (
        lambda: fig.update_layout(title="a title"),
        lambda: fig.add_annotation(text="note", x="b", y=1.5, xref="x2", yref="y2"),
        lambda: fig.add_shape(type="rect", x0=0, x1=0.5, y0=0, y1=1, xref="x2 domain", yref="paper", fillcolor="#ff0000"),
        lambda: fig.add_shape(type="line", x0=0, x1=1, y0=1.5, y1=1.5, xref="x2", yref="y2", line_color="#00ff00"),
        lambda: fig.add_trace(go.Scatter(x=["b", "c"], y=[2, 1], name="other", mode="markers", marker_symbol="square-open"), 1, 2),
    )
    for step in steps:
        step()
        now = picture(fig)
        assert (now != plain).any()
        plain = now
    assert near(plain, "#ff0000").sum() > 1000 and near(plain, "#00ff00").sum() > 20


@pytest.mark.parametrize("bar", [dict(), dict(orientation="h", y=-0.2, yanchor="top")])
def test_png_writes_small_and_large_numbers_of_a_colour_bar_with_their_power(bar):
    """Each with its own: a power at the end of a lying bar would meet what stands below it."""

    def pixels(factor, **ticks):
        fig = go.Figure(go.Heatmap(z=[[2 * factor, 4 * factor], [8 * factor, None]], colorbar=dict(**bar, **ticks)))
        return picture(fig).astype(int)

    for factor, power in ((1e-8, "e-8"), (1e7, "e7")):
        written = pixels(1.0, tickvals=list(range(2, 9)), ticktext=[f"{v}{power}" for v in range(2, 9)])
        assert np.abs(pixels(factor) - written).max() <= 1  # a shade of rounding
    assert np.abs(pixels(1.0) - pixels(1.0, tickvals=list(range(2, 9)), ticktext=[str(v) for v in range(2, 9)])).max() <= 1


def test_png_makes_room_for_long_labels():
    fig = plots.bars({"a very long description of one of the switches of the system": 1.0, "b": 2.0}, "gain (dB)", horizontal=True)
    pixels = picture(fig)
    assert (pixels[:, :3] == 255).all() and (pixels[:, -3:] == 255).all()


def test_png_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match=r"scatter3d.*scatter, bar"):
        png(go.Figure(go.Scatter3d(x=[1], y=[1], z=[1])))
    with pytest.raises(ValueError, match="barmode 'stack'"):
        png(go.Figure(go.Bar(x=["a"], y=[1]), dict(barmode="stack")))


def test_png_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    png(plots.bars({"gp": 1.0}, "dB"))
    assert dict(matplotlib.rcParams) == before and not matplotlib._pylab_helpers.Gcf.figs
