"""Priors from the user's fields and from worlds: what is learned, judged, written and read back by a reconstruction."""

import json

import numpy as np
import pytest
import torch
import xarray

from lib import data, learn, reconstruct, v5, weights, worlds
from lib.__main__ import main


@pytest.fixture
def past(tmp_path):
    """24 fields of one wave in kelvin over longitudes and latitudes, and one more that is read."""
    y = 280 + 20 * worlds.get("plane").fields(25, resolution=16, generator=data.generator(3, "train"))[:, 0].numpy()
    axes = {"lat": np.linspace(60, 40, 16), "lon": np.linspace(0, 30, 16)}
    xarray.Dataset({"t": (("time", "lat", "lon"), y[:24], {"units": "K"})}, axes).to_netcdf(tmp_path / "past.nc", engine="h5netcdf")
    rows, columns = np.unravel_index(np.random.default_rng(0).choice(256, 30, replace=False), (16, 16))
    lines = [f"{axes['lon'][c]},{axes['lat'][r]},{y[24, r, c]}" for r, c in zip(rows, columns, strict=True)]
    (tmp_path / "readings.csv").write_text("lon,lat,value [K]\n" + "\n".join(lines))
    return tmp_path, y[24]


def quick(monkeypatch):
    """Without the hybrid, whose fit takes seconds and has tests of its own."""
    monkeypatch.setattr(v5, "EXPERTS", ("past", "waves", "both"))


def test_a_prior_kept_in_a_file_reconstructs_the_readers_field(past, monkeypatch, capsys):
    quick(monkeypatch)
    place, truth = past
    assert main(["train", "--data", str(place / "past.nc"), "--out", str(place / "prior.safetensors")]) == 0
    told = capsys.readouterr().out
    assert "24 of 16 x 16" in told and "held out" in told
    out = place / "field.nc"
    reconstruct.run(place / "readings.csv", out, weights=place / "prior.safetensors", samples=2)
    with xarray.open_dataset(out, engine="h5netcdf") as field:
        assert field["mean"].attrs["units"] == "K"
        assert np.abs(field["mean"].values - truth).max() < 0.01
        assert field.lat.values[0] == 60


def test_the_card_says_what_was_learned_and_how_well_it_predicts(past, monkeypatch):
    quick(monkeypatch)
    place, _ = past
    learn.run(place / "past.nc", place / "prior.safetensors")
    tensors, card = weights.read(place / "prior.safetensors")
    assert card["fields"] == 24 and card["shape"] == [1, 16, 16] and card["unit"] == "K" and card["axes"] == ["lon", "lat"]
    assert 260 <= card["low"] < card["high"] <= 300.1
    assert card["scores"]["methods"]["v5"]["psnr"] > card["scores"]["methods"]["constant"]["psnr"]
    assert tensors["axis_y"][0] == 60 and tensors["known"].bool().all()
    assert json.loads((place / "prior.json").read_text())["sha256"]


def test_a_prior_answers_as_before_it_was_written(tmp_path):
    y = worlds.get("plane").fields(20, resolution=12, generator=data.generator(0, "train"))
    prior = v5.learn(y, experts=("past", "waves", "both"))
    weights.write(tmp_path / "p.safetensors", v5.state(prior), {"kind": v5.KIND})
    batch = data.observe(y[:2], 15)
    torch.testing.assert_close(v5.predict(v5.load(tmp_path / "p.safetensors"), batch).mean, v5.predict(prior, batch).mean)


def test_files_stay_below_their_largest_size_by_precision_then_by_the_smallest_columns():
    steep = torch.randn(10, 1, 20, dtype=torch.float64) * 10.0 ** -torch.arange(20)
    tensors = {"flat": torch.randn(10, 1, 20, dtype=torch.float64), "steep": steep, "level": torch.zeros(1, dtype=torch.float64)}
    assert learn.fitting(tensors, 1e6)["flat"].dtype == torch.float64
    small = learn.fitting(tensors, 1000.0)
    assert small["flat"].dtype == torch.float32 and small["level"].dtype == torch.float64
    assert 900 < learn._bytes(small) <= 1000
    assert torch.equal(small["steep"], steep[..., :4].float()) and small["flat"].shape[-1] == 20
    least = learn.fitting(tensors, 1.0)  # never fewer than one column
    assert [least[name].shape for name in ("flat", "steep")] == [(10, 1, 1)] * 2
    without = learn.fitting(tensors | {"none": torch.zeros(1, 4, 0, dtype=torch.float64)}, 1000.0)  # processes without components
    assert without["none"].shape == (1, 4, 0) and without["steep"].shape[-1] == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "x.safetensors"], "give them with --data"),
        (["--world", "plane", "--data", "x.nc", "--out", "x.safetensors"], "give them with --data"),
        (["--world", "plane", "photos", "--out", "{}/x.safetensors"], "differ in channels or resolution"),
        (["--world", "plain", "--out", "{}/x.safetensors"], "did you mean 'plane'"),
        (["--world", "plane", "--out", "{}/x.pt"], "give a .safetensors file"),
        (["--data", "{}/none.nc", "--out", "{}/x.safetensors"], "none.nc"),
    ],
)
def test_bad_input_is_one_line(words, says, tmp_path, capsys):
    assert main(["train", *(word.format(tmp_path) for word in words)]) == 2
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == 1


def test_too_few_fields_are_refused(tmp_path):
    np.save(tmp_path / "few.npy", np.random.default_rng(0).random((4, 8, 8)))
    with pytest.raises(ValueError, match="holds 4 fields; give at least 10"):
        learn.run(tmp_path / "few.npy", tmp_path / "x.safetensors")


def test_a_world_of_few_fields_is_learned_from_each_of_them_once(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(learn, "_learned", lambda kinds, *rest: seen.extend(kinds) or [])
    learn.of_worlds(["faces"], tmp_path / "faces.safetensors", fields=500)
    assert len(seen) == 1 and len(seen[0]) == len(torch.unique(seen[0].flatten(1), dim=0)) == 70


def test_several_worlds_are_kinds_of_their_own(tmp_path, monkeypatch, capsys):
    quick(monkeypatch)
    monkeypatch.setattr(v5, "BASES", ("past",))
    assert main(["train", "--world", "radial", "separable", "--fields", "60", "--out", str(tmp_path / "two.safetensors")]) == 0
    tensors, card = weights.read(tmp_path / "two.safetensors")
    assert card["fields"] == 60 and {"past", "past1"} <= set(tensors) and "6 fields" in card["scores"]["told"]
    assert [len(table.values) for table in v5.load(tmp_path / "two.safetensors").past] == [1024, 1024]
    assert "60 of 32 x 32" in capsys.readouterr().out
