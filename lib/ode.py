"""Solvers of dy/dt = f(t, y) on a given grid of times, from noise (t = 0) to data (t = 1).

Fixed-step methods are Runge-Kutta formulas (Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, chapter II.1);
`evaluations` says exactly how often they call f. dopri5 (Dormand-Prince 5(4), adaptive) comes from torchdiffeq.

Heun's second stage and RK4's fourth look at t = 1, where the slope of a flow is known worst; `heun_open` leaves out that one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from itertools import pairwise

import torch
from torch import Tensor

Field = Callable[[float, Tensor], Tensor]
Callback = Callable[[float, Tensor], None]


def integrate(f: Field, y0: Tensor, grid: Sequence[float], method: str = "euler", callback: Callback | None = None) -> Tensor:
    """Follow dy/dt = f(t, y) from y0 at grid[0] to grid[-1]; callback(t, y) sees every grid time, the first included.

    grid: at least two increasing times. Fixed-step methods take one step per interval; dopri5 chooses its own and reports at the grid.
    ValueError for an unknown method or a grid that does not increase.
    """
    if method not in METHODS:
        close = get_close_matches(method, METHODS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown solver {method!r}; known: {', '.join(METHODS)}{hint}")
    times = [float(t) for t in grid]
    if len(times) < 2 or any(b <= a for a, b in pairwise(times)):
        raise ValueError(f"a solver's grid needs at least two increasing times, got {times[:6]}; for n steps use ode.uniform(n)")
    if method == "dopri5":
        return _dopri5(f, y0, times, callback)
    step, y = METHODS[method], y0
    if callback:
        callback(times[0], y)
    for a, b in pairwise(times):
        y = step(f, a, b, y, b == times[-1])
        if callback:
            callback(b, y)
    return y


def uniform(steps: int) -> list[float]:
    """steps + 1 equally spaced times from 0 to 1."""
    if steps < 1:
        raise ValueError(f"a solver needs at least one step, got {steps}")
    return [i / steps for i in range(steps + 1)]


def evaluations(method: str, steps: int) -> int | None:
    """How often f is called for `steps` steps; None where the solver decides by itself."""
    per_step = EVALUATIONS[method]
    return None if per_step is None else steps * per_step - (method == "heun_open")


def _euler(f, a, b, y, last):
    return y + (b - a) * f(a, y)


def _midpoint(f, a, b, y, last):
    h = b - a
    return y + h * f(a + h / 2, y + h / 2 * f(a, y))


def _heun(f, a, b, y, last):
    h = b - a
    k1 = f(a, y)
    return y + h / 2 * (k1 + f(b, y + h * k1))


def _heun_open(f, a, b, y, last):
    return _euler(f, a, b, y, last) if last else _heun(f, a, b, y, last)


def _rk4(f, a, b, y, last):
    h = b - a
    k1 = f(a, y)
    k2 = f(a + h / 2, y + h / 2 * k1)
    k3 = f(a + h / 2, y + h / 2 * k2)
    k4 = f(b, y + h * k3)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def _dopri5(f, y0, times, callback, tolerance=1e-5):
    from torchdiffeq import odeint

    # torchdiffeq hands out t as a tensor; the lab's f takes a float, and a host read per evaluation is the price of adaptive steps
    grid = torch.tensor(times, dtype=torch.float64, device=y0.device)
    path = odeint(lambda t, y: f(float(t), y), y0, grid, method="dopri5", rtol=tolerance, atol=tolerance)
    if callback:
        for t, y in zip(times, path, strict=True):
            callback(t, y)
    return path[-1]


METHODS = {"euler": _euler, "midpoint": _midpoint, "heun": _heun, "heun_open": _heun_open, "rk4": _rk4, "dopri5": _dopri5}
ORDER = {"euler": 1, "midpoint": 2, "heun": 2, "heun_open": 2, "rk4": 4, "dopri5": 5}
EVALUATIONS = {"euler": 1, "midpoint": 2, "heun": 2, "heun_open": 2, "rk4": 4, "dopri5": None}
