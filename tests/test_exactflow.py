"""The exact flow: its velocity carries noise to the posterior in closed form, and solvers meet it with their orders."""

import pytest
import torch
from torch.testing import assert_close

from lib import data, exactflow, ode, v5, worlds

STEPS = (20, 40, 80)
END = 0.7


@pytest.fixture(scope="module")
def problem():
    place = worlds.get("interference")
    prior = v5.learn(place.fields(60, 12, data.generator(0, "train")), experts=("past",))
    batch = data.observe(place.fields(1, 12, data.generator(0, "test")), 20, "uniform", data.generator(0, "sensors"), 0.1)
    return prior, batch, *exactflow.of(prior, batch)


def noise(flow, count=3):
    return torch.randn(count, len(flow.mean), generator=data.generator(0, "noise"), dtype=torch.float64)


def at(flow, y_0, t):
    """t m + ((1 - t)^2 + t^2 Sigma)^(1/2) y_0, where the flow of a Gaussian has brought y_0 by t."""
    along = y_0 @ flow.directions
    wide = ((1 - t) ** 2 + t**2 * flow.variance).sqrt()
    return t * flow.mean + (1 - t) * (y_0 - along @ flow.directions.T) + (along * wide) @ flow.directions.T


def test_the_velocity_is_the_slope_of_the_known_path(problem):
    flow, y_0 = problem[2], noise(problem[2])
    for t in (0.0, 0.3, 0.7, 0.95):
        slope = (at(flow, y_0, t + 1e-6) - at(flow, y_0, t - 1e-6)) / 2e-6
        assert_close(flow.velocity(t, at(flow, y_0, t)), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("midpoint", 3), ("rk4", 4)])
def test_solvers_meet_it_with_their_order(problem, method, order):
    """The midpoint rule with one more: its leading error cancels where the square of a path is quadratic in t, as here."""
    flow, y_0 = problem[2], noise(problem[2])
    errors = []
    for n in STEPS:
        end = ode.integrate(flow.velocity, y_0, [END * i / n for i in range(n + 1)], method)
        errors.append(float((end - at(flow, y_0, END)).abs().max()))
    slope = torch.tensor(errors).log2().diff().mean()
    assert float(-slope) == pytest.approx(order, abs=0.25)


def test_mean_and_directions_are_those_of_the_posterior(problem):
    prior, batch, flow, restore = problem
    found = v5.predict(prior, batch, ["past"])
    assert_close(restore(flow.mean), found.mean[0], rtol=1e-8, atol=1e-8)
    variance = (flow.directions.square() @ flow.variance) * float(prior.variance[0])
    assert_close(variance.sqrt(), found.std[0, :, 0], rtol=1e-5, atol=1e-7)
    assert_close(flow.directions.T @ flow.directions, torch.eye(len(flow.variance), dtype=torch.float64), rtol=0, atol=1e-8)


def test_the_last_stage_of_heun_leaves_half_of_a_steps_noise(problem):
    """At t = 1 the rest is gone, so its second slope is 0: Heun halves where Euler and the open Heun end exactly."""
    flow = problem[2]
    y_0 = noise(flow, 1)
    rest = lambda y: (y - flow.mean) - (y - flow.mean) @ flow.directions @ flow.directions.T  # noqa: E731
    left = {m: float(rest(ode.integrate(flow.velocity, y_0, ode.uniform(10), m)).norm()) for m in ("euler", "heun", "heun_open")}
    assert left["euler"] < 1e-10 and left["heun_open"] < 1e-10 and left["heun"] > 0.01 * float(rest(y_0).norm())


def test_channels_of_other_quantities_are_refused(problem):
    prior, batch = problem[:2]
    colour = data.Batch(batch.s_obs, batch.y_obs.expand(-1, -1, 3), batch.m_obs, batch.s_qry, batch.y_qry.expand(-1, -1, 3))
    with pytest.raises(ValueError, match="3 channels"):
        exactflow.sample(prior, colour, data.generator(0, "samples"), 2, "euler")
