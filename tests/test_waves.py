"""Plane waves found by the evidence of the readings: exact where they are exact, none where there is noise, the same by both routes."""

import math

import pytest
import torch
from torch.testing import assert_close

from lib import waves

ONE = [([5.0, -7.3], 0.4, -0.7)]
TWO = [([5.0, -7.3], 0.4, -0.7), ([-9.1, 4.4], 0.8, 0.2)]
LEVEL = 0.3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sites(count, batch=1, seed=0):
    return 2 * torch.rand(batch, count, 2, generator=seeded(seed), dtype=torch.float64) - 1


def field(s, parts):
    """LEVEL and a cos + b sin of every wave."""
    y = torch.full(s.shape[:2], LEVEL, dtype=torch.float64)
    for k, a, b in parts:
        phase = s @ torch.tensor(k, dtype=torch.float64)
        y = y + a * phase.cos() + b * phase.sin()
    return y


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def found(s, z, known=None, **options):
    known = torch.ones(z.shape, dtype=torch.bool) if known is None else known
    return waves.find(s, z, known, z.new_ones(*z.shape, 1), z.new_full((len(z), 1), 0.25), **options)


def answer(its, s, z, at, known=None):
    """The regression on the level and the waves found, with their widths and noise, by normal equations of the columns."""
    known = torch.ones(z.shape, dtype=torch.bool) if known is None else known
    root = torch.cat([its.scale, its.widths()], 1).sqrt()[:, None]

    def columns(s):
        return torch.cat([torch.ones(*s.shape[:2], 1, dtype=torch.float64), its.columns(s)], -1) * root

    phi = torch.cat([columns(s) * known[..., None], torch.diag_embed(its.noise.sqrt()[:, None].expand(-1, root.shape[-1]))], 1)
    z = torch.cat([z.where(known, 0), z.new_zeros(len(z), root.shape[-1])], 1)
    return (columns(at) @ torch.linalg.lstsq(phi, z[..., None], driver="gelsd").solution)[..., 0]


def decibels(y, truth):
    return -10 * (y - truth).square().mean(1).log10()


def alive(its):
    return (its.width > 0).sum(1).tolist()


@pytest.mark.parametrize("readings", [51, 26])
@pytest.mark.parametrize("parts", [ONE, TWO], ids=["one", "two"])
def test_exact_waves_are_found_from_noise_free_readings(readings, parts):
    s, at = sites(readings), sites(300, seed=9)
    its = found(s, field(s, parts))
    y = answer(its, s, field(s, parts), at)
    assert decibels(y, field(at, parts)).item() > 100
    assert alive(its) == [len(parts)]
    k = its.k[0][its.width[0] > 0]
    for wave, _, _ in parts:  # k and -k are the same wave
        wave = torch.tensor(wave, dtype=torch.float64)
        assert min(float((k - wave).norm(dim=1).min()), float((k + wave).norm(dim=1).min())) < 1e-5
    assert its.exact.tolist() == [True]


def test_pure_noise_holds_no_wave_worth_its_price():
    batch = 40
    s, z = sites(51, batch), 0.2 * normal(batch, 51)
    its = found(s, z)
    none = torch.zeros_like(its.width)
    alone = waves.Waves(its.k, none, its.amplitude, z.square().mean(1), 1e-12 * torch.ones_like(its.scale), its.exact)
    better = evidence(its, s, z) - its.price() > evidence(alone, s, z) + 1  # a nat for the level
    assert int((better & (none < its.width).any(1)).sum()) <= batch // 20
    assert not bool(its.exact.any())


def evidence(its, s, z):
    """log N(z; 0, K) of the level, the waves with their tangents and the noise."""
    phi = torch.cat([torch.ones(*s.shape[:2], 1, dtype=torch.float64), its.columns(s)], -1)
    k = (phi * torch.cat([its.scale, its.widths()], 1)[:, None]) @ phi.mT + torch.diag_embed(its.noise[:, None].expand(z.shape))
    return torch.distributions.MultivariateNormal(torch.zeros_like(z), k).log_prob(z)


@pytest.mark.parametrize("deviation", [0.02, 0.1])
def test_the_noise_is_estimated_within_a_factor_of_two(deviation):
    batch = 24
    s = sites(51, batch)
    its = found(s, field(s, TWO) + deviation * normal(batch, 51))
    ratio = (its.noise / deviation**2).log2()
    assert abs(ratio.median().item()) < 0.5
    assert (ratio.abs() < 1).double().mean().item() > 0.85


NOISY = field(sites(51, 3), TWO) + 0.05 * normal(3, 51)


def assert_same_answer(first, second, tolerance=1e-6):
    """Two searches give the same answer between the readings, and the same noise."""
    at = sites(100, seed=9)
    (its, s, z, known), (other, s2, z2, known2) = first, second
    one, two = answer(its, s, z, at.expand(len(z), -1, -1), known), answer(other, s2, z2, at.expand(len(z2), -1, -1), known2)
    assert_close(one, two, rtol=0, atol=tolerance)
    assert_close(its.noise, other.noise, rtol=1e-4, atol=0)


def test_the_order_of_the_readings_does_not_matter():
    s, order = sites(51, 3), torch.randperm(51, generator=seeded(5))
    assert_same_answer((found(s, NOISY), s, NOISY, None), (found(s[:, order], NOISY[:, order]), s[:, order], NOISY[:, order], None))


def test_missing_readings_do_not_matter():
    s = sites(51, 3)
    known = torch.cat([torch.ones(3, 51, dtype=torch.bool), torch.zeros(3, 9, dtype=torch.bool)], 1)
    order = torch.randperm(60, generator=seeded(6))
    more, z = torch.cat([s, sites(9, 3, 7)], 1)[:, order], torch.cat([NOISY, normal(3, 9) * 1e3], 1)[:, order]
    assert_same_answer((found(s, NOISY), s, NOISY, None), (found(more, z, known[:, order]), more, z, known[:, order]))


def test_a_field_does_not_feel_the_others_of_its_batch():
    s = sites(51, 3)
    whole = found(s, torch.cat([NOISY[:1], field(s[1:2], ONE), normal(1, 51)]))
    at = sites(100, seed=9)
    for i, z in enumerate([NOISY[:1], field(s[1:2], ONE), normal(1, 51)]):
        own = found(s[i : i + 1], z)
        its = waves.Waves(*(getattr(whole, name)[i : i + 1] for name in ("k", "width", "amplitude", "noise", "scale", "exact")))
        assert alive(own) == alive(its)
        assert_close(answer(its, s[i : i + 1], z, at), answer(own, s[i : i + 1], z, at), rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_unit_of_the_values_does_not_matter(factor):
    s, at = sites(51, 3), sites(100, 1, 9).expand(3, -1, -1)
    known, ones = torch.ones(3, 51, dtype=torch.bool), torch.ones(3, 51, 1, dtype=torch.float64)
    its = waves.find(s, factor * NOISY, known, ones, torch.full((3, 1), 0.25 * factor**2, dtype=torch.float64))
    assert alive(its) == alive(found(s, NOISY))
    assert_close(answer(its, s, factor * NOISY, at) / factor, answer(found(s, NOISY), s, NOISY, at), rtol=0, atol=1e-6)


def test_a_level_added_to_the_readings_is_added_to_the_answer():
    s, at = sites(51), sites(100, 1, 9)
    y, z = field(s, TWO), field(s, TWO) + 0.2
    assert_close(answer(found(s, z), s, z, at), answer(found(s, y), s, y, at) + 0.2, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("s", "z"),
    [
        (torch.zeros(2, 0, 2), torch.zeros(2, 0)),
        (sites(1, 2), torch.tensor([[0.5], [0.0]])),
        (sites(2, 2), torch.tensor([[0.5, -0.2], [0.1, 0.1]])),
        (sites(30, 1), torch.full((1, 30), 0.7)),
        (sites(30, 1), torch.zeros(1, 30)),
        (torch.zeros(1, 2, 2), torch.tensor([[0.5, -0.5]])),
        (sites(20, 1).repeat(1, 2, 1), field(sites(20, 1), TWO).repeat(1, 2)),
        (sites(20, 1).repeat(1, 2, 1), field(sites(20, 1), TWO).repeat(1, 2) + 0.1 * normal(1, 40)),
    ],
    ids=["none", "one", "two", "constant", "zero", "conflict", "repeated", "repeated, noisy"],
)
def test_answers_are_finite_whatever_the_readings(s, z):
    its = found(s.double(), z.double())
    for name in ("k", "width", "amplitude", "noise", "scale"):
        assert bool(getattr(its, name).isfinite().all()), name
    assert bool((its.noise > 0).all() & (its.width >= 0).all())
    y = answer(its, s.double(), z.double(), sites(50).expand(len(z), -1, -1))
    assert bool((y.abs() < 10).all())


def test_a_masked_field_is_as_a_field_without_readings():
    its = found(sites(20, 2), normal(2, 20), torch.zeros(2, 20, dtype=torch.bool))
    assert bool(its.k.isfinite().all() & its.noise.isfinite().all())
    assert not bool(its.exact.any())


def components(s, r=7):
    """Smooth columns beside the waves."""
    k = 1.5 * normal(2, r, seed=11)
    return 0.3 * torch.cos(s @ k)


@pytest.mark.parametrize(("readings", "noise"), [(120, 0.05), (300, 0.05), (300, 0.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_readings_turned_onto_fewer_rows_give_the_same_waves(readings, noise, masked):
    s, at = sites(readings, 2), sites(100, 1, 9).expand(2, -1, -1)
    z = field(s, TWO) - LEVEL + noise * normal(2, readings) + (components(s) @ normal(2, 7, 1, seed=12))[..., 0]
    known = torch.rand(2, readings, generator=seeded(3)) < 0.8 if masked else torch.ones(2, readings, dtype=torch.bool)
    answers, estimates = [], []
    for many in (10**6, 0):
        its = waves.find(s, z, known, components(s), torch.ones(2, 1, dtype=torch.float64), many=many)
        columns = torch.cat([components(s), its.columns(s)], -1)
        root = torch.cat([its.scale.expand(-1, 7), its.widths()], 1).sqrt()[:, None]
        phi = torch.cat([columns * root * known[..., None], torch.diag_embed(its.noise.sqrt()[:, None].expand(2, root.shape[-1]))], 1)
        padded = torch.cat([z.where(known, 0), z.new_zeros(2, root.shape[-1])], 1)
        w = torch.linalg.lstsq(phi, padded[..., None], driver="gelsd").solution
        answers.append((torch.cat([components(at), its.columns(at)], -1) * root @ w)[..., 0])
        estimates.append(its.noise)
        assert alive(its) == [2, 2]
    assert_close(*answers, rtol=0, atol=1e-5)
    if noise:
        assert_close(*estimates, rtol=1e-3, atol=0)


@pytest.mark.parametrize("noise", [0.05, 0.0])
@pytest.mark.parametrize("rest", ["constant", "components", "covariances"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_compiled_search_is_the_iteration(monkeypatch, noise, rest, masked):
    """Field by field in machine code, or all side by side by the operations that specify it; of waves that noise hides, too."""
    readings, fields = 60, 4
    s = sites(readings, fields)
    z = field(s, TWO) - LEVEL + noise * normal(fields, readings)
    z[:2] += 0.1 * (components(s) @ normal(fields, 7, 1, seed=12))[:2, :, 0]
    z[3] = normal(readings, seed=8)  # no waves at all
    known = torch.rand(fields, readings, generator=seeded(3)) < 0.8 if masked else torch.ones(fields, readings, dtype=torch.bool)
    near = torch.exp(-torch.cdist(s, s))
    its = {"constant": z.new_ones(*z.shape, 1), "components": components(s), "covariances": torch.stack([near, near**2], 1)}[rest]
    scale = torch.full((fields, 2 if rest == "covariances" else 1), 0.1, dtype=torch.float64)
    answers = []
    for most in (readings, readings - 1):
        monkeypatch.setattr(waves, "COMPILED", most)
        answers.append(waves.find(s, z, known, its, scale, 12))
    one, other = answers
    assert alive(one) == alive(other) and one.exact.tolist() == other.exact.tolist()
    close = 1e-6 if noise else 2e-2  # widths divide numbers of which rounding leaves few digits where nothing is left to explain
    assert_close(one.noise, other.noise, rtol=1e-6, atol=0)
    assert_close(one.scale, other.scale, rtol=close, atol=0)
    for i, count in enumerate(alive(one)):  # the order of waves means nothing
        mine, its_own = ((a.width[i].sort().values, a.k[i][a.width[i] > 0].norm(dim=1).sort().values) for a in answers)
        assert_close(mine[0][-count or len(mine[0]) :], its_own[0][-count or len(its_own[0]) :], rtol=10 * close, atol=1e-12)
        assert_close(mine[1], its_own[1], rtol=1e-6, atol=1e-9)


def test_the_search_is_compiled_where_readings_are_few(monkeypatch):
    calls = []
    climb = waves.climb
    monkeypatch.setattr(waves, "climb", lambda *given: calls.append(given[1].shape) or climb(*given))
    for readings in (1, 51, waves.COMPILED, waves.COMPILED + 1):
        s = sites(readings)
        assert found(s, field(s, ONE), count=3).noise.isfinite().all()
    assert calls == [(1, 1), (1, 51), (1, waves.COMPILED)]


def test_no_readings_and_readings_that_are_nothing_hold_no_waves():
    s = sites(20, 2)
    its = found(s, torch.zeros(2, 20, dtype=torch.float64), torch.tensor([[False], [True]]).expand(2, 20), count=3)
    assert alive(its) == [0, 0] and its.noise.isfinite().all() and not its.exact.any()


def test_values_beyond_all_bounds_are_refused_in_one_line():
    s = sites(20)
    with pytest.raises(ValueError, match="give sites and values that are finite"):
        found(s, torch.full((1, 20), torch.nan, dtype=torch.float64), count=3)


def test_no_components_and_no_fields_are_no_hindrance():
    s = sites(40)
    z, one = field(s, ONE) - LEVEL, torch.ones(1, 1, dtype=torch.float64)
    assert waves.find(s, z, torch.ones_like(z, dtype=torch.bool), s.new_zeros(1, 40, 0), one, 3).exact.all()
    assert waves.find(s[:0], z[:0], z[:0].bool(), s.new_zeros(0, 40, 1), one[:0], 3).k.shape[0] == 0


@pytest.mark.parametrize("readings", [60, waves.COMPILED + 10])
def test_components_that_could_explain_anything_prove_no_waves(readings):
    """As many components as readings fit noise to the last digit, and then waves beside them are not proven by it."""
    s = sites(readings)
    z = field(s, ONE) - LEVEL + 0.05 * normal(1, readings)
    one = torch.ones(1, 1, dtype=torch.float64)
    anything = waves.find(s, z, torch.ones_like(z, dtype=torch.bool), 100 * torch.eye(readings, dtype=torch.float64)[None], one, 6)
    assert not anything.exact.any()
    clean = field(s, ONE) - LEVEL
    few = waves.find(s, clean, torch.ones_like(z, dtype=torch.bool), components(s), one, 6)
    assert few.exact.all()


def test_no_matrix_of_all_pairs_of_many_readings_is_formed():
    """Operations counted: four times the readings take four times the arithmetic, not sixteen or sixty-four."""
    from torch.utils.flop_counter import FlopCounterMode

    def flops(readings):
        s = sites(readings)
        with FlopCounterMode(display=False) as counter:
            found(s, field(s, TWO) + 0.05 * normal(1, readings), count=4)
        return counter.get_total_flops()

    assert flops(4000) / flops(1000) < 5
    largest = []
    original = torch.linalg.cholesky_ex

    def spied(a, *rest, **named):
        largest.append(a.shape[-1])
        return original(a, *rest, **named)

    torch.linalg.cholesky_ex = spied
    try:
        s = sites(1000)
        found(s, field(s, TWO) + 0.05 * normal(1, 1000))
    finally:
        torch.linalg.cholesky_ex = original
    assert max(largest) <= 1 + 6 * waves.COUNT + 1


def test_candidates_hold_one_of_k_and_minus_k():
    k, across, down = waves.candidates()
    assert_close(k, waves.SPACING * torch.stack([across, down], 1).double())
    both = {tuple(pair) for pair in torch.cat([k, -k]).mul(1e6).round().long().tolist()}
    assert len(both) == 2 * len(k)
    assert float(k.norm(dim=1).max()) <= waves.FASTEST + 1e-9
    inside = math.pi * (waves.FASTEST / waves.SPACING) ** 2 / 2
    assert abs(len(k) - inside) < 0.05 * inside


def test_searches_of_one_searcher_know_nothing_of_each_other():
    s, known = sites(51, 3), torch.ones(NOISY.shape, dtype=torch.bool)
    given = s, NOISY, known, NOISY.new_ones(3, 51, 1), NOISY.new_full((3, 1), 0.25)
    search = waves.searcher(*given)
    for count in (24, 3, 24):
        its, alone = search(count), waves.find(*given, count)
        assert all(torch.equal(getattr(its, name), getattr(alone, name)) for name in ("k", "width", "noise", "scale", "exact"))


@pytest.mark.parametrize("count", [3, 12, 48])
def test_thirteen_noisy_readings_prove_no_waves(count):
    """Waves may explain them all: too few readings are left over to say so."""
    s = sites(13, 24)
    rough = field(s, TWO) + 0.3 * normal(24, 13)
    assert not found(s, rough, count=count).exact.any()
