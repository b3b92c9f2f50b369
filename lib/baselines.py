"""Classical methods behind one call, METHODS[name](batch, train_fields=None) -> Prediction: what every model is judged against.

Interpolation (scipy, scikit-image) and the Gaussian process (scikit-learn) know the readings of one field only; optimal interpolation
and gappy POD (lib/optimal.py) also know training fields; the oracle (lib/oracle.py) knows that fields are sums of sines. All in float64.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator, RBFInterpolator
from scipy.linalg import LinAlgError, cho_solve, cholesky
from scipy.optimize import minimize
from scipy.spatial import QhullError, cKDTree
from skimage.restoration import inpaint_biharmonic
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Kernel, Matern, WhiteKernel
from torch import Tensor

from lib import perfield
from lib.data import Batch, Prediction
from lib.optimal import oi, pod
from lib.oracle import oracle

LENGTH, LENGTHS = 0.3, (0.03, 5.0)  # start and bounds of the Gaussian process's length scales; sites lie in [-1, 1]
AMPLITUDES = (1e-2, 1e3)  # variance of the signal, relative to the readings'
NOISE, NOISES = 0.1, (1e-12, 1.0)  # variance of the noise, relative to the readings'; from a small start it would never be found
FEWEST, PRIOR_NOISE = 5, 1e-3  # readings below which the evidence says nothing, and the noise assumed then
EVIDENCE_READINGS = 256  # more readings than this are thinned for the choice of hyperparameters; the answer uses all of them
JITTERS = (1e-12, 1e-10, 1e-8, 1e-6)  # tried in turn where rounding makes a covariance singular
MOST_SAMPLED = 5000  # sites of one coherent Gaussian-process sample: its covariance is a dense matrix
GLOBAL_SPLINE = 2000  # readings up to which one thin plate spans them all; beyond, the nearest 100 of each query

T = TypeVar("T")


def get(name: str) -> Callable[..., Prediction]:
    """The method of that name; ValueError lists the known ones."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(str(name), METHODS, 1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"unknown method '{name}'; known: {', '.join(METHODS)}{hint}")


# ---- what knows nothing but the mean ----


def constant(batch: Batch, train_fields: Tensor | None = None) -> Prediction:
    """The training fields' mean and deviation per channel, whatever was read; without training fields, 0.5."""
    mean, std = perfield.prior(train_fields, batch.y_obs.shape[-1])
    shape = batch.y_qry.shape
    return perfield.assemble(batch, np.broadcast_to(mean, shape), None if train_fields is None else np.broadcast_to(std, shape))


# ---- interpolation of one field's readings ----


def nearest(batch: Batch, train_fields: Tensor | None = None) -> Prediction:
    """The value of the nearest reading."""
    return _interpolated(batch, train_fields, _nearest)


def linear(batch: Batch, train_fields: Tensor | None = None) -> Prediction:
    """Linear on the Delaunay triangles of the readings, the nearest reading outside their hull."""
    return _interpolated(batch, train_fields, _linear)


def thin_plate(batch: Batch, train_fields: Tensor | None = None) -> Prediction:
    """The thin-plate spline through the readings: least bending energy."""
    return _interpolated(batch, train_fields, _thin_plate)


def biharmonic(batch: Batch, train_fields: Tensor | None = None) -> Prediction:
    """Biharmonic inpainting of the picture whose known pixels are the readings, each at its nearest query; the queries must be a grid."""
    shape = perfield.grid_shape(batch.s_qry)
    if shape is None:
        raise ValueError("'biharmonic' paints pictures: ask for a whole grid in row-major order as queries, or use 'thin_plate'")

    def inpaint(s: np.ndarray, y: np.ndarray, q: np.ndarray) -> np.ndarray:
        node, y = perfield.merged(cKDTree(q).query(s)[1][:, None], y)
        picture, unknown = np.zeros((len(q), y.shape[1])), np.ones(len(q), dtype=bool)
        picture[node[:, 0]], unknown[node[:, 0]] = y, False
        return inpaint_biharmonic(picture.reshape(*shape, -1), unknown.reshape(shape), channel_axis=-1).reshape(len(q), -1)

    return _interpolated(batch, train_fields, inpaint)


@perfield.one_thread
def _interpolated(batch: Batch, train_fields: Tensor | None, through: Callable[..., np.ndarray]) -> Prediction:
    """One answer per field; the prior mean for a field without readings. Repeated sites hold the mean of their readings."""
    mean, _ = perfield.prior(train_fields, batch.y_obs.shape[-1])
    answers = [
        through(*perfield.merged(s, y), q) if len(s) else np.broadcast_to(mean, (len(q), len(mean))) for s, y, q in perfield.each(batch)
    ]
    return perfield.assemble(batch, answers)


def _nearest(s: np.ndarray, y: np.ndarray, q: np.ndarray) -> np.ndarray:
    return NearestNDInterpolator(s, y)(q)


def _linear(s: np.ndarray, y: np.ndarray, q: np.ndarray) -> np.ndarray:
    outside = _nearest(s, y, q)
    try:
        inside = LinearNDInterpolator(s, y)(q)
    except (QhullError, ValueError):  # fewer than three readings, or all on one line: there is no triangle
        return outside
    return np.where(np.isnan(inside), outside, inside)


def _thin_plate(s: np.ndarray, y: np.ndarray, q: np.ndarray) -> np.ndarray:
    near = 100 if len(s) > GLOBAL_SPLINE else None
    try:
        return RBFInterpolator(s, y, neighbors=near, kernel="thin_plate_spline")(q)
    except (LinAlgError, ValueError):  # fewer than three readings, or all on one line: no plane through them is unique
        return RBFInterpolator(s, y, neighbors=near, kernel="linear", degree=0)(q)


# ---- Gaussian process ----


@perfield.one_thread
def gp(
    batch: Batch, train_fields: Tensor | None = None, kernels: tuple[str, ...] = ("rbf", "matern"), noise: float | None = None
) -> Prediction:
    """Kriging of one field's readings: kernel, length scales, amplitude and noise by the evidence of the readings.

    kernels: candidates, of "rbf" (smooth fields; a length scale per axis) and "matern" (Matern 3/2, rough fields; one length scale). noise:
    the standard deviation of the readings' errors where it is known. Mean, standard deviation of the noise-free field and coherent
    samples. Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, eqs 2.23-2.24 and 2.30; kernels are compared less half
    log n per hyperparameter (Schwarz 1978, Annals of Statistics 6:461).
    """
    fits = _fits(batch, train_fields, kernels, noise)

    def draw(count: int, generator: torch.Generator) -> np.ndarray:
        return np.stack([fit.sample(q, count, generator) for fit, (_, _, q) in zip(fits, perfield.each(batch), strict=True)], 1)

    answers = [fit.at(q) for fit, (_, _, q) in zip(fits, perfield.each(batch), strict=True)]
    return perfield.assemble(batch, [mean for mean, _ in answers], [std for _, std in answers], draw)


@perfield.one_thread
def gp_left_out(
    batch: Batch, train_fields: Tensor | None = None, kernels: tuple[str, ...] = ("rbf", "matern"), noise: float | None = None
) -> Prediction:
    """What the Gaussian process says of each reading from all others, its noise included; hyperparameters stay those of all readings.

    K the readings' covariance with noise: mean y_i - [K^-1 y]_i / [K^-1]_ii, variance 1 / [K^-1]_ii (Rasmussen and Williams 2006, eq 5.12).
    The queries are the readings' sites.
    """
    fits = _fits(batch, train_fields, kernels, noise)
    answers = [fit.left_out(y) for fit, (_, y, _) in zip(fits, perfield.each(batch), strict=True)]
    return perfield.assemble(batch, [mean for mean, _ in answers], [std for _, std in answers])


def _fits(batch: Batch, train_fields: Tensor | None, kernels: tuple[str, ...], noise: float | None) -> list[_Kriging]:
    unknown = [name for name in kernels if name not in KERNELS]
    if unknown or not kernels:
        raise ValueError(f"unknown kernel {unknown}; known: {', '.join(KERNELS)}")
    prior = perfield.prior(train_fields, batch.y_obs.shape[-1])
    return [_krige(s, y, kernels, *prior, noise) for s, y, _ in perfield.each(batch)]


def gp_rbf(batch: Batch, train_fields: Tensor | None = None) -> Prediction:
    """The Gaussian process with the squared-exponential kernel: infinitely smooth fields."""
    return gp(batch, train_fields, ("rbf",))


def gp_matern(batch: Batch, train_fields: Tensor | None = None) -> Prediction:
    """The Gaussian process with the Matern 3/2 kernel: fields with one derivative."""
    return gp(batch, train_fields, ("matern",))


KERNELS = {
    "rbf": lambda: RBF([LENGTH, LENGTH], LENGTHS),
    "matern": lambda: Matern(LENGTH, LENGTHS, nu=1.5),
}


@dataclass(frozen=True)
class _Kriging:
    """A fitted process of (y - level) / scale, the same for all channels."""

    process: GaussianProcessRegressor
    level: np.ndarray  # (C,)
    scale: np.ndarray  # (C,)

    def at(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (M, C)."""
        mean, std = self._predict(q, return_std=True)
        return mean, std.reshape(len(q), -1)[:, :1] * self.scale

    def sample(self, q: np.ndarray, count: int, generator: torch.Generator) -> np.ndarray:
        """Coherent draws (K, M, C)."""
        if len(q) > MOST_SAMPLED:
            raise ValueError(f"a Gaussian process draws at most {MOST_SAMPLED} sites at once, not {len(q)}; ask fewer queries, or use 'oi'")
        mean, covariance = self._predict(q, return_cov=True)
        root = _root(covariance.reshape(len(q), len(q), -1)[..., 0])
        return mean + np.einsum("mn,knc->kmc", root, perfield.normal(generator, count, len(q), len(self.scale)), optimize=True) * self.scale

    def left_out(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (N, C) of each of the readings y that it was fitted to, given the others."""
        inverse = cho_solve((self.process.L_, True), np.eye(len(y)))
        own = inverse.diagonal()[:, None]
        return y - inverse @ (y - self.level) / own, self.scale / np.sqrt(own)

    def _predict(self, q: np.ndarray, **also: bool) -> tuple[np.ndarray, np.ndarray]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Predicted variances smaller than 0")  # rounding at the readings; scikit-learn sets them to 0
            mean, spread = self.process.predict(q, **also)
        return mean.reshape(len(q), -1) * self.scale + self.level, spread


def _krige(s: np.ndarray, y: np.ndarray, kernels: tuple[str, ...], level: np.ndarray, scale: np.ndarray, known=None) -> _Kriging:
    """Hyperparameters by evidence, then the process conditioned on all readings; the prior's level and scale when readings are too few."""
    signal = ConstantKernel(1.0) * KERNELS[kernels[0]]()
    noise = PRIOR_NOISE if known is None else _relative(known, scale)
    if len(s) >= FEWEST:
        level, scale = y.mean(0), np.where(y.std(0) > 1e-6 * scale, y.std(0), scale)
        z = (y - level) / scale
        some = slice(None, None, -(-len(s) // EVIDENCE_READINGS))
        white = WhiteKernel(NOISE, NOISES) if known is None else WhiteKernel(_relative(known, scale), "fixed")
        candidates = [ConstantKernel(1.0, AMPLITUDES) * KERNELS[name]() + white for name in kernels]
        tried = [_by_evidence(s[some], z[some], kernel) for kernel in candidates]
        best = max(tried, key=lambda p: p.log_marginal_likelihood_value_ - p.kernel_.n_dims / 2 * np.log(len(s[some]))).kernel_
        signal, noise = best.k1, best.k2.noise_level
    process = GaussianProcessRegressor(signal, optimizer=None)
    if len(s):
        process = _least_jitter(lambda jitter: process.set_params(alpha=noise + jitter).fit(s, (y - level) / scale))
    return _Kriging(process, level, scale)


def _relative(noise: float, scale: np.ndarray) -> float:
    """The variance of a noise of this standard deviation where values are divided by their scale, on average over the channels."""
    return max(float(np.mean((noise / scale) ** 2)), NOISES[0])


def _by_evidence(s: np.ndarray, z: np.ndarray, kernel: Kernel) -> GaussianProcessRegressor:
    """Amplitude, length scales and noise that maximise the marginal likelihood, by bounded L-BFGS to a hundredth of a nat or so."""

    def optimise(cost, start, bounds):
        found = minimize(cost, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-5, "gtol": 1e-3, "maxiter": 100})
        return found.x, found.fun

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a parameter at its bound is an answer here
        return _least_jitter(lambda jitter: GaussianProcessRegressor(kernel, alpha=jitter, optimizer=optimise).fit(s, z))


def _root(covariance: np.ndarray) -> np.ndarray:
    """A Cholesky factor of the posterior covariance."""
    size, one = max(float(covariance.diagonal().max()), 1e-300), np.eye(len(covariance))
    return _least_jitter(lambda jitter: cholesky(covariance + jitter * size * one, lower=True))


def _least_jitter(factorise: Callable[[float], T]) -> T:
    """The answer with the least jitter on the diagonal that lets a covariance be factorised in float64."""
    for jitter in JITTERS:
        try:
            return factorise(jitter)
        except LinAlgError as failure:
            last = failure
    raise ValueError(f"a covariance cannot be factorised even with a jitter of {JITTERS[-1]}; are the readings finite?") from last


METHODS: dict[str, Callable[..., Prediction]] = {
    "constant": constant,
    "nearest": nearest,
    "linear": linear,
    "thin_plate": thin_plate,
    "gp": gp,
    "gp_rbf": gp_rbf,
    "gp_matern": gp_matern,
    "oi": oi,
    "pod": pod,
    "biharmonic": biharmonic,
    "oracle": oracle,
}
