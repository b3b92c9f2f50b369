"""What past fields are made of, and whether the deviations that V5 claims hold among them."""

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
