"""Solvers: order from the slope of the error, exact counts, grids, errors in words."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib import ode

FIXED = [m for m in ode.METHODS if m != "dopri5"]


def swing(t, y):
    """A non-autonomous system with a known solution: y_0' = 2 cos(3 t) y_0, y_1' = -y_1 + t."""
    return torch.stack([2 * math.cos(3 * t) * y[0], -y[1] + t])


def swing_exact(t):
    return torch.tensor([math.exp(2 * math.sin(3 * t) / 3), 2 * math.exp(-t) + t - 1], dtype=torch.float64)


def error(method, steps):
    start = torch.ones(2, dtype=torch.float64)
    return float((ode.integrate(swing, start, ode.uniform(steps), method) - swing_exact(1.0)).norm())


@pytest.mark.parametrize("method", FIXED)
def test_order_is_the_slope_of_the_error(method):
    steps = [128, 256, 512]  # coarser grids are not yet in the asymptotic range for rk4
    slopes = [math.log2(error(method, a) / error(method, b)) for a, b in pairwise(steps)]
    assert all(abs(s - ode.ORDER[method]) < 0.2 for s in slopes), slopes


def test_dopri5_reaches_its_tolerance():
    assert error("dopri5", 1) < 1e-4


@given(st.sampled_from(FIXED), st.integers(1, 256))
def test_evaluations_are_counted_exactly(method, steps):
    calls = []

    def f(t, y):
        calls.append(t)
        return y

    ode.integrate(f, torch.zeros(1), ode.uniform(steps), method)
    assert len(calls) == ode.evaluations(method, steps)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun_open"])
def test_some_methods_never_look_at_the_end(method):
    seen = []
    ode.integrate(lambda t, y: seen.append(t) or y, torch.zeros(1), ode.uniform(7), method)
    assert max(seen) < 1


def test_given_grids_and_the_callback():
    path = []
    grid = [0.0, 0.1, 0.5, 1.0]
    end = ode.integrate(lambda t, y: torch.ones_like(y), torch.zeros(1), grid, "rk4", lambda t, y: path.append((t, float(y))))
    assert [t for t, _ in path] == grid
    assert [y for _, y in path] == pytest.approx(grid)  # slope 1: y is the time
    assert float(end) == pytest.approx(1.0)


def test_dopri5_reports_at_the_grid():
    times = []
    ode.integrate(swing, torch.ones(2, dtype=torch.float64), [0.0, 0.3, 1.0], "dopri5", lambda t, y: times.append(t))
    assert times == [0.0, 0.3, 1.0]


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"unknown solver 'huen'.*did you mean 'heun'"):
        ode.integrate(swing, torch.ones(2), [0, 1], "huen")
    with pytest.raises(ValueError, match="at least two increasing times"):
        ode.integrate(swing, torch.ones(2), [0.0, 0.0], "euler")
    with pytest.raises(ValueError, match="at least one step"):
        ode.uniform(0)
