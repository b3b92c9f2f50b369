"""The parametric oracle: a field known to be a few plane waves is found exactly from its readings; the ceiling of the synthetic worlds.

    y(s) = c + sum_j a_j cos(k_j . s) + b_j sin(k_j . s),   j = 1 ... J
Fourier matching pursuit proposes wavevectors: the strongest wave in what the waves so far leave (orthogonal matching pursuit,
Pati, Rezaiifar and Krishnaprasad 1993). Non-linear least squares refines them all together, with c, a, b eliminated (variable projection,
Golub and Pereyra 1973, with Kaufman's Jacobian). Several guesses are kept (a beam): the strongest peak of two near waves lies between
them. J is the smallest number that leaves only rounding, else the one of least extended BIC (Chen and Chen 2008, Biometrika 95:759), whose
penalty counts the wavevectors tried.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import least_squares
from torch import Tensor

from lib import perfield
from lib.data import Batch, Prediction

FASTEST = 9 * math.pi  # largest |k|, radians per unit of s: nine cycles across the field
SPACING = math.pi / 4  # of the candidate wavevectors; a peak over [-1, 1] is pi wide
MOST_WAVES = 6
BEAM, BRANCH = 3, 5  # guesses kept from one number of waves to the next; peaks tried from each
ROUNDING = 1e-6  # relative RMS residual that float32 readings cannot go below
SEARCH_READINGS = 256  # readings used to find the waves; all are used to refine them


@perfield.one_thread
def oracle(batch: Batch, train_fields: Tensor | None = None) -> Prediction:
    """The best sum of at most six sines, per field and channel; above 100 dB where the world is one, close to the constant where not."""
    mean, _ = perfield.prior(train_fields, batch.y_obs.shape[-1])
    answers = []
    for s, y, q in perfield.each(batch):
        if len(s) == 0:
            answers.append(np.broadcast_to(mean, (len(q), len(mean))))
            continue
        answers.append(np.stack([_evaluate(s, channel, q) for channel in y.T], 1))
    return perfield.assemble(batch, answers)


def _evaluate(s: np.ndarray, y: np.ndarray, q: np.ndarray) -> np.ndarray:
    k = waves(s, y)
    return basis(q, k) @ np.linalg.lstsq(basis(s, k), y, rcond=1e-12)[0]


def waves(s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Wavevectors (J, 2), radians per unit of s, of the sum of sines behind the readings y (n,) at s (n, 2)."""
    step = -(-len(y) // SEARCH_READINGS)
    k = _search(s[::step], y[::step])
    return _refine(s, y, k)[0] if len(k) and step > 1 else k


def _search(s: np.ndarray, y: np.ndarray) -> np.ndarray:
    n, spread = len(y), float(((y - y.mean()) ** 2).sum())
    angle = s @ CANDIDATES.T
    cosine, sine = np.cos(angle), np.sin(angle)
    best = np.zeros((0, 2)), n * math.log(max(spread, 1e-300) / max(n - 1, 1))
    beam = [(best[0], spread)]
    exact = ROUNDING**2 * spread
    if spread <= ROUNDING**2 * float((y**2).sum()):
        return best[0]
    for count in range(1, min(MOST_WAVES, (n - 3) // 4) + 1):
        tried = []
        for k, _ in beam:
            for peak in _peaks(_gains(s, y, k, cosine, sine)):
                guess, rss = _refine(s, y, np.concatenate([k, CANDIDATES[peak, None]]), rough=True)
                if rss < 1e-4 * spread:
                    guess, rss = _refine(s, y, guess)
                    if rss < exact:
                        return guess
                if np.hypot(*guess.T).max() < 1.3 * FASTEST:
                    tried.append((guess, rss))
        beam = _different(tried)
        if not beam:
            break
        price = count * (4 * math.log(n) + 2 * math.log(len(CANDIDATES)))
        criterion = n * math.log(max(beam[0][1], 1e-300) / (n - 1 - 4 * count)) + price  # c and per wave k, a, b are fitted
        if criterion < best[1]:
            best = beam[0][0], criterion
        elif count >= 3:
            break
    return _refine(s, y, best[0])[0] if len(best[0]) else best[0]


def basis(s: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Columns 1, cos(k_j . s), sin(k_j . s): (n, 1 + 2 J)."""
    angle = s @ k.T
    return np.concatenate([np.ones((len(s), 1)), np.cos(angle), np.sin(angle)], 1)


def _gains(s: np.ndarray, y: np.ndarray, k: np.ndarray, cosine: np.ndarray, sine: np.ndarray) -> np.ndarray:
    """How strongly each candidate wave is in what the waves k leave of the readings: |sum of residual times exp(i k . s)|^2."""
    Q, _ = np.linalg.qr(basis(s, k))
    residual = y - Q @ (Q.T @ y)
    return (cosine.T @ residual) ** 2 + (sine.T @ residual) ** 2


def _peaks(gains: np.ndarray) -> list[int]:
    """The BRANCH strongest candidates no two of which lie on one peak; k and -k are the same wave."""
    found: list[int] = []
    for i in np.argsort(-gains):
        k, others = CANDIDATES[i], CANDIDATES[found]
        if len(found) == 0 or min(np.abs(others - k).max(1).min(), np.abs(others + k).max(1).min()) > 3 * SPACING:
            found.append(int(i))
        if len(found) == BRANCH:
            break
    return found


def _refine(s: np.ndarray, y: np.ndarray, k: np.ndarray, rough: bool = False) -> tuple[np.ndarray, float]:
    """Wavevectors near k of least residual sum of squares, and that sum, by Levenberg-Marquardt on the projected residual."""
    count, last = len(k), {}

    def project(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if (key := flat.tobytes()) not in last:
            last.clear()
            columns = basis(s, flat.reshape(count, 2))
            Q, R = np.linalg.qr(columns)
            weights = np.linalg.lstsq(R, Q.T @ y, rcond=1e-12)[0]
            slope = weights[1 + count :] * columns[:, 1 : 1 + count] - weights[1 : 1 + count] * columns[:, 1 + count :]  # dy / d(k . s)
            slopes = (slope[:, :, None] * s[:, None, :]).reshape(len(s), 2 * count)
            last[key] = y - columns @ weights, Q @ (Q.T @ slopes) - slopes
        return last[key]

    tolerance = 1e-5 if rough else 1e-15
    found = least_squares(
        lambda flat: project(flat)[0],
        k.reshape(-1),
        jac=lambda flat: project(flat)[1],
        method="lm",
        xtol=tolerance,
        ftol=tolerance,
        gtol=tolerance,
        max_nfev=30 if rough else 100,
    )
    return found.x.reshape(count, 2), 2 * found.cost


def _different(tried: list[tuple[np.ndarray, float]]) -> list[tuple[np.ndarray, float]]:
    """The BEAM best guesses; equal residuals to three digits are the same guess."""
    kept: list[tuple[np.ndarray, float]] = []
    for guess in sorted(tried, key=lambda pair: pair[1]):
        if all(abs(guess[1] - other) > 1e-3 * other for _, other in kept):
            kept.append(guess)
    return kept[:BEAM]


def _half_plane() -> np.ndarray:
    """Candidate wavevectors (many, 2) of one half-plane, |k| <= FASTEST: the other half holds the same waves."""
    axis = SPACING * np.arange(-round(FASTEST / SPACING), round(FASTEST / SPACING) + 1)
    k = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    half = (k[:, 1] > 1e-9) | ((np.abs(k[:, 1]) < 1e-9) & (k[:, 0] > 1e-9))
    return k[half & (np.hypot(*k.T) <= FASTEST + 1e-9)]


CANDIDATES = _half_plane()
