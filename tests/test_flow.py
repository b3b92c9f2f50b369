"""The flow: endpoints of the path, its derivative, the exact velocity, the sampler on a Gaussian whose answer is known."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from lib import data, flow, model, ode

MEAN, WIDTH = 0.7, 0.2


class GaussianModel:
    """Stands in for a trained network: the exact velocity for y_1 ~ N(MEAN, WIDTH^2), whatever the readings say."""

    channels, training = 1, False
    config = SimpleNamespace(prediction="velocity", output="free", path="linear", self_condition=False)

    def __init__(self, mean=MEAN, width=WIDTH):
        self.mean, self.width, self.seen = mean, width, []

    def encode(self, batch):
        return None

    def network(self, y_t, t, s_qry, memory):
        self.seen.append(y_t)
        t = t[:, None, None]
        variance = (1 - t) ** 2 + (t * self.width) ** 2
        return self.mean + (t * self.width**2 - (1 - t)) / variance * (y_t - t * self.mean)

    velocity = network

    def normalise(self, y):
        return y

    restore = normalise

    def train(self, mode=True):
        return self

    def eval(self):
        return self


def a_batch(fields=3, readings=5, queries=2000, dtype=torch.float64):
    g = data.generator(0, "test")
    site = lambda n: torch.rand(fields, n, 2, generator=g, dtype=dtype) * 2 - 1  # noqa: E731
    value = lambda n: torch.rand(fields, n, 1, generator=g, dtype=dtype)  # noqa: E731
    return data.Batch(site(readings), value(readings), torch.ones(fields, readings, dtype=torch.bool), site(queries), value(queries))


def test_the_path_runs_from_noise_to_data_at_velocity_u():
    g = data.generator(0, "noise")
    y_0, y_1 = torch.randn(2, 4, 7, 1, generator=g, dtype=torch.float64)
    at = lambda t: flow.path(y_0, y_1, torch.full((4,), t, dtype=torch.float64))  # noqa: E731
    assert_close(at(0.0)[0], y_0)
    assert_close(at(1.0)[0], y_1)
    h = 1e-6
    assert_close((at(0.3 + h)[0] - at(0.3 - h)[0]) / (2 * h), at(0.3)[1], rtol=1e-8, atol=1e-8)


def test_the_loss_of_the_exact_velocity_is_the_irreducible_one():
    """With data of zero width the velocity is known exactly and the loss is 0; with width, it is the variance that y_t leaves open."""
    batch = a_batch()
    certain = GaussianModel(mean=0.4, width=0.0)
    same = data.Batch(batch.s_obs, batch.y_obs, batch.m_obs, batch.s_qry, torch.full_like(batch.y_qry, 0.4))
    assert float(flow.loss(certain, same, data.generator(0, "flow"))) < 1e-20


def test_masked_queries_do_not_count():
    batch = a_batch(queries=50)
    truth = batch.y_qry.clone()
    truth[:, ::2] = float("nan")
    masked = data.Batch(batch.s_obs, batch.y_obs, batch.m_obs, batch.s_qry, truth)
    exact = GaussianModel()
    y_1, known = flow._targets(exact, masked)
    g = data.generator(1, "flow")
    y_0, t = torch.randn(y_1.shape, generator=g, dtype=torch.float64), torch.rand(3, generator=g, dtype=torch.float64)
    half = data.Batch(batch.s_obs, batch.y_obs, batch.m_obs, batch.s_qry[:, 1::2], batch.y_qry[:, 1::2])
    expected = flow.loss_at(exact, half, y_0[:, 1::2], y_1[:, 1::2], torch.ones_like(y_1[:, 1::2]), t)
    assert_close(flow.loss_at(exact, masked, y_0, y_1, known, t), expected)


@pytest.mark.parametrize("method", ["midpoint", "heun", "rk4", "dopri5"])
def test_the_sampler_reaches_mean_and_spread_of_a_gaussian(method):
    draws = flow.sample(GaussianModel(), a_batch(), data.generator(0, "samples"), 64, method, samples=4)
    count = draws.numel()  # 24,000: standard errors below 0.0013
    assert float(draws.mean()) == pytest.approx(MEAN, abs=4 * WIDTH / count**0.5 + 1e-3)
    assert float(draws.std()) == pytest.approx(WIDTH, rel=0.02)


def test_one_euler_step_returns_the_mean():
    draws = flow.sample(GaussianModel(), a_batch(), data.generator(0, "samples"), steps=1)
    assert_close(draws, torch.full_like(draws, MEAN))


def test_a_sampler_that_forgets_its_state_leaves_noise_in_the_field():
    kept = flow.sample(GaussianModel(width=0.01), a_batch(), data.generator(0, "samples"), 50, "euler")
    forgot = flow.sample(GaussianModel(width=0.01), a_batch(), data.generator(0, "samples"), 50, "euler", feedback=False)
    assert float((kept - MEAN).std()) < 0.02 < 0.5 < float((forgot - MEAN).std())


def test_trajectories_start_at_noise_and_end_at_the_sample():
    path = []
    draws = flow.sample(GaussianModel(), a_batch(), data.generator(0, "samples"), 5, "heun", callback=lambda t, y: path.append((t, y)))
    assert [t for t, _ in path] == ode.uniform(5)
    assert_close(path[-1][1], draws[0])
    assert float(path[0][1].std()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_predicting_data_or_velocity_is_the_same_flow(prediction):
    """A data model's velocity is (y_1 - y_t) / (1 - t): one Euler step from any state returns what the network said."""
    network = model.build("v2-transformer", prediction=prediction, dropout=0.0).double()
    batch = a_batch(queries=20)
    memory = network.encode(batch)
    y_t, t = torch.randn_like(batch.y_qry), torch.full((3,), 0.4, dtype=torch.float64)
    out, v = network.network(y_t, t, batch.s_qry, memory), network.velocity(y_t, t, batch.s_qry, memory)
    assert_close(v if prediction == "velocity" else y_t + 0.6 * v, out)


def test_sampling_leaves_the_mode_of_the_model_alone():
    network = model.build("v2-transformer")
    network.train()
    batch = a_batch(queries=10, dtype=torch.float32)
    first = flow.sample(network, batch, data.generator(0, "samples"), 2)
    assert network.training
    assert_close(first, flow.sample(network, batch, data.generator(0, "samples"), 2))  # dropout is off while sampling


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="unknown solver"):
        flow.sample(GaussianModel(), a_batch(), data.generator(0, "samples"), 2, "eulr")
    with pytest.raises(ValueError, match="at least one sample"):
        flow.sample(GaussianModel(), a_batch(), data.generator(0, "samples"), samples=0)
