"""Synthetic worlds: exact at any site, the stated ranges, the published linear dimensions, and the table's errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import data, worlds

SYNTHETIC = [worlds.WORLDS[name] for name in worlds.SYNTHETIC]
each = pytest.mark.parametrize("world", SYNTHETIC, ids=worlds.SYNTHETIC)
each_exact = pytest.mark.parametrize("world", [*SYNTHETIC, worlds.WORLDS["gaussian"]], ids=[*worlds.SYNTHETIC, "gaussian"])

# Published: linear dimension, score of the constant 0.5 in dB. Tolerances: see test_linear_dimension_and_constant_score.
PUBLISHED = {
    "separable": (6, 6.1),
    "plane": (34, 9.0),
    "multi_frequency": (92, 16.6),
    "radial": (12, 9.0),
    "interference": (113, 6.1),
    "modulated": (250, 8.5),
    "composite": (53, 13.7),
}


def test_there_are_seven_synthetic_worlds_and_each_knows_its_source():
    assert set(worlds.SYNTHETIC) == set(PUBLISHED)
    for world in worlds.WORLDS.values():
        assert world.note and world.source and world.licence and world.kind in ("synthetic", "process", "real")


@each_exact
@pytest.mark.parametrize("resolution", [32, (5, 9)])
def test_exact_values_on_the_grid_are_the_grid(world, resolution):
    params = world.draw(6, data.generator(3, "test"))
    rows, columns = data.shape_of(resolution)
    at = world.at(params, data.grid(resolution, dtype=torch.float64).expand(6, -1, -1))
    fields = world.fields(6, resolution, data.generator(3, "test"))
    assert fields.dtype == torch.float32 and fields.shape == (6, 1, rows, columns)
    torch.testing.assert_close(fields.double(), at.mT.reshape(6, 1, rows, columns), rtol=0, atol=1e-7)  # float32 of values up to 1.5


@each_exact
def test_finer_grids_pass_through_the_coarse_one(world):
    coarse, fine = (world.fields(4, n, data.generator(1, "test")) for n in (9, 33))
    torch.testing.assert_close(fine[..., ::4, ::4], coarse, rtol=0, atol=1e-6)


@each
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), a=st.floats(-1, 1), b=st.floats(-1, 1))
def test_values_stay_in_the_stated_range_at_any_site(world, seed, a, b):
    y = world.at(world.draw(64, data.generator(seed, "train")), torch.tensor([[[a, b]]]))
    assert y.shape == (64, 1, 1) and y.dtype == torch.float64
    assert y.min() >= world.low - 1e-12 and y.max() <= world.high + 1e-12


@each
def test_the_range_is_used(world):
    y = world.fields(500)
    reach = 0.1 if world.name == "multi_frequency" else 0.02  # a mean of waves with random amplitudes stays inside
    assert y.min() < world.low + reach and y.max() > world.high - reach


@each_exact
def test_fields_follow_from_the_seed_and_do_not_depend_on_their_number(world):
    few, again, more, other = (world.fields(n, 8, data.generator(seed, "train")) for n, seed in ((5, 0), (5, 0), (40, 0), (5, 1)))
    assert torch.equal(few, again) and torch.equal(few, more[:5]) and not torch.equal(few, other)


def test_many_fields_computed_in_parts_are_the_same_fields(monkeypatch):
    world = worlds.get("plane")
    whole = world.fields(50, 16)
    monkeypatch.setattr(worlds, "CHUNK", 7 * 256)
    assert torch.equal(world.fields(50, 16), whole)


def test_splits_without_a_generator_are_different_fields():
    train, validation, test = (worlds.get("radial").fields(4, 8, split=split) for split in ("train", "validation", "test"))
    assert not torch.equal(train, test) and not torch.equal(validation, test)


@each
def test_linear_dimension_and_constant_score(world):
    """Within 10 % of the published dimension and 0.3 dB of the constant's score (32 fields there: its standard error is about 0.2 dB)."""
    y = world.fields(3000, generator=data.generator(0, "train")).double().flatten(1)
    variance = torch.linalg.eigvalsh(torch.cov(y.T)).flip(0)
    dimension = int((variance.cumsum(0) / variance.sum() < 0.999).sum()) + 1
    constant = (-10 * (y - 0.5).square().mean(1).log10()).mean().item()
    published, score = PUBLISHED[world.name]
    assert abs(dimension - published) <= 0.1 * published
    assert abs(constant - score) < 0.3


@each_exact
def test_std_is_the_standard_deviation_of_the_values(world):
    y = world.fields(4000, 16, data.generator(9, "test")).double()
    assert world.std == pytest.approx(y.std().item(), rel=0.06)  # 1,000 fields there, other ones here; the coarser grid weighs edges more


def test_separable_is_odd_about_the_centre():
    y = worlds.get("separable").fields(3, 33) - 0.5
    torch.testing.assert_close(y, -y.flip(-1, -2), rtol=0, atol=1e-6)


def test_radial_is_constant_on_circles():
    angle = torch.linspace(0, 2 * math.pi, 12, dtype=torch.float64)
    circle = 0.7 * torch.stack([angle.cos(), angle.sin()], -1)[None]
    world = worlds.get("radial")
    y = world.at(world.draw(5, data.generator(0, "test")), circle)
    torch.testing.assert_close(y, y[:, :1].expand_as(y))


def test_plane_solves_the_helmholtz_equation():
    """(d2/ds1^2 + d2/ds2^2) z = -pi^2 (kx^2 + ky^2) z, by automatic differentiation: the wavenumbers are per unit of X = pi (s1 + 1)."""
    world = worlds.get("plane")
    params = world.draw(4, data.generator(0, "test"))
    s = torch.rand(4, 10, 2, dtype=torch.float64, generator=data.generator(0, "sensors")).requires_grad_()
    z = 2 * world.at(params, s) - 1
    first = torch.autograd.grad(z.sum(), s, create_graph=True)[0]
    laplacian = sum(torch.autograd.grad(first[..., d].sum(), s, retain_graph=True)[0][..., d] for d in (0, 1))
    squared = params["kx"] ** 2 + params["ky"] ** 2
    torch.testing.assert_close(laplacian, -(math.pi**2) * squared[:, None] * z[..., 0], rtol=1e-10, atol=1e-10)


def test_half_of_the_modulated_fields_keep_the_amplitude_of_a_sine():
    world = worlds.get("modulated")
    params = world.draw(2000, data.generator(0, "test"))
    fm = params["fm"] >= 0.5
    assert 0.45 < fm.double().mean() < 0.55
    y = world.at(params, data.grid(32)[None])
    assert y[fm].min() >= 0 and y[fm].max() <= 1 and y[~fm].max() > 1.4


def test_a_field_follows_its_parameters_one_by_one():
    world = worlds.get("plane")
    params = {"kx": torch.tensor([1.0, 2.0]), "ky": torch.tensor([0.0, 0.0]), "phase": torch.tensor([0.0, 0.0])}
    y = world.at(params, torch.tensor([[[-1.0, 0.3], [-0.5, -0.2]]]))  # X = 0 and pi / 2
    torch.testing.assert_close(y[..., 0], torch.tensor([[0.5, 1.0], [0.5, 0.5]], dtype=torch.float64))


def test_no_fields_are_fine():
    assert worlds.get("plane").fields(0).shape == (0, 1, 32, 32)


def test_unknown_world_says_what_is_known_and_what_was_meant():
    with pytest.raises(ValueError, match=r"unknown world 'plan'; known: separable, plane, .*; did you mean 'plane'\?"):
        worlds.get("plan")
    with pytest.raises(ValueError, match=r"unknown world 'zzz'; known: .*cifar10$"):
        worlds.get("zzz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1}, "number of fields is -1; give a whole number"),
        ({"n": 2, "resolution": 1}, "resolution is 1; give a whole number of at least 2"),
        ({"n": 2, "resolution": (8, 8, 8)}, r"resolution is \(8, 8, 8\)"),
        ({"n": 2, "split": "tset"}, "unknown split 'tset'; choose one of: train, validation, test"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        worlds.get("plane").fields(**arguments)


def test_a_measured_world_has_no_formula():
    for call in (lambda w: w.draw(1, data.generator(0, "test")), lambda w: w.at({}, torch.zeros(1, 1, 2))):
        with pytest.raises(
            ValueError, match=r"world 'air' is measured on a grid and has no formula; use fields\(n\), or one of: separable"
        ):
            call(worlds.get("air"))
