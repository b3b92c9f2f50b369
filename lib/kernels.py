"""Covariances of random fields: stationary ones, those of training fields, and their sum, each with draws as functions of the site.

    k(s, s') = (1 - beta) E(s, s') + beta D(s) D(s') (rho(|s - s'| / l) + LEVEL)
rho is Matern's correlation of smoothness nu (Matern 1960; Rasmussen and Williams 2006, eq. 4.14), stretched by `aspect` along the angle
`theta`; D a relative deviation per site; E = F F' with the principal components F of training fields, or F F' of the leading ones plus the
rest times a Gaussian of the distance (localisation: Houtekamer and Mitchell 2001, MWR 129:123; the sum: Hamill and Snyder 2000, MWR
128:2905). A draw of rho is a sum of cosines whose frequencies follow its spectrum, new ones for each draw: its covariance is exact on
average over draws (Rahimi and Recht 2007).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import make_interp_spline
from torch import Tensor

SMOOTH = 99.0  # a smoothness nu at or above this is the squared exponential
LEVEL = 3.0  # variance of a stationary process's own level, relative to its variance about it
LEADING, REACH = 8, 0.8  # principal components that keep their full reach; standard deviation of the Gaussian that localises the rest
COSINES, LOCAL_COSINES = 256, 32  # waves in one draw of a stationary process, and of each component's local weight
DEGREE = 5  # of the spline between nodes


@dataclass(frozen=True)
class Structure:
    """One covariance of the family; base 0 has no part from training fields, 1 holds F F', 2 the localised one."""

    base: int
    beta: float
    nu: float
    length: float
    aspect: float = 1.0
    theta: float = 0.0


@dataclass(frozen=True)
class Basis:
    """What is known of one channel on the grid: principal components (P, r) by falling variance and relative deviation (P,)."""

    factor: Float[Tensor, "P r"]
    deviation: Float[Tensor, " P"]


@dataclass(frozen=True)
class Sites:
    """Sites with the components and the deviation there, one channel of each of B fields."""

    s: Float[Tensor, "B n 2"]
    factor: Float[Tensor, "B n r"]
    deviation: Float[Tensor, "B n"]

    def __getitem__(self, fields: Tensor) -> Sites:
        return Sites(self.s[fields], self.factor[fields], self.deviation[fields])


def correlation(distance: Tensor, nu: float) -> Tensor:
    """Matern's correlation at a distance in length scales, for nu of 1/2, 3/2, 5/2 or the squared exponential."""
    if nu >= SMOOTH:
        return torch.exp(-(distance**2) / 2)
    a = math.sqrt(2 * nu) * distance
    polynomial = {0.5: lambda: 1.0, 1.5: lambda: 1 + a, 2.5: lambda: 1 + a + a**2 / 3}
    if nu not in polynomial:
        raise ValueError(f"smoothness is {nu}; choose 0.5, 1.5, 2.5, or {SMOOTH:g} for the squared exponential")
    return polynomial[nu]() * torch.exp(-a)


def stretch(aspect: float, theta: float) -> Float[Tensor, "2 2"]:
    """The map s -> s G under which a process `aspect` times longer along the angle theta becomes isotropic, of determinant 1."""
    turn = torch.tensor([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]], dtype=torch.float64)
    return turn * torch.tensor([aspect**-0.5, aspect**0.5], dtype=torch.float64)


def distance(s: Float[Tensor, "B n 2"], t: Float[Tensor, "B m 2"]) -> Float[Tensor, "B n m"]:
    """Euclidean distances, by differences: products would lose the small ones."""
    return torch.hypot(s[..., :, None, 0] - t[..., None, :, 0], s[..., :, None, 1] - t[..., None, :, 1])


class Pair:
    """Covariances between two sets of sites under any structure; distances and F F' are computed once and kept."""

    def __init__(self, s: Sites, t: Sites):
        self.s, self.t, self.kept = s, t, {}

    def covariance(self, k: Structure, fields: Tensor | slice = slice(None)) -> Float[Tensor, "B n m"]:
        """k(s, t) of these fields, without noise."""
        total = self._base(k.base)[fields] * (1 - k.beta) if k.base else 0.0
        return total + k.beta * self._stationary(k, fields) if k.beta > 0 else total

    def variance(self, k: Structure, fields: Tensor | slice = slice(None)) -> Float[Tensor, "B m"]:
        """k(t, t) at the second set of sites of these fields."""
        learned = self._once("power", lambda: _shared(self.t.factor).square().sum(-1).expand(len(self.t.s), -1))[fields] if k.base else 0.0
        return (1 - k.beta) * learned + k.beta * (1 + LEVEL) * self.t.deviation[fields] ** 2

    def _stationary(self, k: Structure, fields: Tensor | slice) -> Tensor:
        d = self._once(("d", k.aspect, k.theta), lambda: self._distance(k.aspect, k.theta))[fields]
        both = self._once("deviation", lambda: self.s.deviation[..., None] * self.t.deviation[..., None, :])[fields]
        return both * (correlation(d / k.length, k.nu) + LEVEL)

    def _base(self, base: int) -> Tensor:
        whole = self._once("whole", lambda: self.s.factor @ _shared(self.t.factor).mT)
        return whole if base == 1 else self._once("local", lambda: self._local(whole))

    def _local(self, whole: Tensor) -> Tensor:
        leading = self.s.factor[..., :LEADING] @ _shared(self.t.factor)[..., :LEADING].mT
        near = self._once(("d", 1.0, 0.0), lambda: self._distance(1.0, 0.0))
        return leading + (whole - leading) * torch.exp(-((near / REACH) ** 2) / 2)

    def _distance(self, aspect: float, theta: float) -> Tensor:
        if aspect == 1:
            return distance(self.s.s, self.t.s)
        g = stretch(aspect, theta).to(self.s.s)
        return distance(self.s.s @ g, self.t.s @ g)

    def _once(self, key, make):
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


def _shared(factor: Float[Tensor, "B n r"]) -> Tensor:
    """(n, r) where all fields share their sites: one product of matrices instead of B."""
    return factor[0] if len(factor) > 1 and factor.stride(0) == 0 else factor


def draw(k: Structure, at: Sites, generator: torch.Generator) -> Float[Tensor, " n"]:
    """One draw of the process at the sites of one field (B = 1): the same generator state gives the same function at any sites."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(at.s)

    s, F = at.s[0], at.factor[0]
    smooth = at.deviation[0] * (math.sqrt(LEVEL) * normal(1) + _waves(s @ stretch(k.aspect, k.theta).to(s) / k.length, k.nu, normal))
    if not k.base:
        return smooth * k.beta**0.5
    w = normal(F.shape[-1])
    learned = F @ w if k.base == 1 else F[:, :LEADING] @ w[:LEADING] + _local_waves(s / REACH, F[:, LEADING:], normal)
    return (1 - k.beta) ** 0.5 * learned + k.beta**0.5 * smooth


def _waves(s: Float[Tensor, "n 2"], nu: float, normal) -> Float[Tensor, " n"]:
    """A draw of rho with unit length scale: frequencies are normal, divided by sqrt(chi^2 / 2 nu) for Matern's (a t distribution)."""
    frequency = normal(COSINES, 2)
    if nu < SMOOTH:
        frequency = frequency / (normal(COSINES, round(2 * nu)).square().sum(-1, keepdim=True) / (2 * nu)).sqrt()
    angle = s @ frequency.T
    return (angle.cos() @ normal(COSINES) + angle.sin() @ normal(COSINES)) / COSINES**0.5


def _local_waves(s: Float[Tensor, "n 2"], F: Float[Tensor, "n r"], normal) -> Float[Tensor, " n"]:
    """sum_j F_j(s) h_j(s) with independent smooth h_j: its covariance is F F' times their correlation."""
    angle = s @ normal(LOCAL_COSINES, 2).T
    weight = angle.cos() @ normal(LOCAL_COSINES, F.shape[-1]) + angle.sin() @ normal(LOCAL_COSINES, F.shape[-1])
    return (weight * F).sum(-1) / LOCAL_COSINES**0.5


# ---- from the grid to any site ----


def interpolate(table: Float[Tensor, "P r"], s: Float[Tensor, "n 2"], shape: tuple[int, int]) -> Float[Tensor, "n r"]:
    """The columns of a table on the grid at any sites: its own rows on nodes, the tensor-product quintic spline through them elsewhere."""
    place = [((s[:, axis] + 1) / 2).clamp(0, 1) * (size - 1) for axis, size in ((1, shape[0]), (0, shape[1]))]
    node = [p.round().long() for p in place]
    index = node[0] * shape[1] + node[1]
    off = sum((p - n).abs() > 5e-7 * size for p, n, size in zip(place, node, shape, strict=True)) > 0
    found = table[index]
    if bool(off.any()):
        down, right = (_cardinal(p[off], size) for p, size in zip(place, shape, strict=True))
        found[off] = (down[:, :, None] * right[:, None, :]).flatten(1) @ table
    return found


def _cardinal(place: Float[Tensor, " n"], size: int) -> Float[Tensor, "n size"]:
    """Weights of the nodes 0 ... size - 1 in the interpolating spline at these places."""
    nodes = np.arange(size)
    spline = make_interp_spline(nodes, np.eye(size), k=min(DEGREE, size - 1))
    return torch.from_numpy(spline(place.cpu().numpy())).to(place)


def sites(basis: Basis, s: Float[Tensor, "B n 2"], shape: tuple[int, int]) -> Sites:
    """Components and deviation at the sites of B fields; sites that all fields share are looked up once."""
    B, n = s.shape[:2]
    table = torch.cat([basis.factor, basis.deviation[:, None]], 1)
    if B > 1 and bool((s == s[:1]).all()):
        found = interpolate(table, s[0], shape).expand(B, n, -1)
    else:
        found = interpolate(table, s.reshape(-1, 2), shape).unflatten(0, (B, n))
    return Sites(s, found[..., :-1], found[..., -1])
