"""The plane waves behind a field's readings, chosen by the evidence of those readings alone.

    y = m + g + sum_j a_j cos(k_j . s) + b_j sin(k_j . s) + e,   a_j, b_j ~ N(0, w_j),  g ~ N(0, alpha G),  e ~ N(0, v)
A sparse spectral Gaussian process (Lazaro-Gredilla et al. 2010, JMLR 11:1865): w, alpha, v and the wavevectors k maximise the marginal
likelihood. Widths and noise follow MacKay's fixed point (1992, Neural Computation 4:415; Tipping 2001, JMLR 1:211); k moves by
Gauss-Newton, its tangents da cos/dk joined to the regression as columns of width TAU, so that a step never leaves what the linearisation
can carry. The start is the strongest peaks of the readings' periodogram; a wave that adds less evidence than chance would goes.
Nothing is trained: the same iterations hold for every world, any number of readings and any noise. All in float64, B fields side by side.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

COUNT = 24  # waves at the start
SPACING, FASTEST = 0.5 * math.pi, 9.0 * math.pi  # of the candidates, radians per unit of s: a peak over [-1, 1] is pi wide
TAU = 0.3 * math.pi  # how far a wavevector may be from the truth
LONGEST = 0.5 * math.pi  # step of a wavevector
PRUNE, PRUNED, POLISH = 5, 15, 4  # iterations before waves may go, until they must have gone, and after
AT_A_TIME = 3  # waves that may go in one iteration: two that share a peak must not go together
LOW, HIGH = 6.0, 12.0  # |q|^2 / 2s that a wave needs at first and at last; 1 is what noise gives on average, Exp(1) its distribution
QUIETEST = 1e-13  # noise variance over that of the readings: less drowns in the rounding of a covariance in float64
PRICE = math.log(0.5 * math.pi * FASTEST**2 / (2 * math.pi * TAU**2)) + 2.0  # nats a wave costs: which of the peaks, and its width


@dataclass(frozen=True)
class Waves:
    """What the readings of B fields say: wavevectors (B, J, 2), widths (B, J), zero for no wave, amplitudes of cos and sin, noise, scales."""

    k: Float[Tensor, "B J 2"]
    width: Float[Tensor, "B J"]
    amplitude: Float[Tensor, "B J 2"]
    noise: Float[Tensor, " B"]
    scale: Float[Tensor, "B G"]

    def columns(self, s: Float[Tensor, "B M 2"]) -> Float[Tensor, "B M 4J"]:
        """cos, sin and the two tangents of every wave at the sites."""
        phase = s @ self.k.mT
        cos, sin = phase.cos(), phase.sin()
        return torch.cat([cos, sin, _tangents(s, cos, sin, self.amplitude)], -1)

    def widths(self) -> Float[Tensor, "B 4J"]:
        """Prior variance of each column."""
        alive = (self.width > 0).to(self.width) * TAU**2
        return torch.cat([self.width, self.width, alive, alive], -1)

    def price(self) -> Float[Tensor, " B"]:
        """Nats to take from the evidence for having chosen these waves among all."""
        return PRICE * (self.width > 0).sum(1)


def find(
    s: Float[Tensor, "B N 2"],
    z: Float[Tensor, "B N"],
    known: Bool[Tensor, "B N"],
    rest: Float[Tensor, "B G N N"],
    scale: Float[Tensor, "B G"],
    count: int = COUNT,
) -> Waves:
    """The waves in readings z (less the mean) beside fields of covariance `scale * rest`, whose scale is chosen as well."""
    z = z.where(known, 0)
    spread = (z.square().sum(1) / known.sum(1).clamp(min=1)).clamp(min=1e-20)
    noise, floor = 0.1 * spread, QUIETEST * spread
    alone = _covariance(known, rest, scale, noise)
    k = _peaks(s, _solve(_root(alone), z), count)
    width = (spread / count)[:, None].repeat(1, count)
    for step in range(PRUNED + POLISH):
        cos, sin = _cos_sin(s, k, known)
        covariance = _covariance(known, rest, scale, noise) + (cos * width[:, None]) @ cos.mT + (sin * width[:, None]) @ sin.mT
        weight = _solve(_root(covariance), z)
        amplitude = width[..., None] * torch.stack([(cos.mT @ weight[..., None])[..., 0], (sin.mT @ weight[..., None])[..., 0]], -1)
        tangents = _tangents(s, cos, sin, amplitude)
        root = _root(covariance + TAU**2 * tangents @ tangents.mT)
        weight = _solve(root, z)  # not through the inverse, which loses the digits that noise-free readings have
        inverse = torch.cholesky_inverse(root)
        q = torch.stack([(c.mT @ weight[..., None])[..., 0] for c in (cos, sin)], -1)
        sharp = sum((c * (inverse @ c)).sum(1) for c in (cos, sin)) / 2  # s of each wave, all waves in the covariance
        worth = (
            q.square().sum(-1) / (1 - width * sharp).clamp(min=1e-9) / (2 * sharp).clamp(min=1e-300)
        )  # |q|^2 / 2s without the wave itself
        k = k + (TAU**2 * (tangents.mT @ weight[..., None])[..., 0].unflatten(1, (2, -1)).mT).clamp(-LONGEST, LONGEST)
        width = (width * q.square().sum(-1) / (2 * sharp).clamp(min=1e-300)).clamp(max=100 * spread[:, None])
        if PRUNE <= step < PRUNED:
            width = _pruned(width, worth, LOW + (HIGH - LOW) * (step - PRUNE) / (PRUNED - 1 - PRUNE))
            k, width = _alive(k, width)
        scale = _rescaled(scale, rest, weight, inverse)
        left = (noise[:, None] * weight * known).square().sum(1)
        free = (noise * (inverse.diagonal(dim1=1, dim2=2) * known).sum(1)).clamp(min=0.5)
        noise = torch.maximum(left / free, floor)
    cos, sin = _cos_sin(s, k, known)
    covariance = _covariance(known, rest, scale, noise) + (cos * width[:, None]) @ cos.mT + (sin * width[:, None]) @ sin.mT
    weight = _solve(_root(covariance), z)
    amplitude = width[..., None] * torch.stack([(cos.mT @ weight[..., None])[..., 0], (sin.mT @ weight[..., None])[..., 0]], -1)
    return Waves(k, width, amplitude, noise, scale)


@functools.cache
def candidates() -> Float[Tensor, "many 2"]:
    """Wavevectors of one half-plane up to FASTEST: the other half holds the same waves."""
    axis = SPACING * torch.arange(-round(FASTEST / SPACING), round(FASTEST / SPACING) + 1, dtype=torch.float64)
    k = torch.cartesian_prod(axis, axis)
    half = (k[:, 1] > 1e-9) | ((k[:, 1].abs() < 1e-9) & (k[:, 0] > 1e-9))
    return k[half & (k.norm(dim=1) <= FASTEST + 1e-9)]


def _peaks(s: Tensor, r: Float[Tensor, "B N"], count: int) -> Float[Tensor, "B J 2"]:
    """The candidates strongest in |sum r exp(i k . s)|^2, from one row of exponentials per axis."""
    k = candidates().to(s)
    phase = s @ k.T
    power = (r[:, None] @ phase.cos()).square() + (r[:, None] @ phase.sin()).square()
    return k[power[:, 0].topk(count, 1).indices]


def _cos_sin(s: Tensor, k: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    phase = s @ k.mT
    return phase.cos() * known[..., None], phase.sin() * known[..., None]


def _tangents(s: Tensor, cos: Tensor, sin: Tensor, amplitude: Float[Tensor, "B J 2"]) -> Float[Tensor, "B N 2J"]:
    """d (a cos(k . s) + b sin(k . s)) / dk: first along s1 for all waves, then along s2."""
    slope = amplitude[:, None, :, 1] * cos - amplitude[:, None, :, 0] * sin
    return torch.cat([slope * s[..., :1], slope * s[..., 1:]], -1)


def _covariance(known: Tensor, rest: Tensor, scale: Tensor, noise: Tensor) -> Float[Tensor, "B N N"]:
    """Of the readings without waves; a reading that is missing has variance 1 and is correlated with none."""
    both = known[:, :, None] & known[:, None, :]
    covariance = (scale[..., None, None] * rest).sum(1) * both
    return covariance + torch.diag_embed(torch.where(known, noise[:, None], 1.0))


def _root(covariance: Float[Tensor, "B N N"]) -> Float[Tensor, "B N N"]:
    """A Cholesky factor, with the least jitter in powers of ten where rounding asks for it."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    jitter = 1e-13 * covariance.diagonal(dim1=1, dim2=2).mean(1)
    while bool((failed > 0).any()):
        covariance = covariance + torch.diag_embed(torch.where(failed > 0, jitter, 0.0)[:, None].expand(covariance.shape[:2]))
        root, failed = torch.linalg.cholesky_ex(covariance)
        jitter = 10 * jitter
    return root


def _solve(root: Tensor, z: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    return torch.cholesky_solve(z[..., None], root)[..., 0]


def _rescaled(scale: Tensor, rest: Tensor, weight: Tensor, inverse: Tensor) -> Float[Tensor, "B G"]:
    """MacKay's fixed point for the scale of each part of the rest."""
    if not scale.numel():
        return scale
    found = (rest @ weight[:, None, :, None])[..., 0] @ weight[..., None]  # (B, G, 1)
    due = (inverse[:, None] * rest).sum((2, 3))
    return (scale * found[..., 0] / due.clamp(min=1e-12)).clamp(1e-12, 100)


def _pruned(width: Tensor, worth: Tensor, least: float) -> Tensor:
    """Widths with the least worthy waves below `least` set to zero, AT_A_TIME at most."""
    worst = worth.masked_fill(width <= 0, math.inf).topk(min(AT_A_TIME, width.shape[1]), 1, largest=False)
    goes = torch.zeros_like(width, dtype=torch.bool).scatter(1, worst.indices, worst.values < least)
    return width.masked_fill(goes, 0)


def _alive(k: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The waves of positive width, as many columns as the field with most needs."""
    most = max(int((width > 0).sum(1).max()), 1)
    width, order = width.topk(most, 1)
    return k.gather(1, order[..., None].expand(-1, -1, 2)), width
