"""The mixture of Gaussian processes: exact where the answer is known, the same however it is asked, and sound for any readings."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_t
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern
from torch.testing import assert_close

from lib import data, dictionary, hybrid, kernels, settings, worlds

F64 = torch.float64


def stream(seed=0):
    return data.generator(seed, "test of hybrid")


def single(structure, noise=1e-3, a=2.0, b=3.0, prior=None):
    """A prior of one setting."""
    start = hybrid.default(1) if prior is None else prior
    fields = (structure.base, structure.beta, structure.nu, structure.length, structure.aspect, structure.theta)
    one = torch.ones(1, 1, dtype=F64)
    changes = {"structures": torch.tensor([fields], dtype=F64), "noise": torch.tensor([noise], dtype=F64)}
    return dataclasses.replace(start, **changes, weight=one, a=a * one, b=b * one)


def readings(fields=2, count=12, queries=9, channels=1, seed=0):
    g = stream(seed)
    s, q = (2 * torch.rand(fields, n, 2, generator=g, dtype=F64) - 1 for n in (count, queries))
    return data.readings(s, torch.rand(fields, count, channels, generator=g, dtype=F64), q)


def rough_fields(n=60, size=8, seed=0):
    """Fields of a known covariance: a Matern process whose deviation grows to the right."""
    s = data.grid(size, dtype=F64)
    covariance = kernels.correlation(torch.cdist(s, s) / 0.7, 1.5) * 0.01 * (2 + s[:, :1]) * (2 + s[:, 0]) + 1e-9 * torch.eye(size**2)
    draws = torch.randn(n, size**2, generator=stream(seed), dtype=F64) @ torch.linalg.cholesky(covariance).T
    return (0.4 + draws).reshape(n, 1, size, size), covariance


@pytest.fixture(scope="module")
def learned():
    return hybrid.fit(rough_fields(60, 10)[0].float())


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
def test_one_stationary_setting_is_the_gaussian_process_of_scikit_learn(nu):
    batch, structure = readings(), kernels.Structure(0, 1.0, nu, 0.6)
    prior = single(structure)
    mean, std = hybrid.posterior(prior, batch).mean_std(batch.s_qry)
    level = float(prior.scale) ** 0.5
    for i in range(2):
        z = (batch.y_obs[i, :, 0].numpy() - 0.5) / level
        process = GaussianProcessRegressor(Matern(0.6, nu=nu) + ConstantKernel(kernels.LEVEL), alpha=1e-3, optimizer=None)
        expected, deviation = process.fit(batch.s_obs[i].numpy(), z).predict(batch.s_qry[i].numpy(), return_std=True)
        misfit = float(z @ process.alpha_)
        scale = (3.0 + misfit / 2) / (2.0 + len(z) / 2 - 1)
        assert_close(mean[i, :, 0], torch.from_numpy(0.5 + level * expected), atol=1e-9, rtol=1e-9)
        assert_close(std[i, :, 0], torch.from_numpy(level * deviation * scale**0.5), atol=1e-9, rtol=1e-7)


def test_the_evidence_is_the_density_of_a_multivariate_t():
    batch, prior = readings(), single(kernels.Structure(0, 1.0, 1.5, 0.6))
    found = hybrid.posterior(prior, batch).log_evidence
    for i in range(2):
        s = batch.s_obs[i]
        covariance = kernels.correlation(torch.cdist(s, s) / 0.6, 1.5) + kernels.LEVEL + 1e-3 * torch.eye(12)
        shape = (float(prior.scale) * 3.0 / 2.0 * covariance).numpy()
        expected = multivariate_t(loc=np.full(12, 0.5), shape=shape, df=4.0).logpdf(batch.y_obs[i, :, 0].numpy())
        assert_close(float(found[i]), float(expected), atol=1e-8, rtol=1e-10)


def test_the_evidence_of_a_mixture_sums_its_settings():
    batch, a, b = readings(), kernels.Structure(0, 1.0, 0.5, 0.4), kernels.Structure(0, 1.0, 2.5, 0.9)
    parts = [single(k) for k in (a, b)]
    weight = torch.tensor([[0.3], [0.7]], dtype=F64)
    both = dataclasses.replace(
        parts[0], structures=torch.cat([p.structures for p in parts]), weight=weight, a=2 * torch.ones(2, 1), b=3 * torch.ones(2, 1)
    )
    each = torch.stack([hybrid.posterior(p, batch).log_evidence for p in parts])
    assert_close(hybrid.posterior(both, batch).log_evidence, (weight.log() + each).logsumexp(0))


def test_a_known_covariance_gives_the_exact_posterior():
    size = 6
    fields, covariance = rough_fields(3, size)
    values, vectors = torch.linalg.eigh(covariance)
    factor = (vectors * values.clamp(min=0).sqrt()).flip(1)
    start = settings.default(1)
    prior = dataclasses.replace(
        start, mean=torch.full((1, size**2), 0.4, dtype=F64), scale=torch.ones(1, dtype=F64), factor=factor[None],
        deviation=torch.ones(1, size**2, dtype=F64), grid=torch.tensor([6.0, 6.0], dtype=F64),
    )  # fmt: skip
    prior = single(kernels.Structure(1, 0.0, 0.5, 1.0), noise=1e-6, a=1e6, b=1e6, prior=prior)
    batch = data.observe(fields, 10, generator=stream())
    mean, std = hybrid.posterior(prior, batch).mean_std(batch.s_qry)
    for i in range(3):
        at = torch.cdist(batch.s_obs[i].double(), batch.s_qry[i].double()).argmin(1)
        gain = torch.linalg.solve(covariance[at][:, at] + 1e-6 * torch.eye(10), covariance[at]).T
        assert_close(mean[i, :, 0], 0.4 + gain @ (batch.y_obs[i, :, 0] - 0.4), atol=1e-7, rtol=1e-6)
        expected = (covariance - gain @ covariance[at]).diagonal().clamp(min=0).sqrt()
        assert_close(std[i, :, 0], expected, atol=1e-5, rtol=1e-4)


def test_the_grain_of_past_fields_is_learned_between_the_axes_too():
    grain = 3 * math.pi / 8
    s = data.grid(10, dtype=F64) @ kernels.stretch(2.5, grain)
    covariance = kernels.correlation(torch.cdist(s, s) / 0.5, 1.5) + 1e-9 * torch.eye(100)
    draws = torch.randn(32, 100, generator=stream(3), dtype=F64) @ torch.linalg.cholesky(covariance).T
    found = hybrid.fit((0.5 + 0.1 * draws).reshape(32, 1, 10, 10))
    stretched = (found.structures[:, 0] == 0) & (found.structures[:, 4] == 2.5)
    likely, theta = found.weight.sum(1)[stretched], found.structures[stretched, 5]
    assert float(theta[likely.argmax()]) == pytest.approx(grain) and float(likely.max()) > 0.2


def test_no_setting_counts_twice():
    for learned in (False, True):
        its = settings.family(learned)
        assert len(its) == len(set(its))


def test_nine_truths_in_ten_lie_in_the_intervals_of_fields_like_those_learned_from(learned):
    fields, _ = rough_fields(200, 10, seed=1)
    batch = data.observe(fields, 20, generator=stream())
    mean, std = hybrid.posterior(learned, batch).mean_std(batch.s_qry)
    unread = std > 1e-3 * std.amax()
    inside = ((mean - batch.y_qry).abs() < 1.6449 * std)[unread].double().mean()
    assert 0.87 < float(inside) < 0.94


@pytest.mark.parametrize("structure", [(0, 1.0, 1.5, 0.6, 2.5, 0.7), (1, 0.3, 0.5, 0.5), (2, 0.0, 0.5, 1.0)])
def test_draws_have_the_mean_and_deviation_of_the_answer(structure, learned):
    batch = data.observe(rough_fields(1, 10, seed=2)[0], 8, generator=stream())
    found = hybrid.posterior(single(kernels.Structure(*structure), a=3.0, prior=learned), batch)
    mean, std = found.mean_std(batch.s_qry)
    draws = found.draw(300, stream())(batch.s_qry)
    assert_close(draws.mean(0), mean, atol=float(5 * std.max() / 300**0.5), rtol=0)
    ratio = draws.std(0)[std > 0.1 * std.max()] / std[std > 0.1 * std.max()]
    assert 0.92 < float(ratio.mean()) < 1.08


def test_draws_are_functions_of_the_site(learned):
    batch = data.observe(rough_fields(2, 10, seed=3)[0], 9, generator=stream())
    at = hybrid.posterior(learned, batch).draw(3, stream())
    whole = at(batch.s_qry)
    assert_close(at(batch.s_qry[:, 40:47]), whole[:, :, 40:47], atol=1e-9, rtol=0)
    assert_close(at(batch.s_qry), whole, atol=0, rtol=0)


def test_any_chunks_of_queries_give_the_same_answer(learned):
    batch = data.observe(rough_fields(3, 10, seed=4)[0], 15, generator=stream())
    found = hybrid.posterior(learned, batch)
    mean, std = found.mean_std(batch.s_qry)
    parts = [found.mean_std(part) for part in batch.s_qry.split(7, 1)]
    assert_close(torch.cat([m for m, _ in parts], 1), mean, atol=1e-10, rtol=0)
    assert_close(torch.cat([d for _, d in parts], 1), std, atol=1e-8, rtol=0)


def test_the_order_of_readings_does_not_matter(learned):
    batch = data.observe(rough_fields(2, 10, seed=5)[0], 15, generator=stream())
    order = torch.randperm(15, generator=stream())
    turned = dataclasses.replace(batch, s_obs=batch.s_obs[:, order], y_obs=batch.y_obs[:, order], m_obs=batch.m_obs[:, order])
    one, two = hybrid.posterior(learned, batch), hybrid.posterior(learned, turned)
    for a, b in zip(one.mean_std(batch.s_qry), two.mean_std(batch.s_qry), strict=True):
        assert_close(a, b, atol=1e-7, rtol=0)
    assert_close(one.log_evidence, two.log_evidence, atol=1e-6, rtol=0)


def test_missing_readings_are_as_if_never_made(learned):
    batch = data.observe(rough_fields(2, 10, seed=6)[0], 15, generator=stream())
    y, m = batch.y_obs.clone(), batch.m_obs.clone()
    y[:, 3], m[:, 7] = torch.nan, False
    rest = [i for i in range(15) if i not in (3, 7)]
    some = dataclasses.replace(batch, y_obs=y, m_obs=m)
    few = dataclasses.replace(batch, s_obs=batch.s_obs[:, rest], y_obs=y[:, rest], m_obs=m[:, rest])
    one, two = (hybrid.posterior(learned, b) for b in (some, few))
    for a, b in zip(one.mean_std(batch.s_qry), two.mean_std(batch.s_qry), strict=True):
        assert_close(a, b, atol=1e-7, rtol=0)
    assert_close(one.log_evidence, two.log_evidence, atol=1e-7, rtol=0)


@pytest.mark.parametrize("count", [0, 1])
def test_without_readings_or_with_one_the_prior_answers(count, learned):
    batch = readings(count=count)
    found = hybrid.posterior(learned, batch)
    mean, std = found.mean_std(batch.s_qry)
    assert mean.isfinite().all() and (std > 0).all() and found.leave_one_out().shape == (2, count, 1)
    assert found.draw(2, stream())(batch.s_qry).isfinite().all()
    if not count:
        assert_close(mean, learned.mean_at(batch.s_qry))
        assert_close(found.log_evidence, torch.zeros(2, dtype=F64), atol=1e-12, rtol=0)


def test_conflicting_readings_of_one_site_are_averaged(learned):
    s = torch.zeros(1, 6, 2, dtype=F64)
    batch = data.readings(s, torch.tensor([[[0.3], [0.5]] * 3], dtype=F64), torch.zeros(1, 1, 2, dtype=F64))
    mean, std = hybrid.posterior(learned, batch).mean_std(batch.s_qry)
    assert abs(float(mean) - 0.4) < 0.02 and 0 < float(std) < 0.2


def test_leave_one_out_is_the_answer_without_that_reading():
    batch, prior = readings(fields=1), single(kernels.Structure(0, 1.0, 1.5, 0.6))
    found = hybrid.posterior(prior, batch).leave_one_out()
    for i in range(12):
        rest = [j for j in range(12) if j != i]
        less = data.readings(batch.s_obs[:, rest], batch.y_obs[:, rest], batch.s_obs[:, i : i + 1])
        assert_close(found[:, i : i + 1], hybrid.posterior(prior, less).mean_std(less.s_qry)[0], atol=1e-8, rtol=0)


def test_the_state_restores_the_prior(learned):
    batch = readings()
    again = hybrid.restore({name: value.clone() for name, value in learned.state().items()})
    assert_close(
        hybrid.posterior(again, batch).mean_std(batch.s_qry), hybrid.posterior(learned, batch).mean_std(batch.s_qry), atol=0, rtol=0
    )


def test_more_readings_than_choose_the_settings_all_count():
    fields = worlds.WORLDS["plane"].fields(1, 32)
    batch = data.observe(fields, 400, generator=stream())
    mean, _ = hybrid.posterior(hybrid.default(1), batch).mean_std(batch.s_obs)
    assert_close(mean, batch.y_obs.double(), atol=2e-3, rtol=0)


def test_thinned_readings_choose_settings_but_all_say_how_likely_they_are(monkeypatch):
    batch = data.observe(worlds.get("composite").fields(4, 16), 40, generator=stream(), noise=0.05)
    whole = hybrid.posterior(hybrid.default(1), batch)
    monkeypatch.setattr(hybrid, "CHOICE_READINGS", 20)
    thinned = hybrid.posterior(hybrid.default(1), batch)
    assert (
        thinned.log_evidence - whole.log_evidence
    ).abs().max() < 5  # settings that half the readings rule out are not counted; half the readings say some 15 less
    assert len(thinned.parts) != len(whole.parts)


def test_a_setting_is_conditioned_for_the_fields_it_counts_for_alone():
    batch = data.observe(worlds.get("composite").fields(4, 16), 40, generator=stream(), noise=0.05)
    parts = hybrid.posterior(hybrid.default(1), batch).parts
    assert all((part.weight > 0).all() and len(part.fields) for part in parts) and len({len(part.fields) for part in parts}) > 1
    shares = torch.zeros(4, dtype=F64)
    for part in parts:
        shares[part.fields] += part.weight
    assert_close(shares, torch.ones(4, dtype=F64))


def test_half_of_the_weight_is_spread_over_all_structures(learned):
    among = (1 - dictionary.OTHER_NOISE) * 0.5 / len(learned.weight)
    assert (learned.weight[:, : len(dictionary.CLEAN)].sum(1) >= among * (1 - 1e-9)).all()


def test_colours_are_turned_back():
    fields = worlds.WORLDS["photos"].fields(8, 12)
    batch = data.observe(fields, 30, generator=stream())
    answer = hybrid.hybrid(batch, fields)
    at = torch.cdist(batch.s_obs.double(), batch.s_qry.double()).argmin(2)
    read = answer.mean.gather(1, at[..., None].expand(-1, -1, 3))
    assert (
        float((read - batch.y_obs).abs().mean()) < 0.02 and (answer.std > 0).any() and answer.samples(2, stream()).shape == (2, 8, 144, 3)
    )


def test_training_fields_of_other_channels_are_refused():
    with pytest.raises(ValueError, match="channels"):
        hybrid.hybrid(readings(channels=1), torch.rand(9, 3, 8, 8))


def test_a_fine_map_has_the_covariances_of_its_sites_one_by_one(learned):
    """More sites than the grid has nodes are answered without a table of components; a few of them at a time, with one."""
    g, fine = stream(), data.grid((14, 11), dtype=F64)[None].expand(2, -1, -1)
    few = learned.sites(0, 2 * torch.rand(2, 5, 2, generator=g, dtype=F64) - 1)
    pieces = [learned.sites(0, part) for part in fine.split(40, 1)]
    whole = learned.sites(0, fine)
    for structure in (kernels.Structure(1, 0.0, 0.5, 1.0), kernels.Structure(2, 0.3, 1.5, 0.7, 2.0, 0.4)):
        expected = torch.cat([kernels.Pair(few, part).covariance(structure) for part in pieces], 2)
        assert_close(kernels.Pair(few, whole).covariance(structure), expected, atol=1e-12, rtol=1e-10)
        expected = torch.cat([kernels.Pair(few, part).variance(structure) for part in pieces], 1)
        assert_close(kernels.Pair(few, whole).variance(structure), expected, atol=1e-12, rtol=1e-10)
    assert "factor" not in whole.__dict__, "no table of the components was made"


def test_a_field_read_on_nodes_is_answered_the_same_beside_one_read_between_them(learned):
    """Noise of 1e-10 would magnify the rounding of a spline where the table itself could be had."""
    batch = data.observe(rough_fields(2, 10, seed=6)[0].float(), 15, generator=stream())
    moved = batch.s_obs.clone()
    moved[1, 4] += 0.03
    beside = hybrid.posterior(learned, dataclasses.replace(batch, s_obs=moved))
    alone = hybrid.posterior(learned, batch[:1])
    assert_close(beside.log_evidence[:1], alone.log_evidence, atol=1e-7, rtol=0)
    for a, b in zip(beside.mean_std(batch.s_qry), alone.mean_std(batch.s_qry[:1]), strict=True):
        assert_close(a[:1], b, atol=1e-7, rtol=0)


def test_no_fields_at_all_have_no_answers(learned):
    batch = readings(fields=2)[:0]
    mean, std = hybrid.posterior(learned, batch).mean_std(batch.s_qry)
    assert mean.shape == std.shape == (0, 9, 1)


def test_a_prior_kept_in_single_precision_answers_in_double(learned):
    batch = readings()
    kept = settings.restore({name: value.float() for name, value in learned.state().items()})
    mean, _ = hybrid.posterior(kept, batch).mean_std(batch.s_qry)
    assert mean.dtype == F64
    assert_close(mean, hybrid.posterior(learned, batch).mean_std(batch.s_qry)[0], atol=1e-3, rtol=0)


def test_few_sites_and_many_are_answered_alike(learned):
    """By solving, and by a product with the inverse."""
    batch = readings(fields=2, count=12, queries=30)
    found = hybrid.posterior(learned, batch)
    pieces = [found.mean_std(part) for part in batch.s_qry.split(3, 1)]
    for whole, parts in zip(found.mean_std(batch.s_qry), zip(*pieces, strict=True), strict=True):
        assert_close(whole, torch.cat(parts, 1), atol=1e-9, rtol=1e-6)


def test_a_covariance_that_is_asked_twice_is_the_same(learned):
    """What a pair keeps stays as it is while covariances are made of it in place."""
    at = learned.sites(0, 2 * torch.rand(1, 6, 2, generator=stream(), dtype=F64) - 1)
    pair, structure = kernels.Pair(at, at), kernels.Structure(2, 0.3, 2.5, 0.7)
    once = pair.covariance(structure).clone()
    pair.covariance(kernels.Structure(1, 0.6, 0.5, 0.3)), pair.covariance(kernels.Structure(0, 1.0, 99.0, 0.3))
    assert torch.equal(pair.covariance(structure), once)
    assert torch.equal(pair.covariance(structure, torch.tensor([0])), once)


def test_stationary_processes_move_with_the_values():
    """They take level, channels' directions and variances from the training fields, so another unit changes nothing but the unit."""
    y = worlds.get("plane").fields(12, 12).double().repeat(1, 2, 1, 1)
    y[:, 1] = 0.5 * y[:, 0] + 0.3 * y[:, 1].flip(-1)
    batch = data.observe(y[:3], 12, generator=stream())
    other = dataclasses.replace(batch, y_obs=3 * batch.y_obs + 2)
    one, moved = hybrid.posterior(hybrid.stationary(y), batch), hybrid.posterior(hybrid.stationary(3 * y + 2), other)
    (mean, std), (higher, wider) = one.mean_std(batch.s_qry), moved.mean_std(batch.s_qry)
    assert_close(higher, 3 * mean + 2, atol=1e-8, rtol=1e-8)
    assert_close(wider, 3 * std, atol=1e-8, rtol=1e-6)
    assert_close(moved.log_evidence, one.log_evidence - 12 * 2 * np.log(3.0), atol=1e-6, rtol=1e-8)


def test_stationary_processes_are_the_same_at_every_site():
    """What past fields hold where does not matter to them: mirrored past fields give the same answer."""
    y = worlds.get("radial").fields(12, 12).double() * torch.linspace(0, 1, 12, dtype=F64)
    batch = data.observe(y[:2], 12, generator=stream())
    one, mirrored = (hybrid.posterior(hybrid.stationary(past), batch).mean_std(batch.s_qry) for past in (y, y.flip(-1)))
    assert_close(one, mirrored, atol=1e-9, rtol=1e-9)


def test_how_many_settings_are_factorised_together_changes_nothing(monkeypatch):
    batch, prior = readings(channels=2), hybrid.default(2)
    together, size = hybrid.posterior(prior, batch), len(batch.s_obs) * batch.s_obs.shape[1] ** 2
    answer = together.mean_std(batch.s_qry)  # conditioned now, with as many as ever
    for matrices in (1, 4, 7, 12):  # of six noises: one, some, and all those of one covariance or of two
        monkeypatch.setattr(hybrid, "FACTORS_AT_ONCE", matrices * size)
        one = hybrid.posterior(prior, batch)
        assert_close(one.log_evidence, together.log_evidence)
        assert_close(one.mean_std(batch.s_qry), answer)


def test_the_mean_alone_is_the_mean():
    batch = readings(channels=2)
    found = hybrid.posterior(hybrid.default(2), batch)
    assert_close(found.mean(batch.s_qry), found.mean_std(batch.s_qry)[0], rtol=0, atol=1e-12)


def test_the_evidence_of_a_mixture_is_that_of_its_settings():
    batch, whole = readings(), hybrid.default(1)
    share = torch.rand(4, 3, generator=stream(), dtype=F64)
    scales = {"a": torch.arange(1.0, 5.0, dtype=F64)[:, None], "b": torch.arange(2.0, 6.0, dtype=F64)[:, None]}
    chosen = {"structures": whole.structures[:4], "noise": whole.noise[2:5], "weight": share / share.sum()}
    few = dataclasses.replace(whole, **chosen, **scales)
    each = [
        few.weight[j, v].log()
        + hybrid.posterior(single(few.structure(j), float(few.noise[v]), float(few.a[j, 0]), float(few.b[j, 0])), batch).log_evidence
        for j in range(4)
        for v in range(3)
    ]
    assert_close(hybrid.posterior(few, batch).log_evidence, torch.stack(each).logsumexp(0))


def test_settings_are_conditioned_when_an_answer_is_asked_for_and_once(monkeypatch):
    batch, calls = data.observe(worlds.get("gaussian").fields(3, 16).double(), 40), []
    its = hybrid._condition
    monkeypatch.setattr(hybrid, "_condition", lambda *given: calls.append(given) or its(*given))
    found = hybrid.posterior(hybrid.default(1), batch)
    assert found.log_evidence.isfinite().all() and not calls
    found.mean(batch.s_qry), found.mean_std(batch.s_qry)
    assert len(calls) == 1


def test_small_deviations_do_not_drown_in_rounding():
    """A variance is a mean of squares less a squared mean, both a billion times as large."""
    past, fields = (worlds.get("separable").fields(n, 20, split=split).double() for n, split in ((40, "train"), (16, "test")))
    batch = data.observe(fields, 200, generator=stream())
    mean, std = hybrid.posterior(settings.stationary(past), batch).mean_std(batch.s_qry)
    seen = torch.cdist(batch.s_qry.double(), batch.s_obs.double()).amin(2) < 1e-6
    assert float(((mean - batch.y_qry).abs() / std.clamp(min=1e-300))[~seen].max()) < 10
