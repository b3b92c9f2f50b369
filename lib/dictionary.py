"""The settings of a mixture of Gaussian processes, learned from training fields (lib/hybrid.py says what they are).

Training fields are folded: the principal components of three quarters explain readings of the last, never of fields they were made of.
Weights, a and b maximise the evidence of these readings by expectation-maximisation (Dempster et al. 1977); the power eta maximises the
density of values at further sites (stacking of predictive densities: Yao et al. 2018, Bayesian Analysis 13:917). Structures that are
never needed are dropped, and half of the weight is spread evenly: fields to come may differ from the training fields.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lib import data
from lib.kernels import Pair
from lib.settings import NOISES, Prior, centred, family

CLEAN = NOISES[:4]  # in training fields; readings of other fields may also have the others
FOLDS, PER_FOLD = 4, 64
FEWEST_FIELDS = 8  # training fields below which nothing is learned but mean and deviation
READ, FEWEST_READ, SCORED = 80, 20, 24  # readings of a training field (at most, at least), and further sites that score eta
KEPT = 24  # structures
EVEN = 0.5  # share of the weight spread evenly over the structures
OTHER_NOISE = 0.02  # weight of the noise that training fields do not have
ETAS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12)
SHAPES = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # a tried: alpha of fields to come may differ from that of training fields, so tails stay heavy
LEARNED_ABOUT = 1e-3  # weight of every field in the fit of every structure's a and b
SHRINK = 20.0  # fields that the mean deviation counts for in the deviation of a site


# ---- one setting: a multivariate t distribution ----


def factorise(
    K: Float[Tensor, "... B n n"], v: float | Float[Tensor, "V 1 1"], known: Bool[Tensor, "B n"]
) -> tuple[Float[Tensor, "... B n n"], Bool[Tensor, "... B"]]:
    """Cholesky factors of K + v I with missing readings cut out (identity rows), and which of them exist in float64."""
    both = known[:, :, None] & known[:, None, :]
    root, info = torch.linalg.cholesky_ex(K * both + torch.where(known, v, 1.0).diag_embed())
    return root, info == 0


def whiten(root: Float[Tensor, "... B n n"], z: Float[Tensor, "B n m"]) -> Float[Tensor, "... B n m"]:
    """root^-1 z."""
    return torch.linalg.solve_triangular(root, z, upper=False)


def log_t(logdet: Tensor, misfit: Tensor, n: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """log of the integral of N(z; 0, alpha A) over alpha ~ inverse gamma (a, b); misfit = z' A^-1 z, n readings."""
    gamma = torch.lgamma(a + n / 2) - torch.lgamma(a) + a * b.log() - (a + n / 2) * (b + misfit / 2).log()
    return gamma - logdet / 2 - n / 2 * math.log(2 * math.pi)


def moments(root: Float[Tensor, "... B n n"], z: Float[Tensor, "B n"]) -> tuple[Float[Tensor, "... B"], Float[Tensor, "... B"]]:
    """log |A| and z' A^-1 z of A = root root'."""
    return 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1), whiten(root, z[..., None]).square().sum((-2, -1))


# ---- what training fields say of the settings ----


def fit(train_fields: Float[Tensor, "n C H W"], generator: torch.Generator | None = None) -> Prior:
    """The prior of these fields; the generator draws folds and readings. A node masked in a field counts as the mean there."""
    y = data.check(train_fields).detach().to("cpu", torch.float64)
    generator = data.generator(0, "dictionary") if generator is None else generator
    known = data.valid(y)  # (n, P)
    most = int(known.sum(1).min())
    enough = len(y) >= FEWEST_FIELDS and most >= 2 * FEWEST_READ
    start, y = centred(y, known, family(enough), CLEAN if enough else NOISES)
    if not enough:
        return start
    cases = [
        _cases(_with_basis(start, y[rest]), y[held], known[held], min(READ, most // 2), generator)
        for held, rest in _folds(len(y), generator)
    ]
    found = _Cases(
        *(torch.cat(parts, dim) for parts, dim in zip(zip(*(c.all() for c in cases), strict=True), (2, 2, 0, 2, 2, 0), strict=True))
    )
    weight, a, b = maximise(found.logdet, found.misfit, found.count)
    keep = weight.sum(1).topk(min(KEPT, len(weight))).indices.sort().values
    weight = weight[keep] / weight[keep].sum()
    weight = (1 - EVEN) * weight + EVEN * weight.sum(0) / len(weight)
    noisy = weight.new_full((len(weight), len(NOISES) - len(CLEAN)), 1.0) / (len(weight) * (len(NOISES) - len(CLEAN)))
    prior = replace(_with_basis(start, y), structures=start.structures[keep], weight=weight, a=a[keep], b=b[keep])
    prior = replace(prior, eta=_power(prior, found, keep))
    noise = torch.tensor(NOISES, dtype=torch.float64)
    return replace(prior, noise=noise, weight=torch.cat([(1 - OTHER_NOISE) * weight, OTHER_NOISE * noisy], 1))


def _with_basis(start: Prior, z: Float[Tensor, "n C P"]) -> Prior:
    """The prior with the principal components of these fields along each direction, and the deviation of each node."""
    factors = [_components(z[:, c]) for c in range(z.shape[1])]
    rank = max(F.shape[1] for F in factors)
    variance = z.square().mean(0)  # (C, P)
    seen = (variance > 0).double()
    typical = (variance.sum(1) / seen.sum(1).clamp(min=1))[:, None].clamp(min=1e-300)
    deviation = ((len(z) * variance / typical + SHRINK) / (len(z) + SHRINK)).sqrt()
    deviation = deviation.where(seen > 0, 1.0)
    return replace(start, factor=torch.stack([_padded(F, rank) for F in factors]), deviation=deviation)


def _padded(F: Tensor, rank: int) -> Tensor:
    return torch.nn.functional.pad(F, (0, rank - F.shape[1]))


def _components(z: Float[Tensor, "n P"]) -> Float[Tensor, "P r"]:
    """F with F F' = z' z / n, columns by falling variance, through the smaller Gram matrix."""
    wide, a = z.shape[1] > len(z), z / max(len(z), 1) ** 0.5
    variance, vectors = torch.linalg.eigh(a @ a.T if wide else a.T @ a)
    keep = (variance > 1e-15 * variance[-1].clamp(min=1e-300)).nonzero()[:, 0].flip(0)
    return a.T @ vectors[:, keep] if wide else vectors[:, keep] * variance[keep].sqrt()


def _folds(n: int, generator: torch.Generator):
    """Pairs (held, rest) of indices: a few fields of one part, all of the other parts."""
    order = torch.randperm(n, generator=generator)
    for part in order.tensor_split(FOLDS):
        rest = torch.ones(n, dtype=torch.bool)
        rest[part] = False
        yield part[:PER_FOLD], rest.nonzero()[:, 0]


# ---- readings of training fields under every setting ----


@dataclass(frozen=True)
class _Cases:
    """log |A| and z' A^-1 z of m training fields' readings, and mean, variance (over alpha) and truth at Q further sites."""

    logdet: Float[Tensor, "J V m C"]
    misfit: Float[Tensor, "J V m C"]
    count: Float[Tensor, " m"]
    mean: Float[Tensor, "J V m C Q"]
    variance: Float[Tensor, "J V m C Q"]
    truth: Float[Tensor, "m C Q"]

    def all(self) -> tuple[Tensor, ...]:
        return self.logdet, self.misfit, self.count, self.mean, self.variance, self.truth


def _cases(prior: Prior, z: Float[Tensor, "m C P"], known: Bool[Tensor, "m P"], most: int, generator: torch.Generator) -> _Cases:
    """Readings of these fields at random sites, a random number of them, under every setting."""
    scored = min(SCORED, int(known.sum(1).min()) - most)
    chosen = torch.rand(known.shape, generator=generator).masked_fill(~known, -1).topk(most + scored).indices
    count = torch.randint(min(FEWEST_READ, most), most + 1, (len(z), 1), generator=generator)
    read = torch.arange(most) < count
    s = data.grid(tuple(int(n) for n in prior.grid), dtype=torch.float64)[chosen]
    values = z.gather(2, chosen[:, None].expand(-1, z.shape[1], -1))  # (m, C, most + scored)
    parts = [_direction(prior, c, s[:, :most], s[:, most:], values[:, c, :most] * read, read) for c in range(z.shape[1])]
    logdet, misfit, mean, variance = (torch.stack(part, 3) for part in zip(*parts, strict=True))
    return _Cases(logdet, misfit, count[:, 0].double(), mean, variance, values[:, :, most:])


def _direction(prior: Prior, c: int, s_obs: Tensor, s_qry: Tensor, z: Tensor, read: Tensor) -> tuple[Tensor, ...]:
    """(J, V, m) log |A| and misfit, inf where A cannot be factorised, and (J, V, m, Q) mean and variance, along direction c."""
    obs, qry = prior.sites(c, s_obs), prior.sites(c, s_qry)
    among, across = Pair(obs, obs), Pair(obs, qry)
    shape = len(prior.structures), len(prior.noise), len(z)
    logdet, misfit = z.new_zeros(shape), z.new_zeros(shape)
    mean, variance = z.new_zeros(*shape, s_qry.shape[1]), z.new_zeros(*shape, s_qry.shape[1])
    for j in range(shape[0]):
        k = prior.structure(j)
        K, to, own = among.covariance(k), across.covariance(k) * read[..., None], across.variance(k)
        for i, v in enumerate(prior.noise.tolist()):
            root, sound = factorise(K, v, read)
            found = moments(root, z)
            logdet[j, i], misfit[j, i] = (value.where(sound, torch.inf) for value in found)
            white = whiten(root, torch.cat([z[..., None], to], -1))
            mean[j, i] = (white[..., 1:] * white[..., :1]).sum(1)
            variance[j, i] = (own - white[..., 1:].square().sum(1)).clamp(min=1e-12)
    return logdet, misfit, mean, variance


# ---- what makes them likely ----


def log_evidence(logdet: Tensor, misfit: Tensor, count: Tensor, a: Tensor, b: Tensor) -> Float[Tensor, "J V m"]:
    """log p(readings | setting), summed over directions; -inf where A could not be factorised."""
    found = log_t(logdet, misfit, count[:, None], a[:, None, None], b[:, None, None]).sum(-1)
    return found.nan_to_num(-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def maximise(logdet: Tensor, misfit: Tensor, count: Tensor, steps: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (J, V) and a, b (J, C) of largest evidence; a and b belong to the structure, whatever the noise."""
    J, V, m, _ = misfit.shape
    weight, share = misfit.new_full((J, V), 1 / (J * V)), misfit.new_full((J, V, m), 1 / (J * V))
    for _ in range(steps):
        a, b = _scales(misfit, count, share + LEARNED_ABOUT * (torch.arange(V) == 1)[:, None])
        log = weight.log()[..., None] + log_evidence(logdet, misfit, count, a, b)
        share = log.flatten(0, 1).softmax(0).unflatten(0, (J, V))
        weight = (share.sum(2) + 0.5 / (J * V)) / (m + 0.5)
    return weight, a, b


def _scales(misfit: Tensor, count: Tensor, share: Tensor) -> tuple[Float[Tensor, "J C"], Float[Tensor, "J C"]]:
    """a and b of largest weighted likelihood, b by its fixed point for each a tried."""
    half = misfit.nan_to_num(posinf=0.0).where(misfit.isfinite(), 0.0) / 2
    share = (share[..., None] * misfit.isfinite()).expand_as(half)  # (J, V, m, C)
    total, n = share.sum((1, 2)), count[:, None] / 2
    start = ((share * (half + 1e-12).log()).sum((1, 2)) / total - (share * n.log()).sum((1, 2)) / total).exp()
    best = None
    for a in SHAPES:
        b = a * start
        for _ in range(8):
            b = a * total / (share * (a + n) / (b[:, None, None] + half)).sum((1, 2))
        gain = (
            share * (torch.lgamma(a + n) - math.lgamma(a) + a * b[:, None, None].log() - (a + n) * (b[:, None, None] + half).log())
        ).sum((1, 2))
        if best is None:
            best = gain, torch.full_like(b, a), b
        better = gain > best[0]
        best = gain.where(better, best[0]), torch.full_like(b, a).where(better, best[1]), b.where(better, best[2])
    return best[1], best[2]


def _power(prior: Prior, found: _Cases, keep: Tensor) -> Float[Tensor, ""]:
    """The eta under which the values at further sites are likeliest, each site by itself."""
    evidence = log_evidence(found.logdet[keep], found.misfit[keep], found.count, prior.a, prior.b)
    free = (prior.a[:, None, None] + found.count[:, None] / 2) * 2  # degrees of freedom (J, 1, m, C)
    scale = (prior.b[:, None, None] + found.misfit[keep] / 2) / (free / 2)
    spread = found.variance[keep] * scale[..., None]
    error = (found.truth - found.mean[keep]).square() / spread
    free = free[..., None]
    log = (
        torch.lgamma((free + 1) / 2)
        - torch.lgamma(free / 2)
        - (free * math.pi * spread).log() / 2
        - (free + 1) / 2 * (error / free).log1p()
    )
    log = log.nan_to_num(-1e6, posinf=-1e6, neginf=-1e6).flatten(0, 1)  # (J V, m, C, Q)
    scores = []
    for eta in ETAS:
        share = (prior.weight.log()[..., None] + eta * evidence).flatten(0, 1).log_softmax(0)
        scores.append(float((share[..., None, None] + log).logsumexp(0).mean()))
    return torch.tensor(ETAS[max(range(len(ETAS)), key=scores.__getitem__)], dtype=torch.float64)
