"""How good an answer is: one number per field for each metric, and intervals over fields.

    PSNR = -10 log10(MSE) with MAX = 1 · CRPS(F, y) = E|Y - y| - E|Y - Y'|/2 · energy score: the same with the norm of a whole field
    (Gneiting and Raftery 2007, JASA 102:359, sections 4.2 and 4.3; fair ensemble estimator with 1/(K (K - 1)): Ferro 2014, QJRMS 140:1917).
Means of decibels over fields and the decibels of the mean error differ by up to 11 dB; `summary` reports both, by name.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from skimage.metrics import structural_similarity
from torch import Tensor

from lib import data
from lib.data import Batch, Prediction
from lib.perfield import grid_shape

MEAN = ("psnr", "ssim", "mse", "mae", "correlation", "nrmse", "error_at_readings", "speckle", "frequency_error")
SPREAD = ("coverage50", "coverage90", "spread_skill")
SAMPLES = ("crps", "energy_score")
SMALLEST_MSE = 1e-30  # an exact answer scores 300 dB, so that means over fields stay finite
SPECKLE_FLOOR = 1e-5  # of the truth's power: what a smooth field leaks through the window; less is invisible and counts as this much
ON_SITE = 1e-5  # a reading this near to a query lies on it; neighbours on a 1,024 x 1,024 grid are 0.002 apart


def score(
    prediction: Prediction | Tensor,
    batch: Batch,
    world,
    shape: tuple[int, int] | None = None,
    samples: int = 0,
    generator: torch.Generator | None = None,
) -> dict[str, Float[Tensor, " B"]]:
    """Every metric that the prediction allows, one float64 number per field; sites whose truth is NaN do not count.

    world: anything with .std (a World), or the standard deviation itself; NaN for unknown makes nrmse NaN. shape: (H, W) of the queries,
    found from the sites when None; without a grid, ssim, speckle and frequency_error are left out. samples: how many draws to score;
    without draws, crps is the Gaussian's. ValueError for shapes that do not fit or a single sample.
    """
    prediction = Prediction(prediction) if isinstance(prediction, Tensor) else prediction
    mean, truth = _double(prediction.mean), _double(batch.y_qry)
    if mean.shape != truth.shape:
        raise ValueError(f"the prediction has shape {tuple(mean.shape)}, the truth {tuple(truth.shape)}; ask for the batch's own queries")
    error = mean - truth
    mse = _mean(error**2)
    scores = {
        "psnr": psnr(mse),
        "mse": mse,
        "mae": _mean(error.abs()),
        "correlation": correlation(mean, truth),
        "nrmse": _mean((error / _deviation(world)) ** 2).sqrt(),
        "error_at_readings": error_at_readings(mean, batch),
    }
    if (shape := grid_shape(batch.s_qry, shape)) is not None:
        pictures = mean.unflatten(1, shape), truth.unflatten(1, shape)
        scores |= {"ssim": ssim(*pictures), "speckle": speckle(*pictures), "frequency_error": frequency_error(*pictures)}
    if prediction.std is not None:
        std = _double(prediction.std)
        scores |= {
            "coverage50": coverage(error, std, 0.5),
            "coverage90": coverage(error, std, 0.9),
            "spread_skill": _mean(torch.where(error.isnan(), error, std**2)).sqrt() / mse.clamp(min=SMALLEST_MSE).sqrt(),
            "crps": gaussian_crps(error, std),
        }
    if samples and prediction.draw is not None:
        if samples < 2:
            raise ValueError(f"samples={samples}: scores of an ensemble need at least 2 draws (0 leaves them out)")
        draws = _double(prediction.samples(samples, data.generator(0, "samples") if generator is None else generator))
        scores |= {"crps": crps(draws, truth), "energy_score": energy_score(draws, truth)}
    return {name: scores[name] for name in MEAN + SPREAD + SAMPLES if name in scores}


def summary(scores: dict[str, Tensor], generator: torch.Generator | None = None, resamples: int = 1000) -> dict[str, dict[str, float]]:
    """Mean and median over fields with the mean's 95 % bootstrap interval, per metric; fields scoring NaN do not count.

    psnr is the mean of the fields' decibels, psnr_of_mean the decibels of the mean squared error (its median: of the median error).
    """
    generator = data.generator(0, "bootstrap") if generator is None else generator
    table = {name: _interval(values.double(), generator, resamples) for name, values in scores.items()}
    if "mse" in table:
        worst = {"mean": "mean", "median": "median", "low": "high", "high": "low"}  # the largest error is the smallest PSNR
        table["psnr_of_mean"] = {name: float(psnr(torch.tensor(table["mse"][of], dtype=torch.float64))) for name, of in worst.items()}
    return table


def paired(a: Tensor, b: Tensor, generator: torch.Generator, resamples: int = 1000) -> tuple[float, float, float]:
    """The mean of a (B,) minus b (B,) over the same fields and its 95 % bootstrap interval: (difference, low, high)."""
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} fields against {len(b)}: a paired comparison needs the same fields on both sides")
    found = _interval(a.double() - b.double(), generator, resamples)
    return found["mean"], found["low"], found["high"]


def _interval(values: Float[Tensor, " B"], generator: torch.Generator, resamples: int) -> dict[str, float]:
    values = values[~values.isnan()]
    if len(values) == 0:
        return dict.fromkeys(("mean", "median", "low", "high"), math.nan)
    picks = torch.randint(len(values), (resamples, len(values)), generator=generator, device=generator.device).to(values.device)
    low, high = values[picks].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=values.dtype, device=values.device)).tolist()
    return {"mean": float(values.mean()), "median": float(values.quantile(0.5)), "low": low, "high": high}


def psnr(mse: Tensor) -> Tensor:
    """-10 log10(MSE), MAX = 1; 300 dB for an exact answer."""
    return -10 * mse.clamp(min=SMALLEST_MSE).log10()


def correlation(mean: Float[Tensor, "B M C"], truth: Float[Tensor, "B M C"]) -> Float[Tensor, " B"]:
    """Pearson's correlation over sites and channels; 0 where the answer or the truth is constant."""
    a, b = (torch.where(truth.isnan(), torch.nan, y) for y in (mean, truth))
    a, b = (y - _mean(y)[:, None, None] for y in (a, b))
    scale = (_mean(a**2) * _mean(b**2)).sqrt()
    return torch.where(scale > 1e-12, _mean(a * b) / scale.clamp(min=1e-12), torch.where(scale.isnan(), torch.nan, 0.0))


def error_at_readings(mean: Float[Tensor, "B M C"], batch: Batch) -> Float[Tensor, " B"]:
    """RMS of prediction minus reading at the queries that lie on a reading; NaN for a field without such a query."""
    s_obs, s_qry, y_obs = _double(batch.s_obs).numpy(), _double(batch.s_qry).numpy(), _double(batch.y_obs)
    valid = batch.m_obs.cpu()[..., None] & y_obs.isfinite()
    found = torch.full((len(mean),), torch.nan, dtype=mean.dtype)
    if 0 in s_obs.shape or 0 in s_qry.shape:
        return found
    tree, of = None, None
    for i in range(len(mean)):
        if tree is None or not np.array_equal(s_qry[i], of):
            tree, of = cKDTree(s_qry[i]), s_qry[i]
        distance, nearest = tree.query(s_obs[i])
        counts = valid[i] & torch.from_numpy(distance < ON_SITE)[:, None]
        if counts.any():
            found[i] = ((mean[i, nearest] - y_obs[i])[counts] ** 2).mean().sqrt()
    return found


def ssim(mean: Float[Tensor, "B H W C"], truth: Float[Tensor, "B H W C"], window: int = 7) -> Float[Tensor, " B"]:
    """Structural similarity (scikit-image, data range 1) over the windows without a masked node; NaN if there is none."""
    window = min(window, *(size - (size + 1) % 2 for size in mean.shape[1:3]))  # the largest odd window that fits
    found = torch.full((len(mean),), torch.nan, dtype=torch.float64)
    if window < 3:
        return found
    masked = truth.isnan().any(-1, keepdim=True)
    a, b = (y.masked_fill(masked, 0.0).numpy() for y in (mean, truth))
    bad = torch.nn.functional.max_pool2d(masked[..., 0].double()[:, None], window, stride=1)[:, 0] > 0  # windows that touch the mask
    edge = window // 2
    for i in range(len(mean)):
        _, local = structural_similarity(a[i], b[i], win_size=window, data_range=1.0, channel_axis=-1, full=True)
        local = torch.from_numpy(local).mean(-1)[edge : local.shape[0] - edge, edge : local.shape[1] - edge]
        if not bad[i].all():
            found[i] = local[~bad[i]].mean()
    return found


def speckle(mean: Float[Tensor, "B H W C"], truth: Float[Tensor, "B H W C"]) -> Float[Tensor, " B"]:
    """Power above half the Nyquist frequency against the truth's, in dB: 0 as rough as the truth, positive grainy, negative too smooth.

    Power below 1e-5 of the truth's total power counts as that much, so a smooth answer to a smooth truth scores 0.
    """
    (p, q), radius = (power(y, truth) for y in (mean, truth)), frequency(*mean.shape[1:3])
    floor = (SPECKLE_FLOOR * q.sum((1, 2))).clamp(min=SMALLEST_MSE)
    rough = radius > 0.25
    return 10 * (torch.maximum(p[:, rough].sum(1), floor) / torch.maximum(q[:, rough].sum(1), floor)).log10()


def frequency_error(mean: Float[Tensor, "B H W C"], truth: Float[Tensor, "B H W C"]) -> Float[Tensor, " B"]:
    """Sum over frequencies of |A - A_truth| / sum of A_truth, A the radially averaged amplitude spectrum: 0 alike, 1 for a constant."""
    (p, q), radius = (power(y, truth) for y in (mean, truth)), frequency(*mean.shape[1:3])
    ring = (radius * min(mean.shape[1:3])).round().long().flatten()  # one ring per cycle across the shorter side
    count = torch.zeros(int(ring.max()) + 1, dtype=p.dtype).index_add_(0, ring, torch.ones_like(ring, dtype=p.dtype))
    a, b = (torch.zeros(len(y), len(count), dtype=y.dtype).index_add_(1, ring, y.flatten(1).sqrt()) / count.clamp(min=1) for y in (p, q))
    return (a - b).abs().sum(1) / b.sum(1).clamp(min=1e-15)


def power(y: Float[Tensor, "B H W C"], truth: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W"]:
    """|FFT|^2 of the field minus its mean under a Hann window, summed over channels; masked nodes (NaN truth) hold the mean."""
    y = torch.where(truth.isnan(), torch.nan, y)
    y = (y - y.nanmean((1, 2), keepdim=True)).nan_to_num(0.0)
    rows, columns = (torch.hann_window(size + 2, periodic=False, dtype=y.dtype)[1:-1] for size in y.shape[1:3])
    return torch.fft.fft2(y * rows[:, None, None] * columns[:, None], dim=(1, 2)).abs().square().sum(-1)


def frequency(height: int, width: int) -> Float[Tensor, "H W"]:
    """|k| of each FFT coefficient in cycles per node; Nyquist is 0.5."""
    rows, columns = (torch.fft.fftfreq(size, dtype=torch.float64) for size in (height, width))
    return torch.hypot(rows[:, None], columns[None, :])


def coverage(error: Float[Tensor, "B M C"], std: Float[Tensor, "B M C"], level: float) -> Float[Tensor, " B"]:
    """Share of sites whose truth lies in the central Gaussian interval of this level; calibrated: equal to the level."""
    width = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
    return _mean(torch.where(error.isnan(), error, (error.abs() <= width * std).double()))


def gaussian_crps(error: Float[Tensor, "B M C"], std: Float[Tensor, "B M C"]) -> Float[Tensor, " B"]:
    """sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi)), z = error/sigma; |error| where sigma is 0 (Gneiting and Raftery, section 4.2)."""
    std = std.clamp(min=1e-12)
    z = error / std
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return _mean(std * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi)))


def crps(draws: Float[Tensor, "K B M C"], truth: Float[Tensor, "B M C"]) -> Float[Tensor, " B"]:
    """mean |y_k - y| - sum_kl |y_k - y_l| / (2 K (K - 1)), averaged over sites; unbiased for any K >= 2."""
    count = len(draws)
    rank = 2 * torch.arange(1, count + 1, dtype=draws.dtype) - count - 1  # sum_kl |y_k - y_l| = 2 sum_k rank_k y_(k) over sorted draws
    spread = torch.einsum("k,kbmc->bmc", rank, draws.sort(0).values) / (count * (count - 1))
    return _mean((draws - truth).abs().mean(0) - spread)


def energy_score(draws: Float[Tensor, "K B M C"], truth: Float[Tensor, "B M C"]) -> Float[Tensor, " B"]:
    """mean ||y_k - y|| - sum_kl ||y_k - y_l|| / (2 K (K - 1)), with the root mean square over sites as norm; it sees whole fields.

    One site gives the CRPS. The norm is divided by sqrt(sites) so that grids of different size compare.
    """
    count, masked = len(draws), truth.isnan()
    a = draws.masked_fill(masked, 0.0).flatten(2).transpose(0, 1)  # (B, K, M C)
    b = truth.masked_fill(masked, 0.0).flatten(1)[:, None]
    exact = "donot_use_mm_for_euclid_dist"
    spread = torch.cdist(a, a, compute_mode=exact).sum((1, 2)) / (2 * count * (count - 1))
    return (torch.cdist(a, b, compute_mode=exact).mean((1, 2)) - spread) / (~masked).sum((1, 2)).sqrt()


def _mean(values: Float[Tensor, "B M C"]) -> Float[Tensor, " B"]:
    """The mean over sites and channels, NaN left out."""
    return values.nanmean((1, 2))


def _double(y: Tensor) -> Tensor:
    return y.detach().to("cpu", torch.float64)


def _deviation(world) -> Tensor:
    """The world's standard deviation, a number or one per channel; NaN where it is not known."""
    std = torch.as_tensor(world if isinstance(world, Tensor | float | int) else world.std, dtype=torch.float64)
    if bool((std <= 0).any()):
        raise ValueError(f"the world's standard deviation is {std.tolist()}; nRMSE needs a positive number, or NaN for unknown")
    return std
