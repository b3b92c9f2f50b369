"""Bayesian linear regression on any columns: exact mean, standard deviation and coherent samples at any sites, with the evidence.

    y(s) = m(s) + Phi(s) w,   w ~ N(0, W),   readings z = y_obs - m(s_obs) = Phi_obs w + e,   e ~ N(0, v)
With Phi_obs W^(1/2) = U S R', every answer follows from the factors S^2 / (S^2 + v): nothing is squared, so that fields of few dimensions are
solved to the last digits of float64 (Bishop 2006, Pattern Recognition and Machine Learning, sections 3.3 and 3.5). A sample is a function:
weights drawn once, evaluated wherever it is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Columns = Callable[[Tensor], Tensor]  # sites (B, M, 2) -> (B, R, r), R = M C rows, channels of one site together
PRIOR_COUNT = 4.0  # a scale of 1 counts as much as this many readings, so that one reading cannot set it
NOISES = torch.logspace(-20, 1, 64, dtype=torch.float64)  # v tried, relative to the largest variance at the readings
NARROWER = 12  # halvings of the bracket around the best of them


@dataclass(frozen=True)
class Gaussian:
    """The posterior of B fields: weights of the columns, and by how much the readings shrink the prior along which directions."""

    columns: Columns
    mean: Columns
    weights: Float[Tensor, "B r"]
    root: Float[Tensor, "B r"]  # prior standard deviation of each weight
    right: Float[Tensor, "B r n"]  # orthonormal directions in units of `root`
    shrink: Float[Tensor, "B n"]
    evidence: Float[Tensor, " B"]  # log density of the readings

    def at(self, s: Float[Tensor, "B M 2"], spread: bool = True) -> tuple[Tensor, Tensor | None]:
        """Mean and variance (B, R) at the sites; without `spread` only the mean."""
        columns = self.columns(s)
        mean = self.mean(s) + (columns @ self.weights[..., None])[..., 0]
        if not spread:
            return mean, None
        columns = columns * self.root[:, None]
        known = (columns @ self.right).square() @ self.shrink[..., None]
        return mean, (columns.square().sum(-1) - known[..., 0]).clamp(min=0)

    def draw(self, count: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """`count` samples as a function of the sites: (B, M, 2) -> (K, B, R)."""
        w = torch.randn(count, *self.root.shape, generator=generator, dtype=torch.float64)
        seen = torch.einsum("kbr,brn->kbn", w, self.right)
        w = w + torch.einsum("kbn,brn->kbr", seen * ((1 - self.shrink).clamp(min=0).sqrt() - 1), self.right)
        w = self.weights + self.root * w

        def sampled(s: Tensor) -> Tensor:
            return self.mean(s) + torch.einsum("bmr,kbr->kbm", self.columns(s), w)

        return sampled


def condition(
    z: Float[Tensor, "B R"],
    known: Bool[Tensor, "B R"],
    columns: Columns,
    mean: Columns,
    s: Float[Tensor, "B N 2"],
    widths: Float[Tensor, "B r"],
    noise: Float[Tensor, " B"] | None = None,
) -> Gaussian:
    """The posterior given readings z, already less the mean; without a noise variance, noise and a common scale of W by evidence."""
    root = widths.sqrt()
    phi = columns(s) * root[:, None] * known[..., None]
    left, singular, right = _svd(phi)
    z = z.where(known, 0)
    z2 = torch.einsum("brn,br->bn", left, z)
    rest = (z.square().sum(1) - z2.square().sum(1)).clamp(min=0)
    count = known.sum(1)
    if noise is None:
        noise, scale = by_evidence(singular.square(), z2.square(), rest, count)
    else:
        scale = torch.ones_like(noise)
    variance = scale[:, None] * singular.square()
    evidence = log_density(variance, z2.square(), rest, count, noise)
    gain = scale.sqrt()[:, None] * (singular * scale.sqrt()[:, None] / (variance + noise[:, None])).nan_to_num(0.0)
    weights = root * torch.einsum("brn,bn->br", right, gain * z2)
    shrink = (variance / (variance + noise[:, None])).nan_to_num(0.0)
    return Gaussian(columns, mean, weights, root * scale.sqrt()[:, None], right, shrink, evidence)


def log_density(variance: Tensor, z2: Tensor, rest: Tensor, count: Tensor, noise: Tensor) -> Float[Tensor, " B"]:
    """log N(z; 0, U diag(variance) U' + noise): along the directions of U, and noise alone in the others."""
    beyond = count - variance.shape[1]  # negative where masked rows fill up U: those directions hold nothing but noise either
    terms = (z2 / (variance + noise[:, None]) + (variance + noise[:, None]).log()).sum(1)
    alone = torch.where(beyond > 0, rest / noise, 0.0) + beyond * noise.log()
    return -0.5 * (terms + alone + count * math.log(2 * math.pi))


def by_evidence(variance: Tensor, z2: Tensor, rest: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Noise variance and scale that maximise the evidence, the scale in closed form with PRIOR_COUNT readings in favour of 1."""
    largest = variance.amax(1).clamp(min=1e-300)
    free = (count - variance.shape[1]).clamp(min=0)

    def misfit(v: Tensor) -> Tensor:  # v (B, T), in units of the scale
        found = (z2[:, None] / (variance[:, None] + v[..., None])).sum(-1)
        return found + torch.where(free > 0, rest, 0.0)[:, None] / v

    def cost(log_v: Tensor) -> Tensor:
        v = log_v.exp()
        fit = (PRIOR_COUNT + count)[:, None] * (PRIOR_COUNT + misfit(v)).log()
        spare = (count - variance.shape[1])[:, None]
        return fit + (variance[:, None] + v[..., None]).log().sum(-1) + spare * log_v

    tried = NOISES.log() + largest.log()[:, None]
    best = cost(tried).argmin(1, keepdim=True)
    middle, half = tried.gather(1, best), (NOISES[1] / NOISES[0]).log()
    for _ in range(NARROWER):  # the bracket [middle - half, middle + half] holds the least cost
        half = half / 2
        near = torch.cat([middle - half, middle, middle + half], 1)
        middle = near.gather(1, cost(near).argmin(1, keepdim=True))
    v = middle.exp()
    scale = ((PRIOR_COUNT + misfit(v)) / (PRIOR_COUNT + count)[:, None])[:, 0]
    return scale * v[:, 0], scale


def _svd(phi: Float[Tensor, "B R r"]) -> tuple[Tensor, Tensor, Tensor]:
    """U (B, R, n), S (B, n), R (B, r, n) of the columns at the readings, n = min(R, r); through a QR of the longer side."""
    if phi.shape[1] < phi.shape[2]:
        q, r = torch.linalg.qr(phi.mT)
        left, singular, right = torch.linalg.svd(r.mT, full_matrices=False)
        return left, singular, q @ right.mT
    q, r = torch.linalg.qr(phi)
    left, singular, right = torch.linalg.svd(r, full_matrices=False)
    return q @ left, singular, right.mT


@dataclass(frozen=True)
class Mixture:
    """Several Gaussians for the same fields, each with a weight per field."""

    parts: tuple[Gaussian, ...]
    weight: Float[Tensor, "B E"]

    def at(self, s: Float[Tensor, "B M 2"]) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
        """Mean and variance: within the parts, and between their means."""
        means, variances = zip(*(part.at(s) for part in self.parts), strict=True)
        means, variances = torch.stack(means, -1), torch.stack(variances, -1)
        weight = self.weight[:, None]
        mean = (weight * means).sum(-1)
        return mean, (weight * (variances + (means - mean[..., None]).square())).sum(-1)

    def draw(self, count: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Samples as a function of the sites; each field of each sample comes from one part, drawn by weight."""
        chosen = torch.multinomial(self.weight, count, replacement=True, generator=generator).T  # (K, B)
        drawn = [part.draw(count, generator) for part in self.parts]

        def sampled(s: Tensor) -> Tensor:
            return sum(torch.where(chosen[..., None] == i, one(s), 0.0) for i, one in enumerate(drawn))

        return sampled


def mixture(parts: list[Gaussian], evidence: Float[Tensor, "B E"]) -> Mixture:
    """The parts weighed by log evidence, prices and prior weights already in it."""
    return Mixture(tuple(parts), evidence.softmax(1))
