"""Real worlds: shapes, scaling, held-out parts that share nothing with training, land, and CIFAR-10 from a folder."""

import os
import pickle

import numpy as np
import pytest
import torch

from lib import data, realworlds, worlds

SHAPES = {"air": (1, 37, 49), "sst": (1, 18, 54), "terrain": (1, 32, 32), "photos": (3, 32, 32), "faces": (1, 25, 25)}
each = pytest.mark.parametrize("name", SHAPES)


@each
def test_fields_have_the_stated_shape_and_training_fills_zero_to_one(name):
    world = worlds.get(name)
    y = world.fields(300 if name != "faces" else 70)
    assert y.shape[1:] == SHAPES[name] and (world.channels, *data.shape_of(world.resolution)) == SHAPES[name]
    known = y[y.isfinite()]
    assert known.min() >= 0 and known.max() <= 1
    assert known.max() - known.min() > 0.9


@each
@pytest.mark.parametrize("split", realworlds.SPLITS)
def test_fields_follow_from_the_seed(name, split):
    world = worlds.get(name)
    one, again, other = (world.fields(6, generator=data.generator(seed, "test"), split=split) for seed in (0, 0, 1))
    torch.testing.assert_close(one, again, rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))


@each
def test_no_test_or_validation_field_is_in_the_training_part(name):
    pool = worlds.get(name).load()
    held = [stack for split in ("validation", "test") for stack in pool.parts[split]]
    if pool.crop:  # patches: no column or picture in common; a picture is known by its values
        seen = {stack.contiguous().numpy().tobytes() for stack in pool.parts["train"]}
        assert not seen & {stack.contiguous().numpy().tobytes() for stack in held}
    else:
        seen = {field.numpy().tobytes() for stack in pool.parts["train"] for field in stack}
        assert not seen & {field.numpy().tobytes() for stack in held for field in stack}


def test_air_is_tested_on_years_that_the_two_runs_do_not_share():
    pool = realworlds.air()
    assert {split: len(stacks[0]) for split, stacks in pool.parts.items()} == {"train": 200, "validation": 40, "test": 100}
    assert pool.axes[0][0] == "latitude" and pool.axes[0][1][0] == 60 and pool.axes[1][1][0] == 225  # north at the top
    top, bottom = (pool.parts["train"][0][:, 0, row].mean() for row in (0, -1))
    assert top < bottom - 15  # Kelvin: Canada against the tropics


def test_terrain_is_split_from_west_to_east():
    pool = realworlds.terrain()
    with np.load(realworlds._inside("matplotlib", "mpl-data", "sample_data", "jacksboro_fault_dem.npz")) as file:
        whole = torch.from_numpy(file["elevation"].astype(np.float32))
    joined = torch.cat([pool.parts[split][0][0, 0] for split in realworlds.SPLITS], -1)
    assert torch.equal(joined, whole) and pool.parts["test"][0].shape[-1] >= 64


def test_patches_come_from_all_over_the_picture():
    y = worlds.get("terrain").fields(400, 32, data.generator(0, "train"))
    assert len({patch.numpy().tobytes() for patch in y}) > 390
    assert worlds.get("terrain").fields(3, (20, 48)).shape == (3, 1, 20, 48)


def test_the_sea_has_land_that_never_moves_and_readings_avoid_it():
    world = worlds.get("sst")
    y = world.fields(60, split="test")
    land = y.isnan().float().mean((1, 2, 3))
    assert 0 < land.max() <= 0.5
    batch = data.observe(y, 51, generator=data.generator(0, "sensors"))
    assert batch.y_obs.isfinite().all() and batch.m_obs.all() and batch.y_qry.isnan().any()
    assert torch.equal(realworlds.sst().parts["train"][0][0].isnan(), realworlds.sst().parts["test"][0][-1].isnan())


def test_more_fields_than_the_pool_come_with_replacement_and_fewer_without():
    world = worlds.get("faces")
    assert len({f.numpy().tobytes() for f in world.fields(20, split="test")}) == 20
    assert world.fields(50, split="test").shape[0] == 50


@each
def test_units_are_restored(name):
    world = worlds.get(name)
    pool = world.load()
    y = world.fields(4, generator=data.generator(0, "train"))
    restored = world.to_units(y)[torch.isfinite(y)]
    assert restored.min() >= pool.low - 1e-3 and restored.max() <= pool.high + 1e-3
    torch.testing.assert_close(world.to_units(torch.tensor([0.0, 1.0])), torch.tensor([pool.low, pool.high]))


def test_units_are_kelvin_and_a_synthetic_world_keeps_its_values():
    y = worlds.get("air").fields(8)
    kelvin = worlds.get("air").to_units(y)
    assert worlds.get("air").unit == "K" and 250 < kelvin.min() < kelvin.max() < 310
    assert torch.equal(worlds.get("plane").to_units(y), y)


def test_another_resolution_is_refused_where_there_is_only_one():
    with pytest.raises(ValueError, match="world 'air' is asked for 32 x 32; it has 37 x 49 only: change or leave out resolution"):
        worlds.get("air").fields(2, 32)
    with pytest.raises(ValueError, match=r"world 'photos' is asked for 500 x 500; it has patches up to \d+ x \d+"):
        worlds.get("photos").fields(2, 500)
    with pytest.raises(ValueError, match="unknown split 'tests'"):
        worlds.get("air").fields(2, split="tests")


# ---- cifar10 ----


def _folder(path, change=None):
    """A folder like cifar-10-batches-py with four pictures per batch, as Python 2 wrote it: protocol 2, bytes as keys."""
    path.mkdir()
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 3072), dtype=np.uint8)
        content = {b"data": pixels, b"labels": [1, 2, 3, 4], b"batch_label": b"some"}
        (path / name).write_bytes(pickle.dumps(change(content) if change else content, protocol=2))
    return path


def test_cifar10_is_read_from_the_folder_that_the_user_names(tmp_path, monkeypatch):
    folder = _folder(tmp_path / "cifar-10-batches-py")
    monkeypatch.setenv(realworlds.CIFAR10_VARIABLE, str(folder))
    named, environment = worlds.cifar10(folder).fields(16), worlds.get("cifar10").fields(16)
    assert named.shape == (16, 3, 32, 32) and torch.equal(named, environment)
    first = pickle.loads((folder / "test_batch").read_bytes())[b"data"][:, 0]  # the top left red value of each picture
    corner = worlds.get("cifar10").to_units(worlds.get("cifar10").fields(4, split="test"))[:, 0, 0, 0]
    assert sorted(corner.round().int().tolist()) == sorted(first.tolist())


def test_cifar10_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.delenv(realworlds.CIFAR10_VARIABLE, raising=False)
    with pytest.raises(
        ValueError, match=r"no folder is named; unpack cifar-10-python.tar.gz and name its folder: SPARSE_FIELDS_CIFAR10=/path"
    ):
        worlds.get("cifar10").fields(1)
    with pytest.raises(ValueError, match=r"lacks data_batch_1, .*test_batch; unpack"):
        worlds.cifar10(tmp_path).fields(1)


class _Harmful:
    def __reduce__(self):
        return os.system, ("echo harm",)


@pytest.mark.parametrize(
    "change", [lambda c: {b"data": _Harmful()}, lambda c: {b"other": 1}, lambda c: {b"data": np.zeros((2, 7), np.uint8)}]
)
def test_a_foreign_pickle_is_refused_and_runs_nothing(tmp_path, change, capfd):
    folder = _folder(tmp_path / "c", change)
    with pytest.raises(ValueError, match=r"data_batch_1 is not a batch of CIFAR-10 \(.*\); unpack cifar-10-python.tar.gz again"):
        worlds.cifar10(folder).fields(1)
    assert "harm" not in capfd.readouterr().out
