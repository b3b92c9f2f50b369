"""Bayesian regression through singular values: the answers of the dense formula, wherever readings are missing, repeated, few or many."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct
from torch.testing import assert_close

from lib import basis, posterior

NOISE, LOUD = 0.02, 0.7  # readings that leave next to nothing of the prior along their directions, and some


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def columns_of(r, seed=7):
    """r smooth columns of the site."""
    k = 4 * torch.randn(2, r, generator=seeded(seed), dtype=torch.float64)
    phase = 6 * torch.rand(r, generator=seeded(seed + 1), dtype=torch.float64)
    return lambda s: torch.cos(s @ k + phase)


def mean_of(s):
    return 0.3 + 0.1 * s[..., 0]


def problem(readings, r, batch=3, seed=0, masked=False):
    """Sites, readings less the mean, mask and prior widths."""
    g = seeded(seed)
    s = 2 * torch.rand(batch, readings, 2, generator=g, dtype=torch.float64) - 1
    widths = 0.2 + torch.rand(batch, r, generator=g, dtype=torch.float64)
    w = widths.sqrt() * torch.randn(batch, r, generator=g, dtype=torch.float64)
    z = (columns_of(r)(s) @ w[..., None])[..., 0] + NOISE * torch.randn(batch, readings, generator=g, dtype=torch.float64)
    known = torch.rand(batch, readings, generator=g) < 0.7 if masked else torch.ones(batch, readings, dtype=torch.bool)
    return s, z.where(known, 1e3), known, widths  # what is masked must not matter, however large


def dense(s, z, known, widths, noise, queries, scale=1.0):
    """Mean, covariance and log evidence by the N x N formula, one field at a time over its known rows."""
    found = []
    for i in range(len(s)):
        its = known[i]
        phi, at = columns_of(widths.shape[1])(s[i][its]), columns_of(widths.shape[1])(queries[i])
        prior = scale * widths[i]
        k = (phi * prior) @ phi.T + noise * torch.eye(len(phi), dtype=torch.float64)
        cross = (at * prior) @ phi.T
        covariance = (at * prior) @ at.T - cross @ torch.linalg.solve(k, cross.T)
        density = (
            torch.distributions.MultivariateNormal(torch.zeros(len(phi), dtype=torch.float64), k).log_prob(z[i][its]) if len(phi) else 0.0
        )
        found.append(
            (mean_of(queries[i]) + cross @ torch.linalg.solve(k, z[i][its]), covariance, torch.as_tensor(density, dtype=torch.float64))
        )
    return [torch.stack(part) for part in zip(*found, strict=True)]


def answer(s, z, known, widths, noise):
    noise = None if noise is None else torch.full((len(z),), noise, dtype=torch.float64)
    return posterior.condition(z, known, columns_of(widths.shape[1]), mean_of, s, widths, noise)


def queries(batch=3, count=17):
    return 2 * torch.rand(batch, count, 2, generator=seeded(99), dtype=torch.float64) - 1


@pytest.mark.parametrize(("readings", "r"), [(9, 20), (20, 9), (12, 12), (1, 5), (5, 1), (0, 4), (40, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_mean_variance_and_evidence_are_those_of_the_dense_formula(readings, r, masked):
    given, q = problem(readings, r, masked=masked), queries()
    found = answer(*given, NOISE**2)
    mean, covariance, evidence = dense(*given, NOISE**2, q)
    its_mean, its_variance = found.at(q)
    assert_close(its_mean, mean, rtol=0, atol=1e-9)
    assert_close(its_variance, covariance.diagonal(dim1=1, dim2=2), rtol=0, atol=1e-9)
    assert_close(found.evidence, evidence, rtol=1e-9, atol=1e-7)


def test_the_posterior_is_that_of_scikit_learn():
    s, q = problem(15, 3, batch=1)[0], queries(1)
    kernel = ConstantKernel(1.0) * DotProduct(sigma_0=1.0)  # 1 + s . s'
    z = torch.sin(3 * s[..., 0])
    process = GaussianProcessRegressor(kernel, alpha=NOISE**2, optimizer=None).fit(s[0].numpy(), z[0].numpy())
    mean, std = process.predict(q[0].numpy(), return_std=True)

    def columns(s):
        return torch.cat([torch.ones_like(s[..., :1]), s], -1)

    ones = torch.ones(1, 15, dtype=torch.bool)
    noise = torch.full((1,), NOISE**2, dtype=torch.float64)
    widths = torch.ones(1, 3, dtype=torch.float64)
    found = posterior.condition(z, ones, columns, lambda s: 0 * s[..., 0], s, widths, noise)
    its_mean, its_variance = found.at(q)
    assert_close(its_mean[0], torch.from_numpy(mean), rtol=0, atol=1e-9)
    assert_close(its_variance[0], torch.from_numpy(std) ** 2, rtol=0, atol=1e-9)
    assert_close(found.evidence[0].item(), process.log_marginal_likelihood_value_, rtol=1e-9, atol=1e-8)


def test_repeated_rows_count_as_two_readings():
    s, z, known, widths = problem(8, 12)
    given = torch.cat([s, s[:, :3]], 1), torch.cat([z, z[:, :3] + 0.01], 1), torch.cat([known, known[:, :3]], 1), widths
    mean, covariance, evidence = dense(*given, NOISE**2, queries())
    found = answer(*given, NOISE**2)
    assert_close(found.at(queries())[0], mean, rtol=0, atol=1e-9)
    assert_close(found.at(queries())[1], covariance.diagonal(dim1=1, dim2=2), rtol=0, atol=1e-9)
    assert_close(found.evidence, evidence, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("noise", [NOISE**2, None])
def test_no_reading_leaves_the_prior(noise):
    s, z, known, widths = problem(6, 10)
    found = answer(s, z, torch.zeros_like(known), widths, noise)
    mean, variance = found.at(queries())
    prior = (columns_of(10)(queries()).square() @ widths[..., None])[..., 0]
    assert_close(mean, mean_of(queries()), rtol=0, atol=0)
    assert_close(variance, prior, rtol=1e-9, atol=1e-12)
    assert bool(found.evidence.isfinite().all())


@pytest.mark.parametrize("readings", [0, 8])
def test_without_columns_all_is_noise(readings):
    s, z, known, widths = problem(readings, 0)
    z = torch.linspace(-1, 1, readings, dtype=torch.float64).expand(3, -1)
    found = answer(s, z, known, widths, None)
    mean, variance = found.at(queries())
    assert_close(mean, mean_of(queries()), rtol=0, atol=0)
    assert_close(variance, torch.zeros_like(mean), rtol=0, atol=0)
    if readings:
        noise = z.square().mean(1)
        expected = -0.5 * readings * ((2 * math.pi * noise).log() + 1)
        assert_close(found.evidence, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("readings", "r"), [(30, 8), (12, 25)])
def test_noise_and_scale_are_where_the_evidence_is_largest(readings, r, masked):
    s, z, known, widths = problem(readings, r, batch=2, masked=masked)
    found = answer(s, z, known, widths, None)
    scale = (found.root.square() / widths)[:, 0]
    for i in range(len(s)):
        its = known[i]
        phi = columns_of(r)(s[i][its])
        k, count = (phi * widths[i]) @ phi.T, int(its.sum())

        def cost(log_v, k=k, z=z[i][its], count=count):  # the scale in closed form, `PRIOR_COUNT` readings in favour of 1
            whole = k + math.exp(log_v) * torch.eye(count, dtype=torch.float64)
            misfit = float(z @ torch.linalg.solve(whole, z))
            weight = posterior.PRIOR_COUNT + count
            return weight * math.log(posterior.PRIOR_COUNT + misfit) + float(torch.linalg.slogdet(whole).logabsdet)

        top = math.log(float(torch.linalg.eigvalsh(k)[-1]))
        tried = torch.linspace(top - 30, top + 2, 65)
        middle = min(tried.tolist(), key=cost)
        best = minimize_scalar(cost, bounds=(middle - 0.5, middle + 0.5), method="bounded", options={"xatol": 1e-6})
        whole = k + math.exp(best.x) * torch.eye(count, dtype=torch.float64)
        misfit = float(z[i][its] @ torch.linalg.solve(whole, z[i][its]))
        expected = (posterior.PRIOR_COUNT + misfit) / (posterior.PRIOR_COUNT + count)
        assert_close(scale[i].item(), expected, rtol=1e-2, atol=0)
        evidence = dense(s, z, known, widths, expected * math.exp(best.x), queries(2), expected)[2][i]
        assert_close(found.evidence[i], evidence, rtol=0, atol=1e-3)


def test_samples_have_the_mean_and_the_covariance_of_the_posterior():
    given, q = problem(6, 9, batch=2), queries(2, 5)
    mean, covariance, _ = dense(*given, LOUD**2, q)
    drawn = answer(*given, LOUD**2).draw(20_000, seeded(3))(q)
    std = covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert bool(((drawn.mean(0) - mean).abs() < 5 * std / 20_000**0.5 + 1e-12).all())
    away = drawn - drawn.mean(0)
    found = torch.einsum("kbm,kbn->bmn", away, away) / len(drawn)
    assert bool(((found - covariance).abs() < 6 * (std[:, :, None] * std[:, None]) / 20_000**0.5).all())


def mixed(s, z, known, widths):
    parts = [answer(s, z, known, widths, NOISE**2), answer(s, z, known, widths / 9, LOUD**2)]
    return posterior.mixture(parts, torch.tensor([[0.0, 0.5]] * len(s), dtype=torch.float64))


@pytest.mark.parametrize("make", [lambda *given: answer(*given, NOISE**2), mixed], ids=["gaussian", "mixture"])
def test_a_sample_is_one_function(make):
    found, q = make(*problem(6, 9)), queries()
    whole = found.draw(8, seeded(4))(q)
    sampled = found.draw(8, seeded(4))
    parts = torch.cat([sampled(piece) for piece in q.split(5, 1)], -1)
    assert_close(parts, whole, rtol=0, atol=1e-10)
    assert_close(sampled(q.flip(1)).flip(2), whole, rtol=0, atol=1e-10)
    assert_close(sampled(q[:, 3:4])[..., 0], whole[..., 3], rtol=0, atol=1e-10)


def test_a_mixture_has_the_mean_and_the_variance_of_its_samples():
    found, q = mixed(*problem(4, 9)), queries(3, 6)
    mean, variance = found.at(q)
    drawn = found.draw(20_000, seeded(5))(q)
    assert bool(((drawn.mean(0) - mean).abs() < 5 * variance.sqrt() / 20_000**0.5 + 1e-12).all())
    assert_close(drawn.var(0), variance, rtol=0.06, atol=1e-9)
    assert_close(found.at(q, spread=False)[0], mean, rtol=0, atol=1e-12)


def test_a_part_without_weight_does_not_touch_the_answer():
    given, q = problem(6, 9), queries()
    good, bad = answer(*given, NOISE**2), answer(given[0], given[1] + 1e6, given[2], given[3], NOISE**2)
    found = posterior.mixture([bad, good], torch.tensor([[-torch.inf, 3.0]] * 3, dtype=torch.float64))
    assert_close(found.at(q)[0], good.at(q)[0], rtol=0, atol=0)
    assert_close(found.at(q)[1], good.at(q)[1], rtol=0, atol=0)


def test_a_part_of_negligible_weight_takes_nothing_from_the_others():
    """Nor is it asked for a field because another field of the batch asks for it."""
    given, q = problem(6, 9), queries()
    good, bad = answer(*given, NOISE**2), answer(given[0], given[1] + 1e6, given[2], given[3], NOISE**2)
    slight = math.log(0.5 * posterior.NEGLIGIBLE)
    found = posterior.mixture([bad, good], torch.tensor([[slight, 0.0], [0.0, 0.0], [slight, 0.0]]).double())
    assert_close(found.weight[:, 1], torch.tensor([1.0, 0.5, 1.0]).double())
    for its, right in zip(found.at(q), good.at(q), strict=True):
        assert_close(its[::2], right[::2], rtol=1e-15, atol=0)
    drawn = [one.draw(4, seeded(1))(q)[:, ::2] for one in (found, posterior.mixture([good], torch.zeros(3, 1).double()))]
    assert float((drawn[0] - drawn[1]).abs().max()) < 10  # none of a million off


@pytest.mark.parametrize("same", [True, False], ids=["shared sites", "own sites"])
def test_a_table_beside_other_columns_is_the_table_of_both(same):
    table = posterior.Table(basis.grid_functions(torch.randn(2, 5, 6, 4, generator=seeded(8), dtype=torch.float64)))
    other = columns_of(3)
    both = posterior.Beside((table, lambda s: other(s).repeat_interleave(2, 1)), (4, 3))
    s = 2 * torch.rand(2, 40, 2, generator=seeded(9), dtype=torch.float64) - 1
    s = s[:1].expand(2, -1, -1) if same else s
    matrix = torch.randn(2, 7, 3, generator=seeded(10), dtype=torch.float64)
    widths = torch.cat([torch.full((2, 4), 0.3), torch.tensor([[1.0, 2.0, 0.0]] * 2)], 1).double()
    assert both(s).shape == (2, 80, 7)
    assert_close(both(s)[:, ::2, :4], torch.stack([table.functions.at(its)[:, 0] for its in s]), rtol=0, atol=1e-12)
    assert_close(posterior.times(both, s, matrix), both(s) @ matrix, rtol=0, atol=1e-11)
    assert_close(posterior.power(both, s, widths), (both(s).square() @ widths[..., None])[..., 0], rtol=0, atol=1e-11)


def test_an_answer_is_exact_where_few_directions_leave_nothing_of_the_readings():
    """Three fields without noise: as they are, with one reading off by a ten-thousandth, and of as many directions as readings."""
    s, _, known, _ = problem(40, 21)
    few = torch.full((3, 3), 1.0, dtype=torch.float64)
    z = columns_of(3)(s).sum(-1)
    assert posterior.condition(z, known, columns_of(3), mean_of, s, few).exact.all()
    off = z.clone()
    off[:, 0] += 1e-4
    assert not posterior.condition(off, known, columns_of(3), mean_of, s, few).exact.any()
    many = torch.ones(3, 21, dtype=torch.float64)
    assert not posterior.condition(columns_of(21)(s).sum(-1), known, columns_of(21), mean_of, s, many).exact.any()
    known[0, 5:] = False  # five readings do not prove three directions, six do
    known[1, 6:] = False
    assert posterior.condition(z, known, columns_of(3), mean_of, s, few).exact.tolist() == [False, True, True]
