"""The Gaussian process: its fields have the covariance that its formula says, and the answer from that covariance is calibrated."""

import math
from statistics import NormalDist

import pytest
import torch
from torch.testing import assert_close

from lib import data, gaussian, worlds

WORLD = worlds.get("gaussian")
FIELDS = 20_000


def some_sites(n, seed=0):
    return 2 * torch.rand(n, 2, generator=data.generator(seed, "sensors"), dtype=torch.float64) - 1


def test_drawn_fields_have_the_stated_covariance_and_mean():
    """To five standard errors of each entry; their size follows from the fourth moments of normal numbers."""
    s = torch.cat([some_sites(5), some_sites(1) + torch.tensor([[0.1, 0.0]], dtype=torch.float64)])  # the last beside the first
    y = WORLD.at(WORLD.draw(FIELDS, data.generator(0, "test")), s[None])[..., 0] - 0.5
    exact = worlds.gaussian_covariance(s, s)
    error = ((exact.diagonal()[:, None] * exact.diagonal() + exact.square()) / FIELDS).sqrt()
    assert bool(((y.T @ y / FIELDS - exact).abs() < 5 * error).all())
    assert bool((y.mean(0).abs() < 5 * gaussian.DEVIATION / FIELDS**0.5).all())
    assert exact[0, 5] > 0.9 * gaussian.DEVIATION**2  # neighbours move together, so the test is not one of zeros


def test_covariance_is_the_squared_exponential_of_the_stated_length():
    s = torch.cat([data.grid(5, dtype=torch.float64), some_sites(20)])
    r2 = (s[:, None] - s).square().sum(-1)
    assert_close(worlds.gaussian_covariance(s, s), 0.04 * torch.exp(-r2 / (2 * 0.3**2)), rtol=0, atol=0.04 * 2e-4)


def test_covariance_of_two_sets_of_sites_is_a_block_of_that_of_all():
    s, s2 = some_sites(4), some_sites(7, 1).float()
    both = torch.cat([s, s2.double()])
    block = worlds.gaussian_covariance(s, s2)
    assert block.dtype == torch.float64 and block.shape == (4, 7)
    assert_close(block, worlds.gaussian_covariance(both, both)[:4, 4:], rtol=0, atol=1e-15)


def test_no_wave_stands_twice():
    """Of k and -k one, or the variance of a wave would be split between two rows that cannot be told apart."""
    assert len({(i, j) for i, j in gaussian.CYCLES} | {(-i, -j) for i, j in gaussian.CYCLES}) == 2 * len(gaussian.CYCLES) - 1
    assert len(gaussian.RANGES) == 2 * len(gaussian.CYCLES) - 1 <= 200
    assert float(gaussian.spectrum()[1].sum()) == pytest.approx(gaussian.DEVIATION**2, rel=1e-12)


def test_nearly_all_values_lie_in_the_unit_range_and_none_is_infinite():
    y = WORLD.fields(2000, 8, data.generator(1, "test"))
    assert 0.98 < ((y > 0) & (y < 1)).double().mean() < 0.995
    ends = {name: torch.tensor(between, dtype=torch.float64) for name, between in WORLD.ranges.items()}
    assert bool(torch.isfinite(WORLD.at(ends, data.grid(4)[None])).all())


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_answer_from_the_exact_covariance_is_calibrated(noise):
    """Errors at unread sites over their standard deviation: unit variance; 50 and 90 % intervals hold that share."""
    fields, sites = 1500, 4
    s_obs, s_qry = some_sites(51, 2), some_sites(sites, 3)
    y = WORLD.at(WORLD.draw(fields, data.generator(4, "test")), torch.cat([s_obs, s_qry])[None])[..., 0] - 0.5
    error = torch.randn(fields, 51, generator=data.generator(0, "noise"), dtype=torch.float64)
    read, asked = y[:, :51] + 0.5 * noise * error, y[:, 51:]
    K = worlds.gaussian_covariance(s_obs, s_obs) + ((0.5 * noise) ** 2 + 1e-12) * torch.eye(51, dtype=torch.float64)
    gain = torch.linalg.solve(K, worlds.gaussian_covariance(s_obs, s_qry))  # (51, sites)
    std = (gaussian.DEVIATION**2 - (worlds.gaussian_covariance(s_qry, s_obs) * gain.T).sum(1)).sqrt()
    z = (asked - read @ gain) / std  # fields are independent, sites of one are not
    assert_close(z.square().mean(0), torch.ones(sites, dtype=torch.float64), rtol=0, atol=5 * (2 / fields) ** 0.5)
    for share in (0.5, 0.9):
        within = (z.abs() < NormalDist().inv_cdf((1 + share) / 2)).double().mean(0)
        assert_close(within, torch.full_like(within, share), rtol=0, atol=5 * math.sqrt(share * (1 - share) / fields))
    assert bool((std < 0.6 * gaussian.DEVIATION).all())  # the readings say something about every site


def test_fields_of_a_finer_grid_are_those_of_the_same_random_numbers():
    """What judging at another resolution relies on: draw and at with the generator's seed give the fields that were read."""
    drawn = WORLD.draw(3, data.generator(5, "test"))
    fine = WORLD.at(drawn, data.grid(17, dtype=torch.float64).expand(3, -1, -1)).mT.reshape(3, 1, 17, 17)
    assert_close(WORLD.fields(3, 9, data.generator(5, "test")).double(), fine[..., ::2, ::2], rtol=0, atol=1e-6)


def test_the_world_trains_like_any_other():
    batch = next(data.batches(WORLD.fields(8, 8), 4, 5, 6))
    assert batch.y_obs.shape == (4, 5, 1) and bool(torch.isfinite(batch.y_qry).all())
