"""Bayesian linear regression on any columns: exact mean, standard deviation and coherent samples at any sites, with the evidence.

    y(s) = m(s) + Phi(s) w,   w ~ N(0, W),   readings z = y_obs - m(s_obs) = Phi_obs w + e,   e ~ N(0, v)
With Phi_obs W^(1/2) = U S R', every answer follows from the factors S^2 / (S^2 + v): nothing is squared, so fields of few dimensions are
solved to the last digits of float64 (Bishop 2006, Pattern Recognition and Machine Learning, sections 3.3 and 3.5). A sample is a function:
weights drawn once, evaluated wherever it is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib.basis import GridFunctions

Columns = Callable[[Tensor], Tensor]  # sites (B, M, 2) -> (B, R, r), R = M C rows, channels of one site together; maybe Shortcuts too
PRIOR_COUNT = 4.0  # a scale of 1 counts as much as this many readings, so that one reading cannot set it
NOISES = torch.logspace(-20, 1, 64, dtype=torch.float64)  # v tried, relative to the largest variance at the readings
ROUNDS, NARROWER = 4, 8  # how often the bracket around the best of them narrows, and by which factor
NEGLIGIBLE = 1e-6  # weight of a part below which its answer does not count
SLIGHT = 1e-12  # prior variance of a direction, over the largest, below which rounding of past fields may be all there is
ROUNDING = 1e-13  # share of the readings' mean square that rounding leaves


@runtime_checkable
class Shortcuts(Protocol):
    """Columns that know products with themselves at less cost than themselves."""

    def times(self, s: Float[Tensor, "B M 2"], matrix: Float[Tensor, "B r n"]) -> Float[Tensor, "B R n"]:
        """Columns @ matrix."""

    def power(self, s: Float[Tensor, "B M 2"], widths: Float[Tensor, "B r"]) -> Float[Tensor, "B R"]:
        """Columns squared @ widths."""


def times(columns: Columns, s: Float[Tensor, "B M 2"], matrix: Float[Tensor, "B r n"]) -> Float[Tensor, "B R n"]:
    """Columns @ matrix, by the shorter way where there is one."""
    return columns.times(s, matrix) if isinstance(columns, Shortcuts) else columns(s) @ matrix


def power(columns: Columns, s: Float[Tensor, "B M 2"], widths: Float[Tensor, "B r"]) -> Float[Tensor, "B R"]:
    """Prior variance: columns squared @ widths."""
    return columns.power(s, widths) if isinstance(columns, Shortcuts) else (columns(s).square() @ widths[..., None])[..., 0]


@dataclass(frozen=True)
class Beside:
    """The columns of several, one beside the other; `counts` of them each."""

    parts: tuple[Columns, ...]
    counts: tuple[int, ...]

    def __call__(self, s: Float[Tensor, "B M 2"]) -> Float[Tensor, "B R r"]:
        return torch.cat([part(s) for part in self.parts], -1)

    def times(self, s: Float[Tensor, "B M 2"], matrix: Float[Tensor, "B r n"]) -> Float[Tensor, "B R n"]:
        return sum(times(part, s, its) for part, its in zip(self.parts, matrix.split(self.counts, 1), strict=True))

    def power(self, s: Float[Tensor, "B M 2"], widths: Float[Tensor, "B r"]) -> Float[Tensor, "B R"]:
        return sum(power(part, s, its) for part, its in zip(self.parts, widths.split(self.counts, 1), strict=True))


@dataclass(frozen=True)
class Table:
    """Functions on a grid as columns; the prior variance of each is the same."""

    functions: GridFunctions

    def __call__(self, s: Float[Tensor, "B M 2"]) -> Float[Tensor, "B R r"]:
        if shared(s):  # evaluated once
            return self.functions.at(s[0]).flatten(0, 1).expand(len(s), -1, -1)
        return self.functions.at(s.flatten(0, 1)).unflatten(0, s.shape[:2]).flatten(1, 2)

    def times(self, s: Float[Tensor, "B M 2"], matrix: Float[Tensor, "B r n"]) -> Float[Tensor, "B R n"]:
        if not shared(s):
            return self(s) @ matrix
        found = self.functions.times(s[0], matrix.transpose(0, 1).flatten(1))  # (M, C, B n)
        return found.flatten(0, 1).unflatten(1, (len(s), -1)).transpose(0, 1)

    def power(self, s: Float[Tensor, "B M 2"], widths: Float[Tensor, "B r"]) -> Float[Tensor, "B R"]:
        own = widths[:, :1]
        if not shared(s) or not bool((widths == own).all()):
            return (self(s).square() @ widths[..., None])[..., 0]
        return own * self.functions.power(s[0]).flatten()


def shared(s: Float[Tensor, "B M 2"]) -> bool:
    """Whether all fields have the same sites."""
    return len(s) == 1 or (len(s) > 1 and bool((s == s[:1]).all()))


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
    exact: Bool[Tensor, " B"]  # whether directions for half the readings, or fewer, leave nothing of them but rounding

    def at(self, s: Float[Tensor, "B M 2"], spread: bool = True) -> tuple[Tensor, Tensor | None]:
        """Mean and variance (B, R) at the sites; without `spread` only the mean."""
        weights = self.weights[..., None]
        if not spread:
            return self.mean(s) + times(self.columns, s, weights)[..., 0], None
        found = times(self.columns, s, torch.cat([weights, self.root[..., None] * self.right], -1))
        known = found[..., 1:].square() @ self.shrink[..., None]
        return self.mean(s) + found[..., 0], (power(self.columns, s, self.root.square()) - known[..., 0]).clamp(min=0)

    def draw(self, count: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """`count` samples as a function of the sites: (B, M, 2) -> (K, B, R)."""
        w = torch.randn(count, *self.root.shape, generator=generator, dtype=torch.float64)
        seen = torch.einsum("kbr,brn->kbn", w, self.right)
        w = w + torch.einsum("kbn,brn->kbr", seen * ((1 - self.shrink).clamp(min=0).sqrt() - 1), self.right)
        w = self.weights + self.root * w

        def sampled(s: Tensor) -> Tensor:
            return self.mean(s) + times(self.columns, s, w.permute(1, 2, 0)).permute(2, 0, 1)

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
    singular, right, z2, rest = _along(phi, z.where(known, 0))
    count = known.sum(1).to(z)  # in float64: a whole number times a float would be float32
    if noise is None:
        noise, scale = by_evidence(singular.square(), z2.square(), rest, count)
    else:
        scale = torch.ones_like(noise)
    variance = scale[:, None] * singular.square()
    evidence = log_density(variance, z2.square(), rest, count, noise)
    gain = scale.sqrt()[:, None] * (singular * scale.sqrt()[:, None] / (variance + noise[:, None])).nan_to_num(0.0)
    weights = root * torch.einsum("brn,bn->br", right, gain * z2)
    shrink = (variance / (variance + noise[:, None])).nan_to_num(0.0)
    exact = _leaves_nothing(singular.square(), z2.square(), rest, count)
    return Gaussian(columns, mean, weights, root * scale.sqrt()[:, None], right, shrink, evidence, exact)


def _leaves_nothing(variance: Tensor, z2: Tensor, rest: Tensor, count: Tensor) -> Bool[Tensor, " B"]:
    """Whether few directions explain the readings to rounding: what holds for the other half of them holds between them."""
    slight = variance <= SLIGHT * variance.amax(1, keepdim=True) if variance.shape[1] else variance > 0
    left = (z2 * slight).sum(1) + rest
    return (2 * (~slight).sum(1) <= count) & (left <= ROUNDING * (z2.sum(1) + rest)) & (count > 0)


def log_density(variance: Tensor, z2: Tensor, rest: Tensor, count: Tensor, noise: Tensor) -> Float[Tensor, " B"]:
    """log N(z; 0, U diag(variance) U' + noise): along the directions of U, and noise alone in the others."""
    beyond = count - variance.shape[1]  # negative where masked rows fill up U: those directions hold nothing but noise either
    terms = (z2 / (variance + noise[:, None]) + (variance + noise[:, None]).log()).sum(1)
    alone = torch.where(beyond > 0, rest / noise, 0.0) + beyond * noise.log()
    return -0.5 * (terms + alone + count * math.log(2 * math.pi))


def by_evidence(variance: Tensor, z2: Tensor, rest: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Noise variance and scale that maximise the evidence, the scale in closed form with PRIOR_COUNT readings in favour of 1."""
    sizes = variance if variance.shape[1] else (rest / count.clamp(min=1))[:, None]  # without columns all is noise
    largest = sizes.amax(1).clamp(min=1e-300)
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
    middle, half = tried.gather(1, cost(tried).argmin(1, keepdim=True)), (NOISES[1] / NOISES[0]).log()
    for _ in range(ROUNDS):  # the bracket [middle - half, middle + half] holds the least cost
        near = middle + half * torch.linspace(-1, 1, 2 * NARROWER + 1, dtype=torch.float64)
        middle, half = near.gather(1, cost(near).argmin(1, keepdim=True)), half / NARROWER
    v = middle.exp()
    scale = ((PRIOR_COUNT + misfit(v)) / (PRIOR_COUNT + count)[:, None])[:, 0]
    return scale * v[:, 0], scale


def _along(phi: Float[Tensor, "B R r"], z: Float[Tensor, "B R"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of phi = U diag(S) V': S (B, n), V (B, r, n), U' z (B, n), n = min(R, r), and |z|^2 beyond U; through a QR of the longer side."""
    count = phi.shape[2]
    if phi.shape[1] < count:
        q, r = torch.linalg.qr(phi.mT)
        left, singular, right = torch.linalg.svd(r.mT, full_matrices=False)
        return singular, q @ right.mT, (left.mT @ z[..., None])[..., 0], z.new_zeros(len(z))
    r = torch.linalg.qr(torch.cat([phi, z[..., None]], -1), mode="r").R  # of the readings only their turn into the columns' span is kept
    left, singular, right = torch.linalg.svd(r[:, :count, :count], full_matrices=False)
    return singular, right.mT, (left.mT @ r[:, :count, count:])[..., 0], r[:, count:, count].square().sum(1)


@runtime_checkable
class Part(Protocol):
    """What a mixture is made of: a Gaussian, or anything that answers like one."""

    def at(self, s: Float[Tensor, "B M 2"], spread: bool = True) -> tuple[Tensor, Tensor | None]:
        """Mean and variance (B, R)."""

    def draw(self, count: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Samples (K, B, R) as a function of the sites."""


@dataclass(frozen=True)
class Mixture:
    """Several posteriors of the same fields, each with a weight per field, and the name of where it comes from."""

    parts: tuple[Part, ...]
    weight: Float[Tensor, "B E"]
    names: tuple[str, ...] = ()

    def shares(self) -> dict[str, Float[Tensor, " B"]]:
        """The weight of all parts of one name together, per name."""
        its = {name: [i for i, other in enumerate(self.names) if other == name] for name in dict.fromkeys(self.names)}
        return {name: self.weight[:, which].sum(1) for name, which in its.items()}

    def at(self, s: Float[Tensor, "B M 2"], spread: bool = True) -> tuple[Tensor, Tensor | None]:
        """Mean and variance (B, R): within the parts, and between their means; without `spread` only the mean."""
        asked = [i for i, weight in enumerate(self.weight.unbind(1)) if bool((weight > 0).any())]
        means, variances = zip(*(self.parts[i].at(s, spread) for i in asked), strict=True)
        means, weight = torch.stack(means, -1), self.weight[:, None, asked]
        mean = (weight * means).sum(-1)
        if not spread:
            return mean, None
        return mean, (weight * (torch.stack(variances, -1) + (means - mean[..., None]).square())).sum(-1)

    def draw(self, count: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Samples as a function of the sites; each field of each sample comes from one part, drawn by weight."""
        chosen = torch.multinomial(self.weight, count, replacement=True, generator=generator).T  # (K, B)
        drawn = [part.draw(count, generator) for part in self.parts]

        def sampled(s: Tensor) -> Tensor:
            return sum(torch.where(chosen[..., None] == i, one(s), 0.0) for i, one in enumerate(drawn))

        return sampled


def mixture(parts: list[Part], evidence: Float[Tensor, "B E"], names: Sequence[str] = ()) -> Mixture:
    """The parts weighed by log evidence, prices and prior weights already in it; a field is not asked of its negligible ones."""
    weight = evidence.softmax(1)
    weight = weight.where(weight > NEGLIGIBLE, 0.0)
    return Mixture(tuple(parts), weight / weight.sum(1, keepdim=True), tuple(names))
