"""Covariances of random fields: stationary ones, those of training fields, and their sum, each with draws as functions of the site.

    k(s, s') = (1 - beta) E(s, s') + beta D(s) D(s') (rho(|s - s'| / l) + LEVEL)
rho is Matern's correlation of smoothness nu (Matern 1960; Rasmussen and Williams 2006, eq. 4.14), stretched by `aspect` along the angle
`theta`; D a relative deviation per site; E = F F' with the principal components F of training fields, or F F' of the leading ones plus the
rest times a Gaussian of the distance (localisation: Houtekamer and Mitchell 2001, MWR 129:123; the sum: Hamill and Snyder 2000, MWR
128:2905). A draw of rho is a sum of cosines whose frequencies follow its spectrum, new ones for each draw: its covariance is exact on
average over draws (Rahimi and Recht 2007).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lib.basis import GridFunctions
from lib.posterior import shared

SMOOTH = 99.0  # a smoothness nu at or above this is the squared exponential
LEVEL = 3.0  # variance of a stationary process's own level, relative to its variance about it
LEADING, REACH = 8, 0.6  # principal components that keep their full reach; standard deviation of the Gaussian that localises the rest
NOWHERE = -1.0  # both coordinates of a reading that is missing: a node of every grid, where looking up costs least
COSINES, LOCAL_COSINES = 256, 32  # waves in one draw of a stationary process, and of each component's local weight


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
class Sites:
    """Sites of B fields, and of one channel what is known on a grid: components by falling variance, and the relative deviation."""

    s: Float[Tensor, "B n 2"]
    components: GridFunctions
    relative: GridFunctions

    def __getitem__(self, fields: Tensor) -> Sites:
        found = Sites(self.s[fields], self.components, self.relative)
        looked_up = {name: its[fields] for name, its in self.__dict__.items() if name in ("factor", "deviation")}
        found.__dict__.update(looked_up)  # goes along
        return found

    @functools.cached_property
    def factor(self) -> Float[Tensor, "B n r"]:
        """The components at the sites."""
        return _at(self.components, self.s)

    @functools.cached_property
    def deviation(self) -> Float[Tensor, "B n"]:
        """The relative deviation at the sites."""
        return _at(self.relative, self.s)[..., 0]

    def along(self, factor: Float[Tensor, "B m r"]) -> Float[Tensor, "B m n"]:
        """factor F' with the leading components F at the sites; for a fine map without F, which would be larger than the answer."""
        count = factor.shape[-1]
        if not self._fine():
            return factor @ _shared(self.factor[..., :count]).mT
        found = self.components[:count].times(self.s[0], factor.flatten(0, 1).T.contiguous())[:, 0]  # n (B m)
        return found.T.contiguous().unflatten(0, factor.shape[:2])

    def power(self) -> Float[Tensor, "B n"]:
        """The sum of the squares of all components."""
        if not self._fine():
            return _shared(self.factor).square().sum(-1).expand(len(self.s), -1)
        return self.components.power(self.s[0])[:, 0].expand(len(self.s), -1)

    def _fine(self) -> bool:
        """Whether all fields share more sites than the grid has nodes."""
        return self.s.shape[1] > len(self.components.values) and shared(self.s)


def _at(functions: GridFunctions, s: Float[Tensor, "B n 2"]) -> Float[Tensor, "B n r"]:
    """Functions of one channel; sites that all fields share are looked up once."""
    if shared(s):
        return functions.at(s[0])[:, 0].expand(len(s), -1, -1)
    return functions.at(s.flatten(0, 1))[:, 0].unflatten(0, s.shape[:2])


def correlation(distance: Tensor, nu: float, length: float = 1.0) -> Tensor:
    """Matern's correlation for nu of 1/2, 3/2, 5/2 or the squared exponential; distances in the units of the length scale."""
    if nu >= SMOOTH:
        return distance.square().mul_(-0.5 / length**2).exp_()
    if nu not in (0.5, 1.5, 2.5):
        raise ValueError(f"smoothness is {nu}; choose 0.5, 1.5, 2.5, or {SMOOTH:g} for the squared exponential")
    d = distance * (-math.sqrt(2 * nu) / length)  # in place from here: these are most of what a fine map costs
    if nu == 0.5:
        return d.exp_()
    polynomial = 1 - d if nu == 1.5 else (d / 3).sub_(1).mul_(d).add_(1)
    return d.exp_().mul_(polynomial)


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
        """k(s, t) of these fields, without noise; not to be written to."""
        its = self._view(fields)
        if k.beta == 0:
            return self._base(k.base)[its]
        d = self._once(("d", k.aspect, k.theta), lambda: self._distance(k.aspect, k.theta))[its]
        both = self._once("deviation", lambda: self.s.deviation[..., None] * self.t.deviation[..., None, :])[its]
        found = correlation(d, k.nu, k.length).add_(LEVEL).mul_(both).mul_(k.beta)  # of 50 x 8,192 numbers: one copy, not six
        return found.add_(self._base(k.base)[its], alpha=1 - k.beta) if k.base else found

    def variance(self, k: Structure, fields: Tensor | slice = slice(None)) -> Float[Tensor, "B m"]:
        """k(t, t) at the second set of sites of these fields."""
        its = self._view(fields)
        learned = self._once("power", self.t.power)[its] if k.base else 0.0
        return (1 - k.beta) * learned + k.beta * (1 + LEVEL) * self.t.deviation[its] ** 2

    def _view(self, fields: Tensor | slice) -> Tensor | slice:
        """All fields without a copy where they are all, which are then in order."""
        return slice(None) if isinstance(fields, Tensor) and len(fields) == len(self.s.s) else fields

    def _base(self, base: int) -> Tensor:
        whole = self._once("whole", lambda: self.t.along(self.s.factor))
        return whole if base == 1 else self._once("local", lambda: self._local(whole))

    def _local(self, whole: Tensor) -> Tensor:
        leading = self.t.along(self.s.factor[..., :LEADING])
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


def draw(
    k: Structure, s: Float[Tensor, "n 2"], F: Float[Tensor, "n r"], deviation: Float[Tensor, " n"], generator: torch.Generator
) -> Float[Tensor, " n"]:
    """One draw of the process at the sites of one field: the same generator state gives the same function at any sites."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(s)

    smooth = deviation * (math.sqrt(LEVEL) * normal(1) + _waves(s @ stretch(k.aspect, k.theta).to(s) / k.length, k.nu, normal))
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
