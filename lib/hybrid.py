"""A mixture of Gaussian processes weighed by the readings: training fields' principal components plus stationary processes.

    z = G' (y - m) / sqrt(scale) · z_c | setting ~ N(0, alpha_c (k + v I)), alpha_c ~ inverse gamma (a, b) · setting (k, v) ~ weight
G turns channels into uncorrelated ones, k is one of the covariances of lib/kernels.py, v the noise. With alpha integrated out the
readings of a setting follow a multivariate t distribution (Rasmussen and Williams 2006, section 9.9; Shah et al. 2014), and
    p(setting | readings) ~ weight * p(readings | setting)^eta,
Bayesian model averaging (Hoeting et al. 1999, Statistical Science 14:382) with a power eta <= 1, since no setting is the truth (safe Bayes:
Gruenwald and van Ommen 2017, Bayesian Analysis 12:1069). lib/dictionary.py learns weight, a, b and eta from training fields.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib import data, kernels
from lib.data import Batch, Prediction
from lib.dictionary import factorise, fit, log_t, moments, whiten
from lib.kernels import Pair, Sites
from lib.settings import Prior, default, restore, stationary

CHOICE_READINGS = 256  # more readings than this are thinned to choose the settings; the answer uses all of them
NEGLIGIBLE = 0.01  # settings of less weight than this are left out of a field's mixture
SITES_AT_ONCE = 2**19  # numbers in one block of covariances between readings and queries
FACTORS_AT_ONCE = (
    2**17
)  # numbers in covariances that are factorised together: one matrix a call is slow, and so is more than the cache holds


__all__ = ["Posterior", "Prior", "default", "fit", "hybrid", "posterior", "restore", "stationary"]

_PRIORS = data.Kept()  # of training fields, fitted once while they live


def hybrid(batch: Batch, train_fields: Tensor | None = None) -> Prediction:
    """The mixture's mean, standard deviation and coherent samples at the queries; without training fields its stationary settings alone."""
    found = posterior(default(batch.y_obs.shape[-1]) if train_fields is None else fitted(train_fields, batch), batch)
    mean, std = (value.to(batch.y_qry.device) for value in found.mean_std(batch.s_qry))

    def draw(count: int, generator: torch.Generator) -> Tensor:
        return found.draw(count, generator)(batch.s_qry).to(batch.y_qry.device)

    return Prediction(mean, std, draw)


def fitted(train_fields: Tensor, batch: Batch) -> Prior:
    """The prior of these training fields, fitted once; ValueError for other channels than the readings'."""
    if data.check(train_fields).shape[1] != batch.y_obs.shape[-1]:
        raise ValueError(
            f"training fields have {train_fields.shape[1]} channels, the readings {batch.y_obs.shape[-1]}; give the same world's"
        )
    return _PRIORS.get(train_fields, fit)


@dataclass(frozen=True)
class _Part:
    """One setting and the fields in whose mixture it is: weights, and per direction the factor, A^-1 z, and alpha's posterior."""

    j: int
    v: float
    fields: Tensor  # (F,) indices
    weight: Float[Tensor, " F"]
    root: list[Float[Tensor, "F n n"]]
    solved: list[Float[Tensor, "F n"]]
    a: Float[Tensor, "C F"]
    b: Float[Tensor, "C F"]

    @functools.cached_property
    def inverse(self) -> list[Float[Tensor, "F n n"]]:
        """Inverse factors."""
        return [whiten(root, torch.eye(root.shape[-1]).to(root).expand_as(root)) for root in self.root]

    def white(self, c: int, K: Float[Tensor, "F n m"], known: Bool[Tensor, "F n"]) -> Float[Tensor, "F n m"]:
        """root^-1 K with the rows of missing readings at 0; through the inverse where there are more sites than readings.

        A product takes half the time of solving, and loses a digit or two of what is left of a variance that readings almost remove.
        """
        if K.shape[2] < K.shape[1]:
            return whiten(self.root[c], K * known[..., None])
        return (self.inverse[c] * known[:, None]) @ K

    def scale(self, c: int) -> Float[Tensor, " F"]:
        """The mean of alpha given the readings; where it has none (a <= 1, no readings), its mode's order b / a."""
        return self.b[c] / (self.a[c] - 1).where(self.a[c] > 1, self.a[c])


def posterior(prior: Prior, batch: Batch) -> Posterior:
    """The mixture given each field's readings; NaN readings count as missing."""
    y = batch.y_obs.to(prior.mean)
    known = batch.m_obs & y.isfinite().all(-1) & batch.s_obs.isfinite().all(-1)
    s = batch.s_obs.to(prior.mean).where(known[..., None], kernels.NOWHERE)
    z = ((y - prior.mean_at(s)) @ prior.turn / prior.scale.sqrt()).where(known[..., None], 0.0)
    step = max(1, -(-z.shape[1] // CHOICE_READINGS))
    at = [prior.sites(c, s) for c in range(z.shape[-1])]
    few = at if step == 1 else [replace(its, s=its.s[:, ::step]) for its in at]
    evidence = _evidence(prior, few, z[:, ::step], known[:, ::step])  # (J, V, B)
    share = (prior.weight.log()[..., None] + prior.eta * evidence).flatten(0, 1).softmax(0)  # (J V, B)
    keep = (share > NEGLIGIBLE) | (share == share.amax(0))
    total = (prior.weight.log()[..., None] + evidence).flatten(0, 1).logsumexp(0)
    found = None
    if step > 1:  # the chosen settings are weighed again, by all readings
        found, exact = _condition(prior, at, z, known, keep)
        log = prior.weight.log().flatten()[:, None]
        share = (log + prior.eta * exact).masked_fill(~keep, -torch.inf).softmax(0)
        total = (log + exact).masked_fill(~keep, -torch.inf).logsumexp(0)
    share = share * keep / (share * keep).sum(0)

    @functools.cache
    def parts() -> list[_Part]:
        conditioned = _condition(prior, at, z, known, keep)[0] if found is None else found
        return [replace(part, weight=share[index, part.fields]) for index, part in conditioned]

    return Posterior(prior, s, z, known, at, parts, total - known.sum(1) * prior.scale.log().sum() / 2)


def _evidence(prior: Prior, at: list[Sites], z: Tensor, known: Tensor) -> Float[Tensor, "J V B"]:
    """log p(z | setting) of every setting; -inf where its covariance cannot be factorised."""
    n, (J, V), (B, size) = known.sum(1).to(z), prior.weight.shape, z.shape[:2]
    found = z.new_zeros(J, V, B)
    most = max(1, FACTORS_AT_ONCE // max(1, B * size**2))  # settings at a time
    for c, sites in enumerate(at):
        pair = Pair(sites, sites)
        for js in torch.arange(J).split(max(1, most // V)):
            K, a, b = torch.stack([pair.covariance(prior.structure(j)) for j in js.tolist()])[:, None], prior.a[js, c], prior.b[js, c]
            for vs in torch.arange(V).split(most):
                root, sound = factorise(K, prior.noise[vs, None, None].to(z), known)
                density = log_t(*moments(root, z[..., c]), n, a[:, None, None], b[:, None, None])
                found[js[:, None], vs] += density.where(sound, -torch.inf)
    return found.nan_to_num(-torch.inf, neginf=-torch.inf)


def _condition(prior: Prior, at: list[Sites], z: Tensor, known: Tensor, keep: Tensor) -> tuple[list[tuple[int, _Part]], Tensor]:
    """The kept settings with their factors, by index, and log p(z | setting) (J V, B) of these; settings of the same fields together."""
    parts, exact, n = {}, z.new_full(keep.shape, -torch.inf), known.sum(1).to(z)
    V, pairs, noise = len(prior.noise), [Pair(sites, sites) for sites in at], prior.noise.to(z)
    for chosen, indices in _of_same_fields(keep):
        for some in indices.split(max(1, FACTORS_AT_ONCE // max(1, len(chosen) * z.shape[1] ** 2))):
            j, v = some // V, some % V
            roots, solved, rates, total = [], [], [], 0.0
            for c, pair in enumerate(pairs):
                K = torch.stack([pair.covariance(prior.structure(int(its)), chosen) for its in j])
                root, sound = factorise(K, noise[v, None, None], known[chosen])
                logdet, misfit = moments(root, z[chosen, :, c])
                a, b = prior.a[j, c, None], prior.b[j, c, None]
                total = total + log_t(logdet, misfit, n[chosen], a, b).where(sound, -torch.inf)
                roots.append(root)
                solved.append(torch.cholesky_solve(z[chosen, :, c, None].expand(*root.shape[:-1], 1), root)[..., 0])
                rates.append(b + misfit / 2)
            exact[some[:, None], chosen] = total
            shape, rate = prior.a[j][..., None] + n[chosen] / 2, torch.stack(rates, 1)  # (S, C, F)
            for i, index in enumerate(some.tolist()):
                root, its = [part[i] for part in roots], [part[i] for part in solved]
                parts[index] = _Part(index // V, float(noise[index % V]), chosen, total[i], root, its, shape[i], rate[i])
    return sorted(parts.items()), exact


def _of_same_fields(keep: Bool[Tensor, "S B"]) -> list[tuple[Tensor, Tensor]]:
    """Fields, and the settings that are kept for these and no others."""
    kinds, which = keep.unique(dim=0, return_inverse=True) if keep.numel() else (keep[:0], None)
    return [(kind.nonzero()[:, 0], (which == i).nonzero()[:, 0]) for i, kind in enumerate(kinds) if bool(kind.any())]


@dataclass(frozen=True)
class Posterior:
    """B fields given their readings; log_evidence is log p(readings) as a density in the units of the data.

    Where the evidence speaks against all of it nobody asks for an answer: settings are conditioned when one is asked for.
    """

    prior: Prior
    s: Float[Tensor, "B N 2"]
    z: Float[Tensor, "B N C"]
    known: Bool[Tensor, "B N"]
    at: list[Sites]
    make: Callable[[], list[_Part]]
    log_evidence: Float[Tensor, " B"]

    @property
    def parts(self) -> list[_Part]:
        return self.make()

    def _by_structure(self) -> list[tuple[int, list[_Part]]]:
        """The settings of each structure, which differ in noise and share covariances."""
        return [(j, list(its)) for j, its in itertools.groupby(self.parts, lambda part: part.j)]

    def mean_std(self, s_qry: Float[Tensor, "B M 2"]) -> tuple[Float[Tensor, "B M C"], Float[Tensor, "B M C"]]:
        """Mean and standard deviation of the noise-free field, within settings and between them, at any sites."""
        mean, variance = (torch.cat(part, 1) for part in zip(*(self._block(s) for s in self._blocks(s_qry)), strict=True))
        return mean, variance.sqrt()

    def mean(self, s_qry: Float[Tensor, "B M 2"]) -> Float[Tensor, "B M C"]:
        """The mean alone, which needs no factor."""
        return torch.cat([self._block(s, spread=False)[0] for s in self._blocks(s_qry)], 1)

    def _blocks(self, s: Tensor) -> tuple[Tensor, ...]:
        return s.split(max(1, SITES_AT_ONCE // max(1, self.z[..., 0].numel())), 1)

    def _block(self, s: Tensor, spread: bool = True) -> tuple[Tensor, Tensor]:
        """Mean and variance; zeros for the variance without `spread`."""
        first, second = [], []
        for c, obs in enumerate(self.at):
            qry = self.prior.sites(c, s)
            pair, mean, square = Pair(obs, qry), self.z.new_zeros(s.shape[:2]), self.z.new_zeros(s.shape[:2])
            for j, its in self._by_structure():
                k, i = self.prior.structure(j), torch.cat([part.fields for part in its]).unique()
                K = pair.covariance(k, i)  # rows of missing readings too: `solved` is 0 there
                if not spread:
                    solved = self.z.new_zeros(len(i), self.z.shape[1])
                    for part in its:
                        solved[torch.searchsorted(i, part.fields)] += part.weight[:, None] * part.solved[c]
                    mean[i] += (K.mT @ solved[..., None])[..., 0]
                    continue
                own = pair.variance(k, i)
                for part in its:
                    rows = torch.searchsorted(i, part.fields)
                    its_K = K if len(rows) == len(i) else K[rows]
                    m = (its_K.mT @ part.solved[c][..., None])[..., 0]
                    within = own[rows] - part.white(c, its_K, self.known[part.fields]).square().sum(1)
                    mean[part.fields] += part.weight[:, None] * m  # the same m as in its square: rounding must not cancel a deviation
                    square[part.fields] += part.weight[:, None] * (within.clamp(min=0) * part.scale(c)[:, None] + m**2)
            first.append(mean)
            second.append((square - mean**2).clamp(min=0))
        scale, turn = self.prior.scale, self.prior.turn
        mean = self.prior.mean_at(s) + (torch.stack(first, -1) * scale.sqrt()) @ turn.T
        return mean, (torch.stack(second, -1) * scale) @ turn.square().T

    def leave_one_out(self) -> Float[Tensor, "B N C"]:
        """Each reading predicted from the others by every setting, z_i - (A^-1 z)_i / (A^-1)_ii, weights as given all readings."""
        found = torch.zeros_like(self.z)
        for c in range(self.z.shape[-1]):
            for part in self.parts:
                precision = torch.cholesky_inverse(part.root[c]).diagonal(dim1=1, dim2=2)
                left = self.z[part.fields, :, c] - part.solved[c] / precision
                found[part.fields, :, c] += part.weight[:, None] * left
        return self.prior.mean_at(self.s) + (found * self.prior.scale.sqrt()) @ self.prior.turn.T

    def draw(self, count: int, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Draws of the posterior as a function: sites (B, M, 2) to values (K, B, M, C), the same fields at every call.

        A setting by its weight, alpha by its posterior, then a draw of the prior moved by the covariance to the readings (Matheron's rule).
        """
        seeds = torch.randint(2**62, (count, len(self.z)), generator=generator, device=generator.device).cpu()
        share = self.z.new_zeros(len(self.z), len(self.parts))
        for p, part in enumerate(self.parts):
            share[part.fields, p] = part.weight
        u = torch.rand(count, len(self.z), generator=generator, device=generator.device, dtype=torch.float64).to(share)
        chosen = (u[..., None] > share.cumsum(1)).sum(-1).clamp(max=len(self.parts) - 1)  # (K, B)

        def at(s: Float[Tensor, "B M 2"]) -> Float[Tensor, "K B M C"]:
            found = self.z.new_zeros(count, *s.shape[:2], self.z.shape[-1])
            for c, obs in enumerate(self.at):
                qry = self.prior.sites(c, s)
                _ = qry.factor, qry.deviation  # looked up for all fields at once
                for i in range(len(self.z)):
                    one = torch.tensor([i], device=self.z.device)
                    pair = Pair(obs[one], qry[one])
                    for k in range(count):
                        found[k, i, :, c] = self._draw(self.parts[int(chosen[k, i])], i, c, pair, int(seeds[k, i]) + c)
            return self.prior.mean_at(s) + (found * self.prior.scale.sqrt()) @ self.prior.turn.T

        return at

    def _draw(self, part: _Part, i: int, c: int, pair: Pair, seed: int) -> Float[Tensor, " M"]:
        generator, where = torch.Generator().manual_seed(seed), int((part.fields == i).nonzero()[0, 0])
        k, obs, known = self.prior.structure(part.j), pair.s, self.known[i]
        both = (torch.cat([getattr(its, name)[0] for its in (obs, pair.t)]) for name in ("s", "factor", "deviation"))
        alpha = _inverse_gamma(float(part.a[c, where]), float(part.b[c, where]), generator)
        error = part.v**0.5 * torch.randn(len(known), generator=generator, dtype=torch.float64).to(self.z)
        seen, prior = kernels.draw(k, *both, generator).split([len(known), pair.t.s.shape[1]])
        K = pair.covariance(k)[0] * known[:, None]  # (n, M)
        gain = torch.cholesky_solve(((seen + error) * known)[:, None], part.root[c][where])[:, 0]
        return part.solved[c][where] @ K + alpha**0.5 * (prior - gain @ K)


def _inverse_gamma(a: float, b: float, generator: torch.Generator) -> float:
    """b / g with g ~ gamma(a, 1), from normal numbers alone (Marsaglia and Tsang 2000, ACM TOMS 26:363, with their step for a < 1)."""
    lift = 1.0 if a >= 1 else float(torch.rand(1, generator=generator, dtype=torch.float64)) ** (1 / a)
    d = (a if a >= 1 else a + 1) - 1 / 3
    while True:
        x = float(torch.randn(1, generator=generator, dtype=torch.float64))
        u, cube = float(torch.rand(1, generator=generator, dtype=torch.float64)), (1 + x / math.sqrt(9 * d)) ** 3
        if cube > 0 and math.log(max(u, 1e-300)) < x * x / 2 + d - d * cube + d * math.log(cube):
            return b / max(d * cube * lift, 1e-300)
