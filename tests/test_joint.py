"""The peer that encodes everything at every step: what moves with what, where the time goes, which features it has."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lib import data, flow, layers, model

DOUBLE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(scope="module")
def network():
    """At a small width, so that the switches are those of the row."""
    sizes = {"width": 16, "layers": 2, "heads": 2, "inner": 16, "ffn": 24}
    return model.build("fm-np", 2, data.generator(0, "init"), **sizes).double().eval()


@pytest.fixture
def batch():
    g = data.generator(0, "test")
    site = lambda n: 2 * torch.rand(3, n, 2, generator=g, dtype=torch.float64) - 1  # noqa: E731
    value = lambda n: torch.rand(3, n, 2, generator=g, dtype=torch.float64)  # noqa: E731
    return data.Batch(site(9), value(9), torch.ones(3, 9, dtype=torch.bool), site(11), value(11))


def said(network, batch, y_t=None, t=0.3):
    y_t = batch.y_qry if y_t is None else y_t
    return network.network(y_t, torch.full((3,), t, dtype=torch.float64), batch.s_qry, network.encode(batch))


def test_shuffled_readings_change_nothing_and_shuffled_queries_shuffle_the_answer(network, batch):
    readings, queries = (torch.randperm(n, generator=data.generator(0, "sensors")) for n in (9, 11))
    whole = said(network, batch)
    assert_close(said(network, replace(batch, s_obs=batch.s_obs[:, readings], y_obs=batch.y_obs[:, readings])), whole, **DOUBLE)
    assert_close(said(network, replace(batch, s_qry=batch.s_qry[:, queries], y_qry=batch.y_qry[:, queries])), whole[:, queries], **DOUBLE)


def test_padding_is_not_seen(network, batch):
    some = replace(batch, m_obs=(torch.arange(9) != 4).expand(3, -1))
    rest = [0, 1, 2, 3, 5, 6, 7, 8]
    assert_close(
        said(network, some),
        said(network, replace(batch, s_obs=batch.s_obs[:, rest], y_obs=batch.y_obs[:, rest], m_obs=batch.m_obs[:, rest])),
        **DOUBLE,
    )


def test_a_query_sees_the_readings_and_the_other_queries(network, batch):
    """Joint attention: its samples are coherent, and an answer depends on what else is asked."""
    whole = said(network, batch)
    for other in (replace(batch, y_obs=batch.y_obs + 1), replace(batch, y_qry=batch.y_qry + torch.eye(11).double()[0][:, None])):
        assert (said(network, other) - whole)[:, 1:].abs().max() > 1e-4


def test_the_time_enters_at_the_queries_only(batch):
    """Without attention between the two, what the readings become does not depend on the time; with `timed="all"` it does."""
    for timed, moves in (("queries", False), ("all", True)):
        network = model.build("fm-np", 2, data.generator(0, "init"), width=16, layers=1, heads=2, inner=16, ffn=24, timed=timed)
        seen = []
        hook = network.blocks[0].register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        for t in (0.1, 0.9):
            said(network.double().eval(), batch, t=t)
        hook.remove()
        assert torch.equal(seen[0][:, :9], seen[1][:, :9]) is not moves
        assert not torch.equal(seen[0][:, 9:], seen[1][:, 9:])


def test_it_says_what_its_query_tokens_hold(network, batch):
    """No cross-attention stands between the encoder and the decoder."""
    tokens = []
    hook = network.blocks[-1].register_forward_hook(lambda _, given, out: tokens.append(out))
    answer = said(network, batch)
    hook.remove()
    assert torch.equal(answer, network.decode(tokens[0][:, 9:]))
    assert not any(name.startswith("cross") for name, _ in network.named_parameters())


def test_octaves_are_sines_and_cosines_of_two_to_the_k_pi_s():
    made = layers.CoordinateFeatures("octave", 12, 10.0, False, 16.0, data.generator(0, "init")).double()
    s = torch.tensor([[[0.3, -0.7]]], dtype=torch.float64)
    phase = [2**k * math.pi * at for at in (0.3, -0.7) for k in range(6)]
    expected = torch.tensor([*map(math.sin, phase), *map(math.cos, phase)], dtype=torch.float64)
    assert_close(made(s)[0, 0], expected, rtol=0, atol=1e-5)  # the waves were made in float32
    assert not any(p.requires_grad for p in made.parameters())


def test_size_of_the_row():
    assert model.parameters(model.build("fm-np")) == 479_233


def test_it_samples_by_a_hundred_euler_steps_in_the_units_of_the_data(batch):
    network = model.build("fm-np", 2, data.generator(0, "init"), width=16, layers=1, heads=2, inner=16, ffn=24).double()
    network.scale_by(data.Scaling(*(torch.tensor([v, v]) for v in (5.0, 0.1, 4.0, 6.0))))
    drawn = flow.sample(network, batch, data.generator(0, "samples"), 100, "euler", samples=2)
    assert drawn.shape == (2, 3, 11, 2) and bool(((drawn - 5).abs() < 2).all())
