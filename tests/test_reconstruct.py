"""From readings to a field: units, coordinates and files are right, and every wrong input is one line and exit code 2."""

import json
import re

import numpy as np
import pandas
import pytest
import torch
import xarray

from lib import baselines, data, delivery, frame, intake, reconstruct
from lib.__main__ import main


def smooth(x, y):
    """A field of about one wave per unit, values 8 to 16."""
    return 12 + 2.5 * np.sin(2.1 * x) * np.cos(1.7 * y) + 0.8 * x - 0.5 * y


def stations(path, names=("lon", "lat"), n=40, header="value [degC]", scale=1.0, shift=0.0, noise=0.0, rows=(), box=((6, 10), (45, 48))):
    """A CSV of n readings of `smooth`, `rows` behind them; returns their coordinates and values."""
    random = np.random.default_rng(3)
    x, y = (random.uniform(low, high, n).round(4) for low, high in box)
    value = scale * (smooth(x - box[0][0], y - box[1][0]) + noise * random.normal(size=n)) + shift
    pandas.DataFrame({names[0]: x, names[1]: y, header: value}).to_csv(path, index=False)
    with open(path, "a") as file:
        file.writelines(f"{row}\n" for row in rows)
    return x, y, value


def made(tmp_path, *words, code=0):
    """The dataset that the command writes for tmp_path/a.csv."""
    assert main(["reconstruct", str(tmp_path / "a.csv"), "--out", str(tmp_path / "f.nc"), *map(str, words)]) == code
    with xarray.open_dataset(tmp_path / "f.nc", engine="h5netcdf") as file:
        return file.load()


@pytest.fixture
def whole():
    """For tests that look at the picture and the page; the others do without, which is faster."""


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    if "whole" not in request.fixturenames:
        monkeypatch.setattr(delivery, "png", lambda fig: b"")
        monkeypatch.setattr(delivery, "document", lambda *given: "")


@pytest.fixture
def past(tmp_path):
    """40 past fields of two patterns on a grid with the south first, temperatures in degC; returns the grid and one more field."""
    random = np.random.default_rng(0)
    lat, lon = np.linspace(45, 48, 13), np.linspace(6, 10, 17)
    x, y = np.meshgrid(lon - 6, lat - 45)
    weight = random.normal(size=(41, 2, 1, 1))
    fields = 12 + weight[:, 0] * np.sin(2.1 * x) + weight[:, 1] * np.cos(1.7 * y)
    fields[:, 0, 0] = np.nan  # a node where nothing is measured
    cube = xarray.DataArray(fields[:40], dims=("time", "lat", "lon"), coords={"lat": lat, "lon": lon}, attrs={"units": "degC"})
    cube.to_dataset(name="t").to_netcdf(tmp_path / "past.nc", engine="h5netcdf")
    return lon, lat, fields[40]


# ---- the whole way ----


def test_a_field_with_all_its_files(tmp_path, capsys, whole):
    x, y, value = stations(tmp_path / "a.csv", rows=("7,46,", "8,46,NaN"), n=30)
    found = made(tmp_path, "--grid", "24x30", "--samples", "3")
    assert dict(found.sizes) == {"lat": 24, "lon": 30, "sample": 3, "reading": 30}
    assert found.attrs["Conventions"] == "CF-1.11" and {"title", "source", "history", "comment"} <= set(found.attrs)
    assert (found.lat.standard_name, found.lat.units, found.lat.axis) == ("latitude", "degrees_north", "Y")
    assert (found.lon.standard_name, found.lon.units, found.lon.axis) == ("longitude", "degrees_east", "X")
    assert {found[name].units for name in ("mean", "std", "samples", "reading_value")} == {"degC"}
    assert found["mean"].cell_methods == "area: point" and found["mean"].ancillary_variables == "std"
    assert found.sample.standard_name == "realization" and found["reading_value"].coords.keys() >= {"reading_lon", "reading_lat"}
    assert not {"_FillValue"} & set(found.lat.encoding) or found.lat.encoding["_FillValue"] is None
    assert found.lat[0] > found.lat[-1], "north at the top"
    order = np.lexsort((y, x))
    np.testing.assert_allclose(found.reading_value[np.lexsort((found.reading_lat, found.reading_lon))], value[order])
    truth = smooth(found.lon - 6, found.lat - 45)
    assert float(np.sqrt(((found["mean"] - truth) ** 2).mean())) < 0.3 and (found["std"] > 0).all()
    said = capsys.readouterr().out
    assert "method    gp: no past fields" in said and "30 sites from 32 rows; 2 without a value" in said
    assert re.search(r"left out  RMS \S+ degC, \d+ % of the readings' deviation; 90 % intervals hold \d+ of 30", said)
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "f.html").read_text()
    assert "Plotly.newPlot" in page and not re.search(r'<script[^>]*src="http', page) and "30 sites from 32 rows" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "f.html", "f.nc", "f.png"]


def test_the_answer_does_not_depend_on_the_unit(tmp_path):
    stations(tmp_path / "a.csv", noise=0.1)
    first = made(tmp_path, "--grid", "12x12", "--samples", "2")
    stations(tmp_path / "a.csv", noise=0.1, scale=10.0, shift=100.0)
    second = made(tmp_path, "--grid", "12x12", "--samples", "2")
    for name, shift, tolerance in (("mean", 100, 1e-4), ("std", 0, 1e-4), ("samples", 100, 1e-2), ("reading_left_out", 100, 1e-4)):
        np.testing.assert_allclose(second[name], 10 * first[name] + shift, rtol=0, atol=tolerance)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("method", ["gp", "constant", "nearest", "linear", "thin_plate", "oracle"])
def test_few_readings_in_another_unit_give_the_same_answer(tmp_path, n, method):
    answers = []
    for scale, shift in ((1, 0), (10, 100)):
        stations(tmp_path / "a.csv", n=n, scale=scale, shift=shift)
        answers.append(made(tmp_path, "--grid", "5x6", "--samples", 0, "--method", method))
    np.testing.assert_allclose(answers[1]["mean"], 10 * answers[0]["mean"] + 100, rtol=0, atol=1e-5)
    np.testing.assert_allclose(answers[1]["std"], 10 * answers[0]["std"], rtol=1e-5)


def test_the_mean_passes_through_readings_without_noise(tmp_path):
    x, y, value = stations(tmp_path / "a.csv", names=("x", "y"), header="value (K)", box=((0, 4), (0, 3)))
    nodes = xarray.Dataset(coords={"y": np.sort(y), "x": np.sort(x)})
    nodes.to_netcdf(tmp_path / "grid.nc", engine="h5netcdf")
    found = made(tmp_path, "--like", tmp_path / "grid.nc", "--samples", "0")
    at = found["mean"].sel(x=xarray.DataArray(x, dims="r"), y=xarray.DataArray(y, dims="r"))
    np.testing.assert_allclose(at, value, rtol=0, atol=0.02)
    assert "samples" not in found and found["mean"].units == "K" and found.x.axis == "X"


def test_the_column_and_its_unit_are_the_users(tmp_path):
    stations(tmp_path / "a.csv", header="Salinity (g/kg)", n=8)
    found = made(tmp_path, "--grid", "4x4", "--samples", "1", "--column", "salinity")
    assert found["mean"].units == "g/kg" and "salinity" in found["mean"].long_name and "salinity" in found.title


# ---- where things are ----


def test_a_given_grid_gives_its_own_coordinates(tmp_path):
    stations(tmp_path / "a.csv", n=12)
    lat, lon = np.array([45.1, 45.5, 46.9, 47.2]), np.array([369.0, 367.5, 366.2])  # south first, east first, one turn further
    grid = xarray.Dataset({"mask": (("latitude", "longitude"), np.ones((4, 3)))}, {"latitude": lat, "longitude": lon})
    grid.to_netcdf(tmp_path / "grid.nc", engine="h5netcdf")
    found = made(tmp_path, "--like", tmp_path / "grid.nc")
    np.testing.assert_array_equal(found.latitude, lat)
    np.testing.assert_array_equal(found.longitude, lon)
    truth = smooth(found.longitude - 366, found.latitude - 45)
    assert (
        float(abs(found["mean"] - truth).max()) < 1.5
        and float(np.corrcoef(found["mean"].values.ravel(), truth.values.T.ravel())[0, 1]) > 0.9
    )


def test_readings_across_the_date_line_are_neighbours(tmp_path):
    x, _, _ = stations(tmp_path / "a.csv", box=((176, 184), (-3, 3)))
    table = pandas.read_csv(tmp_path / "a.csv")
    plain = made(tmp_path, "--grid", "9x9", "--samples", "0")
    table["lon"] = (table["lon"] + 180) % 360 - 180
    table.to_csv(tmp_path / "a.csv", index=False)
    crossing = made(tmp_path, "--grid", "9x9", "--samples", "0")
    np.testing.assert_allclose(crossing.lon, plain.lon, atol=1e-9)
    np.testing.assert_allclose(crossing["mean"], plain["mean"], rtol=0, atol=1e-5)
    assert float(crossing.lon[-1] - crossing.lon[0]) < 10 and x.max() > 180
    np.testing.assert_array_equal(frame.joined(np.array([-170.0, 0.0, 170.0])), [-170, 0, 170])


def test_distance_is_the_same_both_ways_on_the_square():
    """At 60 degrees north, a degree of longitude is half as long as one of latitude."""
    grid = frame.Grid(np.linspace(0, 8, 5), np.linspace(62, 58, 5), ("lon", "lat"))
    corner, east, north = frame.even(grid, np.zeros((0, 2)))(np.array([[0.0, 58.0], [2.0, 58.0], [0.0, 59.0]]))
    np.testing.assert_allclose(east - corner, [0.5, 0], atol=1e-12)
    np.testing.assert_allclose(north - corner, [0, -0.5], atol=1e-12)
    s = frame.even(grid, np.zeros((0, 2)))(grid.nodes())
    assert abs(s).max() == pytest.approx(1) and (np.diff(s.reshape(5, 5, 2)[:, 0, 1]) > 0).all()


def test_the_square_of_past_fields_is_that_of_their_nodes():
    for rows in (np.linspace(45, 48, 4), np.array([48.0, 47.5, 46.0, 45.0])):
        grid = frame.Grid(np.linspace(6, 10, 5), rows, ("lon", "lat"))
        np.testing.assert_allclose(frame.indexed(grid)(grid.nodes()), data.grid((4, 5)).numpy(), atol=1e-6)
        assert (frame.on_grid((4, 5), frame.indexed(grid)(grid.nodes())) == np.arange(20)).all()


def test_a_default_grid_has_square_cells_around_the_readings():
    places = np.array([[0.0, 58.0], [8.0, 62.0]])
    grid = frame.around(places, ("lon", "lat"))
    rows, columns = grid.shape
    assert rows * columns <= baselines.MOST_SAMPLED and rows * columns > 3500
    assert abs(grid.x[1] - grid.x[0]) / 2 == pytest.approx(abs(grid.y[1] - grid.y[0]), rel=0.05)
    assert (grid.x[0], grid.x[-1], grid.y[0], grid.y[-1]) == pytest.approx((-0.4, 8.4, 62.2, 57.8))


# ---- past fields ----


def test_past_fields_are_learned_from_where_they_lie(tmp_path, past, capsys):
    """Two patterns are found again from six readings at nodes; the answer lies on the past fields' own grid, its gaps stay gaps."""
    lon, lat, truth = past
    nodes = [(3, 2), (8, 9), (12, 15), (5, 6), (10, 3), (2, 12)]
    rows = [f"{lon[j] - 360 * (i % 2)},{lat[i]},{truth[i, j]}" for i, j in nodes]  # some one turn away
    (tmp_path / "a.csv").write_text("\n".join(["lon,lat,value", *rows]) + "\n")
    found = made(tmp_path, "--data", tmp_path / "past.nc", "--method", "oi", "--samples", "2").sortby("lat")
    np.testing.assert_allclose(found.lat, lat)
    np.testing.assert_allclose(found["mean"], truth, rtol=0, atol=1e-3)
    assert bool(found["mean"][0, 0].isnull()) and int(found["mean"].isnull().sum()) == 1 and found["mean"].units == "degC"
    assert "method    oi: chosen" in capsys.readouterr().out
    small = made(tmp_path, "--data", tmp_path / "past.nc", "--method", "oi", "--grid", "7x9", "--samples", "0")
    assert small.sizes["lat"] == 7 and float(small.lon[0]) == 6 and "samples" not in small


def test_auto_says_why(past, tmp_path):
    stations(tmp_path / "a.csv", n=9)
    found = intake.read(tmp_path / "a.csv")
    history = intake.past_fields(tmp_path / "past.nc", found, None)
    name, why = reconstruct.choose("auto", None, history)
    assert name == "v5" and "40 past fields" in why
    assert reconstruct.choose("auto", None, None) == ("gp", "no past fields to learn from (--data)")
    few = intake.Past(history.fields[:3], history.grid, history.low, history.high, "", history.known)
    assert reconstruct.choose("auto", None, few)[0] == "gp"


def test_fields_over_lon_and_lat_in_either_order_are_the_same(past, tmp_path):
    with xarray.open_dataset(tmp_path / "past.nc", engine="h5netcdf") as file:
        file.load().transpose("time", "lon", "lat").to_netcdf(tmp_path / "turned.nc", engine="h5netcdf")
    stations(tmp_path / "a.csv", n=5)
    found = intake.read(tmp_path / "a.csv")
    one, other = (intake.past_fields(tmp_path / name, found, None) for name in ("past.nc", "turned.nc"))
    torch.testing.assert_close(one.fields, other.fields, equal_nan=True)
    np.testing.assert_array_equal(one.grid.x, other.grid.x)


# ---- how far to trust it ----


def test_readings_left_out_in_closed_form_are_those_left_out_one_by_one(tmp_path):
    """Mean and variance of the reading, noise included, from a process fitted to the others with the same hyperparameters."""
    torch.manual_seed(0)
    random = np.random.default_rng(5)
    s = random.uniform(-1, 1, (1, 14, 2))
    y = np.sin(2 * s[..., :1]) + s[..., 1:] + 0.1 * random.normal(size=(1, 14, 1))
    batch = data.readings(*map(torch.from_numpy, (s, y, s)))
    left = baselines.gp_left_out(batch, noise=0.1)
    fit = baselines._fits(batch, None, ("rbf", "matern"), 0.1)[0]
    kernel, alpha = fit.process.kernel_, fit.process.alpha
    for i in range(14):
        rest = np.delete(np.arange(14), i)
        K = kernel(s[0, rest]) + alpha * np.eye(13)
        k = kernel(s[0, rest], s[0, [i]])[:, 0]
        mean = fit.level + k @ np.linalg.solve(K, y[0, rest] - fit.level)
        var = fit.scale**2 * (kernel(s[0, [i]])[0, 0] + alpha - k @ np.linalg.solve(K, k))
        np.testing.assert_allclose([left.mean[0, i, 0], left.std[0, i, 0] ** 2], [mean[0], var[0]], rtol=1e-6)


def test_a_known_noise_is_used_in_the_readings_unit(tmp_path):
    square = {"names": ("x", "y"), "n": 30, "noise": 0.8, "box": ((0, 4), (0, 3))}
    x, y, value = stations(tmp_path / "a.csv", **square)
    xarray.Dataset(coords={"y": np.sort(y), "x": np.sort(x)}).to_netcdf(tmp_path / "grid.nc", engine="h5netcdf")
    words = ("--like", tmp_path / "grid.nc", "--samples", "0", "--noise")
    exact, loose = (made(tmp_path, *words, noise) for noise in (0.001, 0.8))
    at = {"x": xarray.DataArray(x, dims="r"), "y": xarray.DataArray(y, dims="r")}
    assert float(abs(exact["mean"].sel(at) - value).max()) < 0.01 < 0.3 < float(abs(loose["mean"].sel(at) - value).max())
    stations(tmp_path / "a.csv", **square, scale=1000.0)
    np.testing.assert_allclose(made(tmp_path, *words, 800)["mean"], 1000 * loose["mean"], rtol=1e-5)


@pytest.mark.parametrize("method", ["thin_plate", "biharmonic", "nearest"])
def test_a_method_without_a_deviation_gets_its_error_at_readings_left_out(tmp_path, method):
    stations(tmp_path / "a.csv", n=20)
    found = made(tmp_path, "--method", method, "--grid", "20x20")
    error = found.reading_left_out - found.reading_value
    np.testing.assert_allclose(found["std"], float(np.sqrt((error**2).mean())), rtol=1e-6)
    assert "samples" not in found and "left out" in found["std"].comment and float(abs(error).max()) > 0.01


def test_samples_of_a_fine_grid_agree_with_mean_and_deviation(tmp_path, monkeypatch):
    """Drawn on a coarser grid and carried over: their spread is still the standard deviation, within the error of 200 samples."""
    monkeypatch.setattr(baselines, "MOST_SAMPLED", 700)
    monkeypatch.setattr(frame, "NODES", 600)
    stations(tmp_path / "a.csv", n=25, noise=0.3)
    found = made(tmp_path, "--grid", "40x40", "--samples", "200")
    z = (found["samples"] - found["mean"]) / found["std"]
    assert float(abs(z.mean("sample")).max()) < 0.5 and 0.8 < float(z.std("sample").min()) and float(z.std("sample").max()) < 1.25
    assert float(z.diff("lon").std()) < 0.5, "neighbouring nodes belong together"


def test_one_reading_answers_with_a_wide_deviation(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("lon,lat,value [K]\n7,46,280\n")
    found = made(tmp_path, "--grid", "6x6")
    assert float(found["mean"].min()) == pytest.approx(280) == float(found["mean"].max()) and float(found["std"].max()) > 100
    said = capsys.readouterr().out
    assert "one reading has no deviation, 280 stands in for it" in said and "one reading cannot be checked" in said


def test_two_readings_at_one_site_count_once(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("x,y,value\n0,0,1\n0,0,3\n1,1,5\n1,0,4\n")
    found = made(tmp_path, "--grid", "4x4")
    assert sorted(found.reading_value.values) == [2, 4, 5]
    assert "3 sites from 4 rows; 1 at a site read before, averaged" in capsys.readouterr().out


# ---- what goes wrong ----

GOOD = "lon,lat,value [K]\n6,45,1\n7,46,2\n8,45,3\n"


@pytest.mark.parametrize(
    ("content", "words", "says"),
    [
        (None, (), "a.csv' is not a file; give a .csv with the columns x, y, value (or lon, lat, value)"),
        ("garbage \x00 text\n", (), "a.csv' has the columns garbage"),
        ("lon,lat,temperature\n1,2,3\n", (), "it needs x, y, value (or lon, lat, value): rename them in the first line"),
        (GOOD, ("--column", "temp"), "where temp stands for value"),
        ("lon,lat,value\n", (), "has a header and no rows"),
        ("lon,lat,value\n6,45,\n7,46,NaN\n", (), "has no valid reading: every value is empty or NaN"),
        ("lon,lat,value\n6,45,1\n6,45,2\n", (), "all readings lie at 6, 45; give readings from two places, or a grid with --like"),
        ("lon,lat,value\n6,95,1\n6,45,2\n", (), "lat is 95; give degrees from -90 to 90, or name the columns x and y"),
        (GOOD, ("--method", "gpp"), "unknown method 'gpp'; did you mean 'gp'?"),
        (GOOD, ("--method", "oi"), "'oi' learns from past fields; give them with --data, or use gp"),
        (GOOD, ("--grid", "256"), "--grid is '256'; give ROWSxCOLUMNS"),
        (GOOD, ("--grid", "1x9"), "--grid is '1x9'"),
        (GOOD, ("--grid", "9x9", "--like", "a.nc"), "--grid and --like both name a grid"),
        (GOOD, ("--like", "none.nc"), "--like 'none.nc' is not a file"),
        (GOOD, ("--like", "bare.nc"), "bare.nc' has the coordinates depth; the readings need lon and lat"),
        (GOOD, ("--data", "none.nc"), "'none.nc' does not exist"),
        (GOOD, ("--data", "plain.npy"), "'plain.npy' has no coordinates to place lon and lat on"),
        (GOOD, ("--data", "past.nc"), "the readings are in K, the fields of 'past.nc' in degC; convert one of them"),
        ("lon,lat,value\n6,45,1\n20,46,2\n", ("--data", "past.nc"), "a reading lies at 20, 46, outside the past fields (lon 6 to 10,"),
        (GOOD, ("--samples", "-1"), "--samples is -1; give 0 or more"),
        (GOOD, ("--noise", "loud"), "--noise is 'loud'; give auto, or the standard deviation"),
        (GOOD, ("--noise", "0.1", "--method", "linear"), "linear finds the noise itself"),
        (GOOD, ("--weights", "w.safetensors", "--method", "gp"), "--weights belong to v5"),
        (GOOD, ("--out", "none/f.nc"), "the folder 'none' does not exist"),
        (GOOD, ("--out", "f.txt"), "give a file that ends in .nc"),
        (GOOD, ("--output", "here"), "reconstruct writes where --out says"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, past, monkeypatch, capsys, content, words, says):
    monkeypatch.chdir(tmp_path)
    np.save("plain.npy", np.random.default_rng(0).normal(size=(12, 4, 5)))
    xarray.Dataset(coords={"depth": [1.0, 2.0]}).to_netcdf("bare.nc", engine="h5netcdf")
    if content is not None:
        (tmp_path / "a.csv").write_text(content)
    before = sorted(tmp_path.iterdir())
    assert main(["reconstruct", "a.csv", *(() if "--out" in words else ("--out", "f.nc")), *words]) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_that_fails_leaves_the_old_files(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text(GOOD)
    for name in ("f.nc", "f.png", "f.html"):
        (tmp_path / name).write_text("old")
    monkeypatch.setattr(delivery, "document", lambda *given: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert main(["reconstruct", str(tmp_path / "a.csv"), "--out", str(tmp_path / "f.nc"), "--grid", "4x4"]) == 2
    assert {path.name: path.read_text() for path in tmp_path.glob("f.*")} == dict.fromkeys(("f.nc", "f.png", "f.html"), "old")
    assert len(list(tmp_path.iterdir())) == 4, "nothing half-written is left"


def test_the_page_shows_mean_deviation_and_sample_with_units(tmp_path, whole):
    stations(tmp_path / "a.csv", n=9)
    made(tmp_path, "--grid", "6x6", "--samples", "1")
    page = (tmp_path / "f.html").read_text()
    start = [found.end() for found in re.finditer(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*", page)][-1]
    figure, _ = json.JSONDecoder().raw_decode(page[start:])
    maps, dots = figure[::2], figure[1::2]
    assert len(maps) == len(dots) == 3 and {trace["type"] for trace in maps} == {"heatmap"}
    assert "degC" in maps[0]["hovertemplate"] and "±" in maps[0]["hovertemplate"] and "degC" in dots[0]["hovertext"][0]
