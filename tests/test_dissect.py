"""What past fields are made of, and whether the deviations that V5 claims hold among them."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from lib import data, dissect, experts, v5, worlds
from lib.posterior import Mixture

SIZE = 16


def past(name, count=300):
    return worlds.get(name).fields(count, SIZE)


def learned(name):
    return v5.learn(past(name), experts=("past", "waves"))


def apart(name):
    its = learned(name)
    return dissect.apart(its, its.past[0], past(name)[:32], data.generator(0, "dissect"))


@pytest.mark.parametrize("name", ["plane", "interference"])
def test_of_plane_waves_nothing_is_left(name):
    found = apart(name)
    assert found.rest is None and found.share < dissect.RARE


@pytest.mark.parametrize("name", ["radial", "separable"])
def test_where_there_are_no_waves_nothing_is_taken_out(name):
    assert apart(name).rest is None


def test_what_waves_leave_of_composite_is_in_every_field():
    found = apart("composite")
    assert found.share == 1 and found.rest.values.shape[:2] == (SIZE**2, 1)


def test_experts_are_as_likely_as_past_fields_of_their_kind():
    weight = dict(zip(v5.EXPERTS, v5.learn(past("composite"), experts=v5.BASES).log_weight.exp().tolist(), strict=True))
    assert weight["both"] == pytest.approx(1) and weight["waves"] == pytest.approx(0.02) and weight["past"] == 1
    weight = dict(zip(v5.EXPERTS, v5.learn(past("plane"), experts=v5.BASES).log_weight.exp().tolist(), strict=True))
    assert weight["waves"] == weight["both"] == 1  # nothing is left of plane waves: no expert "both", and "waves" is as it was


def with_processes(fields):
    return v5.learn(fields, experts=("past", *v5.PROCESSES))


def weights(prior):
    return dict(zip(v5.EXPERTS, prior.log_weight.exp().tolist(), strict=True))


@pytest.mark.parametrize(("name", "least", "most"), [("separable", 0, 0.04), ("radial", 0, 0.04), ("gaussian", 0.9, 1)])
def test_processes_are_as_likely_as_past_fields_needed_them(name, least, most):
    fields = past(name, 100)
    its = with_processes(fields)
    before = replace(its, log_weight=torch.zeros_like(its.log_weight))
    share = dissect.processes(before, [fields], data.generator(0, "dissect"))
    assert least <= share <= most
    favour = math.exp(v5.AVERAGED)
    assert weights(its)["hybrid"] == weights(its)["stationary"] and weights(its)["past"] == 1
    assert favour * max(least, v5.UNLIKELY) <= weights(its)["hybrid"] * 1.001 <= favour * 1.001 * max(most, v5.UNLIKELY)


def test_a_few_noisy_readings_leave_fields_of_components_to_components():
    its = with_processes(past("radial"))
    even = replace(its, log_weight=torch.where(its.log_weight < 0, v5.AVERAGED, its.log_weight))
    lead, gain = {0.1: [], 0.3: []}, {0.1: [], 0.3: []}
    for seed, noise in itertools.product((1, 2), lead):
        fields = worlds.get("radial").fields(64, SIZE, split="test", generator=data.generator(seed, "test"))
        batch = data.observe(fields, 13, generator=data.generator(seed, "sensors"), noise=noise)
        psnr = [
            -10 * (v5.mean(*given)[..., 0] - batch.y_qry[..., 0]).square().mean(1).log10()
            for given in ((its, batch), (even, batch), (its, batch, ["past"]))
        ]
        gain[noise].append(float((psnr[0] - psnr[1]).mean()))
        lead[noise].append(float((psnr[0] - psnr[2]).mean()))
    assert sum(lead[0.1]) / 2 > -0.3 and sum(gain[0.1]) / 2 > 0.01
    assert sum(gain[0.3]) / 2 > 0.1  # the more noise, the less do readings themselves silence processes


def judged(monkeypatch, its, kinds):
    """The share of processes; the prior and the batch that judged, and what the experts answered there."""
    seen = {}
    with monkeypatch.context() as patched:
        for name, ask in list(experts.ASK.items()):
            patched.setitem(experts.ASK, name, lambda p, batch, name=name, ask=ask: seen.setdefault(name, (p, batch, ask(p, batch)))[2])
        share = dissect.processes(its, kinds, data.generator(0, "dissect"))
    return share, seen


def test_fields_held_back_are_foretold_by_what_others_taught(monkeypatch):
    fields = past("gaussian", 60)
    its = with_processes(fields)
    share, seen = judged(monkeypatch, its, [fields])
    assert share > 0.9
    for name in ("past", "hybrid"):
        _, batch, found = seen[name]
        assert len(batch.s_obs) == 15 and (found[0][1] < experts.ASK[name](its, batch)[0][1]).all()  # V5 has learned from these fields too


def test_what_few_fields_teach_is_not_taken_for_sure():
    for name in ("separable", "radial"):  # wholly told by their components, as more of them show
        fields = past(name, 24)
        share = dissect.processes(with_processes(fields), [fields], data.generator(0, "dissect"))
        assert share == pytest.approx(1 / (2 + 6))


def test_kinds_are_as_likely_and_none_counts_for_being_many(monkeypatch):
    def silent(prior, batch, many=1):
        return [(None, torch.zeros(len(batch.s_obs), dtype=torch.float64), None)] * many

    kinds = [past("separable", 40), past("radial", 40)]
    its = with_processes(kinds)
    ask = {"past": lambda prior, batch: silent(prior, batch, len(prior.past)), "hybrid": silent, "stationary": silent}
    monkeypatch.setattr(experts, "ASK", ask)
    even = replace(its, log_weight=torch.zeros_like(its.log_weight))
    assert dissect.processes(even, kinds, data.generator(0, "dissect")) == pytest.approx(2 / 3)
    favoured = replace(its, log_weight=torch.tensor([5.0 * (name == "past") for name in v5.EXPERTS], dtype=torch.float64))
    assert dissect.processes(favoured, kinds, data.generator(0, "dissect")) == pytest.approx(1 / 22)  # the least that 20 fields leave open


def test_kinds_are_judged_by_their_own_components(monkeypatch):
    kinds = [past("separable", 60), past("radial", 60)]
    share, seen = judged(monkeypatch, with_processes(kinds), kinds)
    assert share == pytest.approx(1 / 32)
    tables = seen["past"][0].past
    assert len(tables) == 2 and [len(its.values) for its in tables] == [SIZE**2] * 2
    for table, its in zip(tables, kinds, strict=True):  # the mean of 45 of these 60, which is not that of the other kind
        away = [float((table.values[:, 0, 0] - k.double().mean(0).flatten()).abs().max()) for k in kinds]
        assert min(away) == away[[k is its for k in kinds].index(True)]


def test_land_and_colours_have_shares_of_processes_too(monkeypatch):
    fields = torch.cat([past("gaussian", 40), past("gaussian", 80)[40:]], 1)
    fields[:, :, :12] = torch.nan
    fields[:8, :1, 12:14] = torch.nan
    its = with_processes(fields)
    share, seen = judged(monkeypatch, its, [fields])
    assert share > 0.5 and weights(its)["hybrid"] > math.exp(v5.AVERAGED) * 0.5
    assert 16 <= seen["past"][1].m_obs.sum(1).min() and seen["past"][1].m_obs.sum(1).max() <= 32  # of 64 nodes with values


def test_a_field_without_values_is_not_asked():
    for empty in (slice(0, 1), slice(0, 15)):
        fields = past("gaussian", 20)
        fields[empty] = torch.nan
        assert 0 < weights(with_processes(fields))["hybrid"] <= math.exp(v5.AVERAGED) * 1.001


@pytest.mark.parametrize(("count", "experts"), [(dissect.FEWEST - 1, v5.EXPERTS), (100, ("past", "waves"))])
def test_too_few_fields_or_no_processes_have_no_share(count, experts):
    its = v5.learn(past("separable", count), experts=experts)
    assert math.isnan(dissect.processes(its, [past("separable", count)], data.generator(0, "dissect")))
    assert weights(its)["hybrid"] == pytest.approx(math.exp(v5.AVERAGED))


def test_a_row_of_sites_has_no_share():
    assert weights(with_processes(past("gaussian", 40)[:, :, :1]))["hybrid"] == pytest.approx(math.exp(v5.AVERAGED))


class Narrow(Mixture):
    """A mixture that claims a part of its deviations."""

    def at(self, s, spread=True):
        mean, variance = super().at(s, spread)
        return mean, variance / 16


def test_deviations_grow_by_what_they_lack(monkeypatch):
    its, generator = learned("plane"), lambda: data.generator(1, "spread")
    honest = dissect.spread(its, past("plane", 16), generator())
    assert 1 <= honest < 1.3
    monkeypatch.setattr(experts, "conditioned", lambda *given: Narrow(**vars(v5.conditioned(*given))))
    narrow = dissect.spread(its, past("plane", 16), generator())
    assert 2.2 < narrow <= dissect.WIDEST  # four times as narrow; kept from growing more than threefold
    monkeypatch.setattr(dissect, "WIDEST", 10.0)
    assert 3 < dissect.spread(its, past("plane", 16), generator()) < 5


def test_deviations_stay_where_waves_tell_nothing():
    assert dissect.spread(learned("radial"), past("radial", 16), data.generator(1, "spread")) == 1.0


def test_wider_deviations_leave_the_mean_and_spread_the_samples():
    its = learned("plane")
    wide = replace(its, spread=torch.where(torch.tensor([name == "waves" for name in v5.EXPERTS]), 2.0, its.spread))
    one = data.observe(worlds.get("plane").fields(3, SIZE, split="test").double(), 40, noise=0.05)
    a, b = (v5.predict(prior, one, ["waves"]) for prior in (its, wide))
    torch.testing.assert_close(a.mean, b.mean, rtol=0, atol=1e-12)
    assert ((b.std / a.std) < 2 + 1e-9).all() and float((b.std / a.std).median()) > 1.5  # searches that disagree do so as before
    scatter = [float((its.samples(200, torch.Generator().manual_seed(0)) - its.mean).square().mean().sqrt()) for its in (a, b)]
    assert 1.5 < scatter[1] / scatter[0] < 2.1
    again = v5.restore(v5.state(wide))
    assert torch.equal(again.spread, wide.spread)
    old = {name: value for name, value in v5.state(wide).items() if name != "spread"}
    assert torch.equal(v5.restore(old).spread, torch.ones(len(v5.EXPERTS), dtype=torch.float64))
