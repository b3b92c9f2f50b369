"""V5's posterior: answers that depend on the readings alone, odd readings, the known best answer, and never worse than interpolation."""

import pytest
import torch
from torch.testing import assert_close

from lib import baselines, data, dissect, experts, v5, worlds
from lib.data import Batch

SIZE = 16
FEW = 6


@pytest.fixture(scope="module", autouse=True)
def small():
    """Past fields are taken apart a few at a time: the tests ask for answers, not for the best prior."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dissect, "MOST", 16)
        patch.setattr(dissect, "READ", 100)
        yield


PRIORS = {}
EXPERTS = ("past", "waves", "both")


def learn(fields):
    return v5.learn(fields, experts=EXPERTS)


def predict(its, one):
    return v5.predict(its, one, EXPERTS)


def past(name, count=96):
    return worlds.get(name).fields(count, SIZE)


def prior(name="multi_frequency"):
    if name not in PRIORS:
        PRIORS[name] = learn(past(name))
    return PRIORS[name]


def batch(name="multi_frequency", count=51, fields=FEW, noise=0.05):
    return data.observe(worlds.get(name).fields(fields, SIZE, split="test").double(), count, noise=noise)


def asked(one, s):
    """The same readings, other queries."""
    return Batch(one.s_obs, one.y_obs, one.m_obs, s, torch.full((*s.shape[:2], one.y_obs.shape[-1]), torch.nan, dtype=s.dtype))


def scattered(fields=FEW, count=60, seed=3):
    return 2 * torch.rand(fields, count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def assert_same(one, other, tolerance=1e-5):
    assert_close(one.mean, other.mean, rtol=0, atol=tolerance)
    assert_close(one.std, other.std, rtol=1e-3, atol=tolerance)


@pytest.mark.parametrize("world", ["multi_frequency", "composite"])
def test_an_answer_does_not_depend_on_the_other_queries(world):
    readings, s = batch(world), scattered()
    whole = predict(prior(world), asked(readings, s))
    parts = [predict(prior(world), asked(readings, piece)) for piece in s.split(7, 1)]
    assert_close(torch.cat([part.mean for part in parts], 1), whole.mean, rtol=0, atol=1e-8)
    assert_close(torch.cat([part.std for part in parts], 1), whole.std, rtol=0, atol=1e-6)


def test_an_answer_does_not_depend_on_the_chunk(monkeypatch):
    whole = predict(prior(), batch())
    drawn = whole.samples(3, torch.Generator().manual_seed(1))
    monkeypatch.setattr(v5, "SITES", 50)
    pieces = predict(prior(), batch())
    assert_close(pieces.mean, whole.mean, rtol=0, atol=1e-8)
    assert_close(pieces.std, whole.std, rtol=0, atol=1e-6)
    assert_close(pieces.samples(3, torch.Generator().manual_seed(1)), drawn, rtol=0, atol=1e-8)


def test_an_answer_does_not_depend_on_the_other_fields(monkeypatch):
    whole = predict(prior(), batch(noise=0.0))  # some fields are explained by waves alone, others not
    single = [predict(prior(), batch(noise=0.0)[i : i + 1]) for i in range(FEW)]
    assert_same(whole, data.Prediction(*(torch.cat([getattr(one, name) for one in single]) for name in ("mean", "std"))))
    monkeypatch.setattr(v5, "AT_ONCE", 4)
    assert_same(whole, predict(prior(), batch(noise=0.0)))


def test_samples_scatter_about_the_mean_by_the_deviation():
    found = predict(prior(), batch())
    drawn = found.samples(400, torch.Generator().manual_seed(4))
    away = (drawn.mean(0) - found.mean) / found.std
    assert float(away.square().mean().sqrt()) < 3 / 400**0.5  # 1 / 20 by chance
    assert_close(drawn.std(0), found.std, rtol=0.3, atol=1e-9)


def test_the_mean_alone_is_the_mean():
    assert_close(v5.mean(prior(), batch(), EXPERTS), predict(prior(), batch()).mean, rtol=0, atol=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_order_of_the_readings_does_not_matter(noise):
    one, order = batch(noise=noise), torch.randperm(51, generator=torch.Generator().manual_seed(2))
    other = Batch(one.s_obs[:, order], one.y_obs[:, order], one.m_obs[:, order], one.s_qry, one.y_qry)
    assert_same(predict(prior(), one), predict(prior(), other))


def test_fields_unlike_the_past_ones_are_left_to_the_stationary_processes():
    """The past are rings about the centre; the readings are of plane waves, which their components cannot hold."""
    one = batch(noise=0.05)
    fields = past("radial")[:40]
    prior = v5.learn(fields, experts=("past", "stationary"))
    assert v5.has_experts(prior) == ["past", "waves", "stationary"]
    weight = v5.conditioned(prior, one, ("past", "stationary")).weight
    assert float(weight[:, 1].median()) > 0.99
    alone, both = (errors(v5.mean(prior, one, experts), one) for experts in (("past",), ("past", "stationary")))
    assert float((alone / both).log().mean()) > 0.5
    again = v5.restore(v5.state(prior))
    assert_same(v5.predict(again, one), v5.predict(prior, one))


def test_kinds_of_past_fields_keep_their_components_apart():
    """Rings, and products of sines: a prior of both answers each as the prior of its kind alone does, and files keep it."""
    kinds = [past(name)[:60] for name in ("radial", "separable")]
    both, mixed = v5.learn(kinds, experts=("past",)), v5.learn(torch.cat(kinds), experts=("past",))
    assert [len(table.values) for table in both.past] == [SIZE**2] * 2
    again = v5.restore(v5.state(both))
    for i, name in enumerate(("radial", "separable")):
        one = batch(name, noise=0.05)
        weight = v5.conditioned(both, one, ("past",)).weight
        assert float(weight[:, i].min()) > 0.999
        alone = v5.learn(kinds[i], experts=("past",))
        assert_same(v5.predict(both, one, ("past",)), v5.predict(alone, one, ("past",)))
        assert_same(v5.predict(again, one, ("past",)), v5.predict(both, one, ("past",)))
        found, blurred = (errors(v5.mean(its, one, ("past",)), one).mean() for its in (both, mixed))
        assert float(found) < float(blurred)


def test_searches_that_disagree_share_the_answer(monkeypatch):
    """Thirteen noisy readings of a plane wave: a search from many waves takes noise for waves, one from few does not; both have a say."""
    one = data.observe(worlds.get("plane").fields(24, SIZE, split="test").double(), 13, noise=0.1)
    its = v5.learn(past("plane")[:40], experts=("past",))
    found = {}
    for starts in ((24,), (6,), (24, 6)):
        monkeypatch.setattr(experts, "STARTS", starts)
        found[starts] = v5.conditioned(its, one, ("waves",))
    both = found[24, 6]
    assert both.names == ("waves", "waves") and set(both.shares()) == {"waves"}
    assert_close(both.weight.sum(1), torch.ones(24, dtype=torch.float64))
    s = one.s_qry.double()
    (many, _), (few, _) = (found[count,].at(s) for count in (24, 6))
    mean, variance = both.at(s)
    assert_close(mean, both.weight[:, :1] * many + both.weight[:, 1:] * few, rtol=0, atol=1e-9)
    apart = both.weight.prod(1) > 0.01  # neither is certain
    assert apart.any() and (variance[apart] >= (both.weight.prod(1)[:, None] * (many - few).square())[apart] - 1e-9).all()
    error = lambda mean: float((mean - one.y_qry[..., 0]).square().mean(1).log().mean())  # noqa: E731
    assert error(mean) < error(many) - 0.2


def test_a_second_search_leaves_exact_answers_as_they_are():
    """One field read without noise and one with: the first is found at once, and is not searched again because the second is."""
    fields = worlds.get("plane").fields(2, SIZE, split="test").double()
    clean, noisy = (data.observe(fields[i : i + 1], 13, noise=v) for i, v in enumerate((0.0, 0.1)))
    one = Batch(*(torch.cat([getattr(part, name) for part in (clean, noisy)]) for name in ("s_obs", "y_obs", "m_obs", "s_qry", "y_qry")))
    its = v5.learn(past("plane")[:40], experts=("past",))
    first, *later = experts.searched(experts.alone(its, experts.double(one)))
    assert first[2].tolist() == [True, False]
    assert later and all(evidence[0] == -torch.inf and evidence[1].isfinite() for _, evidence, _ in later)


def test_where_components_explain_all_nothing_else_is_asked(monkeypatch):
    """Fields of six dimensions without noise: no search for waves; beside a noisy field there is one, and the clean answer stays."""
    fields, its = worlds.get("separable").fields(2, SIZE, split="test").double(), prior("separable")
    clean, noisy = (data.observe(fields[i : i + 1], 51, noise=v) for i, v in enumerate((0.0, 0.1)))
    both = Batch(*(torch.cat([getattr(part, name) for part in (clean, noisy)]) for name in ("s_obs", "y_obs", "m_obs", "s_qry", "y_qry")))
    mixed, alone = v5.conditioned(its, both), v5.conditioned(its, clean)
    assert alone.names == ("past",) and {"past", "waves"} <= set(mixed.names)
    assert mixed.weight[0].tolist() == [1.0] + [0.0] * (len(mixed.names) - 1)
    assert_close(alone.at(clean.s_qry.double())[0], mixed.at(both.s_qry.double())[0][:1], rtol=0, atol=1e-9)
    assert float(errors(v5.mean(its, clean), clean)) < 1e-12
    monkeypatch.setattr(experts.waves, "searcher", lambda *given: pytest.fail("a search for waves"))
    v5.conditioned(its, clean)


def test_a_kind_counts_once_however_many_there_are():
    """The same fields twice: each kind has half the weight of one, so that against the other experts nothing changes."""
    fields, one = past("radial")[:40], batch(noise=0.05)
    single, double = (v5.learn(kinds, experts=("past",)) for kinds in ([fields], [fields, fields]))
    a, b = (v5.conditioned(its, one).weight for its in (single, double))
    assert_close(b[:, 0], b[:, 1])
    assert_close(b[:, :2].sum(1), a[:, 0])


@pytest.mark.parametrize("kinds", [[], [torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 9)], [torch.rand(4, 1, 8, 8), torch.rand(4, 3, 8, 8)]])
def test_kinds_of_different_shapes_are_refused(kinds):
    with pytest.raises(ValueError, match="give at least one kind, all of the same channels and grid"):
        v5.learn(kinds)


def errors(mean, one):
    return (mean - one.y_qry).square().mean((1, 2))


@pytest.mark.parametrize(("world", "noise"), [("multi_frequency", 0.05), ("radial", 0.0)])
def test_missing_readings_are_as_none(world, noise):
    one = batch(world, noise=noise)
    more = Batch(
        torch.cat([one.s_obs, torch.full((FEW, 5, 2), torch.nan)], 1),
        torch.cat([one.y_obs, torch.full((FEW, 5, 1), 1e6)], 1),
        torch.cat([one.m_obs, torch.tensor([[False, False, False, True, True]] * FEW)], 1),  # said to be missing, or at no site
        one.s_qry,
        one.y_qry,
    )
    assert_same(predict(prior(world), more), predict(prior(world), one))


def test_a_level_added_to_past_fields_and_readings_is_added_to_the_answer():
    one, fields = batch(), past("multi_frequency").double()
    shifted = Batch(one.s_obs, one.y_obs + 3, one.m_obs, one.s_qry, one.y_qry)
    higher = predict(learn(fields + 3), shifted)
    lower = predict(learn(fields), one)
    assert_close(higher.mean, lower.mean + 3, rtol=0, atol=1e-5)
    assert_close(higher.std, lower.std, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("s", "y"),
    [
        ([], []),
        ([[0.1, -0.4]], [0.9]),
        ([[0.1, -0.4], [0.1, -0.4]], [0.2, 0.8]),
        ([[0.1, -0.4], [0.7, 0.4]], [0.5, 0.5]),
        ([[0.1, -0.4]] * 30, [0.4] * 30),
        ([[x / 10, 0.3] for x in range(-10, 11)], [0.6] * 21),
    ],
    ids=["none", "one", "conflict", "two", "one site", "constant on a line"],
)
@pytest.mark.parametrize("world", ["multi_frequency", "photos"])
def test_answers_are_finite_whatever_the_readings(world, s, y):
    channels = worlds.get(world).channels
    s = torch.tensor(s, dtype=torch.float64).reshape(1, -1, 2)
    y = torch.tensor(y, dtype=torch.float64).reshape(1, -1, 1).expand(-1, -1, channels)
    found = predict(prior(world), data.readings(s, y, scattered(1)))
    assert found.mean.shape == found.std.shape == (1, 60, channels)
    assert bool((found.mean.isfinite() & found.std.isfinite() & (found.std >= 0)).all())
    assert bool((found.mean - 0.5).abs().max() < 2)
    assert bool(found.samples(2, torch.Generator().manual_seed(0)).isfinite().all())


def test_conflicting_readings_are_answered_between_them_and_with_doubt():
    s = torch.tensor([[[0.1, -0.4], [0.1, -0.4]]], dtype=torch.float64)
    found = predict(prior(), data.readings(s, torch.tensor([[[0.2], [0.8]]], dtype=torch.float64), s[:, :1]))
    assert 0.2 < found.mean.item() < 0.8
    assert found.std.item() > 0.05


@pytest.mark.parametrize("name", ["readings", "queries"])
def test_sites_outside_are_refused_in_one_line(name):
    one, off = batch(), torch.tensor([0.0, 1.01])
    outside = Batch(one.s_obs + off * (name == "readings"), one.y_obs, one.m_obs, one.s_qry + off * (name == "queries"), one.y_qry)
    with pytest.raises(ValueError, match=rf"sites of {name} reach .* allowed is \[-1, 1\]") as error:
        predict(prior(), outside)
    assert "\n" not in str(error.value)
    predict(prior(), Batch(one.s_obs * (1 + 1e-7), one.y_obs, one.m_obs, one.s_qry * (1 + 1e-7), one.y_qry))  # rounding


def test_readings_of_other_channels_are_refused():
    one = batch()
    three = Batch(one.s_obs, one.y_obs.expand(-1, -1, 3), one.m_obs, one.s_qry, one.y_qry.expand(-1, -1, 3))
    with pytest.raises(ValueError, match="3 channels, past fields 1"):
        predict(prior(), three)


@pytest.mark.parametrize("world", ["sst", "photos"])
def test_land_and_colours_are_answered_better_than_by_a_constant(world):
    shape = None if world == "sst" else SIZE
    its, test = (worlds.get(world).fields(n, shape, split=split) for n, split in ((60, "train"), (4, "test")))
    one = data.observe(test.double(), 60)
    found = predict(learn(its), one)
    truth, known = one.y_qry, one.y_qry.isfinite()
    assert bool(found.mean.isfinite().all() & found.std.isfinite().all())
    error = (found.mean - truth)[known].square().mean()
    constant = (baselines.get("constant")(one, its).mean - truth)[known].square().mean()
    assert float(error) < 0.5 * float(constant)


def exact(one, noise):
    """Mean and standard deviation of the Gaussian process given the readings, its covariance and the noise known."""
    means, stds = [], []
    for s, y, q in zip(one.s_obs, one.y_obs, one.s_qry, strict=True):
        k = worlds.gaussian_covariance(s, s) + noise**2 * torch.eye(len(s), dtype=torch.float64)
        cross = torch.linalg.solve(k, worlds.gaussian_covariance(s, q)).T
        means.append(0.5 + cross @ (y.double() - 0.5))
        spread = worlds.gaussian_covariance(q, q).diagonal() - (cross * worlds.gaussian_covariance(q, s)).sum(1)
        stds.append(spread.clamp(min=0).sqrt()[:, None])
    return torch.stack(means), torch.stack(stds)


def test_a_gaussian_process_is_answered_nearly_as_well_as_can_be():
    """The prior is known from 1,024 fields only: its answers lose up to a tenth of the deviation that nobody can avoid."""
    its = learn(past("gaussian", 1024))
    one = batch("gaussian", 51, 12, noise=0.05)
    found, (mean, std) = predict(its, one), exact(one, 0.025)
    error, least = (found.mean - one.y_qry).square().mean().sqrt(), (mean - one.y_qry).square().mean().sqrt()
    assert float(error) < 1.1 * float(least)
    assert float((found.mean - mean).square().mean().sqrt()) < 0.4 * float(std.square().mean().sqrt())
    assert 0.8 < float(found.std.square().mean().sqrt() / std.square().mean().sqrt()) < 1.2
    covered = ((found.mean - one.y_qry).abs() <= 1.6449 * found.std).double().mean()
    assert 0.85 < float(covered) < 0.95


def decibels(found, one):
    return -10 * (found.mean - one.y_qry).square().mean((1, 2)).log10()


@pytest.mark.parametrize("world", [w.name for w in worlds.WORLDS.values() if w.formula is not None])
def test_noise_free_v5_is_not_below_optimal_interpolation(world):
    one = batch(world, noise=0.0)
    ours, theirs = decibels(predict(prior(world), one), one), decibels(baselines.get("oi")(one, past(world)), one)
    assert float(ours.mean()) > float(theirs.mean()) - 0.3


@pytest.mark.parametrize("world", ["plane", "interference", "separable"])
def test_fields_of_waves_are_answered_by_waves(world):
    one = batch(world, noise=0.0)
    assert float(decibels(predict(prior(world), one), one).median()) > 100
