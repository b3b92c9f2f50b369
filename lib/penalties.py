"""Penalties on the one-step estimate of the field: smoothness, its spectrum, and that two times tell the same.

    estimate  y_t + (1 - t) v, or what the network says if it predicts data

Queries are scattered and a derivative needs neighbours, so each penalty asks for a patch: p x p neighbouring sites of the training grid,
placed at random in every field and step, with noise and times of its own. It is a second call of the network: where queries look at each
other, asking for the patch together with the supervised queries would change their answers, and the flow loss would no longer be that of
an arm without a penalty. Only the penalty looks at the patch: `gradient`, `laplacian` and `tv` see no truth there, `frequency` does.

    gradient   mean square of the differences between neighbours, both directions added
    laplacian  mean square of the five-point Laplacian: zero on any linear field
    tv         mean absolute difference, both directions added (Rudin, Osher and Fatemi, Nonlinear Total Variation, 1992, by axes)
    frequency  mean square difference between the amplitudes |F| of the estimate's and the truth's spectrum under a Hann window.
               By Parseval's theorem complex values would give the squared error once more; amplitudes say how much power each
               wavelength has

Differences are per step of the grid, in the network's units; divide by the spacing 2 / (R - 1) for derivatives in s.

Two penalties need no neighbours and no second look: they act on the scattered queries of the flow loss, with its noise and times.

    spectrum     mean over wave vectors k of |F(k) of the estimate - F(k) of the truth|, F(k) = sum_j y_j exp(-i pi k s_j) / sqrt(M), a
                 Fourier transform at any M sites; k up to WAVES cycles over the domain, one of k and -k. Not squared, after Cho et al.,
                 Rethinking Coarse-to-Fine Approach in Single Image Deblurring (2021), eq. 5: squares over all k would be the squared
                 error again. Errors that hold together over the field count more than those that change from site to site
    consistency  mean square difference of the estimates at times t and t' > t of the same path; the later one, which knows more, is not
                 moved (after Song et al., Consistency Models, 2023, eq. 7). The known data do not enter
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lib import flow
from lib.data import Batch

WAVES = 8  # largest number of cycles over the domain in the spectrum of scattered queries: 144 wave vectors
TINY = 1e-12  # under the root, whose slope at 0 is infinite


def penalty(kind: str, model, batch: Batch, values: Tensor, sites: Tensor, shape: tuple[int, int], size: int, generator) -> Tensor:
    """The penalty of a batch whose fields have `values` (B, P, C) at the sites (P, 2) of a grid of this shape; NaN does not count."""
    place = patches(len(values), shape, size, generator)
    truth = values.gather(1, place[..., None].expand(-1, -1, values.shape[-1]))
    estimate, y_1, known = flow.estimate(model, replace(batch, s_qry=sites[place], y_qry=truth), generator)
    square = lambda y: rearrange(y, "B (h w) C -> B C h w", h=min(size, shape[0]))  # noqa: E731
    return PENALTIES[kind](square(estimate), square(y_1), square(known))


def patches(count: int, shape: tuple[int, int], size: int, generator: torch.Generator) -> Tensor:
    """Indices (count, size^2) of a patch of neighbouring sites per field, at random places; the whole side where the grid is smaller."""
    sides = [min(size, n) for n in shape]
    row, column = (
        torch.randint(n - side + 1, (count, 1, 1), generator=generator, device=generator.device) + _range(side, axis, generator.device)
        for n, side, axis in zip(shape, sides, (0, 1), strict=True)
    )
    return (row * shape[1] + column).flatten(1)


def gradient(y: Float[Tensor, "B C h w"], truth: Tensor, known: Tensor) -> Tensor:
    """Mean square difference between neighbours, along both axes."""
    return sum(_mean(y.diff(dim=axis).square(), _both(known, axis)) for axis in (-2, -1))


def total_variation(y: Float[Tensor, "B C h w"], truth: Tensor, known: Tensor) -> Tensor:
    """Mean absolute difference between neighbours, along both axes."""
    return sum(_mean(y.diff(dim=axis).abs(), _both(known, axis)) for axis in (-2, -1))


def laplacian(y: Float[Tensor, "B C h w"], truth: Tensor, known: Tensor) -> Tensor:
    """Mean square of the sum of the four neighbours minus four times the middle, inside the patch."""
    return _mean(_five_point(y).square(), _five_known(known))


def frequency(y: Float[Tensor, "B C h w"], truth: Tensor, known: Tensor) -> Tensor:
    """Mean square difference of the windowed spectra's amplitudes; unknown sites are 0 in both."""
    window = _hann(y.shape[-2], y)[:, None] * _hann(y.shape[-1], y)
    amplitude = lambda z: torch.fft.rfft2(known * z * window, norm="ortho").abs()  # noqa: E731
    return (amplitude(y) - amplitude(truth)).square().mean()


PENALTIES = {"gradient": gradient, "laplacian": laplacian, "tv": total_variation, "frequency": frequency}


def spectrum(model, seen: flow.Look) -> Float[Tensor, ""]:
    """How far the spectra of estimate and truth are apart, over the scattered queries; unknown ones are 0 in both."""
    lost = seen.known * (flow.estimated(model, seen) - seen.y_1)
    real, imaginary = transform(lost, seen.batch.s_qry, seen.known)
    return (real.square() + imaginary.square() + TINY).sqrt().mean()


def transform(y: Float[Tensor, "B M C"], s: Float[Tensor, "B M 2"], known: Float[Tensor, "B M C"]) -> tuple[Tensor, Tensor]:
    """Real and imaginary part (B, K, C) of sum_j y_j exp(-i pi k s_j) / sqrt(number known) for every wave vector k."""
    phase = math.pi * s @ waves(WAVES, s.device, s.dtype).mT  # B M K
    size = known.sum(1, keepdim=True).clamp(min=1).sqrt()
    return phase.cos().mT @ y / size, -phase.sin().mT @ y / size


@functools.cache
def waves(most: int, device="cpu", dtype: torch.dtype = torch.float64) -> Float[Tensor, "K 2"]:
    """All wave vectors of up to `most` whole cycles along each axis, one of each pair k, -k, without the mean.

    Kept, since a copy to a GPU at every step would make it wait.
    """
    cycles = torch.arange(-most, most + 1, dtype=torch.float64)
    k = torch.cartesian_prod(cycles, cycles)
    return k[(k[:, 0] > 0) | ((k[:, 0] == 0) & (k[:, 1] > 0))].to(device, dtype)


def consistency(model, seen: flow.Look, generator: torch.Generator) -> Float[Tensor, ""]:
    """How far the estimate at time t is from that at a later time of the same path, drawn evenly from (t, 1)."""
    share = torch.rand(seen.t.shape, generator=generator, device=seen.t.device).to(seen.t.dtype)
    with torch.no_grad():
        later = flow.estimated(model, flow.look_at(model, seen.batch, seen.y_0, seen.y_1, seen.known, seen.t + share * (1 - seen.t)))
    return (seen.known * (flow.estimated(model, seen) - later).square()).sum() / seen.known.sum().clamp(min=1)


def _range(side: int, axis: int, device) -> Tensor:
    place = torch.arange(side, device=device)
    return place[None, :, None] if axis == 0 else place[None, None, :]


def _mean(y: Tensor, known: Tensor) -> Tensor:
    return (known * y).sum() / known.sum().clamp(min=1)


def _both(known: Tensor, axis: int) -> Tensor:
    return known.narrow(axis, 1, known.shape[axis] - 1) * known.narrow(axis, 0, known.shape[axis] - 1)


def _five_point(y: Tensor) -> Tensor:
    return y[..., :-2, 1:-1] + y[..., 2:, 1:-1] + y[..., 1:-1, :-2] + y[..., 1:-1, 2:] - 4 * y[..., 1:-1, 1:-1]


def _five_known(known: Tensor) -> Tensor:
    return known[..., :-2, 1:-1] * known[..., 2:, 1:-1] * known[..., 1:-1, :-2] * known[..., 1:-1, 2:] * known[..., 1:-1, 1:-1]


def _hann(size: int, like: Tensor) -> Tensor:
    # the symmetric window of size + 2 without its zeros, so that every site of the patch counts
    return torch.hann_window(size + 2, periodic=False, dtype=like.dtype, device=like.device)[1:-1]
