"""Couplings: the cheapest permutation, the bias it carries, pairs from the frozen model, and straighter paths after reflow."""

import itertools
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lib import coupling, data, flow


def pairs(fields=6, queries=5, seed=0):
    g = data.generator(seed, "test")
    return (torch.randn(fields, queries, 1, generator=g, dtype=torch.float64) for _ in range(2))


def a_batch(y):
    """A batch of fields without readings, asked at one place."""
    count, queries = y.shape[:2]
    return data.Batch(
        torch.zeros(count, 0, 2), y[:, :0].float(), torch.ones(count, 0, dtype=torch.bool), torch.zeros(count, queries, 2), y.float()
    )


def transport(y_0, y_1, known):
    return coupling.transport(a_batch(y_1), y_0, y_1, known)


def squares(y_0, y_1, known=1.0):
    return float((known * (y_0 - y_1) ** 2).sum())


def test_transport_is_the_cheapest_permutation_of_the_noise():
    y_0, y_1 = pairs()
    known = torch.ones_like(y_1)
    paired, same = transport(y_0, y_1, known)
    assert same is y_1 and sorted(map(tuple, paired[..., 0].tolist())) == sorted(map(tuple, y_0[..., 0].tolist()))
    best = min(squares(y_0[list(p)], y_1) for p in itertools.permutations(range(6)))
    assert squares(paired, y_1) == pytest.approx(best) and best < squares(y_0, y_1)


def test_masked_queries_have_no_say_in_the_pairing():
    y_0, y_1 = pairs()
    known = torch.ones_like(y_1)
    known[::2, 3:] = 0  # gaps differ between fields, or every noise vector would pay the same for them
    y_0[:, 3:] *= 10
    paired, _ = transport(y_0, y_1 * known, known)
    best = min(squares(y_0[list(p)], y_1, known) for p in itertools.permutations(range(6)))
    assert squares(paired, y_1, known) == pytest.approx(best)


def test_the_cost_is_the_squared_distance_up_to_what_no_pairing_changes():
    y_0, y_1 = pairs()
    full = (y_1[:, None] - y_0[None]).square().sum((2, 3))
    assert_close(full - coupling.cost(y_0, y_1, torch.ones_like(y_1)), y_1.square().sum((1, 2))[:, None].expand(6, 6))


@pytest.mark.parametrize("queries", [51, 800])
def test_the_gain_of_transport_fades_with_the_number_of_queries(queries):
    y_0, y_1 = pairs(32, queries)
    paired, _ = transport(y_0, y_1, torch.ones_like(y_1))
    gain = 1 - squares(paired, y_1) / squares(y_0, y_1)
    bound = (2 * torch.log(torch.tensor(32.0)) / queries).sqrt()
    assert 0.4 * bound < gain < bound


def test_transport_ties_the_noise_to_what_the_readings_already_tell():
    """The limit of the method: fields with high values get high noise, which the sampler will not know."""
    g = data.generator(0, "test")
    y_0 = torch.randn(400, 1, 1, generator=g, dtype=torch.float64)
    y_1 = (torch.arange(400) % 2 * 2.0 - 1).double()[:, None, None]  # -1 or 1, and a reading would say which
    paired, _ = transport(y_0, y_1, torch.ones_like(y_1))
    assert paired[y_1 > 0].mean() > 0.6 > 0.2 > abs(y_0[y_1 > 0].mean())


class Toy(nn.Module):
    """A velocity network of one value, which says what it is given to learn; no readings, no sites."""

    config = SimpleNamespace(prediction="velocity", output="free", path="linear", self_condition=False)
    channels = 1

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))

    def encode(self, batch):
        return None

    def network(self, y_t, t, s_qry, memory):
        return self.layers(torch.cat([y_t, t[:, None, None].expand_as(y_t)], -1))

    velocity = network

    def normalise(self, y):
        return y


def learn(network, couple, steps=250, seed=0):
    """Data are -1 or 1 with width 0.1: the exact flow bends, since in the middle of the noise either may come."""
    g, optimiser = data.generator(seed, "batches"), torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(steps):
        y = torch.randint(2, (128, 1, 1), generator=g) * 2.0 - 1 + 0.1 * torch.randn(128, 1, 1, generator=g)
        optimiser.zero_grad()
        flow.loss(network, a_batch(y), g, couple).backward()
        optimiser.step()


def bend(network, steps):
    """How far `steps` Euler steps end from the model's own fine path, root mean square."""
    y_0 = torch.randn(500, 1, 1, generator=data.generator(0, "samples"))
    with torch.no_grad():
        rough, fine = (flow.carry(network, a_batch(y_0), None, y_0, n, "euler") for n in (steps, 50))
    return float((rough - fine).square().mean().sqrt())


def test_reflow_straightens_the_paths():
    torch.manual_seed(0)
    teacher, student = Toy(), Toy()
    learn(teacher, None)
    student.load_state_dict(teacher.state_dict())
    learn(student, lambda batch, y_0, y_1, known: (y_0, coupling.replay(teacher, 10, batch, y_0)))
    assert bend(teacher, 1) > 0.6  # one step from noise gives the mean of both
    assert bend(student, 1) < 0.5 * bend(teacher, 1)


def test_replayed_pairs_come_from_the_frozen_model_and_teach_it_nothing():
    teacher = Toy()
    y_0 = torch.randn(4, 1, 1, generator=data.generator(0, "test"))
    y_1 = coupling.replay(teacher, 2, a_batch(y_0), y_0)
    velocity = partial(teacher.velocity, s_qry=None, memory=None)
    half = y_0 + 0.5 * velocity(y_0, torch.zeros(4))
    assert_close(y_1, (half + 0.5 * velocity(half, torch.full((4,), 0.5))).detach())
    assert not y_1.requires_grad
