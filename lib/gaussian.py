"""A Gaussian process whose covariance is known and whose fields are exact at any site: the world where the best answer has a formula.

    y(s) = 1/2 + sum_j a_j cos(k_j . s) + b_j sin(k_j . s)        a_j, b_j ~ N(0, v_j), independent
    cov(y(s), y(s')) = sum_j v_j cos(k_j . (s - s'))

The wave vectors k_j stand on the lattice of a periodic box of PERIOD > 2 units, so fields do not repeat in the domain; v_j follows the
spectral density of the squared exponential, exp(-LENGTH^2 |k|^2 / 2), and sums to DEVIATION^2. Between sites of the domain the
covariance is that of the squared exponential to 2e-4 of the variance, but cov(y, y') above is what the fields have, exactly.
Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), eqs 4.6 and 4.11.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

LENGTH = 0.3  # length scale, units of s
DEVIATION = 0.2  # of a value about 0.5, so that 99 % of them lie in [0, 1]
PERIOD = 3.5  # of the box, units of s; the domain is 2 wide
CUT = 64  # wave vectors with fewer than 8 cycles over the box; the rest would hold 1e-4 of the variance
TAIL = 1e-12  # uniform numbers stay this far from 0 and 1, so that a normal one is finite: 7 deviations at most

# One of k and -k, for their waves are the same; the constant comes first.
CYCLES = [(i, j) for i in range(8) for j in range(-7, 8) if i * i + j * j < CUT and (i > 0 or j >= 0)]
RANGES = {f"{part}{j}": (TAIL, 1 - TAIL) for j in range(len(CYCLES)) for part in ("a", "b")[: 2 if j else 1]}


def covariance(s: Float[Tensor, "n 2"], s2: Float[Tensor, "m 2"]) -> Float[Tensor, "n m"]:
    """cov(y(s), y(s2)) in float64: exact for the fields of the world, rounding aside."""
    k, variance = spectrum(s.device)
    phase, phase2 = s.double() @ k.T, s2.double() @ k.T
    return (variance * phase.cos()) @ phase2.cos().T + (variance * phase.sin()) @ phase2.sin().T


def spectrum(device="cpu") -> tuple[Float[Tensor, "J 2"], Float[Tensor, " J"]]:
    """Wave vectors in radians per unit of s, and the variance of each one's two amplitudes, in float64."""
    k = 2 * math.pi / PERIOD * torch.tensor(CYCLES, dtype=torch.float64, device=device)
    density = torch.exp(-(LENGTH**2) / 2 * k.square().sum(1))
    density[1:] *= 2  # each of these stands for k and -k
    return k, DEVIATION**2 * density / density.sum()


def formula(p: dict[str, Tensor], X: Tensor, Y: Tensor) -> Float[Tensor, "n M"]:
    """z = 2 y - 1 of columns of uniform numbers (n, 1); amplitudes are their normal quantiles. Summed wave by wave: memory for one wave."""
    k, variance = spectrum(X.device)
    s1, s2, scale = X / math.pi - 1, Y / math.pi - 1, 2 * variance.sqrt()
    z = scale[0] * torch.special.ndtri(p["a0"]) * torch.ones_like(X)
    for j in range(1, len(k)):
        phase = k[j, 0] * s1 + k[j, 1] * s2
        z = z.addcmul(scale[j] * torch.special.ndtri(p[f"a{j}"]), phase.cos())
        z = z.addcmul(scale[j] * torch.special.ndtri(p[f"b{j}"]), phase.sin())
    return z
