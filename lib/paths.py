"""Paths from noise to data: where they are at time t, their velocity, and how a velocity and the data tell each other.

    y_t = a y_0 + b y_1      u = a' y_0 + b' y_1      y_1 = (a u - a' y_t) / (a b' - a' b)      u = (a' y_t + (a b' - a' b) y_1) / a
linear  a = 1 - t, b = t (Liu et al., Flow Straight and Fast, 2022, eq. 1)                      a b' - a' b = 1
cosine  a = cos(pi t / 2), b = sin(pi t / 2) (Albergo and Vanden-Eijnden, Building Normalizing Flows with Stochastic Interpolants, 2023,
        section 2): white noise and data of unit variance keep it all the way.                  a b' - a' b = pi / 2
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

PATHS = ("linear", "cosine")
DATA_FLOOR = 0.02  # smallest 1 - t in a velocity from data: one step of 50, so that a stage at t = 1 stays finite
HALF = math.pi / 2


def point(kind: str, y_0: Float[Tensor, "B M C"], y_1: Float[Tensor, "B M C"], t: Float[Tensor, "B"]) -> tuple[Tensor, Tensor]:
    """y_t and the velocity u that leads through it."""
    t = t[:, None, None]
    if kind == "linear":
        return (1 - t) * y_0 + t * y_1, y_1 - y_0
    a, b = (HALF * t).cos(), (HALF * t).sin()
    return a * y_0 + b * y_1, HALF * (a * y_1 - b * y_0)


def data(kind: str, v: Float[Tensor, "B M C"], y_t: Float[Tensor, "B M C"], t: Float[Tensor, "B"]) -> Tensor:
    """The data at which the path through y_t with velocity v ends: y_t + (1 - t) v, or b y_t + a v / (pi / 2)."""
    t = t[:, None, None]
    return y_t + (1 - t) * v if kind == "linear" else (HALF * t).sin() * y_t + (HALF * t).cos() * v / HALF


def velocity(kind: str, y_1: Float[Tensor, "B M C"], y_t: Float[Tensor, "B M C"], t: Float[Tensor, "B"]) -> Tensor:
    """The velocity that leads from y_t to y_1: (y_1 - y_t) / (1 - t), or (pi / 2) (y_1 - b y_t) / a, with 1 - t at least DATA_FLOOR."""
    t = t[:, None, None]
    left = (1 - t).clamp(min=DATA_FLOOR)
    return (y_1 - y_t) / left if kind == "linear" else HALF * (y_1 - (HALF * t).sin() * y_t) / (HALF * left).sin()
