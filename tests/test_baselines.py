"""Classical methods: what holds for all of them, what each reproduces exactly, and that the spread they state is the spread they have."""

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lib import baselines, data, metrics, optimal, perfield, worlds
from lib.data import Batch

METHODS = sorted(baselines.METHODS)
SPREAD = ["constant", "gp", "gp_matern", "gp_rbf", "oi"]  # methods that state a standard deviation
SAMPLED = ["gp", "oi"]
RESOLUTION = 12


@functools.cache
def training(channels=1, fields=60):
    y = worlds.get("plane").fields(fields * channels, RESOLUTION, data.generator(0, "train"))
    return y.reshape(fields, channels, RESOLUTION, RESOLUTION)


def observed(count, channels=1, fields=3, layout="uniform", **options):
    y = worlds.get("plane").fields(fields * channels, RESOLUTION, data.generator(0, "test"))
    return data.observe(y.reshape(fields, channels, RESOLUTION, RESOLUTION), count, layout, data.generator(0, "sensors"), **options)


def answer(name, batch, channels=1):
    return baselines.get(name)(batch, training(channels))


def assert_sound(prediction, batch):
    assert prediction.mean.shape == batch.y_qry.shape and prediction.mean.dtype == torch.float64
    assert prediction.mean.isfinite().all()
    if prediction.std is not None:
        assert prediction.std.shape == batch.y_qry.shape
        assert prediction.std.isfinite().all() and (prediction.std >= 0).all()
    if prediction.draw is not None:
        draws = prediction.samples(2, data.generator(0, "samples"))
        assert draws.shape == (2, *batch.y_qry.shape) and draws.isfinite().all()


# ---- what holds for every method ----


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
def test_any_number_of_readings_gets_a_finite_answer(name, channels, count):
    batch = observed(count, channels)
    assert_sound(answer(name, batch, channels), batch)


@pytest.mark.parametrize("name", METHODS)
def test_readings_on_one_line_at_one_site_or_all_equal_get_a_finite_answer(name):
    batch = observed(12, fields=1)
    diagonal = torch.linspace(-1, 1, 12)[None, :, None].expand(1, 12, 2)
    onesite = torch.zeros(1, 12, 2)
    for s, y in ((diagonal, batch.y_obs), (onesite, batch.y_obs), (batch.s_obs, torch.full_like(batch.y_obs, 0.3))):
        hard = Batch(s, y, batch.m_obs, batch.s_qry, batch.y_qry)
        assert_sound(answer(name, hard), hard)


@pytest.mark.parametrize("name", METHODS)
def test_missing_readings_are_as_if_never_made(name):
    batch = observed(20)
    kept = torch.arange(20) < 15
    junk = batch.y_obs.clone()
    junk[:, 15:18], junk[:, 18:] = 1e6, torch.nan
    mask = kept.expand(3, -1).clone()
    mask[:, 18:] = True  # NaN that claims to be a reading is none
    holes = Batch(batch.s_obs, junk, mask, batch.s_qry, batch.y_qry)
    fewer = Batch(batch.s_obs[:, :15], batch.y_obs[:, :15], batch.m_obs[:, :15], batch.s_qry, batch.y_qry)
    assert_close(answer(name, holes).mean, answer(name, fewer).mean, rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_fields_do_not_touch_each_other(name):
    batch = observed(20)
    assert_close(answer(name, batch).mean[1:2], answer(name, batch[1:2]).mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "biharmonic"])
def test_the_answer_at_a_site_does_not_depend_on_the_other_queries(name):
    batch = observed(20)
    some = torch.tensor([100, 3, 77])
    fewer = Batch(batch.s_obs, batch.y_obs, batch.m_obs, batch.s_qry[:, some], batch.y_qry[:, some])
    whole, part = answer(name, batch), answer(name, fewer)
    assert_close(whole.mean[:, some], part.mean, rtol=1e-9, atol=1e-9)
    if whole.std is not None:
        assert_close(whole.std[:, some], part.std, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_the_truth_at_the_queries_is_never_looked_at(name):
    batch = observed(20)
    blind = Batch(batch.s_obs, batch.y_obs, batch.m_obs, batch.s_qry, torch.full_like(batch.y_qry, torch.nan))
    assert_close(answer(name, blind).mean, answer(name, batch).mean, rtol=0, atol=0)


@pytest.mark.parametrize("name", METHODS)
def test_without_readings_the_answer_is_the_prior(name):
    found = answer(name, observed(0)).mean
    node_by_node = name in ("oi", "pod")  # they know the mean of every node, the others one number
    fields = training().double()
    expected = fields.mean(0).reshape(-1) if node_by_node else fields.mean().expand(RESOLUTION**2)
    assert_close(found[0, :, 0], expected)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("oi", "pod")])
def test_methods_of_one_field_need_no_training_fields(name):
    batch = observed(20)
    assert_sound(baselines.get(name)(batch), batch)
    assert_close(baselines.get(name)(observed(0)).mean, torch.full_like(batch.y_qry, 0.5).double())


def test_unknown_methods_and_missing_needs_are_said():
    with pytest.raises(ValueError, match=r"unknown method 'thinplate'; known: constant, .*; did you mean 'thin_plate'\?"):
        baselines.get("thinplate")
    with pytest.raises(ValueError, match="'oi' learns from training fields"):
        baselines.get("oi")(observed(5))
    with pytest.raises(ValueError, match="C = 3"):
        baselines.get("pod")(observed(5, 3), training())
    batch = observed(5)
    scattered = Batch(batch.s_obs, batch.y_obs, batch.m_obs, batch.s_qry[:, :50] * 0.9, batch.y_qry[:, :50])
    with pytest.raises(ValueError, match="ask for a whole grid"):
        baselines.get("biharmonic")(scattered)
    with pytest.raises(ValueError, match=r"unknown kernel \['cubic'\]; known: rbf, matern"):
        baselines.gp(batch, None, ("cubic",))


# ---- interpolation ----


@pytest.mark.parametrize("name", ["nearest", "linear", "thin_plate", "biharmonic"])
def test_interpolation_passes_through_the_readings(name):
    batch = observed(30, channels=2)
    found = metrics.score(answer(name, batch, 2), batch, 1.0)["error_at_readings"]
    assert_close(found, torch.zeros_like(found), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", ["nearest", "linear", "thin_plate", "biharmonic"])
def test_conflicting_readings_of_one_site_are_averaged(name):
    batch = observed(10, fields=1)
    s, y = batch.s_obs.repeat(1, 2, 1), torch.cat([batch.y_obs - 0.1, batch.y_obs + 0.1], 1)
    twice = Batch(s, y, batch.m_obs.repeat(1, 2), batch.s_qry, batch.y_qry)
    assert_close(answer(name, twice).mean, answer(name, batch).mean, atol=1e-6, rtol=0)


def test_a_tilted_plane_is_reproduced():
    """Thin plate everywhere, linear inside the hull of the readings (the corners are among them)."""
    s = data.grid(RESOLUTION).double()[None]
    y = 0.4 + 0.2 * s[..., :1] - 0.1 * s[..., 1:]
    sites = torch.tensor([0, 11, 132, 143, 30, 77, 101])
    batch = Batch(s[:, sites], y[:, sites], torch.ones(1, 7, dtype=torch.bool), s, y)
    for name in ("linear", "thin_plate"):
        assert_close(baselines.get(name)(batch).mean, y, atol=1e-9, rtol=0)


# ---- methods with a spread ----


def gaussian_fields(kind, fields, length=0.5, seed=0):
    """Fields (n, 1, R, R) of a Gaussian process with mean 0.5 and deviation 0.2."""
    s = data.grid(RESOLUTION).double()
    r = torch.cdist(s, s) / length
    covariance = torch.exp(-(r**2) / 2) if kind == "rbf" else (1 + 3**0.5 * r) * torch.exp(-(3**0.5) * r)
    root = torch.linalg.cholesky(covariance + 1e-9 * torch.eye(len(s)))
    white = torch.randn(fields, len(s), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.5 + 0.2 * white @ root.T).reshape(fields, 1, RESOLUTION, RESOLUTION)


@pytest.mark.parametrize(("name", "kind"), [("gp", "rbf"), ("gp", "matern"), ("oi", "rbf"), ("oi", "matern")])
def test_the_stated_deviation_is_the_deviation(name, kind):
    """On fields of the assumed kind, away from the readings: 90 % intervals cover 80-97 %, as 40 readings fix no hyperparameter exactly."""
    batch = data.observe(gaussian_fields(kind, 30), 40, "uniform", data.generator(0, "sensors"), noise=0.1)
    near = torch.cdist(batch.s_qry, batch.s_obs).amin(2) < 1e-6
    batch = Batch(batch.s_obs, batch.y_obs, batch.m_obs, batch.s_qry, batch.y_qry.masked_fill(near[..., None], torch.nan))
    found = metrics.score(baselines.get(name)(batch, gaussian_fields(kind, 2000, seed=1)), batch, 0.2)
    assert 0.80 < found["coverage90"].mean() < 0.97
    assert 0.75 < found["spread_skill"].mean() < 1.35


@pytest.mark.parametrize("kind", ["rbf", "matern"])
def test_the_gaussian_process_comes_near_the_one_that_knows_its_kernel(kind):
    """With the true kernel, length and noise the error is the least there is; finding them from 40 readings costs less than 1 dB here."""
    fields = gaussian_fields(kind, 24)
    batch = data.observe(fields, 40, "uniform", data.generator(0, "sensors"), noise=0.1)
    known = []
    for s, y, q in perfield.each(batch):
        s, y, q = (torch.from_numpy(a) for a in (s, y, q))

        def kernel(a, b):
            r = torch.cdist(a, b) / 0.5
            return 0.04 * (torch.exp(-(r**2) / 2) if kind == "rbf" else (1 + 3**0.5 * r) * torch.exp(-(3**0.5) * r))

        known.append(0.5 + kernel(q, s) @ torch.linalg.solve(kernel(s, s) + 0.05**2 * torch.eye(40), y - 0.5))
    best = metrics.score(torch.stack(known), batch, 0.2)["psnr"].mean()
    found = metrics.score(baselines.gp(batch), batch, 0.2)["psnr"].mean()
    assert best - 1.0 < found <= best + 0.1


def test_the_evidence_tells_rough_fields_from_smooth_ones():
    for kind, other in (("rbf", "gp_matern"), ("matern", "gp_rbf")):
        batch = data.observe(gaussian_fields(kind, 12), 60, "uniform", data.generator(0, "sensors"), noise=0.02)
        chosen, wrong = baselines.gp(batch), baselines.get(other)(batch)
        right = baselines.get({"gp_matern": "gp_rbf", "gp_rbf": "gp_matern"}[other])(batch)
        to_right, to_wrong = ((chosen.mean - p.mean).abs().mean((1, 2)) for p in (right, wrong))
        assert (to_right < to_wrong).double().mean() > 0.7


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_have_the_stated_mean_and_deviation(name, channels):
    """600 draws: standard error of the mean 0.041 std, of the deviation 0.029 std; the bounds are about five of them at 288 sites."""
    batch = observed(15, channels, fields=1, noise=0.3)
    found = answer(name, batch, channels)
    draws = found.samples(600, data.generator(0, "samples"))
    width = found.std.clamp(min=1e-4)
    assert ((draws.mean(0) - found.mean).abs() / width).max() < 0.21
    assert_close(draws.std(0) / width, found.std / width, atol=0.16, rtol=0)


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_are_coherent_and_pass_near_the_readings(name):
    """Neighbours of white noise differ by 1.4 deviations, of a smooth field by much less; the evidence may call a little of it noise."""
    batch = data.observe(gaussian_fields("rbf", 2), 25, "uniform", data.generator(0, "sensors"))
    found = baselines.get(name)(batch, gaussian_fields("rbf", 2000, seed=1))
    draws = found.samples(8, data.generator(0, "samples"))
    at_readings = torch.stack([metrics.error_at_readings(y, batch) for y in draws])
    assert at_readings.max() < 0.04  # of fields with a deviation of 0.2
    rest = (draws - found.mean).unflatten(2, (RESOLUTION, RESOLUTION))
    assert rest.diff(dim=3).square().mean() < 0.5 * rest.square().mean()
    again = found.samples(8, data.generator(0, "samples"))
    assert_close(draws, again, rtol=0, atol=0)


def test_the_deviation_grows_away_from_the_readings():
    s = data.grid(RESOLUTION).double()[None]
    y = gaussian_fields("rbf", 1).flatten(2).mT
    west = (s[0, :, 0] < -0.2).nonzero()[:, 0]
    batch = Batch(s[:, west], y[:, west], torch.ones(1, len(west), dtype=torch.bool), s, y)
    for name in SAMPLED:
        std = baselines.get(name)(batch, gaussian_fields("rbf", 2000, seed=1)).std
        across = std.reshape(RESOLUTION, RESOLUTION).mean(0)
        assert across[0] < 0.02 and across[-1] > 0.1
        assert all(a < b + 0.01 for a, b in pairwise(across[4:].tolist()))


# ---- optimal interpolation ----


def test_optimal_interpolation_is_the_textbook_formula():
    """Two routes: singular values of the factor here, K_qo (K_oo + v I)^-1 with the sample covariance there, v as found by evidence."""
    batch, fields = observed(20, channels=2, noise=0.1), training(2)
    found = baselines.oi(batch, fields)
    fit = optimal.fitted(fields, batch, "oi")
    mean, covariance = fields.double().flatten(1).mean(0), fields.double().flatten(1).T.cov()
    for i, (s, y, q) in enumerate(perfield.each(batch)):
        posterior = optimal._posterior(fit, s, y)
        singular = np.linalg.svd(fit.at(s)[1], compute_uv=False)
        v = (singular[0] ** 2 * (1 - posterior.shrink[0]) / posterior.shrink[0]).item()
        node = torch.cdist(torch.from_numpy(s), torch.from_numpy(q)).argmin(1)
        rows = torch.cat([node, node + RESOLUTION**2])
        gain = torch.linalg.solve(covariance[rows][:, rows] + v * torch.eye(len(rows)), covariance[rows]).T
        expected = mean + gain @ (torch.from_numpy(y.T.reshape(-1)) - mean[rows])
        variance = posterior.scale * (covariance - gain @ covariance[rows]).diagonal()
        assert_close(found.mean[i], expected.reshape(2, -1).T, rtol=1e-6, atol=1e-8)
        assert_close(found.std[i], variance.clamp(min=0).sqrt().reshape(2, -1).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.4])
def test_the_evidence_finds_the_noise_of_the_readings(noise):
    """v alpha against the true variance: the geometric mean over 40 fields of 60 readings is within 20 %."""
    train = gaussian_fields("rbf", 3000, seed=1)
    batch = data.observe(gaussian_fields("rbf", 40), 60, "uniform", data.generator(0, "sensors"), noise=noise)
    fit, found = optimal.fitted(train, batch, "oi"), []
    for s, y, _ in perfield.each(batch):
        p = optimal._posterior(fit, s, y)
        largest = np.linalg.svd(fit.at(s)[1], compute_uv=False)[0] ** 2
        found.append(np.sqrt(p.scale * largest * (1 - p.shrink[0]) / p.shrink[0]))
    assert abs(np.exp(np.log(found).mean()) / (0.5 * noise) - 1) < 0.2


def test_optimal_interpolation_solves_the_six_dimensional_world():
    """Above 95 dB from 500 training fields without noise, near 40 dB with: the same code, nothing set by hand."""
    world = worlds.get("separable")
    train, test = (world.fields(n, generator=data.generator(0, role)) for n, role in ((500, "train"), (16, "test")))
    for noise, least in ((0.0, 95), (0.05, 38)):
        batch = data.observe(test, 51, "uniform", data.generator(0, "sensors"), noise)
        assert metrics.score(baselines.oi(batch, train), batch, world)["psnr"].mean() > least


def test_training_fields_are_decomposed_once_until_they_change(monkeypatch):
    calls, decompose = [], optimal.decompose
    monkeypatch.setattr(optimal, "decompose", lambda fields: calls.append(1) or decompose(fields))
    train, batch = training().clone(), observed(10)
    first = baselines.oi(batch, train).mean
    baselines.oi(batch[:1], train), baselines.pod(batch, train)
    assert len(calls) == 1
    train += 1.0
    assert len(calls) == 1 and (baselines.oi(batch, train).mean - first).abs().max() > 1e-3 and len(calls) == 2
    before = len(optimal._FITS)
    del train
    assert len(optimal._FITS) == before - 1  # the decomposition goes with its fields


def test_sites_between_nodes_are_read_and_asked_bilinearly():
    """Fields that are planes: the bilinear value is exact, so scattered readings determine them."""
    weights = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = data.grid((7, 9)).double()
    fields = (weights @ torch.cat([torch.ones(63, 1), s], 1).double().T).reshape(40, 1, 7, 9)
    sites = 2 * torch.rand(1, 12, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
    y = 0.3 - 0.2 * sites[..., :1] + 0.5 * sites[..., 1:]
    batch = Batch(sites[:, :6], y[:, :6], torch.ones(1, 6, dtype=torch.bool), sites, y)
    for name in ("oi", "pod"):
        assert_close(baselines.get(name)(batch, fields).mean, y, atol=1e-6, rtol=0)


def test_land_in_the_training_fields_does_no_harm():
    train = training().clone()
    train[:, :, :4, :4] = torch.nan
    train[3, :, 8, 8] = torch.nan
    y = worlds.get("plane").fields(2, RESOLUTION, data.generator(0, "test"))
    y[:, :, :4, :4] = torch.nan
    batch = data.observe(y, 40, "uniform", data.generator(0, "sensors"))
    for name in METHODS:
        found = baselines.get(name)(batch, train)
        assert_sound(found, batch)
        assert metrics.score(found, batch, worlds.get("plane"))["psnr"].isfinite().all()


# ---- gappy POD ----


@pytest.mark.parametrize("channels", [1, 2])
def test_gappy_pod_chooses_by_leaving_each_reading_out(channels):
    """The closed form against refitting without the reading, for every number of components."""
    random = np.random.default_rng(0)
    n, r = 9, 5
    F, residual = random.normal(size=(channels * n, r)), random.normal(size=channels * n)
    residual += F[:, :2] @ np.array([2.0, -3.0])
    errors = []
    for k in range(r + 1):
        error = 0.0
        for i in range(n):
            out = np.isin(np.arange(channels * n) % n, i)
            weights = np.linalg.lstsq(F[~out][:, :k], residual[~out])[0] if k else np.zeros(0)
            error += ((residual[out] - F[out][:, :k] @ weights) ** 2).sum()
        errors.append(error)
    weights = optimal._least_squares(F, residual, channels)
    assert len(weights) == int(np.argmin(errors))
    np.testing.assert_allclose(weights, np.linalg.lstsq(F[:, : len(weights)], residual)[0])


def test_gappy_pod_recovers_fields_of_few_dimensions():
    random = torch.Generator().manual_seed(0)
    modes = torch.randn(5, RESOLUTION**2, generator=random, dtype=torch.float64)
    train, test = ((torch.randn(n, 5, generator=random, dtype=torch.float64) @ modes).reshape(n, 1, RESOLUTION, -1) for n in (50, 4))
    batch = data.observe(test, 20, "uniform", data.generator(0, "sensors"))
    assert metrics.score(baselines.pod(batch, train), batch, 1.0)["psnr"].min() > 150


def test_gappy_pod_stops_at_the_components_that_readings_tell_apart():
    """Ten readings made twice: beyond ten components the next column repeats earlier ones; its weight would be rounding over rounding."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        F, residual = np.tile(random.normal(size=(10, 19)), (2, 1)), random.normal(size=20)
        assert len(optimal._least_squares(F, residual, 1)) <= 10
