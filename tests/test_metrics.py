"""Scores: against scikit-image, brute force and closed forms; what is masked never counts; intervals cover."""

import math

import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.testing import assert_close

from lib import data, metrics, worlds
from lib.data import Batch, Prediction


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grid_batch(truth, count=0):
    """A batch that asks for the whole grid of truth (B, H, W, C) and reads its first `count` nodes."""
    fields, height, width, channels = truth.shape
    s = data.grid((height, width)).double().expand(fields, -1, -1)
    y = truth.reshape(fields, height * width, channels)
    return Batch(s[:, :count], y[:, :count], torch.ones(fields, count, dtype=torch.bool), s, y)


def score(mean, truth, **options):
    return metrics.score(mean.flatten(1, 2), grid_batch(truth), 1.0, **options)


def test_psnr_and_ssim_are_scikit_images():
    truth, mean = 0.5 + 0.2 * draw(0, 3, 20, 17, 2), 0.5 + 0.2 * draw(1, 3, 20, 17, 2)
    found = score(mean, truth)
    psnr = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1.0) for a, b in zip(truth, mean, strict=True)]
    ssim = [
        structural_similarity(a.numpy(), b.numpy(), data_range=1.0, win_size=7, channel_axis=-1) for a, b in zip(truth, mean, strict=True)
    ]
    assert_close(found["psnr"], torch.tensor(psnr, dtype=torch.float64))
    assert_close(found["ssim"], torch.tensor(ssim, dtype=torch.float64))


def test_a_constant_scores_six_decibels_on_separable():
    """Two sines of variance 1/2 each, halved by the map: MSE 1/4."""
    fields = worlds.get("separable").fields(400, generator=data.generator(0, "test"))
    batch = data.observe(fields, 0)
    found = metrics.summary(metrics.score(torch.full_like(batch.y_qry, 0.5), batch, worlds.get("separable")))
    assert abs(found["psnr_of_mean"]["mean"] - 10 * math.log10(4)) < 0.15
    assert abs(found["nrmse"]["mean"] - 1) < 0.03


def test_errors_and_correlation_are_their_definitions():
    truth, mean = draw(0, 4, 9, 8, 2), draw(1, 4, 9, 8, 2)
    found = score(mean, truth)
    for i in range(4):
        a, b = mean[i].flatten(), truth[i].flatten()
        assert_close(found["mse"][i], torch.nn.functional.mse_loss(a, b))
        assert_close(found["mae"][i], torch.nn.functional.l1_loss(a, b))
        assert_close(found["correlation"][i], torch.corrcoef(torch.stack([a, b]))[0, 1])
    per_channel = metrics.score(mean.flatten(1, 2), grid_batch(truth), torch.tensor([1.0, 2.0]))["nrmse"]
    expected = (((mean - truth) / torch.tensor([1.0, 2.0])) ** 2).mean((1, 2, 3)).sqrt()
    assert_close(per_channel, expected)


def test_the_perfect_answer_scores_perfectly_and_stays_finite():
    truth = draw(0, 2, 12, 12, 1)
    found = score(truth, truth)
    perfect = {"psnr": 300.0, "ssim": 1.0, "mse": 0.0, "mae": 0.0, "correlation": 1.0, "nrmse": 0.0, "speckle": 0.0, "frequency_error": 0.0}
    for name, value in perfect.items():
        assert_close(found[name], torch.full((2,), value, dtype=torch.float64), msg=name)


def test_a_constant_correlates_with_nothing():
    assert_close(score(torch.full((2, 8, 8, 1), 0.3, dtype=torch.float64), draw(0, 2, 8, 8, 1))["correlation"], torch.zeros(2).double())


@given(seed=st.integers(0, 10**6), junk=st.sampled_from([0.0, 1e6, -3.0]))
def test_masked_sites_never_count(seed, junk):
    """Whatever is predicted where the truth is NaN, every score stays the same, and none is NaN."""
    truth, mean = draw(seed, 2, 16, 14, 2), draw(seed + 1, 2, 16, 14, 2)
    land = torch.zeros(16, 14, dtype=torch.bool)
    land[:4, :5] = True
    truth[:, land] = torch.nan
    other = mean.masked_fill(land[:, :, None], junk)
    std = (0.5 + draw(seed + 2, *mean.shape).abs()).flatten(1, 2)

    def scores(y):
        def sampled(count, generator):
            return y.flatten(1, 2) + torch.randn(count, 2, 224, 2, generator=generator, dtype=torch.float64)

        answer = Prediction(y.flatten(1, 2), std, sampled)
        return metrics.score(answer, grid_batch(truth, 100), 1.0, samples=4, generator=torch.Generator().manual_seed(0))

    a, b = scores(mean), scores(other)
    assert set(a) == {*metrics.MEAN, *metrics.SPREAD, *metrics.SAMPLES}
    for name in a:
        assert_close(a[name], b[name], rtol=1e-9, atol=1e-12, msg=name)
        assert a[name].isfinite().all(), name


def test_ssim_of_a_masked_field_averages_the_windows_without_land():
    truth, mean = draw(0, 1, 20, 20, 1), draw(1, 1, 20, 20, 1)
    truth[:, :, :6] = torch.nan
    right = structural_similarity(truth[0, :, 6:, 0].numpy(), mean[0, :, 6:, 0].numpy(), data_range=1.0, win_size=7)
    assert_close(score(mean, truth)["ssim"], torch.tensor([right], dtype=torch.float64))


def test_scores_of_pictures_need_a_grid():
    truth = draw(0, 2, 10, 10, 1)
    batch = grid_batch(truth)
    scattered = Batch(batch.s_obs, batch.y_obs, batch.m_obs, batch.s_qry[:, torch.randperm(100)], batch.y_qry)
    assert {"ssim", "speckle", "frequency_error"}.isdisjoint(metrics.score(batch.y_qry, scattered, 1.0))
    assert "ssim" in metrics.score(batch.y_qry, scattered, 1.0, shape=(10, 10))
    with pytest.raises(ValueError, match=r"holds 90 sites, but there are 100"):
        metrics.score(batch.y_qry, batch, 1.0, shape=(9, 10))


def test_error_at_readings_is_the_noise_of_the_readings():
    truth = draw(0, 3, 12, 12, 2)
    batch = grid_batch(truth, 60)
    noise = 0.1 * draw(1, 3, 60, 2)
    noise[:, 40:] = 50.0  # missing readings do not count
    kept = torch.arange(60).expand(3, -1) < 40
    noisy = Batch(batch.s_obs, batch.y_obs + noise, kept, batch.s_qry, batch.y_qry)
    found = metrics.score(batch.y_qry, noisy, 1.0)["error_at_readings"]
    assert_close(found, noise[:, :40].square().mean((1, 2)).sqrt())
    between = Batch(batch.s_obs + 0.01, batch.y_obs, kept, batch.s_qry, batch.y_qry)
    assert metrics.score(batch.y_qry, between, 1.0)["error_at_readings"].isnan().all()
    assert metrics.score(batch.y_qry, grid_batch(truth, 0), 1.0)["error_at_readings"].isnan().all()


def test_speckle_tells_grain_from_blur():
    rough = draw(0, 2, 32, 32, 1)
    X = torch.linspace(0, 1, 32, dtype=torch.float64)
    smooth = torch.sin(4 * X)[None, :, None, None] * torch.cos(3 * X)[None, None, :, None].expand(2, 32, 32, 1)
    assert_close(score(2 * rough, rough)["speckle"], torch.full((2,), 20 * math.log10(2), dtype=torch.float64))
    assert (score(smooth + 0.05 * rough, smooth)["speckle"] > 10).all()
    assert (score(smooth, smooth + 0.05 * rough)["speckle"] < -10).all()
    assert_close(score(0.9 * smooth, smooth)["speckle"], torch.zeros(2, dtype=torch.float64))  # both invisible: below the floor


def test_frequency_error_sees_amplitudes_and_not_phases():
    truth = draw(0, 2, 24, 20, 1)
    flipped = truth.flip(1, 2)
    assert_close(score(flipped, truth)["frequency_error"], torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)
    assert_close(score(1.5 * truth, truth)["frequency_error"], torch.full((2,), 0.5, dtype=torch.float64))
    assert_close(score(0 * truth + 0.7, truth)["frequency_error"], torch.ones(2, dtype=torch.float64))


def test_a_wave_has_its_power_at_its_frequency():
    columns = torch.arange(64, dtype=torch.float64)
    wave = torch.sin(2 * math.pi * columns / 8)[None, None, :, None].expand(1, 64, 64, 1)
    p = metrics.power(wave, wave)[0]
    assert p[metrics.frequency(64, 64).sub(1 / 8).abs() < 2 / 64].sum() > 0.999 * p.sum()


def test_coverage_of_a_calibrated_answer_is_its_level():
    """10,000 independent sites: binomial deviation 0.005, so 0.02 is four of them."""
    std = 0.2 + draw(0, 1, 10000, 1).abs()
    error = std * draw(1, 1, 10000, 1)
    assert abs(float(metrics.coverage(error, std, 0.5)) - 0.5) < 0.02
    assert abs(float(metrics.coverage(error, std, 0.9)) - 0.9) < 0.012
    batch = grid_batch(draw(2, 1, 100, 100, 1))
    found = metrics.score(Prediction(batch.y_qry + error, std), batch, 1.0)
    assert abs(float(found["spread_skill"]) - 1) < 0.03


@pytest.mark.parametrize(("error", "std"), [(0.0, 1.0), (0.7, 0.2), (-2.0, 0.5)])
def test_gaussian_crps_is_the_integral_of_the_squared_distribution(error, std):
    below, _ = scipy.integrate.quad(lambda x: scipy.stats.norm.cdf(x, 0, std) ** 2, -12, -error)
    above, _ = scipy.integrate.quad(lambda x: scipy.stats.norm.sf(x, 0, std) ** 2, -error, 12)
    found = metrics.gaussian_crps(torch.tensor([[[error]]]).double(), torch.tensor([[[std]]]).double())
    assert_close(found, torch.tensor([below + above]).double(), atol=1e-7, rtol=1e-7)


def test_crps_of_a_certain_answer_is_its_absolute_error():
    error = draw(0, 2, 50, 1)
    assert_close(metrics.gaussian_crps(error, torch.zeros_like(error)), error.abs().mean((1, 2)))


def test_crps_and_energy_score_are_their_double_sums():
    draws, truth, count = draw(0, 5, 3, 11, 2), draw(1, 3, 11, 2), 5
    crps, energy = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for k in range(count):
        crps += (draws[k] - truth).abs().mean((1, 2)) / count
        energy += (draws[k] - truth).square().mean((1, 2)).sqrt() / count
        for j in range(count):
            crps -= (draws[k] - draws[j]).abs().mean((1, 2)) / (2 * count * (count - 1))
            energy -= (draws[k] - draws[j]).square().mean((1, 2)).sqrt() / (2 * count * (count - 1))
    assert_close(metrics.crps(draws, truth), crps)
    assert_close(metrics.energy_score(draws, truth), energy)


def test_the_ensemble_crps_is_unbiased_with_three_draws():
    """Its mean over 40,000 sites is the Gaussian's closed form, within five standard errors; the unfair 1/K^2 misses by 0.19."""
    truth = 0.3 * torch.ones(1, 40000, 1, dtype=torch.float64)
    found = metrics.crps(draw(0, 3, 1, 40000, 1), truth)
    assert_close(found, metrics.gaussian_crps(-truth[:, :1], torch.ones(1, 1, 1).double()), atol=0.02, rtol=0)


def test_the_energy_score_of_one_site_is_the_crps():
    draws, truth = draw(0, 6, 40, 1, 1), draw(1, 40, 1, 1)
    assert_close(metrics.energy_score(draws, truth), metrics.crps(draws, truth))


def test_the_energy_score_prefers_coherent_samples_and_the_crps_cannot_tell():
    """A truth that is one number everywhere: white samples with the right deviation at each site miss that it is one number."""
    truth = draw(0, 400, 1, 1).expand(-1, 30, 1)
    coherent, white = draw(1, 16, 400, 1, 1).expand(-1, -1, 30, 1), draw(2, 16, 400, 30, 1)
    assert metrics.energy_score(coherent, truth).mean() < metrics.energy_score(white, truth).mean() - 0.03
    assert_close(metrics.crps(coherent, truth).mean(), metrics.crps(white, truth).mean(), atol=0.05, rtol=0)


def test_scores_come_with_what_the_prediction_has():
    truth = draw(0, 2, 8, 8, 1)
    batch, mean = grid_batch(truth, 5), truth.flatten(1, 2)
    std = torch.full_like(mean, 0.1)
    draws = Prediction(mean, std, lambda count, generator: mean + draw(3, count, *mean.shape))
    assert set(metrics.score(mean, batch, 1.0)) == set(metrics.MEAN)
    assert set(metrics.score(Prediction(mean, std), batch, 1.0)) == {*metrics.MEAN, *metrics.SPREAD, "crps"}
    assert set(metrics.score(draws, batch, 1.0, samples=3)) == {*metrics.MEAN, *metrics.SPREAD, "crps", "energy_score"}
    assert all(v.dtype == torch.float64 and v.shape == (2,) for v in metrics.score(draws, batch, 1.0, samples=3).values())
    with pytest.raises(ValueError, match="at least 2 draws"):
        metrics.score(draws, batch, 1.0, samples=1)
    with pytest.raises(ValueError, match="ask for the batch's own queries"):
        metrics.score(mean[:, :7], batch, 1.0)


@given(seed=st.integers(0, 10**6), spread=st.floats(0, 3))
def test_decibels_of_the_mean_error_are_never_more_than_the_mean_of_decibels(seed, spread):
    mse = torch.exp(spread * draw(seed, 30))
    table = metrics.summary({"mse": mse, "psnr": metrics.psnr(mse)}, resamples=50)
    assert table["psnr_of_mean"]["mean"] <= table["psnr"]["mean"] + 1e-9
    for row in table.values():
        assert row["low"] <= row["mean"] + 1e-9 and row["mean"] <= row["high"] + 1e-9


def test_the_bootstrap_interval_covers():
    """95 % intervals of 40 normal numbers: 400 repeats, at least 90 % cover (nominal 94 % for this size, deviation 1.2 %)."""
    generator = data.generator(0, "bootstrap")
    rows = [metrics.summary({"psnr": draw(i, 40) + 3}, generator, 300)["psnr"] for i in range(400)]
    covered = sum(row["low"] <= 3 <= row["high"] for row in rows) / 400
    assert 0.90 < covered < 0.985


def test_pairing_removes_what_fields_have_in_common():
    hard = 10 * draw(0, 60)
    a, b = hard + 1 + 0.1 * draw(1, 60), hard + 0.1 * draw(2, 60)
    difference, low, high = metrics.paired(a, b, data.generator(0, "bootstrap"))
    assert low < 1 < high and high - low < 0.2 and low < difference < high
    assert metrics.paired(a, a, data.generator(0, "bootstrap")) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="same fields"):
        metrics.paired(a, b[:5], data.generator(0, "bootstrap"))


def test_a_field_without_a_score_is_left_out_of_the_summary():
    row = metrics.summary({"ssim": torch.tensor([1.0, torch.nan, 3.0])})["ssim"]
    assert row["mean"] == 2.0 and row["median"] == 2.0
    assert math.isnan(metrics.summary({"ssim": torch.full((3,), torch.nan)})["ssim"]["mean"])


def test_a_world_of_no_variance_cannot_scale_errors():
    truth = draw(0, 1, 8, 8, 1)
    with pytest.raises(ValueError, match="positive number"):
        metrics.score(truth.flatten(1, 2), grid_batch(truth), 0.0)
    assert metrics.score(truth.flatten(1, 2), grid_batch(truth), torch.nan)["nrmse"].isnan().all()
