"""The user's own files: every format gives back what was written, and every wrong file is one line that says what to do."""

import numpy as np
import pandas
import pytest
import torch
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib import data, files, worlds


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def table(y, x=None, rows=None, names=("x", "y")):
    """A long table of fields y (n, H, W), shuffled."""
    n, height, width = y.shape
    x, rows = np.arange(width) if x is None else x, np.arange(height) if rows is None else rows
    field, down, across = (a.ravel() for a in np.meshgrid(np.arange(n), rows, x, indexing="ij"))
    return pandas.DataFrame({names[0]: across, names[1]: down, "value": y.ravel(), "field": field}).sample(frac=1, random_state=0)


def one_line(error):
    return "\n" not in str(error.value)


# ---- fields: what is written is read ----


@pytest.mark.parametrize("shape", [(7, 9), (5, 7, 9), (5, 3, 7, 9)])
def test_arrays_become_fields(tmp_path, shape):
    a = numbers(*shape)
    np.save(tmp_path / "a.npy", a)
    np.savez(tmp_path / "one.npz", a)
    np.savez(tmp_path / "two.npz", first=a, second=2 * a)
    n, channels = {2: (1, 1), 3: (shape[0], 1), 4: shape[:2]}[len(shape)]
    expected = torch.from_numpy(a.reshape(n, channels, 7, 9))
    assert torch.equal(files.read_fields(tmp_path / "a.npy").y, expected)
    assert torch.equal(files.read_fields(tmp_path / "one.npz").y, expected)
    assert torch.equal(files.read_fields(tmp_path / "two.npz", "second").y, 2 * expected)


@pytest.mark.parametrize("engine", ["h5netcdf", "scipy"])
def test_a_netcdf_variable_keeps_its_coordinates_and_unit(tmp_path, engine):
    a = numbers(4, 6, 8)
    a[:, 0, 0] = np.nan
    time, lat, lon = np.arange(4), np.linspace(50, 40, 6), np.linspace(-10, 4, 8)
    cube = xarray.DataArray(a, {"time": time, "lat": lat, "lon": lon}, ("time", "lat", "lon"), attrs={"units": "mol m-3"})
    bounds = xarray.DataArray(np.zeros((4, 2)), dims=("time", "bnds"))
    file = xarray.Dataset({"tracer": cube, "time_bnds": bounds})
    file.time.attrs["bounds"] = "time_bnds"
    file.to_netcdf(tmp_path / "a.nc", engine=engine)
    found = files.read_fields(tmp_path / "a.nc")
    np.testing.assert_array_equal(found.y[:, 0].numpy(), a)
    assert found.unit == "mol m-3" and [name for name, _ in found.axes] == ["lat", "lon"]
    np.testing.assert_array_equal(found.axes[0][1], lat)
    np.testing.assert_array_equal(found.axes[1][1], lon)
    world = worlds.open_fields(tmp_path / "a.nc")
    assert world.unit == "mol m-3" and world.axes()[1][0] == "lon" and world.resolution == (6, 8)


@given(st.integers(1, 3), st.integers(2, 5), st.integers(2, 5), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_long_table_in_any_order_becomes_fields(tmp_path_factory, n, height, width, seed):
    y = numbers(n, height, width, seed=seed)
    path = tmp_path_factory.mktemp("t") / "a.csv"
    table(y, x=10 + 0.5 * np.arange(width), rows=-3 + 2.0 * np.arange(height)).to_csv(path, index=False)
    found = files.read_fields(path)
    torch.testing.assert_close(found.y[:, 0], torch.from_numpy(y))
    np.testing.assert_allclose(found.axes[1][1], 10 + 0.5 * np.arange(width))
    np.testing.assert_allclose(found.axes[0][1], -3 + 2.0 * np.arange(height))


def test_a_table_of_lon_and_lat_has_north_at_the_top_and_may_leave_out_the_field(tmp_path):
    y = numbers(1, 3, 4)
    y[0, 1, 2] = np.nan
    table(y, rows=[40, 50, 60], names=("Lon", "Latitude")).drop(columns="field").to_csv(tmp_path / "a.csv", index=False)
    found = files.read_fields(tmp_path / "a.csv")
    np.testing.assert_allclose(found.y[0, 0].numpy(), y[0, ::-1])
    assert found.axes[0][1].tolist() == [60, 50, 40]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("1", 1), ("I;16", 1)])
def test_a_folder_of_pictures_becomes_fields_in_the_order_of_names(tmp_path, mode, channels):
    for name, value in (("b.png", 200), ("a.png", 30)):
        grey = Image.fromarray(np.full((6, 9), value, np.uint16)) if mode == "I;16" else Image.new("L", (9, 6), value)
        (grey if mode in ("L", "I;16") else grey.convert(mode)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    y = files.read_fields(tmp_path).y
    assert y.shape == (2, channels, 6, 9) and y[1].mean() > y[0].mean()
    if mode in ("L", "I;16"):
        assert y[0].unique().tolist() == [30] and y[1].unique().tolist() == [200]


def test_one_picture_is_one_field_and_its_colours_are_kept(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert torch.equal(files.read_fields(tmp_path / "a.png").y[0], torch.from_numpy(rgb).movedim(-1, 0).float())


# ---- own worlds ----


def test_own_fields_are_split_by_the_seed_and_scaled_by_their_training_part(tmp_path):
    a = 300 + 20 * numbers(40, 6, 6)
    np.save(tmp_path / "mine.npy", a)
    world, other = (worlds.open_fields(tmp_path / "mine.npy", seed=seed) for seed in (0, 1))
    assert (world.name, world.kind, world.channels, world.resolution) == ("mine", "own", 1, (6, 6))
    whole = {split: world.fields(n, split=split) for split, n in (("train", 32), ("validation", 4), ("test", 4))}
    assert whole["train"].min() == 0 and whole["train"].max() == 1
    back = torch.cat([world.to_units(y) for y in whole.values()])
    assert sorted(back[:, 0, 0, 0].round(decimals=2).tolist()) == sorted(torch.from_numpy(a[:, 0, 0]).round(decimals=2).tolist())
    torch.testing.assert_close(back.flatten().sort().values, torch.from_numpy(a).flatten().sort().values, rtol=1e-5, atol=0)
    assert not torch.equal(other.load().parts["test"][0], world.load().parts["test"][0])
    assert worlds.open_fields(tmp_path / "mine.npy").load().parts["test"][0].equal(world.load().parts["test"][0])


@given(st.integers(3, 60))
@settings(max_examples=30, deadline=None)
def test_every_part_has_a_field_and_none_is_lost(n):
    y = torch.arange(float(n)).reshape(n, 1, 1, 1) + torch.rand(1, 1, 2, 2)
    parts = files.split(files.Fields(y)).parts
    sizes = [len(parts[name][0]) for name in ("train", "validation", "test")]
    assert min(sizes) >= 1 and sum(sizes) == n and sizes[1] == sizes[2] == max(1, round(0.1 * n))
    assert sorted(torch.cat([p[0] for p in parts.values()]).floor()[:, 0, 0, 0].tolist()) == list(range(n))


def test_one_field_is_used_everywhere_and_the_note_says_so(tmp_path):
    np.save(tmp_path / "a.npy", numbers(6, 6))
    world = worlds.open_fields(tmp_path / "a.npy")
    assert torch.equal(world.fields(1), world.fields(1, split="test")) and "too few to split" in world.note
    assert data.observe(world.fields(4), 10).s_obs.shape == (4, 10, 2)


def test_infinite_values_are_masked_sites(tmp_path):
    a = numbers(3, 4, 4)
    a[:, 1, 2] = np.inf
    np.save(tmp_path / "a.npy", a)
    y = worlds.open_fields(tmp_path / "a.npy").fields(1)
    assert y[0, 0, 1, 2].isnan() and y.isfinite().sum() == 15


# ---- fields: what is wrong ----


def write(path, content):
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.npy", None, r"none.npy' does not exist; give a file \(.npy .npz .nc .csv .png .jpg\) or a folder of pictures"),
        ("a.mat", "x", r"a.mat' ends in '.mat'; give a file"),
        ("a.npy", b"\x93NUMPY garbage", r"a.npy' cannot be read as .npy \(.*\); write it again"),
        ("a.npy", b"", r"a.npy' cannot be read as .npy"),
        ("a.npy", np.zeros(5), r"a.npy' has shape \(5,\); give \(H, W\), \(fields, H, W\) or \(fields, channels, H, W\)"),
        ("a.npy", np.zeros((2, 2, 2, 2, 2)), r"a.npy' has shape \(2, 2, 2, 2, 2\)"),
        ("a.npy", np.full((3, 4, 4), np.nan), r"a.npy' holds no number: every value is NaN or infinite"),
        ("a.npy", np.zeros((0, 4, 4)), r"a.npy' holds no number"),
        ("a.npy", np.zeros((3, 1, 9)), r"a.npy' holds fields of 1 x 9 sites; give at least 2 x 2"),
        ("a.npy", np.zeros((3, 4, 4), complex), r"a.npy' holds complex128; give real numbers"),
        ("a.npy", np.array([["a", "b"], ["c", "d"]]), r"a.npy' holds <U1; give real numbers"),
        ("a.npy", np.ones((3, 4, 4)), r"the fields are 1 everywhere; give fields that vary"),
        ("a.npz", b"PK no archive", r"a.npz' cannot be read as .npz"),
        ("a.nc", b"no netcdf", r"a.nc' cannot be read as .nc"),
        ("a.nc", b"CDF\x01 cut", r"a.nc' cannot be read as .nc"),
        ("a.png", b"no picture", r"a.png' cannot be read as .png"),
        ("a.csv", "", r"a.csv' is empty; give a .csv with the columns x, y, value \(or lon, lat, value\)"),
        ("a.csv", "x,y,z\n1,2,3\n", r"a.csv' has the columns x, y, z; it needs x, y, value \(or lon, lat, value\): rename them"),
        ("a.csv", "x,y,value\n0,0,1\n1,0,2\n0,1,3\n", r"a.csv' has 3 rows, but 2 x x 2 y x 1 fields need 4; fill the grid"),
        ("a.csv", "x,y,value\n0,0,1\n1,0,2\n0,0,3\n", r"a.csv' line 4 repeats a place \(x, y\); give one value per site"),
        ("a.csv", "x,y,value\n0,0,1\n1,0,2\n5,0,2\n0,1,1\n1,1,2\n5,1,2\n", r"the steps of x vary from 1 to 4; give a regular grid"),
        ("a.csv", "x,y,value\n0,0,1\n1,zero,2\n", r"a.csv' line 3: y is 'zero'; give a number$"),
    ],
)
def test_a_wrong_file_is_named_with_what_to_do(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif content is not None:
        write(path, content)
    with pytest.raises(ValueError, match=message) as error:
        worlds.open_fields(path)
    assert one_line(error)


def test_pickled_arrays_are_not_opened(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{}, 1], [2, 3]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"a.npy' cannot be read as .npy \(Object arrays cannot be loaded") as error:
        worlds.open_fields(tmp_path / "a.npy")
    assert one_line(error)


def test_a_truncated_array_is_named(tmp_path):
    np.save(tmp_path / "a.npy", numbers(9, 9))
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a.npy' cannot be read as .npy"):
        worlds.open_fields(tmp_path / "a.npy")


def test_a_truncated_picture_is_named(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"a.png' cannot be read as .png"):
        worlds.open_fields(tmp_path)


def test_several_variables_need_a_choice(tmp_path):
    np.savez(tmp_path / "a.npz", u=numbers(4, 4), v=numbers(4, 4))
    with pytest.raises(ValueError, match=r"a.npz' holds u, v, and the call names no variable; choose one with variable=NAME"):
        worlds.open_fields(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"a.npz' holds u, v, and the call asks for 'w'"):
        worlds.open_fields(tmp_path / "a.npz", "w")


def test_a_netcdf_variable_with_other_dimensions_is_refused(tmp_path):
    deep = xarray.DataArray(np.zeros((2, 3, 4, 5)), dims=("time", "depth", "lat", "lon"))
    xarray.Dataset({"deep": deep}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"a.nc' holds no fields, and the call names no variable"):
        worlds.open_fields(tmp_path / "a.nc")
    with pytest.raises(
        ValueError, match=r"deep has dimensions \('time', 'depth', 'lat', 'lon'\) .*; give numbers over \(y, x\) or \(time, y, x\)"
    ):
        worlds.open_fields(tmp_path / "a.nc", "deep")


def test_pictures_that_differ_and_empty_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no pictures; put .png .jpg .jpeg files of one size there"):
        worlds.open_fields(tmp_path)
    Image.new("L", (9, 6), 3).save(tmp_path / "a.png")
    Image.new("L", (9, 7), 3).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"differ: a.png is 9 x 6 with 1 channels but b.png is 9 x 7 with 1 channels; make them alike"):
        worlds.open_fields(tmp_path)
    (tmp_path / "b.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"b.png' cannot be read as .png"):
        worlds.open_fields(tmp_path)


# ---- readings ----


@given(st.integers(2, 30), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_readings_map_to_the_square_and_back(tmp_path_factory, n, seed):
    """A grid over the box has its corners at the extremes, and the coordinates of a site are linear in between."""
    random = np.random.default_rng(seed)
    x, y, value = random.uniform(-80, 40, n), random.uniform(3, 9, n), random.normal(size=n)
    path = tmp_path_factory.mktemp("r") / "a.csv"
    pandas.DataFrame({"value": value, "y": y, "x": x}).to_csv(path, index=False)
    found = files.read_readings(path)
    assert found.s_obs.shape == (1, n, 2) and found.s_obs.abs().max() <= 1 + 1e-6
    (down, rows), (across, columns) = found.axes((5, 7))
    assert (down, across) == ("y", "x")
    np.testing.assert_allclose(np.interp(found.s_obs[0, :, 0], np.linspace(-1, 1, 7), columns), x, rtol=0, atol=1e-4)
    np.testing.assert_allclose(np.interp(found.s_obs[0, :, 1], np.linspace(-1, 1, 5), rows), y, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.y_obs[0, :, 0], value, rtol=1e-5)


def test_north_is_at_the_top(tmp_path):
    (tmp_path / "a.csv").write_text("lon,lat,value\n10,40,1\n20,60,2\n")
    found = files.read_readings(tmp_path / "a.csv")
    assert found.s_obs[0].tolist() == [[-1, 1], [1, -1]] and found.axes(3)[0][1].tolist() == [60, 50, 40]


def test_missing_readings_are_masked_in_the_batch(tmp_path):
    (tmp_path / "a.csv").write_text(" X , Y,Value \n0,0,1.5\n1,0,\n0,1,NaN\n1,1,inf\n0.5,0.5,-2\n")
    found = files.read_readings(tmp_path / "a.csv")
    batch = found.batch(4)
    assert found.y_obs.isnan().sum() == 3
    assert batch.m_obs.tolist() == [[True, False, False, False, True]] and batch.y_obs[0, :, 0].tolist() == [1.5, 0, 0, 0, -2]
    assert torch.equal(batch.s_qry[0], data.grid(4)) and batch.y_qry.isnan().all()


def test_a_box_may_be_larger_than_the_readings(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,value\n1,1,3\n")
    found = files.read_readings(tmp_path / "a.csv", box=((0, 2), (0, 4)))
    assert found.s_obs[0].tolist() == [[0, -0.5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"a.csv' is not a file; give a .csv with the columns x, y, value \(or lon, lat, value\)"),
        ("", r"a.csv' is empty"),
        ("x,y,value\n", r"a.csv' has a header and no rows; give one row per reading"),
        ("x,temperature\n1,2\n", r"a.csv' has the columns x, temperature; it needs x, y, value \(or lon, lat, value\)"),
        ("x;y;value\n1;2;3\n", r"a.csv' has the columns x;y;value; it needs x, y, value"),
        ("lon,y,value\n1,2,3\n", r"a.csv' has the columns lon, y, value; it needs"),
        ("x,y,value\n0,0,1\n1,1,warm\n", r"a.csv' line 3: value is 'warm'; give a number or leave it empty"),
        ("x,y,value\n0,,1\n1,1,2\n", r"a.csv' line 2: y is 'nan'; give a number$"),
        ("x,y,value\n0,0,\n1,1,NaN\n", r"a.csv' has no valid reading: every value is empty or NaN; give at least one number"),
        ("x,y,value\n2,0,1\n2,1,2\n", r"a.csv': x runs from 2 to 2; the box needs an extent, give box="),
        ("lon,longitude,lat,value\n2,1,0,1\n", r"a.csv' has two columns named 'lon'; keep one"),
        (b"\xff\xfe\x00\x81,\x00", r"a.csv' cannot be read as .csv"),
        ("x,y,value\n1,2,3\n1,2,3,4,5\n", r"a.csv' cannot be read as .csv"),
    ],
)
def test_wrong_readings_are_named_with_what_to_do(tmp_path, content, message):
    if content is not None:
        write(tmp_path / "a.csv", content)
    with pytest.raises(ValueError, match=message) as error:
        files.read_readings(tmp_path / "a.csv")
    assert one_line(error)


def test_readings_outside_the_box_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("x,y,value\n0,0,1\n5,1,2\n")
    with pytest.raises(ValueError, match=r"x runs from 0 to 5, outside the box 0 to 2; widen it"):
        files.read_readings(tmp_path / "a.csv", box=((0, 2), (0, 2)))
