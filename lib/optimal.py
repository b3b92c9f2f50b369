"""Methods that learn the covariance of training fields: optimal interpolation and gappy proper orthogonal decomposition.

    y = m + F w, F F' = covariance of the training fields · w ~ N(0, alpha I) · readings y_obs = m_obs + F_obs w + e, e ~ N(0, alpha v I)
Optimal interpolation (Gandin 1965; Daley 1991, Atmospheric Data Analysis, ch. 4) is the mean of y given the readings. v and alpha maximise
the evidence of the field's own readings. Everything goes through the singular values of F_obs, never through F_obs F_obs': squaring would
lose half the digits. Gappy POD (Everson and Sirovich 1995, JOSA A 12:1657) is least squares on the first k columns of F.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import solve_triangular
from scipy.optimize import minimize_scalar
from torch import Tensor

from lib import data, perfield
from lib.data import Batch, Prediction

NEGLIGIBLE = 1e-17  # share of the largest variance below which a direction is rounding of float32 fields
PRIOR_COUNT = 4.0  # the scale alpha = 1 counts as much as this many readings, so that one reading cannot set it
NOISES = np.logspace(-20, 1, 64)  # v tried, relative to the largest variance at the readings


@perfield.one_thread
def oi(batch: Batch, train_fields: Tensor | None = None) -> Prediction:
    """Optimal interpolation: mean, standard deviation and coherent samples from the training fields' mean and covariance."""
    fit = fitted(train_fields, batch, "oi")
    posteriors = [_posterior(fit, s, y) for s, y, _ in perfield.each(batch)]
    at = _remembering(fit)
    means, stds = [], []
    for p, (_, _, q) in zip(posteriors, perfield.each(batch), strict=True):
        m, F, variance = at(q)
        means.append(m + F @ p.weights)
        known = ((F @ p.right) ** 2) @ p.shrink if len(p.shrink) else 0.0  # the part of the prior variance that the readings took away
        stds.append(np.sqrt(p.scale * np.maximum(variance - known, 0.0)))

    def draw(count: int, generator: torch.Generator) -> np.ndarray:
        found = []
        for p, (_, _, q) in zip(posteriors, perfield.each(batch), strict=True):
            # weights of the posterior: shrink a prior draw along the directions that the readings determine
            w = perfield.normal(generator, count, fit.factor.shape[-1])
            seen = w @ p.right
            w = p.weights + np.sqrt(p.scale) * (w + (seen * (np.sqrt(1 - p.shrink) - 1)) @ p.right.T)
            m, F, _ = at(q)
            found.append(m + w @ F.T)
        return _last(np.stack(found, 1), fit.channels)

    return perfield.assemble(batch, _last(np.stack(means), fit.channels), _last(np.stack(stds), fit.channels), draw)


@perfield.one_thread
def pod(batch: Batch, train_fields: Tensor | None = None) -> Prediction:
    """Gappy POD: least squares on the first k principal components, k by leave-one-out over the field's own readings."""
    fit = fitted(train_fields, batch, "pod")
    at, means = _remembering(fit), []
    for s, y, q in perfield.each(batch):
        m, F, _ = fit.at(s)
        residual = y.T.reshape(-1) - m
        weights = _least_squares(F, residual, fit.channels)
        m, F, _ = at(q)
        means.append(m + F[:, : len(weights)] @ weights)
    return perfield.assemble(batch, _last(np.stack(means), fit.channels))


def _least_squares(F: np.ndarray, residual: np.ndarray, channels: int) -> np.ndarray:
    """Weights of the first k columns, k with the least squared error at a reading left out with all its channels (Allen's PRESS).

    Leaving out the rows S of one reading turns its residual r_S into (I - H_SS)^-1 r_S, H = Q Q' of the first k columns.
    """
    n = len(residual) // channels
    most = min(channels * (n - 1), F.shape[1])
    if most < 1:
        return np.zeros(0)
    Q, R = np.linalg.qr(F[:, :most])
    new = np.abs(R.diagonal()) > 1e-12 * np.linalg.norm(F[:, :most], axis=0)  # False: at the readings, the column repeats earlier ones
    most = most if new.all() else int(new.argmin())
    c, Q = Q[:, :most].T @ residual, Q[:, :most].reshape(channels, n, most)
    left = np.repeat(residual.reshape(channels, n)[None], most + 1, 0)  # (k, C, n): residuals for k = 0 ... most
    left[1:] -= np.cumsum((Q * c).transpose(2, 0, 1), 0)
    free = np.repeat(np.eye(channels)[None, None], most + 1, 0) - np.zeros((1, n, 1, 1))  # (k, n, C, C): I - H_SS
    free[1:] -= np.cumsum(np.einsum("ank,bnk->knab", Q, Q), 0)
    sound = np.linalg.eigvalsh(free)[..., 0] > 1e-8  # otherwise no other reading determines it
    error = np.linalg.solve(np.where(sound[..., None, None], free, np.eye(channels)), left.transpose(0, 2, 1)[..., None])[..., 0]
    k = int(np.where(sound, (error**2).sum(-1), np.inf).sum(1).argmin())
    return solve_triangular(R[:k, :k], c[:k]) if k else np.zeros(0)


@dataclass(frozen=True)
class Fit:
    """Mean (C, H W) and factor (C, H W, r) of the training fields' covariance, columns by falling variance."""

    mean: np.ndarray
    factor: np.ndarray
    shape: tuple[int, int]

    @property
    def channels(self) -> int:
        return len(self.mean)

    def at(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean (C n), factor (C n, r) and prior variance (C n) at any sites, bilinear between nodes and exact on them; channels first."""
        node, weight = _bilinear(s, self.shape)
        if (weight[:, 0] == 1).all():
            mean, factor = self.mean[:, node[:, 0]], self.factor[:, node[:, 0]]
        else:
            mean = np.einsum("nk,cnk->cn", weight, self.mean[:, node])
            factor = sum(weight[:, k, None] * self.factor[:, node[:, k]] for k in range(4))
        factor = factor.reshape(-1, factor.shape[-1])
        return mean.reshape(-1), factor, np.einsum("nr,nr->n", factor, factor)


def _remembering(fit: Fit) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """fit.at that keeps its last answer: usually all fields of a batch ask the same sites."""
    last = {}

    def at(s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not np.array_equal(s, last.get("s")):
            last.update(s=s, found=fit.at(s))
        return last["found"]

    return at


_FITS = data.Kept()  # of training fields, decomposed once while they live


def fitted(train_fields: Tensor | None, batch: Batch, method: str) -> Fit:
    """The decomposition of these training fields, computed once; ValueError without fields or with other channels than the readings."""
    if train_fields is None:
        raise ValueError(f"'{method}' learns from training fields; give train_fields (n, C, H, W), or use 'gp', which needs none")
    perfield.check_fields(train_fields, batch.y_obs.shape[-1])
    return _FITS.get(train_fields, decompose)


def decompose(train_fields: Tensor) -> Fit:
    """Principal components through the smaller of the two Gram matrices; a node masked in a field counts as the node's mean there."""
    n, channels, *shape = train_fields.shape
    y = train_fields.detach().to("cpu", torch.float64).flatten(1)
    mean = y.nanmean(0)
    mean = mean.nan_to_num(float(mean.nanmean()))  # a node masked in every field
    a = ((y - mean).nan_to_num(0.0) / max(n - 1, 1) ** 0.5).numpy()
    wide = a.shape[1] > n
    variance, vectors = np.linalg.eigh(a @ a.T if wide else a.T @ a)
    keep = np.flatnonzero(variance > NEGLIGIBLE * max(variance[-1], 1e-300))[::-1]
    factor = a.T @ vectors[:, keep] if wide else vectors[:, keep] * np.sqrt(variance[keep])
    return Fit(mean.numpy().reshape(channels, -1), factor.reshape(channels, a.shape[1] // channels, -1), tuple(shape))


@dataclass(frozen=True)
class _Posterior:
    """Gaussian weights given readings: mean, scale alpha, and I - right diag(shrink) right' as covariance."""

    weights: np.ndarray  # (r,)
    right: np.ndarray  # (r, n)
    shrink: np.ndarray  # (n,)
    scale: float


def _posterior(fit: Fit, s: np.ndarray, y: np.ndarray) -> _Posterior:
    """Bayesian linear regression of the readings on the factor, noise and scale by the readings' evidence."""
    m, F, _ = fit.at(s)
    if len(m) == 0 or F.shape[1] == 0:
        return _Posterior(np.zeros(F.shape[1]), np.zeros((F.shape[1], 0)), np.zeros(0), 1.0)
    left, singular, right = np.linalg.svd(F, full_matrices=False)
    residual = y.T.reshape(-1) - m
    z = left.T @ residual
    beyond = max(float(residual @ residual - z @ z), 0.0), len(residual) - len(z)  # what no weight can explain: noise alone
    noise, scale = _evidence(singular**2, z**2, *beyond)
    shrink = singular**2 / (singular**2 + noise)
    gain = singular / (singular**2 + noise)
    return _Posterior(right.T @ (gain * z), right.T, shrink, scale)


def _evidence(variance: np.ndarray, z2: np.ndarray, rest: float, extra: int) -> tuple[float, float]:
    """The noise variance v (over the scale) and the scale alpha that maximise the marginal likelihood, alpha in closed form."""
    largest = max(float(variance[0]), 1e-300)

    def misfit(v: float) -> float:
        return float((z2 / (variance + v)).sum()) + (rest / v if extra else 0.0)

    def cost(log_v: float) -> float:
        v = np.exp(log_v)
        fit = (PRIOR_COUNT + len(z2) + extra) * np.log(PRIOR_COUNT + misfit(v))
        return fit + np.log(variance + v).sum() + extra * log_v

    tried = np.log(NOISES * largest)
    best = int(np.argmin([cost(x) for x in tried]))
    ends = tried[max(best - 1, 0)], tried[min(best + 1, len(tried) - 1)]
    v = float(np.exp(minimize_scalar(cost, bounds=ends, method="bounded", options={"xatol": 1e-2}).x))
    return v, (PRIOR_COUNT + misfit(v)) / (PRIOR_COUNT + len(z2) + extra)


def _bilinear(s: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The four nodes around each site and their weights (n, 4); a site within float32 rounding of a node is that node."""
    ends = []
    for axis, size in ((1, shape[0]), (0, shape[1])):  # rows, then columns
        place = np.clip((s[:, axis] + 1) / 2, 0, 1) * (size - 1)
        node = np.rint(place)
        place = np.where(np.abs(place - node) < 5e-7 * size, node, place)
        low = np.minimum(np.floor(place), max(size - 2, 0)).astype(int)
        ends.append((low, np.minimum(low + 1, size - 1), place - low))
    (top, bottom, down), (west, east, right) = ends
    node = np.stack([top, top, bottom, bottom], 1) * shape[1] + np.stack([west, east, west, east], 1)
    weight = np.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], 1)
    order = np.argsort(-weight, axis=1, kind="stable")  # the heaviest first: weight 1 means the site is a node
    return np.take_along_axis(node, order, 1), np.take_along_axis(weight, order, 1)


def _last(values: np.ndarray, channels: int) -> np.ndarray:
    """(..., C M) to (..., M, C)."""
    return np.moveaxis(values.reshape(*values.shape[:-1], channels, -1), -2, -1)
