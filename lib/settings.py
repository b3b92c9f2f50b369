"""The settings of a mixture of Gaussian processes (lib/hybrid.py), and the priors that need few training fields or none.

A setting is a covariance of lib/kernels.py and a variance of the noise. `default` knows nothing of the fields; `stationary` knows their
level, the directions of their channels and the variance along them, and has the same covariances everywhere. lib/dictionary.py learns more.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lib import basis, data
from lib.kernels import SMOOTH, Sites, Structure

NOISES = (1e-10, 1e-6, 1e-3, 1e-2, 1e-1, 1.0)  # variance of the noise or of detail, relative to alpha
FLAT = 30.0  # stretch of fields that hardly change along an axis
WITHOUT_FIELDS = 0.5, 0.125, 1.0, 0.5  # mean, variance (of a sine between 0 and 1), a, eta
STATIONARY = 1.0, 0.25  # a, eta: flatter weights than with learned settings, since none of these is the truth


@dataclass(frozen=True)
class Prior:
    """The mixture before any reading: C channels on a grid of P nodes, J structures, V noise levels."""

    mean: Float[Tensor, "C P"]
    turn: Float[Tensor, "C C"]  # columns: directions of uncorrelated channels
    scale: Float[Tensor, " C"]  # variance within a field along each direction
    factor: Float[Tensor, "C P r"]
    deviation: Float[Tensor, "C P"]
    grid: Float[Tensor, " 2"]  # rows, columns
    structures: Float[Tensor, "J 6"]
    noise: Float[Tensor, " V"]  # variance, relative to alpha
    weight: Float[Tensor, "J V"]
    a: Float[Tensor, "J C"]
    b: Float[Tensor, "J C"]
    eta: Float[Tensor, ""]

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors, for `restore`."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def structure(self, j: int) -> Structure:
        base, *rest = self.structures[j].tolist()
        return Structure(int(base), *rest)

    def sites(self, c: int, s: Float[Tensor, "B n 2"]) -> Sites:
        """What direction c knows at the sites."""
        return Sites(s.to(self.mean), *self._known[c])

    def mean_at(self, s: Float[Tensor, "B n 2"]) -> Float[Tensor, "B n C"]:
        """The mean of the fields at any sites."""
        return self._mean.at(s.to(self.mean).flatten(0, 1))[..., 0].unflatten(0, s.shape[:2])

    @functools.cached_property
    def _known(self) -> list[tuple[basis.GridFunctions, basis.GridFunctions]]:
        """Per direction the components and the relative deviation."""
        return [(self._on_grid(F[None]), self._on_grid(d[None, :, None])) for F, d in zip(self.factor, self.deviation, strict=True)]

    @functools.cached_property
    def _mean(self) -> basis.GridFunctions:
        return self._on_grid(self.mean[..., None])

    def _on_grid(self, values: Float[Tensor, "C P r"]) -> basis.GridFunctions:
        return basis.grid_functions(values.unflatten(1, [int(n) for n in self.grid]))


def restore(state: dict[str, Tensor]) -> Prior:
    """The prior whose `state` this is, in double precision: fields are conditioned in it."""
    return Prior(**{f.name: state[f.name].double().cpu() for f in fields(Prior)})


def family(learned: bool) -> list[Structure]:
    """Stationary covariances, isotropic and stretched; with training fields, which drop most, more of these and principal components."""
    far, near = (0.18, 0.35, 0.7, 1.4, 2.8), (0.18, 0.35, 0.7, 1.4)
    isotropic = [(0.5, far), (1.5, far), (2.5, near), (SMOOTH, near)]
    found = [Structure(0, 1.0, nu, length) for nu, lengths in isotropic for length in lengths]
    turns = [math.pi * i / 4 for i in range(4)]
    found += [Structure(0, 1.0, nu, x, 2.5, turn) for nu, x, turn in itertools.product((1.5, SMOOTH), (0.25, 0.5, 1.0), turns)]
    found += [Structure(0, 1.0, SMOOTH, length, FLAT, turn) for length in (0.5, 0.8, 1.3, 2.0) for turn in (0.0, math.pi / 2)]
    if learned:
        finer = itertools.product((0.5, 1.5), (0.25, 0.5, 1.0, 2.0), range(8))  # landscapes have a grain, rarely along an axis
        found += [Structure(0, 1.0, nu, x, 2.5, math.pi * i / 8) for nu, x, i in finer]
        found += [Structure(base, 0.0, 0.5, 1.0) for base in (1, 2)]
        mixed = itertools.product((1, 2), (0.03, 0.1, 0.3, 0.6), ((0.5, 0.35), (0.5, 1.4), (1.5, 0.35)))
        found += [Structure(base, beta, *matern) for base, beta, matern in mixed]
    return list(dict.fromkeys(found))


def default(channels: int) -> Prior:
    """The prior without training fields: stationary covariances about 0.5, all as likely."""
    mean, variance, a, eta = WITHOUT_FIELDS
    structures = table(family(False))
    ones = torch.ones(len(structures), channels, dtype=torch.float64)
    return Prior(
        mean=torch.full((channels, 4), mean, dtype=torch.float64),
        turn=torch.eye(channels, dtype=torch.float64),
        scale=torch.full((channels,), variance, dtype=torch.float64),
        factor=torch.zeros(channels, 4, 0, dtype=torch.float64),
        deviation=torch.ones(channels, 4, dtype=torch.float64),
        grid=torch.tensor([2.0, 2.0], dtype=torch.float64),
        structures=structures,
        noise=torch.tensor(NOISES, dtype=torch.float64),
        weight=torch.full((len(structures), len(NOISES)), 1 / (len(structures) * len(NOISES)), dtype=torch.float64),
        a=a * ones,
        b=a * ones,
        eta=torch.tensor(eta, dtype=torch.float64),
    )


def stationary(train_fields: Float[Tensor, "n C H W"]) -> Prior:
    """Stationary covariances, all as likely, about the training fields' level, of their channels' directions and variances."""
    y = data.check(train_fields).detach().to("cpu", torch.float64)
    start, _ = centred(y, data.valid(y), family(False), NOISES)
    a, eta = STATIONARY
    nowhere = default(y.shape[1])  # the same at every site: a table of two by two equal nodes
    return replace(
        start,
        mean=start.mean.mean(1, keepdim=True).expand_as(nowhere.mean).contiguous(),
        factor=nowhere.factor,
        deviation=nowhere.deviation,
        grid=nowhere.grid,
        a=torch.full_like(start.a, a),
        b=torch.full_like(start.b, a),
        eta=torch.tensor(eta, dtype=torch.float64),
    )


def centred(y: Tensor, known: Tensor, structures: list[Structure], noises: tuple[float, ...]) -> tuple[Prior, Float[Tensor, "n C P"]]:
    """Mean, directions and scale of the fields, nothing learned yet, and the fields in these units."""
    shape, y = y.shape[-2:], y.flatten(2).masked_fill(~known[:, None], torch.nan)
    mean = y.nanmean(0)
    mean = mean.where(mean.isfinite(), mean.nanmean(1, keepdim=True).nan_to_num(0.5))  # a node masked in every field
    about = (y - y.nanmean(2, keepdim=True)).nan_to_num(0.0)  # within fields: their own level is no part of alpha
    covariance = torch.einsum("ncp,ndp->cd", about, about) / known.sum()
    scale, turn = torch.linalg.eigh(covariance)
    scale = scale.clamp(min=1e-12 * float(scale.max()) + 1e-30)
    z = torch.einsum("ncp,cd->ndp", (y - mean).nan_to_num(0.0), turn) / scale.sqrt()[:, None]
    C, P = mean.shape
    J, V = len(structures), len(noises)
    start = Prior(
        mean=mean,
        turn=turn,
        scale=scale,
        factor=mean.new_zeros(C, P, 0),
        deviation=mean.new_ones(C, P),
        grid=torch.tensor([float(size) for size in shape], dtype=torch.float64),
        structures=table(structures),
        noise=torch.tensor(noises, dtype=torch.float64),
        weight=mean.new_full((J, V), 1 / (J * V)),
        a=mean.new_ones(J, C),
        b=mean.new_ones(J, C),
        eta=torch.tensor(WITHOUT_FIELDS[-1], dtype=torch.float64),
    )
    return start, z


def table(structures: list[Structure]) -> Float[Tensor, "J 6"]:
    return torch.tensor([[k.base, k.beta, k.nu, k.length, k.aspect, k.theta] for k in structures], dtype=torch.float64)
