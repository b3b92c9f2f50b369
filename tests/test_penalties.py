"""Penalties: zero where they should be, the right size on fields whose derivatives are known, patches of neighbours, no weight on gaps."""

import math

import pytest
import torch
from torch.testing import assert_close

from lib import data, flow, model, penalties

ROWS, COLUMNS = torch.meshgrid(torch.arange(8.0, dtype=torch.float64), torch.arange(8.0, dtype=torch.float64), indexing="ij")
ALL = torch.ones(2, 1, 8, 8, dtype=torch.float64)
SMOOTH = ("gradient", "laplacian", "tv")


def fields(y):
    return y.expand(2, 1, 8, 8)


def of(kind, y, truth=None, known=ALL):
    return penalties.PENALTIES[kind](fields(y), fields(y if truth is None else truth), known)


@pytest.mark.parametrize("kind", penalties.PENALTIES)
def test_a_constant_equal_to_the_truth_costs_nothing(kind):
    assert_close(of(kind, 0 * ROWS + 3.7), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-24)


def test_a_linear_field_has_no_laplacian_and_the_gradient_of_its_slopes():
    y = 0.3 * ROWS - 0.5 * COLUMNS + 1
    assert_close(of("laplacian", y), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-24)
    assert_close(of("gradient", y), torch.tensor(0.3**2 + 0.5**2, dtype=torch.float64))
    assert_close(of("tv", y), torch.tensor(0.3 + 0.5, dtype=torch.float64))


def test_the_laplacian_of_a_parabola_is_its_curvature():
    assert_close(of("laplacian", 0.25 * ROWS**2 - 1.0 * COLUMNS**2), torch.tensor((0.5 - 2.0) ** 2, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "power"), [("gradient", 2), ("laplacian", 2), ("tv", 1), ("frequency", 2)])
def test_penalties_scale_with_the_size_of_the_field(kind, power):
    y = torch.randn(8, 8, generator=data.generator(0, "test"), dtype=torch.float64)
    assert_close(of(kind, 3 * y, 0 * y), 3**power * of(kind, y, 0 * y))


def test_smoothness_prefers_the_smoother_field_and_does_not_look_at_the_truth():
    noise = torch.randn(8, 8, generator=data.generator(0, "test"), dtype=torch.float64)
    smooth = (2 * math.pi * ROWS / 8).sin()
    for kind in SMOOTH:
        assert of(kind, smooth) < 0.5 * of(kind, smooth + noise)
        assert_close(of(kind, noise, smooth), of(kind, noise, 0 * noise))


def test_the_spectrum_knows_wavelengths_and_forgets_places():
    """A wave moved by a quarter period costs little, one of another length or without its height costs far more."""
    wave = lambda cycles, phase: (2 * math.pi * cycles * ROWS / 8 + phase).sin()  # noqa: E731
    moved, longer, lower = (of("frequency", y, wave(2, 0)) for y in (wave(2, math.pi / 2), wave(1, 0), 0.5 * wave(2, 0)))
    assert 20 * moved < longer and 5 * moved < lower


@pytest.mark.parametrize("kind", penalties.PENALTIES)
def test_sites_without_a_value_do_not_count(kind):
    known = ALL.clone()
    known[..., 3, 4] = 0
    y = torch.randn(8, 8, generator=data.generator(0, "test"), dtype=torch.float64)
    other = y.clone()
    other[3, 4] = 100
    assert_close(of(kind, y, 0 * y, known), of(kind, other, 0 * y, known))


def test_patches_are_squares_of_neighbours_at_every_place():
    place = penalties.patches(3000, (6, 9), 4, data.generator(0, "test"))
    row, column = place.reshape(-1, 4, 4) // 9, place.reshape(-1, 4, 4) % 9
    assert (row.diff(dim=1) == 1).all() and (row.diff(dim=2) == 0).all()
    assert (column.diff(dim=2) == 1).all() and (column.diff(dim=1) == 0).all()
    corners = torch.bincount(place[:, 0], minlength=54)
    assert {int(p) for p in corners.nonzero()} == {9 * r + c for r in range(3) for c in range(6)}
    assert corners[corners > 0].min() > 100  # 3,000 / 18 = 167 each, standard deviation 13
    assert penalties.patches(2, (6, 9), 32, data.generator(0, "test")).tolist() == [list(range(54))] * 2


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_the_estimate_is_one_step_to_the_data(prediction):
    """A network that says the truth, as a velocity or as data, has the penalty of the truth itself and a perfect spectrum."""
    y = torch.rand(3, 1, 9, 12, generator=data.generator(0, "test"), dtype=torch.float64)

    class Oracle(model.Model):
        def network(self, y_t, t, s_qry, memory):
            place = torch.cdist(s_qry, data.grid((9, 12), dtype=torch.float64).expand(len(s_qry), -1, -1)).argmin(-1)
            y_1 = self.normalise(y.flatten(2).mT.gather(1, place[..., None]))
            return y_1 if prediction == "data" else (y_1 - y_t) / (1 - t)[:, None, None]

    config = model.configure("v2-transformer", prediction=prediction, width=16, layers=1, heads=2, inner=16, ffn=16, frequencies=4)
    network = Oracle(config, 1, data.generator(0, "init")).double()
    batch = data.observe(y, 5)
    values, sites = y.flatten(2).mT, data.grid((9, 12), dtype=torch.float64)
    loss = lambda kind: penalties.penalty(kind, network, batch, values, sites, (9, 12), 5, data.generator(0, "penalty"))  # noqa: E731
    place = penalties.patches(3, (9, 12), 5, data.generator(0, "penalty"))
    truth = values.gather(1, place[..., None]).mT.reshape(3, 1, 5, 5)
    assert_close(loss("frequency"), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-18)
    assert_close(loss("gradient"), penalties.gradient(truth, truth, torch.ones_like(truth)))


def test_the_gradient_of_a_penalty_reaches_the_network():
    network = model.build("v2-transformer", width=16, layers=1, heads=2, inner=16, ffn=16, frequencies=4)
    y = torch.rand(4, 1, 9, 9, generator=data.generator(0, "test"))
    batch = data.observe(y, 5)
    for kind in penalties.PENALTIES:
        network.zero_grad()
        penalties.penalty(kind, network, batch, y.flatten(2).mT, data.grid(9), (9, 9), 5, data.generator(0, "penalty")).backward()
        assert network.enter.weight.grad.isfinite().all() and network.enter.weight.grad.abs().max() > 0, kind


def test_the_estimate_of_the_exact_velocity_at_a_known_time_is_the_data():
    y = torch.rand(3, 1, 4, 4, generator=data.generator(0, "test"), dtype=torch.float64)
    batch = data.observe(y, 3)

    class Exact:
        config, channels = model.ModelConfig(), 1
        normalise = staticmethod(lambda y: y)
        encode = staticmethod(lambda batch: None)
        network = staticmethod(lambda y_t, t, s, memory: (batch.y_qry - y_t) / (1 - t)[:, None, None])

    estimate, y_1, known = flow.estimate(Exact, batch, data.generator(0, "flow"))
    assert_close(estimate, batch.y_qry)
    assert_close(y_1, batch.y_qry)
    assert bool(known.all())
